"""MaxGNR and GradientStatistics in training steps: gradients, compile, resume, absent tasks, non-finite values."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastmtl import GradientStatistics, MaxGNR
from tests.training.crafted import changed, crafted_step, snapshot, spoiled_step
from tests.training.networks import (
    Problem,
    add_up,
    assert_same_gradients,
    balanced,
    conv_problem,
    linear_problem,
    plain_gradients,
    source_of,
)
from tests.training.test_compile import STEPS, run
from tests.training.test_resume import assert_same_bits, train

MAKERS: list[Callable[[], Problem]] = [linear_problem, conv_problem]


def maxgnr_for(problem: Problem, place: str = "features", **options: object) -> MaxGNR:
    """Starts away from equal weights and moves fast, so that a forgotten or an updated weight shows."""
    balancer = MaxGNR(problem.tasks, source=source_of(problem, place), step=0.7, **options)  # type: ignore[arg-type]
    with torch.no_grad():
        uneven = torch.linspace(0.5, 1.5, problem.tasks)
        balancer.weights.copy_(uneven * (problem.tasks / uneven.sum()))
    return balancer


@pytest.mark.parametrize("place", ["features", "layer", "tail"])
@pytest.mark.parametrize("make", MAKERS)
def test_gradients_are_those_of_the_weighted_sum(make: Callable[[], Problem], place: str, backend: str) -> None:
    problem = make()
    balancer = maxgnr_for(problem, place)
    plain = plain_gradients(problem.parameters(), problem.plain_losses(), balancer.weights)
    expected = add_up(balancer.weights, problem.plain_losses()).detach()
    before = balancer.weights.clone()
    loss = balanced(problem, balancer, place)
    loss.backward()
    assert_same_gradients(problem.gradients(), plain, problem.tasks)
    torch.testing.assert_close(loss.detach(), expected)
    assert not torch.equal(balancer.weights, before)
    assert balancer.counters.tolist() == [1, 0]


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize(
    ("objective", "backend"), [("relative", "inductor"), ("maxmin", "aot_eager"), ("intertask", "aot_eager")]
)
def test_compiled_step_gives_the_same_numbers(objective: str, backend: str) -> None:
    problem = linear_problem(outputs=1)
    twin = problem.copy()
    balancers = [maxgnr_for(p, objective=objective) for p in (problem, twin)]
    compiled = torch.compile(lambda: balanced(problem, balancers[0]), fullgraph=True, backend=backend)
    ours = run(problem, balancers[0], compiled)
    expected = run(twin, balancers[1], lambda: balanced(twin, balancers[1]))
    for step, (a, b) in enumerate(zip(ours, expected, strict=True)):
        for n, (mine, theirs) in enumerate(zip(a, b, strict=True)):
            assert (mine - theirs).norm() <= 1e-4 * (theirs.norm() + 1e-3), f"step {step}, value {n}"
    assert (expected[-1][1] - expected[0][1]).abs().max() > 0.05
    assert balancers[0].counters.tolist() == [STEPS, 0]


@pytest.mark.parametrize(
    "options", [{}, {"objective": "maxmin", "update_every": 2}, {"objective": "intertask"}], ids=str
)
@pytest.mark.parametrize("place", ["features", "layer"])
def test_resumed_run_continues_bit_for_bit(options: dict[str, object], place: str, tmp_path: Path) -> None:
    problem = linear_problem()
    data = torch.randn(6, 4, 5)
    balancer = maxgnr_for(problem, place, **options)
    train(problem, balancer, place, data[:3])
    torch.save({"balancer": balancer.state_dict(), "trunk": problem.trunk.state_dict()}, tmp_path / "run.pt")
    resumed = problem.copy()
    expected = train(problem, balancer, place, data[3:])
    saved = torch.load(tmp_path / "run.pt", weights_only=True)
    again = maxgnr_for(resumed, place, **options)
    again.load_state_dict(saved["balancer"])
    for ours, theirs in zip(train(resumed, again, place, data[3:]), expected, strict=True):
        assert torch.equal(ours, theirs)
    assert_same_bits(again.state_dict(), balancer.state_dict())
    assert not torch.equal(expected[0], expected[-1])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("what", ["loss", "gradient", "scale"])
def test_non_finite_changes_nothing_but_a_count(what: str, bad: float, backend: str) -> None:
    balancer = MaxGNR(3, source="features")
    crafted_step(balancer, [1.0, 2.0, 3.0], [1.0, 1.0, 1.0])
    before = snapshot(balancer)
    spoiled_step(balancer, what, bad)
    assert changed(balancer, before) == {"counters"}
    assert balancer.report()["non_finite"] == 1 and balancer.report()["updates"] == 1


def test_an_absent_task_keeps_its_weight_and_its_statistics(backend: str) -> None:
    balancer = MaxGNR(3, source="features", step=0.5)
    crafted_step(balancer, [1.0, 2.0, 30.0], [1.0, 1.0, 1.0])
    weights, norms, variance = balancer.weights.clone(), balancer.norms.clone(), balancer.variance.clone()
    crafted_step(balancer, [5.0, 1.0, 7.0], [1.0, 1.0, 1.0], present=[True, True, False])
    assert balancer.weights[2] == weights[2] and not torch.equal(balancer.weights[:2], weights[:2])
    assert balancer.norms[2] == norms[2] and balancer.variance[2] == variance[2]
    torch.testing.assert_close(balancer.norms[:2], torch.tensor([5.0, 1.0]))
    torch.testing.assert_close(balancer.weights.sum(), torch.tensor(3.0))


def test_steps_between_measure_nothing(backend: str) -> None:
    balancer = GradientStatistics(2, source="features", update_every=3)
    for _ in range(7):
        crafted_step(balancer, [1.0, 2.0], [1.0, 1.0])
    assert balancer.report()["updates"] == 3


def test_statistics_leave_the_given_weights_alone(backend: str) -> None:
    balancer = GradientStatistics(["a", "b"], source="features", weights={"a": 0.25, "b": 3.0})
    features = torch.zeros(2, 3, requires_grad=True)
    views = balancer.fork(features)
    loss = balancer({"a": views["a"].sum() + 2.0, "b": views["b"].sum() - 1.0})
    loss.backward()
    assert float(loss.detach()) == 0.25 * 2 - 3.0
    assert balancer.weights.tolist() == [0.25, 3.0]
    report = balancer.report()
    assert {"norm/a", "cosine/b", "variance/a", "gnr/b", "noise_scale/a", "weight/b"} <= report.keys()
    # Both samples have the same gradients: no noise, and tasks that agree.
    assert report["variance/a"] == 0 and report["noise_scale/b"] == 0
    assert report["cosine/a"] == pytest.approx(1) and report["norm/a"] == pytest.approx(2 * 3**0.5)


def test_before_the_first_step() -> None:
    balancer = MaxGNR(2, source="features")
    report = balancer.report()
    assert report["updates"] == 0 and math.isnan(report["norm/0"]) and math.isnan(report["gnr/1"])


def test_eval_measures_nothing() -> None:
    balancer = MaxGNR(2, source="features").eval()
    features: Tensor = torch.zeros(1, requires_grad=True)  # one sample: fine where nothing is measured
    balancer([view.sum() for view in balancer.fork(features)]).backward()
    assert balancer.counters.tolist() == [0, 0]
