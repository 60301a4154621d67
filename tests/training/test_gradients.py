"""loss.backward() of the balanced loss gives the gradients of the plain weighted sum, and measures the right norms."""

from __future__ import annotations

import functools

import pytest
import torch

from fastmtl import GradNorm
from tests.training.networks import (
    PLACES,
    Problem,
    assert_same_gradients,
    balanced,
    conv_problem,
    gradnorm_for,
    linear_problem,
    plain_gradients,
    source_of,
    task_norms,
)

PROBLEMS = {
    "conv": conv_problem,
    "batch_norm": functools.partial(conv_problem, batch_norm=True),
    "linear": linear_problem,
}


def targets_of(problem: Problem, place: str, inner: tuple, features: torch.Tensor) -> list[torch.Tensor]:
    source = source_of(problem, place)
    if place == "tail":
        return list(inner)
    return (
        [features] if place == "features" else list(source) if isinstance(source, list) else list(source.parameters())
    )


def check(
    problem: Problem, place: str, dtype: torch.dtype = torch.float32, balancer: GradNorm | None = None
) -> GradNorm:
    """Compare one step with plain autograd: loss, gradients, measured norms."""
    balancer = gradnorm_for(problem, place) if balancer is None else balancer
    used = balancer.weights.clone()
    twin = problem.copy()
    loss = balanced(problem, balancer, place)
    loss.backward()

    # As at a fork without a tail: levels are taken as independent, also where one was computed from another.
    inner = tuple(level.view_as(level) for level in twin.trunk.inner(twin.x))
    features = twin.trunk.tail(inner)
    losses = twin.losses([features] * twin.tasks)
    eps = torch.finfo(dtype).eps
    norms = task_norms(losses, targets_of(twin, place, inner, features))
    total = sum(w * value.item() for w, value in zip(used.tolist(), losses, strict=True))
    assert loss.item() == pytest.approx(total, rel=(twin.tasks + 1) * torch.finfo(torch.float32).eps)
    plain = plain_gradients(twin.parameters(), losses, used)
    assert_same_gradients(problem.gradients(), plain, problem.tasks, dtype)
    # Both round every element of the gradient a few times, independently; a norm averages that out.
    torch.testing.assert_close(balancer.norms.double(), norms, rtol=4 * max(eps, 2**-23), atol=0)
    assert balancer.counters.tolist() == [1, 0]
    assert not torch.equal(balancer.weights, used)
    return balancer


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", PROBLEMS)
def test_gradients_and_norms(kind: str, place: str, backend: str) -> None:
    check(PROBLEMS[kind](), place)


@pytest.mark.parametrize("place", PLACES)
def test_channels_last(place: str, backend: str) -> None:
    problem = conv_problem()
    problem.trunk.to(memory_format=torch.channels_last)
    problem.x = problem.x.contiguous(memory_format=torch.channels_last)
    assert problem.trunk(problem.x).is_contiguous(memory_format=torch.channels_last)
    check(problem, place)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", PROBLEMS)
def test_float64_stays_float64(kind: str, place: str, backend: str) -> None:
    problem = PROBLEMS[kind]().to(torch.float64)
    loss = balanced(problem.copy(), gradnorm_for(problem))
    assert loss.dtype == torch.float64
    check(problem, place, torch.float64)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", PROBLEMS)
def test_pure_bfloat16(kind: str, place: str, backend: str) -> None:
    check(PROBLEMS[kind]().to(torch.bfloat16), place, torch.bfloat16)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", PROBLEMS)
def test_autocast_bfloat16(kind: str, place: str, backend: str) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        check(PROBLEMS[kind](), place, torch.bfloat16)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("tasks", [1, 2, 64])
def test_number_of_tasks(tasks: int, place: str, backend: str) -> None:
    problem = linear_problem(tasks)
    balancer = gradnorm_for(problem, place)
    if tasks == 1:
        loss = balanced(problem, balancer, place)
        loss.backward()
        twin = problem.copy()
        losses = twin.plain_losses()
        assert_same_gradients(problem.gradients(), plain_gradients(twin.parameters(), losses, torch.ones(1)), 1)
        assert balancer.weights.tolist() == [1.0] and balancer.counters.tolist() == [1, 0]
    else:
        check(problem, place, balancer=balancer)


def test_batch_norm_statistics_are_updated_once() -> None:
    problem = conv_problem(batch_norm=True)
    twin = problem.copy()
    balanced(problem, gradnorm_for(problem, "tail"), "tail").backward()
    twin.trunk(twin.x)
    assert torch.equal(problem.trunk.norm.running_var, twin.trunk.norm.running_var)
    assert problem.trunk.norm.num_batches_tracked == 1


@pytest.mark.parametrize("tasks", [2, 3])
def test_two_tasks_give_the_same_bits(tasks: int) -> None:
    """a + b has one order: no excuse; heads have no sum at all."""
    problem = linear_problem(tasks)
    balancer = gradnorm_for(problem, "layer")
    twin, used = problem.copy(), balancer.weights.clone()
    balanced(problem, balancer).backward()
    plain = plain_gradients(twin.parameters(), twin.plain_losses(), used).total
    first_head = len(list(problem.trunk.parameters()))
    for n, (ours, expected) in enumerate(zip(problem.gradients(), plain, strict=True)):
        if tasks == 2 or n >= first_head:
            assert torch.equal(ours, expected), f"parameter {n}"
