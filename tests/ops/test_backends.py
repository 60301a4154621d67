"""Every op of every backend against the reference in float64, on the shared table of cases.

The CUDA kernels are compiled for the host. Those of Triton are executed on the same table in `tests/gpu/test_execution.py`.
"""

import contextlib

import pytest
import torch

from fastmtl import testing
from fastmtl.backends import cuda
from fastmtl.backends.contract import SCHEMAS
from fastmtl.ops.selection import BACKENDS, unavailable
from tests.cuda.hosting import on_host

CPU = torch.device("cpu")
CASES = list(testing.cases())
ON_CPU = ("cpp", "reference", "cuda")
RUNS = [(case, name) for name in ON_CPU for case in CASES if name != "cuda" or case.dtype in cuda.DTYPES]


def running(name: str) -> contextlib.AbstractContextManager[object]:
    """What the backend's ops are called in."""
    if name == "cuda":
        return on_host(order=1)
    reason = unavailable(name, CPU)
    if reason is not None:
        pytest.skip(f"backend {name} is not available: {reason}")
    return contextlib.nullcontext()


def test_every_op_has_cases():
    assert {case.op for case in CASES} == set(SCHEMAS)


@pytest.mark.parametrize(("case", "backend"), RUNS, ids=str)
def test_agrees_with_the_reference(case, backend):
    with running(backend):
        outcome = testing.check(case, backend, CPU)
    assert outcome.passed, f"error {outcome.error} of the tolerance"


@pytest.mark.parametrize(("case", "backend"), [run for run in RUNS if run[0].dtype == torch.float32], ids=str)
def test_same_inputs_give_the_same_bits(case, backend):
    with running(backend):
        first, second = (testing.run(BACKENDS[backend], case, case.arguments(CPU)) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


class DropsAnElement:
    """A wrong backend: the last element of the last gradient counts as zero."""

    def __getattr__(self, op):
        def call(grads):
            last = max(k for k, grad in enumerate(grads) if grad is not None)
            spoiled = grads[last].clone(memory_format=torch.contiguous_format)
            spoiled.view(-1)[-1] = 0
            return getattr(BACKENDS["reference"], op)([*grads[:last], spoiled, *grads[last + 1 :]])

        return call


@pytest.mark.parametrize(
    "case",
    [
        case
        for case in CASES
        if case.op in ("sum_moments", "sum_norms") and "empty" not in case.name and case.dtype == torch.float32
    ],
    ids=str,
)
def test_the_check_notices_a_dropped_element(case, monkeypatch):
    monkeypatch.setitem(testing.BACKENDS, "wrong", DropsAnElement())
    assert not testing.check(case, "wrong", CPU).passed
