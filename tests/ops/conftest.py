import pytest

from tests import shared


@pytest.fixture(autouse=True)
def poisoned_memory():
    with shared.poisoned_memory():
        yield
