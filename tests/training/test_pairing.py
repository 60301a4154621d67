"""Which fork belongs to which call, and what several forwards and backwards in any order do."""

from __future__ import annotations

import warnings

import pytest
import torch

from fastmtl import GradNorm
from tests.training.crafted import changed, crafted_losses, snapshot
from tests.training.networks import (
    PLACES,
    assert_same_gradients,
    balanced,
    gradnorm_for,
    linear_problem,
    plain_gradients,
    views_of,
)


@pytest.mark.parametrize("place", PLACES)
def test_two_steps_in_one_backward(place: str, backend: str) -> None:
    """fork-call-fork-call-backward: the gradients of both, each measured with its own losses."""
    problem = linear_problem()
    balancer = gradnorm_for(problem, place)
    twin, used = problem.copy(), balancer.weights.clone()
    second_x = torch.randn(4, 5)
    first = balanced(problem, balancer, place)
    problem.x = second_x
    (first + balanced(problem, balancer, place)).backward()
    losses = twin.plain_losses()
    twin.x = second_x
    losses += twin.plain_losses()
    assert_same_gradients(problem.gradients(), plain_gradients(twin.parameters(), losses, used.repeat(2)), 6)
    assert balancer.counters.tolist() == [2, 0]


@pytest.mark.parametrize("reverse", [False, True])
def test_each_fork_gets_its_own_message(reverse: bool, backend: str) -> None:
    """Two steps forward, then two backwards in either order: norms, losses and the weights used are those of each."""
    balancer = GradNorm(2, alpha=0.5)
    steps = [([1.0, 2.0], [3.0, 4.0]), ([5.0, 0.5], [6.0, 7.0])]
    losses = []
    for norms, values in steps:
        features = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        losses.append(balancer(crafted_losses(balancer.fork(features), norms, values)))
    order = [1, 0] if reverse else [0, 1]
    for n, index in enumerate(order):
        losses[index].backward()
        assert balancer.norms.tolist() == steps[index][0]  # divided by the weights of that forward: all 1
        assert (balancer.weights != 1).all()
        assert balancer.weight_sum.tolist() == [n + 1.0, n + 1.0]
    assert balancer.initial_losses.tolist() == steps[order[0]][1]


def test_scales_of_two_steps_in_one_backward(backend: str) -> None:
    balancer = GradNorm(2, alpha=0.5)
    first, second = (torch.zeros(2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    one = balancer(crafted_losses(balancer.fork(first), [1.0, 2.0], [1.0, 1.0]))
    two = balancer(crafted_losses(balancer.fork(second), [1.0, 2.0], [1.0, 1.0]))
    (one * 8 + two / 4).backward()
    assert balancer.norms.tolist() == [1.0, 2.0]
    assert balancer.counters.tolist() == [2, 0]
    assert first.grad[0] == 8 * 3 and second.grad[0] == 3 / 4


def test_fork_fork_call_call() -> None:
    """The first fork is lost, with a warning; no weight moves, gradients are right. A second call has no fork."""
    problem = linear_problem()
    balancer = gradnorm_for(problem, "layer")
    twin, used, before = problem.copy(), balancer.weights.clone(), snapshot(balancer)
    lost = views_of(problem, balancer)
    with pytest.warns(UserWarning, match="fork.. was called before"):
        views_of(problem, balancer)
    loss = balancer(problem.losses(lost))
    with pytest.raises(RuntimeError, match="without a fork"):
        balancer(problem.losses(lost))
    with pytest.warns(UserWarning, match="no gradient reached its view"):  # the call took the other fork
        loss.backward()
    assert changed(balancer, before) <= {"counters", "task_counters", "weight_sum", "initial_losses"}
    assert_same_gradients(problem.gradients(), plain_gradients(twin.parameters(), twin.plain_losses(), used), 3)


def test_call_without_fork() -> None:
    problem = linear_problem()
    balancer = gradnorm_for(problem)
    with pytest.raises(RuntimeError, match=r"without a fork.*balancer\.backward"):
        balancer(problem.plain_losses())
    balanced(problem, balancer).backward()
    with pytest.raises(RuntimeError, match="without a fork"):
        balancer(problem.plain_losses())


@pytest.mark.parametrize("place", PLACES)
def test_fork_never_used(place: str, backend: str) -> None:
    """A backward of something else through the views measures nothing and gives the sum."""
    problem = linear_problem()
    balancer = gradnorm_for(problem, place)
    twin, before = problem.copy(), snapshot(balancer)
    sum(problem.losses(views_of(problem, balancer, place))).backward()
    assert changed(balancer, before) == set()
    plain = plain_gradients(twin.parameters(), twin.plain_losses(), torch.ones(3))
    assert_same_gradients(problem.gradients(), plain, 3)


def test_fork_dropped_without_a_call_is_told() -> None:
    problem = linear_problem()
    balancer = gradnorm_for(problem)
    views_of(problem, balancer)
    with pytest.warns(UserWarning, match="will measure nothing"):
        loss = balanced(problem, balancer)
    loss.backward()
    assert balancer.counters.tolist() == [1, 0]


def test_failed_call_can_be_repeated() -> None:
    """An error in the losses does not use up the fork."""
    problem = linear_problem()
    balancer = gradnorm_for(problem)
    losses = problem.losses(views_of(problem, balancer))
    with pytest.raises(ValueError, match="losses"):
        balancer(losses[:2])
    balancer(losses).backward()
    assert balancer.counters.tolist() == [1, 0]


@pytest.mark.parametrize("place", PLACES)
def test_backward_twice_without_retain_graph(place: str) -> None:
    problem = linear_problem()
    balancer = gradnorm_for(problem, place)
    loss = balanced(problem, balancer, place)
    loss.backward()
    before = snapshot(balancer)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()
    assert changed(balancer, before) == set()


@pytest.mark.parametrize("place", PLACES)
def test_backward_twice_with_retain_graph(place: str, backend: str) -> None:
    """Twice the gradient, of the weights of the forward; the weights step twice."""
    problem = linear_problem()
    balancer = gradnorm_for(problem, place)
    loss = balanced(problem, balancer, place)
    loss.backward(retain_graph=True)
    once = [grad.clone() for grad in problem.gradients()]
    norms = balancer.norms.clone()
    loss.backward()
    for grad, first in zip(problem.gradients(), once, strict=True):
        assert torch.equal(grad, 2 * first)
    assert torch.equal(balancer.norms, norms)
    assert balancer.counters.tolist() == [2, 0]


def test_autograd_grad_of_the_loss(backend: str) -> None:
    """torch.autograd.grad instead of backward: the same gradients, and the same measurement."""
    problem = linear_problem()
    balancer = gradnorm_for(problem)
    twin, other = problem.copy(), gradnorm_for(problem)
    grads = torch.autograd.grad(balanced(problem, balancer), problem.parameters())
    balanced(twin, other).backward()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(grads, twin.gradients(), strict=True))
    assert torch.equal(balancer.weights, other.weights)


def test_double_backward_raises() -> None:
    problem = linear_problem()
    loss = balanced(problem, gradnorm_for(problem))
    grads = torch.autograd.grad(loss, list(problem.trunk.parameters()), create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|not require grad|does not have a grad_fn"):
        sum(grad.square().sum() for grad in grads).backward()


def test_two_balancers_in_one_backward(backend: str) -> None:
    """Balancers do not know of each other."""
    problem = linear_problem()
    twin = problem.copy()
    one, two = gradnorm_for(problem), gradnorm_for(twin, "layer")
    alone = [gradnorm_for(problem), gradnorm_for(twin, "layer")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (balanced(problem, one) + balanced(twin, two)).backward()
    for balancer, p in zip(alone, (problem, twin), strict=True):
        balanced(p, balancer, "features").backward()
    assert torch.equal(one.weights, alone[0].weights) and torch.equal(two.weights, alone[1].weights)
