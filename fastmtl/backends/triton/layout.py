"""How T tensors of one shape lie in memory, as few dimensions as possible: what the kernels' index arithmetic needs."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

MAX_RANK = 4  # of what is left after merging; five-dimensional activations without their samples have four


@dataclass(frozen=True)
class Layout:
    """Positions as merged dimensions, outermost first; ``strides[k]`` are those of tensor k, in elements.

    ``vector``: 16 bytes can be read at once everywhere: positions come in aligned groups of 16 bytes, in all tensors.
    """

    sizes: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    sample_strides: tuple[int, ...]
    vector: bool

    @property
    def rank(self) -> int:
        """The number of merged dimensions, at least 1."""
        return len(self.sizes)

    @property
    def positions(self) -> int:
        """The number of positions."""
        count = 1
        for size in self.sizes:
            count *= size
        return count


def width(tensor: Tensor) -> int:
    """Elements in 16 bytes."""
    return 16 // tensor.element_size()


def aligned(tensor: Tensor) -> bool:
    """Whether 16 bytes can be read at once from the first element on."""
    return tensor.data_ptr() % 16 == 0


def merged(
    sizes: Sequence[int], strides: Sequence[Sequence[int]], order: Sequence[int]
) -> tuple[list[int], list[list[int]]]:
    """Dimensions in ``order``, neighbours joined where they are one run in every tensor; strides by dimension."""
    merged_sizes: list[int] = []
    merged_strides: list[list[int]] = []
    for dim in order:
        own = [stride[dim] for stride in strides]
        if merged_sizes and all(outer == s * sizes[dim] for outer, s in zip(merged_strides[-1], own, strict=True)):
            merged_sizes[-1] *= sizes[dim]
            merged_strides[-1] = own
        else:
            merged_sizes.append(sizes[dim])
            merged_strides.append(own)
    return merged_sizes or [1], merged_strides or [[1] * len(strides)]


def layout_of(tensors: Sequence[Tensor], by_sample: bool) -> Layout | None:
    """The layout of tensors of one shape, positions in the order of memory of the first; None where `MAX_RANK` is too small.

    Args:
        tensors: those that are written first, then those that are read.
        by_sample: whether dimension 0 is that of the samples and not of the positions.
    """
    first = tensors[0]
    strides = tuple([tensor.stride() for tensor in tensors])
    widths = tuple([width(tensor) for tensor in tensors])
    layout = _layout(tuple(first.shape), strides, widths, by_sample)
    if layout is None or not layout.vector or all(map(aligned, tensors)):
        return layout
    return replace(layout, vector=False)


@functools.lru_cache(maxsize=1024)
def _layout(
    shape: tuple[int, ...], strides: tuple[tuple[int, ...], ...], widths: tuple[int, ...], by_sample: bool
) -> Layout | None:
    """As `layout_of`, of aligned tensors with ``widths`` elements in 16 bytes. Remembered: shapes come back at each step."""
    start = 1 if by_sample else 0
    dims = [dim for dim in range(start, len(shape)) if shape[dim] != 1]
    # Stable: equal strides stay in the order of dimensions.
    order = sorted(dims, key=strides[0].__getitem__, reverse=True)
    sizes, merged_strides = merged(shape, strides, order)
    if len(sizes) > MAX_RANK:
        return None
    by_tensor = tuple(tuple(dim[k] for dim in merged_strides) for k in range(len(strides)))
    samples = tuple(stride[0] if by_sample and stride else 0 for stride in strides)
    vector = all(
        sizes[-1] % wide == 0 and own[-1] == 1 and all(stride % wide == 0 for stride in (*own[:-1], sample))
        for wide, own, sample in zip(widths, by_tensor, samples, strict=True)
    )
    return Layout(tuple(sizes), by_tensor, samples, vector)


def readable(tensors: Sequence[Tensor], by_sample: bool) -> tuple[list[Tensor], Layout]:
    """The tensors and their layout; those that the index arithmetic cannot follow are copied to that of the first.

    The first tensor decides the order of positions and must be dense.
    """
    layout = layout_of(tensors, by_sample)
    if layout is not None:
        return list(tensors), layout
    first = tensors[0]
    copied = [first, *(as_first(first, tensor) for tensor in tensors[1:])]
    layout = layout_of(copied, by_sample)
    assert layout is not None, "tensors that lie alike have one dimension"
    return copied, layout


def as_first(first: Tensor, tensor: Tensor) -> Tensor:
    """``tensor``, laid out as ``first``: itself where it is so already."""
    return (
        tensor
        if tensor.stride() == first.stride()
        else tensor.new_empty_strided(first.shape, first.stride()).copy_(tensor)  # in a dtype of its own
    )
