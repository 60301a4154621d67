"""Launches of the products that the moments of layers are made of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastmtl.backends.contract import MAX_TASKS, is_dense, present_of
from fastmtl.backends.triton import configs
from fastmtl.backends.triton.chips import chip_of
from fastmtl.backends.triton.kernels import products as kernels
from fastmtl.backends.triton.launching import OPTIONS, filled, power_of_two, rows_for
from fastmtl.backends.triton.layout import Layout, layout_of, readable, width
from fastmtl.backends.triton.rows import (
    LEAST_ROWS,
    alike,
    columns_of,
    dense_of,
    precision_of,
    rows_of,
    streaming_rows,
    warps_of,
)
from fastmtl.backends.triton.workspace import workspace

FEW_PAIRS = 36  # products that fit the registers beside the tiles: those of `configs.FEW` tasks


def _readable(tensors: Sequence[Tensor], by_sample: bool) -> tuple[list[Tensor], Layout]:
    """The tensors and their layout, positions in the order of memory of a dense one where there is one."""
    if not any(map(is_dense, tensors)):
        layout = layout_of(tensors, by_sample)
        if layout is not None:
            return list(tensors), layout
    (_, *read), layout = readable([dense_of(tensors), *tensors], by_sample)
    return read, Layout(layout.sizes, layout.strides[1:], layout.sample_strides[1:], layout.vector)


def _parts(tensors: Sequence[Tensor | None]) -> list[Sequence[Tensor | None]]:
    """As many at a time as a launch has bits for."""
    return [tensors[first : first + MAX_TASKS] for first in range(0, len(tensors), MAX_TASKS)]


def cross_gram(left: Sequence[Tensor | None], right: Sequence[Tensor | None]) -> Tensor:
    """Inner products of tensors of one shape: [len(left), len(right)]."""
    if len(left) > MAX_TASKS:
        return torch.cat([cross_gram(part, right) for part in _parts(left)])
    if len(right) > MAX_TASKS:
        return torch.cat([cross_gram(left, part) for part in _parts(right)], 1)
    present = present_of([*left, *right])
    if not present_of(left) or not present_of(right):
        return present[0].new_zeros((len(left), len(right)), dtype=torch.float32)
    out = present[0].new_empty((len(left), len(right)), dtype=torch.float32)
    rows, present_left = filled(left)
    columns, present_right = filled(right)
    if len(left) * len(right) <= FEW_PAIRS:
        _cross_gram_few(out, rows, columns, present_left, present_right)
    else:
        _cross_gram_many(out, rows, columns, present_left, present_right)
    return out


def _cross_gram_few(
    out: Tensor, left: Sequence[Tensor], right: Sequence[Tensor], present_left: int, present_right: int
) -> None:
    R, T = out.shape
    tensors, layout = _readable([*left, *right], by_sample=False)
    V = max(width(left[0]), width(right[0]))
    # Groups of V wider than 16 bytes, of the wider dtype, must lie at multiples of V as well.
    vector = layout.vector and all(stride % V == 0 for own in layout.strides for stride in own[:-1])
    chip = chip_of(out.device)
    WIDTH = max(2, power_of_two(R * T))
    threads = 4 * chip.warp_size
    registers = 64 + R * T + 3 * V * min(R + T, configs.FEW)
    config = configs.streaming(chip, R + T, -(-layout.positions // (threads * V)), registers)
    partials, tickets = workspace(out.device, config.programs.partials(WIDTH))
    kernels.cross_gram_few[(config.programs.count,)](
        tuple(tensors[:R]),
        tuple(tensors[R:]),
        out,
        partials,
        tickets,
        present_left,
        present_right,
        layout.positions,
        config.programs.count,
        config.programs.group,
        layout.sizes,
        layout.strides[:R],
        layout.strides[R:],
        R=R,
        T=T,
        RANK=layout.rank,
        N=config.rows,
        V=V,
        VECTOR=vector,
        WIDTH=WIDTH,
        ROWS=rows_for(WIDTH),
        **config.options,
        **OPTIONS,
    )


def _cross_gram_many(
    out: Tensor, left: Sequence[Tensor], right: Sequence[Tensor], present_left: int, present_right: int
) -> None:
    R, T = out.shape
    (left, right), layout = alike((left, right), by_sample=False)
    V = max(width(left[0]), width(right[0]))
    vector = layout.vector and all(stride % V == 0 for own in layout.strides for stride in own[:-1])
    chip = chip_of(out.device)
    LEFT, RIGHT = rows_of(R), rows_of(T)
    K = columns_of((left[0], right[0]))
    if left[0].dtype != right[0].dtype and min(LEFT, RIGHT) > LEAST_ROWS:
        K = 32  # wider tiles in float32 would spill
    tile_bytes = K * (R * left[0].element_size() + T * right[0].element_size())
    config = streaming_rows(chip, K, warps_of(max(LEFT, RIGHT)), tile_bytes, -(-layout.positions // K), 128)
    partials, tickets = workspace(out.device, config.programs.partials(LEFT * RIGHT))
    kernels.cross_gram_many[(config.programs.count,)](
        tuple(left),
        tuple(right),
        out,
        partials,
        tickets,
        present_left,
        present_right,
        layout.positions,
        config.programs.count,
        config.programs.group,
        layout.sizes,
        layout.strides[0],
        layout.strides[1],
        R=R,
        T=T,
        LEFT=LEFT,
        RIGHT=RIGHT,
        RANK=layout.rank,
        K=K,
        V=V,
        VECTOR=vector,
        ROWS=config.rows_for(LEFT * RIGHT),
        PRECISION=precision_of(chip),
        **config.options,
        **OPTIONS,
    )


def sample_gram(grads: Sequence[Tensor | None], weights: Tensor) -> Tensor:
    """sum_b weights_b <g_kb, g_jb> of T gradients [B, ...]."""
    tensors, present = filled(grads)
    out = weights.new_empty((len(grads), len(grads)), dtype=torch.float32)
    if len(grads) <= configs.FEW:
        _sample_gram_few(out, tensors, weights.contiguous(), present)
    else:
        _sample_gram_many(out, tensors, weights.contiguous(), present)
    return out


def _sample_gram_few(out: Tensor, grads: Sequence[Tensor], weights: Tensor, present: int) -> None:
    T, batch = len(grads), weights.numel()
    tensors, layout = _readable(grads, by_sample=True)
    V = width(tensors[0])
    chip = chip_of(out.device)
    pairs = T * (T + 1) // 2
    WIDTH = max(2, power_of_two(pairs))
    threads = 4 * chip.warp_size
    # Small samples share a block: all threads have something to read.
    G = min(threads, power_of_two(-(-layout.positions // V)))
    blocks = -(-batch // (threads // G)) * -(-layout.positions // (G * V))
    config = configs.streaming(chip, T, blocks, 40 + 3 * V * T + pairs)
    partials, tickets = workspace(out.device, config.programs.partials(WIDTH))
    kernels.sample_gram_few[(config.programs.count,)](
        tuple(tensors),
        weights,
        out,
        partials,
        tickets,
        present,
        batch,
        layout.positions,
        config.programs.count,
        config.programs.group,
        layout.sizes,
        layout.strides,
        layout.sample_strides,
        T=T,
        RANK=layout.rank,
        N=config.rows,
        G=G,
        V=V,
        VECTOR=layout.vector,
        WIDTH=WIDTH,
        ROWS=rows_for(WIDTH),
        **config.options,
        **OPTIONS,
    )


def _sample_gram_many(out: Tensor, grads: Sequence[Tensor], weights: Tensor, present: int) -> None:
    T, batch = len(grads), weights.numel()
    (tensors,), layout = alike((grads,), by_sample=True)
    V = width(tensors[0])
    chip = chip_of(out.device)
    TASKS = rows_of(T)
    K = columns_of(tensors)
    if layout.positions <= 32:
        K = 32  # small samples share a tile, in float32: a wider one would spill
    P = min(K, power_of_two(-(-layout.positions // V)) * V)
    tiles = -(-batch // (K // P)) * -(-layout.positions // P)
    config = streaming_rows(chip, K, warps_of(TASKS), K * T * tensors[0].element_size(), tiles, 128)
    partials, tickets = workspace(out.device, config.programs.partials(TASKS * TASKS))
    kernels.sample_gram_many[(config.programs.count,)](
        tuple(tensors),
        weights,
        out,
        partials,
        tickets,
        present,
        batch,
        layout.positions,
        config.programs.count,
        config.programs.group,
        layout.sizes,
        layout.strides[0],
        layout.sample_strides[0],
        T=T,
        TASKS=TASKS,
        RANK=layout.rank,
        K=K,
        P=P,
        V=V,
        VECTOR=layout.vector,
        ROWS=config.rows_for(TASKS * TASKS),
        PRECISION=precision_of(chip),
        **config.options,
        **OPTIONS,
    )
