"""Launch configurations: chosen by arithmetic, each number with its reason."""

from __future__ import annotations

from dataclasses import dataclass

from fastmtl.backends.triton.chips import Chip
from fastmtl.backends.triton.launching import Programs

FEW = 8  # tasks whose tiles fit the registers side by side; see `test_reports` for what they take


@dataclass(frozen=True)
class TileConfig:
    """Blocks of ``rows`` groups of 16 bytes, and the programs that share them."""

    rows: int
    warps: int
    programs: Programs

    @property
    def options(self) -> dict[str, int]:
        """For the launch."""
        return {"num_warps": self.warps}


def resident(chip: Chip, registers: int, warps: int) -> int:
    """Programs that a processor holds at once, as registers and warps allow."""
    threads = warps * chip.warp_size
    return max(1, min(chip.registers // (threads * registers), chip.warps // warps))


def streaming(chip: Chip, tasks: int, blocks: int, registers: int) -> TileConfig:
    """Programs that read T streams: enough to keep the memory busy, no more, as each leaves partial results.

    A program of 4 warps has T loads of 16 bytes a thread under way; more warps would only make its reductions dearer.
    """
    warps = 4
    threads = warps * chip.warp_size
    wanted = -(-chip.bytes_in_flight // (tasks * threads * 16))
    # Loads are not always under way: products and stores stand between them. Twice as many programs fill the gaps.
    a_processor = min(resident(chip, registers, warps), max(2, 2 * wanted))
    return TileConfig(threads, warps, Programs(max(1, min(blocks, chip.processors * a_processor))))
