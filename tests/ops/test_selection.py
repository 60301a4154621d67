"""Which backend runs, and what is said where the forced one cannot."""

import pytest
import torch

from fastmtl import ops
from fastmtl.ops import selection

CPU = torch.device("cpu")


def test_forcing_a_backend():
    with ops.use_backend("reference"):
        assert selection.backend_for(CPU, "gram").__name__.endswith("reference")


def test_the_environment_forces_a_backend_and_the_context_wins(monkeypatch):
    monkeypatch.setenv("FASTMTL_BACKEND", "reference")
    assert selection.backend_for(CPU, "gram") is selection.BACKENDS["reference"]
    monkeypatch.setenv("FASTMTL_BACKEND", "cpp")
    with ops.use_backend("reference"):
        assert selection.backend_for(CPU, "gram") is selection.BACKENDS["reference"]


def test_unknown_backends_are_refused(monkeypatch):
    with (
        pytest.raises(ValueError, match="use_backend: expected one of cpp, triton, cuda, reference, got 'gpu'"),
        ops.use_backend("gpu"),
    ):
        pass
    monkeypatch.setenv("FASTMTL_BACKEND", "gpu")
    with pytest.raises(ValueError, match="FASTMTL_BACKEND: expected one of cpp, triton, cuda, reference, got 'gpu'"):
        ops.gram([torch.ones(2)])


def test_forcing_what_cannot_run_raises_with_the_reason():
    with (
        ops.use_backend("cpp"),
        pytest.raises(RuntimeError, match="use_backend forces backend 'cpp', which cannot run gram on cuda: .+"),
    ):
        selection.backend_for(torch.device("cuda"), "gram")


def test_the_context_ends_with_an_error_inside():
    before = selection.backend_for(CPU, "gram")
    with pytest.raises(KeyError), ops.use_backend("reference"):
        raise KeyError
    assert selection.backend_for(CPU, "gram") is before
