"""Every op of the Triton backend, executed without a GPU and held against the reference.

From PTX, by the executor that FASTMTL_PTXEMU names, which sees misaligned accesses, reads of what nobody wrote, races inside a
program, and results that depend on the order of programs; `tests/ops/test_backends.py` has the same cases in other dtypes from
TTIR, by ttsem, which sees accesses outside of tensors and races between programs. Memory that nobody wrote holds NaN.
"""

from __future__ import annotations

import pytest
import torch

from fastmtl import testing
from fastmtl.backends import triton as backend
from fastmtl.backends.contract import SCHEMAS
from fastmtl.backends.triton import chips
from tests.gpu.executing import SMALL, WIDE, cases, cases_from_ptx, cases_from_ttir, executed_by_ttsem
from tests.gpu.ptx import executed_as_ptx
from tests.shared import ALL_CASES

CPU = torch.device("cpu")
FROM_PTX, FROM_TTIR = cases_from_ptx(), cases_from_ttir()
SEEDS = range(5 if ALL_CASES else 2)  # seed 0: programs in their order; others: in a random one


def _check(case: testing.Case) -> None:
    outcome = testing.check(case, "triton", CPU)
    assert outcome.passed, f"error {outcome.error} of the tolerance"


@pytest.mark.parametrize("case", FROM_PTX, ids=str)
def test_from_ptx(case):
    with chips.assume(SMALL), executed_as_ptx(SEEDS):
        _check(case)


def test_the_solver_of_many_tasks_from_ptx():
    (case,) = (case for case in testing.cases() if (case.op, case.name) == ("gnr_update", "T64-relative"))
    with chips.assume(SMALL), executed_as_ptx([0], max_steps=4_000_000):
        _check(case)


# The last program adds up the partial results of many, in groups.
MANY = [case for case in cases() if "large" in case.name and case.dtype == torch.float32]


@pytest.mark.parametrize("case", MANY, ids=str)
def test_many_programs_from_ttir(case):
    with chips.assume(WIDE), executed_by_ttsem():
        _check(case)


@pytest.mark.parametrize("case", MANY, ids=str)
def test_many_programs_from_ptx(case):
    with chips.assume(WIDE), executed_as_ptx(range(4)) as run:
        _check(case)
    assert any(launch.grid[0] > 32 for launch in run.launches), "one group of programs alone"


@pytest.mark.parametrize("dtype", backend.DTYPES, ids=str)
@pytest.mark.parametrize("op", SCHEMAS)
def test_every_op_is_executed_in_every_dtype(op, dtype):
    """No dtype is left out by the rules."""
    dtypes = {case.dtype for case in cases() if case.op == op}
    for chosen in (FROM_TTIR, FROM_PTX):
        assert {case.dtype for case in chosen if case.op == op} == dtypes
    assert dtype in dtypes or dtypes == {torch.float32} or op.endswith("_update")
