"""GradNorm where the paper does not look: losses of 0, negative losses, arguments; and one step by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from fastmtl import GradNorm
from tests.training.crafted import changed, crafted_step, snapshot


def test_one_step_by_hand(backend: str) -> None:
    """alpha 1, T = 2, second step: norms 1 and 4, losses 1/2 and 3/2 of the first, SGD with lr 0.1."""
    balancer = GradNorm(2, alpha=1.0, optimizer="sgd", lr=0.1, initial_losses=[2.0, 4.0])
    crafted_step(balancer, [1.0, 4.0], [1.0, 6.0])
    # ratios 0.5, 1.5, mean 1: rates 0.5, 1.5; mean G 2.5; targets 1.25, 3.75; signs -, +; w = 1 + 0.1, 1 - 0.4
    expected = torch.tensor([1.1, 0.6], dtype=torch.float64) * (2 / 1.7)
    torch.testing.assert_close(balancer.weights.double(), expected, rtol=2**-23, atol=0)
    assert balancer.rates.tolist() == [0.5, 1.5]
    assert balancer.norms.tolist() == [1.0, 4.0]
    assert balancer.report() == {
        "weight/0": balancer.weights[0].item(),
        "weight/1": balancer.weights[1].item(),
        "norm/0": 1.0,
        "norm/1": 4.0,
        "rate/0": 0.5,
        "rate/1": 1.5,
        **{f"{count}/{k}": 0 for count in ("unusable_loss", "zero_gradient", "no_gradient") for k in range(2)},
        "updates": 1,
        "non_finite": 0,
    }


def test_first_adam_step_by_hand(backend: str) -> None:
    """Adam's first step is lr in the direction of the sign."""
    balancer = GradNorm(2, alpha=0.0, lr=0.025)
    crafted_step(balancer, [1.0, 4.0], [1.0, 1.0])
    expected = torch.tensor([1.025, 0.975], dtype=torch.float64)
    torch.testing.assert_close(balancer.weights.double(), expected, rtol=2e-8 + 2**-23, atol=0)


def test_equal_gradients_stay_equal(backend: str) -> None:
    """sign(0) = 0."""
    balancer = GradNorm(4, alpha=0.5)
    for _ in range(3):
        crafted_step(balancer, [2.0] * 4, [3.0] * 4)
    assert balancer.weights.tolist() == [1.0] * 4


def test_direction_of_alpha(backend: str) -> None:
    """A task that trains more slowly than the others (a larger ratio) gains weight."""
    balancer = GradNorm(2, alpha=1.5, initial_losses=[1.0, 1.0])
    crafted_step(balancer, [1.0, 1.0], [0.9, 0.1])
    assert balancer.weights[0] > 1 > balancer.weights[1]


def test_large_norm_loses_weight(backend: str) -> None:
    balancer = GradNorm(2, alpha=0.0)
    crafted_step(balancer, [10.0, 1.0], [1.0, 1.0])
    assert balancer.weights[0] < 1 < balancer.weights[1]


@pytest.mark.parametrize("alpha", [0.12, 1.0, 1.5])
def test_initial_loss_zero(alpha: float, backend: str) -> None:
    """L(0) is the first positive loss; until then the task is left out of weighting, with a warning."""
    balancer = GradNorm(3, alpha=alpha)
    with pytest.warns(UserWarning, match="task '1' is left out of weighting.*initial_losses"):
        crafted_step(balancer, [1.0, 2.0, 3.0], [1.0, 0.0, 2.0])
    assert balancer.initial_losses[[0, 2]].tolist() == [1.0, 2.0] and balancer.initial_losses[1].isnan()
    assert balancer.weights[1] == 1 and balancer.weights[0] != 1
    assert balancer.report()["unusable_loss/1"] == 1
    crafted_step(balancer, [1.0, 2.0, 3.0], [1.0, 5.0, 2.0])
    assert balancer.initial_losses.tolist() == [1.0, 5.0, 2.0]
    assert balancer.weights[1] != 1


@pytest.mark.parametrize("alpha", [0.0, 0.12, 1.5])
@pytest.mark.parametrize("given", [None, [1.0, 2.0]])
def test_all_losses_zero(alpha: float, given: Any, backend: str) -> None:
    """No task lags behind: every rate is 1. Without initial losses and with alpha > 0 nothing can be rated."""
    balancer = GradNorm(2, alpha=alpha, initial_losses=given)
    if given is None and alpha > 0:
        with pytest.warns(UserWarning, match="left out of weighting"):
            crafted_step(balancer, [1.0, 4.0], [0.0, 0.0])
        assert balancer.weights.tolist() == [1.0, 1.0]
    else:
        crafted_step(balancer, [1.0, 4.0], [0.0, 0.0])
        assert balancer.weights[0] > 1 > balancer.weights[1]
        assert balancer.weights.isfinite().all()


@pytest.mark.parametrize("alpha", [0.12, 1.0, 1.5, 2.0])
def test_negative_loss(alpha: float, backend: str) -> None:
    """Left out with a warning, for whole alpha too; never a NaN."""
    balancer = GradNorm(3, alpha=alpha)
    crafted_step(balancer, [1.0, 2.0, 3.0], [1.0, 1.0, 1.0])
    before = snapshot(balancer)
    with pytest.warns(UserWarning, match="task '2' is left out of weighting.*negative"):
        crafted_step(balancer, [1.0, 2.0, 3.0], [0.5, 1.5, -1.0])
    for name in ("weights", "exp_avg", "exp_avg_sq", "steps", "initial_losses"):
        assert balancer.get_buffer(name)[2] == before[name][2], name
    assert balancer.weights.isfinite().all() and balancer.weights[0] != before["weights"][0]
    assert balancer.report()["unusable_loss/2"] == 1


def test_negative_losses_at_alpha_zero(backend: str) -> None:
    """Rates play no part: the task is weighed as any other."""
    balancer = GradNorm(2, alpha=0.0)
    crafted_step(balancer, [1.0, 4.0], [-1.0, -3.0])
    assert balancer.weights[0] > 1 > balancer.weights[1]
    assert balancer.report()["unusable_loss/0"] == 0


def test_all_losses_negative(backend: str) -> None:
    balancer = GradNorm(2, alpha=0.5)
    with pytest.warns(UserWarning, match="left out of weighting"):
        crafted_step(balancer, [1.0, 4.0], [-1.0, -3.0])
    assert balancer.weights.tolist() == [1.0, 1.0]


def test_all_gradients_zero(backend: str) -> None:
    balancer = GradNorm(3, alpha=0.5)
    for _ in range(3):
        crafted_step(balancer, [0.0] * 3, [1.0] * 3)
    assert balancer.weights.tolist() == [1.0] * 3
    assert balancer.report()["zero_gradient/0"] == 3


def test_one_task_keeps_weight_one(backend: str) -> None:
    balancer = GradNorm(1, alpha=1.5)
    for value in (1.0, 0.5, 0.0, 2.0):
        crafted_step(balancer, [value + 1], [value])
    assert balancer.weights.tolist() == [1.0]


def test_lr_zero_keeps_weights(backend: str) -> None:
    balancer = GradNorm(3, alpha=0.5, lr=0.0)
    crafted_step(balancer, [1.0, 2.0, 3.0], [1.0, 1.0, 1.0])
    assert balancer.weights.tolist() == [1.0] * 3
    assert balancer.norms.tolist() == [1.0, 2.0, 3.0]


def test_static_weights_are_the_time_average(backend: str) -> None:
    """Of the weights that were used in the measured steps."""
    balancer = GradNorm(3, alpha=0.5, lr=0.2)
    assert balancer.static_weights().tolist() == [1.0] * 3
    used = []
    for step in range(7):
        used.append(balancer.weights.double())
        crafted_step(balancer, [1.0, 1.0 + step % 3, 3.0], [1.0, 1.0 / (step + 1), 1.0])
    average = torch.stack(used).mean(0)
    static = balancer.static_weights()
    assert static.dtype == torch.float32
    torch.testing.assert_close(static.double(), average, rtol=2**-23, atol=0)
    assert static.sum().item() == pytest.approx(3, rel=3 * 2**-23)
    before = snapshot(balancer)
    crafted_step(balancer, [1.0, math.nan, 3.0], [1.0] * 3)  # refused: not in the average
    assert torch.equal(balancer.static_weights(), static)
    assert changed(balancer, before) == {"counters"}


def test_initial_losses_by_name(backend: str) -> None:
    balancer = GradNorm(["a", "b"], alpha=0.5, initial_losses={"b": 2.0, "a": 1.0})
    assert balancer.initial_losses.tolist() == [1.0, 2.0]
    crafted_step(balancer, [1.0, 1.0], [5.0, 5.0])
    assert balancer.initial_losses.tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"alpha": -0.1}, ValueError, "alpha: expected a finite number >= 0"),
        ({"alpha": math.nan}, ValueError, "alpha: expected a finite number"),
        ({"alpha": math.inf}, ValueError, "alpha: expected a finite number"),
        ({"alpha": "x"}, (TypeError, ValueError), "alpha"),
        ({"alpha": None}, (TypeError, ValueError), "alpha"),
        ({"lr": -1.0}, ValueError, "lr: expected a finite number >= 0"),
        ({"lr": math.inf}, ValueError, "lr: expected a finite number"),
        ({"min_weight": 0.0}, ValueError, "min_weight: expected a finite number > 0"),
        ({"min_weight": 1.0}, ValueError, "min_weight: expected less than 1"),
        ({"optimizer": "rmsprop"}, ValueError, "optimizer: expected 'adam' or 'sgd', got 'rmsprop'"),
        ({"update_every": 0}, ValueError, "update_every: expected a whole number from 1, got 0"),
        ({"update_every": 1.5}, ValueError, "update_every: expected a whole number"),
        ({"update_every": True}, ValueError, "update_every: expected a whole number"),
        ({"initial_losses": [1.0]}, ValueError, "initial_losses: expected 2 values"),
        ({"initial_losses": [1.0, 0.0]}, ValueError, "initial_losses: expected a positive finite number"),
        ({"initial_losses": [1.0, -1.0]}, ValueError, "initial_losses: expected a positive finite number"),
        ({"initial_losses": [1.0, math.inf]}, ValueError, "initial_losses: expected a positive finite number"),
        ({"initial_losses": {"a": 1.0}}, TypeError, "initial_losses: .*no names"),
        ({"initial_losses": 2.0}, TypeError, "initial_losses"),
        ({"tasks": 0}, ValueError, "tasks: expected 1 to 64"),
        ({"tasks": 65}, ValueError, "tasks: expected 1 to 64"),
        ({"tasks": ["a", "a"]}, ValueError, "tasks: expected different"),
        ({"tasks": ["a", ""]}, ValueError, "tasks: expected different non-empty"),
        ({"tasks": ["a", 3]}, ValueError, "tasks: expected different"),
        ({"tasks": "ab"}, TypeError, "tasks: expected a number of tasks or a sequence of names"),
        ({"tasks": True}, TypeError, "tasks: expected a number"),
        ({"tasks": 2.0}, TypeError, "tasks: expected a number"),
        ({"tasks": ["a", "b"], "initial_losses": {"a": 1.0}}, ValueError, "initial_losses"),
        ({"tasks": ["a", "b"], "initial_losses": {"a": 1.0, "c": 1.0}}, ValueError, r"initial_losses: unknown .*'c'"),
    ],
    ids=str,
)
def test_arguments(arguments: dict[str, Any], error: Any, message: str) -> None:
    arguments = {"tasks": 2, "alpha": 0.5, **arguments}
    with pytest.raises(error, match=message):
        GradNorm(arguments.pop("tasks"), **arguments)


def test_alpha_has_no_default() -> None:
    with pytest.raises(TypeError, match="alpha"):
        GradNorm(2)  # type: ignore[call-arg]


def test_smallest_and_largest_alpha(backend: str) -> None:
    """A huge alpha makes targets overflow: weights stay weights."""
    balancer = GradNorm(3, alpha=1e4)
    crafted_step(balancer, [1.0, 2.0, 3.0], [1.0, 1.0, 1.0])
    for _ in range(3):
        crafted_step(balancer, [1.0, 2.0, 3.0], [0.1, 10.0, 1.0])
    assert balancer.weights.isfinite().all() and balancer.weights.min() > 0
    assert balancer.weights.sum().item() == pytest.approx(3, rel=3 * 2**-23)
