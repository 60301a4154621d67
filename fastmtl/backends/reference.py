"""The pure-PyTorch backend: runs on every device and is the oracle that the other backends are checked against.

Written for clarity, not speed. The ops and their conventions are those of `contract`; the symbols those of the papers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastmtl.backends.contract import columns, empty_total, present_of, statistics_dtype


def unavailable(device: torch.device) -> str | None:
    """Why this backend cannot run on ``device``, None where it can. The reference runs everywhere."""
    return None


def _zeros_for_missing(tensors: Sequence[Tensor | None], like: Tensor) -> list[Tensor]:
    dtype = statistics_dtype(like)
    return [torch.zeros_like(like, dtype=dtype) if tensor is None else tensor.to(dtype) for tensor in tensors]


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
    stacked = torch.stack(_zeros_for_missing(grads, total)).reshape(len(grads), batch, total[:1].numel())
    sums = stacked.sum(1)
    per_sample = torch.einsum("kbp,jbp->kj", stacked, stacked)
    return total, sums @ sums.T, batch * per_sample


def sum_norms(grads: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
    """Sum over tasks and each task's squared Frobenius norm."""
    return _sum(grads), squared_norms(grads, len(grads))


def gram(tensors: Sequence[Tensor | None], tasks: int) -> Tensor:
    """Inner products of the T gradients, each a list of N tensors."""
    dtype = statistics_dtype(present_of(tensors)[0])
    result = present_of(tensors)[0].new_zeros((tasks, tasks), dtype=dtype)
    for column in columns(tensors, tasks):
        if present_of(column):
            flat = torch.stack([g.reshape(-1) for g in _zeros_for_missing(column, present_of(column)[0])])
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


def weigh(losses: Sequence[Tensor], weights: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of w_k L_k over the present tasks, and the message (scale 1) for the fork."""
    wide = any(loss.dtype == torch.float64 for loss in losses)
    values = torch.stack([loss.reshape(()).to(torch.float64 if wide else torch.float32) for loss in losses])
    loss = torch.where(present, weights * values, torch.zeros_like(values)).sum()
    ones = torch.ones_like(weights[:1])
    return loss, torch.cat([ones, ones, values.float(), weights, present.float()])


def gradnorm_update(
    squared_norms: Tensor,
    message: Tensor,
    weights: Tensor,
    initial_losses: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    steps: Tensor,
    weight_sum: Tensor,
    norms: Tensor,
    rates: Tensor,
    counters: Tensor,
    task_counters: Tensor,
    alpha: float,
    lr: float,
    adam: bool,
    beta1: float,
    beta2: float,
    eps: float,
    min_weight: float,
) -> None:
    """One step of GradNorm's weights (Chen et al. 2018, algorithm 1), in float64, without a read on the host.

    ``squared_norms`` are those of the gradients as they arrived, that is of ``scale * w_k * grad L_k``.
    """
    tasks = weights.numel()
    scale = message[1].double()
    losses, used, present = message[2:].double().view(3, tasks)
    no_gradient = present == 2
    present = present == 1
    task_norms = squared_norms.double().sqrt() / (scale.abs() * used)

    measured = (message[0] == 1) & (scale != 0)
    # A square beyond float32 would stay in Adam's second moment for good.
    fits = task_norms.square() <= torch.finfo(torch.float32).max
    finite = (~present | (fits & losses.isfinite())).all() & scale.isfinite()
    accepted = measured & finite

    # L_k(0) is the first positive loss: a ratio to zero or to a negative number has no meaning.
    initial = torch.where(accepted & present & initial_losses.isnan() & (losses > 0), losses.float(), initial_losses)
    rated = present & (initial > 0) & (losses >= 0)
    taking_part = rated if alpha != 0 else present  # rates do not matter at alpha 0
    ratios = torch.where(rated, losses / initial.double(), 0.0)
    mean_ratio = ratios.sum() / rated.sum()
    relative = torch.where(mean_ratio > 0, ratios / mean_ratio, 1.0)  # all losses 0: no task lags behind

    gradient_norms = torch.where(taking_part, used * task_norms, 0.0)  # G_k
    mean_norm = gradient_norms.sum() / taking_part.sum()
    target = mean_norm * (relative**alpha if alpha != 0 else 1.0)
    gradient = torch.sign(gradient_norms - target) * task_norms

    stepped = accepted & taking_part
    new_steps = steps + stepped
    if adam:
        new_avg = beta1 * exp_avg.double() + (1 - beta1) * gradient
        new_avg_sq = beta2 * exp_avg_sq.double() + (1 - beta2) * gradient.square()
        denominator = (new_avg_sq / (1 - beta2 ** new_steps.double())).sqrt() + eps
        moved = weights.double() - lr * new_avg / (1 - beta1 ** new_steps.double()) / denominator
        exp_avg.copy_(torch.where(stepped, new_avg.float(), exp_avg))
        exp_avg_sq.copy_(torch.where(stepped, new_avg_sq.float(), exp_avg_sq))
    else:
        moved = weights.double() - lr * gradient
    floored = torch.where(taking_part, moved.clamp_min(min_weight), 0.0)
    budget = tasks - torch.where(taking_part, 0.0, weights.double()).sum()  # the tasks left out keep their weight
    renormalised = (floored * (budget / floored.sum())).float().clamp_min(torch.finfo(torch.float32).tiny)

    weight_sum.add_(torch.where(accepted, used, 0.0))
    weights.copy_(torch.where(stepped, renormalised, weights))
    initial_losses.copy_(initial)
    steps.copy_(new_steps)
    norms.copy_(torch.where(accepted & present, task_norms.float(), norms))
    rates.copy_(torch.where(accepted & rated, relative.float(), rates))
    counters[0].add_(accepted)
    counters[1].add_(measured & ~finite)
    task_counters[0].add_(accepted & present & ~taking_part)
    task_counters[1].add_(accepted & present & (squared_norms == 0))
    task_counters[2].add_(accepted & no_gradient)
