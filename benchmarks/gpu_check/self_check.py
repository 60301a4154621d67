"""The self-check of ``python -m fastmtl`` on the device, in small pieces: a case that raises is a result too."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from benchmarks.gpu_check.machine import Machine
from benchmarks.gpu_check.running import Item, Scale
from benchmarks.gpu_check.timed import error_text
from fastmtl import testing
from fastmtl.backends.contract import DTYPES, SCHEMAS
from fastmtl.ops.selection import BACKENDS, backend_name, unavailable

PIECE = 4  # cases of an item


def selection(machine: Machine, scale: Scale) -> dict[str, Any]:
    """Which backends there are, and which runs each op."""
    return {
        "backends": {name: unavailable(name, machine.device) or "available" for name in BACKENDS},
        "runs": {op: backend_name(machine.device, op) for op in SCHEMAS},
    }


def check(machine: Machine, cases: Sequence[testing.Case]) -> dict[str, Any]:
    """``checked``: by backend the number of cases, the worst error in units of the tolerance, those that failed."""
    checked: dict[str, dict[str, Any]] = {}
    errors: dict[str, str] = {}
    for name, backend in BACKENDS.items():
        if unavailable(name, machine.device, cases[0].op) is not None:
            continue
        outcome: dict[str, Any] = {"cases": 0, "worst": 0.0, "failed": []}
        for case in cases:
            if case.dtype not in getattr(backend, "DTYPES", DTYPES):
                continue
            outcome["cases"] += 1
            try:
                error = testing.check(case, name, machine.device).error
                outcome["worst"] = max(outcome["worst"], error)
                if not error <= 1:
                    errors[f"{name}: {case}"] = f"the error is {error:.3g} times the tolerance"
            except Exception as raised:  # the other cases are checked all the same
                errors[f"{name}: {case}"] = error_text(raised)
            if f"{name}: {case}" in errors:
                outcome["failed"].append(str(case))
        checked[name] = outcome
    return {"op": cases[0].op, "checked": checked, "errors": errors}


def items(scale: Scale) -> list[Item]:
    """Every op's first piece, then every op's second, and so on: what does not fit the time is missing everywhere a little."""
    by_op: dict[str, list[testing.Case]] = {}
    for case in testing.cases():
        if scale.cases is None or case.op in scale.cases:
            by_op.setdefault(case.op, []).append(case)
    pieces = []
    for op, cases in by_op.items():
        for start in range(0, len(cases), PIECE):
            name = f"{op} {start}-{min(start + PIECE, len(cases)) - 1}"
            piece = cases[start : start + PIECE]
            pieces.append((start, Item(name, functools.partial(check, cases=piece))))
    pieces.sort(key=lambda pair: pair[0])
    return [Item("selection", functools.partial(selection, scale=scale)), *(item for _, item in pieces)]
