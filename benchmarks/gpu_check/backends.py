"""Other backends than the one that is chosen: checked and timed beside it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.gpu_check.machine import Machine
from fastmtl.ops import use_backend
from fastmtl.ops.selection import BACKENDS, backend_name, unavailable


def _by(backend: str, call: Callable[..., Any], *arguments: Any) -> Any:
    with use_backend(backend):
        return call(*arguments)


def beside(machine: Machine, op: str, dtype: torch.dtype, call: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    """The call of ``op`` by each backend that could run it too, beside the chosen one and the reference."""
    known = {"reference", backend_name(machine.device, op, dtype)}
    others = [name for name in BACKENDS if unavailable(name, machine.device, op, dtype) is None]
    return {name: partial(_by, name, call) for name in others if name not in known}
