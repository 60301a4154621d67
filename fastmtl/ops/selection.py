"""Which backend runs an op on a device, and why. One predicate both chooses and explains."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from types import ModuleType

import torch

from fastmtl.backends import cpp, cuda, reference, triton

BACKENDS: dict[str, ModuleType] = {"cpp": cpp, "triton": triton, "cuda": cuda, "reference": reference}
PREFERENCE: dict[str, tuple[str, ...]] = {
    "cpu": ("cpp", "reference"),
    "cuda": ("triton", "cuda", "reference"),  # ROCm too
    "xpu": ("triton", "reference"),
}
ANYWHERE = ("reference",)

# One setting for the process, not for the thread: autograd runs the backward of accelerators in threads of its own.
_forced: list[str] = []


def _known(name: str, origin: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{origin}: expected one of {', '.join(BACKENDS)}, got {name!r}")
    return name


def unavailable(name: str, device: torch.device, op: str | None = None, dtype: torch.dtype | None = None) -> str | None:
    """Why backend ``name`` cannot run (``op``) on ``device`` (on gradients of ``dtype``); None where it can."""
    backend = BACKENDS[name]
    reason: str | None = backend.unavailable(device, dtype)
    if reason is None and op is not None and not hasattr(backend, op):
        reason = f"it does not implement {op}"
    return reason


def _forced_backend() -> tuple[str, str] | None:
    if _forced:
        return _forced[-1], "use_backend"
    name = os.environ.get("FASTMTL_BACKEND")
    return (_known(name, "FASTMTL_BACKEND"), "FASTMTL_BACKEND") if name else None


@functools.cache
def _select(device_type: str, op: str, dtype: torch.dtype | None, forced: tuple[str, str] | None) -> ModuleType:
    device = torch.device(device_type)
    if forced is not None:
        name, origin = forced
        reason = unavailable(name, device, op, dtype)
        if reason is not None:
            raise RuntimeError(f"{origin} forces backend {name!r}, which cannot run {op} on {device_type}: {reason}")
        return BACKENDS[name]
    for name in PREFERENCE.get(device_type, ANYWHERE):
        if unavailable(name, device, op, dtype) is None:
            return BACKENDS[name]
    raise AssertionError("the reference backend runs everywhere")


def backend_for(device: torch.device, op: str, dtype: torch.dtype | None = None) -> ModuleType:
    """The backend that runs ``op`` on ``device``: the forced one, else the first of the device's preference that can.

    ``dtype`` is that of the gradients, None for any.

    Raises:
        RuntimeError: the forced backend cannot run here, with the reason.
    """
    return _select(device.type, op, dtype, _forced_backend())


def backend_name(device: torch.device, op: str, dtype: torch.dtype | None = None) -> str:
    """The name of the backend that runs ``op`` on ``device``."""
    chosen = backend_for(device, op, dtype)
    return next(name for name, backend in BACKENDS.items() if backend is chosen)


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Force one backend for the ops of this process while inside; wins over the environment variable ``FASTMTL_BACKEND``.

    Args:
        name: ``"cpp"``, ``"triton"``, ``"cuda"`` or ``"reference"``.

    Raises:
        ValueError: no such backend.
        RuntimeError: at the first op that the backend cannot run, with the reason.
    """
    _forced.append(_known(name, "use_backend"))
    try:
        yield
    finally:
        _forced.pop()
