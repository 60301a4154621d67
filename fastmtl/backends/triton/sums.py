"""Launches of the fork's ops: the sum of T gradients and their statistics, and the updates that follow from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastmtl.backends.triton import configs, sums_many
from fastmtl.backends.triton.chips import chip_of
from fastmtl.backends.triton.epilogues import GNRStep, Update, gradnorm_arguments
from fastmtl.backends.triton.inputs import Inputs, inputs_of
from fastmtl.backends.triton.kernels import sums as kernels
from fastmtl.backends.triton.launching import OPTIONS, power_of_two, rows_for
from fastmtl.backends.triton.layout import width
from fastmtl.backends.triton.workspace import workspace


def sum_norms(grads: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
    """Sum over tasks and each task's squared Frobenius norm."""
    return _sum_norms(grads, None)


def sum_norms_update(grads: Sequence[Tensor | None], *update: Any) -> tuple[Tensor, Tensor]:
    """`sum_norms`, and GradNorm's update in the same launch."""
    return _sum_norms(grads, update)


def _sum_norms(grads: Sequence[Tensor | None], update: Update | None) -> tuple[Tensor, Tensor]:
    inputs = inputs_of(grads, by_sample=False)
    norms = inputs.total.new_empty(inputs.tasks, dtype=torch.float32)
    launch = _norms_of_few if inputs.tasks <= configs.FEW_NORMS else sums_many.sum_norms
    launch(inputs, norms, gradnorm_arguments(norms, update))
    return inputs.total, norms


def _group(inputs: Inputs) -> int:
    """Positions that a thread takes at once: 16 bytes; one where these do not lie together, as each is a load of its own."""
    return width(inputs.total) if inputs.layout.vector else 1


def _norms_of_few(inputs: Inputs, norms: Tensor, update: dict[str, Any]) -> None:
    total, tasks = inputs.total, inputs.tasks
    V = _group(inputs)
    registers = configs.norms_registers(tasks, update["STEP"])
    config = configs.by_blocks(
        chip_of(total.device), tasks, inputs.layout.positions, V, registers, total.element_size()
    )
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
        **inputs.positions,
        **update,
        T=tasks,
        N=config.rows,
        V=V,
        WIDTH=WIDTH,
        ROWS=rows_for(WIDTH),
        **config.options,
        **OPTIONS,
    )


def sum_moments(grads: Sequence[Tensor | None]) -> tuple[Tensor, Tensor, Tensor]:
    """Sum over tasks, Gram matrix M of the sums over dimension 0, and Q = B * sum_b of the per-sample Gram matrices."""
    return _sum_moments(grads, None)


def sum_moments_update(grads: Sequence[Tensor | None], *update: Any) -> tuple[Tensor, Tensor, Tensor]:
    """`sum_moments`, and the update of the GNR weights in the same launch."""
    return _sum_moments(grads, update)


def _sum_moments(grads: Sequence[Tensor | None], update: Update | None) -> tuple[Tensor, Tensor, Tensor]:
    inputs = inputs_of(grads, by_sample=True)
    tasks = inputs.tasks
    M, Q = (inputs.total.new_empty((tasks, tasks), dtype=torch.float32) for _ in range(2))
    launch = _moments_of_few if tasks <= configs.FEW_PAIRS else sums_many.sum_moments
    launch(inputs, M, Q, GNRStep(tasks, update))
    return inputs.total, M, Q


def _moments_of_few(inputs: Inputs, M: Tensor, Q: Tensor, step: GNRStep) -> None:
    total, tasks = inputs.total, inputs.tasks
    chip = chip_of(total.device)
    V = configs.lanes_of_pairs(chip, tasks, _group(inputs))
    registers = configs.moments_registers(tasks, V, step.update is not None)
    config = configs.by_samples(
        chip, tasks, total.shape[0], inputs.layout.positions, V, registers, total.element_size()
    )
    HALF = power_of_two(tasks * (tasks + 1) // 2)
    numbers = config.partials(2 * HALF, tasks * config.rows * V)
    memory, tickets = workspace(total.device, step.scratch + numbers)
    own: dict[str, Any]
    if config.splits == 1:
        kernel, own = kernels.sum_moments_few, {"BOTH": tasks <= configs.FEW}
    else:
        R = rows_for(power_of_two(tasks * config.rows * V))
        kernel, own = kernels.sum_moments_split, {"NB": config.samples, "R": R}
    kernel[(config.programs.count,)](
        inputs.tensors,
        total,
        M,
        Q,
        memory.narrow(0, step.scratch, numbers),
        tickets,
        inputs.present,
        **config.sharing,
        **inputs.samples,
        **step.arguments(M, memory.narrow(0, 0, step.scratch), config.warps),
        **own,
        T=tasks,
        N=config.rows,
        V=V,
        HALF=HALF,
        ROWS=rows_for(2 * HALF),
        **config.options,
        **OPTIONS,
    )
