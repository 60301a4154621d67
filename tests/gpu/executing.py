"""What is executed of the Triton backend without a GPU, and by what: shared by the tests and by `try_cases`."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from fastmtl import testing
from fastmtl.backends import triton as backend
from fastmtl.backends.contract import MAX_TASKS
from fastmtl.backends.triton import chips
from fastmtl.testing import Case
from tests.gpu.launches import Launch

# The ops that have kernels, and the most tasks that these take. An op is tested from the day that it has a line here.
UNDER_TEST = {
    "sum_norms": MAX_TASKS,
    "sum_moments": MAX_TASKS,
    "sum_norms_update": MAX_TASKS,
    "sum_moments_update": MAX_TASKS,
    "gram": MAX_TASKS,
    "squared_norms": MAX_TASKS,
    "weighted_sum": MAX_TASKS,
    "weighted_sum_out": MAX_TASKS,
    "cross_gram": MAX_TASKS,
    "sample_gram": MAX_TASKS,
    "linear_moments": MAX_TASKS,
    "conv_moments": MAX_TASKS,
    "embedding_moments": MAX_TASKS,
    "norm_moments": MAX_TASKS,
    "weigh": MAX_TASKS,
    "gradnorm_update": MAX_TASKS,
    "gnr_update": MAX_TASKS,
}

# With few processors small cases have several programs, each with several blocks; with many, as many programs as blocks.
SMALL = chips.Chip("few processors", 3)
WIDE = chips.Chip("many processors", 500)

# What the programs of one launch share by design, see `kernels.finish`: each program stores partial results, and the last to
# take a ticket reads those of all. The ticket orders them, which a checker that runs programs one after another cannot know.
LAST_PROGRAM = ("p_partials", "p_tickets")

# With FASTMTL_ALL_CASES=1 nothing is left out; the tests say otherwise what they leave out, and by which rule.
ALL_CASES = os.environ.get("FASTMTL_ALL_CASES") == "1"


def tasks_of(case: Case) -> int:
    """The number of tasks that a case's name tells."""
    found = re.match(r"T(\d+)", case.name)
    return int(found.group(1)) if found else 0


def cases_under_test() -> list[Case]:
    """The cases of the shared table that have a kernel in this backend."""
    return [
        case
        for case in testing.cases()
        if case.dtype in backend.DTYPES and tasks_of(case) <= UNDER_TEST.get(case.op, -1)
    ]


def _generic_ir(harness: Any) -> Any:
    """As `harness.ir_for_launch`, for what is executed here: compiled as far as TTIR and no further, and once a kernel."""
    from ttsem import mlir

    known: dict[Any, str] = {}

    def ir_for_launch(record: Any, stage: str, target: Any, *_: Any) -> str:
        launch = Launch(record.fn, record.grid, record.args, record.kwargs)
        options, signature, constants, attributes = launch.specialized(target)
        key = record.fn, str((options, signature, constants, attributes))
        if key not in known:
            mlir._generic_printing_enabled[0] = False  # linking for AMD resets what it sets
            mlir.enable_generic_printing()
            known[key] = mlir.to_generic(harness._stage_text(record, stage, target), None)
        return known[key]

    return ir_for_launch


def _all_spans(record: Any, names: Iterable[str], _: Any) -> list[tuple[int, int]]:
    """Where the buffers of these names lie."""
    arrays = {name: (record.bases[name], record.pre[name].nbytes) for name in names if name in record.bases}
    return [(start, start + size) for start, size in arrays.values()]


@contextlib.contextmanager
def executed_by_ttsem(exempt: tuple[str, ...] = LAST_PROGRAM, pretend_cuda: bool = False) -> Iterator[Any]:
    """While inside, launches are executed from their TTIR: accesses outside of tensors and races between programs raise.

    Args:
        exempt: kernel arguments whose memory is left out of the search for races.
        pretend_cuda: every tensor says that it is on a GPU, and what is asked for on one is made here.
    """
    from triton.runtime import driver
    from ttsem import _fakedriver, harness, sanitize

    def exempted(function: Any, _: str) -> frozenset[str]:
        return frozenset(exempt)

    active = driver._active
    replaced: list[tuple[Any, str, Any]] = [
        (harness, "ir_for_launch", _generic_ir(harness)),
        (sanitize, "lookback_buffers", exempted),
        (sanitize, "_protocol_spans", _all_spans),
    ]
    originals = [getattr(owner, name) for owner, name, _ in replaced]
    for owner, name, value in replaced:
        setattr(owner, name, value)
    try:
        with sanitize.session(80, cuda_is_cpu=pretend_cuda, races="raise") as session:
            yield session
        assert not session.races_unchecked, "too large to look for races"
    finally:
        for (owner, name, _), value in zip(replaced, originals, strict=True):
            setattr(owner, name, value)
        _fakedriver.unstub_torch_cuda()
        driver._active = active


@contextlib.contextmanager
def poisoned_memory() -> Iterator[None]:
    """Every uninitialised tensor is filled with NaN, so that an element that is never written shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.utils.deterministic.fill_uninitialized_memory
        yield
    finally:
        torch.use_deterministic_algorithms(before)
