"""Ops over lists on CUDA, executed without a GPU: several launches, columns that differ, no bit that depends on the order."""

from __future__ import annotations

import pytest
import torch

from fastmtl.backends import cuda as backend
from fastmtl.backends import reference
from tests.cuda.hosting import on_host
from tests.cuda.nvcc_ptx import executed_as_nvcc_ptx

OPS = ("gram", "squared_norms", "weighted_sum")


def _numbers(shape, dtype=torch.float32, seed=0, offset=0):
    """Small whole numbers: every sum of products is exact, in whatever order; ``offset`` elements into their memory."""
    generator = torch.Generator().manual_seed(seed)
    count = torch.Size(shape).numel()
    memory = torch.zeros(count + offset, dtype=dtype)
    memory[offset:] = torch.randint(-3, 4, (count,), generator=generator).to(dtype)
    return memory[offset:].view(shape)


def _list(tasks, lengths, dtype_of=lambda n: torch.float32, offset_of=lambda n: 0, missing=lambda k, n: False):
    return [
        None if missing(k, n) else _numbers((length,), dtype_of(n), 100 * k + n, offset_of(n))
        for k in range(tasks)
        for n, length in enumerate(lengths)
    ]


def _run(implementations, op, tensors, tasks):
    weights = [torch.arange(tasks) % 5 - 2.0] if op == "weighted_sum" else []
    result = getattr(implementations, op)(tensors, tasks, *weights)
    return result if isinstance(result, list) else [result]


def _check(op, tensors, tasks):
    for result, expected in zip(_run(backend, op, tensors, tasks), _run(reference, op, tensors, tasks), strict=True):
        assert result.dtype == expected.dtype
        assert torch.equal(result, expected)


@pytest.mark.parametrize("op", OPS)
def test_many_columns_take_several_launches(op):
    lengths = [1 + 7 * n % 90 for n in range(60)]
    tensors = _list(40, lengths, missing=lambda k, n: (k + n) % 7 == 0 or (n == 5 and k > 0))
    with on_host(processors=1):
        _check(op, tensors, 40)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("tasks", [3, 12])
def test_dtypes_and_alignments_share_a_list(op, tasks):
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    tensors = _list(tasks, [64, 129, 40, 7, 256, 4104, 4105], lambda n: dtypes[n % 3], lambda n: n % 4 == 1)
    with on_host():
        _check(op, tensors, tasks)


@pytest.mark.parametrize("op", OPS)
def test_columns_without_gradients_and_without_elements(op):
    tensors = _list(2, [0, 0, 8], missing=lambda k, n: n == 2 and op != "weighted_sum")
    with on_host():
        _check(op, tensors, 2)


@pytest.mark.parametrize("dtype", backend.DTYPES, ids=str)
def test_a_sum_over_one_of_its_gradients(dtype):
    tensors = _list(3, [5000, 31], lambda n: dtype)
    expected = _run(reference, "weighted_sum", tensors, 3)
    with on_host(order=1):
        backend.weighted_sum_out(tensors, 3, torch.tensor([-2.0, -1.0, 0.0]), [tensors[2], tensors[5]])
    assert torch.equal(tensors[2], expected[0])
    assert torch.equal(tensors[5], expected[1])


def test_a_sum_into_memory_with_gaps():
    tensors = _list(2, [60])
    out = torch.full((12, 10), 7.0)
    grads = [tensor.view(12, 5) for tensor in tensors]
    with on_host():
        backend.weighted_sum_out(grads, 2, torch.tensor([1.0, 2.0]), [out[:, ::2]])
    assert torch.equal(out[:, ::2], grads[0] + 2 * grads[1])
    assert (out[:, 1::2] == 7).all()


def test_weights_in_float64_with_strides():
    tensors = _list(3, [50])
    weights = torch.tensor([1.0, 9.0, 2.0, 9.0, 3.0, 9.0], dtype=torch.float64)[::2]
    with on_host():
        (result,) = backend.weighted_sum(tensors, 3, weights)
    assert torch.equal(result, tensors[0] + 2 * tensors[1] + 3 * tensors[2])


def test_weight_of_a_missing_gradient_is_not_used():
    tensors = [None, _numbers((9,))]
    with on_host():
        (result,) = backend.weighted_sum(tensors, 2, torch.tensor([float("nan"), 1.0]))
    assert torch.equal(result, tensors[1])


@pytest.mark.parametrize(("rows", "columns"), [(1, 65), (41, 3), (50, 90)])
def test_cross_gram_of_more_rows_than_a_launch_takes(rows, columns):
    left = [None if k % 5 == 1 else _numbers((4, 9), torch.bfloat16, k) for k in range(rows)]
    right = [None if k % 5 == 2 else _numbers((4, 9), torch.float32, 100 + k) for k in range(columns)]
    with on_host():
        assert torch.equal(backend.cross_gram(left, right), reference.cross_gram(left, right))


@pytest.mark.parametrize("op", ["gram", "squared_norms"])
@pytest.mark.parametrize("tasks", [3, 12])
def test_order_of_blocks_changes_no_bit(op, tasks):
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(length, generator=generator) for _ in range(tasks) for length in (3000, 17, 2001)]
    results = []
    for order in (0, 1, 2):
        with on_host(order=order):
            results.append(getattr(backend, op)(tensors, tasks))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("op", ["gram", "squared_norms"])
def test_launches_add_up_as_ptx(op):
    tensors = _list(40, [12, 5, 1, 40, 3, 8, 64, 2, 16, 9, 24], offset_of=lambda n: n % 2)
    with executed_as_nvcc_ptx() as run:
        _check(op, tensors, 40)
    assert len(run.launches) == 2  # 16 bytes at a time, and single numbers


@pytest.mark.parametrize(("op", "arguments", "message"), [
    ("gram", ([torch.zeros(2, dtype=torch.float64)], 1), "expected float32, bfloat16 or float16, got float64"),
    ("squared_norms", ([torch.zeros(2)] * 65, 65), "tasks: expected at most 64, got 65"),
    ("cross_gram", ([None], [torch.zeros(2)]), "left: expected at least one tensor, got none"),
    ("weighted_sum", ([torch.zeros(2), None], 1, torch.ones(1)), "expected at least one task's tensor 1, got none"),
    ("weighted_sum", ([torch.zeros(2)], 1, torch.ones(2)), "weights: expected shape [1], got [2]"),
    ("weighted_sum_out", ([torch.zeros(2)], 1, torch.ones(1), []), "out: expected 1 tensors, got 0"),
    ("weighted_sum_out", ([torch.zeros(2)], 1, torch.ones(1), [torch.zeros(1).expand(2)]), "memory of its own"),
    ("cross_gram", ([torch.zeros(2)], [torch.zeros(3)]), "right: expected shape [2], got [3]"),
    ("sample_gram", ([torch.zeros(())], torch.ones(1)), "expected a batch dimension"),
])  # fmt: skip
def test_says_what_is_wrong(op, arguments, message):
    with on_host(), pytest.raises(RuntimeError) as caught:
        getattr(backend, op)(*arguments)
    assert message in str(caught.value)
