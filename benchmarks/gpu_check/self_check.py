"""The self-check of ``python -m fastmtl`` on the device, in small pieces: a case that raises is a result too."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from benchmarks.gpu_check.machine import Machine
from benchmarks.gpu_check.running import Item, Scale
from benchmarks.gpu_check.timed import error_text
from fastmtl import testing
from fastmtl.backends.contract import SCHEMAS
from fastmtl.ops.selection import BACKENDS, backend_name, unavailable

PIECE = 4  # cases of an item


def selection(machine: Machine, scale: Scale) -> dict[str, Any]:
    """Which backends there are, and which runs each op; wrong where a GPU has to do with the reference."""
    reasons = {name: unavailable(name, machine.device) for name in BACKENDS}
    fallen_back = machine.device.type == "cuda" and reasons["triton"] is not None
    return {
        "backends": {name: reason or "available" for name, reason in reasons.items()},
        "runs": {op: backend_name(machine.device, op) for op in SCHEMAS},
        "wrong": f"the Triton backend is not available: {reasons['triton']}" if fallen_back else None,
    }


def check(machine: Machine, cases: Sequence[testing.Case]) -> dict[str, Any]:
    """``checked``: by backend the number of cases, the worst error in units of the tolerance, those that failed."""
    checked: dict[str, dict[str, Any]] = {}
    errors: dict[str, str] = {}
    for name in BACKENDS:
        runs = [case for case in cases if unavailable(name, machine.device, case.op, case.dtype) is None]
        outcome: dict[str, Any] = {"cases": len(runs), "worst": 0.0, "failed": []}
        for case in runs:
            try:
                error = testing.check(case, name, machine.device).error
                outcome["worst"] = max(outcome["worst"], error)
                if not error <= 1:
                    errors[f"{name}: {case}"] = f"the error is {error:.3g} times the tolerance"
            except Exception as raised:  # the other cases are checked all the same
                errors[f"{name}: {case}"] = error_text(raised)
            if f"{name}: {case}" in errors:
                outcome["failed"].append(str(case))
        if runs:
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
