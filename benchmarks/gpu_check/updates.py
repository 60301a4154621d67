"""The updates of the weights: latency of the op, its graph, and of the same in plain torch operations (the reference)."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_check.backends import beside
from benchmarks.gpu_check.gradients import copies, same_bits
from benchmarks.gpu_check.machine import Machine, flat
from benchmarks.gpu_check.running import Item, Scale
from benchmarks.gpu_check.timed import Call, error_text, interleaved
from fastmtl import testing
from fastmtl.backends import reference


def cases() -> list[testing.Case]:
    """Of the self-check's table: ordinary steps."""
    wanted = {
        "weigh": ("T3", "T64"),
        "gradnorm_update": ("T3-alpha1.5-adam", "T64-alpha1.5-adam"),
        "gnr_update": ("T3-relative", "T10-relative", "T64-relative", "T10-intertask"),
        "sum_norms_update": ("T3-alpha0.12-adam", "T64-alpha0.12-adam"),
        "sum_moments_update": ("T3-relative", "T10-relative"),
    }
    return [c for c in testing.cases() if c.name in wanted.get(c.op, ()) and c.dtype == torch.float32]


def _state(arguments: list[Any]) -> list[Tensor]:
    return [tensor for argument in arguments for tensor in flat(argument)]


def _restore(arguments: list[Any], originals: list[Tensor]) -> None:
    for tensor, original in zip(_state(arguments), originals, strict=True):
        tensor.copy_(original)


def _graph(machine: Machine, name: str, op: Any, case: testing.Case, errors: dict[str, str]) -> dict[str, Call]:
    """As `gradients.graph_of`, for what changes its arguments."""
    name = f"{name}, graph"
    try:
        eager, arguments = (case.arguments(machine.device) for _ in range(2))
        originals = copies(arguments)
        returned = op(*eager)
        replay, results = machine.captured(lambda: op(*arguments))
        _restore(arguments, originals)
        replay()
        machine.synchronize()
        if not same_bits([*_state(arguments), *flat(results)], [*_state(eager), *flat(returned)]):
            errors[name] = "the replayed graph gives other bits than the call"
    except Exception as error:
        errors[name] = error_text(error)
        return {}
    return {name: replay}


def _timed(machine: Machine, case: testing.Case, scale: Scale) -> dict[str, Any]:
    op, plain = getattr(torch.ops.fastmtl, case.op), getattr(reference, case.op)
    mine, theirs = (case.arguments(machine.device) for _ in range(2))
    errors: dict[str, str] = {}
    variants: dict[str, Call] = {"op": lambda: op(*mine), "plain": lambda: plain(*theirs)}
    variants |= _graph(machine, "op", op, case, errors) | _graph(machine, "plain", plain, case, errors)
    others = beside(machine, case.op, case.dtype, op)
    for name, by_other in others.items():
        arguments = case.arguments(machine.device)
        variants[name] = functools.partial(by_other, *arguments)
        variants |= _graph(machine, name, by_other, case, errors)
    figures = interleaved(machine, variants, rounds=scale.rounds, seconds=scale.seconds)
    return {**figures, "errors": {**figures["errors"], **errors}, "beside": list(others)}


def times(scale: Scale) -> list[Item]:
    """One a case."""
    return [Item(f"{case.op} {case.name}", functools.partial(_timed, case=case, scale=scale)) for case in cases()]
