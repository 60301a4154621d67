"""The C++ backend for CPUs: fused kernels of the compiled library, through torch's stable ABI."""

from __future__ import annotations

import torch


def unavailable(device: torch.device) -> str | None:
    """Why this backend cannot run on ``device``, None where it can."""
    return "not built yet"
