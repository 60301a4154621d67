"""``python -m fastmtl``: what it says, and its exit status."""

import torch

from fastmtl import __main__ as main
from fastmtl import testing
from fastmtl.ops import selection


class Wrong:
    """A backend whose every result is off."""

    @staticmethod
    def unavailable(device, dtype=None):
        return None

    def __getattr__(self, op):
        def call(*arguments):
            for argument in arguments:
                if isinstance(argument, torch.Tensor) and argument.is_floating_point():
                    argument.add_(1)
            results = getattr(selection.BACKENDS["reference"], op)(*arguments)
            return testing.map_tensors(lambda tensor: tensor + 1, results)

        return call


def few(monkeypatch):
    cases = [case for case in testing.cases() if case.name.startswith("T3") and case.dtype == torch.float32]
    monkeypatch.setattr(testing, "cases", lambda: iter(cases))


def test_it_names_versions_and_backends_and_succeeds(monkeypatch, capsys):
    few(monkeypatch)
    assert main.main() == 0
    said = capsys.readouterr().out
    assert torch.__version__ in said
    for name in selection.BACKENDS:
        assert f"\n  {name}" in said
    assert "every op agrees with the reference" in said


def test_a_wrong_op_fails(monkeypatch, capsys):
    few(monkeypatch)
    monkeypatch.setitem(selection.BACKENDS, "wrong", Wrong())
    assert main.main() == 1
    assert "FAILED" in capsys.readouterr().out


def test_it_says_why_a_backend_is_missing(monkeypatch, capsys):
    few(monkeypatch)
    monkeypatch.setattr(selection.BACKENDS["cpp"], "unavailable", lambda device, dtype=None: "there is no compiler")
    selection._select.cache_clear()
    try:
        assert main.main() == 0
    finally:
        selection._select.cache_clear()
    assert "cpp        not available: there is no compiler" in capsys.readouterr().out
