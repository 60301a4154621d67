"""Launch configurations of the kernels that stream through gradients: chosen by arithmetic, each number with its reason."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from fastmtl.backends.triton.chips import Chip
from fastmtl.backends.triton.launching import Programs, power_of_two
from fastmtl.backends.triton.tuning import tunable
from fastmtl.backends.triton.workspace import TICKETS

# Tasks of which tiles, and the sums of pairs for both M and Q, fit the registers side by side.
FEW = 8
# The same with the sums of pairs for one matrix, and four positions a thread: some 250 registers a thread for 12 tasks.
FEW_PAIRS = 12
# The same with eight positions, as many as 16 bytes hold of 16 bits.
FEW_WIDE = 10
# Tasks whose tiles are read one after another, with a sum of each in registers.
FEW_NORMS = 40
# Four warps have T loads of 16 bytes a thread under way; more would only make a program's reductions dearer.
WARPS = 4
# The sums of a share of the samples go through memory in float32, twice; for many tasks they are read by one program a block.
# With this many samples a share that is at most a tenth of the traffic for 16-bit gradients, and a twentieth for float32.
LEAST_SAMPLES = 32
# For few tasks many programs read them, and no more are written than the programs of a chip hold: some megabytes, which stay in
# the L2 cache. What counts is that few samples, too, keep all processors busy.
LEAST_SAMPLES_OF_FEW = 8
# Loads a task that compilers leave under way at once, where registers are not to spare.
LOADS = 4
# Registers that a thread can have; those of AMD's are more, but few programs fill its memory.
MOST_REGISTERS = 255
# What kernels over lists take at least, to find their columns.
LEAST_REGISTERS = 64
# Each block has a ticket, see `workspace.TICKETS`.
MOST_BLOCKS = 1000
# Where the samples of blocks are shared out, programs in groups have tickets too: at most one each.
MOST_SHARES = TICKETS // 2 - 1


def limited(registers: int | None) -> dict[str, int]:
    """The option of a launch for the most registers of a thread, see `registers_left`."""
    return {} if registers is None else {"maxnreg": registers}


@dataclass(frozen=True)
class TileConfig:
    """Blocks of ``rows`` groups of positions, and the programs that share them; ``splits`` programs share a block's samples.

    ``samples`` of these are read at a time.
    """

    rows: int
    blocks: int
    programs: Programs
    splits: int = 1
    samples: int = 1
    warps: int = WARPS
    registers: int | None = None  # the most of a thread, so that all programs run at once

    @property
    def group(self) -> int:
        """Programs of a block that share a ticket: so many that each level of sums has about as many terms."""
        return power_of_two(math.isqrt(self.splits))

    @property
    def sharing(self) -> dict[str, int]:
        """How the kernel is to share out the work."""
        if self.splits > 1:
            return {"splits": self.splits, "group": self.group, "blocks": self.blocks}
        return {"programs": self.programs.count, "group": self.programs.group}

    def partials(self, width: int, tile: int) -> int:
        """Numbers of workspace for partial results of ``width``, and where samples are shared out a tile of each program."""
        if self.splits == 1:
            return self.programs.partials(width)
        shares = self.programs.count + self.blocks * -(-self.splits // self.group)
        return (shares + self.blocks) * width + shares * tile

    def neighbours(self) -> list[TileConfig]:
        """Half and twice as many programs."""
        if self.splits > 1:
            splits = [s for s in (self.splits // 2, 2 * self.splits) if s > 1 and s * self.blocks <= MOST_SHARES]
            return [replace(self, splits=split, programs=Programs(self.blocks * split)) for split in splits]
        counts = {max(1, self.programs.count // 2), min(self.blocks, 2 * self.programs.count)} - {
            self.programs.count,
            0,
        }
        return [replace(self, programs=Programs(count)) for count in sorted(counts)]

    @property
    def options(self) -> dict[str, int]:
        """For the launch."""
        return {"num_warps": self.warps} | limited(self.registers)


def resident(chip: Chip, registers: int, warps: int = WARPS) -> int:
    """Programs that a processor holds at once, as registers and warps allow."""
    threads = warps * chip.warp_size
    return max(1, min(chip.registers // (threads * registers), chip.warps // warps))


def filling(chip: Chip, in_flight: int) -> int:
    """Programs a processor that keep the memory busy, where each has ``in_flight`` bytes under way.

    Loads are not always under way: products and stores stand between them. Twice as many programs as would do fill the gaps.
    """
    return max(2, 2 * -(-chip.bytes_in_flight // in_flight))


def _a_processor(chip: Chip, tasks: int, registers: int, loaded: int) -> int:
    in_flight = min(tasks, LOADS) * WARPS * chip.warp_size * loaded
    return min(resident(chip, registers), filling(chip, in_flight))


def wanted(chip: Chip, tasks: int, registers: int, loaded: int = 16) -> int:
    """Programs that keep the memory busy, no more, as each leaves partial results; a thread loads ``loaded`` bytes a task."""
    return chip.processors * _a_processor(chip, tasks, registers, loaded)


def registers_left(chip: Chip, programs: int) -> int | None:
    """Registers of a thread where a processor holds ``programs``; None where the compiler takes no such limit.

    Left alone, the assembler takes too many for some kernels, and for others spills a few to make room for more programs.
    """
    if not chip.limits:
        return None
    return min(MOST_REGISTERS, chip.registers // (WARPS * chip.warp_size * programs) // 8 * 8)


# Registers a thread, as compilers report them (see `tests.gpu.report`), rounded up: an estimate too low would launch programs
# that wait for others to end. An update at the end of a launch has float64 numbers of its own.
GRADNORM_REGISTERS = 112
GNR_REGISTERS = 128


def norms_registers(tasks: int, step: bool = False) -> int:
    """Of kernels that read a tile of each task one after another: its sum, and four registers of a load under way."""
    return max(min(MOST_REGISTERS, 32 + 5 * tasks), GRADNORM_REGISTERS if step else 0)


def lanes_of_pairs(chip: Chip, tasks: int, widest: int) -> int:
    """Positions that a thread takes at once where it has the sums of all pairs: as many as 16 bytes hold, for more tasks four.

    From 11 tasks on 8 numbers of 16 bits, and their sums over samples, leave the compilers too few registers; Blackwell's and
    AMD's from 9 on. Loads of 8 bytes keep the memory less busy: of 10 tasks an H200 took 1.3 times as long.
    """
    return widest if tasks <= (FEW_WIDE if chip.wide_pairs else FEW) else min(widest, 4)


def pairs_registers(tasks: int, V: int) -> int:
    """Of `gram_few`: sums of pairs, and the tiles as they are read."""
    return min(MOST_REGISTERS, 32 + tasks * (tasks + 1) // 2 + tasks * V)


def moments_registers(tasks: int, V: int, step: bool) -> int:
    """Of `sum_moments_few`: sums of pairs for M and Q, or for Q alone, sums over samples, and the loads under way."""
    pairs = tasks * (tasks + 1) // (1 if tasks <= FEW else 2)
    a_task = (5 if V <= 4 else 12) if tasks <= FEW else 7 + V
    return max(min(MOST_REGISTERS, 48 + pairs + tasks * a_task), GNR_REGISTERS if step else 0)


def streaming(chip: Chip, tasks: int, blocks: int, registers: int, loaded: int = 16) -> TileConfig:
    """Blocks of as many groups as a program has threads, shared out among programs that read T streams."""
    count = max(1, min(blocks, wanted(chip, tasks, registers, loaded)))
    # That of a launch that fills the chip, for smaller ones as well: it is part of what a kernel is compiled for.
    limit = registers_left(chip, _a_processor(chip, tasks, registers, loaded))
    return TileConfig(WARPS * chip.warp_size, blocks, Programs(count), registers=limit)


def _by_blocks(chip: Chip, tasks: int, positions: int, V: int, registers: int, itemsize: int) -> TileConfig:
    blocks = -(-positions // (WARPS * chip.warp_size * V))
    return streaming(chip, tasks, blocks, registers, V * itemsize)


@tunable
def by_blocks(chip: Chip, tasks: int, positions: int, V: int, registers: int, itemsize: int) -> TileConfig:
    """Blocks of positions in groups of V, shared out among programs."""
    return _by_blocks(chip, tasks, positions, V, registers, itemsize)


def splits_of(programs: int, blocks: int, batch: int, least: int = LEAST_SAMPLES) -> int:
    """Programs to share the samples of each block, where blocks alone are fewer than ``programs``; else 1."""
    splits = min(min(programs, MOST_SHARES) // max(1, blocks), batch // least)
    return splits if splits > 1 and blocks <= MOST_BLOCKS else 1


@tunable
def by_samples(chip: Chip, tasks: int, batch: int, positions: int, V: int, registers: int, itemsize: int) -> TileConfig:
    """The same where blocks keep the memory busy; else the samples of each block are shared out as well.

    There a sample with fewer positions than a block takes fewer rows, and more samples are read at a time.
    """
    config = _by_blocks(chip, tasks, positions, V, registers, itemsize)
    splits = splits_of(wanted(chip, tasks, registers, V * itemsize), config.blocks, batch, LEAST_SAMPLES_OF_FEW)
    if splits == 1:
        return config
    rows = min(config.rows, power_of_two(-(-positions // V)))
    samples, programs = config.rows // rows, Programs(config.blocks * splits)
    return replace(config, rows=rows, samples=samples, programs=programs, splits=splits)
