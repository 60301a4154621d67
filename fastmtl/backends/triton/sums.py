"""Launches of the fork's ops: the sum of T gradients and their statistics, and the updates that follow from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastmtl.backends.contract import empty_total
from fastmtl.backends.triton import configs, gnr
from fastmtl.backends.triton.chips import chip_of
from fastmtl.backends.triton.kernels import sums as kernels
from fastmtl.backends.triton.launching import OPTIONS, filled, power_of_two, rows_for
from fastmtl.backends.triton.layout import Layout, readable, width
from fastmtl.backends.triton.workspace import workspace


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
        return {
            "positions": layout.positions,
            "sizes": layout.sizes,
            "strides": layout.strides[1:],
            "total_strides": layout.strides[0],
            "RANK": layout.rank,
            "VECTOR": layout.vector,
        }

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
    if tasks > configs.FEW:
        sums_many.sum_norms(total, norms, inputs.tensors, inputs.present, _gradnorm_arguments(norms, update))
        return total, norms
    V, chip = width(total), chip_of(total.device)
    config = configs.by_blocks(chip, tasks, inputs.layout.positions, V, configs.norms_registers(tasks, V))
    WIDTH = max(2, power_of_two(tasks))
    partials, tickets = workspace(total.device, config.programs.partials(WIDTH))
    kernels.sum_norms_few[(config.programs.count,)](
        inputs.tensors,
        total,
        norms,
        partials,
        tickets,
        inputs.present,
        **config.sharing,
        **inputs.layout_arguments,
        **_gradnorm_arguments(norms, update),
        T=tasks,
        N=config.rows,
        V=V,
        WIDTH=WIDTH,
        ROWS=rows_for(WIDTH),
        **config.options,
        **OPTIONS,
    )
    return total, norms


def _gradnorm_arguments(norms: Tensor, update: tuple[Any, ...] | None) -> dict[str, Any]:
    """What the kernel takes for GradNorm's update: ``update`` has the arguments of the op after the norms."""
    if update is None:
        values: tuple[Any, ...] = (norms, (norms,) * 10, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
        adam = False
    else:
        alpha, lr, adam, *numbers = update[11:]
        values = (update[0], update[1:11], alpha, lr, *numbers)
    names = ("p_message", "p_state", "alpha", "lr", "beta1", "beta2", "eps", "min_weight")
    return {**dict(zip(names, values, strict=True)), "STEP": update is not None, "ADAM": adam}


def sum_moments(grads: Sequence[Tensor | None]) -> tuple[Tensor, Tensor, Tensor]:
    """Sum over tasks, Gram matrix M of the sums over dimension 0, and Q = B * sum_b of the per-sample Gram matrices."""
    return _sum_moments(grads, None)


def sum_moments_update(grads: Sequence[Tensor | None], *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """`sum_moments`, and the update of the GNR weights in the same launch."""
    return _sum_moments(grads, arguments)


def _sum_moments(grads: Sequence[Tensor | None], update: tuple[Any, ...] | None) -> tuple[Tensor, Tensor, Tensor]:
    inputs = _inputs(grads, by_sample=True)
    total, tasks = inputs.total, inputs.tasks
    M, Q = (total.new_empty((tasks, tasks), dtype=torch.float32) for _ in range(2))
    V, chip = width(total), chip_of(total.device)
    config = configs.by_samples(
        chip, tasks, total.shape[0], inputs.layout.positions, V, configs.moments_registers(tasks, V)
    )
    HALF = power_of_two(tasks * (tasks + 1) // 2)
    numbers = config.partials(2 * HALF, tasks * config.rows * V)
    scratch = 2 * gnr.scratch_size(tasks) if update is not None else 0
    memory, tickets = workspace(total.device, scratch + numbers)
    kernel = kernels.sum_moments_few if config.splits == 1 else kernels.sum_moments_split
    kernel[(config.programs.count,)](
        inputs.tensors,
        total,
        M,
        Q,
        memory[scratch:],
        tickets,
        inputs.present,
        **config.sharing,
        **inputs.sample_arguments,
        **_gnr_arguments(M, memory[:scratch], update),
        T=tasks,
        N=config.rows,
        V=V,
        HALF=HALF,
        ROWS=rows_for(2 * HALF),
        P=gnr.width(tasks),
        **config.options,
        **OPTIONS,
    )
    return total, M, Q


def _gnr_arguments(M: Tensor, scratch: Tensor, update: tuple[Any, ...] | None) -> dict[str, Any]:
    """What the kernels take for the update of the GNR weights: ``update`` has the arguments of the op after M and Q."""
    if update is None:
        values: tuple[Any, ...] = (M, (M,) * 7, M, 0, 0, 0.0, 0.0, 0.0)
        loss_sum, objective, accumulation = False, "none", 1
    else:
        batch, accumulation, loss_sum, objective, *numbers = update[8:]
        values = (update[0], update[1:8], scratch.view(torch.float64), batch, accumulation, *numbers)
    names = ("p_message", "p_state", "p_scratch", "samples", "accumulation", "decay", "step", "floor")
    return {
        **dict(zip(names, values, strict=True)),
        "STEP": update is not None,
        "LOSS_SUM": loss_sum,
        "OBJECTIVE": objective,
        "ACCUMULATED": accumulation > 1,
    }
