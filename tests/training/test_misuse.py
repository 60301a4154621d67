"""What goes wrong in a training step is told, by name."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from fastmtl import FixedWeights, GradNorm, UncertaintyWeighting
from tests.training.crafted import changed, snapshot
from tests.training.networks import (
    Problem,
    assert_same_gradients,
    balanced,
    gradnorm_for,
    linear_problem,
    plain_gradients,
    views_of,
)


def losses_for(count: int) -> list[torch.Tensor]:
    return [torch.ones((), requires_grad=True) for _ in range(count)]


def forked(tasks: Any) -> GradNorm:
    balancer = GradNorm(tasks, alpha=0.5)
    balancer.fork(torch.zeros(2, requires_grad=True))
    return balancer


@pytest.mark.parametrize(
    ("tasks", "losses", "error", "message"),
    [
        (3, losses_for(2), ValueError, "losses: expected 3"),
        (3, losses_for(4), ValueError, "losses: expected 3"),
        (2, torch.ones(3, requires_grad=True), ValueError, r"losses: expected shape \[2\]"),
        (2, torch.ones(2, 1, requires_grad=True), ValueError, "losses: expected shape"),
        (2, {"0": torch.ones((), requires_grad=True)}, TypeError, "losses: .*no names"),
        (["a", "b"], {"a": losses_for(1)[0], "c": losses_for(1)[0]}, ValueError, r"losses: unknown tasks \['c'\]"),
        (["a", "b"], {}, ValueError, "losses: expected at least one"),
        (2, [None, None], ValueError, "losses: expected at least one"),
        (2, [torch.ones(()), losses_for(1)[0]], ValueError, r"losses\['0'\]: does not require grad"),
        (2, [torch.ones(3, requires_grad=True), losses_for(1)[0]], ValueError, r"losses\['0'\]: expected one"),
        (2, [torch.ones((), dtype=torch.int64), losses_for(1)[0]], ValueError, r"losses\['0'\]: expected one floating"),
        (2, [1.0, losses_for(1)[0]], TypeError, r"losses\['0'\]: expected a scalar tensor, got float"),
        (2, 3.0, TypeError, "losses: expected .* got float"),
        (["a", "b"], {"a": losses_for(1)[0], "b": torch.ones(())}, ValueError, r"losses\['b'\]: does not require grad"),
    ],
)
def test_losses(tasks: Any, losses: Any, error: type[Exception], message: str) -> None:
    balancer = forked(tasks)
    before = snapshot(balancer)
    with pytest.raises(error, match=message):
        balancer(losses)
    assert changed(balancer, before) == set()


@pytest.mark.parametrize(
    ("tasks", "present", "error", "message"),
    [
        (2, [True], ValueError, "present: expected 2"),
        (2, torch.tensor([True]), ValueError, r"present: expected \[2\] bool"),
        (2, torch.tensor([1.0, 0.0]), ValueError, r"present: expected \[2\] bool"),
        (2, ["a", "b"], TypeError, "present: expected booleans"),
        (2, [1, 0], TypeError, "present: expected booleans"),
        (2, {"0": True}, TypeError, "present: .*no names"),
        (["a", "b"], ["c"], ValueError, r"present: unknown tasks \['c'\]"),
        (["a", "b"], {"c": True}, ValueError, r"present: unknown tasks \['c'\]"),
        (["a", "b"], [], ValueError, "at least one present task"),
        (["a", "b"], "a", (TypeError, ValueError), "present"),
        (2, [False, False], ValueError, "at least one present task"),
        (2, True, TypeError, "present"),
    ],
)
def test_present(tasks: Any, present: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        forked(tasks)(torch.ones(2, requires_grad=True), present=present)


@pytest.mark.parametrize(
    ("features", "error", "message"),
    [
        (torch.zeros(2), ValueError, r"features\[0\]: does not require grad"),
        ([torch.zeros(2, requires_grad=True), torch.zeros(2)], ValueError, r"features\[1\]: does not require grad"),
        (torch.zeros(2, dtype=torch.int64), TypeError, r"features\[0\]: expected a floating-point tensor"),
        ([torch.zeros(2, requires_grad=True), 3], TypeError, r"features\[1\]: expected a floating-point .*got int"),
        ({}, ValueError, "features: expected at least one"),
        ((), ValueError, "features: expected at least one"),
        ("z", TypeError, "features: expected .* got str"),
        (None, TypeError, "features: expected .* got NoneType"),
        (torch.zeros(2, dtype=torch.complex64, requires_grad=True), TypeError, r"features\[0\]: expected a floating"),
    ],
)
def test_features(features: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        GradNorm(2, alpha=0.5).fork(features)


def test_features_on_another_device() -> None:
    with pytest.raises(ValueError, match=r"features\[0\]: expected on cpu.*balancer\.to"):
        GradNorm(2, alpha=0.5).fork(torch.zeros(2, device="meta", requires_grad=True))


def step_with_views(problem: Problem, choose: list[int | None]) -> tuple[GradNorm, torch.Tensor]:
    """A step whose head k reads view choose[k], or (None) the features themselves."""
    balancer = gradnorm_for(problem, "layer")
    features = problem.trunk(problem.x)
    views = balancer.fork(features)
    read = [features if index is None else views[index] for index in choose]
    return balancer, balancer(problem.losses(read))


@pytest.mark.parametrize(("choose", "unread"), [([0, None, 2], 1), ([0, 0, 2], 1), ([1, 1, 2], 0)])
def test_view_that_no_head_read(choose: list[int | None], unread: int, backend: str) -> None:
    problem = linear_problem()
    twin = problem.copy()
    balancer, loss = step_with_views(problem, choose)
    used = balancer.weights.clone()
    with pytest.warns(UserWarning, match=f"task '{unread}' is left out of weighting.*no gradient reached its view"):
        loss.backward()
    assert balancer.weights[unread] == used[unread]
    assert balancer.steps[unread] == 0
    assert balancer.report()[f"no_gradient/{unread}"] == 1
    assert_same_gradients(problem.gradients(), plain_gradients(twin.parameters(), twin.plain_losses(), used), 3)


def test_no_view_read_at_all(backend: str) -> None:
    problem = linear_problem()
    twin = problem.copy()
    balancer, loss = step_with_views(problem, [None, None, None])
    used = balancer.weights.clone()
    with pytest.warns(UserWarning, match="no gradient reached its view"):
        loss.backward()
    assert torch.equal(balancer.weights, used)
    assert_same_gradients(problem.gradients(), plain_gradients(twin.parameters(), twin.plain_losses(), used), 3)


def test_warning_comes_once_a_task() -> None:
    problem = linear_problem()
    balancer = gradnorm_for(problem)
    for n in range(3):
        features = problem.trunk(problem.x)
        views = balancer.fork(features)
        loss = balancer(problem.losses([views[0], features, views[2]]))
        if n == 0:
            with pytest.warns(UserWarning, match="task '1'"):
                loss.backward()
        else:
            loss.backward()
    assert balancer.report()["no_gradient/1"] == 3


def test_zero_gradient_is_counted(backend: str) -> None:
    problem = linear_problem()
    balancer = gradnorm_for(problem)
    torch.nn.init.zeros_(problem.heads[2].weight)
    balanced(problem, balancer).backward()
    assert balancer.report()["zero_gradient/2"] == 1
    assert balancer.weights.isfinite().all() and math.isclose(balancer.weights.sum().item(), 3, rel_tol=2**-22)


def test_backbone_frozen() -> None:
    problem = linear_problem()
    problem.trunk.requires_grad_(False)
    with pytest.raises(ValueError, match=r"features\[0\]: does not require grad.*frozen"):
        views_of(problem, gradnorm_for(problem))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda p: GradNorm(2, alpha=0.0, source=[p, p]), ValueError, "source: expected different parameters"),
        (
            lambda p: GradNorm(2, alpha=0.0).backward([p.sum(), p.sum()], [p, p]),
            ValueError,
            "params: expected different",
        ),
        (lambda p: GradNorm(2, alpha=0.0).backward([p.sum(), p.sum()], p), TypeError, "params: expected a list"),
        (lambda p: GradNorm(2, alpha=0.0).backward([p.sum(), p.sum()], [p], scale=None), TypeError, "scale: expected"),
        (lambda p: FixedWeights(2).backward([p.sum(), p.sum()], scale=torch.ones(2)), TypeError, "scale: expected"),
        (lambda p: GradNorm(2, alpha=0.0, initial_losses=[1.0, "a"]), TypeError, "initial_losses: expected a number"),
        (lambda p: UncertaintyWeighting(2, kinds=5), TypeError, "kinds: expected one of"),
        (lambda p: GradNorm(2, alpha=0.0).fork(p * 1, tail=3), TypeError, "tail: expected a function"),
        (
            lambda p: GradNorm(2, alpha=0.0).fork(p * 1, tail=lambda z: z.detach()),
            ValueError,
            "tail: expected a result",
        ),
        (lambda p: GradNorm(2, alpha=0.0).fork(p * 1, tail=lambda z: None), TypeError, "what tail returns: expected a"),
    ],
)
def test_arguments_of_the_wrong_kind(make, error, message):
    with pytest.raises(error, match=message):
        make(torch.ones(3, requires_grad=True))
