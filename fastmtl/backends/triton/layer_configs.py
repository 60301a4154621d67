"""How the kernels that form weight gradients are launched: tiles by arithmetic, each number with its reason."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastmtl.backends.triton.chips import Chip
from fastmtl.backends.triton.configs import resident
from fastmtl.backends.triton.launching import Programs, power_of_two

MOST_TASKS = 10  # whose tiles are held in registers: those of their pairs' products are 55 more
_MOST_TILES = 1 << 17  # their tickets fit the workspace twice: those of Q and those of M

# Registers of a thread for tiles. With 80, with those of the pairs' products and of one tile's operands, the kernels
# keep within 255 and nothing is spilled.
_REGISTERS = 80
_MANY = 6  # tasks whose 28 and more pairs take as many registers as their tiles


def _held(tasks: int, per_sample: bool) -> tuple[int, int]:
    """Numbers of each tile that a thread holds, and all tiles' together: with their sums over samples where there are."""
    kept = tasks * (2 if per_sample else 1)
    held = next(numbers for numbers in (32, 16, 8, 4) if numbers * kept <= _REGISTERS)
    return held, held * kept


def fits(tasks: int, per_sample: bool, numbers: int) -> bool:
    """Whether weight gradients of so many ``numbers`` can be formed by the kernel."""
    return tasks <= MOST_TASKS and numbers <= _MOST_TILES * 128 * _held(tasks, per_sample)[0]


@dataclass(frozen=True)
class FormConfig:
    """Tiles of ``inputs`` x ``outputs`` numbers of a weight gradient, formed from ``positions`` at a time."""

    inputs: int
    outputs: int
    positions: int
    warps: int
    stages: int
    lean: bool  # whether offsets are computed again rather than kept

    @property
    def options(self) -> dict[str, int]:
        """For the launch."""
        return {"num_warps": self.warps, "num_stages": self.stages}


def precision() -> str:
    """How float32 is multiplied."""
    return "ieee" if torch.version.hip else "tf32x3"


def apart(tasks: int, unfolded: bool) -> bool:
    """Whether M and Q are formed one after the other.

    The sums over samples, the products of pairs and the many offsets of unfolded inputs are more than the registers hold.
    """
    return tasks > _MANY and unfolded


def form_config(
    tasks: int, bits: int, per_sample: bool, unfolded: bool, rows: int, outputs: int, positions: int
) -> FormConfig:
    """The tile of T tasks' gradients, of operands with ``bits``, ``unfolded`` by a kernel of more than one element.

    Each warp has 16 of the inputs, so that every thread holds parts of the same rows and columns of all tasks' tiles, and
    four have 64, which suits the instructions of all chips. What is left of the registers decides on the outputs.
    """
    held, registers = _held(tasks, per_sample)
    warps = min(4, max(1, power_of_two(rows) // 16))
    # A warp's 16 x 8 numbers are four of each thread. Of 32, a second 16 inputs read less than more outputs.
    down = 2 if held == 32 and rows > 64 and not unfolded else 1
    # Short chains of products in tensor cores, as these truncate. Float32 operands are split, which takes registers.
    most_positions = 16 if unfolded or (bits == 32 and registers >= 64) else 32
    return FormConfig(
        inputs=16 * warps * down,
        outputs=min(2 * held // down, 32, max(8, power_of_two(outputs))),
        positions=max(16, min(most_positions, power_of_two(positions))),
        warps=warps,
        # The loads of two steps under way; of one where products of pairs or split operands take the registers.
        stages=2 if tasks > _MANY and (per_sample or bits == 32) else 3,
        lean=unfolded or tasks > _MANY,
    )


_LEAST_POSITIONS = 256  # of a slice: what it reads is then several times what it writes


def slices(chip: Chip, config: FormConfig, tiles: int, samples: int, positions: int, per_sample: bool) -> int:
    """Programs that share a tile, each with some of the samples or positions: where the tiles are too few for the chip."""
    room = chip.processors * resident(chip, 255, config.warps)
    parts = samples * positions // _LEAST_POSITIONS
    return max(1, min(min(parts, samples) if per_sample else parts, room // tiles))


def reducing(chip: Chip, config: FormConfig, length: int) -> Programs:
    """Programs for the sums of slices."""
    return Programs(max(1, min(2 * chip.processors, length // (4 * 32 * config.warps))))
