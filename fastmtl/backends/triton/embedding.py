"""Launches of the moments of embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastmtl.backends.contract import present_of
from fastmtl.backends.triton import small_layer_configs
from fastmtl.backends.triton.chips import chip_of
from fastmtl.backends.triton.composed import COMPOSED
from fastmtl.backends.triton.configs import FEW
from fastmtl.backends.triton.kernels import embedding as kernels
from fastmtl.backends.triton.launching import OPTIONS, filled, power_of_two, rows_for
from fastmtl.backends.triton.layout import MAX_RANK, aligned, merged, width
from fastmtl.backends.triton.workspace import workspace


def embedding_moments(
    indices: Tensor, grads: Sequence[Tensor | None], padding_idx: int | None, per_sample: bool, way: str
) -> tuple[Tensor, Tensor]:
    """M and Q of an embedding's weight.

    "form", and "auto" for up to `FEW` tasks: one sort of the indices and two launches, which read each gradient once,
    whatever the number of repeated indices. Otherwise the ways of all backends.
    """
    like = present_of(grads)[0]
    if len(grads) > FEW or way == "pairs" or like.numel() == 0:
        return COMPOSED.embedding_moments(indices, grads, padding_idx, per_sample, way)
    tasks, batch, rows, columns = len(grads), indices.shape[0], indices.numel(), like.shape[-1]
    tensors, present = filled(grads)
    sizes, strides = merged(like.shape, [tensor.stride() for tensor in tensors], _leading(like))
    if len(sizes) > MAX_RANK:
        tensors = [tensor.contiguous() for tensor in tensors]
        sizes, strides = merged(like.shape, [tensor.stride() for tensor in tensors], _leading(like))
    # Equal indices keep the order of their positions, so those of one sample follow each other.
    ordered, order = torch.sort(indices.reshape(-1), stable=True)
    V, chip = width(like), chip_of(like.device)
    aligned_to = _vector(tensors, strides, V)
    config = small_layer_configs.embedding_config(chip, tasks, rows, columns, V, aligned_to, like.element_size())
    count = config.programs.count
    HALF = max(2, power_of_two(tasks * (tasks + 1) // 2))
    levels = 2 if per_sample else 1
    borders = -(-rows // config.length) * levels * 2 * tasks * columns
    borders += -borders % 4  # what follows stays aligned
    memory, tickets = workspace(like.device, borders + count * 2 * HALF + config.programs.partials(2 * HALF))
    partials = memory[borders:]
    M, Q = (like.new_empty((tasks, tasks), dtype=torch.float32) for _ in range(2))
    padding = -1 if padding_idx is None else padding_idx
    narrow = rows < 1 << 31
    border_vector = next(size for size in (4, 2, 1) if config.vector % size == 0 and columns % size == 0)
    kernels.embedding_chunks[(count,)](
        ordered,
        order,
        tuple(tensors),
        memory,
        partials,
        present,
        padding,
        rows,
        rows // batch,
        columns,
        config.length,
        config.blocks,
        tuple(sizes),
        tuple(tuple(dim[k] for dim in strides) for k in range(tasks)),
        tuple(tensor.stride(-1) for tensor in tensors),
        T=tasks,
        RANK=len(sizes),
        C=config.chunks,
        N=config.columns,
        V=config.vector,
        BORDER_VECTOR=border_vector,
        AHEAD=config.ahead,
        PER_SAMPLE=per_sample,
        NARROW=narrow,
        HALF=HALF,
        **config.options,
        **OPTIONS,
    )
    kernels.embedding_borders[(count,)](
        ordered,
        order,
        memory,
        M,
        Q,
        partials,
        tickets,
        padding,
        batch,
        rows,
        rows // batch,
        columns,
        config.length,
        config.blocks,
        count,
        config.programs.group,
        T=tasks,
        C=config.chunks,
        N=config.columns,
        V=config.vector,
        BORDER_VECTOR=border_vector,
        R=min(2, config.ahead),
        W=chip.warp_size,
        PER_SAMPLE=per_sample,
        NARROW=narrow,
        HALF=HALF,
        ROWS=rows_for(2 * HALF),
        **config.options,
        **OPTIONS,
    )
    return M, Q


def _leading(tensor: Tensor) -> list[int]:
    """The dimensions of the indices, in their order."""
    return [dim for dim in range(tensor.dim() - 1) if tensor.shape[dim] != 1]


def _vector(tensors: Sequence[Tensor], strides: Sequence[Sequence[int]], widest: int) -> int:
    """Columns, at most ``widest``, that are together and aligned in every row of every gradient."""
    if any(tensor.stride(-1) != 1 or not aligned(tensor) for tensor in tensors):
        return 1
    steps = [tensors[0].shape[-1], *(step for dim in strides for step in dim)]
    return next(size for size in (8, 4, 2, 1) if size <= widest and all(step % size == 0 for step in steps))
