"""Launches of the updates of the weights: one small program each."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fastmtl.backends.triton.kernels import gradnorm
from fastmtl.backends.triton.launching import OPTIONS, power_of_two


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
