"""What nvcc makes of every CUDA kernel is held to stated budgets; `python -m tests.cuda.report` prints it all."""

from __future__ import annotations

import fnmatch
import functools
from pathlib import Path

import pytest

from tests.cuda.hosting import KERNELS
from tests.cuda.report import MACHINES, Line, lines_of, readable
from tests.gpu.machines import Machine
from tests.shared import ALL_CASES

# Registers of a thread, by kernel: what the worst of the machines takes, and a little. Where several lines match, the first.
BUDGETS = {
    "sum_norms_kernel<*, 4, [48]>": 88,
    "sum_norms_kernel<*, 12, [48]>": 96,
    "sum_norms_kernel<f32, 64, 4>": 192,
    "sum_norms_kernel<*, 64, 8>": 224,
    "sum_norms_kernel<*, 12, 1>": 88,
    "sum_norms_kernel<*, 64, 1>": 184,
    # Their launch bounds, which the step of 138 to 144 registers alone would reach.
    "moments_few_kernel<4, *>": 128,
    "moments_many_kernel<*>": 128,
    # All that there are: the sums of many pairs, and of each task at each position. Two blocks fit.
    "moments_few_kernel<8, *>": 255,
    "moments_few_kernel<10, 4>": 255,
    "moments_few_kernel<10, 1>": 216,
    "gram_few_kernel<*16, 10, 1>": 152,
    "gram_few_kernel<*, 10, *>": 124,
    "gram_few_kernel<*, 7, 1>": 96,
    "gram_few_kernel<*, 4, 1>": 56,
    "gram_many_kernel<*>": 80,
    "cross_gram_kernel<1, 1>": 96,
    "cross_gram_kernel<*>": 128,
    "sample_gram_kernel<*>": 80,
    "squared_norms_kernel<*>": 48,
    "weighted_sum_kernel<*, 1>": 48,
    "weighted_sum_kernel<*>": 64,
    "gnr_update_kernel": 152,
    "gradnorm_update_kernel": 72,
    "weigh_kernel": 32,
}

# Loads of 16 bytes that a kernel must have at least: one of each task, or of those that are under way together.
WIDE_LOADS = {
    "sum_norms_kernel<*, 4, [48]>": 4,
    "sum_norms_kernel<*, 12, [48]>": 12,
    "sum_norms_kernel<*, 64, [48]>": 64,
    "moments_few_kernel<4, [48]>": 4,
    "moments_few_kernel<8, [48]>": 8,
    "moments_few_kernel<10, 4>": 10,  # of float32; of 16 bits, 8 bytes
    "moments_many_kernel<*>": 4,
    "gram_few_kernel<*, 4, 1>": 4,
    "gram_few_kernel<*, 7, 1>": 7,
    "gram_few_kernel<*, 10, 1>": 10,
    "gram_many_kernel<*>": 4,
    "cross_gram_kernel<*>": 4,
    "sample_gram_kernel<*>": 4,
    "squared_norms_kernel<*, [48]>": 4,
    "weighted_sum_kernel<*, [48]>": 8,
}


def of_kernel(table: dict[str, int], line: Line) -> int | None:
    """What the first line that matches says."""
    return next((number for name, number in table.items() if fnmatch.fnmatchcase(line.kernel, name)), None)


def by_turns() -> list[tuple[Path, Machine]]:
    """Each file for every third machine, the files taking turns; all with FASTMTL_ALL_CASES=1."""
    return [
        (source, machine)
        for number, source in enumerate(KERNELS)
        for n, machine in enumerate(MACHINES)
        if ALL_CASES or (n + number) % 3 == 0
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
        assert line.spill_stores == line.spill_loads == line.stack == 0, line


@EACH
def test_registers_are_within_budget(source, machine):
    for line in lines(source, machine):
        budget = of_kernel(BUDGETS, line)
        assert budget is not None, f"{line.kernel} has no budget"
        assert line.registers <= budget, line


@EACH
def test_as_many_blocks_fit_as_launch_bounds_promise(source, machine):
    """By CUDA's own calculator, with their shared memory."""
    for line in lines(source, machine):
        assert line.resident >= line.promised, line


@EACH
def test_accesses_of_16_bytes(source, machine):
    for line in lines(source, machine):
        assert line.wide_loads >= (of_kernel(WIDE_LOADS, line) or 0), line


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
