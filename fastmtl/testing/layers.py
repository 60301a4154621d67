"""Cases of the moments of layers, and of the products that they are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fastmtl.testing.case import Case, randn
from fastmtl.testing.grads import LAYOUTS, made_grads

WAYS = ("pairs", "form")


def product_cases(dtype: torch.dtype) -> Iterator[Case]:
    """Cases of `cross_gram` and `sample_gram`."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def cross(
        name: str, left: int, right: int, shape: Sequence[int], layout: str = "mixed", missing: bool = False
    ) -> Case:
        def make(generator: torch.Generator) -> list[Any]:
            grads = made_grads(generator, right, shape, dtype, layout, missing)
            shared = sum(grad.to(wide) for grad in grads if grad is not None)
            rows: list[Tensor | None] = [shared + randn(generator, shape, wide) for _ in range(left)]
            return [[None if missing and k == 1 else row for k, row in enumerate(rows)], grads]

        return Case("cross_gram", name, dtype, make)

    def samples(name: str, tasks: int, shape: Sequence[int], layout: str = "contiguous", missing: bool = False) -> Case:
        def make(generator: torch.Generator) -> list[Any]:
            weights = randn(generator, shape[:1], wide).square()
            return [made_grads(generator, tasks, shape, dtype, layout, missing), weights]

        return Case("sample_gram", name, dtype, make)

    for tasks in (1, 2, 3, 10, 64):
        yield cross(f"T{tasks}-1", 1, tasks + 1, (3, 5, 7, 11))
        yield samples(f"T{tasks}", tasks, (5, 131))
    for layout in LAYOUTS:
        yield cross(f"T3-{layout}", 2, 3, (4, 8, 6, 5), layout)
        yield samples(f"T3-{layout}", 3, (4, 8, 6, 5), layout)
    yield cross("T4-missing", 3, 4, (4, 8, 6, 5), missing=True)
    yield cross("T12-many", 11, 12, (4, 37))
    yield cross("T3-large", 2, 3, (2, 70001), "contiguous")
    yield cross("T3-empty", 2, 3, (0, 5), "contiguous")
    yield samples("T4-missing", 4, (4, 8, 6, 5), missing=True)
    yield samples("T3-large", 3, (3, 40001))
    yield samples("T3-many-samples", 3, (3000, 7))
    yield samples("T3-vector", 3, (129,))
    yield samples("T3-empty-batch", 3, (0, 5))
    yield samples("T3-empty-sample", 3, (5, 0))


def layer_cases(dtype: torch.dtype) -> Iterator[Case]:
    """Cases of the moments of layers; oracles that know no fastmtl are those of the tests."""
    yield from _linear_cases(dtype)
    yield from _conv_cases(dtype)
    yield from _embedding_cases(dtype)
    yield from _norm_cases(dtype)


Inputs = Callable[[torch.Generator], Tensor]


def _case(
    op: str,
    name: str,
    dtype: torch.dtype,
    inputs: Inputs,
    shape: Sequence[int],
    options: Sequence[Any],
    tasks: int = 3,
    layout: str = "contiguous",
    missing: bool = False,
) -> Case:
    def make(generator: torch.Generator) -> list[Any]:
        return [inputs(generator), made_grads(generator, tasks, shape, dtype, layout, missing), *options]

    return Case(op, f"T{tasks}-{name}", dtype, make)


def _normal(shape: Sequence[int], dtype: torch.dtype) -> Inputs:
    return lambda generator: randn(generator, shape, dtype)


def _linear_cases(dtype: torch.dtype) -> Iterator[Case]:
    def case(name: str, shape: Sequence[int], outputs: int, way: str, bias: bool = True, **more: Any) -> Case:
        options = [bias, True, way]
        out = (*shape[:-1], outputs)
        return _case("linear_moments", f"{name}-{way}", dtype, _normal(shape, dtype), out, options, **more)

    for way in WAYS:
        yield case("samples", (9, 12), 7, way)
        yield case("tokens", (4, 6, 12), 7, way)
        yield case("no-bias", (4, 6, 12), 7, way, bias=False)
        yield case("large", (40, 90), 300, way, tasks=10)
        yield case("transposed", (4, 6, 12), 7, way, layout="transposed")
        yield case("expanded", (4, 6, 12), 7, way, layout="expanded")
        yield case("missing", (4, 6, 12), 7, way, tasks=4, missing=True)
        yield case("one-sample", (1, 12), 7, way)
        yield case("one-task", (9, 12), 7, way, tasks=1)
        yield case("many-tasks", (9, 12), 7, way, tasks=64)
    yield case("empty-batch", (0, 12), 7, "auto")


def _conv_cases(dtype: torch.dtype) -> Iterator[Case]:
    def case(
        name: str,
        way: str,
        shape: Sequence[int] = (3, 4, 6, 5),
        out: Sequence[int] = (3, 6, 6, 5),
        kernel: Sequence[int] = (3, 3),
        padding: Sequence[int] = (1, 1, 1, 1),
        stride: int = 1,
        groups: int = 1,
        transposed: bool = False,
        mode: str = "zeros",
        **more: Any,
    ) -> Case:
        rank = len(kernel)
        options = [
            list(kernel),
            [stride] * rank,
            list(padding),
            [1] * rank,
            groups,
            transposed,
            mode,
            True,
            True,
            way,
        ]
        return _case("conv_moments", f"{name}-{way}", dtype, _normal(shape, dtype), out, options, **more)

    for way in WAYS:
        yield case("3x3", way)
        yield case("channels_last", way, layout="channels_last")
        yield case("mixed", way, layout="mixed")
        yield case("missing", way, tasks=4, missing=True)
        yield case("groups", way, groups=2)
        yield case("circular", way, mode="circular")
        yield case("strided", way, stride=2, out=(3, 6, 3, 3))
        yield case("1d", way, shape=(3, 4, 9), out=(3, 6, 9), kernel=(2,), padding=(0, 1))
        yield case("transposed-conv", way, out=(3, 6, 12, 10), stride=2, transposed=True, groups=2)
    yield case("empty-batch", "auto", shape=(0, 4, 6, 5), out=(0, 6, 6, 5))


def _embedding_cases(dtype: torch.dtype) -> Iterator[Case]:
    def case(name: str, way: str, shape: Sequence[int], padding: int | None = None, **more: Any) -> Case:
        def indices(generator: torch.Generator) -> Tensor:
            return torch.randint(5, tuple(shape), generator=generator)

        return _case("embedding_moments", f"{name}-{way}", dtype, indices, (*shape, 7), [padding, True, way], **more)

    for way in WAYS:
        yield case("tokens", way, (4, 9))
        yield case("padding", way, (4, 9), 2)
        yield case("one-token", way, (6,))
        yield case("missing", way, (4, 9), tasks=4, missing=True)


def _norm_cases(dtype: torch.dtype) -> Iterator[Case]:
    def case(name: str, shape: Sequence[int], dims: Sequence[int], bias: bool = True, **more: Any) -> Case:
        return _case("norm_moments", name, dtype, _normal(shape, dtype), shape, [list(dims), bias, True], **more)

    yield case("channels", (4, 6, 5, 3), [1])
    yield case("channels_last", (4, 6, 5, 3), [1], layout="channels_last")
    yield case("last", (4, 7, 6), [2], bias=False)
    yield case("last-two", (4, 3, 7, 6), [2, 3], tasks=4, missing=True)
    yield case("samples", (9, 12), [1])
