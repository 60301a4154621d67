"""The table of cases on which every backend must agree with the reference: for `python -m fastmtl` and for the tests.

The rule: against the reference run in float64, the error is at most twice that of the reference run at the case's
own dtype, plus the rounding of the result (for float64 cases: the bound of a sum of that many terms).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastmtl.backends import reference
from fastmtl.backends.contract import DTYPES, columns
from fastmtl.ops.rules import gradnorm_state
from fastmtl.ops.selection import BACKENDS

Grads = list[Tensor | None]


@dataclass(frozen=True)
class Case:
    """One call of one op."""

    op: str
    name: str
    dtype: torch.dtype
    make: Callable[[torch.Generator], list[Any]] = field(repr=False)

    def arguments(self, device: torch.device) -> list[Any]:
        """The arguments on ``device``, the same at every call."""
        return map_tensors(lambda tensor: _moved(tensor, device), self.make(torch.Generator().manual_seed(0)))

    def __str__(self) -> str:
        return f"{self.op}-{self.name}-{str(self.dtype).removeprefix('torch.')}"


@dataclass(frozen=True)
class Outcome:
    """How one case went; ``error`` is in units of the tolerance and passes up to 1."""

    case: Case
    backend: str
    error: float

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance; NaN is not."""
        return self.error <= 1


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    if tensor.device == device:
        return tensor
    storage = tensor.untyped_storage().to(device=device)  # keeps strides, overlaps and offset
    return torch.empty(0, dtype=tensor.dtype, device=device).set_(
        storage, tensor.storage_offset(), tensor.shape, tensor.stride()
    )


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """``value`` with every tensor in nested lists replaced."""
    if isinstance(value, Tensor):
        return function(value)
    return [map_tensors(function, item) for item in value] if isinstance(value, (list, tuple)) else value


def _randn(generator: torch.Generator, shape: Sequence[int], dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape, generator=generator, dtype=torch.float64) * scale).to(dtype)


def _contiguous(tensor: Tensor) -> Tensor:
    return tensor


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1)


def _transposed(tensor: Tensor) -> Tensor:
    return tensor.transpose(0, -1).contiguous().transpose(0, -1)


def _sliced(tensor: Tensor) -> Tensor:
    wide = torch.zeros(*tensor.shape[:-1], tensor.shape[-1] + 3, dtype=tensor.dtype)
    wide[..., 1:-2] = tensor
    return wide[..., 1:-2]


def _expanded(tensor: Tensor) -> Tensor:
    return tensor.flatten()[:1].reshape([1] * tensor.dim()).expand(tensor.shape)


def _expanded_positions(tensor: Tensor) -> Tensor:
    return tensor[..., :1].expand(tensor.shape)


LAYOUTS: dict[str, Sequence[Callable[[Tensor], Tensor]]] = {
    "contiguous": (_contiguous,),
    "channels_last": (_channels_last,),
    "mixed": (_contiguous, _channels_last, _expanded_positions),
    "expanded": (_expanded,),
    "transposed": (_transposed,),
    "sliced": (_sliced, _contiguous),
}


def _grads(
    generator: torch.Generator, tasks: int, shape: Sequence[int], dtype: torch.dtype, layout: str, missing: bool = False
) -> Grads:
    forms = LAYOUTS[layout]
    made: Grads = [forms[k % len(forms)](_randn(generator, shape, dtype, 1.0 + k % 3)) for k in range(tasks)]
    return [None if missing and k % 3 == 1 else grad for k, grad in enumerate(made)]


def _lists(
    generator: torch.Generator, tasks: int, lengths: Sequence[int], dtype: torch.dtype, missing: bool = False
) -> Grads:
    per_task = [_grads(generator, tasks, (length,), dtype, "contiguous") for length in lengths]
    flat = [column[task] for task in range(tasks) for column in per_task]
    return [None if missing and index % 5 == 2 else grad for index, grad in enumerate(flat)]


def _fork_cases(op: str, dtype: torch.dtype) -> Iterator[Case]:
    def case(name: str, tasks: int, shape: Sequence[int], layout: str, missing: bool = False) -> Case:
        return Case(op, name, dtype, lambda generator: [_grads(generator, tasks, shape, dtype, layout, missing)])

    for tasks in (1, 2, 3, 10, 17, 64):
        yield case(f"T{tasks}", tasks, (3, 5, 7, 11), "contiguous")
    for layout in LAYOUTS:
        yield case(f"T3-{layout}", 3, (4, 8, 6, 5), layout)
    yield case("T4-missing", 4, (4, 8, 6, 5), "mixed", missing=True)
    yield case("T3-large", 3, (2, 70001), "contiguous")
    yield case("T10-large", 10, (8, 40, 33, 5), "channels_last")
    yield case("T3-vector", 3, (129,), "contiguous")
    yield case("T3-one-sample", 3, (1, 100), "contiguous")
    yield case("T3-empty-batch", 3, (0, 5), "contiguous")
    yield case("T3-empty-sample", 3, (5, 0), "contiguous")


def _list_cases(op: str, dtype: torch.dtype) -> Iterator[Case]:
    def extra(tasks: int, generator: torch.Generator) -> list[Any]:
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        return [_randn(generator, (tasks,), wide)] if op.startswith("weighted_sum") else []

    def with_out(grads: Grads, tasks: int, arguments: list[Any]) -> list[Any]:
        if op != "weighted_sum_out":
            return arguments
        shapes = [next(g for g in column if g is not None) for column in columns(grads, tasks)]
        return [*arguments, [torch.full_like(grad, float("nan")).contiguous() for grad in shapes]]

    def case(name: str, tasks: int, lengths: Sequence[int], missing: bool = False) -> Case:
        def make(generator: torch.Generator) -> list[Any]:
            grads = _lists(generator, tasks, lengths, dtype, missing)
            return with_out(grads, tasks, [grads, tasks, *extra(tasks, generator)])

        return Case(op, name, dtype, make)

    for tasks in (1, 2, 3, 10, 40, 64):
        yield case(f"T{tasks}", tasks, (300, 1, 0, 77))
    yield case("T3-large", 3, (70001, 5, 140000))
    yield case("T4-missing", 4, (31, 8, 100), missing=True)
    for layout in LAYOUTS:

        def strided(generator: torch.Generator, layout: str = layout) -> list[Any]:
            grads = _grads(generator, 3, (4, 8, 6, 5), dtype, layout)
            return with_out(grads, 3, [grads, 3, *extra(3, generator)])

        yield Case(op, f"T3-{layout}", dtype, strided)


def _weigh_case(dtype: torch.dtype, tasks: int, absent: float | None = None) -> Case:
    def make(generator: torch.Generator) -> list[Any]:
        losses = list(_randn(generator, (tasks,), dtype, 3.0).unbind())
        present = torch.ones(tasks, dtype=torch.bool)
        if absent is not None:
            losses[1], present[1] = torch.full_like(losses[1], absent), False
        return [losses, _randn(generator, (tasks,), torch.float32).abs(), present]

    return Case("weigh", f"T{tasks}" + ("" if absent is None else f"-absent-{absent}"), dtype, make)


def _update_case(tasks: int, alpha: float, adam: bool, name: str, change: Callable[[dict[str, Tensor]], None]) -> Case:
    def make(generator: torch.Generator) -> list[Any]:
        state = gradnorm_state(tasks)._asdict()
        state["weights"].copy_(torch.softmax(_randn(generator, (tasks,), torch.float64), 0) * tasks)
        state["exp_avg"].copy_(_randn(generator, (tasks,), torch.float32))
        state["exp_avg_sq"].copy_(_randn(generator, (tasks,), torch.float32).square())
        state["steps"].fill_(3)
        state["initial_losses"].copy_(_randn(generator, (tasks,), torch.float32).abs() + 0.1)
        losses, used = _randn(generator, (2, tasks), torch.float32).abs().unbind()
        message = torch.cat([torch.tensor([1.0, 1024.0]), losses, used + 0.1, torch.ones(tasks)])
        norms = _randn(generator, (tasks,), torch.float32).square() * 1024.0**2
        values = {"squared_norms": norms, "message": message, **state}
        change(values)
        return [*values.values(), alpha, 0.025, adam, 0.9, 0.999, 1e-8, 1e-3]

    return Case("gradnorm_update", f"T{tasks}-alpha{alpha:g}-{'adam' if adam else 'sgd'}{name}", torch.float32, make)


def _update_cases() -> Iterator[Case]:
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


def cases() -> Iterator[Case]:
    """Every case, for every op, dtype, number of tasks, layout and special value."""
    for dtype in DTYPES:
        for op in ("sum_moments", "sum_norms"):
            yield from _fork_cases(op, dtype)
        for op in ("gram", "squared_norms", "weighted_sum", "weighted_sum_out"):
            yield from _list_cases(op, dtype)
        for tasks in (1, 3, 64):
            yield _weigh_case(dtype, tasks)
        yield _weigh_case(dtype, 3, 2.0)
        yield _weigh_case(dtype, 3, float("nan"))
    yield from _update_cases()


def run(implementations: Any, case: Case, arguments: list[Any]) -> list[Tensor]:
    """What the op returns, or what it changed in place, as one flat list; ``implementations`` has the ops as attributes."""
    results = getattr(implementations, case.op)(*arguments)
    if results is None:
        results = arguments[3] if case.op == "weighted_sum_out" else arguments[2:12]
    return [results] if isinstance(results, Tensor) else list(results)


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


@functools.cache
def _expected(case: Case) -> tuple[list[Tensor], list[float]]:
    """The float64 results, and the errors of the reference at the case's own dtype."""
    cpu = torch.device("cpu")
    exact = [tensor.double() for tensor in run(reference, case, _wide(case.arguments(cpu)))]
    plain = run(reference, case, case.arguments(cpu))
    return exact, [_error(a, b, _scale(b)) for a, b in zip(plain, exact, strict=True)]


def check(case: Case, backend: str, device: torch.device) -> Outcome:
    """Run one case on one backend and hold it against the reference."""
    exact, plain_errors = _expected(case)
    results = [tensor.cpu() for tensor in run(BACKENDS[backend], case, case.arguments(device))]
    if len(results) != len(exact):
        return Outcome(case, backend, float("inf"))
    worst = 0.0
    for result, expected, plain in zip(results, exact, plain_errors, strict=True):
        terms = 1e5 if result.dtype == torch.float64 else 1.0  # float64 has no wider oracle: the bound of a long sum
        rounding = torch.finfo(result.dtype).eps * terms if result.dtype.is_floating_point else 0.5
        worst = max(worst, _error(result, expected, _scale(expected)) / (2 * plain + rounding))
    return Outcome(case, backend, worst)
