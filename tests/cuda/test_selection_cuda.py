"""The balancers on the CUDA backend, end to end; and when it is chosen."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from fastmtl import FixedWeights, MaxGNR, ops
from fastmtl.backends import cuda, triton
from fastmtl.ops import selection
from tests.cuda.hosting import on_host
from tests.training.networks import balanced, conv_problem, gradnorm_for

CUDA = torch.device("cuda")
BALANCERS = {
    "gradnorm": gradnorm_for,
    "fixed": lambda problem: FixedWeights(problem.tasks, [0.5, 1.0, 1.5]),
    "maxgnr": lambda problem: MaxGNR(problem.tasks, source="features"),
}


@pytest.fixture
def chosen(monkeypatch):
    """The backend for a GPU, given why Triton and CUDA cannot run; None where they can."""

    def choose(without_triton, without_cuda, op="sum_norms", dtype=torch.float32):
        monkeypatch.setattr(triton, "unavailable", lambda device, dtype=None: without_triton)
        monkeypatch.setattr(cuda, "unavailable", lambda device, dtype=None: without_cuda)
        selection._select.cache_clear()
        return selection.backend_name(CUDA, op, dtype)

    yield choose
    selection._select.cache_clear()


def test_it_runs_where_triton_is_missing(chosen):
    assert chosen(None, None) == "triton"
    assert chosen("the package triton is missing", None) == "cuda"
    assert chosen("the package triton is missing", "the library is not built") == "reference"


def test_reasons():
    assert "it runs on NVIDIA GPUs, not on cpu" in str(cuda.unavailable(torch.device("cpu")))
    assert "it takes float32, bfloat16, float16, not torch.float64" in str(cuda.unavailable(CUDA, torch.float64))
    if torch.version.cuda is None and cuda.LIBRARY.exists():
        assert "is built without CUDA" in str(cuda.unavailable(CUDA))
    message = "use_backend forces backend 'cuda', which cannot run gram on cpu"
    with ops.use_backend("cuda"), pytest.raises(RuntimeError, match=message):
        ops.gram(torch.ones(2, 3))


@pytest.mark.parametrize(
    ("architectures", "runs", "does_not"),
    [
        ("8.0", [(8, 0), (8, 6)], [(7, 5), (9, 0)]),
        ("8.6;9.0", [(8, 6), (8, 9), (9, 0)], [(8, 0), (10, 0)]),
        ("8.0;9.0+PTX", [(8, 6), (9, 0), (10, 0), (12, 1)], [(7, 0)]),
        ("9.0a+PTX", [(9, 0)], [(10, 0), (8, 9)]),
        ("10.0f+PTX", [(10, 0), (10, 3)], [(12, 0)]),
    ],
)
def test_what_a_build_runs_on(architectures, runs, does_not):
    assert all(cuda.runs_on(capability, architectures) for capability in runs)
    assert not any(cuda.runs_on(capability, architectures) for capability in does_not)


@pytest.mark.parametrize(
    ("capability", "reason"),
    [
        ((7, 5), "it needs compute capability 8.0, this GPU has 7.5"),
        ((8, 6), None),
        ((9, 0), "it was built for compute capability 8.0 (TORCH_CUDA_ARCH_LIST), this GPU has 9.0"),
    ],
)
def test_a_build_for_other_gpus_is_not_chosen(capability, reason, monkeypatch):
    monkeypatch.setattr(cuda, "_failure_to_load", lambda: None)
    monkeypatch.setattr(cuda, "_ops", lambda: SimpleNamespace(architectures=lambda: "8.0"))
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert cuda.unavailable(CUDA) == reason


def _step(problem, balancer):
    """Loss, gradients and the balancer's state after one training step."""
    loss = balanced(problem, balancer)
    loss.backward()
    grads = [grad for grad in problem.gradients() if grad is not None]
    return [loss.detach(), *grads, *(tensor.clone() for tensor in balancer.buffers())]


@pytest.mark.parametrize("name", BALANCERS)
def test_a_training_step(name):
    problem = conv_problem()
    twin = problem.copy()
    with ops.use_backend("reference"):
        expected = _step(twin, BALANCERS[name](twin))
    selection._select.cache_clear()
    with on_host(), ops.use_backend("cuda"):
        results = _step(problem, BALANCERS[name](problem))
    selection._select.cache_clear()
    for result, exact in zip(results, expected, strict=True):
        assert torch.allclose(result, exact, rtol=2e-4, atol=1e-6, equal_nan=True)
