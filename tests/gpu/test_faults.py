"""Planted faults: what of the machinery of these tests notices them, and what does not.

| fault                                         | ttsem, from TTIR  | the PTX executor       | a look at the PTX |
|-----------------------------------------------|-------------------|------------------------|-------------------|
| a mask dropped from a load                    | out of bounds     | out of bounds          |                   |
| a mask dropped from the store of the sum      | out of bounds     | out of bounds          |                   |
| a wrong stride                                | wrong values      | wrong values           |                   |
| two programs with one row of partial results  | a race            | a read of nothing      |                   |
| the barrier before a ticket dropped           |                   | orders give other bits |  seen             |
| volatile dropped from the partial results     |                   | a race                 |  seen             |
| a ticket without release and acquire          |                   |                        |  seen             |
"""

from __future__ import annotations

import contextlib
import importlib.util
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from fastmtl import testing
from fastmtl.backends import triton as backend
from fastmtl.backends.triton import chips, sums
from fastmtl.backends.triton.kernels import finish, gradnorm, tiles
from fastmtl.backends.triton.kernels import sums as kernels
from tests.gpu.executing import LAST_PROGRAM, SMALL, executed_by_ttsem
from tests.gpu.launches import Launch, intercepted, tickets_in_order
from tests.gpu.ptx import _Written, emulator, execute, executed_as_ptx

CPU = torch.device("cpu")
CASES = {str(case): case for case in testing.cases()}
TAIL = CASES["sum_norms-T3-vector-float32"]  # 129 positions: one over
SHAPED = CASES["sum_moments-T3-mixed-float32"]
MANY = CASES["sum_norms-T3-large-float32"]


@pytest.fixture
def edited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Replaces text in the module of kernels ``module`` by text of one's own, and runs `sum_norms` and `sum_moments` with it."""

    def load(module: ModuleType, text: str, like: ModuleType) -> ModuleType:
        name = f"{like.__name__}_edited"
        path = tmp_path / f"{name}.py"
        path.write_text(text)
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        made = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, made)
        spec.loader.exec_module(made)
        return made

    def edit(module: ModuleType, old: str, new: str) -> None:
        changed: dict[str, str] = {}
        for part in (tiles, finish, gradnorm, kernels):
            text = Path(part.__file__ or "").read_text()
            if part is module:
                assert text.count(old) == 1, f"{old!r} is there {text.count(old)} times"
                text = text.replace(old, new)
            for name in changed:
                text = text.replace(f"from {name} import", f"from {name}_edited import")
            changed[part.__name__] = text
            made = load(module, text, part)
        monkeypatch.setattr(sums, "kernels", made)

    return edit


@contextlib.contextmanager
def seen_by_ttsem(kind: str, exempt: tuple[str, ...] = LAST_PROGRAM) -> Iterator[None]:
    from ttsem.sanitize import KernelFault

    with pytest.raises(KernelFault) as caught, chips.assume(SMALL), executed_by_ttsem(exempt):
        yield
    assert caught.value.fault.kind == kind, caught.value


@contextlib.contextmanager
def seen_by_ptx(message: str, seeds: Any = (0,)) -> Iterator[None]:
    errors = (emulator().PTXError, AssertionError)
    with pytest.raises(errors, match=message), chips.assume(SMALL), executed_as_ptx(seeds):
        yield


def check(case: testing.Case) -> None:
    assert testing.check(case, "triton", CPU).passed, "wrong values"


def test_nothing_is_seen_without_a_fault(edited):
    """The edited modules run as the originals do."""
    edited(tiles, "other=0.0).to(tl.float32)", "other=0.0).to(tl.float32)  # as it was")
    with chips.assume(SMALL), executed_by_ttsem():
        check(TAIL)
    with chips.assume(SMALL), executed_as_ptx():
        check(TAIL)


LOAD = "tl.load(p, mask=m & (((present.to(tl.int64) >> k) & 1) != 0), other=0.0)"


def test_a_mask_dropped_from_a_load(edited):
    edited(tiles, LOAD, "tl.load(p)")
    with seen_by_ttsem("oob_read"):
        check(TAIL)
    with seen_by_ptx("out of bounds"):
        check(TAIL)


def test_a_mask_dropped_from_a_store(edited):
    edited(
        kernels,
        "tl.store(p_total + o_total, total.to(p_total.dtype.element_ty), mask=m)",
        "tl.store(p_total + o_total, total.to(p_total.dtype.element_ty))",
    )
    with seen_by_ttsem("oob_write"):
        check(TAIL)
    with seen_by_ptx("out of bounds"):
        check(TAIL)


def test_a_wrong_stride(edited):
    """Of dimensions that the gradients hold in different orders: inside the tensors, and so seen by the values."""
    edited(tiles, "(rest % sizes[dim]) * strides[dim]", "(rest % sizes[dim]) * strides[RANK - 1]")
    with pytest.raises(AssertionError, match="wrong values"), chips.assume(SMALL), executed_by_ttsem():
        check(SHAPED)
    with pytest.raises(AssertionError, match="wrong values"), chips.assume(SMALL), executed_as_ptx([0]):
        check(SHAPED)


ROW = "store_row(p_partials, i_program, values, WIDTH)"


def test_two_programs_with_one_row(edited):
    edited(finish, ROW, ROW.replace("i_program", "i_program // 2"))
    with seen_by_ttsem("race", exempt=()):
        check(MANY)
    with seen_by_ptx("read of memory nobody wrote: 'p_partials'"):
        check(MANY)


def test_volatile_dropped_from_partial_results(edited):
    edited(finish, "other=0.0, volatile=True)", "other=0.0)")
    with seen_by_ptx("race"):
        check(MANY)


def test_the_partial_results_are_all_that_programs_share():
    """What is left out of the search for races elsewhere is found when it is not."""
    from ttsem.sanitize import KernelFault

    with pytest.raises(KernelFault) as caught, chips.assume(SMALL), executed_by_ttsem(exempt=()):
        check(MANY)
    assert (caught.value.fault.kind, caught.value.fault.buffer) == ("race", "p_partials")


def _launch() -> tuple[Launch, _Written]:
    launches: list[Launch] = []
    written = _Written()
    with chips.assume(SMALL), written, intercepted(launches.append):
        backend.sum_norms(MANY.arguments(CPU)[0])
    return launches[0], written


def test_the_order_of_tickets():
    """Fences that are missing change no value here, where memory is sequentially consistent: the PTX must have them."""
    text = _launch()[0].compiled().asm["ptx"]
    assert "atom." in text
    assert tickets_in_order(text)
    assert not tickets_in_order(re.sub(r"\.acq_rel", ".relaxed", text))
    assert not tickets_in_order(re.sub(r"bar\.sync\s+0;", "", text))


def test_partial_results_are_read_as_volatile():
    text = _launch()[0].compiled().asm["ptx"]
    assert "ld.volatile.global" in text


def test_a_barrier_dropped_from_the_ptx():
    """The barrier before the first ticket: a warp that is late stores its partial results after they have been read."""
    launch, written = _launch()
    text = launch.compiled().asm["ptx"]
    first = text.index("atom.")
    barrier = max(match.start() for match in re.finditer(r"bar\.sync", text[:first]))
    without = text[:barrier] + text[barrier:].replace("bar.sync \t0;", "", 1)
    assert without != text
    outcomes = set()
    for seed in range(6):
        try:
            _, memory = execute(launch, written, seed, without)
            outcomes.add(b"".join(data.tobytes() for data, _ in memory.values()))
        except emulator().PTXError as error:
            outcomes.add(str(error))
    noticed = [outcome for outcome in outcomes if isinstance(outcome, str)]
    assert len(outcomes) > 1 or noticed, "not seen"
