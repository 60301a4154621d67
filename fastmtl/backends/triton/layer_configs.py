"""How the kernels that form weight gradients are launched: tiles by arithmetic, each number with its reason."""

from __future__ import annotations

from dataclasses import dataclass

from fastmtl.backends.triton.chips import Chip
from fastmtl.backends.triton.launching import power_of_two

MOST_TASKS = 10  # whose tiles are held in registers; the products of their pairs take a register of each thread


@dataclass(frozen=True)
class FormConfig:
    """Tiles of ``inputs`` x ``outputs`` numbers of a weight gradient, formed from ``positions`` at a time."""

    inputs: int
    outputs: int
    positions: int
    warps: int
    stages: int

    @property
    def options(self) -> dict[str, int]:
        """For the launch."""
        return {"num_warps": self.warps, "num_stages": self.stages}


def form_config(chip: Chip, tasks: int, half: bool, per_sample: bool, rows: int, outputs: int, positions: int) -> FormConfig:
    """The tile of T tasks."""
    BI, BO, BK, warps, stages = 64, 32, 32, 4, 1
    return FormConfig(BI, BO, BK, warps, stages)
