"""What all tests share: a fixed seed, and every backend that runs here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from fastmtl import ops
from fastmtl.ops import selection

CPU = torch.device("cpu")
AVAILABLE = [name for name in selection.BACKENDS if selection.unavailable(name, CPU) is None]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(20260)


@pytest.fixture(params=AVAILABLE)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each backend in turn; tests without this fixture run on the default one."""
    with ops.use_backend(request.param):
        yield request.param
