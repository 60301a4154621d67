"""The weight update of GradNorm as an op, and its state."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor


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
        weights=torch.ones(tasks, device=device),
        initial_losses=torch.full((tasks,), float("nan"), device=device),
        exp_avg=zeros(tasks),
        exp_avg_sq=zeros(tasks),
        steps=zeros(tasks, dtype=torch.int64),
        weight_sum=zeros(tasks, dtype=torch.float64),
        norms=zeros(tasks),
        rates=torch.ones(tasks, device=device),
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
    if optimizer not in ("adam", "sgd"):
        raise ValueError(f"optimizer: expected 'adam' or 'sgd', got {optimizer!r}")
    for name, tensor, length in (("squared_norms", squared_norms, tasks), ("message", message, 2 + 3 * tasks)):
        if tensor.shape != (length,):
            raise ValueError(f"{name}: expected shape [{length}] for {tasks} tasks, got {list(tensor.shape)}")
    torch.ops.fastmtl.gradnorm_update(
        squared_norms.detach(), message.detach(), *state, alpha, lr, optimizer == "adam", *betas, eps, min_weight
    )
