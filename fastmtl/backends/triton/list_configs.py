"""Launch configurations of the ops over lists of columns."""

from __future__ import annotations

from dataclasses import dataclass

from fastmtl.backends.triton import configs
from fastmtl.backends.triton.chips import Chip
from fastmtl.backends.triton.configs import LEAST_REGISTERS, filling, resident
from fastmtl.backends.triton.launching import Programs, power_of_two
from fastmtl.backends.triton.rows import rows_of

# Pointers of a launch: 1 KiB of the 4 KiB that its arguments may take, and as many scalar choices for each column that a
# program meets. More would save launches of models with more tensors, and take longer to compile.
POINTERS = 128
COLUMNS = 32
MOST_CHUNK = 20  # tasks that are read side by side: their pointers, and the weights of a sum, fit the registers


def columns_of_launch(tasks: int) -> int:
    """G: the largest power of two that keeps T * G pointers within the limit."""
    return min(COLUMNS, power_of_two(POINTERS // tasks + 1) // 2)


def chunk_of(tasks: int) -> int:
    """C: tasks that are read side by side, chunks as even as can be."""
    return -(-tasks // -(-tasks // MOST_CHUNK))


def norms_registers(tasks: int) -> int:
    """Of `squared_norms`: a sum of each task, a pointer of each of a chunk, and what its loads take."""
    return max(LEAST_REGISTERS, min(configs.norms_registers(tasks), 64 + tasks + 4 * chunk_of(tasks)))


def sum_registers(tasks: int) -> int:
    """Of `weighted_sum`: a pointer and a weight of each task of a chunk, and what its loads take."""
    return max(LEAST_REGISTERS, 32 + 6 * chunk_of(tasks))


@dataclass(frozen=True)
class RowConfig:
    """Tiles [``rows``, ``positions``], a row for each task, and the programs that share them."""

    rows: int
    positions: int
    warps: int
    stages: int
    programs: Programs

    @property
    def options(self) -> dict[str, int]:
        """For the launch."""
        return {"num_warps": self.warps, "num_stages": self.stages}


def _programs(chip: Chip, blocks: int, block_bytes: int, in_flight: int, partial: int, most: int) -> Programs:
    """Enough programs to keep the memory busy, each with eight times as much to read as it writes partial results."""
    a_processor = min(most, filling(chip, in_flight))
    worth = blocks * block_bytes // (8 * 4 * partial)
    return Programs(max(1, min(blocks, chip.processors * a_processor, worth)))


def gram_rows(chip: Chip, tasks: int, itemsize: int) -> tuple[int, int, int, int]:
    """Rows, positions, warps and stages of a tile for products.

    A row is 128 bytes, four sectors side by side: 64 half-precision or 32 float32 positions, also a chain of products
    that is short enough for tensor cores. Three stages: two tiles are under way to shared memory while one is multiplied.
    Four warps: more would wait for each other at every step of a product, where other programs could go on.
    """
    rows = rows_of(tasks)
    return rows, 128 // itemsize, 4, 3


def gram_config(chip: Chip, tasks: int, itemsize: int, shape: tuple[int, int, int, int], blocks: int) -> RowConfig:
    """For ``blocks`` tiles of ``shape``, see `gram_rows`."""
    rows, positions, warps, stages = shape
    tile = tasks * positions * itemsize
    # Float32 values are held as two tf32 parts, for both sides of the product.
    registers = 128 if rows < 64 else 240 if itemsize == 4 else 168
    return RowConfig(
        rows,
        positions,
        warps,
        stages,
        _programs(chip, blocks, tile, (stages - 1) * tile, rows * rows, resident(chip, registers, warps)),
    )
