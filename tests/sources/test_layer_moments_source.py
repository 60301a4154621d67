"""M and Q measured in a training step equal brute force: one backward for each sample and task."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fastmtl import GradientStatistics, GradNorm, MaxGNR

BATCH, TASKS = 4, 3


def images(channels: int = 4, size: int = 6) -> Tensor:
    return torch.randn(BATCH, channels, size, size)


class Windows(nn.Module):
    """Samples cut into windows: the linear layer sees [B * windows, tokens, features]."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.reshape(BATCH * 2, 3, 6)).reshape(BATCH, 6, 5)


# A layer (or a network and its layer), and its input.
LAYERS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "linear": lambda: (nn.Linear(6, 5), torch.randn(BATCH, 6)),
    "linear, no bias": lambda: (nn.Linear(6, 5, bias=False), torch.randn(BATCH, 6)),
    "linear, tokens": lambda: (nn.Linear(6, 5), torch.randn(BATCH, 3, 6)),
    "linear, tokens, no bias": lambda: (nn.Linear(6, 5, bias=False), torch.randn(BATCH, 3, 6)),
    "linear, tokens, not contiguous": lambda: (nn.Linear(6, 5), torch.randn(BATCH, 6, 3).transpose(1, 2)),
    "linear, grid": lambda: (nn.Linear(6, 5), torch.randn(BATCH, 2, 3, 6)),
    "conv": lambda: (nn.Conv2d(4, 5, 3, padding=1), images()),
    "conv, stride, dilation": lambda: (nn.Conv2d(4, 5, 3, stride=2, dilation=2, padding=3), images()),
    "conv, groups": lambda: (nn.Conv2d(4, 6, 3, groups=2, bias=False), images()),
    "conv, reflect": lambda: (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), images()),
    "conv, channels last": lambda: (nn.Conv2d(4, 5, 3), images().to(memory_format=torch.channels_last)),
    "conv1d": lambda: (nn.Conv1d(4, 6, 3), torch.randn(BATCH, 4, 9)),
    "conv3d": lambda: (nn.Conv3d(2, 3, 2), torch.randn(BATCH, 2, 4, 4, 4)),
    "transposed conv": lambda: (nn.ConvTranspose2d(4, 5, 3, stride=2, output_padding=1), images()),
    "embedding": lambda: (
        nn.Embedding(7, 5, padding_idx=0),
        torch.tensor([[1, 2, 2], [0, 3, 1], [1, 1, 6], [0, 0, 2]]),
    ),
    "embedding, no padding": lambda: (nn.Embedding(7, 5), torch.tensor([[1, 2, 2], [0, 3, 1], [1, 1, 6], [0, 0, 2]])),
    "layer norm": lambda: (nn.LayerNorm((3, 8)), torch.randn(BATCH, 2, 3, 8)),
    "layer norm, no bias": lambda: (nn.LayerNorm(8, bias=False), torch.randn(BATCH, 8)),
    "group norm": lambda: (nn.GroupNorm(2, 4), images()),
    "rms norm": lambda: (nn.RMSNorm(8), torch.randn(BATCH, 3, 8)),
    "batch norm, eval": lambda: (nn.BatchNorm2d(4).eval(), images()),
    "windows": lambda: (Windows(), torch.randn(BATCH, 6, 6)),
}


def layer_of(network: nn.Module) -> nn.Module:
    return network.linear if isinstance(network, Windows) else network


def features_of(network: nn.Module, x: Tensor) -> Tensor:
    """Shared operations follow the layer."""
    out = network(x)
    return torch.tanh(out) + 0.5 * out


def losses_of(views: list[Tensor], targets: list[Tensor]) -> list[Tensor]:
    """Means over the samples."""
    return [(k + 1.0) * (v - t).square().mean() for k, (v, t) in enumerate(zip(views, targets, strict=True))]


def brute_force(network: nn.Module, layers: list[nn.Module], x: Tensor, targets: list[Tensor]) -> tuple[Tensor, Tensor]:
    """M and Q from per-sample gradients g_kb, formed one by one in float64."""
    parameters = [
        parameter for layer in layers for parameter in layer.parameters(recurse=False) if parameter.requires_grad
    ]
    features, rows = features_of(network, x), []
    for k, target in enumerate(targets):
        for b in range(BATCH):
            loss = (k + 1.0) * (features[b] - target[b]).square().mean()
            grads = torch.autograd.grad(loss, parameters, retain_graph=True)
            rows.append(torch.cat([grad.double().flatten() for grad in grads]))
    samples = torch.stack(rows).reshape(len(targets), BATCH, -1)
    mean = samples.mean(1)
    return mean @ mean.T, torch.einsum("kbp,jbp->kj", samples, samples) / BATCH


def measure(
    network: nn.Module, source: object, x: Tensor, targets: list[Tensor], scale: float = 1.0
) -> GradientStatistics:
    balancer = GradientStatistics(TASKS, source=source, weights=[0.5, 1.0, 1.5])  # type: ignore[arg-type]
    (scale * balancer(losses_of(list(balancer.fork(features_of(network, x))), targets))).backward()
    return balancer


def assert_moments(balancer: GradientStatistics, expected: tuple[Tensor, Tensor], eps: float = 2.0**-20) -> None:
    sizes = expected[1].diagonal()
    for measured, exact in zip(balancer.moments, expected, strict=True):
        error = (measured.double() - exact).abs() / torch.outer(sizes, sizes).sqrt()
        assert error.max() <= eps, error


@pytest.mark.parametrize("kind", LAYERS)
def test_moments_of_a_layer(kind: str, backend: str) -> None:
    network, x = LAYERS[kind]()
    targets = [torch.randn_like(features_of(network, x)) for _ in range(TASKS)]
    balancer = measure(network, layer_of(network), x, targets, scale=8.0)
    assert_moments(balancer, brute_force(network, [layer_of(network)], x, targets))


def test_moments_of_several_layers_add_up(backend: str) -> None:
    network = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.GroupNorm(2, 6), nn.ReLU(), nn.Conv2d(6, 5, 1))
    layers = [network[0], network[1], network[3]]
    x = images()
    targets = [torch.randn_like(features_of(network, x)) for _ in range(TASKS)]
    assert_moments(measure(network, layers, x, targets), brute_force(network, layers, x, targets))


def test_parameters_that_are_not_trained_are_left_out(backend: str) -> None:
    network, x = nn.Linear(6, 5), torch.randn(BATCH, 6)
    targets = [torch.randn(BATCH, 5) for _ in range(TASKS)]
    network.bias.requires_grad_(False)
    assert_moments(measure(network, network, x, targets), brute_force(network, [network], x, targets))
    network.weight.requires_grad_(False)
    network.bias.requires_grad_(True)
    with pytest.raises(ValueError, match="source: expected a layer whose weight is trained"):
        measure(network, network, x, targets)


def test_two_readings_of_the_features(backend: str) -> None:
    """GradNorm: the norm of the whole representation gradient. Variance: a shift added to every sample's features."""
    x = torch.randn(BATCH, 3, 5, requires_grad=True)
    targets = [torch.randn(BATCH, 3, 5) for _ in range(TASKS)]
    balancer = GradientStatistics(TASKS, source="features")
    norms = GradNorm(TASKS, alpha=1.0)
    for measuring in (balancer, norms):
        measuring(losses_of(list(measuring.fork(x)), targets)).backward()
    grads = torch.stack([torch.autograd.grad(loss, x)[0].double() for loss in losses_of([x] * TASKS, targets)])
    torch.testing.assert_close(norms.norms.double(), grads.flatten(1).norm(dim=1), rtol=1e-5, atol=0)
    shift = grads.sum(1).flatten(1)
    samples = torch.einsum("kbsp,jbsp->kj", grads, grads) * BATCH
    assert_moments(balancer, (shift @ shift.T, samples))
    torch.testing.assert_close(norms.norms.double(), (samples.diagonal() / BATCH).sqrt(), rtol=1e-5, atol=0)


def test_features_before_a_tail(backend: str) -> None:
    """The moments are those of a shift before the tail."""
    x = torch.randn(BATCH, 3, 5, requires_grad=True)
    weight = torch.randn(5, 2)

    def tail(z: Tensor) -> Tensor:
        return torch.tanh(z @ weight)

    targets = [torch.randn(BATCH, 3, 2) for _ in range(TASKS)]
    balancer = GradientStatistics(TASKS, source="features")
    balancer(losses_of(list(balancer.fork(x, tail=tail)), targets)).backward()
    losses = losses_of([tail(x) for _ in range(TASKS)], targets)
    grads = torch.stack([torch.autograd.grad(loss, x)[0].double() for loss in losses])
    shift = grads.sum(1).flatten(1)
    assert_moments(balancer, (shift @ shift.T, torch.einsum("kbsp,jbsp->kj", grads, grads) * BATCH))


def test_pyramids_add_up(backend: str) -> None:
    levels = [torch.randn(BATCH, 3, size, requires_grad=True) for size in (8, 4)]
    balancer = GradientStatistics(2, source="features")
    views = balancer.fork(tuple(levels))
    losses = [sum(level.square().mean() * (k + 1) for level in view) for k, view in enumerate(views)]
    balancer(losses).backward()
    expected = torch.zeros(2, 2, dtype=torch.float64)
    for level in levels:
        grads = torch.stack([2 * (k + 1) * level.detach().double() / level.numel() for k in range(2)])
        expected += torch.einsum("kbcs,jbcs->kj", grads, grads) * BATCH
    torch.testing.assert_close(balancer.moments[1].double(), expected, rtol=1e-5, atol=0)


def test_bfloat16_step(backend: str) -> None:
    """Widened before the products: M and Q of the bfloat16 gradients that arrive, not of rounded products."""
    network, x = nn.Linear(16, 8).bfloat16(), torch.randn(BATCH, 16).bfloat16()
    targets = [torch.randn(BATCH, 8).bfloat16() for _ in range(TASKS)]
    measured = measure(network, network, x, targets).moments
    wide, _ = network.float(), x.float()
    exact = brute_force(wide, [wide], x.float(), [target.float() for target in targets])
    sizes = exact[1].diagonal()
    for got, expected in zip(measured, exact, strict=True):
        assert got.dtype == torch.float32
        # The gradients themselves are rounded to 8 bits at each of a handful of operations.
        assert ((got.double() - expected).abs() / torch.outer(sizes, sizes).sqrt()).max() < 8 * 2**-8


def test_batch_norm_in_training_has_no_per_sample_gradients() -> None:
    layer = nn.BatchNorm2d(4)
    balancer = GradientStatistics(TASKS, source=layer)
    with pytest.raises(
        ValueError, match="source: BatchNorm2d in training mode computes with statistics of the whole batch"
    ):
        balancer.fork(layer(images()))


def test_batch_norm_in_training_has_a_gram_matrix(backend: str) -> None:
    layer, x = nn.BatchNorm2d(4), images()
    targets = [torch.randn_like(x) for _ in range(TASKS)]
    balancer = MaxGNR(TASKS, source=layer, objective="intertask")
    balancer(losses_of(list(balancer.fork(features_of(layer, x))), targets)).backward()
    rows = []
    for loss in losses_of([features_of(layer, x) for _ in range(TASKS)], targets):
        grads = torch.autograd.grad(loss, list(layer.parameters()))
        rows.append(torch.cat([grad.double().flatten() for grad in grads]))
    expected = torch.stack(rows) @ torch.stack(rows).T
    scale = expected.diagonal().max()
    assert (balancer.gram.double() - expected).abs().max() <= 2.0**-20 * scale


def test_batch_norm_between_source_and_losses_warns_once() -> None:
    layer, norm, head = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def step(balancer: GradientStatistics, shared: Callable[[Tensor], Tensor], own: Callable[[Tensor], Tensor]) -> None:
        views = balancer.fork(shared(layer(images())))
        balancer([own(view).square().mean() for view in views]).backward()

    for shared, own in ((norm, F.relu), (F.relu, head)):
        balancer = GradientStatistics(2, source=layer)
        with pytest.warns(UserWarning, match="there is batch norm in training mode between the source and the losses"):
            step(balancer, shared, own)
        step(balancer, shared, own)
    # Neither before the layer nor in eval mode nor as instance norm does it mix samples there.
    before = nn.BatchNorm2d(4)
    balancer = GradientStatistics(2, source=layer)
    views = balancer.fork(F.instance_norm(layer(before(images()))))
    balancer([head.eval()(view).square().mean() for view in views]).backward()


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.relu(self.layer(x)))


def test_what_cannot_be_measured_says_so() -> None:
    twice = Twice()
    with pytest.raises(ValueError, match="source: Linear is used 2 times before the fork"):
        GradientStatistics(2, source=twice.layer).fork(twice(torch.randn(BATCH, 5)))
    prelu = nn.PReLU(4)
    with pytest.raises(
        ValueError, match="source: expected a linear, convolution, embedding or norm layer .* got PReLU"
    ):
        GradientStatistics(2, source=prelu).fork(prelu(images()))
    frequent = nn.Embedding(5, 3, scale_grad_by_freq=True)
    with pytest.raises(ValueError, match="scale_grad_by_freq=True mixes the samples"):
        GradientStatistics(2, source=frequent).fork(frequent(torch.zeros(BATCH, 2, dtype=torch.int64)))
    conv = nn.Conv2d(4, 4, 1)
    with pytest.raises(ValueError, match=f"expected one input of Conv2d for each of the {BATCH} samples"):
        GradientStatistics(2, source=conv).fork(conv(images().repeat(2, 1, 1, 1)).reshape(BATCH, -1))
    linear, sequence_first = nn.Linear(5, 5), torch.randn(6, BATCH, 5, requires_grad=True)
    with pytest.raises(ValueError, match=r"samples first \(batch_first=True\)"):
        GradientStatistics(2, source=linear).fork(linear(sequence_first).transpose(0, 1))
    checkpointed = nn.Linear(5, 5)
    features = checkpoint(checkpointed, torch.randn(BATCH, 5, requires_grad=True), use_reentrant=False)
    with pytest.raises(ValueError, match="source: the input of Linear is not kept"):
        GradientStatistics(2, source=checkpointed).fork(features)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's own
def test_a_compiled_backbone_says_so() -> None:
    layer = nn.Linear(5, 5)
    trunk = torch.compile(nn.Sequential(layer, nn.Tanh()), backend="aot_eager")
    features = trunk(torch.randn(BATCH, 5))
    with pytest.raises(ValueError, match="source: Linear is part of a compiled backbone"):
        GradientStatistics(2, source=layer).fork(features)


def positions_first(layer: nn.Module, x: Tensor) -> Tensor:
    """[B, S, D] through a layer that sees [S, B, D]."""
    return layer(x.transpose(0, 1)).transpose(0, 1)


def flattened_positions_first(layer: nn.Module, x: Tensor) -> Tensor:
    """[B, S, D] through a layer that sees [S * B, D]."""
    batch, length, width = x.shape
    return layer(x.transpose(0, 1).reshape(-1, width)).reshape(length, batch, -1).transpose(0, 1)


@pytest.mark.parametrize(("forward", "length"), [(positions_first, BATCH), (flattened_positions_first, 6)])
def test_samples_that_are_not_first_are_noticed(forward: Callable[[nn.Module, Tensor], Tensor], length: int) -> None:
    """Also where shapes cannot tell: as many positions as samples, or both in one dimension."""
    layer = nn.Linear(8, 8)
    balancer = GradientStatistics(2, source=layer)
    with pytest.raises(
        ValueError, match="source: the features of one sample depend on several samples of Linear's input"
    ):
        balancer.fork(torch.relu(forward(layer, torch.randn(BATCH, length, 8))))


def test_attention_works_positions_first_inside() -> None:
    attention, x = nn.MultiheadAttention(8, 2, batch_first=True), torch.randn(BATCH, BATCH, 8)
    with pytest.raises(ValueError, match="depend on several samples"):
        GradientStatistics(2, source=attention.out_proj).fork(attention(x, x, x)[0])
    for make in (GradientStatistics, partial(GradNorm, alpha=0.5)):
        with pytest.raises(ValueError, match="and no others inside .* got MultiheadAttention"):
            make(2, source=attention)


def test_samples_are_looked_at_once() -> None:
    layer = nn.Linear(5, 5)
    balancer = GradientStatistics(2, source=layer)
    calls: list[Tensor] = []
    for _ in range(3):
        out = layer(torch.randn(BATCH, 5))
        out.register_hook(calls.append)
        views = balancer.fork(torch.relu(out))
        balancer([(k + 1) * view.square().mean() for k, view in enumerate(views)]).backward()
    assert len(calls) == 3 * (2 + 1) + 1  # two tasks and the sum in each step
