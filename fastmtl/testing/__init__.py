"""The table of cases on which every backend must agree with the reference: for `python -m fastmtl` and for the tests.

The rule: against the reference run in float64, the error is at most twice that of the reference run at the case's
own dtype, plus the rounding of the result (for float64 cases: the bound of a sum of that many terms).

Roundings may happen to cancel in the reference's one run (the sum of equal numbers can even be exact), so where the first
draw of a case's numbers says no, the reference's largest error over `DRAWS` draws counts. Plain operations round otherwise on
a GPU than on the CPU: there it is the larger of both. The reference itself is checked on a GPU in float64.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fastmtl.backends import reference
from fastmtl.backends.contract import DTYPES, SCHEMAS
from fastmtl.ops.selection import BACKENDS
from fastmtl.testing.case import Case, Outcome, map_tensors
from fastmtl.testing.fused import fused_cases
from fastmtl.testing.gnr import gnr_cases
from fastmtl.testing.gradnorm import update_cases, weigh_case
from fastmtl.testing.grads import list_cases, sum_cases
from fastmtl.testing.layers import layer_cases, product_cases

DRAWS = 4

__all__ = ["Case", "Outcome", "cases", "check", "map_tensors", "run"]


def cases() -> Iterator[Case]:
    """Every case, for every op, dtype, number of tasks, layout and special value."""
    for dtype in DTYPES:
        for op in ("sum_moments", "sum_norms"):
            yield from sum_cases(op, dtype)
        for op in ("gram", "squared_norms", "weighted_sum", "weighted_sum_out"):
            yield from list_cases(op, dtype)
        yield from product_cases(dtype)
        yield from layer_cases(dtype)
        for tasks in (1, 3, 64):
            yield weigh_case(dtype, tasks)
        yield weigh_case(dtype, 3, 2.0)
        yield weigh_case(dtype, 3, float("nan"))
    yield from update_cases()
    yield from gnr_cases()
    yield from fused_cases()


def _changed_in_place(op: str) -> list[int]:
    """Positions of the arguments that the op changes, from its schema."""
    arguments = SCHEMAS[op].split(" -> ")[0].split(", ")
    return [index for index, argument in enumerate(arguments) if "!" in argument]


def _as_list(value: Tensor | list[Tensor]) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else value


def run(implementations: Any, case: Case, arguments: list[Any]) -> list[Tensor]:
    """What the op returns and what it changed in place, as one flat list; ``implementations`` has the ops as attributes."""
    results = getattr(implementations, case.op)(*arguments)
    returned = [] if results is None else _as_list(results) if isinstance(results, Tensor) else list(results)
    return returned + [tensor for index in _changed_in_place(case.op) for tensor in _as_list(arguments[index])]


def _wide(arguments: list[Any]) -> list[Any]:
    return map_tensors(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor.clone(), arguments)


def _scale(exact: Tensor) -> Tensor:
    """What errors are measured against: sqrt(M_kk M_jj) for Gram matrices, the largest magnitude for the rest."""
    if exact.dim() == 2 and exact.shape[0] == exact.shape[1]:
        norms = exact.diagonal().clamp_min(0).sqrt()
        return torch.outer(norms, norms)
    finite = exact[exact.isfinite()]
    return finite.abs().max() if finite.numel() else exact.new_zeros(())


def _error(result: Tensor, exact: Tensor, scale: Tensor) -> float:
    """Largest difference in units of ``scale``; infinite where special values or shapes differ."""
    if result.shape != exact.shape:
        return float("inf")
    result = result.double()
    same = (result == exact) | (result.isnan() & exact.isnan())
    difference = torch.where(same, 0.0, (result - exact).abs() / scale.clamp_min(1e-300))
    return float(difference.nan_to_num(float("inf"), float("inf")).max()) if difference.numel() else 0.0


def _errors(results: list[Tensor], exact: list[Tensor]) -> list[float]:
    return [_error(result, expected, _scale(expected)) for result, expected in zip(results, exact, strict=True)]


@functools.cache
def _exact(case: Case, draw: int = 0) -> list[Tensor]:
    """The float64 results."""
    return [tensor.double() for tensor in run(reference, case, _wide(case.arguments(torch.device("cpu"), draw)))]


@functools.cache
def _plain_errors(case: Case, device: torch.device, draw: int) -> list[float]:
    """Errors of the reference at the case's own dtype, there or on the CPU, whichever is larger."""
    errors = []
    for place in {torch.device("cpu"), device}:
        results = [tensor.cpu() for tensor in run(reference, case, case.arguments(place, draw))]
        # An infinite error is no rounding: it would let everything pass.
        errors.append([error if math.isfinite(error) else 0.0 for error in _errors(results, _exact(case, draw))])
    return [max(pair) for pair in zip(*errors, strict=True)]


def _in_units(results: list[Tensor], errors: list[float], plain_errors: list[float]) -> float:
    """The worst error in units of its tolerance."""
    worst = 0.0
    for result, error, plain in zip(results, errors, plain_errors, strict=True):
        terms = 1e5 if result.dtype == torch.float64 else 1.0  # float64 has no wider oracle: the bound of a long sum
        rounding = torch.finfo(result.dtype).eps * terms if result.dtype.is_floating_point else 0.5
        worst = max(worst, error / (2 * plain + rounding))
    return worst


def check(case: Case, backend: str, device: torch.device) -> Outcome:
    """Run one case on one backend and hold it against the reference."""
    exact = _exact(case)
    in_float64 = backend == "reference" and device.type != "cpu"
    arguments = case.arguments(device)
    results = [tensor.cpu() for tensor in run(BACKENDS[backend], case, _wide(arguments) if in_float64 else arguments)]
    if len(results) != len(exact):
        return Outcome(case, backend, float("inf"))
    errors, plain_errors = _errors(results, exact), [0.0] * len(exact)
    if in_float64:
        return Outcome(case, backend, _in_units(results, errors, plain_errors))
    worst = math.inf
    for draw in range(DRAWS):
        plain_errors = [max(pair) for pair in zip(plain_errors, _plain_errors(case, device, draw), strict=True)]
        worst = _in_units(results, errors, plain_errors)
        if worst <= 1:
            break
    return Outcome(case, backend, worst)
