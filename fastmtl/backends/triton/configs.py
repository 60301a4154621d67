"""Launch configurations of the kernels that stream through gradients: chosen by arithmetic, each number with its reason."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from fastmtl.backends.triton.chips import Chip
from fastmtl.backends.triton.launching import Programs, power_of_two
from fastmtl.backends.triton.tuning import tunable
from fastmtl.backends.triton.workspace import TICKETS

# Tasks whose tiles fit the registers side by side: with 16-bit gradients 8 tasks take some 210 registers a thread, 10 all 255.
FEW = 8
# Four warps have T loads of 16 bytes a thread under way; more would only make a program's reductions dearer.
WARPS = 4
# The sums of a share of the samples go through memory in float32, twice; for many tasks they are read by one program a block.
# With this many samples a share that is at most a tenth of the traffic for 16-bit gradients, and a twentieth for float32.
LEAST_SAMPLES = 32
# For few tasks many programs read them, and no more are written than the programs of a chip hold: some megabytes, which stay in
# the L2 cache. What counts is that few samples, too, keep all processors busy.
LEAST_SAMPLES_OF_FEW = 8
# Each block has a ticket, see `workspace.TICKETS`.
MOST_BLOCKS = 1000
# Where the samples of blocks are shared out, programs in groups have tickets too: at most one each.
MOST_SHARES = TICKETS // 2 - 1


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
        return {"num_warps": self.warps}


def resident(chip: Chip, registers: int, warps: int = WARPS) -> int:
    """Programs that a processor holds at once, as registers and warps allow."""
    threads = warps * chip.warp_size
    return max(1, min(chip.registers // (threads * registers), chip.warps // warps))


def filling(chip: Chip, in_flight: int) -> int:
    """Programs a processor that keep the memory busy, where each has ``in_flight`` bytes under way.

    Loads are not always under way: products and stores stand between them. Twice as many programs as would do fill the gaps.
    """
    return max(2, 2 * -(-chip.bytes_in_flight // in_flight))


def wanted(chip: Chip, tasks: int, registers: int, loaded: int = 16) -> int:
    """Programs that keep the memory busy, no more, as each leaves partial results; a thread loads ``loaded`` bytes a task."""
    in_flight = tasks * WARPS * chip.warp_size * loaded
    return chip.processors * min(resident(chip, registers), filling(chip, in_flight))


# Registers a thread, as compilers report them (see `tests.gpu.report`), rounded up: an estimate too low would launch programs
# that wait for others to end. An update at the end of a launch has float64 numbers of its own.
GRADNORM_REGISTERS = 112
GNR_REGISTERS = 128


def norms_registers(tasks: int, V: int, step: bool) -> int:
    """Of `sum_norms_few`: a tile of each task, and little else."""
    return max(32 + tasks * (V + 1), GRADNORM_REGISTERS if step else 0)


def moments_registers(tasks: int, V: int, step: bool) -> int:
    """Of `sum_moments_few`: sums of pairs for M and Q, sums over samples, and the loads under way."""
    return max(48 + tasks * (tasks + 1) + tasks * (5 if V <= 4 else 12), GNR_REGISTERS if step else 0)


def streaming(chip: Chip, tasks: int, blocks: int, registers: int, loaded: int = 16) -> TileConfig:
    """Blocks of as many groups as a program has threads, shared out among programs that read T streams."""
    count = max(1, min(blocks, wanted(chip, tasks, registers, loaded)))
    return TileConfig(WARPS * chip.warp_size, blocks, Programs(count))


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

    A sample with fewer positions than a block takes fewer rows, and more samples are read at a time.
    """
    config = _by_blocks(chip, tasks, positions, V, registers, itemsize)
    rows = min(config.rows, power_of_two(-(-positions // V)))
    config = replace(config, rows=rows, samples=min(config.rows // rows, power_of_two(batch)))
    splits = splits_of(wanted(chip, tasks, registers, V * itemsize), config.blocks, batch, LEAST_SAMPLES_OF_FEW)
    return config if splits == 1 else replace(config, programs=Programs(config.blocks * splits), splits=splits)
