"""FixedWeights, UncertaintyWeighting and DynamicWeightAverage against their formulas."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastmtl import DynamicWeightAverage, FixedWeights, UncertaintyWeighting
from tests.training.networks import assert_same_gradients, balanced, linear_problem, plain_gradients


@pytest.mark.parametrize(
    ("tasks", "given", "expected"),
    [
        (3, None, [1.0, 1.0, 1.0]),
        (3, [0.5, 2.0, 7.0], [0.5, 2.0, 7.0]),
        (2, torch.tensor([0.25, 3.0]), [0.25, 3.0]),
        (["a", "b"], {"b": 2.0, "a": 0.5}, [0.5, 2.0]),
    ],
    ids=str,
)
def test_fixed_weights_are_used_as_given(tasks: Any, given: Any, expected: list[float], backend: str) -> None:
    balancer = FixedWeights(tasks, given)
    names = balancer.tasks
    losses = {name: torch.tensor(float(k + 1), requires_grad=True) for k, name in enumerate(names)}
    loss = balancer(losses if balancer._tasks.named else list(losses.values()))
    loss.backward()
    assert loss.item() == sum(w * (k + 1) for k, w in enumerate(expected))
    assert [losses[name].grad.item() for name in names] == expected
    assert balancer.weights.tolist() == expected
    assert balancer.report() == {f"weight/{name}": w for name, w in zip(names, expected, strict=True)}


@pytest.mark.parametrize("given", [[1.0], [1.0, 0.0], [1.0, -1.0], [1.0, math.nan], [1.0, math.inf]])
def test_fixed_weights_refuses(given: list[float]) -> None:
    with pytest.raises(ValueError, match="weights: expected"):
        FixedWeights(2, given)


def test_fixed_weights_of_another_run() -> None:
    balancer = FixedWeights(2, [0.5, 1.5])
    again = FixedWeights(2)
    again.load_state_dict(balancer.state_dict())
    assert again.weights.tolist() == [0.5, 1.5]


KINDS = [("regression", [0.5, 0.5]), (["classification", "regression"], [1.0, 0.5])]


@pytest.mark.parametrize(("kinds", "factors"), KINDS, ids=str)
def test_uncertainty_formula(kinds: Any, factors: list[float]) -> None:
    """sum_k c_k exp(-s_k) L_k + s_k / 2; dL/ds_k = -c_k exp(-s_k) L_k + 1/2."""
    balancer = UncertaintyWeighting(2, kinds=kinds)
    s = [0.3, -1.2]
    balancer.log_variances.data.copy_(torch.tensor(s))
    losses = [torch.tensor(2.0, requires_grad=True), torch.tensor(0.7, requires_grad=True)]
    loss = balancer(losses)
    loss.backward()
    terms = [c * math.exp(-x) * value.item() for c, x, value in zip(factors, s, losses, strict=True)]
    assert loss.item() == pytest.approx(sum(terms) + sum(s) / 2, rel=4 * 2**-23)
    for k in range(2):
        weight = factors[k] * math.exp(-s[k])
        assert losses[k].grad.item() == pytest.approx(weight, rel=4 * 2**-23)
        assert balancer.log_variances.grad[k].item() == pytest.approx(0.5 - terms[k], rel=8 * 2**-23)
        assert balancer.weights[k].item() == pytest.approx(weight, rel=4 * 2**-23)
    assert not balancer.weights.requires_grad
    assert set(balancer.report()) == {f"{what}/{k}" for what in ("weight", "log_variance") for k in range(2)}


def test_uncertainty_learns_the_variance() -> None:
    """At the optimum exp(s) = 2 c L."""
    balancer = UncertaintyWeighting(["a", "b"], kinds={"a": "regression", "b": "classification"})
    optimizer = torch.optim.Adam(balancer.parameters(), lr=0.05)
    for _ in range(600):
        optimizer.zero_grad()
        balancer({"a": torch.tensor(3.0, requires_grad=True), "b": torch.tensor(0.2, requires_grad=True)}).backward()
        optimizer.step()
    torch.testing.assert_close(balancer.log_variances.exp(), torch.tensor([3.0, 0.4]), rtol=1e-3, atol=0)


def test_uncertainty_absent_task() -> None:
    """Neither its loss nor its s / 2."""
    balancer = UncertaintyWeighting(["a", "b"], kinds="regression")
    balancer.log_variances.data.fill_(1.0)
    loss = balancer({"a": torch.tensor(2.0, requires_grad=True)})
    loss.backward()
    assert loss.item() == pytest.approx(math.exp(-1.0) + 0.5, rel=4 * 2**-23)
    assert balancer.log_variances.grad[1] == 0


def test_uncertainty_nan_of_an_absent_task_stays_out() -> None:
    balancer = UncertaintyWeighting(2, kinds="regression")
    losses = [torch.tensor(2.0, requires_grad=True), torch.tensor(math.nan, requires_grad=True)]
    for present in ([True, False], torch.tensor([True, False])):
        balancer.zero_grad()
        loss = balancer(losses, present=present)
        loss.backward()
        assert loss.isfinite() and balancer.log_variances.grad.isfinite().all()


def test_uncertainty_keeps_float32_under_casts_and_float64_losses() -> None:
    balancer = UncertaintyWeighting(2, kinds="regression").to(torch.bfloat16)
    assert balancer.log_variances.dtype == torch.float32
    assert balancer(torch.ones(2, dtype=torch.float64, requires_grad=True)).dtype == torch.float64


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        ("ranking", "kinds: expected one of"),
        (["regression"], "kinds: expected 2"),
        ([None, "regression"], "kinds: expec"),
    ],
)
def test_uncertainty_refuses(kinds: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UncertaintyWeighting(2, kinds=kinds)


def dwa_by_numpy(epochs: np.ndarray, temperature: float) -> list[np.ndarray]:
    """Weights in each epoch, from losses [epochs, steps, T]."""
    means = epochs.mean(1)
    weights = [np.ones(epochs.shape[2])] * 2
    for t in range(2, len(epochs)):
        exponent = np.exp(means[t - 1] / means[t - 2] / temperature)
        weights.append(epochs.shape[2] * exponent / exponent.sum())
    return weights


@pytest.mark.parametrize("temperature", [2.0, 0.5])
@pytest.mark.parametrize("resume_at", [None, 0, 1, 3])
def test_dwa_against_numpy(temperature: float, resume_at: int | None, backend: str) -> None:
    losses = np.random.default_rng(0).uniform(0.1, 4.0, (6, 5, 3))
    expected = dwa_by_numpy(losses.astype(np.float32).astype(np.float64), temperature)
    balancer = DynamicWeightAverage(3, temperature)
    for epoch, steps in enumerate(losses):
        np.testing.assert_allclose(balancer.weights.numpy(), expected[epoch], rtol=2**-22)
        for n, values in enumerate(steps):
            if epoch == resume_at and n == 2:  # in the middle of an epoch
                file = io.BytesIO()
                torch.save(balancer.state_dict(), file)
                file.seek(0)
                balancer = DynamicWeightAverage(3, temperature)
                balancer.load_state_dict(torch.load(file, weights_only=True))
            leaf = torch.tensor(values, dtype=torch.float32, requires_grad=True)
            loss = balancer(leaf)
            loss.backward()
            assert torch.equal(leaf.grad, balancer.weights)
            assert loss.item() == pytest.approx((expected[epoch] * values).sum(), rel=1e-6)
        balancer.end_epoch()
        report = balancer.report()
        assert [report[f"epoch_loss/{k}"] for k in range(3)] == pytest.approx(steps.mean(0).tolist(), rel=1e-6)


def step(balancer: DynamicWeightAverage, values: list[float], present: Any = None) -> None:
    balancer(torch.tensor(values, requires_grad=True), present=present).backward()


def test_dwa_evaluation_does_not_count() -> None:
    balancer = DynamicWeightAverage(2)
    step(balancer, [1.0, 2.0])
    before = copy.deepcopy(balancer.state_dict())
    with torch.no_grad():
        balancer(torch.tensor([5.0, 5.0]))
    balancer.eval()
    balancer(torch.tensor([5.0, 5.0]))
    for name, value in before.items():
        assert not isinstance(value, Tensor) or torch.equal(
            value.nan_to_num(-1), balancer.state_dict()[name].nan_to_num(-1)
        )


def test_dwa_edges() -> None:
    """Non-finite losses are left out of the mean; a task absent for an epoch or at 0 counts with the ratio 1."""
    balancer = DynamicWeightAverage(3)
    step(balancer, [2.0, 1.0, 0.0])
    step(balancer, [math.nan, 3.0, 0.0])
    balancer.end_epoch()
    assert balancer.report()["epoch_loss/0"] == 2.0 and balancer.report()["epoch_loss/1"] == 2.0
    step(balancer, [1.0, 9.0, 1.0], present=[True, False, True])
    balancer.end_epoch()
    expected = np.exp(np.array([0.5, 1.0, 1.0]) / 2)
    np.testing.assert_allclose(balancer.weights.numpy(), 3 * expected / expected.sum(), rtol=2**-22)
    balancer.end_epoch()  # an epoch without steps
    assert balancer.weights.tolist() == [1.0] * 3


def test_dwa_large_ratios_do_not_overflow() -> None:
    balancer = DynamicWeightAverage(2, temperature=0.01)
    for values in ([1e-20, 1.0], [1e20, 1.0]):
        step(balancer, values)
        balancer.end_epoch()
    assert balancer.weights.isfinite().all()
    assert balancer.weights.sum().item() == pytest.approx(2)
    assert balancer.weights.min() > 0  # the docstring says positive


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_dwa_refuses(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature: expected a finite number > 0"):
        DynamicWeightAverage(2, temperature)


@pytest.mark.parametrize("make", [FixedWeights, DynamicWeightAverage])
def test_gradients_of_a_network(make: Any, backend: str) -> None:
    problem = linear_problem()
    balancer = make(3)
    balancer.weights.copy_(torch.tensor([0.5, 1.0, 1.5]))
    twin = problem.copy()
    balanced(problem, balancer).backward()
    plain = plain_gradients(twin.parameters(), twin.plain_losses(), balancer.weights)
    assert_same_gradients(problem.gradients(), plain, 3)
