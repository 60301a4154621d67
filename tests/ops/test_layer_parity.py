"""What must hold of any moments, and the per-sample gradients of other libraries."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, grad, vmap

from fastmtl import ops
from tests.ops.layer_oracle import PROBLEMS, from_contributions

KINDS = ["linear", "linear-tokens", "conv2d-padded", "transposed2d-groups", "embedding-padding", "layernorm"]
EXAMPLES = settings(max_examples=25, deadline=None, database=None)


@st.composite
def problems(draw):
    problem = PROBLEMS[draw(st.sampled_from(KINDS))]
    tasks = draw(st.integers(1, 5))
    _, inputs, grads = problem.make(tasks=tasks)
    mixing = torch.tensor(draw(st.lists(st.floats(-2, 2), min_size=tasks**2, max_size=tasks**2)), dtype=torch.float64)
    mixed = torch.einsum("kj,j...->k...", mixing.view(tasks, tasks), torch.stack(grads))
    return problem, inputs, list(mixed.unbind()), draw(st.sampled_from(problem.ways))


def close(got, expected, scale):
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10 * float(scale.abs().max()))


@EXAMPLES
@given(problems())
def test_symmetric_and_positive_semidefinite(problem):
    problem, inputs, grads, way = problem
    M, Q = problem.measure(inputs, grads, way=way)
    for matrix in (M, Q, Q - M):
        close(matrix, matrix.T, Q)
        assert torch.linalg.eigvalsh(matrix).min() >= -1e-10 * float(Q.diagonal().max())


@EXAMPLES
@given(problems(), st.randoms(use_true_random=False), st.floats(-3, 3))
def test_permuted_and_scaled_tasks(problem, random, factor):
    problem, inputs, grads, way = problem
    order = list(range(len(grads)))
    random.shuffle(order)
    scales = torch.ones(len(grads), dtype=torch.float64)
    scales[0] = factor
    changed = [scales[k] * grads[k] for k in order]
    for got, plain in zip(
        problem.measure(inputs, changed, way=way), problem.measure(inputs, grads, way=way), strict=True
    ):
        expected = torch.outer(scales, scales) * plain
        close(got, expected[order][:, order], plain * max(1.0, factor**2))


@EXAMPLES
@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 6), st.integers(1, 4), st.integers(1, 70))
def test_of_any_shape_the_moments_of_samples_and_of_tokens_agree(batch, inner, outputs, positions, tasks):
    """A sample of several positions is the sum of as many samples of one: M must be the same, Q is that of groups."""
    tasks = min(tasks, 64)
    generator = torch.Generator().manual_seed(batch + 10 * inner)
    inputs = torch.randn(batch, positions, inner, generator=generator, dtype=torch.float64)
    grads = torch.randn(tasks, batch, positions, outputs, generator=generator, dtype=torch.float64)
    M, Q = ops.linear_moments(inputs, grads)
    own = torch.einsum("kbso,bsi->kboi", grads, inputs).flatten(2)
    own = torch.cat([own, grads.sum(2)], 2)
    expected_M, expected_Q = from_contributions(own)
    close(M, expected_M, expected_Q)
    close(Q, expected_Q, expected_Q)
    close(ops.linear_moments(inputs.flatten(0, 1), grads.flatten(1, 2))[0], expected_M, expected_Q)


class Network(nn.Module):
    """Every kind of layer, with two heads."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 4, padding_idx=3)
        self.conv = nn.Conv1d(4, 6, 3, padding="same", padding_mode="circular")
        self.up = nn.ConvTranspose1d(6, 4, 3, stride=2, padding=1, output_padding=1)
        self.norm = nn.LayerNorm(4)
        self.tokens = nn.Linear(4, 5)
        self.last = nn.Linear(5, 7)
        self.heads = nn.ModuleList([nn.Linear(7, 1), nn.Linear(7, 3)])

    def forward(self, indices):
        hidden = torch.tanh(self.conv(self.embed(indices).transpose(1, 2)))
        hidden = torch.tanh(self.tokens(self.norm(self.up(hidden).transpose(1, 2))))
        hidden = torch.relu(self.last(hidden.mean(1)))
        return [head(hidden) for head in self.heads]


def losses(outputs):
    return [outputs[0].square().mean(), outputs[1].logsumexp(1).mean()]


def test_a_network_against_per_sample_gradients_of_torch_func():
    torch.manual_seed(0)
    network = Network().double()
    indices = torch.randint(11, (6, 5))
    seen = {}

    def record(name):
        def hook(module, inputs, output):
            seen[name] = (inputs[0].detach(), output)

        return hook

    layers = {name: module for name, module in network.named_children() if name != "heads"}
    for name, module in layers.items():
        module.register_forward_hook(record(name))
    of_tasks = losses(network(indices))
    deltas = {
        name: [torch.autograd.grad(loss, output, retain_graph=True)[0] for loss in of_tasks]
        for name, (_, output) in seen.items()
    }
    inputs = {name: value for name, (value, _) in seen.items()}
    hat = nn.functional.layer_norm(inputs["norm"], (4,))
    measured = {
        "embed": ops.embedding_moments(indices, deltas["embed"], padding_idx=3),
        "conv": ops.conv_moments(inputs["conv"], deltas["conv"], 3, padding="same", padding_mode="circular"),
        "up": ops.conv_moments(inputs["up"], deltas["up"], 3, stride=2, padding=1, transposed=True),
        "norm": ops.norm_moments(hat, deltas["norm"], (2,)),
        "tokens": ops.linear_moments(inputs["tokens"], deltas["tokens"]),
        "last": ops.linear_moments(inputs["last"], deltas["last"]),
    }
    parameters = {name: value.detach() for name, value in network.named_parameters()}

    def loss(values, sample, task):
        return losses(functional_call(network, values, (sample.unsqueeze(0),)))[task]

    own = [vmap(grad(loss), (None, 0, None))(parameters, indices, task) for task in range(2)]
    total = [0, 0]
    for name, (M, Q) in measured.items():
        contributions = torch.stack(
            [
                torch.cat([g.flatten(1) for key, g in task.items() if key.startswith(name + ".")], 1) / len(indices)
                for task in own
            ]
        )
        expected = from_contributions(contributions)
        close(M, expected[0], expected[1])
        close(Q, expected[1], expected[1])
        total = [total[0] + M, total[1] + Q]
    # Moments of several layers add up.
    shared = [
        torch.cat([g.flatten(1) for key, g in task.items() if not key.startswith("heads")], 1) / len(indices)
        for task in own
    ]
    expected = from_contributions(torch.stack(shared))
    close(total[0], expected[0], expected[1])
    close(total[1], expected[1], expected[1])


@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
def test_norms_and_variance_of_backpack():
    """Both are of g_kb / B, and the variance is that of the population, (Q - M) / B^2."""
    backpack = pytest.importorskip("backpack", reason="BackPACK (backpack-for-pytorch) is not installed")
    extensions = pytest.importorskip("backpack.extensions")
    torch.manual_seed(0)
    batch = 8
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(100, 5)).double()
    loss_function = nn.CrossEntropyLoss()
    inputs, labels = torch.randn(batch, 3, 5, 5, dtype=torch.float64), torch.randint(5, (batch,))
    hidden = network[0](inputs)
    flat = network[2](network[1](hidden))
    output = network[3](flat)
    to_hidden, to_output = torch.autograd.grad(loss_function(output, labels), (hidden, output))
    measured = [
        ops.conv_moments(inputs, [to_hidden], 3, padding=1),
        ops.linear_moments(flat.detach(), [to_output]),
    ]
    backpack.extend(network)
    backpack.extend(loss_function)
    with backpack.backpack(extensions.BatchL2Grad(), extensions.Variance()):
        loss_function(network(inputs), labels).backward()
    for layer, (M, Q) in zip((network[0], network[3]), measured, strict=True):
        parameters = list(layer.parameters())
        squares = sum(p.batch_l2.sum() for p in parameters)
        torch.testing.assert_close(Q.squeeze(), batch * squares)
        torch.testing.assert_close(M.squeeze(), sum(p.grad.square().sum() for p in parameters))
        torch.testing.assert_close((Q - M).squeeze(), batch**2 * sum(p.variance.sum() for p in parameters))
