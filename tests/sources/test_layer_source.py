"""The norm measured at a layer is that of its weight and bias gradients together, whatever the layer and what follows it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from fastmtl import GradNorm
from tests.training.networks import Plain, assert_same_gradients, plain_gradients, task_norms


def images(batch: int = 2, size: int = 6, channels: int = 4) -> Tensor:
    return torch.randn(batch, channels, size, size)


# A layer, and its input. Few positions and many channels: the way by pairs of positions pays; many positions: it does not.
LAYERS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "linear": lambda: (nn.Linear(32, 32), torch.randn(3, 32)),
    "linear, no bias": lambda: (nn.Linear(32, 32, bias=False), torch.randn(3, 32)),
    "linear, one sample": lambda: (nn.Linear(32, 32), torch.randn(1, 32)),
    "linear, many samples": lambda: (nn.Linear(5, 4), torch.randn(64, 5)),
    "linear, tokens": lambda: (nn.Linear(32, 32), torch.randn(2, 3, 32)),
    "linear, tokens, no bias": lambda: (nn.Linear(32, 32, bias=False), torch.randn(2, 3, 32)),
    "linear, vector": lambda: (nn.Linear(32, 32), torch.randn(32)),
    "linear, transposed input": lambda: (nn.Linear(32, 32), torch.randn(32, 3).T),
    "conv": lambda: (nn.Conv2d(4, 5, 3, padding=1), images()),
    "conv, pairs": lambda: (nn.Conv2d(64, 64, 3, padding=1), images(1, 3, 64)),
    "conv, pairs, batch": lambda: (nn.Conv2d(64, 64, 3, padding=1), images(5, 2, 64)),
    "conv, pairs, no bias": lambda: (nn.Conv2d(64, 64, 3, bias=False), images(2, 4, 64)),
    "conv, pairs, stride": lambda: (nn.Conv2d(64, 64, 3, stride=2, padding=1), images(2, 4, 64)),
    "conv, pairs, dilation": lambda: (nn.Conv2d(64, 64, (3, 2), padding=(2, 1), dilation=(2, 1)), images(1, 4, 64)),
    "conv, pairs, 1x1": lambda: (nn.Conv2d(64, 64, 1), images(2, 2, 64)),
    "conv, channels last": lambda: (nn.Conv2d(64, 64, 3), images(2, 4, 64).to(memory_format=torch.channels_last)),
    "conv, unbatched": lambda: (nn.Conv2d(64, 64, 3), images(1, 4, 64)[0]),
    "conv, groups": lambda: (nn.Conv2d(4, 6, 3, groups=2), images()),
    "conv, padding mode": lambda: (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), images()),
    "conv, same": lambda: (nn.Conv2d(4, 6, (3, 5), padding="same"), images()),
    "conv1d": lambda: (nn.Conv1d(4, 6, 3), torch.randn(2, 4, 9)),
    "conv3d": lambda: (nn.Conv3d(2, 3, 2), torch.randn(2, 2, 4, 4, 4)),
    "transposed conv": lambda: (nn.ConvTranspose2d(4, 5, 3, stride=2), images()),
    "embedding": lambda: (nn.Embedding(7, 5, padding_idx=0), torch.tensor([[1, 2, 2], [0, 3, 1]])),
    "layer norm": lambda: (nn.LayerNorm(8), torch.randn(3, 8)),
    "batch norm": lambda: (nn.BatchNorm2d(4), images()),
    "group norm": lambda: (nn.GroupNorm(2, 4), images()),
    "bilinear weight": lambda: (nn.PReLU(4), images()),
}


def features_of(layer: nn.Module, x: Tensor) -> Tensor:
    """Shared operations follow the layer."""
    out = layer(x)
    return torch.tanh(out) + 0.5 * out


def losses_of(views: list[Tensor], targets: list[Tensor]) -> list[Tensor]:
    return [
        (k + 1) * (view - target).square().mean() for k, (view, target) in enumerate(zip(views, targets, strict=True))
    ]


def check(layer: nn.Module, x: Tensor, dtype: torch.dtype = torch.float32, tasks: int = 3) -> GradNorm:
    parameters = [parameter for parameter in layer.parameters() if parameter.requires_grad]
    balancer = GradNorm(tasks, alpha=0.5, source=layer)
    features = features_of(layer, x)
    targets = [torch.randn_like(features) for _ in range(tasks)]
    used = balancer.weights.clone()
    balancer(losses_of(list(balancer.fork(features)), targets)).backward()

    losses = losses_of([features_of(layer, x)] * tasks, targets)
    norms = task_norms(losses, parameters)
    # The way by pairs sums squares of the size of ||a||^2 ||delta||^2 that cancel in part: a few roundings of that.
    torch.testing.assert_close(balancer.norms.double(), norms, rtol=16 * max(torch.finfo(dtype).eps, 2**-23), atol=0)
    losses = losses_of([features_of(layer, x)] * tasks, targets)
    plain: Plain = plain_gradients(parameters, losses, used)
    assert_same_gradients([parameter.grad for parameter in parameters], plain, tasks, dtype)
    return balancer


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str, backend: str) -> None:
    layer, x = LAYERS[name]()
    check(layer, x)


@pytest.mark.parametrize("name", ["linear", "linear, tokens", "conv", "conv, pairs", "conv, pairs, stride"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes(name: str, dtype: torch.dtype, backend: str) -> None:
    layer, x = LAYERS[name]()
    check(layer.to(dtype), x.to(dtype), dtype)


@pytest.mark.parametrize("backward_inside", [False, True])
@pytest.mark.parametrize("name", ["linear", "linear, tokens", "conv, pairs"])
def test_autocast(name: str, backward_inside: bool, backend: str) -> None:
    """The measurement is made in float32 also where the backward runs inside the autocast context."""
    layer, x = LAYERS[name]()
    balancer = GradNorm(2, alpha=0.5, source=layer)
    with torch.autocast("cpu", torch.bfloat16):
        features = features_of(layer, x)
        targets = [torch.randn_like(features) for _ in range(2)]
        loss = balancer(losses_of(list(balancer.fork(features)), targets))
        if backward_inside:
            loss.backward()
        features = features_of(layer, x)
        losses = losses_of([features] * 2, targets)
    if not backward_inside:
        loss.backward()
    norms = task_norms(losses, list(layer.parameters()))
    torch.testing.assert_close(balancer.norms.double(), norms, rtol=4 * 2**-7, atol=0)


@pytest.mark.parametrize("tasks", [1, 2, 10, 64])
@pytest.mark.parametrize("name", ["linear", "conv", "conv, pairs"])
def test_numbers_of_tasks(name: str, tasks: int) -> None:
    layer, x = LAYERS[name]()
    check(layer, x, tasks=tasks)


class Twice(nn.Module):
    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.relu(self.layer(x)))


@pytest.mark.parametrize("layer", [nn.Linear(32, 32), nn.Linear(32, 32, bias=False)])
def test_layer_used_twice(layer: nn.Module, backend: str) -> None:
    """The gradient is the sum over both uses: norms do not add up."""
    layer = nn.Linear(32, 32, bias=layer.bias is not None)
    balancer = GradNorm(2, alpha=0.5, source=layer)
    twice, x = Twice(layer), torch.randn(3, 32)
    targets = [torch.randn(3, 32) for _ in range(2)]
    balancer(losses_of(list(balancer.fork(twice(x))), targets)).backward()
    norms = task_norms(losses_of([twice(x)] * 2, targets), list(layer.parameters()))
    torch.testing.assert_close(balancer.norms.double(), norms, rtol=2**-20, atol=0)


def test_weight_tied_to_another_layer(backend: str) -> None:
    first, second = nn.Linear(32, 32), nn.Linear(32, 32)
    second.weight = first.weight
    x = torch.randn(3, 32)
    targets = [torch.randn(3, 32) for _ in range(2)]
    balancer = GradNorm(2, alpha=0.5, source=second)
    balancer(losses_of(list(balancer.fork(second(torch.relu(first(x))))), targets)).backward()
    norms = task_norms(losses_of([second(torch.relu(first(x)))] * 2, targets), list(second.parameters()))
    torch.testing.assert_close(balancer.norms.double(), norms, rtol=2**-20, atol=0)


@pytest.mark.parametrize("frozen", ["weight", "bias"])
@pytest.mark.parametrize("name", ["linear", "conv, pairs"])
def test_partly_frozen_layer(name: str, frozen: str, backend: str) -> None:
    """What is trained is measured."""
    layer, x = LAYERS[name]()
    getattr(layer, frozen).requires_grad_(False)
    check(layer, x)


def test_frozen_layer_raises() -> None:
    layer, x = LAYERS["linear"]()
    layer.requires_grad_(False)
    with pytest.raises(ValueError, match="source: none of its parameters requires grad"):
        GradNorm(2, alpha=0.5, source=layer).fork(layer(x.requires_grad_()))


@pytest.mark.parametrize("as_list", [False, True])
def test_layer_not_in_the_graph_raises(as_list: bool) -> None:
    layer, other, x = nn.Linear(4, 4), nn.Linear(4, 4), torch.randn(2, 4)
    source = list(layer.parameters()) if as_list else layer
    balancer = GradNorm(2, alpha=0.5, source=source)
    with pytest.raises(ValueError, match="source: its parameters took no part"):
        balancer.fork(other(x))
    balancer.fork(layer(x))


def test_layer_after_the_fork_raises() -> None:
    layer, trunk, x = nn.Linear(4, 4), nn.Linear(4, 4), torch.randn(2, 4)
    balancer = GradNorm(2, alpha=0.5, source=layer)
    with pytest.raises(ValueError, match="source: its parameters took no part.*after the fork"):
        [layer(view) for view in balancer.fork(trunk(x))]


@pytest.mark.parametrize("source", [nn.ReLU(), nn.Sequential(nn.Linear(2, 2)), nn.ModuleList()], ids=repr)
def test_module_without_own_parameters_raises(source: nn.Module) -> None:
    with pytest.raises(ValueError, match="source: expected a layer with parameters of its own"):
        GradNorm(2, alpha=0.5, source=source)


def test_parametrised_layer() -> None:
    """By its original parameters; as a layer it is refused."""
    layer = parametrizations.weight_norm(nn.Linear(8, 8))
    with pytest.raises(ValueError, match="source: .*parametrised"):
        GradNorm(2, alpha=0.5, source=layer)
    x, targets = torch.randn(3, 8), [torch.randn(3, 8) for _ in range(2)]
    balancer = GradNorm(2, alpha=0.5, source=list(layer.parameters()))
    balancer(losses_of(list(balancer.fork(layer(x))), targets)).backward()
    norms = task_norms(losses_of([layer(x)] * 2, targets), list(layer.parameters()))
    torch.testing.assert_close(balancer.norms.double(), norms, rtol=2**-20, atol=0)


_TWICE = nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (
            "layer",
            (TypeError, ValueError),
            "source: expected 'features', a layer or layers, or parameters, got 'layer'",
        ),
        (3, TypeError, "source: expected 'features', a layer or layers, or parameters, got (int|3)"),
        (None, TypeError, "source: expected 'features', a layer or layers, or parameters, got None"),
        ([], ValueError, "source: expected at least one parameter"),
        ([3], TypeError, r"source\[0\]: expected a parameter .* got int"),
        ([nn.Linear(2, 2), torch.zeros(2)], TypeError, r"source\[0\]: expected a parameter .* got Linear"),
        ([nn.Linear(2, 2), nn.ReLU()], ValueError, r"source: expected a layer with parameters of its own .* got ReLU"),
        ([_TWICE, _TWICE], ValueError, "source: expected different layers, got one twice"),
        (torch.zeros(2, requires_grad=True) * 2, TypeError, r"source\[0\]: expected a parameter \(a leaf"),
    ],
)
def test_what_is_no_source(source: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        GradNorm(2, alpha=0.5, source=source)  # type: ignore[arg-type]


def test_layer_reached_by_some_tasks_only(backend: str) -> None:
    """A level of a pyramid that does not come from the layer: tasks that read it alone have no gradient there."""
    layer, other, x = nn.Linear(8, 8), nn.Linear(8, 8), torch.randn(3, 8)
    balancer = GradNorm(2, alpha=0.5, source=layer)
    views = balancer.fork((layer(x), other(x)))
    loss = balancer([views[0][0].square().mean(), views[1][1].square().mean()])
    loss.backward()
    (expected,) = task_norms([layer(x).square().mean()], list(layer.parameters())).tolist()
    assert balancer.norms.tolist() == pytest.approx([expected, 0.0], rel=2**-20)
    assert balancer.report()["zero_gradient/1"] == 1
    assert balancer.weights.isfinite().all()


def test_several_layers_are_taken_together(backend: str) -> None:
    first, second, x = nn.Linear(8, 8), nn.Linear(8, 8), torch.randn(3, 8)
    targets = [torch.randn(3, 8) for _ in range(2)]
    balancer = GradNorm(2, alpha=0.5, source=[first, second])
    balancer(losses_of(list(balancer.fork(second(torch.tanh(first(x))))), targets)).backward()
    parameters = [*first.parameters(), *second.parameters()]
    norms = task_norms(losses_of([second(torch.tanh(first(x)))] * 2, targets), parameters)
    torch.testing.assert_close(balancer.norms.double(), norms, rtol=2**-20, atol=0)
