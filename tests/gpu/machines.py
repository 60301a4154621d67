"""The GPUs that kernels are compiled for in the reports, and how many blocks of a kernel a processor of theirs holds."""

from __future__ import annotations

import ctypes
import functools
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import triton

from fastmtl.backends.triton import chips

RESERVED = 1024  # bytes of shared memory of each block that CUDA keeps for itself


@dataclass(frozen=True)
class Machine:
    """A chip, what is compiled for it, and the shared memory of one of its processors in bytes."""

    chip: chips.Chip
    target: str
    shared: int

    def resident(self, registers: int, warps: int, shared: int) -> int:
        """Blocks that a processor holds at once, of ``registers`` a thread and ``shared`` bytes a block; 0: not even one.

        Of NVIDIA's chips by CUDA's own ``cuda_occupancy.h``; of others as many as warps, registers and shared memory allow.
        """
        if not self.target.startswith("sm_"):
            by_registers = self.chip.registers // (warps * self.chip.warp_size * (-(-registers // 8) * 8))
            return min(by_registers, self.chip.warps // warps, self.shared // max(1, shared))
        number = int(self.target.removeprefix("sm_"))
        blocks: int = _calculator().fastmtl_resident(
            *(number // 10, number % 10, self.chip.processors, self.chip.warps * 32, self.chip.registers),
            *(self.shared, self.shared - RESERVED, RESERVED, warps * 32, registers, shared),
        )
        assert blocks >= 0, f"cuda_occupancy.h does not know {self.target} ({-blocks})"
        return blocks


A100 = Machine(chips.A100, "sm_80", 164 << 10)
A40 = Machine(chips.Chip("A40", 84, warps=48, bandwidth=0.7e12), "sm_86", 100 << 10)
L40S = Machine(chips.Chip("L40S", 142, warps=48, bandwidth=0.86e12), "sm_89", 100 << 10)
H100 = Machine(chips.H100, "sm_90", 228 << 10)
B200 = Machine(chips.B200, "sm_100", 228 << 10)
RTX_5090 = Machine(chips.RTX_5090, "sm_120", 100 << 10)
MI300X = Machine(chips.MI300X, "gfx942", 64 << 10)


@functools.cache
def _calculator() -> ctypes.CDLL:
    source = Path(__file__).with_name("occupancy.cpp")
    headers = Path(triton.__file__).parent / "backends/nvidia/include"
    with tempfile.TemporaryDirectory() as directory:  # what is loaded stays
        library = f"{directory}/occupancy.so"
        subprocess.run(
            ["g++", "-std=c++17", "-shared", "-fPIC", f"-I{headers}", str(source), "-o", library], check=True
        )
        return ctypes.CDLL(library)
