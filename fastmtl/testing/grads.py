"""Cases of the ops over gradients: sums, statistics, lists; every layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fastmtl.backends.contract import columns
from fastmtl.testing.case import Case, randn

Grads = list[Tensor | None]


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


def made_grads(
    generator: torch.Generator, tasks: int, shape: Sequence[int], dtype: torch.dtype, layout: str, missing: bool = False
) -> Grads:
    """T gradients in the forms of a layout; with ``missing``, every third one is None."""
    forms = LAYOUTS[layout]
    made: Grads = [forms[k % len(forms)](randn(generator, shape, dtype, 1.0 + k % 3)) for k in range(tasks)]
    return [None if missing and k % 3 == 1 else grad for k, grad in enumerate(made)]


def _lists(
    generator: torch.Generator, tasks: int, lengths: Sequence[int], dtype: torch.dtype, missing: bool = False
) -> Grads:
    per_task = [made_grads(generator, tasks, (length,), dtype, "contiguous") for length in lengths]
    flat = [column[task] for task in range(tasks) for column in per_task]
    return [None if missing and index % 5 == 2 else grad for index, grad in enumerate(flat)]


def sum_cases(op: str, dtype: torch.dtype) -> Iterator[Case]:
    """Cases of the ops over T tensors with a batch dimension."""

    def case(name: str, tasks: int, shape: Sequence[int], layout: str, missing: bool = False) -> Case:
        return Case(op, name, dtype, lambda generator: [made_grads(generator, tasks, shape, dtype, layout, missing)])

    for tasks in (1, 2, 3, 10, 17, 64):
        yield case(f"T{tasks}", tasks, (3, 5, 7, 11), "contiguous")
    for layout in LAYOUTS:
        yield case(f"T3-{layout}", 3, (4, 8, 6, 5), layout)
    yield case("T4-missing", 4, (4, 8, 6, 5), "mixed", missing=True)
    yield case("T3-large", 3, (2, 70001), "contiguous")
    yield case("T10-large", 10, (2, 40, 33, 13), "channels_last")
    yield case("T3-vector", 3, (129,), "contiguous")
    yield case("T3-many-samples", 3, (256, 41), "contiguous")
    yield case("T10-many-samples", 10, (128, 72), "contiguous")
    yield case("T3-one-sample", 3, (1, 100), "contiguous")
    yield case("T3-empty-batch", 3, (0, 5), "contiguous")
    yield case("T3-empty-sample", 3, (5, 0), "contiguous")


def list_cases(op: str, dtype: torch.dtype) -> Iterator[Case]:
    """Cases of the ops over T lists of tensors."""

    def extra(tasks: int, generator: torch.Generator) -> list[Any]:
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        return [randn(generator, (tasks,), wide)] if op.startswith("weighted_sum") else []

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
    yield case("T34-missing", 34, (31, 8, 100), missing=True)
    for layout in LAYOUTS:

        def strided(generator: torch.Generator, layout: str = layout) -> list[Any]:
            grads = made_grads(generator, 3, (4, 8, 6, 5), dtype, layout)
            return with_out(grads, 3, [grads, 3, *extra(3, generator)])

        yield Case(op, f"T3-{layout}", dtype, strided)
