"""Launches with many tensors as the rows of tiles: their layouts and configurations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from fastmtl.backends.contract import is_dense
from fastmtl.backends.triton.chips import Chip
from fastmtl.backends.triton.configs import filling, resident
from fastmtl.backends.triton.launching import Programs, power_of_two
from fastmtl.backends.triton.layout import Layout, as_first, layout_of

LEAST_ROWS = 16  # of a product on tensor cores


@dataclass(frozen=True)
class RowConfig:
    """Tiles of ``columns`` positions of every tensor, and the programs that share them."""

    columns: int
    warps: int
    programs: Programs
    stages: int  # 1: other programs of the processor load meanwhile

    @property
    def options(self) -> dict[str, int]:
        """For the launch."""
        return {"num_warps": self.warps, "num_stages": self.stages}

    def rows_for(self, width: int) -> int:
        """Rows of partial results that are read at a time: at most 16 numbers a thread, where a row is no longer."""
        return max(1, 512 * self.warps // width)


def rows_of(count: int) -> int:
    """Rows of the tile of ``count`` tensors."""
    return max(LEAST_ROWS, power_of_two(count))


def columns_of(tensors: Sequence[Tensor]) -> int:
    """Positions of a tile: 128 bytes of the tensors with the most positions in them, a line of the cache.

    At most 64: a longer product on tensor cores, which truncate, would not be as exact as float32.
    """
    return max(128 // tensor.element_size() for tensor in tensors)


def streaming_rows(
    chip: Chip,
    columns: int,
    warps: int,
    tile_bytes: int,
    tiles: int,
    registers: int,
    stages: int = 1,
    units: int | None = None,
) -> RowConfig:
    """Programs that read row tiles, as `configs.streaming`.

    Partial results are as large as one or two tiles: a program has at least four tiles, and it takes whole ``units``.
    """
    # No processor holds more than 16 of these by their memory.
    a_processor = min(resident(chip, registers, warps), 16, filling(chip, tile_bytes))
    most = min(-(-tiles // 4), tiles if units is None else units)
    return RowConfig(columns, warps, Programs(max(1, min(most, chip.processors * a_processor))), stages)


def warps_of(rows: int) -> int:
    """A warp for each 16 rows, as the products on tensor cores have it."""
    return rows // LEAST_ROWS


def precision_of(chip: Chip) -> str:
    """How float32 products are formed: in three parts by tensor cores, or plainly where AMD's have none as exact."""
    return "ieee" if torch.version.hip or chip.warp_size != 32 else "tf32x3"


def dense_of(tensors: Sequence[Tensor]) -> Tensor:
    """A dense tensor whose layout others can be copied to: one of these, a copy where none is dense."""
    for tensor in tensors:
        if is_dense(tensor):
            return tensor
    return tensors[0].contiguous()


def _alike(tensors: Sequence[Tensor], by_sample: bool) -> list[Tensor]:
    """The tensors in one layout that the index arithmetic can follow; those that differ are copied."""
    layout = layout_of(tensors, by_sample)
    if layout is not None and len({*zip(layout.strides, layout.sample_strides, strict=True)}) == 1:
        return list(tensors)
    first = dense_of(tensors)
    return [as_first(first, tensor) for tensor in tensors]


def alike(lists: Sequence[Sequence[Tensor]], by_sample: bool) -> tuple[list[list[Tensor]], Layout]:
    """Lists of tensors with one layout for each list; ``strides[n]`` of the layout are those of list n."""
    given = [_alike(tensors, by_sample) for tensors in lists]
    layout = layout_of([*chain.from_iterable(given)], by_sample)
    if layout is None:
        first = dense_of([*chain.from_iterable(given)])
        given = [[as_first(first, tensor) for tensor in tensors] for tensors in given]
        layout = layout_of([*chain.from_iterable(given)], by_sample)
        assert layout is not None, "tensors that lie alike have one dimension"
    starts = [sum(map(len, given[:n])) for n in range(len(given))]
    strides = tuple(layout.strides[start] for start in starts)
    return given, Layout(layout.sizes, strides, tuple(layout.sample_strides[start] for start in starts), layout.vector)
