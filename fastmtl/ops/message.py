"""The weighted sum of the losses, and the message that tells the update about losses, weights and scale."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def weigh(losses: Sequence[Tensor], weights: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """sum_k w_k L_k over the present tasks, and the message about it for `gradnorm_update`.

    Args:
        losses: T tensors with one element each, floating point.
        weights: [T] float32.
        present: [T] bool; the loss of an absent task is ignored, whatever it is.

    Returns:
        The sum, 0-d float32 (float64 where a loss is float64), and the message, [2 + 3T] float32: 1, the loss scale 1,
        the losses, the weights, the presence.

    Raises:
        ValueError: weights or presence of another number of tasks.
    """
    if weights.shape != (len(losses),) or present.shape != weights.shape or present.dtype != torch.bool:
        raise ValueError(
            f"weights, present: expected [{len(losses)}] and [{len(losses)}] bool for {len(losses)} losses, got "
            f"{list(weights.shape)} and {list(present.shape)} {present.dtype}"
        )
    return torch.ops.fastmtl.weigh(list(losses), weights, present)


def with_scale(message: Tensor, scale: Tensor) -> Tensor:
    """The message of a loss that was multiplied by ``scale`` (0-d)."""
    return torch.cat([message[:1], scale.reshape(1).to(torch.float32), message[2:]])
