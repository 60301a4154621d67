"""Moments of layers in float32 and bfloat16, of every layout, with missing gradients; bits, memory and devices."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.timing import peak_bytes
from fastmtl import ops, testing
from fastmtl.backends import layer_moments, reference
from fastmtl.backends.contract import COMPOSED
from fastmtl.backends.layer_moments import conv, embedding, factors, linear
from tests.ops.layer_oracle import PROBLEMS, brute_force, contributions, from_contributions

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
WAYS = [(name, way) for name, problem in PROBLEMS.items() for way in problem.ways if way != "auto"]


def errors(got, exact, scale):
    return float(((got.double() - exact).abs() / scale).max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("name", "way"), WAYS)
def test_at_most_twice_the_error_of_plain_torch(name, way, dtype, backend):
    """Plain torch, from the same numbers: per-sample gradients formed in float64, rounded to float32, and multiplied."""
    problem = PROBLEMS[name]
    layer, inputs, grads = problem.make(dtype=dtype)
    exact_M, exact_Q = brute_force(layer, inputs, grads)
    plain_M, plain_Q = from_contributions(contributions(layer, inputs, grads).float())
    M, Q = problem.measure(inputs, grads, way=way)
    assert M.dtype == Q.dtype == torch.float32
    norms = exact_Q.diagonal().sqrt()  # M sums what is added up in Q: that is the scale of its rounding
    scale = torch.outer(norms, norms)
    rounding = 8 * torch.finfo(torch.float32).eps
    assert errors(M, exact_M, scale) <= 2 * errors(plain_M, exact_M, scale) + rounding
    assert errors(Q, exact_Q, scale) <= 2 * errors(plain_Q, exact_Q, scale) + rounding


def test_costs_of_an_embedding_are_not_taken_for_those_of_a_linear_layer():
    """Plans are remembered by sizes, which may be the same numbers."""
    of_embedding = embedding.EmbeddingFactors(torch.zeros(4, 5, dtype=torch.int64), [torch.zeros(4, 5, 6)], None).sizes
    of_linear = factors.Sizes(**vars(of_embedding))
    assert of_embedding != of_linear and of_embedding.form_cost() != of_linear.form_cost()


LAYOUTS = {
    "transposed": lambda g: g.transpose(0, -1).contiguous().transpose(0, -1),
    "channels_last": lambda g: g.movedim(1, -1).contiguous().movedim(-1, 1),
    "sliced": lambda g: torch.stack([g, g + 1], -1)[..., 0],
    "expanded": lambda g: g.flatten()[:1].reshape([1] * g.dim()).expand(g.shape),
    "expanded-samples": lambda g: g[:1].expand_as(g),
}
OF_EACH_KIND = [
    "linear",
    "linear-tokens",
    "conv2d-padded",
    "conv2d-groups",
    "transposed2d-groups",
    "embedding",
    "groupnorm",
]


def assert_exact(problem, layer, inputs, grads):
    """Every way agrees with one backward for each sample and task, to rounding in float64."""
    exact = brute_force(layer, inputs, grads)
    for way in problem.ways:
        for got, expected in zip(problem.measure(inputs, grads, way=way), exact, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10 * float(exact[1].max()))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", OF_EACH_KIND)
def test_layouts(name, layout, backend):
    problem = PROBLEMS[name]
    layer, inputs, grads = problem.make()
    grads = [LAYOUTS[layout](grad) if task != 1 else grad for task, grad in enumerate(grads)]
    inputs = LAYOUTS["transposed"](inputs) if inputs.dim() > 1 else inputs
    assert_exact(problem, layer, inputs, grads)


@pytest.mark.parametrize("name", OF_EACH_KIND)
def test_missing_gradients_count_as_zeros(name, backend):
    problem = PROBLEMS[name]
    _, inputs, grads = problem.make(tasks=5)
    zeros = torch.zeros_like(grads[0])
    for way in problem.ways:
        missing = problem.measure(inputs, [None, grads[1], None, grads[3], grads[4]], way=way)
        filled = problem.measure(inputs, [zeros, grads[1], zeros, grads[3], grads[4]], way=way)
        for got, expected in zip(missing, filled, strict=True):
            torch.testing.assert_close(got, expected)
            assert (got[0] == 0).all() and (got[:, 2] == 0).all() and got[3, 3] > 0


@pytest.mark.parametrize("name", OF_EACH_KIND)
@pytest.mark.parametrize("tasks", [1, 2, 17, 64])
def test_numbers_of_tasks(name, tasks, backend):
    problem = PROBLEMS[name]
    layer, inputs, grads = problem.make(tasks=tasks)
    assert_exact(problem, layer, inputs, grads)


@pytest.mark.parametrize("name", OF_EACH_KIND)
def test_without_per_sample_only_Q_is_nan(name, backend):
    problem = PROBLEMS[name]
    _, inputs, grads = problem.make()
    for way in problem.ways:
        M, Q = problem.measure(inputs, grads, way=way, per_sample=False)
        torch.testing.assert_close(M, problem.measure(inputs, grads, way=way)[0], rtol=1e-10, atol=1e-10)
        assert Q.isnan().all() and Q.dtype == M.dtype


@pytest.mark.parametrize("name", OF_EACH_KIND)
def test_an_empty_batch_has_zero_moments(name, backend):
    problem = PROBLEMS[name]
    _, inputs, grads = problem.make()
    M, Q = problem.measure(inputs[:0], [grad[:0] for grad in grads])
    assert (M == 0).all() and (Q == 0).all()
    assert problem.measure(inputs[:0], [grad[:0] for grad in grads], per_sample=False)[1].isnan().all()


@pytest.mark.parametrize("name", OF_EACH_KIND)
def test_same_inputs_give_the_same_bits_and_stay_unchanged(name, backend):
    problem = PROBLEMS[name]
    _, inputs, grads = problem.make(dtype=torch.float32)
    before = [tensor.clone() for tensor in (inputs, *grads)]
    for way in problem.ways:
        first, second = (problem.measure(inputs, grads, way=way) for _ in range(2))
        for a, b in zip(first, second, strict=True):
            assert torch.equal(a, b)
            assert backend == "reference" or torch.equal(
                a, a.T
            )  # BLAS, in the reference, may round the two differently
    assert all(torch.equal(a, b) for a, b in zip(before, (inputs, *grads), strict=True))


@pytest.mark.parametrize("name", OF_EACH_KIND)
def test_autocast_around_does_not_round_the_products(name, backend):
    problem = PROBLEMS[name]
    _, inputs, grads = problem.make(dtype=torch.float32)
    for way in problem.ways:
        expected = problem.measure(inputs, grads, way=way)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = problem.measure(inputs, grads, way=way)
        assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])


@pytest.mark.parametrize("memory", [1, 300, 3000])
@pytest.mark.parametrize("name", [*OF_EACH_KIND, "linear-many-samples", "conv2d-circular", "layernorm-of-samples"])
def test_blocks_and_tiles_do_not_matter(name, memory, backend, monkeypatch):
    """The less memory, the more the batch and the rows are cut; the caller's gradients are only read."""
    for module in (linear, conv):
        monkeypatch.setattr(module, "memory_of", lambda *_: memory)
    monkeypatch.setattr(layer_moments, "LEAST_MEMORY", memory)
    problem = PROBLEMS[name]
    layer, inputs, grads = problem.make()
    exact = brute_force(layer, inputs, grads)
    before = [grad.clone() for grad in grads]
    for way in problem.ways:
        for got, expected in zip(problem.measure(inputs, grads, way=way), exact, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10 * float(exact[1].max()))
    assert all(torch.equal(a, b) for a, b in zip(before, grads, strict=True))


LAYER_CASES = [
    case for case in testing.cases() if case.op in COMPOSED and case.dtype in (torch.float32, torch.bfloat16)
]


@pytest.mark.parametrize("case", LAYER_CASES, ids=str)
def test_the_algorithms_read_nothing_on_the_host(case):
    """Fake CUDA tensors raise where a value would be read; the operators' own fakes do not come this far."""
    with FakeTensorMode() as mode:
        arguments = testing.map_tensors(
            lambda t: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cuda"),
            testing.map_tensors(mode.from_tensor, case.arguments(torch.device("cpu"))),
        )
        M, Q = testing.run(reference, case, arguments)
    tasks = len(arguments[1])
    assert M.shape == Q.shape == (tasks, tasks) and M.device.type == Q.device.type == "cuda"
    assert M.dtype == Q.dtype == torch.float32


def test_memory_stays_below_what_the_layer_has_itself():
    """Conv2d 512 -> 512, 3x3, T = 10, B = 32: its input and output, and one weight gradient."""
    inputs = torch.randn(32, 512, 8, 8)
    grads = [torch.randn(32, 512, 8, 8) for _ in range(10)]
    peak = peak_bytes(lambda: ops.conv_moments(inputs, grads, 3, padding=1))
    assert 0 < peak < 4 * (2 * inputs.numel() + 512 * 512 * 9)


def test_memory_of_forming_stays_below_it_too():
    inputs = torch.randn(8, 64, 32, 32)
    grads = [torch.randn(8, 64, 32, 32) for _ in range(4)]
    for per_sample in (True, False):
        peak = peak_bytes(
            lambda per_sample=per_sample: ops.conv_moments(
                inputs, grads, 3, padding=1, way="form", per_sample=per_sample
            )
        )
        assert 0 < peak < 4 * (2 * inputs.numel() + 64 * 64 * 9)
