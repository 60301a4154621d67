"""Cases of the update of the GNR weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from fastmtl.ops.gnr import gnr_state
from fastmtl.testing.case import Case, randn

OBJECTIVES = ("relative", "maxmin", "intertask", "none")
BATCH = 8
SCALE = 1024.0

Change = Callable[[dict[str, Any]], None]


def _moments(generator: torch.Generator, tasks: int) -> tuple[Tensor, Tensor]:
    """M and Q in float64 of a batch of per-sample gradients with a mean that is clear of the noise."""
    size = 2 * tasks + 4
    mean = randn(generator, (tasks, 1, size), torch.float64) * (1 + torch.arange(tasks) % 3)[:, None, None]
    samples = mean + randn(generator, (tasks, BATCH, size), torch.float64)
    sums = samples.mean(1)
    return sums @ sums.T, torch.einsum("kbp,jbp->kj", samples, samples) / BATCH


def _case(
    name: str,
    tasks: int,
    objective: str,
    change: Change = lambda values: None,
    dtype: torch.dtype = torch.float32,
    *,
    fresh: bool = False,
) -> Case:
    def make(generator: torch.Generator) -> list[Any]:
        state = gnr_state(tasks)._asdict()
        weights = torch.softmax(randn(generator, (tasks,), torch.float64), 0) * tasks
        state["weights"].copy_(weights)
        if not fresh:  # after some steps
            M, Q = _moments(generator, tasks)
            C = BATCH / (BATCH - 1) * (Q - M)
            state["moments"].copy_(torch.stack([M, Q]))
            state["averages"].copy_(0.4 * torch.stack([M - C / BATCH, C, M]))
            state["shares"].fill_(0.4)
        used = state["weights"].clone()
        losses = randn(generator, (tasks,), torch.float32).abs()
        message = torch.cat([torch.tensor([1.0, SCALE]), losses, used, torch.ones(tasks)])
        units = SCALE**2 * used.double()[:, None] * used.double()
        M, Q = ((matrix * units).to(dtype) for matrix in _moments(generator, tasks))
        values = {"M": M, "Q": Q, "message": message, **state}
        values |= {"batch": BATCH, "accumulation": 2, "loss_sum": False, "objective": objective}
        values |= {"decay": 0.9, "step": 0.3, "floor": 0.05}
        change(values)
        return list(values.values())

    return Case("gnr_update", f"T{tasks}-{objective}{name}", dtype, make)


def _set(key: str, *index: int, value: float) -> Change:
    return lambda values: values[key].__setitem__(index, value)


def _replace(**replacements: Any) -> Change:
    return lambda values: values.update(replacements)


def _absent(values: dict[str, Any]) -> None:
    """Task 1 takes no part, and what stands in its places is NaN."""
    values["message"][2 + 6 + 1] = 0.0
    values["message"][2 + 1] = values["M"][1] = values["M"][:, 1] = values["Q"][1] = values["Q"][:, 1] = float("nan")


def _no_gradient(values: dict[str, Any]) -> None:
    """No gradient of task 1 arrived: its moments are zero."""
    values["message"][2 + 6 + 1] = 2.0
    values["M"][1] = values["M"][:, 1] = values["Q"][1] = values["Q"][:, 1] = 0.0


def _zero_gradient(values: dict[str, Any]) -> None:
    """Task 1 never had a gradient."""
    for key in ("M", "Q"):
        values[key][1] = values[key][:, 1] = 0.0
    values["averages"][:, 1] = values["averages"][:, :, 1] = 0.0


def _transposed(values: dict[str, Any]) -> None:
    """Moments that are views, with other strides."""
    for key in ("M", "Q"):
        values[key] = torch.stack([values[key], values[key]], -1)[..., 0].T


def gnr_cases() -> Iterator[Case]:
    """Steps of the GNR weights, special values included."""
    for tasks in (1, 3, 10, 64):
        for objective in OBJECTIVES:
            yield _case("", tasks, objective)
    yield _case("", 16, "relative")
    nan, infinite = float("nan"), float("inf")
    changes: dict[str, Change] = {
        "absent": _absent,
        "no-gradient": _no_gradient,
        "zero-gradient": _zero_gradient,
        "transposed": _transposed,
        "M-nan": _set("M", 0, 1, value=nan),
        "Q-inf": _set("Q", 2, 2, value=infinite),
        "loss-nan": _set("message", 2 + 1, value=nan),
        "scale-zero": _set("message", 1, value=0.0),
        "scale-inf": _set("message", 1, value=infinite),
        "not-valid": _set("message", 0, value=0.0),
        "huge": _set("M", 0, 0, value=3e38),
        "loss-sum": _replace(loss_sum=True),
        "averages-nan": _set("averages", 0, 0, 0, value=nan),
    }
    for name, change in changes.items():
        yield _case(f"-{name}", 3, "relative", change)
    for objective in ("relative", "maxmin"):
        yield _case("", 3, objective, dtype=torch.float64)
        yield _case("-fresh", 3, objective, fresh=True)
    for objective in ("intertask", "none"):
        yield _case("-no-Q", 3, objective, _replace(Q=None), fresh=True)
        yield _case("-one-sample", 3, objective, _replace(batch=1), fresh=True)
