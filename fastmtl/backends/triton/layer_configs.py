"""How the kernels that form weight gradients are launched: tiles by arithmetic, each number with its reason."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastmtl.backends.triton.chips import Chip
from fastmtl.backends.triton.configs import resident
from fastmtl.backends.triton.launching import Programs, power_of_two

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


def precision() -> str:
    """How float32 is multiplied."""
    return "ieee" if torch.version.hip else "tf32x3"


def form_config(tasks: int, bits: int, per_sample: bool, rows: int, outputs: int, positions: int) -> FormConfig:
    """The tile of T tasks."""
    BI, BO, BK, warps, stages = 64, 32, 32, 4, 1
    BI, BO, BK = (max(16, min(a, power_of_two(b))) for a, b in ((BI, rows), (BO, outputs), (BK, positions)))
    while BI * BO < 32 * warps * 4:
        warps //= 2
    return FormConfig(BI, BO, BK, warps, stages)


def slices(chip: Chip, config: FormConfig, tiles: int, parts: int) -> int:
    """Programs that share a tile, each with some of ``parts`` of the batch: where the tiles are too few for the chip."""
    room = chip.processors * resident(chip, 255, config.warps)
    return max(1, min(parts, room // tiles))


def reducing(chip: Chip, config: FormConfig, length: int) -> Programs:
    """Programs for the sums of slices."""
    return Programs(max(1, min(2 * chip.processors, length // (4 * 32 * config.warps))))
