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


# Large enough for the kernels, on each instruction set or on the narrower ones; more than 128 samples or inputs are summed
# in parts; sides that are no multiples of a tile's.
_LAYERS = [(300, 70, 50), (257, 96, 64), (70, 300, 65), (49, 129, 97), (600, 33, 200)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("sizes", _LAYERS, ids=str)
def test_moments_of_linear_layers_by_kernels(
    isa: str, sizes: tuple[int, int, int], bias: bool, pairs: bool, dtype: torch.dtype
) -> None:
    batch, inner, outputs = sizes
    (inputs,) = random_grads(1, (batch, inner), dtype, 1)
    a, b, c, d = random_grads(4, (batch, outputs), dtype)
    # Equal numbers are all rounded the same way.
    expanded = [a[:1].expand_as(a), b[:, :1].expand_as(b), torch.stack([c, c], -1)[..., 0]]
    for given, relative in (
        ([a], 5e-7),
        ([a, None, b.T.contiguous().T, c], 5e-7),
        ([a, b, c, d] * 2, 5e-7),
        (expanded, 3e-6),
    ):
        for rows in (inputs, inputs.T.contiguous().T):
            exact = reference.linear_moments(rows.double(), wide_of(given), bias, True, "form")
            for value, wanted in zip(cpp.rows_linear_moments(rows, given, bias, True, pairs, 1000), exact, strict=True):
                check_statistics(value, wanted, dtype, relative)
                assert torch.equal(value, value.T)


@pytest.mark.parametrize("pairs", [False, True])
def test_what_is_not_finite_stays_with_its_task(isa: str, pairs: bool) -> None:
    (inputs,) = random_grads(1, (100, 70), torch.float32, 1)
    grads = random_grads(3, (100, 66))
    expected = cpp.rows_linear_moments(inputs, grads, True, True, pairs, 1000)
    for value in (torch.inf, torch.nan):
        grads[1][99, 65] = value
        for got, wanted in zip(cpp.rows_linear_moments(inputs, grads, True, True, pairs, 1000), expected, strict=True):
            kept = torch.tensor([[True, False, True], [False] * 3, [True, False, True]])
            assert torch.equal(got[kept], wanted[kept]) and not got[~kept].isfinite().any()


def test_weights_of_samples_may_be_negative() -> None:
    grads = random_grads(3, (70, 11))
    weights = torch.linspace(-1, 1, 70)
    exact = reference.sample_gram(wide_of(grads), weights.double())
    scale = reference.sample_gram(wide_of(grads), weights.abs().double()).diagonal().sqrt()
    assert ((cpp.sample_gram(grads, weights).double() - exact).abs() <= 5e-7 * torch.outer(scale, scale)).all()


@pytest.mark.parametrize("first", LAYOUTS)
@pytest.mark.parametrize("second", LAYOUTS)
def test_products_of_layouts(isa: str, first: str, second: str) -> None:
    a, b, c = random_grads(3, (5, 4, 7, 6))
    _check_products([LAYOUTS[first](a), LAYOUTS[second](b), c], tolerance_of(first, second))


def test_products_do_not_depend_on_the_threads() -> None:
    grads = list(random_grads(3, (7, 30011)))
    weights = torch.rand(7)
    inputs, *outputs = random_grads(4, (200, 150))
    results = []
    for threads in (1, 2, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            ways = [cpp.rows_linear_moments(inputs, outputs, True, True, pairs, 1000) for pairs in (False, True)]
            results.append((cpp.cross_gram(grads[:2], grads), cpp.sample_gram(grads, weights), *ways[0], *ways[1]))
        finally:
            torch.set_num_threads(before)
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))
