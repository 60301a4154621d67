"""The Triton backend, executed and compiled on a machine without a GPU."""

import importlib.util

import pytest

if importlib.util.find_spec("triton") is None or importlib.util.find_spec("ttsem") is None:
    collect_ignore_glob = ["test_*.py"]  # the packages of the test environment, see the Makefile
else:
    from tests.gpu import executing

    @pytest.fixture(autouse=True)
    def poisoned_memory():
        with executing.poisoned_memory():
            yield

    @pytest.fixture(autouse=True)
    def registered(monkeypatch):
        monkeypatch.setattr(executing.testing, "BACKENDS", {**executing.testing.BACKENDS, "triton": executing.backend})
