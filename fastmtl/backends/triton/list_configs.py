"""Launch configurations of the ops over lists of columns."""

from __future__ import annotations

from dataclasses import dataclass

from fastmtl.backends.triton import configs
from fastmtl.backends.triton.chips import Chip
from fastmtl.backends.triton.configs import LEAST_REGISTERS, filling, resident
from fastmtl.backends.triton.launching import Programs, power_of_two
from fastmtl.backends.triton.rows import LEAST_ROWS, rows_of

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
class Tiles:
    """How `gram` of many tasks reads them: ``count`` tiles of ``rows`` tasks and ``positions``, multiplied in pairs."""

    rows: int
    count: int
    positions: int
    warps: int
    stages: int
    registers: int  # of a thread, as compilers report them
    limit: int | None = None  # the most of a thread

    @property
    def partial(self) -> int:
        """Numbers of a program's partial results."""
        return self.count * (self.count + 1) // 2 * self.rows**2

    @property
    def options(self) -> dict[str, int]:
        """For the launch."""
        return {"num_warps": self.warps, "num_stages": self.stages} | configs.limited(self.limit)


def gram_tiles(chip: Chip, tasks: int, itemsize: int) -> Tiles:
    """Tiles of up to 128 bytes a row, four sectors side by side; their products are chains short enough for tensor cores.

    Of up to 16 tasks, the least rows of tensor cores, a warp by itself multiplies a tile: no warp waits for another one.

    Float32 products take three times the multiplications: those of rows past the last task and of the upper triangle would
    take longer than the memory. So of up to 48 tasks a warp multiplies the lower pairs of tiles of 16. Operands are held as
    two tf32 parts, those of three tiles only for half as many positions; the limit is what the assembler needs to spill none.

    Else all tasks are one tile of four warps: more would wait for each other at every step. Several stages, so that tiles are
    under way to shared memory while one is multiplied.
    """
    count, positions = -(-tasks // LEAST_ROWS), 128 // itemsize
    if count == 1:
        return Tiles(LEAST_ROWS, 1, positions, warps=1, stages=3, registers=128)
    if itemsize == 4 and count <= 3:
        positions //= 2 if count == 3 else 1
        limit = 232 if chip.limits else None
        return Tiles(LEAST_ROWS, count, positions, warps=1, stages=3, registers=232, limit=limit)
    rows = rows_of(tasks)
    if itemsize == 4:
        limit = 255 if chip.limits else None
        return Tiles(rows, 1, positions, warps=4, stages=3, registers=255, limit=limit)
    return Tiles(rows, 1, positions, warps=4, stages=4, registers=128 if rows < 64 else 168)


def gram_programs(chip: Chip, tasks: int, itemsize: int, tiles: Tiles, blocks: int) -> Programs:
    """Enough programs to keep the memory busy, each with eight times as much to read as it writes partial results."""
    block_bytes = tasks * tiles.positions * itemsize
    in_flight = (tiles.stages - 1) * block_bytes
    a_processor = min(resident(chip, tiles.registers, tiles.warps), filling(chip, in_flight))
    worth = blocks * block_bytes // (8 * 4 * tiles.partial)
    return Programs(max(1, min(blocks, chip.processors * a_processor, worth)))
