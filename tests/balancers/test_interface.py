"""One interface: any balancer takes any other's place by changing the line that makes it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch

from fastmtl import (
    Balancer,
    DynamicWeightAverage,
    FixedWeights,
    GradientStatistics,
    GradNorm,
    MaxGNR,
    UncertaintyWeighting,
)
from tests.training.networks import Problem, balanced, linear_problem

NAMES = ["a", "b", "c"]
Make = Callable[[Any, Problem], Balancer]
MAKERS: dict[str, Make] = {
    "fixed": lambda tasks, _: FixedWeights(tasks),
    "uncertainty": lambda tasks, _: UncertaintyWeighting(tasks, kinds="regression"),
    "dwa": lambda tasks, _: DynamicWeightAverage(tasks),
    "maxgnr, features": lambda tasks, _: MaxGNR(tasks, source="features"),
    "maxgnr, layer": lambda tasks, problem: MaxGNR(tasks, source=problem.trunk.shared),
    "statistics": lambda tasks, problem: GradientStatistics(tasks, source=problem.trunk.shared),
    "gradnorm, features": lambda tasks, _: GradNorm(tasks, alpha=0.5),
    "gradnorm, layer": lambda tasks, problem: GradNorm(tasks, alpha=0.5, source=problem.trunk.shared),
}


@pytest.fixture(params=MAKERS.values(), ids=MAKERS)
def make(request: pytest.FixtureRequest) -> Make:
    return request.param


def step(problem: Problem, balancer: Balancer, present: Any = None) -> torch.Tensor:
    views = balancer.fork(problem.trunk(problem.x))
    losses = {name: problem.loss(k, views[name]) for k, name in enumerate(NAMES)}
    return balancer(losses, present=present)


def test_training_loop(make: Make, backend: str) -> None:
    """The same loop for all: epochs, a validation, a report; the losses fall."""
    problem = linear_problem()
    balancer = make(NAMES, problem)
    optimizer = torch.optim.Adam([*problem.parameters(), *balancer.parameters()], lr=0.02)
    start = sum(loss.item() for loss in problem.plain_losses())
    for _ in range(3):
        balancer.train()
        for _ in range(10):
            optimizer.zero_grad()
            step(problem, balancer).backward()
            optimizer.step()
        balancer.end_epoch()
        balancer.eval()
        with torch.no_grad():
            assert step(problem, balancer).isfinite()
        report = balancer.report()
        assert {f"weight/{name}" for name in NAMES} <= report.keys()
        assert all(isinstance(value, (int, float)) for value in report.values())
    assert sum(loss.item() for loss in problem.plain_losses()) < start / 2
    assert balancer.tasks == ("a", "b", "c")
    assert "['a', 'b', 'c']" in repr(balancer)


def test_views_are_a_dict_or_a_tuple(make: Make) -> None:
    problem = linear_problem()
    for tasks, form in ((NAMES, dict), (3, tuple)):
        for training in (True, False):
            views = make(tasks, problem).train(training).fork(problem.trunk(problem.x))
            assert type(views) is form and len(views) == 3
            assert list(views) == NAMES or form is tuple


def test_forms_of_losses_agree(make: Make) -> None:
    """[T] tensor, list, tuple, dict: the same loss and the same gradients."""
    results = []
    for form in ("list", "tuple", "tensor", "dict"):
        torch.manual_seed(7)
        problem = linear_problem()
        balancer = make(NAMES, problem)
        losses = problem.losses(list(balancer.fork(problem.trunk(problem.x)).values()))
        given: Any = {"list": losses, "tuple": tuple(losses)}.get(form)
        if form == "tensor":
            given = torch.stack(losses)
        elif form == "dict":
            given = dict(zip(reversed(NAMES), reversed(losses), strict=True))
        loss = balancer(given)
        loss.backward()
        results.append([loss, balancer.weights, *problem.gradients()])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_absent_tasks(make: Make) -> None:
    """The loss is that of the present tasks; their head alone gets a gradient."""
    for present in (["a", "c"], {"a": True, "c": True}, [True, False, True], torch.tensor([True, False, True])):
        problem = linear_problem()
        balancer = make(NAMES, problem)
        loss = step(problem, balancer, present)
        grad = torch.autograd.grad(loss, problem.heads[1].weight, allow_unused=True, retain_graph=True)[0]
        assert grad is None or not grad.any()
        assert torch.autograd.grad(loss, problem.heads[0].weight)[0].any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtype_of_the_loss(make: Make, dtype: torch.dtype) -> None:
    """float32, or float64 where a loss is."""
    problem = linear_problem().to(dtype)
    loss = step(problem, make(NAMES, problem))
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert loss.shape == ()
    loss.backward()
    assert all(grad.dtype == dtype for grad in problem.gradients())


@pytest.mark.parametrize(
    "make_copy", [copy.deepcopy, lambda b: pickle.loads(pickle.dumps(b))], ids=["deepcopy", "pickle"]
)
def test_copies(make: Make, make_copy: Any) -> None:
    problem = linear_problem()
    balancer = make(NAMES, problem)
    step(problem, balancer).backward()
    twin = make_copy(balancer)
    assert torch.equal(twin.weights, balancer.weights)
    assert twin.tasks == balancer.tasks
    assert twin.state_dict().keys() == balancer.state_dict().keys()


def test_state_dict_round_trip(make: Make, tmp_path: Any) -> None:
    problem = linear_problem()
    balancer, again = make(NAMES, problem), make(NAMES, problem)
    for _ in range(3):
        step(problem, balancer).backward()
        balancer.end_epoch()
    torch.save(balancer.state_dict(), tmp_path / "state.pt")
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(again.weights, balancer.weights)
    assert str(again.report()) == str(balancer.report())
    with pytest.raises((ValueError, RuntimeError), match="tasks"):
        make(["x", "y", "z"], problem).load_state_dict(balancer.state_dict())


def test_tail(make: Make) -> None:
    """fork(x, tail=fn) works with every balancer."""
    problem = linear_problem()
    twin = problem.copy()
    tasks = problem.tasks
    for p, place in ((problem, "tail"), (twin, "features")):
        balancer = FixedWeights(tasks) if place == "tail" else make(tasks, p)
        if not isinstance(balancer, UncertaintyWeighting):
            balanced(p, balancer, place).backward()
            assert all(grad is not None for grad in p.gradients())
    balanced(problem.copy(), make(tasks, problem).eval(), "tail")


def test_errors_are_shared(make: Make) -> None:
    problem = linear_problem()
    balancer = make(NAMES, problem)
    views = balancer.fork(problem.trunk(problem.x))
    losses = {name: problem.loss(k, views[name]) for k, name in enumerate(NAMES)}
    with pytest.raises(ValueError, match=r"losses: unknown tasks \['d'\]"):
        balancer({**losses, "d": losses["a"]})
    with pytest.raises(ValueError, match=r"losses\['a'\]: does not require grad"):
        balancer({**losses, "a": losses["a"].detach()})
    with pytest.raises(ValueError, match="present: unknown tasks"):
        balancer(losses, present=["d"])


def test_a_state_dict_of_another_balancer_is_refused() -> None:
    """Also where the names of the tensors agree."""
    fixed, statistics = FixedWeights(2), GradientStatistics(2, source="features", weights=[0.5, 1.5])
    for balancer, state, name in (
        (GradNorm(2, alpha=1.0), fixed, "FixedWeights"),
        (MaxGNR(2, source="features"), statistics, "GradientStatistics"),
    ):
        before = balancer.weights.clone()
        with pytest.raises(
            ValueError, match=f"state_dict: expected that of {type(balancer).__name__}, got that of {name}"
        ):
            balancer.load_state_dict(state.state_dict())
        assert torch.equal(balancer.weights, before)
