"""`sum_moments` on CUDA beyond the shared cases: many samples of few positions, and the update of many tasks in one launch."""

from __future__ import annotations

import pytest
import torch

from fastmtl.backends import cuda, reference
from fastmtl.testing.gnr import gnr_cases
from tests.cuda.hosting import on_host
from tests.cuda.nvcc_ptx import executed_as_nvcc_ptx
from tests.shared import poisoned_memory

SHAPES = {"split": (300, 40), "odd": (70, 33), "one position": (500, 1), "samples side by side": (4096, 3)}


def _grads(tasks, shape, dtype):
    generator = torch.Generator().manual_seed(tasks)
    shared = torch.randn(shape, generator=generator)
    grads = [(shared + torch.randn(shape, generator=generator)).to(dtype) for _ in range(tasks)]
    return [*grads[:-1], None] if tasks > 2 else grads


def _check(results, grads):
    total, M, Q = results
    _, exact_M, exact_Q = reference.sum_moments([None if grad is None else grad.double() for grad in grads])
    assert torch.equal(total, reference.sum_norms(grads)[0])
    # M is of sums over samples, which cancel: its scale is that of Q, of which it is at most the whole.
    scale = exact_Q.diagonal().max()
    assert ((M.double() - exact_M).abs() <= 1e-6 * scale).all()
    assert ((Q.double() - exact_Q).abs() <= 1e-6 * scale).all()
    assert torch.equal(M, M.T)
    assert torch.equal(Q, Q.T)


@pytest.mark.parametrize("dtype", cuda.DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("tasks", [2, 7, 10, 17, 40])
def test_many_samples_of_few_positions(tasks, shape, dtype):
    grads = _grads(tasks, shape, dtype)
    with on_host(processors=6, order=1), poisoned_memory():
        _check(cuda.sum_moments(grads), grads)


@pytest.mark.parametrize("tasks", [3, 17])
def test_blocks_that_share_samples_as_ptx(tasks):
    grads = _grads(tasks, (130, 40), torch.float32)
    with executed_as_nvcc_ptx(processors=6) as run:
        results = cuda.sum_moments(grads)
    _check(results, grads)
    assert run.launches[0].blocks > 2, "no block shares the samples of a tile"


def test_the_update_of_many_tasks_in_the_same_launch():
    (case,) = (case for case in gnr_cases() if case.name == "T64-relative" and case.dtype == torch.float32)
    generator = torch.Generator().manual_seed(0)
    updates = [case.make(torch.Generator().manual_seed(0))[2:] for _ in range(2)]
    for arguments in updates:
        arguments[0][1] = 1.0  # these gradients are not scaled
    grads = [torch.randn(8, 50, generator=generator) + 1 for _ in range(64)]
    with on_host(), poisoned_memory():
        results = cuda.sum_moments_update(grads, *updates[0])
    expected = reference.sum_moments_update(grads, *updates[1])
    for result, exact in zip([*results, *updates[0][:8]], [*expected, *updates[1][:8]], strict=True):
        # S of the averages is a difference of what it is measured by: its scale is theirs.
        assert ((result - exact).abs() <= 2e-6 * exact.abs().max()).all()
