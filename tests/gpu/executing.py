"""What is executed of the Triton backend without a GPU, and by what: shared by the tests and by `try_cases`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

from fastmtl import testing
from fastmtl.backends import triton as backend
from fastmtl.backends.triton import chips
from fastmtl.testing import Case
from tests.gpu.launches import Launch
from tests.shared import by_turns

# With few processors small cases have several programs, each with several blocks; with many, as many programs as blocks.
SMALL = chips.Chip("few processors", 3)
WIDE = chips.Chip("many processors", 500)

# What the programs of one launch share by design, see `kernels.finish`: each program stores partial results, and the last to
# take a ticket reads those of all. The ticket orders them, which a checker that runs programs one after another cannot know.
LAST_PROGRAM = ("p_partials", "p_tickets")

# The solver takes minutes for 64 tasks by either executor: one of its cases is executed, from PTX, in one order of programs (it
# is one program).
SOLVER_OF_MANY = ("T64-relative", "T64-maxmin", "T64-intertask")


def cases() -> list[Case]:
    """Those of the shared table for this backend, without the solver's of many tasks."""
    return [
        case
        for case in testing.cases()
        if case.dtype in backend.DTYPES and (case.op != "gnr_update" or case.name not in SOLVER_OF_MANY)
    ]


def cases_from_ptx() -> list[Case]:
    """Those that are executed from PTX."""
    return by_turns(cases(), backend.DTYPES, 1)


def cases_from_ttir() -> list[Case]:
    """Those that are executed from TTIR: in other dtypes than from PTX."""
    chosen = by_turns(cases(), backend.DTYPES, 0)
    # Updates know one dtype, and their cases differ in their values alone: what no turn takes is executed from TTIR.
    taken = {str(case) for case in (*chosen, *cases_from_ptx())}
    return chosen + [
        case for case in cases() if case.op in ("gradnorm_update", "gnr_update") and str(case) not in taken
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
