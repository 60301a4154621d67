"""The bytes that the kernels move, counted by the PTX executor, are the floor: each gradient read once, each sum written once.

What stands beside that is stated exactly: partial results, tickets, and the results.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastmtl.backends import cuda as backend
from tests.cuda.nvcc_ptx import Run, executed_as_nvcc_ptx

NUMBER = 4  # bytes of a partial result, a statistic, a ticket
THREADS, THREADS_OF_MANY = 128, 256

# Whole groups of 16 bytes and single numbers, one task to many, every dtype.
CASES = [
    (1, (4, 2048), torch.float32),
    (3, (5, 1001), torch.float32),
    (3, (5, 1000), torch.bfloat16),
    (3, (2, 7000), torch.float16),
    (8, (3, 1500), torch.bfloat16),
]


def _grads(tasks: int, shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor | None]:
    return [torch.randn(shape).to(dtype) for _ in range(tasks)]


def _bytes(run: Run) -> tuple[int, int]:
    assert len(run.launches) == 1
    return run.total("gld_bytes"), run.total("gst_bytes")


def _groups(blocks: int) -> int:
    group = 1
    while group**2 < blocks:
        group *= 2
    return -(-blocks // group)


def _finish(blocks: int, width: int) -> tuple[int, int, int]:
    """Bytes read and written, and atomics, where ``blocks`` leave ``width`` partial results each.

    Each block, and each group of blocks, writes a row, which is read once, and takes a ticket, which reads and writes it; the
    last of each group, and the last of all, put theirs back to zero.
    """
    groups = _groups(blocks)
    rows = blocks + groups
    return rows * (width + 1) * NUMBER, (rows * (width + 1) + groups + 1) * NUMBER, rows


def _pairs(tasks: int) -> int:
    return tasks * (tasks + 1) // 2


@pytest.mark.parametrize(("tasks", "shape", "dtype"), CASES, ids=str)
def test_sum_norms(tasks, shape, dtype):
    grads = _grads(tasks, shape, dtype)
    with executed_as_nvcc_ptx() as run:
        backend.sum_norms(grads)
    size = grads[0].numel() * dtype.itemsize
    read, written, atomics = _finish(run.launches[0].blocks, tasks)
    assert run.total("atomics") == atomics
    assert _bytes(run) == (tasks * size + read, size + written + tasks * NUMBER)


@pytest.mark.parametrize(("tasks", "shape", "dtype"), CASES, ids=str)
def test_sum_moments(tasks, shape, dtype):
    grads = _grads(tasks, shape, dtype)
    with executed_as_nvcc_ptx() as run:
        backend.sum_moments(grads)
    size = grads[0].numel() * dtype.itemsize
    read, written, atomics = _finish(run.launches[0].blocks, 2 * _pairs(tasks))
    assert run.total("atomics") == atomics
    assert _bytes(run) == (tasks * size + read, size + written + 2 * tasks**2 * NUMBER)


def test_sum_moments_of_many_tasks():
    tasks, pairs = 17, _pairs(2)  # pairs of 16 tasks
    grads = _grads(tasks, (3, 120), torch.float32)
    with executed_as_nvcc_ptx() as run:
        backend.sum_moments(grads)
    size = grads[0].numel() * 4
    read, written, _ = _finish(run.launches[0].blocks, 2 * pairs * THREADS_OF_MANY)
    results = 2 * (tasks**2 + tasks) * NUMBER  # the diagonals are written with both halves
    assert _bytes(run) == (tasks * size + read, size + written + results)


def test_samples_that_blocks_share():
    """Few positions: the sums of the shares of all blocks are written and read once, as their partial results of Q."""
    tasks = 3
    grads = _grads(tasks, (200, 512), torch.float32)
    with executed_as_nvcc_ptx() as run:
        backend.sum_moments(grads)
    splits = run.launches[0].blocks  # of the one tile that 512 positions are
    assert splits > 1
    size = grads[0].numel() * 4
    shared = _finish(splits, (1 + 4 * tasks) * THREADS)
    last = _finish(1, 2 * _pairs(tasks))
    assert run.total("atomics") == shared[2] + last[2]
    assert _bytes(run) == (
        tasks * size + shared[0] + last[0],
        size + shared[1] + last[1] + 2 * tasks**2 * NUMBER,
    )


def test_a_missing_gradient_is_not_read():
    grads = _grads(3, (4, 1000), torch.float32)
    with executed_as_nvcc_ptx() as run:
        backend.sum_moments([grads[0], None, grads[2]])
    size = grads[0].numel() * 4
    read, written, _ = _finish(run.launches[0].blocks, 2 * _pairs(3))
    assert _bytes(run) == (2 * size + read, size + written + 2 * 9 * NUMBER)
