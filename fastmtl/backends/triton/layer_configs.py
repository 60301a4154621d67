"""How the kernels that form weight gradients are launched: tiles by arithmetic, each number with its reason."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from fastmtl.backends.layer_moments import Costs
from fastmtl.backends.layer_moments.factors import Sizes
from fastmtl.backends.triton.chips import Chip
from fastmtl.backends.triton.configs import resident
from fastmtl.backends.triton.launching import Programs, power_of_two

MOST_TASKS = 10  # whose tiles are held in registers: those of their pairs' products are 55 more
_MOST_TILES = 1 << 17  # their tickets fit the workspace twice: those of Q and those of M

# Registers of a thread for tiles. With these, with those of the pairs' products and of one tile's operands, the kernels
# keep within 255 and nothing is spilled: by warp size, as AMD's compiler takes more, as do products without tensor cores.
_REGISTERS = {32: 96, 64: 80}
_MANY = 6  # tasks whose 28 and more pairs take as many registers as their tiles
_MOST = 8  # more have 45 pairs and more: what operands take has to be least


def _held(tasks: int, per_sample: bool, warp_size: int) -> int:
    """Numbers of each tile that a thread holds, beside their sums over samples where there are."""
    kept = tasks * (2 if per_sample else 1)
    return next(numbers for numbers in (32, 16, 8, 4) if numbers * kept <= _REGISTERS[warp_size])


def fits(tasks: int, per_sample: bool, numbers: int) -> bool:
    """Whether weight gradients of so many ``numbers`` can be formed by the kernel."""
    return tasks <= MOST_TASKS and numbers <= _MOST_TILES * 128 * _held(tasks, per_sample, 64)


# What a multiply-add of the kernel takes, of those of torch's float32 products: tensor cores, for float32 in three parts.
_PRICES = {16: 0.25, 32: 0.75}


def forming(sizes: Sizes, bits: int, costs: Costs) -> float:
    """What the kernel costs, whether it forms M alone or Q as well."""
    products = sizes.tasks * sizes.groups * sizes.batch * sizes.positions * sizes.inputs * sizes.outputs
    return products * _PRICES[bits] + 2 * costs.call


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


def apart(tasks: int, unfolded: bool) -> bool:
    """Whether M and Q are formed one after the other.

    The sums over samples, the products of pairs and the many offsets of unfolded inputs are more than the registers hold.
    """
    return tasks > _MANY and unfolded


@dataclass(frozen=True)
class Shape:
    """What the launch of a layer depends on."""

    tasks: int
    bits: int  # of an operand
    per_sample: bool
    plain: bool  # whether float32 products are formed without tensor cores
    unfolded: bool  # by a kernel of more than one element
    whole: bool  # whether 16 bytes of the inputs can be read at once
    channels: int  # of a group
    rows: int  # inputs of a position
    outputs: int
    positions: int


def _stages(shape: Shape) -> int:
    """Three: the loads of two steps are under way. Fewer where products of pairs and split operands take the registers."""
    if shape.tasks > _MOST and shape.bits == 32:
        return 1
    return 2 if shape.tasks > _MANY and (shape.per_sample or shape.bits == 32) else 3


@functools.lru_cache(maxsize=1024)
def form_config(chip: Chip, shape: Shape) -> FormConfig:
    """The tile of T tasks' gradients.

    Each warp has 16 of the inputs, so that every thread holds parts of the same rows and columns of all tasks' tiles, and
    four have 64, which suits the instructions of all chips. What is left of the registers decides on the outputs.
    """
    held = _held(shape.tasks, shape.per_sample, 64 if shape.plain else chip.warp_size)
    warps = min(4, max(1, power_of_two(shape.rows) // 16))
    # Tiles are read from the cache, which limits the products: twice as many inputs a tile read an element in two thirds
    # of the time. Inputs read singly take too many registers for that, and a tile should not meet two elements of a kernel.
    # Where registers are short.
    short = shape.tasks > _MANY or chip.warp_size != 32 or shape.plain
    if not short and shape.rows % 128 == 0 and shape.whole and (not shape.unfolded or shape.channels % 128 == 0):
        warps = 8
    narrow = shape.unfolded and not shape.whole
    # Short chains of products in tensor cores, as these truncate.
    shortest = narrow or shape.bits == 32 or shape.tasks > _MOST
    most_positions = 16 if shortest else 64 if shape.whole and not short else 32
    return FormConfig(
        inputs=16 * warps,
        outputs=min(2 * held, 64, max(8, power_of_two(shape.outputs))),
        positions=max(16, min(most_positions, power_of_two(shape.positions))),
        warps=warps,
        stages=_stages(shape),
    )


_STORED = 256  # positions that are read in the time that a number of a slice takes to be written and read
_MOST_SLICES = 64


@functools.lru_cache(maxsize=1024)
def slices(
    chip: Chip, config: FormConfig, tiles: int, samples: int, positions: int, per_sample: bool, most: int
) -> int:
    """Programs that share a tile, each with some of the samples or positions: as many as take the least time.

    Where tiles are few, slices fill the chip; where the last of them would leave most of it idle, slices are shorter.
    """
    room = chip.processors * resident(chip, 255, config.warps)
    work = samples * positions
    most = max(1, min(most, _MOST_SLICES, work // _STORED, samples if per_sample else work))

    def time(count: int) -> float:
        rounds = -(-tiles * count // room)
        return rounds * work / count + (0 if count == 1 else _STORED * count * tiles / room)

    return min(range(1, most + 1), key=time)


def reducing(chip: Chip, config: FormConfig, length: int) -> Programs:
    """Programs for the sums of slices."""
    return Programs(max(1, min(2 * chip.processors, length // (4 * 32 * config.warps))))
