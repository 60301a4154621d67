"""Non-finite losses, gradients and scales: nothing changes but a count."""

from __future__ import annotations

import math

import pytest
import torch

from fastmtl import GradNorm
from tests.training.crafted import changed, crafted_step, snapshot, spoiled_step
from tests.training.networks import PLACES, balanced, gradnorm_for, linear_problem

BAD = [math.nan, math.inf, -math.inf]


def started(**options: object) -> GradNorm:
    balancer = GradNorm(3, alpha=0.5, **options)  # type: ignore[arg-type]
    crafted_step(balancer, [1.0, 2.0, 3.0], [1.0, 1.0, 1.0])
    return balancer


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("what", ["loss", "gradient", "scale"])
def test_whole_state_stays(what: str, bad: float, optimizer: str, backend: str) -> None:
    balancer = started(optimizer=optimizer)
    before = snapshot(balancer)
    spoiled_step(balancer, what, bad)
    assert changed(balancer, before) == {"counters"}
    assert balancer.report()["non_finite"] == 1 and balancer.report()["updates"] == 1

    clean = started(optimizer=optimizer)
    for each in (balancer, clean):
        crafted_step(each, [3.0, 1.0, 1.0], [1.0, 2.0, 3.0])
    assert torch.equal(balancer.weights, clean.weights)


@pytest.mark.parametrize("bad", BAD)
def test_in_the_first_step(bad: float, backend: str) -> None:
    """L(0) is not taken from a refused step."""
    balancer = GradNorm(3, alpha=0.5)
    before = snapshot(balancer)
    crafted_step(balancer, [1.0, 2.0, 3.0], [1.0, bad, 7.0])
    assert changed(balancer, before) == {"counters"}
    crafted_step(balancer, [1.0, 2.0, 3.0], [2.0, 3.0, 4.0])
    assert balancer.initial_losses.tolist() == [2.0, 3.0, 4.0]


def test_overflow_of_the_squared_norm(backend: str) -> None:
    """float32 gradients of norm 1e30: their square is not a float32. Reported, never turned into weights."""
    balancer = started()
    before = snapshot(balancer)
    crafted_step(balancer, [1.0, 1e30, 1.0], [1.0, 1.0, 1.0], dtype=torch.float32)
    assert balancer.weights.isfinite().all() and balancer.weights.min() > 0
    assert balancer.norms.isfinite().all()
    if balancer.report()["non_finite"]:
        assert changed(balancer, before) == {"counters"}


def test_many_in_a_row(backend: str) -> None:
    balancer = started()
    before = snapshot(balancer)
    for _ in range(20):
        crafted_step(balancer, [1.0, math.nan, 3.0], [1.0, 1.0, 1.0])
    assert changed(balancer, before) == {"counters"}
    assert balancer.report()["non_finite"] == 20


@pytest.mark.parametrize("place", PLACES)
def test_in_a_network(place: str, backend: str) -> None:
    """The same through a trunk; the network's own gradients are as non-finite as plain autograd's: not hidden."""
    problem = linear_problem()
    balancer = gradnorm_for(problem, place)
    before = snapshot(balancer)
    problem.targets[1] = problem.targets[1] * math.inf
    balanced(problem, balancer, place).backward()
    assert changed(balancer, before) == {"counters"}
    assert balancer.report()["non_finite"] == 1
    assert not problem.trunk.shared.weight.grad.isfinite().all()


def test_grad_scaler_skips_and_recovers(backend: str) -> None:
    """An overflow under a scaler: neither network nor weights move; the next, smaller scale goes on."""
    problem = linear_problem()
    balancer = gradnorm_for(problem, "layer")
    optimizer = torch.optim.SGD(problem.parameters(), lr=0.05)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-100)
    weight, before = problem.trunk.shared.weight.clone(), snapshot(balancer)
    for updates in range(2):
        optimizer.zero_grad()
        scaler.scale(balanced(problem, balancer) * 8).backward()
        scaler.step(optimizer)
        scaler.update()
        assert balancer.report()["updates"] == updates and balancer.report()["non_finite"] == 1
        assert torch.equal(problem.trunk.shared.weight, weight) == (updates == 0)
        assert bool(changed(balancer, before) - {"counters"}) == (updates == 1)
