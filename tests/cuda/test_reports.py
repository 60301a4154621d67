"""What nvcc makes of every CUDA kernel is held to stated budgets; `python -m tests.cuda.report` prints it all."""

from __future__ import annotations

import fnmatch
import functools
import re
from pathlib import Path

import pytest

from tests.cuda.hosting import KERNELS
from tests.cuda.report import MACHINES, Line, lines_of, readable
from tests.gpu.executing import ALL_CASES
from tests.gpu.machines import Machine

# Registers of a thread, by kernel: what the worst of the machines takes, and a little. Where several lines match, the first.
BUDGETS = {
    "sum_norms_kernel<*, 4, [48]>": 88,
    "sum_norms_kernel<*, 12, [48]>": 96,
    "sum_norms_kernel<f32, 64, 4>": 192,
    "sum_norms_kernel<*, 64, 8>": 224,
    "sum_norms_kernel<*, 12, 1>": 88,
    "sum_norms_kernel<*, 64, 1>": 184,
}

# Bytes of spills, by kernel and machine; to be emptied.
SPILLS = {
    "moments_many_kernel<3>-sm_90": 4,  # a number of GNR's step, after all that is read and written
}

# Loads of 16 bytes that a kernel must have at least, where it has a line: one of each task.
WIDE_LOADS = {
    "sum_norms_kernel<*, 4, [48]>": 4,
    "sum_norms_kernel<*, 12, [48]>": 12,
    "sum_norms_kernel<*, 64, [48]>": 64,
}


def limit_of(line: Line) -> int:
    """Registers: its budget, or what a thread can have where a block of its size shall fit."""
    most = min(255, line.machine.chip.registers // (line.warps * 32))
    return next((budget for name, budget in BUDGETS.items() if fnmatch.fnmatchcase(line.kernel, name)), most)


def wide_loads_of(line: Line) -> int:
    """At least one where the last argument of the template says that a thread takes the numbers of 16 bytes at a time."""
    known = [loads for name, loads in WIDE_LOADS.items() if fnmatch.fnmatchcase(line.kernel, name)]
    return known[0] if known else bool(re.search(r"<f32\b.* 4>$|<b?f16\b.* 8>$", line.kernel))


def by_turns() -> list[tuple[Path, Machine]]:
    """Each file for every other machine, the files taking turns; all with FASTMTL_ALL_CASES=1."""
    return [
        (source, machine)
        for number, source in enumerate(KERNELS)
        for n, machine in enumerate(MACHINES)
        if ALL_CASES or (n + number) % 2 == 0
    ]


EACH = pytest.mark.parametrize(
    ("source", "machine"),
    [pytest.param(source, machine, id=f"{source.stem}-{machine.target}") for source, machine in by_turns()],
)
lines = functools.cache(lines_of)


@EACH
def test_no_spills_and_no_local_memory(source, machine):
    """Neither spills nor arrays that are indexed at run time."""
    for line in lines(source, machine):
        allowed = SPILLS.get(str(line), 0)
        assert line.spill_stores <= allowed, line
        assert line.spill_loads <= allowed, line
        assert line.stack <= -(-allowed // 8) * 8, line


@EACH
def test_registers_are_within_budget(source, machine):
    for line in lines(source, machine):
        assert line.registers <= limit_of(line), line


@EACH
def test_accesses_of_16_bytes(source, machine):
    for line in lines(source, machine):
        assert line.wide_loads >= wide_loads_of(line), line


def test_every_budget_is_of_a_kernel():
    """Those of kernels that are gone say nothing."""
    names = {line.kernel for source, machine in by_turns() for line in lines(source, machine)}
    assert not [pattern for pattern in (*BUDGETS, *WIDE_LOADS) if not fnmatch.filter(names, pattern)]


def test_names_can_be_read():
    assert readable("_ZN7fastmtl4cuda16sum_norms_kernelILNS_5DtypeE2ELi12ELb1EEEvNS0_8SumNormsE") == (
        "sum_norms_kernel<bf16, 12, 1>"
    )
    assert readable("_ZN7fastmtl4cuda12weigh_kernelENS0_5WeighE") == "weigh_kernel"
    assert readable("something_else") == "something_else"
