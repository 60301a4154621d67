"""Every op of every backend against the reference in float64, on the shared table of cases.

The CUDA kernels are compiled for the host; those of Triton are executed from TTIR by ttsem, which takes seconds for a case: each
case in one dtype. Both run as PTX, on the same table, in `test_execution.py` of `tests/cuda` and of `tests/gpu`.
"""

import contextlib
import importlib.util
from collections.abc import Iterator

import pytest
import torch

from fastmtl import testing
from fastmtl.backends import cuda
from fastmtl.backends.contract import SCHEMAS
from fastmtl.ops.selection import BACKENDS, unavailable
from tests.cuda.hosting import on_host

CPU = torch.device("cpu")
CASES = list(testing.cases())
RUNS = [
    *((case, name) for name in ("cpp", "reference") for case in CASES),
    *((case, "cuda") for case in CASES if case.dtype in cuda.DTYPES),
]
ONCE: list[tuple[testing.Case, str]] = []  # too slow to run twice
if importlib.util.find_spec("triton") and importlib.util.find_spec("ttsem"):  # the packages of the test environment
    from fastmtl.backends.triton import chips
    from tests.gpu.executing import SMALL, cases_from_ttir, executed_by_ttsem

    ONCE += [(case, "triton") for case in cases_from_ttir()]


@contextlib.contextmanager
def running(name: str) -> Iterator[None]:
    """What the backend's ops are called in."""
    if name == "cuda":
        with on_host(order=1):
            yield
    elif name == "triton":
        with chips.assume(SMALL), executed_by_ttsem():
            yield
    else:
        reason = unavailable(name, CPU)
        if reason is not None:
            pytest.skip(f"backend {name} is not available: {reason}")
        yield


def test_every_op_has_cases():
    assert {case.op for case in CASES} == set(SCHEMAS)


@pytest.mark.parametrize(("case", "backend"), RUNS + ONCE, ids=str)
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
