import pytest
import torch


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Every uninitialised tensor is filled with NaN, so that an element that is never written shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)
