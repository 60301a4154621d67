"""Launches of the fork's ops for many tasks: gradients as the rows of tiles."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from fastmtl.backends.triton import configs
from fastmtl.backends.triton.chips import chip_of
from fastmtl.backends.triton.epilogues import GNRStep
from fastmtl.backends.triton.inputs import Inputs
from fastmtl.backends.triton.kernels import sums_many as kernels
from fastmtl.backends.triton.launching import OPTIONS, rows_for
from fastmtl.backends.triton.layout import width
from fastmtl.backends.triton.rows import alike, columns_of, precision_of, rows_of, streaming_rows, warps_of
from fastmtl.backends.triton.workspace import workspace

LOADS = 16  # of 16 bytes that each thread of `sum_norms_many` has under way: a row each


def _alike(inputs: Inputs, by_sample: bool) -> Inputs:
    """The same with one layout for all gradients; those that lie differently are copied."""
    (_, tensors), layout = alike(([inputs.total], inputs.tensors), by_sample)
    return replace(inputs, tensors=tuple(tensors), layout=layout)


def sum_norms(inputs: Inputs, norms: Tensor, update: dict[str, Any]) -> None:
    """Into ``inputs.total`` and ``norms`` [T]; ``update`` is what the kernel takes for GradNorm's step."""
    inputs = _alike(inputs, by_sample=False)
    total, TASKS, V, chip = inputs.total, rows_of(inputs.tasks), width(inputs.total), chip_of(inputs.total.device)
    K = 4 * chip.warp_size * V * LOADS // TASKS
    config = configs.streaming(chip, LOADS, -(-inputs.layout.positions // K), 200)
    partials, tickets = workspace(total.device, config.programs.partials(TASKS))
    kernels.sum_norms_many[(config.programs.count,)](
        inputs.tensors,
        total,
        norms,
        partials,
        tickets,
        inputs.present,
        **config.sharing,
        **{**inputs.positions, "strides": inputs.layout.strides[1]},
        **update,
        T=inputs.tasks,
        TASKS=TASKS,
        K=K,
        V=V,
        ROWS=rows_for(TASKS),
        **config.options,
        **OPTIONS,
    )


def sum_moments(inputs: Inputs, M: Tensor, Q: Tensor, step: GNRStep) -> None:
    """Into ``inputs.total``, ``M`` and ``Q`` [T, T], and the step of the GNR weights where there is one."""
    inputs = _alike(inputs, by_sample=True)
    total, tasks, TASKS = inputs.total, inputs.tasks, rows_of(inputs.tasks)
    chip, batch, WIDTH = chip_of(total.device), total.shape[0], 2 * TASKS * TASKS
    K, warps = columns_of(inputs.tensors), warps_of(TASKS)
    stages = 1
    if TASKS == 64:  # both matrices and the sums over the samples stay in registers: a wider tile would spill
        K = min(K, 32)
        # Few programs fit. On an H200 two more 16-bit tiles under way save a quarter; for float32 and up to 16 tasks they cost.
        stages = 1 if total.element_size() == 4 else 3
    blocks = -(-inputs.layout.positions // K)
    tile_bytes = K * tasks * total.element_size()
    # As compilers report them: float32 values are held as two tf32 parts.
    registers = 168 if step.update is None and (TASKS < 64 or total.element_size() < 4) else 240
    config = streaming_rows(chip, K, warps, tile_bytes, blocks * batch, registers, stages)
    splits = configs.splits_of(config.programs.count, blocks, batch)
    if splits > 1:
        kernel, programs = kernels.sum_moments_many_split, blocks * splits
        sharing = {"splits": splits, "blocks": blocks}
        numbers = (programs + blocks) * WIDTH + programs * TASKS * K
    else:
        config = streaming_rows(chip, K, warps, tile_bytes, blocks * batch, registers, stages, units=blocks)
        kernel, programs = kernels.sum_moments_many, config.programs.count
        sharing = {"programs": programs, "group": config.programs.group}
        numbers = config.programs.partials(WIDTH)
    memory, tickets = workspace(total.device, step.scratch + numbers)
    layout = {
        **inputs.samples,
        "strides": inputs.layout.strides[1],
        "sample_stride": inputs.layout.sample_strides[1],
    }
    del layout["sample_strides"]
    kernel[(programs,)](
        inputs.tensors,
        total,
        M,
        Q,
        memory.narrow(0, step.scratch, numbers),
        tickets,
        inputs.present,
        **sharing,
        **layout,
        **step.arguments(M, memory.narrow(0, 0, step.scratch), config.warps),
        T=tasks,
        TASKS=TASKS,
        K=K,
        V=width(total),
        ROWS=config.rows_for(WIDTH),
        PRECISION=precision_of(chip),
        **config.options,
        **OPTIONS,
    )
