"""The Triton backend, executed and compiled on a machine without a GPU."""

import importlib.util

import pytest

from tests import shared

if importlib.util.find_spec("triton") is None or importlib.util.find_spec("ttsem") is None:
    collect_ignore_glob = ["test_*.py"]  # the packages of the test environment, see the Makefile


@pytest.fixture(autouse=True)
def poisoned_memory():
    with shared.poisoned_memory():
        yield
