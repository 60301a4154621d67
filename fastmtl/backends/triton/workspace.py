"""Memory for partial results: one buffer a stream, cached, so that calls allocate nothing but their outputs."""

from __future__ import annotations

import torch
from torch import Tensor

# Tickets (see `kernels.finish`) are zero between launches: each launch leaves them as it found them.
TICKETS = 4096

_cache: dict[tuple[torch.device, int], tuple[Tensor, Tensor]] = {}


def _made(device: torch.device, numbers: int) -> tuple[Tensor, Tensor]:
    return (
        torch.empty(numbers, dtype=torch.float32, device=device),
        torch.zeros(TICKETS, dtype=torch.int32, device=device),
    )


def workspace(device: torch.device, numbers: int) -> tuple[Tensor, Tensor]:
    """At least ``numbers`` float32, uninitialised, and `TICKETS` zeros, for launches on the current stream.

    Launches of one stream run one after another, so they share one buffer. A graph that is being captured gets memory of
    its own, from its own pool: it may be replayed on any stream.
    """
    if device.type != "cuda":
        return _made(device, numbers)
    if torch.cuda.is_current_stream_capturing():
        return _made(device, numbers)
    key = (device, torch.cuda.current_stream(device).cuda_stream)
    held = _cache.get(key)
    if held is None or held[0].numel() < numbers:
        # A buffer that is replaced is freed in stream order: launches that still use it are safe.
        held = _cache[key] = _made(device, max(1 << (numbers - 1).bit_length(), 1 << 16))
    return held
