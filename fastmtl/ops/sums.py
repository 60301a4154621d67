"""The fork's ops: the sum of T gradients and their statistics, in one read of each and one write of the sum."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmtl.ops.arguments import Gradients, TaskLists, as_lists
from fastmtl.ops.library import call


def _totals(lists: TaskLists, totals: list[Tensor]) -> Tensor | list[Tensor]:
    return totals if lists.nested else totals[0]


def sum_moments(grads: Gradients) -> tuple[Tensor | list[Tensor], Tensor, Tensor]:
    """sum_k D_k and the moments M and Q of the per-sample gradients.

    With c_kb = D_k[b], what autograd delivers for sample b of a batch-mean loss, and B = D_k.shape[0]:
    M_kj = <sum_b c_kb, sum_b c_jb> and Q_kj = B * sum_b <c_kb, c_jb>, so that B/(B-1) * (Q - M) is the unbiased
    per-sample covariance and ``sqrt(Q_kk / B)`` the norm of D_k.

    Args:
        grads: T tensors [B, ...] of one shape (None: no gradient, counts as zero), a [T, B, ...] tensor, or T lists
            of N such tensors (a feature pyramid: the moments of the levels add up). float32, bfloat16, float16 or
            float64; any strides, read in place.

    Returns:
        The sum, with the dtype and layout of the gradients (a list of N sums for lists); M and Q, [T, T] float32
        (float64 for float64 gradients).

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not agree; 0-d gradients; no gradient at all.
    """
    lists = as_lists(grads)
    lists.check_batched()
    results = [call(torch.ops.fastmtl.sum_moments, column) for column in lists.columns()]
    second, samples = results[0][1], results[0][2]
    for _, level_second, level_samples in results[1:]:
        second, samples = second + level_second, samples + level_samples
    return _totals(lists, [result[0] for result in results]), second, samples


def sum_norms(grads: Gradients) -> tuple[Tensor | list[Tensor], Tensor]:
    """sum_k D_k and the squared Frobenius norms ||D_k||^2: all that GradNorm needs at the features.

    Args:
        grads: as for `sum_moments`; 0-d tensors too.

    Returns:
        The sum (a list of N sums for lists), and [T] squared norms, float32 (float64 for float64 gradients).

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not agree; no gradient at all.
    """
    lists = as_lists(grads)
    results = [call(torch.ops.fastmtl.sum_norms, column) for column in lists.columns()]
    squared = results[0][1]
    for _, level_squared in results[1:]:
        squared = squared + level_squared
    return _totals(lists, [result[0] for result in results]), squared
