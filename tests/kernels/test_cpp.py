"""The C++ backend against a float64 oracle: layouts, dtypes, odd sizes, threads, instruction sets, errors."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from fastmtl.backends import contract, cpp, reference
from tests.kernels.oracle import CPU, DTYPES, LAYOUTS, MARKS, check_statistics, random_grads, tolerance_of, wide_of

pytestmark = MARKS


def _check_total(got: Tensor, grads: Sequence[Tensor | None], weights: Tensor | None = None) -> None:
    """Bit for bit the sum in the order of the tasks; with weights, within the rounding of a fused multiply-add."""
    present = contract.present_of(grads)
    like = contract.empty_total(grads)
    assert (got.dtype, got.shape, got.stride()) == (like.dtype, like.shape, like.stride())
    if weights is None:
        assert torch.equal(got, reference.sums._sum(grads))
        return
    exact = sum(w * g.double() for w, g in zip(weights.double(), grads, strict=True) if g is not None)
    size = sum(w.abs() * g.double().abs() for w, g in zip(weights.double(), grads, strict=True) if g is not None)
    rounding = torch.finfo(got.dtype).eps * torch.as_tensor(exact).abs()
    summing = torch.finfo(contract.statistics_dtype(got)).eps * len(present) * size
    tiny = torch.finfo(got.dtype).smallest_normal * torch.finfo(got.dtype).eps
    assert ((got.double() - exact).abs() <= rounding + summing + tiny).all()


def _check_all(grads: list[Tensor | None], relative: float = 5e-7) -> None:
    dtype = contract.present_of(grads)[0].dtype
    tasks = len(grads)
    total, M, Q = cpp.sum_moments(grads)
    _, exact_M, exact_Q = reference.sum_moments(wide_of(grads))
    _check_total(total, grads)
    # M is of sums over samples, which cancel: its scale is that of Q, of which it is at most the whole.
    limit = (exact_Q.diagonal()[:, None] * exact_Q.diagonal()).sqrt() * (1e-13 if dtype == torch.float64 else relative)
    assert ((M.double() - exact_M).abs() <= limit).all()
    check_statistics(Q, exact_Q, dtype, relative)
    assert torch.equal(M, M.T) and torch.equal(Q, Q.T)
    total, norms = cpp.sum_norms(grads)
    _check_total(total, grads)
    check_statistics(norms, reference.squared_norms(wide_of(grads), tasks), dtype, relative)
    check_statistics(cpp.squared_norms(grads, tasks), reference.squared_norms(wide_of(grads), tasks), dtype, relative)
    check_statistics(cpp.gram(grads, tasks), reference.gram(wide_of(grads), tasks), dtype, relative)
    weights = torch.linspace(-1, 2, tasks)
    _check_total(cpp.weighted_sum(grads, tasks, weights)[0], grads, weights)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tasks", [1, 2, 3, 4, 6, 7, 10, 13])
def test_matches_oracle(isa: str, tasks: int, dtype: torch.dtype) -> None:
    for shape in [(4, 2500), (3, 5, 7), (70, 11), (1, 33), (19,)]:
        _check_all(list(random_grads(tasks, shape, dtype)))


@pytest.mark.parametrize("tasks", [1, 5, 29, 64])
def test_numbers_of_tasks(tasks: int) -> None:
    _check_all(list(random_grads(tasks, (9, 1300))))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(
    "shape",
    [
        (1,),
        (300,),
        (5000,),
        (2000, 1),
        (1000, 3),
        (200, 129),
        (130, 1500),
        (2, 40000),
        (16, 2047),
        (600, 1100),
        (3, 300_001),
    ],
    ids=str,
)
def test_shapes(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Few positions with many samples, as well as the opposite, take different paths."""
    _check_all(list(random_grads(3, shape, dtype)))
    _check_all(list(random_grads(8, shape, dtype)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("tasks", [1, 3, 4, 6, 10])
def test_what_the_caches_do_not_hold(isa: str, tasks: int, dtype: torch.dtype) -> None:
    """Sums go past the caches where all is aligned; where samples are not, some do."""
    for positions in (16 * (175_200 // tasks), 2_803_200 // tasks | 1):
        _check_all(list(random_grads(tasks, (3, positions), dtype)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("first", LAYOUTS)
@pytest.mark.parametrize("second", LAYOUTS)
def test_layouts(first: str, second: str, dtype: torch.dtype) -> None:
    grads = random_grads(3, (6, 5, 4, 9), dtype)
    layouts = LAYOUTS[first](grads[0]), LAYOUTS[second](grads[1]), LAYOUTS[first](grads[2])
    _check_all(list(layouts), tolerance_of(first, second))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_many_chunks(layout: str) -> None:
    grads = random_grads(3, (3, 31, 40, 27))
    relative = 1e-5 if "expanded" in layout else 5e-7
    _check_all([grads[0], LAYOUTS[layout](grads[1]), None], relative)
    _check_all([LAYOUTS[layout](grads[0]), grads[1], grads[2]], relative)


def test_missing_gradients() -> None:
    grads = random_grads(8, (5, 700))
    _check_all([None, grads[1], None, grads[3], *grads[4:], None])
    _check_all([None, grads[1]])
    tensors: list[Tensor | None] = [
        *random_grads(3, (40,)),
        None,
        *random_grads(2, (7, 11), seed=1),
        *random_grads(3, (3,), seed=2),
    ]
    lists = [tensors[0], None, tensors[6], tensors[1], tensors[4], None, tensors[2], tensors[5], tensors[8]]
    check_statistics(cpp.gram(lists, 3), reference.gram(wide_of(lists), 3), torch.float32)
    lists = [tensors[0], None, None, tensors[1]]
    out = [torch.full((40,), math.nan), torch.full((40,), math.nan)]
    cpp.weighted_sum_out(lists, 2, torch.tensor([2.0, 3.0]), out)
    assert torch.equal(out[0], 2 * tensors[0]) and torch.equal(out[1], 3 * tensors[1])
    cpp.weighted_sum_out([None, None], 2, torch.ones(2), out[:1])
    assert torch.equal(out[0], torch.zeros(40))


def test_empty_tensors() -> None:
    for shape in [(0,), (0, 3), (3, 0), (2, 0, 4)]:
        total, M, Q = cpp.sum_moments([torch.empty(shape), None])
        assert total.shape == shape and torch.equal(M, torch.zeros(2, 2)) and torch.equal(Q, torch.zeros(2, 2))
        assert torch.equal(cpp.sum_norms([torch.empty(shape)])[1], torch.zeros(1))
        assert cpp.weighted_sum([torch.empty(shape)], 1, torch.ones(1))[0].shape == shape
    lists = [torch.ones(3), torch.empty(0), torch.tensor(2.0), torch.ones(3), torch.empty(0), torch.tensor(3.0)]
    assert cpp.gram(lists, 2).tolist() == [[7, 9], [9, 12]]
    assert cpp.squared_norms(lists, 2).tolist() == [7, 12]


def test_scalars() -> None:
    grads = [torch.tensor(2.0), torch.tensor(3.0)]
    total, norms = cpp.sum_norms(grads)
    assert total.shape == () and total.item() == 5 and norms.tolist() == [4, 9]
    assert cpp.weighted_sum(grads, 2, torch.tensor([1.0, -1.0]))[0].item() == -1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_lists(isa: str, dtype: torch.dtype) -> None:
    for tasks in (2, 10, 40):
        shapes = [(3,), (20, 33), (0,), (1,), (5000,), (17, 4, 3, 3)]
        columns = [random_grads(tasks, shape, dtype, seed) for seed, shape in enumerate(shapes)]
        lists: list[Tensor | None] = [column[task] for task in range(tasks) for column in columns]
        check_statistics(cpp.gram(lists, tasks), reference.gram(wide_of(lists), tasks), dtype)
        check_statistics(cpp.squared_norms(lists, tasks), reference.squared_norms(wide_of(lists), tasks), dtype)
        weights = torch.linspace(0.1, 2, tasks)
        for got, column in zip(cpp.weighted_sum(lists, tasks, weights), columns, strict=True):
            _check_total(got, column, weights)


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "sliced"])
def test_weighted_sum_in_place(layout: str) -> None:
    grads = [LAYOUTS[layout](g) for g in random_grads(3, (6, 5, 14, 29))]
    weights = torch.tensor([0.5, -1.0, 2.0])
    expected = cpp.weighted_sum(grads, 3, weights)[0]
    for aliased in range(3):
        inputs = [LAYOUTS[layout](g.clone()) for g in grads]
        cpp.weighted_sum_out(inputs, 3, weights, [inputs[aliased]])
        assert torch.equal(inputs[aliased], expected)
        untouched = (aliased + 1) % 3
        assert torch.equal(inputs[untouched], grads[untouched])


def test_matrix_rows_and_weights_of_any_stride() -> None:
    matrix = torch.stack(random_grads(4, (3001,)))
    for rows in (matrix, matrix.T.contiguous().T):
        check_statistics(cpp.gram(list(rows.unbind()), 4), (matrix.double() @ matrix.double().T), torch.float32)
    weights = torch.arange(8.0)[::2]
    expected = (weights[:, None].double() * matrix.double()).sum(0)
    assert torch.allclose(cpp.weighted_sum(list(matrix), 4, weights)[0].double(), expected, atol=1e-4)


def test_same_bits_for_any_number_of_threads(isa: str) -> None:
    cases = [
        random_grads(3, (8, 30000)),
        random_grads(10, (3, 50001)),
        random_grads(7, (900, 130)),
        random_grads(3, (8, 30000), torch.bfloat16),
    ]
    before = torch.get_num_threads()
    try:
        for grads in cases:
            results = []
            for threads in (1, 2, 3, 8):
                torch.set_num_threads(threads)
                tasks = len(grads)
                results.append(
                    [
                        *cpp.sum_moments(grads),
                        *cpp.sum_norms(grads),
                        cpp.gram(grads, tasks),
                        cpp.squared_norms(grads, tasks),
                    ]
                )
            for other in results[1:]:
                assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    finally:
        torch.set_num_threads(before)


def test_special_values_survive(isa: str) -> None:
    for dtype in DTYPES:
        info = torch.finfo(dtype)
        special = [0.0, -0.0, info.max, info.min, info.tiny, info.smallest_normal / 2, math.inf, -math.inf, math.nan]
        grad = torch.tensor(special * 5, dtype=dtype)
        for got in (cpp.sum_norms([grad])[0], cpp.sum_moments([grad])[0]):
            assert torch.equal(got.nan_to_num(7.0), grad.nan_to_num(7.0)) and torch.equal(got.isnan(), grad.isnan())
        assert cpp.gram([grad], 1).isnan().all()
    assert cpp.squared_norms([torch.tensor([math.inf])], 1).item() == math.inf


def test_half_conversions_are_exact(isa: str) -> None:
    """Every bit pattern in, and all rounding cases out."""
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.bfloat16, torch.float16):
        values = patterns.view(dtype)
        doubled = cpp.sum_norms([values, values])[0]
        assert torch.equal(doubled.nan_to_num(7.0), (values.float() * 2).to(dtype).nan_to_num(7.0))
        halves = cpp.weighted_sum([values, values.roll(1)], 2, torch.tensor([0.5, 0.25]))[0]
        expected = (values.float() * 0.5 + values.roll(1).float() * 0.25).to(dtype)
        assert torch.equal(halves.nan_to_num(7.0), expected.nan_to_num(7.0))


@pytest.mark.parametrize("adam", [True, False])
@pytest.mark.parametrize("alpha", [0.0, 0.12, 1.5])
def test_gradnorm_update(alpha: float, adam: bool) -> None:
    from fastmtl.ops.gradnorm import gradnorm_state

    tasks = 5
    generator = torch.Generator().manual_seed(3)
    ours, theirs = gradnorm_state(tasks), gradnorm_state(tasks)
    for step in range(40):
        norms = torch.rand(tasks, generator=generator) * 10
        losses = torch.rand(tasks, generator=generator) + 0.1
        present = torch.tensor([1.0, 1, step % 3 != 0, 1 + (step % 7 == 2), 1])
        scale = [1.0, 128.0, -2.0][step % 3]
        valid = 1.0
        if step < 4:
            losses[1] = 0
        if step == 6:
            losses[0] = math.nan
        if step == 7:
            norms[4] = math.inf
        if step == 8:
            scale = 0.0
        if step == 9:
            scale = math.inf
        if step == 10:
            valid = 0.0
        if step == 11:
            losses.zero_()
        if step in (12, 13):
            losses[2] = -1
        if step == 14:
            norms[1] = 0
        if step == 15:
            present.zero_()
        for state, update in ((ours, cpp.gradnorm_update), (theirs, reference.gradnorm_update)):
            message = torch.cat([torch.tensor([valid, scale]), losses, state.weights, present])
            update(norms, message, *state, alpha, 0.025, adam, 0.9, 0.999, 1e-8, 1e-3)
        for name, a, b in zip(ours._fields, ours, theirs, strict=True):
            assert torch.allclose(a.double(), b.double(), rtol=1e-6, atol=1e-7, equal_nan=True), (step, name, a, b)
            assert a.dtype.is_floating_point or torch.equal(a, b), (step, name)


def test_gradnorm_update_takes_a_diagonal_and_float64() -> None:
    from fastmtl.ops.gradnorm import gradnorm_state

    Q = torch.tensor([[4.0, 1.0], [1.0, 9.0]])
    message = torch.tensor([1, 1, 0.5, 0.6, 1, 1, 1, 1.0])
    results = []
    for norms in (Q.diagonal(), Q.diagonal().clone(), Q.double().diagonal()):
        state = gradnorm_state(2)
        cpp.gradnorm_update(norms, message, *state, 0.5, 0.025, True, 0.9, 0.999, 1e-8, 1e-3)
        results.append(state)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))
    assert not torch.equal(results[0].weights, torch.ones(2))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weigh(dtype: torch.dtype) -> None:
    losses = [torch.tensor(0.7, dtype=dtype), torch.tensor([1.5], dtype=torch.float32), torch.tensor(math.nan)]
    weights, present = torch.tensor([0.5, 1.25, 1.25]), torch.tensor([True, True, False])
    for got, expected in zip(
        cpp.weigh(losses, weights, present), reference.weigh(losses, weights, present), strict=True
    ):
        assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
        assert torch.allclose(got, expected, rtol=1e-6, equal_nan=True)


def test_schemas_are_those_of_the_contract() -> None:
    for name in contract.SCHEMAS.keys() - {*contract.COMPOSED, *contract.FUSED}:
        schema = contract.SCHEMAS[name]
        registered = str(getattr(torch.ops.fastmtl_cpp, name).default._schema)
        assert re.sub(r"\s", "", registered) == re.sub(r"\s", "", f"fastmtl_cpp::{name}{schema}")


def test_errors_name_the_argument() -> None:
    a, b = torch.ones(2, 3), torch.ones(2, 4)
    for call, message in [
        (lambda: cpp.sum_moments([a, b]), r"grads\[1\]: expected shape \[2, 3\], got \[2, 4\]"),
        (lambda: cpp.sum_norms([a, a.double()]), r"grads\[1\]: expected dtype Float, got Double"),
        (lambda: cpp.sum_norms([a.long()]), r"grads\[0\]: expected float32, bfloat16"),
        (lambda: cpp.sum_moments([torch.tensor(1.0)]), "grads: expected a batch dimension"),
        (lambda: cpp.gram([a, a, a], 2), "tensors: expected a multiple of tasks = 2 tensors, got 3"),
        (lambda: cpp.gram([a, b.double()], 1), "expected float64 for all or for none"),
        (lambda: cpp.weighted_sum([a, a], 2, torch.ones(3)), r"weights: expected shape \[2\], got \[3\]"),
        (lambda: cpp.weighted_sum([a, a], 2, torch.ones(2).int()), "weights: expected float32 or float64"),
        (lambda: cpp.weighted_sum_out([a, a], 2, torch.ones(2), [b]), r"expected shape \[2, 4\], got \[2, 3\]"),
        (lambda: cpp.weighted_sum_out([a, a], 2, torch.ones(2), [a, b]), "out: expected 1 tensors, got 2"),
        (lambda: cpp.cross_gram([a], [b]), r"right: expected shape \[2, 3\], got \[2, 4\]"),
        (lambda: cpp.cross_gram([a], [a.double()]), "right: expected float64 where left is"),
        (lambda: cpp.cross_gram([None], [a]), "left: expected at least one tensor"),
        (lambda: cpp.sample_gram([a, a], torch.ones(3)), r"weights: expected shape \[2\], got \[3\]"),
        (lambda: cpp.weigh([a], torch.ones(1), torch.ones(1, dtype=torch.bool)), r"losses\[0\]: expected one element"),
        (
            lambda: cpp.rows_linear_moments(a, [a[0]], True, True, False, 1),
            r"grads: expected \[B, out\], got shape \[3\]",
        ),
        (
            lambda: cpp.rows_linear_moments(a[0], [a], True, True, False, 1),
            r"input: expected \[B, in\], got shape \[3\]",
        ),
        (
            lambda: cpp.rows_linear_moments(a[:1], [a], True, True, False, 1),
            r"input: expected shape \[2, 3\], got \[1, 3\]",
        ),
        (lambda: cpp.rows_linear_moments(a.double(), [a], True, True, False, 1), "input: expected Float, got Double"),
        (lambda: cpp.rows_linear_moments(a, [a.half()], True, True, False, 1), "grads: expected float32 or float64"),
        (lambda: cpp.rows_linear_moments(a, [a], True, True, False, 0), "rows: expected at least 1, got 0"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            call()


def test_unknown_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTMTL_CPU_ISA", "sse9")
    with pytest.raises(RuntimeError, match="expected one of generic, avx2, avx512"):
        cpp.sum_norms([torch.ones(3)])


def test_a_library_that_does_not_load(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    from pathlib import Path

    broken = Path(str(tmp_path)) / "broken.so"
    monkeypatch.setattr(cpp, "LIBRARY", broken)
    cpp._failure_to_load.cache_clear()
    try:
        assert "not built" in str(cpp.unavailable(CPU))
        cpp._failure_to_load.cache_clear()
        broken.write_bytes(b"not a library")
        assert "failed to load" in str(cpp.unavailable(CPU))
        assert "not on cuda" in str(cpp.unavailable(torch.device("cuda")))
    finally:
        cpp._failure_to_load.cache_clear()
