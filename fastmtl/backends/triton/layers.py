"""Launches of the moments of linear layers and convolutions.

For few tasks one kernel forms tiles of the weight gradients of all tasks and reduces them, see `kernels.layers`. The rest
(pairs of positions, many tasks, transposed convolutions) is the shared code of `layer_moments`, with matrix products by
torch, some rows or pairs of positions at a time, and the kernels of `lists` and `products` for what follows.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import triton.language as tl
from torch import Tensor

from fastmtl.backends.layer_moments import LayerMoments, cost
from fastmtl.backends.layer_moments.conv import ConvFactors
from fastmtl.backends.layer_moments.factors import LEAST_MEMORY, Factors, Operands
from fastmtl.backends.layer_moments.linear import LinearFactors
from fastmtl.backends.layer_moments.products import Forming
from fastmtl.backends.triton import layer_configs
from fastmtl.backends.triton.chips import chip_of
from fastmtl.backends.triton.composed import PRIMITIVES
from fastmtl.backends.triton.kernels import layers as kernels
from fastmtl.backends.triton.launching import OPTIONS, Programs, filled, power_of_two, rows_for
from fastmtl.backends.triton.layout import merged
from fastmtl.backends.triton.rows import precision_of
from fastmtl.backends.triton.workspace import TICKETS, workspace

# In float32, tensor cores with operands in parts are a little less exact than plain products, which are no slower here.
_FEW_PRODUCTS = 1 << 22
_OPERANDS = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}  # all else is multiplied as float32


def _operand(operands: Operands) -> tl.dtype:
    """What the inputs and the gradients are multiplied as."""
    dtypes = {operands.inputs.dtype, *(grad.dtype for grad in operands.grads if grad is not None)}
    return _OPERANDS.get(dtypes.pop(), tl.float32) if len(dtypes) == 1 else tl.float32


class FusedLayerMoments(LayerMoments):
    """With weight gradients formed by a kernel where the tasks are few."""

    def _of_factors(
        self, factors: Factors, way: str, per_sample: bool, form: Forming | None = None
    ) -> tuple[Tensor, Tensor]:
        fits = layer_configs.fits(factors.sizes.tasks, per_sample, factors.sizes.formed())
        if fits and isinstance(factors, (LinearFactors, ConvFactors)):
            operands = factors.operands()
            form = functools.partial(form_moments, operands)
            # A kernel that forms M gives Q as well.
            formed = layer_configs.forming(factors.sizes, _operand(operands).primitive_bitwidth, self.primitives.costs)
            if way == "auto" and formed <= cost.batch_by_pairs(factors.sizes, self.primitives.costs):
                way = "form"
        return super()._of_factors(factors, way, per_sample, form)


@dataclass(frozen=True)
class _Positions:
    """Dimensions of the positions, outermost first, and the strides of each of some tensors along them."""

    sizes: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]

    @property
    def rank(self) -> int:
        return len(self.sizes)

    @property
    def reciprocals(self) -> tuple[int, ...]:
        """For divisions by the sizes, as the kernel wants them."""
        return tuple((1 << 40) + 2 * (((1 << 32) - 1) // size) + 1 for size in self.sizes)

    def joined(self) -> _Positions:
        """As few dimensions as possible."""
        kept = [dim for dim, size in enumerate(self.sizes) if size != 1]
        sizes, strides = merged(self.sizes, self.strides, kept)
        return _Positions(tuple(sizes), tuple(tuple(dim[k] for dim in strides) for k in range(len(self.strides))))


def _products(left: Sequence[int], right: Sequence[int]) -> tuple[int, ...]:
    return tuple(a * b for a, b in zip(left, right, strict=True))


def _span(tensor: Tensor) -> int:
    """How many elements lie between the first and the last."""
    return sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def _readable_whole(inputs: Tensor, channels: int) -> bool:
    """Whether channels are next to each other, and 16 bytes of them can be read at once."""
    return inputs.stride(1) == 1 and channels % 16 == 0


def _channels_inner(inputs: Tensor) -> Tensor:
    """A copy in which the channels of a pixel are next to each other."""
    batch, channels, *size = inputs.shape
    return inputs.new_empty((batch, *size, channels)).movedim(-1, 1).copy_(inputs)


def form_moments(operands: Operands, per_sample: bool) -> tuple[Tensor, Tensor | None]:
    """M, and sum_b <c_kb, c_jb> where ``per_sample`` is set, by `kernels.form_moments`."""
    apart = per_sample and layer_configs.apart(len(operands.grads), operands.geometry.area > 1)
    inputs = operands.inputs
    if operands.geometry.area > 1 and inputs.shape[1] // operands.groups % 16 == 0 and inputs.stride(1) != 1:
        # Copied once, what lies under an element of the kernel is read in whole lines of the cache.
        operands = replace(operands, inputs=_channels_inner(inputs))
    M, Q = _launch(operands, per_sample, batch=not apart)
    if apart:
        M, _ = _launch(operands, per_sample=False, batch=True)
    return M, Q if per_sample else None


def _launch(operands: Operands, per_sample: bool, batch: bool) -> tuple[Tensor, Tensor]:
    """M if ``batch`` is set, and sum_b <c_kb, c_jb> if ``per_sample`` is; what is not formed is uninitialised."""
    inputs, geometry, groups = operands.inputs, operands.geometry, operands.groups
    grads, present = filled(operands.grads)
    like, tasks = grads[0], len(grads)
    places = tuple(like.shape[2:])
    channels, outputs = inputs.shape[1] // groups, like.shape[1] // groups
    rows = channels * geometry.area

    # The kernel has three dimensions: the last ones, after some of one element where there are fewer.
    lead = max(0, 3 - len(places))
    ones, zeros = (1,) * lead, (0,) * lead
    kernel = (*ones, *geometry.kernel)[-3:]
    pads = (*zeros, *(before for before, _ in geometry.padding))
    pixel_strides = (*zeros, *inputs.stride()[2:])
    tap_strides = _products(pixel_strides[-3:], (*ones, *geometry.dilation)[-3:])
    checked = (*(False,) * lead, *(any(pair) for pair in geometry.padding))[-3:]
    # Without a sum for each sample the samples are one more dimension of the positions.
    samples, outer = (inputs.shape[0], 1) if per_sample else (1, inputs.shape[0])
    sizes = (outer, *ones, *places)
    steps = (*ones, *geometry.stride)
    at_inputs = _Positions(sizes, ((inputs.stride(0), *_products(pixel_strides, steps)),))
    if not any(checked):
        at_inputs = at_inputs.joined()
    strides = tuple(dict.fromkeys(grad.stride() for grad in grads))
    alike = len(strides) == 1
    if not alike:
        strides = tuple(grad.stride() for grad in grads)
    at_grads = _Positions(sizes, tuple((own[0], *zeros, *own[2:]) for own in strides)).joined()
    positions = math.prod(sizes)

    operand = _operand(operands)
    chip = chip_of(like.device)
    unfolded = geometry.area > 1
    whole = _readable_whole(inputs, channels) if unfolded else channels % 16 == 0
    few = operand == tl.float32 and tasks * samples * positions * rows * outputs * groups < _FEW_PRODUCTS
    precision = "ieee" if few else precision_of(chip)
    config = layer_configs.form_config(
        chip,
        layer_configs.Shape(
            tasks, operand.primitive_bitwidth, per_sample, few, unfolded, whole, channels, rows, outputs, positions
        ),
    )
    tiles_in, tiles_out = -(-rows // config.inputs) + operands.bias, -(-outputs // config.outputs)
    tiles = groups * tiles_in * tiles_out
    length = tiles * config.inputs * config.outputs
    most = max(inputs.numel() + like.numel(), LEAST_MEMORY) // (tasks * length) if batch else samples * positions
    slices = layer_configs.slices(chip, config, tiles, samples, positions, per_sample, most)
    sliced = slices > 1
    programs = Programs(tiles * slices)
    HALF = max(2, power_of_two(tasks * (tasks + 1) // 2))
    reducing = layer_configs.reducing(chip, config, length)
    # Partial results of Q, then those of M or of the sum over slices, then the slices.
    ends = list(itertools.accumulate((programs.partials(HALF), max(programs.partials(HALF), reducing.partials(HALF)))))
    memory, tickets = workspace(like.device, ends[1] + (slices * tasks * length if sliced and batch else 0))
    M, Q = (like.new_empty((tasks, tasks), dtype=torch.float32) for _ in range(2))
    kernels.form_moments[(programs.count,)](
        inputs,
        tuple(grads),
        M,
        Q,
        memory[ends[1] :] if sliced and batch else memory,
        memory,
        tickets,
        memory[ends[0] :],
        tickets[TICKETS // 2 :],
        present,
        samples,
        positions,
        channels,
        rows,
        outputs,
        tiles_in,
        tiles_out,
        tiles,
        slices,
        programs.count,
        programs.group,
        geometry.area,
        kernel,
        (steps[-3:], pads[-3:], (*ones, *geometry.dilation)[-3:], (*ones, *inputs.shape[2:])[-3:]),
        at_inputs.sizes,
        at_inputs.reciprocals,
        at_inputs.strides[0],
        tap_strides,
        (inputs.stride(0), channels * inputs.stride(1), inputs.stride(1)),
        -sum(_products(pads, pixel_strides)),
        at_grads.sizes,
        at_grads.reciprocals,
        at_grads.strides,
        tuple((own[0], outputs * own[1], own[1]) for own in strides),
        T=tasks,
        BI=config.inputs,
        BO=config.outputs,
        BK=config.positions,
        RANK=at_inputs.rank,
        GRAD_RANK=at_grads.rank,
        ALIKE=alike,
        CHECKED=checked,
        CHANNELS_INNER=inputs.stride(1) == 1,
        ONE_TAP=inputs.stride(1) == 1 and channels % config.inputs == 0,
        BIAS=operands.bias,
        PER_SAMPLE=per_sample,
        BATCH=batch,
        ONE_STEP=per_sample and positions <= config.positions,
        SLICED=sliced,
        OPERAND=operand,
        PRECISION=precision,
        HALF=HALF,
        ROWS=rows_for(HALF),
        WARPS=config.warps,
        LONG=tl.int64 if max(map(_span, (inputs, *grads))) >= 1 << 31 else tl.int32,
        QUICK=(positions + config.positions) * max(*at_inputs.sizes, *at_grads.sizes) <= 1 << 32,
        **config.options,
        **OPTIONS,
    )
    if sliced and batch:
        kernels.slice_moments[(reducing.count,)](
            memory[ends[1] :],
            M,
            memory[ends[0] :],
            tickets,
            present,
            length,
            slices,
            reducing.count,
            reducing.group,
            T=tasks,
            N=32 * config.warps,
            HALF=HALF,
            ROWS=rows_for(HALF),
            num_warps=config.warps,
            **OPTIONS,
        )
    return M, Q


_layers = FusedLayerMoments(PRIMITIVES)
linear_moments = _layers.linear_moments
conv_moments = _layers.conv_moments
