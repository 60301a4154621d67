"""balancer.backward(losses, params): the way for code that cannot fork."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastmtl import Balancer, DynamicWeightAverage, FixedWeights, GradNorm, UncertaintyWeighting
from tests.training.crafted import changed, snapshot
from tests.training.networks import (
    Problem,
    assert_same_gradients,
    balanced,
    conv_problem,
    gradnorm_for,
    linear_problem,
    plain_gradients,
)


def params_of(problem: Problem) -> list[torch.Tensor]:
    return list(problem.trunk.shared.parameters())


@pytest.mark.parametrize("make", [linear_problem, conv_problem])
@pytest.mark.parametrize("scale", [1.0, 2.0**16, 1 / 3])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_same_as_a_fork_with_that_source(make: Any, scale: float, as_tensor: bool, backend: str) -> None:
    problem = make()
    twin = problem.copy()
    ours, forked = gradnorm_for(problem), gradnorm_for(twin, "layer")
    for _ in range(3):
        for p in (problem, twin):
            for parameter in p.parameters():
                parameter.grad = None
        used = ours.weights.clone()
        losses = problem.plain_losses()
        plain = plain_gradients(twin.parameters(), twin.plain_losses(), used * scale)
        value = ours.backward(losses, params_of(problem), scale=torch.tensor(scale) if as_tensor else scale)
        assert_same_gradients(problem.gradients(), plain, 3)
        expected = sum(w * loss.item() for w, loss in zip(used.tolist(), losses, strict=True))
        assert value.item() == pytest.approx(expected, rel=4 * 2**-23) and not value.requires_grad

        (balanced(twin, forked, "layer") * scale).backward()
        torch.testing.assert_close(ours.norms, forked.norms, rtol=2**-19, atol=0)
        torch.testing.assert_close(ours.weights, forked.weights, rtol=2**-19, atol=0)
    assert ours.counters.tolist() == [3, 0]


def test_hooks_and_accumulation() -> None:
    """.grad adds up, hooks run on the sum; what is measured is the plain gradient."""
    problem = linear_problem()
    twin = problem.copy()
    balancer = gradnorm_for(problem)
    used = balancer.weights.clone()
    accumulated: list[int] = []
    for n, parameter in enumerate(problem.parameters()):
        parameter.grad = torch.ones_like(parameter)
        parameter.register_hook(lambda grad: 2 * grad)
        parameter.register_post_accumulate_grad_hook(lambda _, n=n: accumulated.append(n))
    balancer.backward(problem.plain_losses(), params_of(problem))
    assert sorted(accumulated) == list(range(len(problem.parameters())))
    plain = plain_gradients(twin.parameters(), twin.plain_losses(), used * 2)
    plain.size = [size + parameter.numel() for size, parameter in zip(plain.size, twin.parameters(), strict=True)]
    assert_same_gradients([grad - 1 for grad in problem.gradients()], plain, 3)


def test_absent_task(backend: str) -> None:
    problem = linear_problem()
    balancer = gradnorm_for(problem)
    losses = problem.plain_losses()
    used = balancer.weights.clone()
    balancer.backward([losses[0], None, losses[2]], params_of(problem))
    assert balancer.weights[1] == used[1] and balancer.weights[0] != used[0]
    assert problem.heads[1].weight.grad is None
    before = balancer.weights.clone()
    balancer.backward(problem.plain_losses(), params_of(problem), present=torch.tensor([True, False, True]))
    assert balancer.weights[1] == before[1] and balancer.weights[0] != before[0]


def test_non_finite(backend: str) -> None:
    problem = linear_problem()
    balancer = gradnorm_for(problem)
    before = snapshot(balancer)
    problem.targets[0] = problem.targets[0] * float("nan")
    balancer.backward(problem.plain_losses(), params_of(problem))
    assert changed(balancer, before) == {"counters"}
    assert balancer.report()["non_finite"] == 1


def test_update_every(backend: str) -> None:
    problem = linear_problem()
    balancer = gradnorm_for(problem, update_every=2)
    for step in range(4):
        before, twin = balancer.weights.clone(), problem.copy()
        for parameter in problem.parameters():
            parameter.grad = None
        balancer.backward(problem.plain_losses(), params_of(problem))
        plain = plain_gradients(twin.parameters(), twin.plain_losses(), before)
        assert_same_gradients(problem.gradients(), plain, 3)
        assert torch.equal(before, balancer.weights) == (step % 2 == 1)
    assert balancer.counters.tolist() == [2, 0]


@pytest.mark.parametrize(
    "make",
    [
        lambda: FixedWeights(3, [0.5, 1.0, 2.0]),
        lambda: UncertaintyWeighting(3, kinds="regression"),
        lambda: DynamicWeightAverage(3),
    ],
    ids=["fixed", "uncertainty", "dwa"],
)
def test_the_others_have_it_too(make: Any) -> None:
    problem = linear_problem()
    twin = problem.copy()
    balancer: Balancer = make()
    used = balancer.weights.clone()
    value = balancer.backward(problem.plain_losses(), params_of(problem), scale=4.0)
    plain = plain_gradients(twin.parameters(), twin.plain_losses(), used * 4)
    assert_same_gradients(problem.gradients(), plain, 3)
    assert not value.requires_grad
    if isinstance(balancer, UncertaintyWeighting):
        assert balancer.log_variances.grad is not None


def test_after_a_fork_without_a_call() -> None:
    """A fork in flight is not disturbed."""
    problem = linear_problem()
    balancer = gradnorm_for(problem)
    balancer.backward(problem.plain_losses(), params_of(problem))
    balanced(problem, balancer).backward()
    assert balancer.counters.tolist() == [2, 0]


def test_errors() -> None:
    problem = linear_problem()
    balancer = gradnorm_for(problem)
    before = snapshot(balancer)
    losses = problem.plain_losses()
    with pytest.raises(TypeError, match="params: expected the parameters"):
        balancer.backward(losses)
    with pytest.raises((TypeError, ValueError), match=r"params: expected at least one"):
        balancer.backward(losses, [])
    with pytest.raises(TypeError, match=r"params\[0\]: expected a parameter"):
        balancer.backward(losses, [3])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="params: none of them has a part"):
        balancer.backward(losses, [torch.zeros(2, requires_grad=True)])
    with pytest.raises((TypeError, ValueError, RuntimeError), match="params.*require grad"):
        balancer.backward(losses, [torch.zeros(2)])
    with pytest.raises(ValueError, match="losses: expected 3"):
        balancer.backward(losses[:2], params_of(problem))
    assert all(grad is None for grad in problem.gradients())
    balancer.eval()
    with pytest.raises(RuntimeError, match="training mode"):
        balancer.backward(losses, params_of(problem))
    balancer.train()
    with torch.no_grad(), pytest.raises(RuntimeError, match="training mode"):
        balancer.backward(losses, params_of(problem))
    assert changed(balancer, before) == set()


def test_gradnorm_is_needed_for_params_only() -> None:
    problem = linear_problem()
    FixedWeights(3).backward(problem.plain_losses())
    assert all(grad is not None for grad in problem.gradients())
    assert isinstance(gradnorm_for(problem), GradNorm)
