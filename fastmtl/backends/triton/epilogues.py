"""Updates of the weights as arguments of the launches that end with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastmtl.backends.triton import gnr
from fastmtl.backends.triton.chips import chip_of

Update = tuple[Any, ...]  # the arguments of `gradnorm_update` or `gnr_update` after what was measured


def gradnorm_arguments(norms: Tensor, update: Update | None) -> dict[str, Any]:
    """What the kernels of `sum_norms` take for GradNorm's step; where none follows, what they do not read."""
    if update is None:
        values: tuple[Any, ...] = (norms, (norms,) * 10, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
        adam = False
    else:
        alpha, lr, adam, *numbers = update[11:]
        values = (update[0], update[1:11], alpha, lr, *numbers)
    names = ("p_message", "p_state", "alpha", "lr", "beta1", "beta2", "eps", "min_weight")
    return {**dict(zip(names, values, strict=True)), "STEP": update is not None, "ADAM": adam}


@dataclass(frozen=True)
class GNRStep:
    """The step of the GNR weights at the end of `sum_moments`, where ``update`` is given."""

    tasks: int
    update: Update | None

    @property
    def scratch(self) -> int:
        """Numbers of workspace that it takes."""
        return 0 if self.update is None else 2 * gnr.scratch_size(self.tasks)

    def arguments(self, M: Tensor, scratch: Tensor, warps: int) -> dict[str, Any]:
        """What the kernels, of that many warps a program, take for it; where none follows, what they do not read."""
        if self.update is None:
            values: tuple[Any, ...] = (M, (M,) * 7, M, 0, 0, 0.0, 0.0, 0.0)
            loss_sum, objective, accumulation = False, "none", 1
        else:
            batch, accumulation, loss_sum, objective, *numbers = self.update[8:]
            values = (self.update[0], self.update[1:8], scratch.view(torch.float64), batch, accumulation, *numbers)
        names = ("p_message", "p_state", "p_scratch", "samples", "accumulation", "decay", "step", "floor")
        return {
            **dict(zip(names, values, strict=True)),
            "STEP": self.update is not None,
            "P": gnr.width(self.tasks),
            "LOSS_SUM": loss_sum,
            "OBJECTIVE": objective,
            "ACCUMULATED": accumulation > 1,
            "IN_REGISTERS": gnr.in_registers(self.tasks, warps),
            "CALLS": chip_of(M.device).calls,
        }
