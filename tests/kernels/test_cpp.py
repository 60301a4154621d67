"""The C++ backend against a float64 oracle: layouts, dtypes, odd sizes, threads, instruction sets, errors."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor

from fastmtl.backends import contract, cpp, reference

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(cpp.unavailable(CPU) is not None, reason=str(cpp.unavailable(CPU)))

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def _isas() -> list[str]:
    flags = torch.backends.cpu.get_cpu_capability()
    return ["generic"] + ["avx2"] * (flags in ("AVX2", "AVX512")) + ["avx512"] * (flags == "AVX512")


@pytest.fixture(params=_isas())
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("FASTMTL_CPU_ISA", request.param)
    assert cpp.instruction_set() == request.param
    return str(request.param)


@pytest.fixture(autouse=True)
def _uninitialised_memory_is_nan() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


def _grads(tasks: int, shape: Sequence[int], dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return [
        ((k + 1) * (shared + torch.randn(*shape, generator=generator, dtype=torch.float64))).to(dtype)
        for k in range(tasks)
    ]


def _wide(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    return [None if t is None else t.double() for t in tensors]


def _check_statistics(got: Tensor, exact: Tensor, dtype: torch.dtype, relative: float = 5e-7) -> None:
    """Within rounding of products of norms: the scale on which a dot product can be exact."""
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    diagonal = exact.diagonal().sqrt() if exact.dim() == 2 else exact.sqrt()
    scale = diagonal[:, None] * diagonal if exact.dim() == 2 else exact
    tolerance = 1e-13 if dtype == torch.float64 else relative
    error = (got.double() - exact).abs()
    assert (error <= tolerance * scale).all(), (error / scale).max()


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
    _, exact_M, exact_Q = reference.sum_moments(_wide(grads))
    _check_total(total, grads)
    # M is of sums over samples, which cancel: its scale is that of Q, of which it is at most the whole.
    limit = (exact_Q.diagonal()[:, None] * exact_Q.diagonal()).sqrt() * (1e-13 if dtype == torch.float64 else relative)
    assert ((M.double() - exact_M).abs() <= limit).all()
    _check_statistics(Q, exact_Q, dtype, relative)
    assert torch.equal(M, M.T) and torch.equal(Q, Q.T)
    total, norms = cpp.sum_norms(grads)
    _check_total(total, grads)
    _check_statistics(norms, reference.squared_norms(_wide(grads), tasks), dtype, relative)
    _check_statistics(cpp.squared_norms(grads, tasks), reference.squared_norms(_wide(grads), tasks), dtype, relative)
    _check_statistics(cpp.gram(grads, tasks), reference.gram(_wide(grads), tasks), dtype, relative)
    weights = torch.linspace(-1, 2, tasks)
    _check_total(cpp.weighted_sum(grads, tasks, weights)[0], grads, weights)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tasks", [1, 2, 3, 4, 6, 7, 10, 13])
def test_matches_oracle(isa: str, tasks: int, dtype: torch.dtype) -> None:
    for shape in [(4, 2500), (3, 5, 7), (70, 11), (1, 33), (19,)]:
        _check_all(list(_grads(tasks, shape, dtype)))


@pytest.mark.parametrize("tasks", [1, 5, 29, 64])
def test_numbers_of_tasks(tasks: int) -> None:
    _check_all(list(_grads(tasks, (9, 1300))))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(
    "shape",
    [(1,), (300,), (5000,), (2000, 1), (1000, 3), (200, 129), (130, 1500), (2, 40000), (16, 2047), (600, 1100)],
    ids=str,
)
def test_shapes(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Few positions with many samples, as well as the opposite, take different paths."""
    _check_all(list(_grads(3, shape, dtype)))
    _check_all(list(_grads(8, shape, dtype)))


LAYOUTS = {
    "channels_last": lambda g: g.contiguous(memory_format=torch.channels_last),
    "transposed": lambda g: g.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
    "batch_innermost": lambda g: g.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    "sliced": lambda g: torch.stack([g, g + 1], -1)[..., 0],
    "rows_sliced": lambda g: torch.cat([g, g], -1)[..., : g.shape[-1]],
    "samples_sliced": lambda g: torch.stack([g, g], 1)[:, 0],
    "expanded": lambda g: g[:1, :, :1, :1].expand_as(g),
    "expanded_samples": lambda g: g[:1].expand_as(g),
    "offset": lambda g: torch.cat([g.new_zeros(1), g.flatten()])[1:].view_as(g),
    "contiguous": lambda g: g,
}


def _tolerance(*layouts: str) -> float:
    """Equal numbers are all rounded the same way, by more where sums have fewer lanes."""
    return 3e-6 if any("expanded" in layout for layout in layouts) else 5e-7


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("first", LAYOUTS)
@pytest.mark.parametrize("second", LAYOUTS)
def test_layouts(first: str, second: str, dtype: torch.dtype) -> None:
    grads = _grads(3, (6, 5, 4, 9), dtype)
    layouts = LAYOUTS[first](grads[0]), LAYOUTS[second](grads[1]), LAYOUTS[first](grads[2])
    _check_all(list(layouts), _tolerance(first, second))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_many_chunks(layout: str) -> None:
    grads = _grads(3, (3, 31, 40, 27))
    relative = 1e-5 if "expanded" in layout else 5e-7
    _check_all([grads[0], LAYOUTS[layout](grads[1]), None], relative)
    _check_all([LAYOUTS[layout](grads[0]), grads[1], grads[2]], relative)


def test_missing_gradients() -> None:
    grads = _grads(8, (5, 700))
    _check_all([None, grads[1], None, grads[3], *grads[4:], None])
    _check_all([None, grads[1]])
    tensors: list[Tensor | None] = [*_grads(3, (40,)), None, *_grads(2, (7, 11), seed=1), *_grads(3, (3,), seed=2)]
    lists = [tensors[0], None, tensors[6], tensors[1], tensors[4], None, tensors[2], tensors[5], tensors[8]]
    _check_statistics(cpp.gram(lists, 3), reference.gram(_wide(lists), 3), torch.float32)
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
        columns = [_grads(tasks, shape, dtype, seed) for seed, shape in enumerate(shapes)]
        lists: list[Tensor | None] = [column[task] for task in range(tasks) for column in columns]
        _check_statistics(cpp.gram(lists, tasks), reference.gram(_wide(lists), tasks), dtype)
        _check_statistics(cpp.squared_norms(lists, tasks), reference.squared_norms(_wide(lists), tasks), dtype)
        weights = torch.linspace(0.1, 2, tasks)
        for got, column in zip(cpp.weighted_sum(lists, tasks, weights), columns, strict=True):
            _check_total(got, column, weights)


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "sliced"])
def test_weighted_sum_in_place(layout: str) -> None:
    grads = [LAYOUTS[layout](g) for g in _grads(3, (6, 5, 14, 29))]
    weights = torch.tensor([0.5, -1.0, 2.0])
    expected = cpp.weighted_sum(grads, 3, weights)[0]
    for aliased in range(3):
        inputs = [LAYOUTS[layout](g.clone()) for g in grads]
        cpp.weighted_sum_out(inputs, 3, weights, [inputs[aliased]])
        assert torch.equal(inputs[aliased], expected)
        untouched = (aliased + 1) % 3
        assert torch.equal(inputs[untouched], grads[untouched])


def test_matrix_rows_and_weights_of_any_stride() -> None:
    matrix = torch.stack(_grads(4, (3001,)))
    for rows in (matrix, matrix.T.contiguous().T):
        _check_statistics(cpp.gram(list(rows.unbind()), 4), (matrix.double() @ matrix.double().T), torch.float32)
    weights = torch.arange(8.0)[::2]
    expected = (weights[:, None].double() * matrix.double()).sum(0)
    assert torch.allclose(cpp.weighted_sum(list(matrix), 4, weights)[0].double(), expected, atol=1e-4)


def test_same_bits_for_any_number_of_threads(isa: str) -> None:
    cases = [
        _grads(3, (8, 30000)),
        _grads(10, (3, 50001)),
        _grads(7, (900, 130)),
        _grads(3, (8, 30000), torch.bfloat16),
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


def _check_products(grads: list[Tensor | None], relative: float = 5e-7) -> None:
    like = contract.present_of(grads)[0]
    wide = contract.statistics_dtype(like)
    shifted = [None if g is None else (g.to(wide) + k).contiguous() for k, g in enumerate(grads)]
    left = [*shifted[:2], like.to(wide)]
    rows, columns = (reference.squared_norms(_wide(side), len(side)).sqrt() for side in (left, grads))
    scale = torch.outer(rows, columns)
    tolerance = 1e-13 if like.dtype == torch.float64 else relative
    error = (cpp.cross_gram(left, grads).double() - reference.cross_gram(_wide(left), _wide(grads))).abs()
    assert (error <= tolerance * scale).all(), (error / scale).max()
    weights = torch.rand(like.shape[0], dtype=wide)
    exact = reference.sample_gram(_wide(grads), weights.double())
    got = cpp.sample_gram(grads, weights)
    _check_statistics(got, exact, like.dtype, relative)
    assert torch.equal(got, got.T)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tasks", [1, 2, 3, 6, 11])
def test_products(isa: str, tasks: int, dtype: torch.dtype) -> None:
    for shape in [(4, 2500), (3, 5, 7), (70, 11), (1, 33), (2, 40000), (700, 1)]:
        grads: list[Tensor | None] = list(_grads(tasks, shape, dtype))
        _check_products(grads)
        _check_products([*grads, None, grads[0]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("rows", [1, 7, 20, 100])
def test_moments_of_linear_layers(isa: str, rows: int, pairs: bool, dtype: torch.dtype) -> None:
    for batch, inner, outputs in [(20, 33, 9), (9, 5, 20), (1, 1, 1)]:
        inputs = _grads(1, (inner, batch), dtype, 1)[0].T
        grads: list[Tensor | None] = list(_grads(3, (batch, outputs), dtype))
        for given in (grads, [grads[0], None, *grads[1:]], [grads[0], _grads(1, (outputs, batch), dtype)[0].T]):
            for bias in (False, True):
                exact = reference.linear_moments(inputs.double(), _wide(given), bias, True, "form")
                got = cpp.rows_linear_moments(inputs, given, bias, True, pairs, rows)
                # By torch's products, in the dtype.
                for value, wanted in zip(got, exact, strict=True):
                    _check_statistics(value, wanted, dtype, 2e-6)
                (M,) = cpp.rows_linear_moments(inputs, given, bias, False, pairs, rows)
                assert torch.equal(M, got[0])


@pytest.mark.parametrize("first", LAYOUTS)
@pytest.mark.parametrize("second", LAYOUTS)
def test_products_of_layouts(isa: str, first: str, second: str) -> None:
    a, b, c = _grads(3, (5, 4, 7, 6))
    _check_products([LAYOUTS[first](a), LAYOUTS[second](b), c], _tolerance(first, second))


def test_products_do_not_depend_on_the_threads() -> None:
    grads = list(_grads(3, (7, 30011)))
    weights = torch.rand(7)
    results = []
    for threads in (1, 2, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            results.append((cpp.cross_gram(grads[:2], grads), cpp.sample_gram(grads, weights)))
        finally:
            torch.set_num_threads(before)
    for cross, samples in results[1:]:
        assert torch.equal(cross, results[0][0]) and torch.equal(samples, results[0][1])


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
