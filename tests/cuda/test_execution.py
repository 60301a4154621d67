"""Every op of the CUDA backend as the PTX that nvcc makes, on the cases that all backends share.

By the executor that FASTMTL_PTXEMU names, which sees accesses outside of tensors, misaligned ones, reads of what nobody wrote,
races, and results that depend on the order of blocks. `tests/ops/test_backends.py` has the same cases compiled for the host.
"""

from __future__ import annotations

import pytest
import torch

from fastmtl import testing
from fastmtl.backends import cuda as backend
from fastmtl.backends.contract import COMPOSED, SCHEMAS
from tests.cuda.nvcc_ptx import executed_as_nvcc_ptx
from tests.shared import ALL_CASES, by_turns

CPU = torch.device("cpu")
# The solver takes minutes for 64 tasks as PTX: one of its cases is executed so, in one order of blocks (it is one block).
SOLVER_OF_MANY = ("T64-relative", "T64-maxmin", "T64-intertask")
# What is composed of other ops has no kernels of its own.
CASES = [case for case in testing.cases() if case.op not in COMPOSED and case.dtype in backend.DTYPES]
TARGETS = (80, 75, 90)
LONG_TO_COMPILE = ("sum_moments", "sum_moments_update")


def _check(case: testing.Case) -> None:
    outcome = testing.check(case, "cuda", CPU)
    assert outcome.passed, f"error {outcome.error} of the tolerance"


def _is_long(case: testing.Case) -> bool:
    return case.op == "gnr_update" and case.name in SOLVER_OF_MANY


def _targets() -> list[tuple[int, testing.Case]]:
    """The first cases of an op for one target each, all others for the first; with FASTMTL_ALL_CASES=1 they take turns."""
    seen = dict.fromkeys(SCHEMAS, 0)
    chosen = []
    for case in by_turns(CASES, backend.DTYPES, 1):
        if _is_long(case):
            continue
        number = seen[case.op]
        seen[case.op] += 1
        first_of_all = number < len(TARGETS) and case.op not in LONG_TO_COMPILE
        chosen.append((TARGETS[number % len(TARGETS)] if ALL_CASES or first_of_all else TARGETS[0], case))
    return chosen


@pytest.mark.parametrize(("target", "case"), _targets(), ids=str)
def test_as_ptx(target, case):
    with executed_as_nvcc_ptx(target):
        _check(case)


def test_the_solver_of_many_tasks_as_ptx():
    (case,) = (case for case in CASES if _is_long(case) and case.name == "T64-relative")
    with executed_as_nvcc_ptx(90, seeds=[0], resident=[None]):
        _check(case)
