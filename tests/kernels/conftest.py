"""Fixtures of the C++ backend's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from fastmtl.backends import cpp
from tests import shared


def _isas() -> list[str]:
    flags = torch.backends.cpu.get_cpu_capability()
    return ["generic"] + ["avx2"] * (flags in ("AVX2", "AVX512")) + ["avx512"] * (flags == "AVX512")


@pytest.fixture(params=_isas())
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("FASTMTL_CPU_ISA", request.param)
    assert cpp.instruction_set() == request.param
    return str(request.param)


@pytest.fixture
def uninitialised_memory_is_nan() -> Iterator[None]:
    with shared.poisoned_memory():
        yield
