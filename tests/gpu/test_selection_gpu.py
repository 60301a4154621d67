"""The balancers on a pretended GPU, end to end: selection takes this backend, and its kernels are executed.

And what needs no kernel on a machine without a GPU: fake CUDA tensors, on which ops are traced and compiled.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from fastmtl import Balancer, FixedWeights, MaxGNR, ops
from fastmtl.backends import triton as backend
from fastmtl.backends.triton import chips
from fastmtl.ops import library, selection
from tests.gpu.executing import SMALL, executed_by_ttsem
from tests.gpu.launches import Launch, intercepted
from tests.training.networks import Problem, balanced, conv_problem, gradnorm_for

CUDA = torch.device("cuda")


@contextlib.contextmanager
def pretended_gpu() -> Iterator[list[str]]:
    """Ops are sent where they would go for CUDA tensors, and kernels are executed on the CPU tensors behind them.

    torch says that there is a GPU of compute capability 8.0, as ttsem has it say. Gives the ops that this backend ran.
    """
    taken: list[str] = []

    def as_on_cuda(device: torch.device, op: str, dtype: torch.dtype | None = None) -> Any:
        chosen = selection.backend_for(CUDA, op, dtype)
        if chosen is backend:
            taken.append(op)
        return chosen

    caches = (selection._select, backend._unavailable)
    with chips.assume(SMALL), executed_by_ttsem(), mock.patch.object(library, "backend_for", as_on_cuda):
        for cache in caches:
            cache.cache_clear()
        try:
            yield taken
        finally:
            for cache in caches:
                cache.cache_clear()


def _step(problem: Problem, balancer: Balancer) -> list[Tensor]:
    """Loss, gradients and the balancer's state after one training step."""
    loss = balanced(problem, balancer)
    loss.backward()
    grads = [grad for grad in problem.gradients() if grad is not None]
    return [loss.detach(), *grads, *(tensor.clone() for tensor in balancer.buffers())]


BALANCERS: dict[str, Callable[[Problem], Balancer]] = {
    "gradnorm": gradnorm_for,
    "fixed": lambda problem: FixedWeights(problem.tasks, [0.5, 1.0, 1.5]),
    "maxgnr": lambda problem: MaxGNR(problem.tasks, source="features"),
}
OPS = {
    "gradnorm": {"weigh", "sum_norms_update"},
    "fixed": {"weigh"},
    "maxgnr": {"weigh", "sum_moments_update"},
}


@pytest.mark.parametrize("name", BALANCERS)
def test_a_training_step(name):
    problem = conv_problem()
    twin = problem.copy()
    with ops.use_backend("reference"):
        expected = _step(twin, BALANCERS[name](twin))
    with pretended_gpu() as taken:
        got = _step(problem, BALANCERS[name](problem))
    assert set(taken) >= OPS[name], taken
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5, equal_nan=True)


def test_what_is_preferred():
    with pretended_gpu():
        assert selection.backend_name(CUDA, "gram", torch.float32) == "triton"
        assert selection.backend_name(CUDA, "gram", torch.float64) == "reference"
    assert selection.backend_name(CUDA, "gram", torch.float32) == "reference", "there is no GPU here"
    assert "GPU" in (backend.unavailable(CUDA) or "")


def _grads(tasks: int = 3) -> list[Tensor]:
    return [torch.randn(4, 6, 5, 5, device="cuda") for _ in range(tasks)]


@pytest.fixture
def untouched() -> Iterator[None]:
    """Nothing is launched, and no op gets as far as a backend."""
    launches: list[Launch] = []
    with (
        intercepted(launches.append),
        mock.patch.object(library, "backend_for", side_effect=AssertionError("a backend")),
    ):
        yield
    assert not launches


CALLS: dict[str, Callable[[list[Tensor]], Any]] = {
    "sum_norms": ops.sum_norms,
    "sum_moments": ops.sum_moments,
    "gram": ops.gram,
    "squared_norms": ops.squared_norms,
    "weighted_sum": lambda grads: ops.weighted_sum(grads, torch.ones(3, device="cuda")),
}


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("op", CALLS)
def test_fake_tensors(op):
    with FakeTensorMode():
        results = torch.utils._pytree.tree_leaves(CALLS[op](_grads()))
        assert results and all(result.device.type == "cuda" for result in results)


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("op", CALLS)
def test_traced(op):
    """The graph has the op itself: what is compiled for a GPU calls it there."""
    with FakeTensorMode():
        graph = make_fx(lambda *grads: CALLS[op](list(grads)), tracing_mode="fake")(*_grads())
    targets = {str(node.target) for node in graph.graph.nodes}
    assert f"fastmtl.{op}.default" in targets


@pytest.mark.usefixtures("untouched")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's own
@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
@pytest.mark.parametrize("op", CALLS)
def test_compiled(op, compiler):
    torch._dynamo.reset()
    compiled = torch.compile(lambda *grads: CALLS[op](list(grads)), fullgraph=True, backend=compiler)
    with FakeTensorMode(allow_non_fake_inputs=True):
        results = torch.utils._pytree.tree_leaves(compiled(*_grads()))
    assert results and all(result.device.type == "cuda" for result in results)
    torch._dynamo.reset()
