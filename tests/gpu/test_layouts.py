"""Layouts are remembered by shapes and strides: what else they depend on must not be."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")
from fastmtl.backends.triton import lists
from fastmtl.backends.triton.layout import layout_of


def at(offset: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """[4, 16], ``offset`` elements after an aligned address."""
    return torch.zeros(64 + offset, dtype=dtype)[offset:].view(4, 16)


def test_alignment_is_looked_at_in_every_call() -> None:
    for offset in (0, 1, 4, 0):
        for tensors in ([at(0), at(offset)], [at(offset), at(0)]):
            layout = layout_of(tensors, by_sample=True)
            assert layout is not None and layout.vector == (offset % 4 == 0)


def test_width_of_the_dtype_counts() -> None:
    views = {dtype: torch.zeros(4, 20, dtype=dtype)[:, :8] for dtype in (torch.float32, torch.bfloat16)}
    for dtype, vector in ((torch.float32, True), (torch.bfloat16, False), (torch.float32, True)):
        layout = layout_of([views[dtype]] * 2, by_sample=False)
        assert layout is not None and layout.vector == vector


def test_samples_are_told_from_positions() -> None:
    tensors = [at(0), at(0)]
    layouts = [layout_of(tensors, by_sample) for by_sample in (False, True, False)]
    assert [layout and layout.sizes for layout in layouts] == [(64,), (16,), (64,)]


@pytest.mark.parametrize("offset", [0, 1])
def test_contiguous_columns_are_flat_runs(offset: int) -> None:
    gradient, total = at(offset), at(0)
    column = lists._column([None, gradient, None], total)
    assert column.layout is None
    assert column.present == (False, True, False)
    assert column.tensors[1] is gradient and column.tensors[0] is total
    assert column.vector == (offset == 0)


def test_columns_of_one_other_layout_are_flat_runs_too() -> None:
    column = lists._column([at(0).T, at(0).T], None)
    assert column.layout is None and column.vector


def test_columns_of_different_layouts_are_not() -> None:
    column = lists._column([at(0), torch.zeros(16, 4).T], None)
    assert column.layout is not None
    assert column.layout.strides[1:] == ((16, 1), (1, 4))
