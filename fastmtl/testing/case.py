"""One call of one op, and how it went."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """One call of one op."""

    op: str
    name: str
    dtype: torch.dtype
    make: Callable[[torch.Generator], list[Any]] = field(repr=False)

    def arguments(self, device: torch.device, draw: int = 0) -> list[Any]:
        """The arguments on ``device``, the same at every call; other numbers for each ``draw``."""
        return map_tensors(lambda tensor: _moved(tensor, device), self.make(torch.Generator().manual_seed(draw)))

    def __str__(self) -> str:
        return f"{self.op}-{self.name}-{str(self.dtype).removeprefix('torch.')}"


@dataclass(frozen=True)
class Outcome:
    """How one case went; ``error`` is in units of the tolerance and passes up to 1."""

    case: Case
    backend: str
    error: float

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance; NaN is not."""
        return self.error <= 1


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    if tensor.device == device:
        return tensor
    storage = tensor.untyped_storage().to(device=device)  # keeps strides, overlaps and offset
    return torch.empty(0, dtype=tensor.dtype, device=device).set_(
        storage, tensor.storage_offset(), tensor.shape, tensor.stride()
    )


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """``value`` with every tensor in nested lists replaced."""
    if isinstance(value, Tensor):
        return function(value)
    return [map_tensors(function, item) for item in value] if isinstance(value, (list, tuple)) else value


def randn(generator: torch.Generator, shape: Sequence[int], dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    """Normal numbers, formed in float64."""
    return (torch.randn(*shape, generator=generator, dtype=torch.float64) * scale).to(dtype)
