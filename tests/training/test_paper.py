"""The weights of 200 training steps follow the paper's algorithm done by double backward."""

from __future__ import annotations

import pytest
import torch

from tests.training.networks import Problem, balanced, gradnorm_for, linear_problem
from tests.training.paper import PaperGradNorm

STEPS = 200


def make_problem() -> Problem:
    """float64, so that the two networks do not drift apart by rounding."""
    return linear_problem(3, inputs=8, batch=8).to(torch.float64)


def batches(problem: Problem) -> list[tuple[torch.Tensor, list[torch.Tensor]]]:
    """Data from a fixed random teacher, so that there is something to learn and the tasks learn at different rates."""
    teacher = torch.randn(3, 2, 8, dtype=torch.float64)
    xs = torch.randn(STEPS, 8, 8, dtype=torch.float64)
    return [(x, [(k + 1) * torch.tanh(x @ teacher[k].T) for k in range(3)]) for x in xs]


@pytest.mark.parametrize("place", ["features", "layer"])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize(("alpha", "given"), [(0.0, False), (0.12, False), (0.12, True), (1.5, False), (1.5, True)])
def test_trajectory(alpha: float, optimizer: str, given: bool, place: str) -> None:
    initial = [3.0, 5.0, 2.0] if given else None
    lr = 0.025 if optimizer == "adam" else 0.01
    ours = make_problem()
    theirs = ours.copy()
    balancer = gradnorm_for(ours, place, alpha=alpha, lr=lr, optimizer=optimizer, initial_losses=initial)
    balancer.weights.fill_(1.0)
    paper = PaperGradNorm(3, alpha=alpha, lr=lr, optimizer=optimizer, initial_losses=initial)
    trainers = [torch.optim.SGD(problem.parameters(), lr=0.02) for problem in (ours, theirs)]
    furthest = 0.0
    for step, (x, targets) in enumerate(batches(ours)):
        for problem in (ours, theirs):
            problem.x, problem.targets = x, targets
        trainers[0].zero_grad()
        balanced(ours, balancer, place).backward()
        trainers[0].step()

        features = theirs.trunk(theirs.x)
        losses = theirs.losses([features] * 3)
        shared = [features] if place == "features" else list(theirs.trunk.shared.parameters())
        trainers[1].zero_grad()
        paper.total(losses).backward(retain_graph=True)
        paper.update(losses, shared)
        trainers[1].step()

        assert (balancer.weights - paper.w).abs().max() < 1e-5, f"step {step}"
        furthest = max(furthest, (paper.w - 1).abs().max().item())
    assert furthest > 0.3  # the weights went somewhere
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert balancer.report()["updates"] == STEPS


def test_floor_is_reached_and_followed() -> None:
    """A large step drives weights to the floor, then renormalises: both do the same."""
    problem = make_problem()
    balancer = gradnorm_for(problem, "layer", alpha=1.5, lr=0.4, optimizer="sgd", min_weight=0.2)
    balancer.weights.fill_(1.0)
    paper = PaperGradNorm(3, alpha=1.5, lr=0.4, optimizer="sgd", min_weight=0.2)
    lowest = 1.0
    for _ in range(20):
        twin = problem.copy()
        balanced(problem, balancer).backward()
        losses = twin.plain_losses()
        paper.update(losses, list(twin.trunk.shared.parameters()))
        lowest = min(lowest, paper.w.min().item())
        assert (balancer.weights - paper.w).abs().max() < 1e-5
        with torch.no_grad():
            for parameter in problem.parameters():
                parameter -= 0.01 * parameter.grad
                parameter.grad = None
    assert lowest < 0.2  # floor, then scaled down
