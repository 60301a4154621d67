"""The bytes that kernels move, counted by the PTX executor, are the floor: each gradient read once, each sum written once.

What stands beside that is stated exactly: partial results, and the results.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastmtl.backends import triton as backend
from fastmtl.backends.triton import chips
from fastmtl.backends.triton.launching import power_of_two
from tests.gpu.executing import SMALL, WIDE
from tests.gpu.ptx import Run, executed_as_ptx

NUMBER = 4  # bytes of a partial result, a statistic, a ticket
# Whole blocks and tails, one task to many, every dtype; several blocks a program and one.
CASES = [
    pytest.param(tasks, shape, dtype, chip, id=f"T{tasks}-{str(dtype).removeprefix('torch.')}-{chip.name}")
    for tasks, shape, dtype in [
        (1, (4, 2048), torch.float32),
        (3, (5, 1000), torch.float32),
        (3, (5, 1000), torch.bfloat16),
        (3, (2, 20000), torch.float16),
        (8, (3, 3000), torch.bfloat16),
    ]
    for chip in (SMALL, WIDE)
]


def _grads(tasks: int, shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor | None]:
    return [torch.randn(shape).to(dtype) for _ in range(tasks)]


def _bytes(run: Run) -> tuple[int, int]:
    assert run.total("lld_bytes") == run.total("lst_bytes") == 0, "local memory"
    return run.total("gld_bytes"), run.total("gst_bytes")


def _finish(run: Run, width: int) -> tuple[int, int]:
    """Bytes that the last programs read and that all write: rows of ``width`` partial results and tickets.

    Each program, and each group of programs, writes a row, which is read once, and takes a ticket; the last of each group, and
    the last of all, put theirs back to zero.
    """
    (launch,) = run.launches
    programs = launch.grid[0]
    groups = -(-programs // launch.bound["group"])
    rows = programs + groups
    assert run.total("atomics") == rows
    return rows * (width + 1) * NUMBER, (rows * (width + 1) + groups + 1) * NUMBER


@pytest.mark.parametrize(("tasks", "shape", "dtype", "chip"), CASES)
def test_sum_norms(tasks, shape, dtype, chip):
    grads = _grads(tasks, shape, dtype)
    with chips.assume(chip), executed_as_ptx([0]) as run:
        backend.sum_norms(grads)
    size = grads[0].numel() * dtype.itemsize
    read, written = _finish(run, max(2, power_of_two(tasks)))
    assert _bytes(run) == (tasks * size + read, size + written + tasks * NUMBER)


@pytest.mark.parametrize(("tasks", "shape", "dtype", "chip"), CASES)
def test_sum_moments(tasks, shape, dtype, chip):
    grads = _grads(tasks, shape, dtype)
    with chips.assume(chip), executed_as_ptx([0]) as run:
        backend.sum_moments(grads)
    size = grads[0].numel() * dtype.itemsize
    read, written = _finish(run, 2 * power_of_two(tasks * (tasks + 1) // 2))
    assert _bytes(run) == (tasks * size + read, size + written + 2 * tasks**2 * NUMBER)


@pytest.mark.parametrize(
    ("tasks", "shape", "dtype", "samples"),
    [
        (3, (200, 1000), torch.float32, 1),
        (3, (256, 256), torch.bfloat16, 4),
        (2, (600, 40), torch.float16, 16),
        (3, (1000, 1), torch.float32, 128),
    ],
)
def test_samples_that_programs_share(tasks, shape, dtype, samples):
    """Few positions: several samples at a time, and the sums of the shares of all programs written and read once."""
    grads = _grads(tasks, shape, dtype)
    with chips.assume(WIDE), executed_as_ptx([0]) as run:
        backend.sum_moments(grads)
    (launch,) = run.launches
    assert launch.kwargs["NB"] == samples
    programs, blocks, splits = launch.grid[0], launch.bound["blocks"], launch.bound["splits"]
    assert programs == blocks * splits > 1
    groups = blocks * -(-splits // launch.bound["group"])
    rows, width = programs + groups + blocks, 2 * power_of_two(tasks * (tasks + 1) // 2)
    assert run.total("atomics") == rows
    tiles = (programs + groups) * tasks * launch.kwargs["N"] * launch.kwargs["V"]
    size = grads[0].numel() * dtype.itemsize
    read = tasks * size + (rows * (width + 1) + tiles) * NUMBER
    written = size + (rows * (width + 1) + tiles + groups + blocks + 1 + 2 * tasks**2) * NUMBER
    assert _bytes(run) == (read, written)


def test_a_missing_gradient_is_not_read():
    grads = _grads(3, (4, 1000), torch.float32)
    with chips.assume(SMALL), executed_as_ptx([0]) as run:
        backend.sum_norms([grads[0], None, grads[2]])
    size = grads[0].numel() * 4
    read, written = _finish(run, 4)
    assert _bytes(run) == (2 * size + read, size + written + 3 * NUMBER)


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last], ids=str)
def test_any_common_layout(form):
    grads = [torch.randn(4, 16, 8, 8).to(memory_format=form) for _ in range(3)]
    with chips.assume(SMALL), executed_as_ptx([0]) as run:
        backend.sum_moments(grads)
    size = grads[0].numel() * 4
    read, written = _finish(run, 16)
    assert _bytes(run) == (3 * size + read, size + written + 2 * 9 * NUMBER)
