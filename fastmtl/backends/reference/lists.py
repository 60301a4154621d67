"""Statistics and sums of T gradients, each a list of N tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastmtl.backends.contract import columns, empty_total, present_of, statistics_dtype


def zeros_for_missing(tensors: Sequence[Tensor | None], like: Tensor) -> list[Tensor]:
    """The gradients in the dtype of their statistics; zeros like ``like`` for those that did not arrive."""
    dtype = statistics_dtype(like)
    return [torch.zeros_like(like, dtype=dtype) if tensor is None else tensor.to(dtype) for tensor in tensors]


def gram(tensors: Sequence[Tensor | None], tasks: int) -> Tensor:
    """Inner products of the T gradients, each a list of N tensors."""
    dtype = statistics_dtype(present_of(tensors)[0])
    result = present_of(tensors)[0].new_zeros((tasks, tasks), dtype=dtype)
    for column in columns(tensors, tasks):
        if present_of(column):
            flat = torch.stack([g.reshape(-1) for g in zeros_for_missing(column, present_of(column)[0])])
            result += flat @ flat.T
    return result


def squared_norms(tensors: Sequence[Tensor | None], tasks: int) -> Tensor:
    """Squared norms of the T gradients, each a list of N tensors."""
    dtype = statistics_dtype(present_of(tensors)[0])
    result = present_of(tensors)[0].new_zeros(tasks, dtype=dtype)
    for column in columns(tensors, tasks):
        for task, tensor in enumerate(column):
            if tensor is not None:
                result[task] += tensor.to(dtype).square().sum()
    return result


def weighted_sum(tensors: Sequence[Tensor | None], tasks: int, weights: Tensor) -> list[Tensor]:
    """sum_k w_k g_k of T gradients, each a list of N tensors; N tensors."""
    out = [empty_total(column) for column in columns(tensors, tasks)]
    weighted_sum_out(tensors, tasks, weights, out)
    return out


def weighted_sum_out(tensors: Sequence[Tensor | None], tasks: int, weights: Tensor, out: Sequence[Tensor]) -> None:
    """As `weighted_sum`, into ``out``, which may be one of the gradients."""
    for column, result in zip(columns(tensors, tasks), out, strict=True):
        dtype = statistics_dtype(result)
        accumulated = torch.zeros_like(result, dtype=dtype)
        for weight, tensor in zip(weights.to(dtype), column, strict=True):
            if tensor is not None:
                accumulated = accumulated + weight * tensor.to(dtype)
        result.copy_(accumulated)
