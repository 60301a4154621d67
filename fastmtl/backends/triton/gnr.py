"""The launch of GNR's update: one program."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmtl.backends.triton import configs
from fastmtl.backends.triton.chips import chip_of
from fastmtl.backends.triton.kernels import gnr as kernels
from fastmtl.backends.triton.kernels.max_min_many import ROWS
from fastmtl.backends.triton.launching import OPTIONS, power_of_two
from fastmtl.backends.triton.workspace import workspace


def width(tasks: int) -> int:
    """Rows of the tiles for T tasks."""
    return max(2, power_of_two(tasks))


def scratch_size(tasks: int) -> int:
    """Float64 numbers of `kernels.max_min_many`; `kernels.max_min_few` takes less."""
    return (4 * width(tasks) + ROWS.value) * width(tasks)


def warps(tasks: int) -> int:
    """Some 8 numbers of a tile a thread, and one warp where these are two: no step then waits for other warps."""
    return 1 if tasks <= 8 else 4 if tasks <= 32 else 8


def in_registers(tasks: int, warps: int) -> bool:
    """Whether the solver holds its matrices in registers: some ten of them, with at most two float64 numbers a thread."""
    return width(tasks) ** 2 <= 2 * 32 * warps


def gnr_update(
    M: Tensor,
    Q: Tensor | None,
    message: Tensor,
    weights: Tensor,
    moments: Tensor,
    averages: Tensor,
    shares: Tensor,
    samples: Tensor,
    counters: Tensor,
    task_counters: Tensor,
    batch: int,
    accumulation: int,
    loss_sum: bool,
    objective: str,
    decay: float,
    step: float,
    floor: float,
) -> None:
    """One step of the GNR weights; arguments as of `fastmtl.backends.reference.gnr_update`."""
    tasks, chip = weights.numel(), chip_of(weights.device)
    size = 2 * scratch_size(tasks)
    scratch, _ = workspace(weights.device, size)
    second = M if Q is None else Q
    kernels.gnr_update[(1,)](
        M,
        second,
        *M.stride(),
        *second.stride(),
        message.contiguous(),
        (weights, moments, averages, shares, samples, counters, task_counters),
        scratch[:size].view(torch.float64),
        batch,
        accumulation,
        decay,
        step,
        floor,
        T=tasks,
        P=width(tasks),
        HAS_Q=Q is not None,
        LOSS_SUM=loss_sum,
        OBJECTIVE=objective,
        ACCUMULATED=accumulation > 1,
        IN_REGISTERS=in_registers(tasks, warps(tasks)),
        CALLS=chip.calls,
        num_warps=warps(tasks),
        **configs.limited(configs.registers_left(chip, 1)),
        **OPTIONS,
    )
