"""Launches of the ops over lists of columns: T tensors each, of any length, many columns a launch."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmtl.backends.contract import columns, empty_total, is_dense, present_of
from fastmtl.backends.triton import configs, list_configs
from fastmtl.backends.triton.chips import chip_of
from fastmtl.backends.triton.kernels import lists as kernels
from fastmtl.backends.triton.kernels import lists_many
from fastmtl.backends.triton.launching import OPTIONS, power_of_two, rows_for
from fastmtl.backends.triton.layout import Layout, aligned, as_first, layout_of, width
from fastmtl.backends.triton.rows import precision_of
from fastmtl.backends.triton.workspace import workspace


class _Column(NamedTuple):
    """T tensors of one shape, and where their sum goes; ``layout`` is None where all of them are one flat run alike."""

    tensors: tuple[Tensor, ...]
    present: tuple[bool, ...]
    out: Tensor | None
    layout: Layout | None
    vector: bool


def _layout(tensors: Sequence[Tensor]) -> tuple[Layout | None, bool]:
    """None for flat runs alike, and whether 16 bytes can be read at once everywhere.

    Raises:
        ValueError: the index arithmetic cannot follow.
    """
    first = tensors[0]
    if is_dense(first) and all(tensor.stride() == first.stride() for tensor in tensors):
        return None, _in_vectors(tensors)
    layout = layout_of(tensors, by_sample=False)
    if layout is None:
        raise ValueError("more dimensions than the kernels follow")
    return (None if layout.rank == 1 and all(own == (1,) for own in layout.strides) else layout), layout.vector


def _in_vectors(tensors: Sequence[Tensor]) -> bool:
    """Whether flat runs are whole groups of 16 bytes."""
    first = tensors[0]
    return first.numel() % width(first) == 0 and all(map(aligned, tensors))


def _column(given: Sequence[Tensor | None], out: Tensor | None) -> _Column:
    """A column as the kernels take it: copies only where the index arithmetic cannot follow the strides."""
    here = present_of(given)
    arrived = tuple([tensor is not None for tensor in given])
    # The usual case first, in few steps: with hundreds of tensors they are most of a call.
    pointers = here if out is None else [out, *here]
    if all(map(Tensor.is_contiguous, pointers)):
        stand_in = pointers[0]
        tensors = here if len(here) == len(given) else [stand_in if tensor is None else tensor for tensor in given]
        return _Column(tuple(tensors), arrived, out, None, _in_vectors(pointers))
    # The first decides in which order positions are read.
    first = out if out is not None else next((tensor for tensor in here if is_dense(tensor)), here[0])
    tensors = [first if tensor is None else tensor for tensor in given]
    try:
        layout, vector = _layout([first, *tensors])
    except ValueError:
        if not is_dense(first):
            first = torch.empty_like(first, memory_format=torch.contiguous_format)
        tensors = [first if tensor is None else as_first(first, tensor) for tensor in given]
        out = None if out is None else first
        layout, vector = _layout([first, *tensors])
    return _Column(tuple(tensors), arrived, out, layout, vector)


@functools.lru_cache(maxsize=1024)
def _words(present: tuple[bool, ...]) -> tuple[int, ...]:
    bits = sum(1 << k for k, here in enumerate(present) if here)
    size, tasks = kernels.WORD.value, len(present)
    parts = ((bits >> shift) % (1 << size) for shift in range(0, tasks, size))
    return tuple(2 * part + 1 - (1 << 31) for part in parts)


@dataclass(frozen=True)
class _Group:
    """The columns of one launch, as arguments of the kernels."""

    columns: list[_Column]
    G: int

    @property
    def like(self) -> Tensor:
        """Any of the tensors."""
        return self.columns[0].tensors[0]

    @property
    def tensors(self) -> tuple[tuple[Tensor, ...], ...]:
        """G tuples of T tensors, the first column again in the places that are left."""
        return self._padded([column.tensors for column in self.columns])

    @property
    def outs(self) -> tuple[Tensor | None, ...]:
        """G tensors."""
        return self._padded([column.out for column in self.columns])

    @property
    def present(self) -> tuple[tuple[int, ...], ...]:
        """G tuples of words: 30 bits between two that are set, see `kernels.lists`."""
        return self._padded([_words(column.present) for column in self.columns])

    def _padded(self, values: list[Any]) -> tuple[Any, ...]:
        return tuple(values + values[:1] * (self.G - len(values)))

    def blocks(self, size: int) -> tuple[tuple[int, ...], tuple[int, ...], int]:
        """For blocks of ``size`` positions: ``ends`` and ``tails`` as the kernels take them, and how many there are."""
        ends, tails, count = [], [], 0
        for column in self.columns:
            positions = column.tensors[0].numel()
            blocks = -(-positions // size)
            count += blocks
            ends.append(2 * count + 1)
            tails.append(2 * (positions - (blocks - 1) * size) + 1)
        ends += ends[-1:] * (self.G - len(ends))
        return tuple(ends), self._padded(tails), count

    @property
    def geometry(self) -> dict[str, Any]:
        """Arguments that say where positions lie."""
        column = self.columns[0]
        tasks = len(column.tensors)
        known = {"T": tasks, "G": self.G, "VECTOR": column.vector}
        if column.layout is None:
            return {"sizes": (1,), "strides": ((1,),) * tasks, "RANK": 0} | known
        return {"sizes": column.layout.sizes, "strides": column.layout.strides[1:], "RANK": column.layout.rank} | known


def _groups(given: Sequence[_Column]) -> Iterator[_Group]:
    """Columns that one launch can take: of one dtype, aligned alike; those with strides of their own one by one.

    The alignment of every pointer is part of what a kernel is compiled for.
    """
    alike: dict[tuple[torch.dtype, bool, tuple[bool, ...]], list[_Column]] = {}
    for column in given:
        if column.tensors[0].numel() == 0:
            continue
        if column.layout is not None:
            yield _Group([column], 1)
        else:
            pointers = column.tensors if column.out is None else (*column.tensors, column.out)
            alignment = () if column.vector else tuple(aligned(tensor) for tensor in pointers)
            alike.setdefault((column.tensors[0].dtype, column.vector, alignment), []).append(column)
    for members in alike.values():
        most = list_configs.columns_of_launch(len(members[0].tensors))
        for start in range(0, len(members), most):
            group = members[start : start + most]
            # Two variants, no more: one column, or as many as there can be.
            yield _Group(group, 1 if len(group) == 1 else most)


def _measured(tensors: Sequence[Tensor | None], tasks: int) -> list[_Group]:
    """The launches of a statistic: columns without any gradient add nothing to it."""
    return list(_groups([_column(column, None) for column in columns(tensors, tasks) if present_of(column)]))


def gram(tensors: Sequence[Tensor | None], tasks: int) -> Tensor:
    """Inner products of the T gradients, each a list of N tensors."""
    result = present_of(tensors)[0].new_empty((tasks, tasks), dtype=torch.float32)
    launch = _gram_few if tasks <= configs.FEW_PAIRS else _gram_many
    return _added(launch, _measured(tensors, tasks), result)


def squared_norms(tensors: Sequence[Tensor | None], tasks: int) -> Tensor:
    """Squared norms of the T gradients, each a list of N tensors."""
    result = present_of(tensors)[0].new_empty(tasks, dtype=torch.float32)
    return _added(_squared_norms, _measured(tensors, tasks), result)


def _added(launch: Any, groups: list[_Group], result: Tensor) -> Tensor:
    """The sum over the launches: each adds its own to what those before it left."""
    if not groups:
        return result.zero_()
    for index, group in enumerate(groups):
        launch(group, result, index > 0)
    return result


def _gram_few(group: _Group, result: Tensor, accumulate: bool) -> None:
    tasks = result.shape[0]
    width_of_row = max(2, power_of_two(tasks * (tasks + 1) // 2))
    V = configs.lanes_of_pairs(chip_of(result.device), tasks, width(group.like))
    registers = max(configs.LEAST_REGISTERS, configs.pairs_registers(tasks, V))
    _few(kernels.gram_few, group, result, accumulate, V, width_of_row, registers)


def _squared_norms(group: _Group, result: Tensor, accumulate: bool) -> None:
    tasks = result.shape[0]
    width_of_row = max(2, power_of_two(tasks))
    registers = list_configs.norms_registers(tasks)
    C = list_configs.chunk_of(tasks)
    _few(kernels.squared_norms, group, result, accumulate, width(group.like), width_of_row, registers, C=C)


def _few(
    kernel: Any,
    group: _Group,
    result: Tensor,
    accumulate: bool,
    V: int,
    WIDTH: int,
    registers: int,
    **constants: int,
) -> None:
    chip = chip_of(result.device)
    ends, tails, blocks = group.blocks(configs.WARPS * chip.warp_size * V)
    config = configs.streaming(chip, result.shape[0], blocks, registers, V * group.like.element_size())
    partials, tickets = workspace(result.device, config.programs.partials(WIDTH))
    kernel[(config.programs.count,)](
        group.tensors,
        result,
        partials,
        tickets,
        group.present,
        ends,
        tails,
        int(accumulate),
        config.programs.count,
        config.programs.group,
        blocks,
        **group.geometry,
        N=config.rows,
        V=V,
        WIDTH=WIDTH,
        ROWS=rows_for(WIDTH),
        **constants,
        **config.options,
        **OPTIONS,
    )


def _gram_many(group: _Group, result: Tensor, accumulate: bool) -> None:
    chip, tasks, itemsize = chip_of(result.device), result.shape[0], group.like.element_size()
    tiles = list_configs.gram_tiles(chip, tasks, itemsize)
    ends, tails, blocks = group.blocks(tiles.positions)
    programs = list_configs.gram_programs(chip, tasks, itemsize, tiles, blocks)
    partials, tickets = workspace(result.device, programs.partials(tiles.partial))
    lists_many.gram_many[(programs.count,)](
        group.tensors,
        result,
        partials,
        tickets,
        group.present,
        ends,
        tails,
        int(accumulate),
        programs.count,
        programs.group,
        blocks,
        **group.geometry,
        R=tiles.rows,
        TILES=tiles.count,
        K=tiles.positions,
        V=width(group.like),
        ROWS=rows_for(tiles.rows**2),
        PRECISION=precision_of(chip),
        **tiles.options,
        **OPTIONS,
    )


def weighted_sum(tensors: Sequence[Tensor | None], tasks: int, weights: Tensor) -> list[Tensor]:
    """sum_k w_k g_k of T gradients, each a list of N tensors; N tensors."""
    out = [empty_total(column) for column in columns(tensors, tasks)]
    weighted_sum_out(tensors, tasks, weights, out)
    return out


def weighted_sum_out(tensors: Sequence[Tensor | None], tasks: int, weights: Tensor, out: Sequence[Tensor]) -> None:
    """As `weighted_sum`, into ``out``, which may be one of the gradients."""
    given = [_column(column, total) for column, total in zip(columns(tensors, tasks), out, strict=True)]
    for group in _groups(given):
        _weighted_sum(group, weights)
    for column, total in zip(given, out, strict=True):
        if column.out is not total:
            assert column.out is not None
            total.copy_(column.out)


def _weighted_sum(group: _Group, weights: Tensor) -> None:
    chip, tasks, layout = chip_of(weights.device), weights.shape[0], group.columns[0].layout
    V = width(group.like)
    ends, tails, blocks = group.blocks(configs.WARPS * chip.warp_size * V)
    chunk = list_configs.chunk_of(tasks)
    config = configs.streaming(chip, chunk, blocks, list_configs.sum_registers(tasks))
    kernels.weighted_sum[(config.programs.count,)](
        group.tensors,
        group.outs,
        weights,
        weights.stride(0),
        group.present,
        ends,
        tails,
        config.programs.count,
        blocks,
        out_strides=(1,) if layout is None else layout.strides[0],
        **group.geometry,
        C=chunk,
        N=config.rows,
        V=V,
        **config.options,
        **OPTIONS,
    )
