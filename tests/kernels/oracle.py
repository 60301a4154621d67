"""What tests of the C++ backend share: gradients, their layouts, and the float64 oracle's tolerance."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from fastmtl.backends import cpp

CPU = torch.device("cpu")
MARKS = [
    pytest.mark.skipif(cpp.unavailable(CPU) is not None, reason=str(cpp.unavailable(CPU))),
    pytest.mark.usefixtures("uninitialised_memory_is_nan"),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]

LAYOUTS = {
    "channels_last": lambda g: g.contiguous(memory_format=torch.channels_last),
    "transposed": lambda g: g.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
    "batch_innermost": lambda g: g.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    "sliced": lambda g: torch.stack([g, g + 1], -1)[..., 0],
    "rows_sliced": lambda g: torch.cat([g, g], -1)[..., : g.shape[-1]],
    "samples_sliced": lambda g: torch.stack([g, g], 1)[:, 0],
    "expanded": lambda g: g[:1, :, :1, :1].expand_as(g),
    "expanded_samples": lambda g: g[:1].expand_as(g),
    "offset": lambda g: torch.cat([g.new_zeros(1), g.flatten()])[1:].view_as(g),
    "contiguous": lambda g: g,
}


def random_grads(tasks: int, shape: Sequence[int], dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return [
        ((k + 1) * (shared + torch.randn(*shape, generator=generator, dtype=torch.float64))).to(dtype)
        for k in range(tasks)
    ]


def wide_of(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    return [None if t is None else t.double() for t in tensors]


def check_statistics(got: Tensor, exact: Tensor, dtype: torch.dtype, relative: float = 5e-7) -> None:
    """Within rounding of products of norms: the scale on which a dot product can be exact."""
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    diagonal = exact.diagonal().sqrt() if exact.dim() == 2 else exact.sqrt()
    scale = diagonal[:, None] * diagonal if exact.dim() == 2 else exact
    tolerance = 1e-13 if dtype == torch.float64 else relative
    error = (got.double() - exact).abs()
    assert (error <= tolerance * scale).all(), (error / scale).max()


def tolerance_of(*layouts: str) -> float:
    """Equal numbers are all rounded the same way, by more where sums have fewer lanes."""
    return 3e-6 if any("expanded" in layout for layout in layouts) else 5e-7
