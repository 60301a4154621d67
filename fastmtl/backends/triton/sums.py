"""Launches of the fork's ops: the sum of T gradients and their statistics, and the updates that follow from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastmtl.backends.contract import empty_total
from fastmtl.backends.triton import configs
from fastmtl.backends.triton.chips import chip_of
from fastmtl.backends.triton.kernels import sums as kernels
from fastmtl.backends.triton.launching import OPTIONS, filled, power_of_two, rows_for
from fastmtl.backends.triton.layout import Layout, readable, width
from fastmtl.backends.triton.workspace import workspace

# Stands for the arguments of GradNorm's update where none follows; nothing of it is read.
_NO_UPDATE = (0.0,) * 6


@dataclass(frozen=True)
class _Inputs:
    """T gradients as the kernels take them, and the memory of their sum."""

    total: Tensor
    tensors: tuple[Tensor, ...]
    present: int  # a bit for each
    layout: Layout  # of the total and the gradients

    @property
    def tasks(self) -> int:
        return len(self.tensors)

    @property
    def layout_arguments(self) -> dict[str, Any]:
        layout = self.layout
        return {"sizes": layout.sizes, "strides": layout.strides[1:], "total_strides": layout.strides[0]}

    @property
    def sample_arguments(self) -> dict[str, Any]:
        layout = self.layout
        return {
            "batch": self.total.shape[0],
            "sample_strides": layout.sample_strides[1:],
            "total_sample_stride": layout.sample_strides[0],
            **self.layout_arguments,
        }


def _inputs(grads: Sequence[Tensor | None], by_sample: bool) -> _Inputs:
    total = empty_total(grads)
    tensors, present = filled(grads)
    (_, *tensors), layout = readable([total, *tensors], by_sample)
    return _Inputs(total, tuple(tensors), present, layout)


def sum_norms(grads: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
    """Sum over tasks and each task's squared Frobenius norm."""
    return _sum_norms(grads, None)


def sum_norms_update(grads: Sequence[Tensor | None], *arguments: Any) -> tuple[Tensor, Tensor]:
    """`sum_norms`, and GradNorm's update in the same launch."""
    return _sum_norms(grads, arguments)


def _sum_norms(grads: Sequence[Tensor | None], update: tuple[Any, ...] | None) -> tuple[Tensor, Tensor]:
    inputs = _inputs(grads, by_sample=False)
    total, tasks = inputs.total, inputs.tasks
    norms = total.new_empty(tasks, dtype=torch.float32)
    V, chip = width(total), chip_of(total.device)
    config = configs.by_blocks(chip, tasks, inputs.layout.positions, V, configs.norms_registers(tasks, V))
    WIDTH = max(2, power_of_two(tasks))
    partials, tickets = workspace(total.device, config.programs.partials(WIDTH))
    message, state, adam, numbers = norms, (norms,) * 10, False, _NO_UPDATE
    if update is not None:
        message, state = update[0], update[1:11]
        alpha, lr, adam, *rest = update[11:]
        numbers = (alpha, lr, *rest)
    kernels.sum_norms_few[(config.programs.count,)](
        inputs.tensors,
        total,
        norms,
        partials,
        tickets,
        inputs.present,
        inputs.layout.positions,
        config.programs.count,
        config.programs.group,
        inputs.layout.sizes,
        inputs.layout.strides[1:],
        inputs.layout.strides[0],
        message,
        tuple(state),
        *numbers,
        T=tasks,
        RANK=inputs.layout.rank,
        N=config.rows,
        V=V,
        VECTOR=inputs.layout.vector,
        WIDTH=WIDTH,
        ROWS=rows_for(WIDTH),
        STEP=update is not None,
        ADAM=adam,
        **config.options,
        **OPTIONS,
    )
    return total, norms


def sum_moments(grads: Sequence[Tensor | None]) -> tuple[Tensor, Tensor, Tensor]:
    """Sum over tasks, Gram matrix M of the sums over dimension 0, and Q = B * sum_b of the per-sample Gram matrices."""
    inputs = _inputs(grads, by_sample=True)
    total, tasks = inputs.total, inputs.tasks
    M, Q = (total.new_empty((tasks, tasks), dtype=torch.float32) for _ in range(2))
    V, chip = width(total), chip_of(total.device)
    config = configs.by_samples(
        chip, tasks, total.shape[0], inputs.layout.positions, V, configs.moments_registers(tasks, V)
    )
    HALF = power_of_two(tasks * (tasks + 1) // 2)
    tile = tasks * config.rows * V if config.splits > 1 else 0
    numbers = max(config.programs.partials(2 * HALF), (config.programs.count + config.blocks) * 2 * HALF)
    partials, tickets = workspace(total.device, numbers + config.programs.count * tile)
    shared = {
        "T": tasks,
        "RANK": inputs.layout.rank,
        "N": config.rows,
        "V": V,
        "VECTOR": inputs.layout.vector,
        "HALF": HALF,
        "ROWS": rows_for(2 * HALF),
        **inputs.sample_arguments,
        **config.options,
        **OPTIONS,
    }
    first = (inputs.tensors, total, M, Q, partials, tickets, inputs.present)
    positions = inputs.layout.positions
    if config.splits > 1:
        kernels.sum_moments_split[(config.programs.count,)](
            *first, positions=positions, splits=config.splits, blocks=config.blocks, **shared
        )
    else:
        kernels.sum_moments_few[(config.programs.count,)](
            *first,
            positions=positions,
            programs=config.programs.count,
            group=config.programs.group,
            **shared,
        )
    return total, M, Q
