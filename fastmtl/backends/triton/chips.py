"""What launch heuristics know about a GPU."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Chip:
    """One GPU. Bandwidth and latency are those of its memory, for what must be in flight; nothing here is a claim of speed."""

    name: str
    processors: int  # streaming multiprocessors or compute units
    registers: int = 65536  # 32-bit registers of a processor
    warps: int = 64  # resident warps of a processor
    warp_size: int = 32
    bandwidth: float = 2.0e12  # bytes a second
    latency: float = 700e-9  # seconds from a load to its data under load
    limits: bool = True  # whether its compiler takes a limit of a thread's registers
    calls: bool = True  # whether its compiler needs no memory of a thread for calls of functions
    wide_pairs: bool = True  # whether sums of pairs leave its registers room, see `configs.lanes_of_pairs`

    @property
    def bytes_in_flight(self) -> int:
        """Bytes that each processor must have asked for at any time to keep the memory busy (Little's law)."""
        return int(self.bandwidth * self.latency / self.processors)


A100 = Chip("A100", 108, bandwidth=2.0e12)
H100 = Chip("H100", 132, bandwidth=3.35e12)
B200 = Chip("B200", 148, bandwidth=8.0e12, wide_pairs=False)
RTX_5090 = Chip("RTX 5090", 170, warps=48, bandwidth=1.8e12, wide_pairs=False)
MI300X = Chip(
    "MI300X",
    304,
    registers=131072,
    warps=32,
    warp_size=64,
    bandwidth=5.3e12,
    limits=False,
    calls=False,
    wide_pairs=False,
)

# By compute capability: the memory of a chip that is not listed is taken for that of the nearest one that is.
_BY_CAPABILITY = {8: A100, 9: H100, 10: B200, 12: RTX_5090}

_assumed: list[Chip] = []


@functools.cache
def _real(index: int, type: str) -> Chip:
    if type != "cuda":
        return Chip("unknown", 128, limits=False, calls=False, wide_pairs=False)
    properties = torch.cuda.get_device_properties(index)
    like = MI300X if torch.version.hip else _BY_CAPABILITY.get(properties.major, B200)
    return Chip(
        properties.name,
        properties.multi_processor_count,
        like.registers,
        like.warps,
        like.warp_size,
        # A part with half the processors mostly has about half the bandwidth.
        like.bandwidth * properties.multi_processor_count / like.processors,
        like.latency,
        like.limits,
        like.calls,
        like.wide_pairs,
    )


def chip_of(device: torch.device) -> Chip:
    """The GPU behind ``device``, or the assumed one."""
    if _assumed:
        return _assumed[-1]
    return _real(torch.cuda.current_device() if device.index is None else device.index, device.type)


@contextlib.contextmanager
def assume(chip: Chip) -> Iterator[None]:
    """Choose configurations for ``chip`` while inside: what the kernels would be on a GPU that is not here."""
    _assumed.append(chip)
    try:
        yield
    finally:
        _assumed.pop()
