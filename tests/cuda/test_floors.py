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


def _halves(tasks: int) -> int:
    """Results where a thread writes a pair's in both halves: those of the diagonal twice."""
    return tasks**2 + tasks


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
    results = 2 * _halves(tasks) * NUMBER
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


# Lists of two tensors for each task.
LISTS = [
    (1, (2048, 96), torch.float32),
    (3, (1001, 30), torch.float32),
    (3, (5000, 96), torch.bfloat16),
    (9, (2048, 640), torch.float16),
    (20, (520, 96), torch.bfloat16),
]
lists = pytest.mark.parametrize(("tasks", "lengths", "dtype"), LISTS, ids=str)


def _tensors(tasks: int, lengths: tuple[int, ...], dtype: torch.dtype) -> list[Tensor | None]:
    return [torch.randn(length).to(dtype) for _ in range(tasks) for length in lengths]


@lists
def test_gram(tasks, lengths, dtype):
    with executed_as_nvcc_ptx() as run:
        backend.gram(_tensors(tasks, lengths, dtype), tasks)
    width = _pairs(tasks) if tasks <= 10 else _pairs(-(-tasks // 16)) * THREADS_OF_MANY
    read, written, atomics = _finish(run.launches[0].blocks, width)
    results = tasks**2 if tasks <= 10 else _halves(tasks)
    assert run.total("atomics") == atomics
    assert _bytes(run) == (tasks * sum(lengths) * dtype.itemsize + read, written + results * NUMBER)


@lists
def test_squared_norms(tasks, lengths, dtype):
    with executed_as_nvcc_ptx() as run:
        backend.squared_norms(_tensors(tasks, lengths, dtype), tasks)
    read, written, atomics = _finish(run.launches[0].blocks, tasks)
    assert run.total("atomics") == atomics
    assert _bytes(run) == (tasks * sum(lengths) * dtype.itemsize + read, written + tasks * NUMBER)


@lists
def test_weighted_sum(tasks, lengths, dtype):
    with executed_as_nvcc_ptx() as run:
        backend.weighted_sum(_tensors(tasks, lengths, dtype), tasks, torch.rand(tasks))
    size = sum(lengths) * dtype.itemsize
    weights = run.launches[0].blocks * tasks * NUMBER  # each block reads them
    assert run.total("atomics") == 0
    assert _bytes(run) == (tasks * size + weights, size)


@pytest.mark.parametrize(("rows", "columns"), [(2, 3), (10, 40), (20, 24)])
def test_cross_gram(rows, columns):
    shape = (7, 300)
    with executed_as_nvcc_ptx() as run:
        backend.cross_gram(_grads(rows, shape, torch.float32), _grads(columns, shape, torch.bfloat16))
    tiles = (1 if rows <= 16 else 3) * (1 if columns <= 16 else 3)
    read, written, atomics = _finish(run.launches[0].blocks, tiles * THREADS_OF_MANY)
    assert run.total("atomics") == atomics
    assert _bytes(run) == (2100 * (rows * 4 + columns * 2) + read, written + rows * columns * NUMBER)


@pytest.mark.parametrize(("tasks", "dtype"), [(3, torch.float32), (20, torch.bfloat16)])
def test_sample_gram(tasks, dtype):
    """A sample's weight is read for each of its positions, by the blocks that have them."""
    shape = (7, 300)
    with executed_as_nvcc_ptx() as run:
        backend.sample_gram(_grads(tasks, shape, dtype), torch.rand(7))
    width = _pairs(1 if tasks <= 16 else 4) * THREADS_OF_MANY
    read, written, _ = _finish(run.launches[0].blocks, width)
    assert _bytes(run) == (
        2100 * (tasks * dtype.itemsize + NUMBER) + read,
        written + _halves(tasks) * NUMBER,
    )
