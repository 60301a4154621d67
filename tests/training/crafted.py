"""Steps in which every task has exactly the gradient norm and the loss that a test asks for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastmtl import Balancer


def crafted_losses(views: Sequence[Tensor], norms: Sequence[float], values: Sequence[float]) -> list[Tensor]:
    """Losses of the given values, each with the gradient (norm, 0, ...) at its view."""
    return [
        norm * (view - view.detach()).flatten()[0] + value
        for view, norm, value in zip(views, norms, values, strict=True)
    ]


def crafted_step(
    balancer: Balancer,
    norms: Sequence[float],
    values: Sequence[float],
    *,
    present: Any = None,
    scale: float = 1.0,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """One forward and backward; the gradient of the features."""
    features = torch.zeros(2, dtype=dtype, requires_grad=True)
    views = balancer.fork(features)
    views = list(views.values()) if isinstance(views, dict) else views
    losses: Any = crafted_losses(views, norms, values)
    (balancer(losses, present=present) * scale).backward()
    assert features.grad is not None
    return features.grad


def snapshot(balancer: Balancer) -> dict[str, Tensor]:
    """A copy of the whole state."""
    return {name: buffer.clone() for name, buffer in balancer.named_buffers()}


def changed(balancer: Balancer, before: dict[str, Tensor]) -> set[str]:
    """The names of the state tensors that are not bit for bit as before (NaN equals NaN)."""
    now = dict(balancer.named_buffers())
    return {name for name, old in before.items() if not torch.equal(now[name].nan_to_num(-1), old.nan_to_num(-1))}


def spoiled_step(balancer: Balancer, what: str, bad: float) -> None:
    """A step of three tasks in which one "loss", one "gradient" or the "scale" is ``bad``."""
    norms, values, scale = [1.0, 2.0, 3.0], [1.0, 2.0, 3.0], 1.0
    if what == "loss":
        values[1] = bad
    elif what == "gradient":
        norms[1] = bad
    else:
        assert what == "scale"
        scale = bad
    crafted_step(balancer, norms, values, scale=scale)
