"""Statistics and sums of gradients that the caller already has: T tensors, T lists of tensors, or a [T, P] matrix."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastmtl.backends.contract import present_of
from fastmtl.ops.arguments import Gradients, as_lists
from fastmtl.ops.library import call


def gram(grads: Gradients) -> Tensor:
    """Gram matrix M_kj = <g_k, g_j> of T task gradients, in one read of each and without a [T, P] copy.

    Args:
        grads: T tensors of one shape, T lists of tensors whose shapes agree across tasks (None: no gradient, counts as
            zero), or a [T, P] matrix. float32, bfloat16, float16 or float64; any strides.

    Returns:
        [T, T] float32 (float64 for float64 gradients), symmetric.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not agree; no gradient at all.
    """
    lists = as_lists(grads)
    return call(torch.ops.fastmtl.gram, lists.flat, lists.tasks)


def squared_norms(grads: Gradients) -> Tensor:
    """Squared norms ||g_k||^2 of T task gradients: the diagonal of `gram`, [T], at the price of one read.

    Arguments and errors as for `gram`.
    """
    lists = as_lists(grads)
    return call(torch.ops.fastmtl.squared_norms, lists.flat, lists.tasks)


def weighted_sum(
    grads: Gradients, weights: Tensor, out: Tensor | Sequence[Tensor] | None = None
) -> Tensor | list[Tensor]:
    """sum_k w_k g_k, formed in float32 (float64 for float64 gradients) and rounded once.

    Args:
        grads: as for `gram`.
        weights: [T] floating point, on the gradients' device.
        out: where to write: a tensor (a list of N tensors for lists) like one task's gradient. It may be one of the
            gradients themselves, but must not overlap them in any other way.

    Returns:
        A tensor like one task's gradient, or a list of N tensors where ``grads`` are lists; ``out`` where it was given.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not agree; no gradient at all, or no task's for one of the
            tensors of a list.
        RuntimeError: ``out`` is given, and something requires grad.
    """
    lists = as_lists(grads)
    if not isinstance(weights, Tensor):
        raise TypeError(f"weights: expected a tensor of shape [{lists.tasks}], got {type(weights).__name__}")
    if weights.shape != (lists.tasks,) or not weights.is_floating_point() or weights.device != lists.device:
        raise ValueError(
            f"weights: expected {lists.tasks} floating-point numbers on {lists.device}, got shape "
            f"{list(weights.shape)}, {weights.dtype} on {weights.device}"
        )
    weights = weights.to(lists.statistics_dtype)
    if out is None:
        lists.columns()  # raises where one has no gradient, as `check_out` does
        sums = call(torch.ops.fastmtl.weighted_sum, lists.flat, lists.tasks, weights)
        return sums if lists.nested else sums[0]
    targets = list(out) if not isinstance(out, Tensor) else [out]
    lists.check_out(targets, nested=not isinstance(out, Tensor))
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (*present_of(lists.flat), weights, *targets)):
        raise RuntimeError("out: expected gradients, weights and out that do not require grad, as it has no derivative")
    torch.ops.fastmtl.weighted_sum_out(lists.flat, lists.tasks, weights, targets)
    return targets if lists.nested else targets[0]
