"""The fork's ops: the sum of T gradients and their statistics."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastmtl.backends.contract import empty_total, present_of, statistics_dtype
from fastmtl.backends.reference.lists import squared_norms, zeros_for_missing


def _sum(grads: Sequence[Tensor | None]) -> Tensor:
    total = empty_total(grads)
    present = present_of(grads)
    accumulated = present[0].to(statistics_dtype(total))
    for grad in present[1:]:
        accumulated = accumulated + grad
    return total.copy_(accumulated)


def sum_moments(grads: Sequence[Tensor | None]) -> tuple[Tensor, Tensor, Tensor]:
    """Sum over tasks, Gram matrix M of the sums over dimension 0, and Q = B * sum_b of the per-sample Gram matrices."""
    total = _sum(grads)
    batch = total.shape[0]
    stacked = torch.stack(zeros_for_missing(grads, total)).reshape(len(grads), batch, total[:1].numel())
    sums = stacked.sum(1)
    per_sample = torch.einsum("kbp,jbp->kj", stacked, stacked)
    return total, sums @ sums.T, batch * per_sample


def sum_norms(grads: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
    """Sum over tasks and each task's squared Frobenius norm."""
    return _sum(grads), squared_norms(grads, len(grads))
