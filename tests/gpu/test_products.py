"""Products of gradients beyond the shared table: small samples of many tasks, groups wider than 16 bytes, bytes read."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from fastmtl.backends.triton import chips, products
from tests.gpu.ptx import Run, executed_as_ptx
from tests.gpu.try_cases import SMALL

HALF, FLOAT = torch.bfloat16, torch.float32


def _normal(tasks: int, shape: Sequence[int], dtype: torch.dtype, shift: int = 0) -> list[Tensor]:
    """Tensors that begin ``shift`` elements after an address for 16 bytes."""
    made = [torch.zeros(torch.Size(shape).numel() + shift, dtype=dtype) for _ in range(tasks)]
    return [tensor[shift:].view(shape).copy_(torch.randn(shape)) for tensor in made]


def _close(result: Tensor, expected: Tensor) -> None:
    scale = expected.diagonal().sqrt() if expected.shape[0] == expected.shape[1] else expected.abs().max().sqrt()[None]
    assert ((result - expected).abs() <= 1e-6 * torch.outer(scale, scale)).all()


def _sample_gram(grads: Sequence[Tensor], weights: Tensor) -> Run:
    with chips.assume(SMALL), executed_as_ptx((0, 1)) as run:
        result = products.sample_gram(grads, weights)
    flat = torch.stack([grad.double().flatten(1) for grad in grads])
    _close(result, torch.einsum("kbp,b,jbp->kj", flat, weights.double(), flat))
    assert torch.equal(result, result.T)
    return run


def _cross_gram(left: Sequence[Tensor], right: Sequence[Tensor]) -> Run:
    with chips.assume(SMALL), executed_as_ptx((0, 1)) as run:
        result = products.cross_gram(left, right)
    rows, columns = (torch.stack([tensor.double().flatten() for tensor in tensors]) for tensors in (left, right))
    scale = torch.outer(rows.norm(dim=1), columns.norm(dim=1))
    assert ((result - rows @ columns.T).abs() <= 1e-6 * scale).all()
    return run


@pytest.mark.parametrize("dtype", [HALF, FLOAT])
@pytest.mark.parametrize("positions", [1, 7, 8, 16, 24])
def test_small_samples_of_many_tasks_share_a_tile(positions: int, dtype: torch.dtype) -> None:
    _sample_gram(_normal(10, (21, positions), dtype), torch.rand(21))


@pytest.mark.parametrize("tasks", [3, 12])
def test_a_weight_that_is_not_finite_stays_with_its_sample(tasks: int) -> None:
    weights = torch.rand(5)
    weights[4] = torch.inf  # the last one of a block with samples and positions that are not there
    grads = [grad.abs() + 1 for grad in _normal(tasks, (5, 5), FLOAT)]
    with chips.assume(SMALL), executed_as_ptx((0,)):
        result = products.sample_gram(grads, weights)
    assert (result == torch.inf).all()


@pytest.mark.parametrize("shift", [1, 4, 8])
@pytest.mark.parametrize("tasks", [3, 20])
def test_groups_of_the_narrower_dtype_take_two_reads_of_the_wider(tasks: int, shift: int) -> None:
    _cross_gram(_normal(2, (3, 40), FLOAT, shift), _normal(tasks, (3, 40), HALF))


@pytest.mark.parametrize("tasks", [3, 12])
def test_both_lists_have_layouts_of_their_own(tasks: int) -> None:
    right = [grad.transpose(0, 1) for grad in _normal(tasks, (9, 6, 8), HALF)]
    _cross_gram(_normal(tasks, (6, 9, 8), FLOAT), right)


def _partials(run: Run, width: int) -> int:
    programs, group = run.launches[0].bound["programs"], run.launches[0].bound["group"]
    return 4 * width * (programs + -(-programs // group))


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


@pytest.mark.parametrize("dtype", [HALF, FLOAT])
@pytest.mark.parametrize(("rows", "columns", "width"), [(1, 3, 4), (1, 30, 32), (1, 40, 16 * 64), (20, 20, 32 * 32)])
def test_cross_gram_reads_each_tensor_once(rows: int, columns: int, width: int, dtype: torch.dtype) -> None:
    left, right = _normal(rows, (4, 320), FLOAT), _normal(columns, (4, 320), dtype)
    run = _cross_gram(left, right)
    tickets = run.total("gld_bytes") - _bytes(left) - _bytes(right) - _partials(run, width)
    assert 0 <= tickets <= 256
    assert ".v4.b32" in run.texts[0]


@pytest.mark.parametrize("dtype", [HALF, FLOAT])
@pytest.mark.parametrize(("tasks", "shape"), [(3, (8, 2048)), (3, (300, 104)), (12, (8, 320)), (12, (60, 16))])
def test_sample_gram_reads_each_tensor_once(tasks: int, shape: tuple[int, int], dtype: torch.dtype) -> None:
    grads = _normal(tasks, shape, dtype)
    run = _sample_gram(grads, torch.rand(shape[0]))
    width = 8 if tasks == 3 else 256
    rest = run.total("gld_bytes") - _bytes(grads) - _partials(run, width)
    # Threads read the weight of their group, from the cache: 4 bytes of 16 of each tensor, or of each tile of 32 groups.
    columns = 64 if dtype == HALF and shape[1] > 32 else 32
    weights = _bytes(grads) // tasks // 4 if tasks == 3 else shape[0] * shape[1] // columns * 4 * 32
    assert 0 <= rest <= 256 + weights
    assert ".v4.b32" in run.texts[0]
