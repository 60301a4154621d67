"""Launches of the moments of norm layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastmtl.backends.contract import present_of
from fastmtl.backends.triton import small_layer_configs
from fastmtl.backends.triton.chips import chip_of
from fastmtl.backends.triton.composed import COMPOSED
from fastmtl.backends.triton.configs import FEW
from fastmtl.backends.triton.kernels import norms as kernels
from fastmtl.backends.triton.launching import OPTIONS, filled, power_of_two, rows_for
from fastmtl.backends.triton.layout import Layout, aligned, layout_of
from fastmtl.backends.triton.workspace import workspace


def norm_moments(
    normalized: Tensor, grads: Sequence[Tensor | None], parameter_dims: Sequence[int], bias: bool, per_sample: bool
) -> tuple[Tensor, Tensor]:
    """M and Q of the weight and bias of a norm layer.

    One launch for up to `FEW` tasks. More of them take the way of all backends: the gradients of some samples at a time
    are formed by torch.
    """
    like = present_of(grads)[0]
    if len(grads) > FEW or like.numel() == 0:
        return COMPOSED.norm_moments(normalized, grads, parameter_dims, bias, per_sample)
    tasks = len(grads)
    tensors, present = filled(grads)
    dims = tuple(parameter_dims)
    layouts = _layouts([*tensors, normalized], dims)
    if layouts is None:
        # No dimensions that kernels follow: positions and parameters are made two of them.
        others = [dim for dim in range(1, like.dim()) if dim not in dims]
        order = (0, *others, *dims)
        *tensors, normalized = [tensor.permute(order).contiguous() for tensor in (*tensors, normalized)]
        dims = tuple(range(1 + len(others), like.dim()))
        layouts = _layouts([*tensors, normalized], dims)
        assert layouts is not None, "contiguous dimensions merge into one"
    parameters, positions = layouts
    read = [*tensors, normalized]
    inner = _parameters_inner(parameters, positions)
    # A gradient's 16 bytes; what is normalised may be wider, and is then read in two parts.
    widest = 16 // min(tensor.element_size() for tensor in read)
    batch = like.shape[0]
    chip = chip_of(like.device)
    accumulators = tasks * (2 if bias else 1)
    config = small_layer_configs.norm_config(
        chip,
        tasks + 1,
        accumulators,
        batch,
        parameters.positions,
        positions.positions,
        inner,
        widest,
        _vector(read, parameters, positions, inner, widest),
    )
    M, Q = (like.new_empty((tasks, tasks), dtype=torch.float32) for _ in range(2))
    HALF = max(2, power_of_two(tasks * (tasks + 1) // 2))
    if config.split:
        columns = config.parameters * (config.vector if inner else 1)
        sums = config.programs.count * accumulators * columns
        numbers = (config.programs.count + config.blocks) * 2 * HALF + sums
    else:
        numbers = config.programs.partials(2 * HALF)
    partials, tickets = workspace(like.device, numbers)
    kernels.norm_moments_few[(config.programs.count,)](
        normalized,
        tuple(tensors),
        M,
        Q,
        partials,
        tickets,
        present,
        batch,
        parameters.positions,
        positions.positions,
        config.blocks,
        config.splits,
        config.chunk,
        config.programs.count,
        config.programs.group,
        parameters.sizes,
        parameters.strides,
        positions.sizes,
        positions.strides,
        tuple(tensor.stride(0) for tensor in read),
        T=tasks,
        BIAS=bias,
        INNER=inner,
        PER_SAMPLE=per_sample,
        SPLIT=config.split,
        PARAMETER_RANK=parameters.rank,
        POSITION_RANK=positions.rank,
        NB=config.samples,
        NP=config.parameters,
        NS=config.positions,
        V=config.vector,
        HALF=HALF,
        ROWS=rows_for(2 * HALF),
        **config.options,
        **OPTIONS,
    )
    return M, Q


def _part(tensor: Tensor, dims: Sequence[int]) -> Tensor:
    """Some dimensions of a tensor, at the first index of the others."""
    sizes, strides = [tensor.shape[dim] for dim in dims], [tensor.stride(dim) for dim in dims]
    return tensor.as_strided(sizes, strides, tensor.storage_offset())


def _layouts(tensors: Sequence[Tensor], parameter_dims: Sequence[int]) -> tuple[Layout, Layout] | None:
    """Those of the parameters, and of the positions of a sample; None where they have too many dimensions."""
    others = [dim for dim in range(1, tensors[0].dim()) if dim not in parameter_dims]
    parameters = layout_of([_part(tensor, parameter_dims) for tensor in tensors], by_sample=False)
    positions = layout_of([_part(tensor, others) for tensor in tensors], by_sample=False)
    return None if parameters is None or positions is None else (parameters, positions)


def _parameters_inner(parameters: Layout, positions: Layout) -> bool:
    """Whether parameters lie together in more of the tensors than positions do."""
    if positions.positions == 1:
        return True
    together = [sum(own[-1] == 1 for own in layout.strides) for layout in (parameters, positions)]
    return together[0] >= together[1]


def _vector(read: Sequence[Tensor], parameters: Layout, positions: Layout, inner: bool, widest: int) -> int:
    """Elements, at most ``widest``, that are together and aligned in every tensor."""
    along, across = (parameters, positions) if inner else (positions, parameters)
    if not all(aligned(tensor) for tensor in read) or any(own[-1] != 1 for own in along.strides):
        return 1
    steps = [along.sizes[-1]]
    for tensor, own, other in zip(read, along.strides, across.strides, strict=True):
        steps += own[:-1]
        steps += other if across.positions > 1 else ()
        steps += [tensor.stride(0)] if tensor.shape[0] > 1 else []
    return next(vector for vector in (widest, 4, 2, 1) if vector <= widest and all(s % vector == 0 for s in steps))
