"""Launches of the fork's ops for many tasks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fastmtl.backends.triton import configs
from fastmtl.backends.triton.chips import chip_of
from fastmtl.backends.triton.kernels import sums_many as kernels
from fastmtl.backends.triton.launching import OPTIONS, rows_for
from fastmtl.backends.triton.layout import width
from fastmtl.backends.triton.rows import alike, columns_of, precision_of, rows_of, streaming_rows, warps_of
from fastmtl.backends.triton.workspace import workspace

LOADS = 16  # of 16 bytes that each thread of `sum_norms_many` has under way: a row each


def sum_norms_many(
    total: Tensor,
    norms: Tensor,
    tensors: Sequence[Tensor],
    present: int,
    message: Tensor | None = None,
    state: Sequence[Tensor] = (),
    options: Sequence[float] = (0.0,) * 6,
    adam: bool = False,
) -> None:
    """Into ``total``, which is dense, and ``norms`` [T]; with a ``message``, GradNorm's step follows.

    Args:
        total: the sum.
        norms: squared norms.
        tensors: the gradients, with any in place of those that did not arrive.
        present: their bits.
        message: what the heads sent.
        state: the ten tensors that `gradnorm_update` changes.
        options: alpha, lr, beta1, beta2, eps and min_weight.
        adam: whether the step is Adam's.
    """
    tasks = norms.numel()
    (_, tensors), layout = alike(([total], tensors), by_sample=False)
    TASKS = rows_of(tasks)
    V = width(total)
    chip = chip_of(total.device)
    K = 4 * chip.warp_size * V * LOADS // TASKS
    config = configs.streaming(chip, LOADS, -(-layout.positions // K), 128)
    partials, tickets = workspace(total.device, config.programs.partials(TASKS))
    alpha, lr, beta1, beta2, eps, min_weight = options
    kernels.sum_norms_many[(config.programs.count,)](
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
        layout.strides[1],
        layout.strides[0],
        norms if message is None else message,
        tuple(state) if message is not None else (norms,) * 10,
        alpha,
        lr,
        beta1,
        beta2,
        eps,
        min_weight,
        T=tasks,
        TASKS=TASKS,
        RANK=layout.rank,
        K=K,
        V=V,
        VECTOR=layout.vector,
        ROWS=rows_for(TASKS),
        STEP=message is not None,
        ADAM=adam,
        **config.options,
        **OPTIONS,
    )


def sum_moments_many(total: Tensor, M: Tensor, Q: Tensor, tensors: Sequence[Tensor], present: int) -> None:
    """Into ``total``, which is dense, ``M`` and ``Q`` [T, T]; ``tensors`` and ``present`` as of `sum_norms_many`."""
    tasks = len(tensors)
    (_, tensors), layout = alike(([total], tensors), by_sample=True)
    TASKS = rows_of(tasks)
    K, warps = columns_of(tensors), warps_of(TASKS)
    if (
        TASKS == 64
    ):  # both matrices and the sums over the samples stay in registers: narrower tiles, or they would spill
        K, warps = K // 2, 4 if K == 64 else 8
    chip = chip_of(total.device)
    blocks = -(-layout.positions // K)
    tile_bytes = K * tasks * total.element_size()
    config = streaming_rows(chip, K, warps, tile_bytes, blocks * total.shape[0], 168, units=blocks)
    partials, tickets = workspace(total.device, config.programs.partials(2 * TASKS * TASKS))
    kernels.sum_moments_many[(config.programs.count,)](
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
        layout.strides[1],
        layout.sample_strides[1],
        layout.strides[0],
        layout.sample_strides[0],
        T=tasks,
        TASKS=TASKS,
        RANK=layout.rank,
        K=K,
        V=width(total),
        VECTOR=layout.vector,
        ROWS=config.rows_for(2 * TASKS * TASKS),
        PRECISION=precision_of(chip),
        **config.options,
        **OPTIONS,
    )
