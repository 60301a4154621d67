"""Cases of the weighted sum of the losses and of GradNorm's update."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from fastmtl.ops.gradnorm import gradnorm_state
from fastmtl.testing.case import Case, randn


def weigh_case(dtype: torch.dtype, tasks: int, absent: float | None = None) -> Case:
    """The weighted sum of T losses; with ``absent``, of which one is absent and has that value."""

    def make(generator: torch.Generator) -> list[Any]:
        losses = list(randn(generator, (tasks,), dtype, 3.0).unbind())
        present = torch.ones(tasks, dtype=torch.bool)
        if absent is not None:
            losses[1], present[1] = torch.full_like(losses[1], absent), False
        return [losses, randn(generator, (tasks,), torch.float32).abs(), present]

    return Case("weigh", f"T{tasks}" + ("" if absent is None else f"-absent-{absent}"), dtype, make)


def _update_case(tasks: int, alpha: float, adam: bool, name: str, change: Callable[[dict[str, Tensor]], None]) -> Case:
    def make(generator: torch.Generator) -> list[Any]:
        state = gradnorm_state(tasks)._asdict()
        state["weights"].copy_(torch.softmax(randn(generator, (tasks,), torch.float64), 0) * tasks)
        state["exp_avg"].copy_(randn(generator, (tasks,), torch.float32))
        state["exp_avg_sq"].copy_(randn(generator, (tasks,), torch.float32).square())
        state["steps"].fill_(3)
        state["initial_losses"].copy_(randn(generator, (tasks,), torch.float32).abs() + 0.1)
        losses, used = randn(generator, (2, tasks), torch.float32).abs().unbind()
        message = torch.cat([torch.tensor([1.0, 1024.0]), losses, used + 0.1, torch.ones(tasks)])
        norms = randn(generator, (tasks,), torch.float32).square() * 1024.0**2
        values = {"squared_norms": norms, "message": message, **state}
        change(values)
        return [*values.values(), alpha, 0.025, adam, 0.9, 0.999, 1e-8, 1e-3]

    return Case("gradnorm_update", f"T{tasks}-alpha{alpha:g}-{'adam' if adam else 'sgd'}{name}", torch.float32, make)


def update_cases() -> Iterator[Case]:
    """Steps of GradNorm's weights, special values included."""

    def set_item(key: str, index: int, value: float) -> Callable[[dict[str, Tensor]], None]:
        return lambda values: values[key].__setitem__(index, value)

    for tasks in (1, 3, 64):
        for alpha in (0.0, 0.12, 1.5):
            for adam in (True, False):
                yield _update_case(tasks, alpha, adam, "", lambda values: None)
    changes: dict[str, Callable[[dict[str, Tensor]], None]] = {
        "first": lambda values: values["initial_losses"].fill_(float("nan")),  # type: ignore[dict-item]
        "absent": set_item("message", 2 + 6 + 1, 0.0),
        "no-gradient": set_item("message", 2 + 6 + 1, 2.0),
        "loss-nan": set_item("message", 2 + 1, float("nan")),
        "loss-negative": set_item("message", 2 + 1, -1.0),
        "losses-zero": lambda values: values["message"][2:5].zero_(),  # type: ignore[dict-item]
        "norm-inf": set_item("squared_norms", 0, float("inf")),
        "norm-zero": set_item("squared_norms", 0, 0.0),
        "scale-zero": set_item("message", 1, 0.0),
        "scale-inf": set_item("message", 1, float("inf")),
        "not-valid": set_item("message", 0, 0.0),
        "initial-zero-loss": lambda values: (  # type: ignore[dict-item]
            values["initial_losses"].fill_(float("nan")),
            values["message"][2:3].zero_(),
        ),
        "huge": set_item("squared_norms", 0, 1e38),
    }
    for name, change in changes.items():
        for alpha in (0.0, 1.5):
            yield _update_case(3, alpha, True, f"-{name}", change)
