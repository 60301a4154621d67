"""Every op of the Triton backend that has kernels, executed without a GPU and held against the reference.

Twice: from TTIR, by ttsem, which sees accesses outside of tensors and races between programs; and from PTX, by the executor
that FASTMTL_PTXEMU names, which also sees misaligned accesses, reads of what nobody wrote, races inside a program, and
results that depend on the order of programs. Memory that nobody wrote holds NaN.
"""

from __future__ import annotations

import pytest
import torch

from fastmtl import testing
from fastmtl.backends import triton as backend
from fastmtl.backends.triton import chips
from tests.gpu.executing import ALL_CASES, SMALL, UNDER_TEST, WIDE, cases_under_test, executed_by_ttsem
from tests.gpu.ptx import executed_as_ptx

CPU = torch.device("cpu")
# The solver takes minutes for 64 tasks by either executor: one of its cases is executed, from PTX, in one order of programs (it
# is one program).
SOLVER_OF_MANY = ("T64-relative", "T64-maxmin", "T64-intertask")
CASES = [case for case in cases_under_test() if case.op != "gnr_update" or case.name not in SOLVER_OF_MANY]
SEEDS = range(5 if ALL_CASES else 2)  # seed 0: programs in their order; others: in a random one


def _numbered() -> list[tuple[int, testing.Case]]:
    """The cases, each with its number among those of its op, the same for all dtypes."""
    names: dict[str, list[str]] = {}
    for case in CASES:
        known = names.setdefault(case.op, [])
        if case.name not in known:
            known.append(case.name)
    return [(names[case.op].index(case.name), case) for case in CASES]


def _in_full(case: testing.Case) -> bool:
    """Ops with few cases leave out none."""
    return ALL_CASES or sum(other.op == case.op for other in CASES) <= 20


def _by_turns(first: int) -> list[testing.Case]:
    """Each case of an op in one dtype, the dtypes taking turns from case to case: another one for each executor."""
    count = len(backend.DTYPES)
    return [case for n, case in _numbered() if _in_full(case) or case.dtype == backend.DTYPES[(n + first) % count]]


FROM_PTX, FROM_TTIR = _by_turns(1), _by_turns(0)
# Updates know one dtype, and their cases differ in their values alone: what no turn takes is executed from TTIR.
FROM_TTIR += [
    case
    for case in CASES
    if case.op in ("gradnorm_update", "gnr_update") and case not in FROM_PTX and case not in FROM_TTIR
]


def _check(case: testing.Case) -> None:
    outcome = testing.check(case, "triton", CPU)
    assert outcome.passed, f"error {outcome.error} of the tolerance"


@pytest.mark.parametrize("case", FROM_TTIR, ids=str)
def test_from_ttir(case):
    with chips.assume(SMALL), executed_by_ttsem():
        _check(case)


@pytest.mark.parametrize("case", FROM_PTX, ids=str)
def test_from_ptx(case):
    with chips.assume(SMALL), executed_as_ptx(SEEDS):
        _check(case)


def test_the_solver_of_many_tasks_from_ptx():
    (case,) = (case for case in cases_under_test() if (case.op, case.name) == ("gnr_update", "T64-relative"))
    with chips.assume(SMALL), executed_as_ptx([0], max_steps=4_000_000):
        _check(case)


# The last program adds up the partial results of many, in groups.
MANY = [case for case in CASES if "large" in case.name and case.dtype == torch.float32]


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
@pytest.mark.parametrize("op", UNDER_TEST)
def test_every_op_is_executed_in_every_dtype(op, dtype):
    """No dtype is left out by the rules."""
    dtypes = {case.dtype for case in CASES if case.op == op}
    for chosen in (FROM_TTIR, FROM_PTX):
        assert {case.dtype for case in chosen if case.op == op} == dtypes
    assert dtype in dtypes or dtypes == {torch.float32} or op.endswith("_update")
