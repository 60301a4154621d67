"""The C++ backend's products for the moments of layers, and those of linear layers, against a float64 oracle."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastmtl.backends import contract, cpp, reference
from tests.kernels.oracle import DTYPES, LAYOUTS, MARKS, check_statistics, random_grads, tolerance_of, wide_of

pytestmark = MARKS


def _check_products(grads: list[Tensor | None], relative: float = 5e-7) -> None:
    like = contract.present_of(grads)[0]
    wide = contract.statistics_dtype(like)
    shifted = [None if g is None else (g.to(wide) + k).contiguous() for k, g in enumerate(grads)]
    left = [*shifted[:2], like.to(wide)]
    rows, columns = (reference.squared_norms(wide_of(side), len(side)).sqrt() for side in (left, grads))
    scale = torch.outer(rows, columns)
    tolerance = 1e-13 if like.dtype == torch.float64 else relative
    error = (cpp.cross_gram(left, grads).double() - reference.cross_gram(wide_of(left), wide_of(grads))).abs()
    assert (error <= tolerance * scale).all(), (error / scale).max()
    weights = torch.rand(like.shape[0], dtype=wide)
    exact = reference.sample_gram(wide_of(grads), weights.double())
    got = cpp.sample_gram(grads, weights)
    check_statistics(got, exact, like.dtype, relative)
    assert torch.equal(got, got.T)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tasks", [1, 2, 3, 6, 11])
def test_products(isa: str, tasks: int, dtype: torch.dtype) -> None:
    for shape in [(4, 2500), (3, 5, 7), (70, 11), (1, 33), (2, 40000), (700, 1)]:
        grads: list[Tensor | None] = list(random_grads(tasks, shape, dtype))
        _check_products(grads)
        _check_products([*grads, None, grads[0]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("rows", [1, 7, 20, 100])
def test_moments_of_linear_layers(isa: str, rows: int, pairs: bool, dtype: torch.dtype) -> None:
    for batch, inner, outputs in [(20, 33, 9), (9, 5, 20), (1, 1, 1)]:
        inputs = random_grads(1, (inner, batch), dtype, 1)[0].T
        grads: list[Tensor | None] = list(random_grads(3, (batch, outputs), dtype))
        for given in (grads, [grads[0], None, *grads[1:]], [grads[0], random_grads(1, (outputs, batch), dtype)[0].T]):
            for bias in (False, True):
                exact = reference.linear_moments(inputs.double(), wide_of(given), bias, True, "form")
                got = cpp.rows_linear_moments(inputs, given, bias, True, pairs, rows)
                # By torch's products, in the dtype.
                for value, wanted in zip(got, exact, strict=True):
                    check_statistics(value, wanted, dtype, 2e-6)
                (M,) = cpp.rows_linear_moments(inputs, given, bias, False, pairs, rows)
                assert torch.equal(M, got[0])


@pytest.mark.parametrize("first", LAYOUTS)
@pytest.mark.parametrize("second", LAYOUTS)
def test_products_of_layouts(isa: str, first: str, second: str) -> None:
    a, b, c = random_grads(3, (5, 4, 7, 6))
    _check_products([LAYOUTS[first](a), LAYOUTS[second](b), c], tolerance_of(first, second))


def test_products_do_not_depend_on_the_threads() -> None:
    grads = list(random_grads(3, (7, 30011)))
    weights = torch.rand(7)
    results = []
    for threads in (1, 2, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            results.append((cpp.cross_gram(grads[:2], grads), cpp.sample_gram(grads, weights)))
        finally:
            torch.set_num_threads(before)
    for cross, samples in results[1:]:
        assert torch.equal(cross, results[0][0]) and torch.equal(samples, results[0][1])
