"""A task that is not in the batch: its head gets no gradient, its weight and moments stay, the others are balanced."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastmtl import GradNorm
from tests.training.crafted import changed, crafted_step, snapshot
from tests.training.networks import (
    Problem,
    assert_same_gradients,
    gradnorm_for,
    linear_problem,
    plain_gradients,
    source_of,
    task_norms,
    views_of,
)

NAMES = ["seg", "depth", "normal"]
ABSENT = 1

# How a user says that task 1 is absent, given the three losses.
NAMED: dict[str, Callable[[list[Tensor]], tuple[Any, Any]]] = {
    "missing key": lambda all_: ({"seg": all_[0], "normal": all_[2]}, None),
    "None in a dict": lambda all_: ({"seg": all_[0], "depth": None, "normal": all_[2]}, None),
    "None in a list": lambda all_: ([all_[0], None, all_[2]], None),
    "present names": lambda all_: (dict(zip(NAMES, all_, strict=True)), ["seg", "normal"]),
    "present set": lambda all_: (dict(zip(NAMES, all_, strict=True)), {"seg", "normal"}),
    "present dict": lambda all_: (dict(zip(NAMES, all_, strict=True)), {"seg": True, "depth": False, "normal": True}),
    "present short dict": lambda all_: (dict(zip(NAMES, all_, strict=True)), {"seg": True, "normal": True}),
    "present booleans": lambda all_: (dict(zip(NAMES, all_, strict=True)), [True, False, True]),
    "present tensor": lambda all_: (dict(zip(NAMES, all_, strict=True)), torch.tensor([True, False, True])),
    "missing key and tensor": lambda all_: ({"seg": all_[0], "normal": all_[2]}, torch.tensor([True, True, True])),
    "stacked and booleans": lambda all_: (torch.stack(all_), [True, False, True]),
}


def named_balancer(problem: Problem, place: str) -> GradNorm:
    balancer = GradNorm(NAMES, alpha=0.5, source=source_of(problem, place))
    balancer.load_state_dict({**gradnorm_for(problem, place).state_dict(), "_extra_state": balancer.get_extra_state()})
    return balancer


def step(problem: Problem, balancer: GradNorm, place: str, form: str, nan: bool) -> None:
    views = list(views_of(problem, balancer, place).values())
    losses = problem.losses(views)
    if nan:  # a mean over no samples
        losses[ABSENT] = problem.heads[ABSENT](views[ABSENT])[:0].mean()
        assert losses[ABSENT].isnan()
    given, present = NAMED[form](losses)
    balancer(given, present=present).backward()


@pytest.mark.parametrize("nan", [False, True], ids=["finite", "nan"])
@pytest.mark.parametrize("form", NAMED)
@pytest.mark.parametrize("place", ["features", "layer"])
def test_gradients_and_state(place: str, form: str, nan: bool, backend: str) -> None:
    problem = linear_problem()
    balancer = named_balancer(problem, place)
    step(problem, balancer, place, "present tensor", nan=False)  # moments that are not zero
    for parameter in problem.parameters():
        parameter.grad = None
    twin, used, before = problem.copy(), balancer.weights.clone(), snapshot(balancer)
    step(problem, balancer, place, form, nan)

    losses = twin.plain_losses()
    plain = plain_gradients(twin.parameters(), [losses[0], losses[2]], used[[0, 2]])
    gradients = problem.gradients()
    head = {id(parameter) for parameter in problem.heads[ABSENT].parameters()}
    for n, parameter in enumerate(problem.parameters()):
        if id(parameter) in head:  # zeros where absence is data, else none
            assert gradients[n] is None or not gradients[n].any()
            gradients[n] = plain.total[n] = None
    assert_same_gradients(gradients, plain, 2)

    for name in ("weights", "exp_avg", "exp_avg_sq", "steps", "norms", "initial_losses", "rates"):
        after = balancer.get_buffer(name)
        assert torch.equal(after[ABSENT].nan_to_num(-1), before[name][ABSENT].nan_to_num(-1)), name
    assert balancer.weights[[0, 2]].sum().item() == pytest.approx(used[[0, 2]].sum().item(), rel=2**-22)
    assert balancer.counters.tolist() == [2, 0]
    assert not torch.equal(balancer.weights, used)
    if place == "layer":
        losses = twin.plain_losses()
        norms = task_norms([losses[0], losses[2]], list(twin.trunk.shared.parameters()))
        torch.testing.assert_close(balancer.norms[[0, 2]].double(), norms, rtol=2**-20, atol=0)


@pytest.mark.parametrize("form", ["missing key", "present names", "present booleans"])
def test_absence_known_on_the_host_keeps_nan_slopes_out(form: str, backend: str) -> None:
    """0 / 0 in the loss of an absent task: its graph gets no gradient at all."""
    problem = linear_problem()
    balancer = named_balancer(problem, "layer")
    views = list(views_of(problem, balancer).values())
    losses = problem.losses(views)
    losses[ABSENT] = losses[ABSENT] * 0 / 0
    given, present = NAMED[form](losses)
    balancer(given, present=present).backward()
    assert all(grad is None or grad.isfinite().all() for grad in problem.gradients())
    assert balancer.counters.tolist() == [1, 0]


def test_nan_slopes_of_an_absent_task_stay_out_of_the_weights(backend: str) -> None:
    """Where presence is a tensor the task's graph gets a slope of 0, and 0 * NaN is NaN: never in the weights."""
    balancer = GradNorm(3, alpha=0.5)
    for _ in range(2):
        crafted_step(balancer, [1.0, math.nan, 2.0], [1.0, math.nan, 1.0], present=torch.tensor([True, False, True]))
    assert balancer.counters.tolist() == [2, 0]
    assert balancer.weights[ABSENT] == 1 and balancer.weights.isfinite().all()
    assert balancer.weights[0] != balancer.weights[2]


def test_first_valid_loss_of_a_late_task(backend: str) -> None:
    balancer = GradNorm(3, alpha=0.5)
    crafted_step(balancer, [1.0, 1.0, 2.0], [3.0, 4.0, 5.0], present=[True, False, True])
    assert balancer.initial_losses[[0, 2]].tolist() == [3.0, 5.0] and balancer.initial_losses[1].isnan()
    crafted_step(balancer, [1.0, 1.0, 2.0], [1.0, 7.0, 1.0])
    assert balancer.initial_losses.tolist() == [3.0, 7.0, 5.0]


def test_left_out_of_both_means(backend: str) -> None:
    """The present tasks move as if there were no other task, up to the scale of the weights' sum."""
    small, large = GradNorm(2, alpha=0.5, optimizer="sgd"), GradNorm(3, alpha=0.5, optimizer="sgd")
    for norms, values in [([1.0, 2.0], [1.0, 1.0]), ([1.5, 1.0], [0.5, 0.9])]:
        crafted_step(small, norms, values)
        crafted_step(large, [norms[0], 1e3, norms[1]], [values[0], 1e3, values[1]], present=[True, False, True])
    assert torch.equal(large.weights[[0, 2]], small.weights)
    assert torch.equal(large.rates[[0, 2]], small.rates)


def test_one_present_task_changes_no_weight(backend: str) -> None:
    balancer = GradNorm(3, alpha=0.5)
    crafted_step(balancer, [1.0, 2.0, 3.0], [1.0, 1.0, 1.0])
    before = balancer.weights.clone()
    crafted_step(balancer, [1.0, 2.0, 3.0], [1.0, 1.0, 1.0], present=[False, True, False])
    torch.testing.assert_close(balancer.weights, before, rtol=2**-22, atol=0)


def test_all_absent_as_data_changes_nothing_that_counts(backend: str) -> None:
    balancer = GradNorm(2, alpha=0.5)
    crafted_step(balancer, [1.0, 2.0], [1.0, 1.0])
    before = snapshot(balancer)
    grad = crafted_step(balancer, [1.0, 2.0], [1.0, 1.0], present=torch.tensor([False, False]))
    assert not grad.any()
    assert changed(balancer, before) <= {"counters", "weight_sum"}
    assert balancer.weights.isfinite().all()
