"""The weighted sum of the losses, and the update of GradNorm's weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


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
