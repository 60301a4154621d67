"""The weight update of GradNorm as an op, and its state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from fastmtl.ops.arguments import as_lists


class GradNormState(NamedTuple):
    """What GradNorm remembers between steps; every tensor is changed in place by `gradnorm_update`."""

    weights: Tensor  # [T] float32, positive, sum T
    initial_losses: Tensor  # [T] float32, L_k(0); NaN until it is known
    exp_avg: Tensor  # [T] float32, Adam's first moment
    exp_avg_sq: Tensor  # [T] float32, Adam's second moment
    steps: Tensor  # [T] int64, optimiser steps of each weight
    weight_sum: Tensor  # [T] float64, sum of the weights used in accepted updates
    norms: Tensor  # [T] float32, the last measured ||grad L_k||
    rates: Tensor  # [T] float32, the last relative inverse training rates r_k
    counters: Tensor  # [2] int64: accepted updates, updates refused for non-finite losses or gradients
    task_counters: Tensor  # [3, T] int64: updates with an unusable loss, with a zero gradient, without a gradient


def gradnorm_state(tasks: int, device: torch.device | str | None = None) -> GradNormState:
    """A fresh state for ``tasks`` tasks: weights 1, initial losses unknown."""
    zeros = lambda *shape, dtype=torch.float32: torch.zeros(shape, dtype=dtype, device=device)  # noqa: E731
    return GradNormState(
        weights=torch.ones(tasks, dtype=torch.float32, device=device),
        initial_losses=torch.full((tasks,), float("nan"), dtype=torch.float32, device=device),
        exp_avg=zeros(tasks),
        exp_avg_sq=zeros(tasks),
        steps=zeros(tasks, dtype=torch.int64),
        weight_sum=zeros(tasks, dtype=torch.float64),
        norms=zeros(tasks),
        rates=torch.ones(tasks, dtype=torch.float32, device=device),
        counters=zeros(2, dtype=torch.int64),
        task_counters=zeros(3, tasks, dtype=torch.int64),
    )


def gradnorm_update(
    squared_norms: Tensor,
    message: Tensor,
    state: GradNormState,
    *,
    alpha: float,
    lr: float = 0.025,
    optimizer: Literal["adam", "sgd"] = "adam",
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    min_weight: float = 1e-3,
) -> None:
    """One step of GradNorm's task weights (Chen et al. 2018, arXiv 1711.02257, algorithm 1), in place.

    With n_k = ||grad L_k||, G_k = w_k n_k and r_k the relative inverse training rate, the step follows
    sign(G_k - mean(G) r_k^alpha) n_k, the derivative of sum_k |G_k - target_k|; then the weights are raised to
    ``min_weight`` and scaled to the sum T. Nothing is read on the host.

    - Tasks that are absent, got no gradient, or have no usable loss (negative, or no positive loss yet, with alpha
      other than 0) keep their weight and are left out of both means; the last kind is counted in ``task_counters[0]``.
    - A non-finite loss, gradient or scale of a present task changes nothing but ``counters[1]``. A scale of 0
      changes nothing.
    - L_k(0) is the task's first positive loss. Where all losses are 0 every r_k is 1.

    Args:
        squared_norms: [T] squared norms of the gradients as they arrived: of scale * w_k * grad L_k.
        message: [2 + 3T] float32, from `weigh` and `with_scale`. A presence of 2 says "present, but got no gradient".
        state: changed in place; all tensors on one device.
        alpha: strength of the pull towards equal training rates, >= 0.
        lr: step size of the weights' optimiser.
        optimizer: ``"adam"`` (the paper's) or ``"sgd"``.
        betas, eps: Adam's.
        min_weight: floor of the weights before they are scaled to sum T, > 0.

    Raises:
        ValueError: an unknown optimiser; norms or a message of another number of tasks.
    """
    tasks = state.weights.numel()
    if squared_norms.shape != (tasks,):
        raise ValueError(f"squared_norms: expected shape [{tasks}] for {tasks} tasks, got {list(squared_norms.shape)}")
    arguments = _arguments(message, state, alpha, lr, optimizer, betas, eps, min_weight)
    torch.ops.fastmtl.gradnorm_update(squared_norms.detach(), *arguments)


def sum_norms_update(
    grads: Sequence[Tensor | None],
    message: Tensor,
    state: GradNormState,
    *,
    alpha: float,
    lr: float = 0.025,
    optimizer: Literal["adam", "sgd"] = "adam",
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    min_weight: float = 1e-3,
) -> tuple[Tensor, Tensor]:
    """`sum_norms` and then `gradnorm_update` with the norms; on a GPU in one launch.

    Args:
        grads: T tensors of one shape, as they arrived (None: no gradient, counts as zero).
        message, state, alpha, lr, optimizer, betas, eps, min_weight: as for `gradnorm_update`.

    Returns:
        The sum of the gradients, and their [T] squared norms.

    Raises:
        ValueError, TypeError: as for `sum_norms` and `gradnorm_update`.
    """
    lists = as_lists(grads)
    lists.check_tasks(state.weights.numel())
    arguments = _arguments(message, state, alpha, lr, optimizer, betas, eps, min_weight)
    total, squared_norms = torch.ops.fastmtl.sum_norms_update(lists.flat, *arguments)
    return total, squared_norms


def _arguments(
    message: Tensor,
    state: GradNormState,
    alpha: float,
    lr: float,
    optimizer: str,
    betas: tuple[float, float],
    eps: float,
    min_weight: float,
) -> tuple[Any, ...]:
    """What the operators take after the norms or the gradients, checked."""
    tasks = state.weights.numel()
    if optimizer not in ("adam", "sgd"):
        raise ValueError(f"optimizer: expected 'adam' or 'sgd', got {optimizer!r}")
    if message.shape != (2 + 3 * tasks,):
        raise ValueError(f"message: expected shape [{2 + 3 * tasks}] for {tasks} tasks, got {list(message.shape)}")
    return (message.detach(), *state, alpha, lr, optimizer == "adam", *betas, eps, min_weight)
