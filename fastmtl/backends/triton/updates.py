"""Launches of the updates of the weights: one small program each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastmtl.backends.triton.kernels import gradnorm
from fastmtl.backends.triton.kernels import weigh as weighing
from fastmtl.backends.triton.launching import OPTIONS, power_of_two


def weigh(losses: Sequence[Tensor], weights: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of w_k L_k over the present tasks, and the message (scale 1) for the fork."""
    tasks = len(losses)
    wide = any(loss.dtype == torch.float64 for loss in losses)
    loss = weights.new_empty((), dtype=torch.float64 if wide else torch.float32)
    message = weights.new_empty(2 + 3 * tasks)
    weighing.weigh[(1,)](
        tuple(losses),
        weights.contiguous(),
        present.contiguous(),
        loss,
        message,
        T=tasks,
        WIDTH=max(2, power_of_two(tasks)),
        num_warps=1,
        **OPTIONS,
    )
    return loss, message


def gradnorm_update(
    squared_norms: Tensor,
    message: Tensor,
    *state_and_options: Tensor | float | bool,
) -> None:
    """One step of GradNorm's weights; arguments as of `fastmtl.backends.reference.gradnorm_update`."""
    state, (alpha, lr, adam, beta1, beta2, eps, min_weight) = state_and_options[:10], state_and_options[10:]
    tasks = squared_norms.numel()
    gradnorm.gradnorm_update[(1,)](
        squared_norms,
        message,
        tuple(state),
        alpha,
        lr,
        beta1,
        beta2,
        eps,
        min_weight,
        T=tasks,
        WIDTH=max(2, power_of_two(tasks)),
        ADAM=adam,
        num_warps=1,
        **OPTIONS,
    )
