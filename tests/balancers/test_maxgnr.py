"""MaxGNR on tasks with known population moments, its options, and what it says about what it measured."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fastmtl import MaxGNR, ops
from tests.training.population import GivenGradients, Population

OBJECTIVES = ("relative", "maxmin", "intertask")


def population(tasks: int = 4, parameters: int = 30, seed: int = 0) -> Population:
    """Correlated tasks, with signal and noise of different sizes."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(parameters, generator=generator)
    own = torch.randn(tasks, parameters, generator=generator)
    sizes = torch.logspace(-1, 1, tasks)[:, None]
    mixing = torch.randn(tasks, 3, generator=generator) * sizes * torch.tensor([1.0, 3.0, 0.3, 2.0])[:tasks, None]
    return Population((own + 0.5 * common) * sizes, mixing)


def objective_of(name: str, weights: Tensor, known: Population, batch: int) -> float:
    """min_k of what the objective maximises, from the population moments."""
    signal, covariance = known.signal.double(), known.covariance.double()
    if name == "intertask":
        signal, covariance = signal + covariance / batch, torch.zeros_like(covariance)
    gnr, single = ops.gradient_noise_ratio(signal, covariance, weights, batch)
    return float((gnr / single if name == "relative" else gnr).min())


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_raises_its_objective_over_equal_weights_from_batches_alone(objective: str, seed: int) -> None:
    known, batch = population(seed=seed), 16
    model, generator = GivenGradients(30), torch.Generator().manual_seed(seed)
    balancer = MaxGNR(4, source=model.layer, objective=objective)  # type: ignore[arg-type]
    for _ in range(150):
        model.step(balancer, known.draw(batch, generator))
    reached = objective_of(objective, balancer.weights, known, batch)
    equal = objective_of(objective, torch.ones(4), known, batch)
    assert reached > 1.02 * equal
    assert balancer.weights.min() > 0
    assert float(balancer.weights.sum()) == pytest.approx(4, rel=1e-6)


# Measured with six seeds: 0.07 to 0.12, 0.35 to 0.41 and 0.26 to 0.32; equal shares would be 0.25.
SHARES = {"relative": 0.2, "maxmin": 0.5, "intertask": 0.4}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_task_of_pure_noise_does_not_take_over(objective: str, seed: int) -> None:
    """Its share of the power of the update, sum_k w_k^2 E||g_k||^2, among four tasks."""
    known, batch = population(seed=seed), 16
    known.means[2] = 0
    model, generator = GivenGradients(30), torch.Generator().manual_seed(seed)
    balancer = MaxGNR(4, source=model.layer, objective=objective)  # type: ignore[arg-type]
    for _ in range(200):
        model.step(balancer, known.draw(batch, generator))
    power = balancer.weights.double().square() * (known.signal + known.covariance / batch).diagonal().double()
    share = float(power[2] / power.sum())
    assert share < SHARES[objective], share


def one_step(reduction: str = "mean", scale: float = 1.0, **options: object) -> MaxGNR:
    known, model = population(), GivenGradients(30)
    balancer = MaxGNR(4, source=model.layer, loss_reduction=reduction, **options)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(3)
    for _ in range(3):
        model.step(balancer, known.draw(8, generator), scale=scale, reduction=reduction)
    return balancer


def test_loss_scale_and_reduction_cancel() -> None:
    plain = one_step()
    for other in (one_step(scale=2.0**10), one_step(scale=0.25)):
        assert torch.equal(plain.weights, other.weights)
        assert torch.equal(plain.moments[1], other.moments[1])
    summed = one_step("sum")
    torch.testing.assert_close(summed.weights, plain.weights, rtol=1e-4, atol=0)
    torch.testing.assert_close(summed.variance, plain.variance, rtol=1e-4, atol=0)


def test_what_was_measured() -> None:
    """Moments, norms, variance and cosines of the last batch, against the gradients that were given."""
    known, model, generator = population(), GivenGradients(30), torch.Generator().manual_seed(0)
    balancer = MaxGNR(4, source=model.layer, ema=0.0)
    used = balancer.weights.clone()
    for _ in range(2):
        gradients = known.draw(8, generator)
        used = balancer.weights.clone()
        model.step(balancer, gradients)
    exact = gradients.double()
    mean = exact.mean(1)
    second, samples = mean @ mean.T, torch.einsum("kbp,jbp->kj", exact, exact) / 8
    sizes = torch.outer(samples.diagonal(), samples.diagonal()).sqrt()
    for measured, expected in zip(balancer.moments, (second, samples), strict=True):
        assert measured.dtype == torch.float32
        assert ((measured.double() - expected).abs() <= 1e-5 * sizes).all()
    torch.testing.assert_close(balancer.norms.double(), mean.norm(dim=1), rtol=1e-5, atol=0)
    variance = (exact - mean[:, None]).square().sum((1, 2)) / 7
    torch.testing.assert_close(balancer.variance.double(), variance, rtol=1e-5, atol=0)
    covariance = torch.einsum("kbp,jbp->kj", exact - mean[:, None], exact - mean[:, None]) / 7
    signal = second - covariance / 8
    scale = torch.where(signal.diagonal() > 0, covariance.diagonal() / signal.diagonal(), torch.inf)
    torch.testing.assert_close(balancer.noise_scale.double(), scale, rtol=1e-4, atol=0)
    total = (balancer.weights.double()[:, None] * mean).sum(0)
    cosines = torch.nn.functional.cosine_similarity(mean, total[None].expand_as(mean))
    torch.testing.assert_close(balancer.cosines.double(), cosines, rtol=1e-4, atol=1e-5)
    assert not torch.equal(used, balancer.weights)
    report = balancer.report()
    assert report["variance/0"] == pytest.approx(float(variance[0]), rel=1e-5)
    assert report["updates"] == 2 and report["non_finite"] == 0


def test_the_weights_of_a_step_are_those_before_its_update() -> None:
    known, model, generator = population(), GivenGradients(30), torch.Generator().manual_seed(0)
    balancer = MaxGNR(4, source=model.layer, step=1.0)
    model.step(balancer, known.draw(8, generator))
    before, gradients = balancer.weights.clone(), known.draw(8, generator)
    model.zero_grad()
    model.step(balancer, gradients)
    assert not torch.equal(before, balancer.weights)
    assert model.layer.weight.grad is not None
    expected = torch.einsum("k,kbp->p", before, gradients) / 8
    torch.testing.assert_close(model.layer.weight.grad[:, 0], expected, rtol=1e-4, atol=1e-5)


def test_accumulation_makes_updates_less_noisy() -> None:
    """More samples an update: the noise of each matters less, the other tasks' gradients more."""
    single, many = one_step(accumulation_steps=1), one_step(accumulation_steps=64)
    torch.testing.assert_close(single.moments[0], many.moments[0], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(single.weights, many.weights)
    assert int(many.samples) == 64 * int(single.samples) == 64 * 8


def test_intertask_measures_at_parameters_and_by_backward() -> None:
    known, model, generator = population(), GivenGradients(30), torch.Generator().manual_seed(0)
    gradients = [known.draw(8, generator) for _ in range(3)]
    at_layer, at_parameters, entry = (
        MaxGNR(4, source=source, objective="intertask")  # type: ignore[arg-type]
        for source in (model.layer, [model.layer.weight], "features")
    )
    for drawn in gradients:
        model.step(at_layer, drawn)
        model.step(at_parameters, drawn)
        losses = model.losses((model.layer(torch.ones(8, 1)),) * 4, drawn)
        entry.backward(losses, [model.layer.weight])
    torch.testing.assert_close(at_layer.weights, at_parameters.weights, rtol=1e-5, atol=0)
    torch.testing.assert_close(at_layer.weights, entry.weights, rtol=1e-5, atol=0)
    with pytest.raises(RuntimeError, match="variance: no per-sample gradients are measured here"):
        _ = entry.variance
    assert "norm/0" in entry.report() and "variance/0" not in entry.report()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"objective": "sum"}, ValueError, "objective: expected one of relative, maxmin, intertask, got 'sum'"),
        ({"ema": 1.0}, ValueError, r"ema: expected a number in \[0, 1\), got 1.0"),
        ({"step": 1.5}, ValueError, r"step: expected a number in \(0, 1\], got 1.5"),
        ({"floor": 0.0}, ValueError, r"floor: expected a number in \(0, 1\], got 0.0"),
        ({"loss_reduction": "none"}, ValueError, "loss_reduction: expected 'mean' or 'sum', got 'none'"),
        ({"accumulation_steps": 0}, ValueError, "accumulation_steps: expected a whole number from 1, got 0"),
        (
            {"source": [nn.Linear(2, 2).weight]},
            ValueError,
            "source: per-sample gradients are measured at 'features' or at",
        ),
    ],
)
def test_arguments(options: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        MaxGNR(2, **{"source": "features", **options})  # type: ignore[arg-type]


def test_params_need_the_intertask_objective() -> None:
    layer = nn.Linear(2, 2)
    balancer = MaxGNR(2, source="features")
    losses = [layer(torch.randn(3, 2)).square().mean() for _ in range(2)]
    with pytest.raises(ValueError, match="params: per-sample gradients are measured at 'features' or at layers"):
        balancer.backward(losses, list(layer.parameters()))


def test_one_sample_has_no_variance() -> None:
    balancer = MaxGNR(2, source="features")
    with pytest.raises(ValueError, match="features: expected at least 2 samples in dimension 0"):
        balancer.fork(torch.randn(1, 3, requires_grad=True))
    seldom = MaxGNR(2, source="features", update_every=2)
    for batch in (2, 1):  # the second is not measured
        views = seldom.fork(torch.randn(batch, 3, requires_grad=True))
        seldom([view.square().sum() * k for k, view in enumerate(views, 1)]).backward()
    alone = MaxGNR(2, source="features", objective="intertask")
    views = alone.fork(torch.randn(1, 3, requires_grad=True))
    alone([view.square().sum() * k for k, view in enumerate(views, 1)]).backward()
    assert alone.counters.tolist() == [1, 0]
