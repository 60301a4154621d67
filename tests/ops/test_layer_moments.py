"""Moments of layers against one backward per sample and task, for every layer, option and way."""

import pytest
import torch

from fastmtl.backends.layer_moments import conv
from tests.ops.layer_oracle import CONVS, PROBLEMS, brute_force

# torch says so of padding "same" with an even kernel.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
WAYS = [(name, way) for name, problem in PROBLEMS.items() for way in problem.ways]


@pytest.mark.parametrize(("name", "way"), WAYS)
def test_exact_in_float64(name, way, backend):
    problem = PROBLEMS[name]
    layer, inputs, grads = problem.make()
    M, Q = problem.measure(inputs, grads, way=way)
    exact_M, exact_Q = brute_force(layer, inputs, grads)
    assert M.dtype == Q.dtype == torch.float64
    torch.testing.assert_close(M, exact_M, rtol=1e-10, atol=1e-10 * float(exact_Q.diagonal().max()))
    torch.testing.assert_close(Q, exact_Q, rtol=1e-10, atol=1e-10 * float(exact_Q.diagonal().max()))


@pytest.mark.parametrize("means", ["pixels", "patches"])
@pytest.mark.parametrize("name", [problem.name for problem in CONVS if "transposed" not in problem.name])
def test_products_of_pixels_and_of_patches(name, means, monkeypatch):
    """The cost model takes one of them; both must be right for every option."""
    monkeypatch.setattr(conv, "patch_gram_cost", lambda *_: 0 if means == "pixels" else 1 << 60)
    problem = PROBLEMS[name]
    layer, inputs, grads = problem.make()
    exact = brute_force(layer, inputs, grads)
    for got, expected in zip(problem.measure(inputs, grads, way="pairs"), exact, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10 * float(exact[1].diagonal().max()))
