"""Launches of the fork's ops: the sum of T gradients and their statistics."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastmtl.backends.contract import empty_total
from fastmtl.backends.triton import configs
from fastmtl.backends.triton.chips import chip_of
from fastmtl.backends.triton.kernels import sums as kernels
from fastmtl.backends.triton.launching import OPTIONS, filled, power_of_two, rows_for
from fastmtl.backends.triton.layout import readable, width
from fastmtl.backends.triton.workspace import workspace


def sum_norms(grads: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
    """Sum over tasks and each task's squared Frobenius norm."""
    total, tasks = empty_total(grads), len(grads)
    tensors, present = filled(grads)
    (_, *tensors), layout = readable([total, *tensors], by_sample=False)
    norms = total.new_empty(tasks, dtype=torch.float32)
    V = width(total)
    chip = chip_of(total.device)
    WIDTH = max(2, power_of_two(tasks))
    threads = 4 * chip.warp_size
    config = configs.streaming(chip, tasks, -(-layout.positions // (threads * V)), 32 + 3 * V * tasks)
    partials, tickets = workspace(total.device, config.programs.partials(WIDTH))
    state = (norms,) * 10
    kernels.sum_norms_few[(config.programs.count,)](
        tuple(tensors),
        total,
        norms,
        partials,
        tickets,
        present,
        layout.positions,
        config.programs.count,
        config.programs.group,
        layout.sizes,
        layout.strides[1:],
        layout.strides[0],
        norms,
        state,
        0.0,
        0.0,
        0.0,
        0.0,
        0.0,
        0.0,
        T=tasks,
        RANK=layout.rank,
        N=config.rows,
        V=V,
        VECTOR=layout.vector,
        WIDTH=WIDTH,
        ROWS=rows_for(WIDTH),
        STEP=False,
        ADAM=False,
        **config.options,
        **OPTIONS,
    )
    return total, norms


def sum_moments(grads: Sequence[Tensor | None]) -> tuple[Tensor, Tensor, Tensor]:
    """Sum over tasks, Gram matrix M of the sums over dimension 0, and Q = B * sum_b of the per-sample Gram matrices."""
    total, tasks = empty_total(grads), len(grads)
    tensors, present = filled(grads)
    (_, *tensors), layout = readable([total, *tensors], by_sample=True)
    M, Q = (total.new_empty((tasks, tasks), dtype=torch.float32) for _ in range(2))
    V = width(total)
    chip = chip_of(total.device)
    HALF = power_of_two(tasks * (tasks + 1) // 2)
    threads = 4 * chip.warp_size
    config = configs.streaming(
        chip, tasks, -(-layout.positions // (threads * V)), 32 + 3 * V * tasks + tasks * (tasks + 1)
    )
    partials, tickets = workspace(total.device, config.programs.partials(2 * HALF))
    kernels.sum_moments_few[(config.programs.count,)](
        tuple(tensors),
        total,
        M,
        Q,
        partials,
        tickets,
        present,
        total.shape[0],
        layout.positions,
        config.programs.count,
        config.programs.group,
        layout.sizes,
        layout.strides[1:],
        layout.sample_strides[1:],
        layout.strides[0],
        layout.sample_strides[0],
        T=tasks,
        RANK=layout.rank,
        N=config.rows,
        V=V,
        VECTOR=layout.vector,
        HALF=HALF,
        ROWS=rows_for(2 * HALF),
        **config.options,
        **OPTIONS,
    )
    return total, M, Q
