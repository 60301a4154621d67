"""Unusual heads: expanded gradients, shared parameters, in-place operations, uses of the features outside the fork."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from tests.training.networks import (
    PLACES,
    Problem,
    assert_same_gradients,
    conv_problem,
    gradnorm_for,
    linear_problem,
    plain_gradients,
    views_of,
)

Losses = Callable[[Problem, Sequence[Tensor]], list[Tensor]]


def check(problem: Problem, place: str, losses_of: Losses) -> Tensor:
    """Gradients against plain autograd; the measured norms."""
    balancer = gradnorm_for(problem, place)
    used, twin = balancer.weights.clone(), problem.copy()
    balancer(losses_of(problem, views_of(problem, balancer, place))).backward()
    features = twin.trunk(twin.x)
    plain = plain_gradients(twin.parameters(), losses_of(twin, [features] * twin.tasks), used)
    assert_same_gradients(problem.gradients(), plain, problem.tasks)
    assert balancer.counters.tolist() == [1, 0]
    return balancer.norms


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("all_expanded", [True, False])
def test_expanded_gradients(place: str, all_expanded: bool, backend: str) -> None:
    """A head that ends in .mean() or .sum() sends a gradient of stride 0."""

    def losses(problem: Problem, views: Sequence[Tensor]) -> list[Tensor]:
        last = views[2].sum() * 1e-2 if all_expanded else problem.loss(2, views[2])
        return [views[0].mean(), views[1].sum() * 1e-2, last]

    norms = check(conv_problem(), place, losses)
    if place == "features":
        elements = 2 * 6 * 5 * 5
        expected = torch.tensor([elements**-0.5, 1e-2 * elements**0.5])
        torch.testing.assert_close(norms[:2], expected, rtol=2**-21, atol=0)


@pytest.mark.parametrize("place", PLACES)
def test_partly_expanded_gradients(place: str, backend: str) -> None:
    check(
        conv_problem(), place, lambda _, views: [(k + 1) * v.mean((2, 3)).square().sum() for k, v in enumerate(views)]
    )


@pytest.mark.parametrize("place", PLACES)
def test_transposed_gradients(place: str, backend: str) -> None:
    """Gradients in the layout of a transposed view, beside contiguous ones."""

    def losses(problem: Problem, views: Sequence[Tensor]) -> list[Tensor]:
        turned = views[0].transpose(2, 3).contiguous() ** 2
        return [turned.mean(), problem.loss(1, views[1]), (views[2][:, :, ::2] ** 2).mean()]

    check(conv_problem(), place, losses)


@pytest.mark.parametrize("place", PLACES)
def test_heads_that_share_parameters(place: str, backend: str) -> None:
    problem = linear_problem()
    problem.heads = nn.ModuleList([problem.heads[0]] * 3)
    check(problem, place, lambda p, views: p.losses(views))


@pytest.mark.parametrize("place", PLACES)
def test_head_that_uses_shared_parameters(place: str, backend: str) -> None:
    """The last shared layer is used once more after the fork: its gradient there is not the fork's to count."""

    def losses(problem: Problem, views: Sequence[Tensor]) -> list[Tensor]:
        return [problem.loss(0, problem.trunk.shared(views[0])), problem.loss(1, views[1]), problem.loss(2, views[2])]

    check(linear_problem(), place, losses)


@pytest.mark.parametrize("place", PLACES)
def test_features_used_outside_the_fork(place: str, backend: str) -> None:
    """An auxiliary loss on the features is trained in full, and not measured."""
    problem = linear_problem()
    balancer = gradnorm_for(problem, place)
    used, twin = balancer.weights.clone(), problem.copy()
    inner = problem.trunk.inner(problem.x)
    features = problem.trunk.tail(inner)
    views = balancer.fork(inner, tail=problem.trunk.tail) if place == "tail" else balancer.fork(features)
    (balancer(problem.losses(views)) + features.square().sum()).backward()

    features = twin.trunk(twin.x)
    losses = [*twin.losses([features] * 3), features.square().sum()]
    plain = plain_gradients(twin.parameters(), losses, torch.cat([used, torch.ones(1)]))
    assert_same_gradients(problem.gradients(), plain, 4)

    alone = gradnorm_for(twin, place)
    alone(twin.losses(views_of(twin, alone, place))).backward()
    assert torch.equal(alone.norms, balancer.norms)


@pytest.mark.parametrize("place", PLACES)
def test_in_place_head_raises(place: str) -> None:
    """torch's own error, as for every view that shares memory with others."""
    problem = linear_problem()
    views = views_of(problem, gradnorm_for(problem, place), place)
    with pytest.raises(RuntimeError, match="(?i)view.*in-?place"):
        torch.relu_(views[0])


def test_in_place_after_the_first_operation(backend: str) -> None:
    check(linear_problem(), "layer", lambda p, views: p.losses([(view * 2).relu_() for view in views]))


def test_views_hold_no_copy() -> None:
    problem = linear_problem()
    features = problem.trunk(problem.x)
    views = gradnorm_for(problem).fork(features)
    assert all(view.data_ptr() == features.data_ptr() for view in views)


@pytest.mark.parametrize("shape", [(), (1,)])
def test_losses_of_one_element(shape: tuple[int, ...], backend: str) -> None:
    check(linear_problem(), "features", lambda p, views: [loss.reshape(shape) for loss in p.losses(views)])


def test_losses_as_one_tensor(backend: str) -> None:
    check(linear_problem(), "layer", lambda p, views: torch.stack(p.losses(views)))  # type: ignore[arg-type, return-value]


def test_losses_of_different_dtypes(backend: str) -> None:
    problem = linear_problem()
    balancer = gradnorm_for(problem)
    views = balancer.fork(problem.trunk(problem.x))
    first, second, third = problem.losses(views)
    loss = balancer([first.double(), second.bfloat16(), third])
    loss.backward()
    assert loss.dtype == torch.float64
    assert all(grad is not None and grad.isfinite().all() for grad in problem.gradients())
