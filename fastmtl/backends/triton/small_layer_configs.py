"""Launch configurations of norm layers and embeddings."""

from __future__ import annotations

from dataclasses import dataclass

from fastmtl.backends.triton.chips import Chip
from fastmtl.backends.triton.configs import filling, resident
from fastmtl.backends.triton.launching import Programs, power_of_two
from fastmtl.backends.triton.workspace import TICKETS

# Float32 numbers a thread may accumulate: of 255 registers the rest is for what is read and for offsets.
ACCUMULATED = 138
# Two rows of a segment of this many groups of 16 bytes fill whole lines of 128 bytes: less would read in part.
LEAST_GROUPS = 8


@dataclass(frozen=True)
class NormConfig:
    """Tiles of samples x parameters x positions, in groups of ``vector``, and the programs that share them."""

    vector: int
    samples: int
    parameters: int
    positions: int
    blocks: int
    splits: int
    chunk: int  # samples of a split
    programs: Programs
    warps: int = 4

    @property
    def split(self) -> bool:
        """Whether programs share blocks."""
        return self.splits > 1

    @property
    def options(self) -> dict[str, int]:
        """For the launch."""
        return {"num_warps": self.warps}


def _less_or_equal_power(number: int) -> int:
    return 1 << (max(1, number).bit_length() - 1)


def norm_config(
    chip: Chip,
    streams: int,
    accumulators: int,
    batch: int,
    parameters: int,
    positions: int,
    inner: bool,
    widest: int,
    vector: int,
) -> NormConfig:
    """Tiles for ``accumulators`` (T, with bias 2 T) sums of gradients.

    Args:
        chip, batch, parameters, positions: of the call.
        streams: tensors that are read: the gradients and what is normalised.
        accumulators: sums that each element of a tile takes.
        inner: whether parameters lie together in memory, else positions.
        widest: elements in 16 bytes, or in what the narrowest gradient makes of them.
        vector: elements that are together and aligned everywhere, at most ``widest``.
    """
    warps = 4
    threads = warps * chip.warp_size
    # Sums of each sample and of all of them, for every element that a thread reads at once.
    pairs = streams * (streams - 1) // 2
    elements = min(widest, _less_or_equal_power((ACCUMULATED - pairs) // (2 * accumulators)))
    if inner:
        vector = min(vector, elements)
    if vector == 1:
        # Each element has offsets of its own in every gradient.
        elements = min(elements, 2 if streams <= 5 else 1)
    total = threads * max(1, elements // vector)
    parameter_groups = parameters // vector if inner else parameters
    position_groups = positions if inner else positions // vector
    wanted = _wanted(chip, streams, threads, 32 + 3 * accumulators * elements)
    if inner:
        along = min(total, power_of_two(parameter_groups))
        rows = min(total // along, power_of_two(position_groups))
        # Narrower blocks make more programs, and more positions are read at a time instead.
        while along > LEAST_GROUPS and rows < power_of_two(position_groups):
            if -(-parameter_groups // along) * batch >= wanted:
                break
            along, rows = along // 2, rows * 2
    else:
        # Positions of one parameter within one warp: sums over them need no barrier.
        rows = min(chip.warp_size, power_of_two(position_groups))
        along = min(total // rows, power_of_two(parameter_groups))
        rows = min(total // along, power_of_two(position_groups))
    samples = min(total // (along * rows), power_of_two(batch))
    blocks = -(-parameter_groups // along)
    # A split writes its sums: they should be little beside what it reads.
    most = min(-(-batch // samples), max(1, batch * positions // 16))
    splits = max(1, min(most, wanted // blocks)) if blocks < TICKETS else 1
    chunk = -(-batch // splits)
    chunk = -(-chunk // samples) * samples
    splits = -(-batch // chunk)
    programs = blocks * splits if splits > 1 else min(blocks, wanted)
    return NormConfig(vector, samples, along, rows, blocks, splits, chunk, Programs(programs), warps)


def _wanted(chip: Chip, streams: int, threads: int, registers: int) -> int:
    """Programs that keep the memory busy, as in `configs.streaming`."""
    held = resident(chip, registers, threads // chip.warp_size)
    return chip.processors * min(held, filling(chip, streams * threads * 16))


@dataclass(frozen=True)
class EmbeddingConfig:
    """Tiles of chunks x groups of ``vector`` columns: each program walks ``chunks`` of ``length`` sorted rows."""

    vector: int
    columns: int  # groups
    chunks: int
    ahead: int  # rows that are read at a time
    length: int
    blocks: int  # of columns
    programs: Programs
    warps: int = 1

    @property
    def options(self) -> dict[str, int]:
        """For the launch."""
        return {"num_warps": self.warps}


# Parts at the ends of a chunk take 4 (with bfloat16 gradients 8) times the memory of a row: little beside 16 rows, as
# most ends cut no segment.
LEAST_LENGTH = 16


def embedding_config(
    chip: Chip, tasks: int, rows: int, columns: int, widest: int, vector: int, element_size: int
) -> EmbeddingConfig:
    """Programs of one warp: they need no barrier, and each is a chain of rows, so that many are better than large ones.

    Args:
        chip, tasks, rows, columns, element_size: of the call.
        widest: elements in 16 bytes.
        vector: elements that are together and aligned everywhere, at most ``widest``.
    """
    threads = chip.warp_size
    # Sums of the open segment of M and of that of Q, for every element that a thread reads at once; products of pairs,
    # and what is read ahead, take as many registers again.
    elements = min(widest, _less_or_equal_power(24 // tasks))
    if tasks > 2 and columns < threads * elements:
        elements = min(elements, 4)  # chunks walked side by side take registers too: rather fewer of them
    vector = min(vector, elements)
    if vector == 1:
        elements = min(elements, 2 if tasks <= 4 else 1)  # each has an address of its own in every gradient
    total = threads * max(1, elements // vector)
    groups = columns // vector
    along = min(total, power_of_two(groups))
    chunks = total // along
    blocks = -(-groups // along)
    # Loads under way in each program. A row that is read ahead takes registers, beside the sums at most a quarter of them,
    # and repeats the code of a row.
    sums, row = 2 * tasks * elements, tasks * elements * element_size // 4
    ahead = _less_or_equal_power(max(1, min(4, 6 // tasks, (64 - sums) // row)))
    if chunks > 1:
        ahead = min(ahead, 2 if tasks <= 2 else 1)
    in_flight = ahead * tasks * threads * elements * element_size
    registers = 64 + sums + ahead * row + tasks * (tasks + 1)
    wanted = chip.processors * min(resident(chip, registers, 1), max(4, filling(chip, in_flight)))
    length = max(LEAST_LENGTH, _less_or_equal_power(rows * blocks // (wanted * chunks)))
    count = -(-rows // (length * chunks)) * blocks
    return EmbeddingConfig(vector, along, chunks, ahead, length, blocks, Programs(count))
