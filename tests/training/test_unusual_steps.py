"""Steps that torch allows and few networks have: their gradients are the plain sum's, and the state is what it would be."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fastmtl import Balancer, DynamicWeightAverage, FixedWeights, GradNorm, MaxGNR, UncertaintyWeighting

MAKERS: dict[str, Callable[[Any], Balancer]] = {
    "fixed": lambda layer: FixedWeights(2),
    "dwa": lambda layer: DynamicWeightAverage(2),
    "uncertainty": lambda layer: UncertaintyWeighting(2, kinds="classification"),
    "gradnorm": lambda layer: GradNorm(2, alpha=0.5),
    "gradnorm, layer": lambda layer: GradNorm(2, alpha=0.5, source=layer),
    "maxgnr": lambda layer: MaxGNR(2, source="features"),
    "maxgnr, layer": lambda layer: MaxGNR(2, source=layer),
}


@pytest.fixture(params=MAKERS.values(), ids=MAKERS)
def make(request: pytest.FixtureRequest) -> Callable[[Any], Balancer]:
    return request.param


def conjugated(view: Tensor) -> Tensor:
    """A spectrum's conjugate: its gradient is one that is negated when it is read."""
    return (torch.complex(torch.ones_like(view), view).conj() * (1 + 2j)).real.square().mean()


def looked_up(view: Tensor) -> Tensor:
    """Its gradient is sparse."""
    return F.embedding(torch.tensor([0, 2, 2]), view, sparse=True).square().mean()


class _Plain(torch.autograd.Function):
    """Nothing, with a gradient whose memory holds its values."""

    @staticmethod
    def forward(ctx: Any, view: Tensor) -> Tensor:
        return view.view_as(view)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.to_dense().resolve_neg()


@pytest.mark.parametrize("head", [conjugated, looked_up])
@pytest.mark.parametrize("alone", [False, True])
def test_gradients_in_unusual_memory(make: Any, head: Any, alone: bool, backend: str) -> None:
    layer, x = nn.Linear(5, 4), torch.randn(8, 5)
    balancer = make(layer)
    heads = [head, lambda view: 1 + 0 * view.sum() if alone else view.square().sum()]
    weights = balancer.weights.clone()
    balancer([h(view) for h, view in zip(heads, balancer.fork(layer(x)), strict=True)]).backward()
    got = [parameter.grad.clone() for parameter in layer.parameters()]
    layer.zero_grad()
    features = layer(x)
    sum(w * h(features) for w, h in zip(weights.tolist(), heads, strict=True)).backward()
    for grad, parameter in zip(got, layer.parameters(), strict=True):
        torch.testing.assert_close(grad, parameter.grad, rtol=1e-5, atol=1e-6)
    twin = make(layer)
    twin([h(_Plain.apply(view)) for h, view in zip(heads, twin.fork(layer(x)), strict=True)]).backward()
    torch.testing.assert_close(
        dict(balancer.named_buffers()), dict(twin.named_buffers()), rtol=1e-6, atol=0, equal_nan=True
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_default_dtype(make: Any, dtype: torch.dtype, backend: str) -> None:
    """The state is float32 whatever torch makes by default, also where a task has no gradient or is absent."""
    before = torch.get_default_dtype()
    dtypes = [value.dtype for value in make(nn.Linear(5, 4)).state_dict().values() if isinstance(value, Tensor)]
    torch.set_default_dtype(dtype)
    try:
        layer = nn.Linear(5, 4)
        balancer = make(layer)
        for present in ([True, True], [True, False]):
            one, two = balancer.fork(layer(torch.randn(8, 5)))
            balancer([one.square().mean(), two.abs().mean()], present=present).backward()
        one, _ = balancer.fork(layer(torch.randn(8, 5)))
        with (
            pytest.warns(UserWarning, match="no gradient reached") if isinstance(balancer, GradNorm) else nullcontext()
        ):
            balancer([one.square().mean(), one.abs().mean()]).backward()
    finally:
        torch.set_default_dtype(before)
    assert balancer.weights.isfinite().all()
    assert [
        value.dtype for value in balancer.state_dict(keep_vars=True).values() if isinstance(value, Tensor)
    ] == dtypes


@pytest.mark.parametrize("mode", ["no_grad", "inference_mode", "frozen"])
def test_compiled_without_gradients(mode: str) -> None:
    for make in (MAKERS["fixed"], MAKERS["gradnorm"], MAKERS["dwa"]):
        layer = nn.Linear(5, 4).requires_grad_(mode != "frozen")
        balancer = make(layer).eval()

        def step(x: Tensor, layer: Any = layer, balancer: Balancer = balancer) -> Tensor:
            one, two = balancer.fork(layer(x))
            return balancer([one.square().mean(), two.abs().mean()])

        x = torch.randn(8, 5)
        context = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode, "frozen": torch.enable_grad}[mode]
        torch._dynamo.reset()
        with context():
            torch.testing.assert_close(torch.compile(step, fullgraph=True, backend="aot_eager")(x), step(x))


@pytest.mark.parametrize("train", [False, True])
def test_heads_may_change_the_lists_that_they_get(make: Any, train: bool) -> None:
    layer = nn.Linear(5, 4)
    balancer = make(layer).train(train)
    features = [layer(torch.randn(8, 5)) for _ in range(1 if isinstance(balancer, MaxGNR) and train else 2)]
    if isinstance(balancer, (GradNorm, MaxGNR)):
        balancer = (GradNorm(2, alpha=0.0) if isinstance(balancer, GradNorm) else MaxGNR(2, source="features")).train(
            train
        )
    count = len(features)
    views = balancer.fork(features)
    assert [len(view) for view in views] == [count, count]
    views[0].pop()
    assert [len(view) for view in (*views, features)] == [count - 1, count, count]


def test_scale_of_a_grad_scaler() -> None:
    """As the docstring of `backward` says."""
    layer, x = nn.Linear(5, 4), torch.randn(8, 5)
    optimizer, scaler = torch.optim.SGD(layer.parameters(), lr=0.1), torch.amp.GradScaler("cpu", init_scale=8.0)
    balancer, twin = GradNorm(2, alpha=0.5), GradNorm(2, alpha=0.5)
    for _ in range(2):
        features = layer(x)
        losses = [features.square().mean(), features.abs().mean()]
        balancer.backward(losses, list(layer.parameters()), scale=scaler.scale(torch.ones(())))
        scaled = layer.weight.grad.clone()
        layer.zero_grad()
        features = layer(x)
        losses = [features.square().mean(), features.abs().mean()]
        twin.backward(losses, list(layer.parameters()))
        torch.testing.assert_close(scaled, 8 * layer.weight.grad)
        layer.weight.grad.copy_(scaled)
        layer.bias.grad.mul_(8)
        scaler.step(optimizer)
        scaler.update()
        layer.zero_grad()
    torch.testing.assert_close(balancer.weights, twin.weights)


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("inside", ["fork", "fork and call"])
def test_checkpointed_fork(every: int, inside: str) -> None:
    """A function that runs anew in the backward neither counts nor measures a second time."""
    layer, x = nn.Linear(5, 4), torch.randn(6, 8, 5)
    plain, ours = (GradNorm(2, alpha=0.5, update_every=every) for _ in range(2))

    def losses(balancer: Balancer, batch: Tensor) -> list[Tensor]:
        one, two = balancer.fork(layer(batch).tanh())
        return [one.square().sin().mean(), two.exp().mean()]

    for batch in x:
        plain(losses(plain, batch)).backward()
        expected = layer.weight.grad.clone()
        layer.zero_grad()
        if inside == "fork":
            ours(checkpoint(losses, ours, batch, use_reentrant=False)).backward()
        else:
            checkpoint(lambda batch: ours(losses(ours, batch)), batch, use_reentrant=False).backward()
        torch.testing.assert_close(layer.weight.grad, expected)
        layer.zero_grad()
        assert torch.equal(ours.weights, plain.weights)
    assert ours.counters.tolist() == plain.counters.tolist() == [6 // every, 0]
    with pytest.raises(RuntimeError, match="without a fork"):
        ours([layer(x[0]).mean(), layer(x[0]).mean()])


@pytest.mark.parametrize("source", ["features", "layer"])
def test_reentrant_checkpoint_under_other_hooks(source: str) -> None:
    """There the run in the backward is the one that counts."""
    layer, x = nn.Linear(5, 4), torch.randn(8, 5, requires_grad=True)
    ours, plain = (GradNorm(2, alpha=0.5, source=layer if source == "layer" else source) for _ in range(2))

    def step(balancer: Balancer, x: Tensor) -> Tensor:
        one, two = balancer.fork(layer(x))
        return balancer([one.square().mean(), two.abs().mean()])

    for _ in range(3):
        with torch.autograd.graph.save_on_cpu():
            checkpoint(step, ours, x, use_reentrant=True).backward()
        step(plain, x).backward()
    assert ours.counters.tolist() == [3, 0] and torch.equal(ours.weights, plain.weights)


def test_views_of_frozen_features_are_not_changed_in_place() -> None:
    one, two = FixedWeights(2).fork(torch.ones(3))
    with pytest.raises(RuntimeError, match="modified inplace"):
        one.mul_(torch.ones(3, requires_grad=True))
    assert two.tolist() == [1.0, 1.0, 1.0]


def test_checkpointed_dwa_counts_a_loss_once() -> None:
    balancer, layer, x = DynamicWeightAverage(2), nn.Linear(5, 4), torch.randn(8, 5)
    checkpoint(
        lambda x: balancer([v.square().mean() for v in balancer.fork(layer(x))]), x, use_reentrant=False
    ).backward()
    assert balancer.state_dict()["_loss_count"].tolist() == [1, 1]


class Custom(nn.Module):
    """A layer of the user's: its forward is ``function`` of the input, the weight and the bias."""

    def __init__(self, weight: tuple[int, ...], bias: tuple[int, ...] | None, function: Callable[..., Tensor]):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(weight))
        self.bias = None if bias is None else nn.Parameter(torch.randn(bias))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight, self.bias)


@pytest.mark.parametrize(
    ("weight", "bias", "function", "size"),
    [
        ((5, 6), (3, 6), lambda x, w, b: x @ w + b, (4, 3, 5)),
        ((5, 6), (6,), lambda x, w, b: torch.add(x @ w, b, alpha=2), (4, 5)),
        ((5, 6), (1,), lambda x, w, b: x @ w + b, (4, 5)),
        ((5, 6), (6,), lambda x, w, b: torch.addmm(b, x, w, beta=0.5), (4, 5)),
        ((5, 6), None, lambda x, w, b: torch.addmm(torch.zeros(4, 6), x, w, alpha=0.25), (4, 5)),
        ((4, 5), (5,), lambda x, w, b: x * w + b, (2, 4, 5)),
        ((7, 5), (5,), lambda x, w, b: F.embedding((x.abs() * 3).long().clamp_max(6), w) + b, (4, 3)),
    ],
    ids=["bias by position", "multiple bias", "one bias", "beta", "alpha", "bias of a part", "embedding"],
)
def test_layers_whose_moments_are_not_known(weight: Any, bias: Any, function: Any, size: Any) -> None:
    """Rather than wrong ones."""
    layer = Custom(weight, bias, function)
    balancer = MaxGNR(2, source=layer)
    with pytest.raises(ValueError, match=r"source: (the bias|expected the plain product)"):
        balancer.fork(layer(torch.randn(size)))


def test_norms_of_a_multiple_of_a_product() -> None:
    """GradNorm forms what its way of pairs does not know."""
    layer = Custom((64, 96), (96,), lambda x, w, b: torch.addmm(b, x, w, alpha=0.25, beta=3.0))
    assert_norms_at(layer, torch.randn(2, 64))


@pytest.mark.parametrize("shape", [(1,), (2, 1), (2, 96), (1, 96), (96,)])
def test_norms_of_a_bias_of_another_shape(shape: tuple[int, ...]) -> None:
    assert_norms_at(Custom((96, 64), shape, F.linear), torch.randn(2, 64))


def assert_norms_at(layer: nn.Module, x: Tensor) -> None:
    balancer = GradNorm(2, alpha=0.5, source=layer)
    one, two = balancer.fork(layer(x))
    balancer([one.square().mean(), two.abs().mean()]).backward()
    for norm, loss in zip(balancer.norms, (layer(x).square().mean(), layer(x).abs().mean()), strict=True):
        parts = torch.autograd.grad(loss, list(layer.parameters()))
        torch.testing.assert_close(norm, torch.cat([part.flatten() for part in parts]).norm())


def test_convolution_of_an_empty_batch(backend: str) -> None:
    layer = nn.Conv2d(3, 4, 3)
    balancer = GradNorm(2, alpha=0.0, source=layer, initial_losses=[1.0, 1.0])
    one, two = balancer.fork(layer(torch.randn(0, 3, 8, 8)))
    balancer([one.sum() + 1, two.sum() + 2]).backward()
    assert layer.weight.grad.eq(0).all() and balancer.norms.tolist() == [0.0, 0.0]


def test_a_bias_with_leading_ones_is_one() -> None:
    layer, x = Custom((5, 6), (1, 6), lambda x, w, b: x @ w + b), torch.randn(4, 5)
    balancer = MaxGNR(2, source=layer)
    one, two = balancer.fork(layer(x))
    balancer([one.square().mean(), two.abs().mean()]).backward()
    assert balancer.report()["updates"] == 1


def test_a_parameter_list_is_a_list_of_parameters() -> None:
    parameters, balancer = nn.ParameterList([torch.ones(3), torch.ones(2)]), GradNorm(2, alpha=0.5)
    total = sum(parameter.square().sum() for parameter in parameters)
    balancer.backward([total, 2 * total], parameters)
    torch.testing.assert_close(balancer.norms, torch.tensor([20.0, 80.0]).sqrt())
