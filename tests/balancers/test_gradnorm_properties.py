"""Whatever comes in, the weights stay positive and sum to T, and absent tasks keep theirs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fastmtl import GradNorm
from tests.training.crafted import crafted_step

TASKS = st.one_of(st.integers(1, 5), st.sampled_from([17, 63, 64]))
SIZES = st.floats(1e-30, 1e30)
EDGES = st.sampled_from([0.0, 1e-30, 1e30, 1.0])
LIMITED = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],  # shrinking takes longer than reading
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
# Losses may be unusable here: that a task is left out is told, and is not this file's concern.
pytestmark = pytest.mark.filterwarnings("ignore:task .* is left out of weighting")


@st.composite
def runs(draw: st.DrawFn) -> tuple[int, dict[str, Any], list[tuple[list[float], list[float], list[bool]]]]:
    tasks = draw(TASKS)
    options = {
        "alpha": draw(st.sampled_from([0.0, 0.12, 1.5, 5.0])),
        "lr": draw(st.sampled_from([0.0, 0.025, 1.0, 1e3, 1e30])),
        "optimizer": draw(st.sampled_from(["adam", "sgd"])),
        "min_weight": draw(st.sampled_from([1e-3, 1e-6, 0.5, 0.99])),
    }

    def per_task(elements: st.SearchStrategy[Any]) -> list[Any]:
        return draw(st.lists(elements, min_size=tasks, max_size=tasks))

    steps = []
    for _ in range(draw(st.integers(1, 4))):
        present = per_task(st.booleans())
        present[draw(st.integers(0, tasks - 1))] = True
        values = per_task(st.one_of(SIZES, EDGES, st.floats(-10, 10)))
        steps.append((per_task(st.one_of(SIZES, EDGES)), values, present))
    return tasks, options, steps


def check_weights(weights: torch.Tensor, tasks: int) -> None:
    assert weights.isfinite().all()
    assert weights.min() > 0
    # every weight is rounded once from an exact normalisation; and the budget's rounding where tasks are absent
    assert abs(weights.double().sum().item() - tasks) <= 2 * tasks * 2**-24


@LIMITED
@given(run=runs(), as_tensor=st.booleans(), double=st.booleans())
def test_weights_stay_weights(backend: str, run: Any, as_tensor: bool, double: bool) -> None:
    tasks, options, steps = run
    balancer = GradNorm(tasks, **options)
    kept = ("weights", "exp_avg", "exp_avg_sq", "steps", "norms", "rates")
    for norms, values, present in steps:
        before = {name: balancer.get_buffer(name).clone() for name in kept}
        mask = torch.tensor(present)
        crafted_step(
            balancer,
            norms,
            values,
            present=mask if as_tensor else present,
            dtype=torch.float64 if double else torch.float32,
        )
        check_weights(balancer.weights, tasks)
        for name in kept:
            assert torch.equal(balancer.get_buffer(name)[~mask], before[name][~mask]), name
        for name in ("exp_avg", "exp_avg_sq", "norms", "rates"):
            assert balancer.get_buffer(name).isfinite().all(), name
    static = balancer.static_weights()
    assert static.min() > 0
    assert abs(static.double().sum().item() - tasks) <= 2 * tasks * 2**-24


@LIMITED
@given(data=st.data(), tasks=st.integers(2, 6))
def test_permuted_tasks_give_permuted_weights(backend: str, data: st.DataObject, tasks: int) -> None:
    order = data.draw(st.permutations(range(tasks)))
    numbers = st.lists(st.floats(1e-3, 1e3), min_size=tasks, max_size=tasks)
    one, other = GradNorm(tasks, alpha=0.5, lr=0.1), GradNorm(tasks, alpha=0.5, lr=0.1)
    for _ in range(3):
        norms, values = data.draw(numbers), data.draw(numbers)
        crafted_step(one, norms, values)
        crafted_step(other, [norms[k] for k in order], [values[k] for k in order])
    # Sums over tasks run in another order, in float64; a sign may flip only at equality, where both sides are equal norms.
    if len(set(norms)) == tasks:
        torch.testing.assert_close(other.weights, one.weights[list(order)], rtol=2**-21, atol=0)


@LIMITED
@given(exponent=st.integers(-60, 60), data=st.data(), tasks=st.integers(2, 5))
def test_scale_of_all_losses_does_not_matter_to_adam(
    backend: str, exponent: int, data: st.DataObject, tasks: int
) -> None:
    """Multiplying all losses by a power of two changes norms and losses alike: the same rates, the same signs."""
    numbers = st.lists(st.floats(0.1, 10), min_size=tasks, max_size=tasks)
    factor = math.ldexp(1.0, exponent)
    one, other = GradNorm(tasks, alpha=0.5), GradNorm(tasks, alpha=0.5)
    for _ in range(3):
        norms, values = data.draw(numbers), data.draw(numbers)
        crafted_step(one, norms, values)
        crafted_step(other, [n * factor for n in norms], [v * factor for v in values])
        assert torch.equal(one.rates, other.rates)
        torch.testing.assert_close(other.norms / factor, one.norms, rtol=0, atol=0)
    if exponent > -12:  # below, Adam's eps shows
        torch.testing.assert_close(other.weights, one.weights, rtol=1e-3, atol=0)
