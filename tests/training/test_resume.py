"""A run that was interrupted and resumed goes on bit for bit; state of other tasks is refused."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastmtl import Balancer, GradNorm
from tests.training.networks import Problem, balanced, gradnorm_for, linear_problem, views_of

OPTIONS: list[dict[str, Any]] = [
    {"optimizer": "adam"},
    {"optimizer": "sgd", "lr": 0.01},
    {"alpha": 0.0, "update_every": 3},
    {"alpha": 1.5, "update_every": 2, "initial_losses": [2.0, 3.0, 4.0]},
]


def train(problem: Problem, balancer: Balancer, place: str, data: Tensor) -> list[Tensor]:
    """Plain gradient descent on fixed data; the weights after each step."""
    trajectory = []
    for x in data:
        problem.x = x
        balanced(problem, balancer, place).backward()
        with torch.no_grad():
            for parameter in problem.parameters():
                parameter -= 0.05 * parameter.grad
                parameter.grad = None
        trajectory.append(balancer.weights.clone())
    return trajectory


def assert_same_bits(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        if isinstance(value, Tensor):
            assert value.dtype == second[name].dtype
            assert torch.equal(value.nan_to_num(-1), second[name].nan_to_num(-1)), name
        else:
            assert value == second[name], name


@pytest.mark.parametrize("place", ["features", "layer"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("stop", [0, 1, 4, 5])
def test_resumed_run_continues_bit_for_bit(options: dict[str, Any], place: str, stop: int, tmp_path: Path) -> None:
    problem = linear_problem()
    data = torch.randn(9, 4, 5)
    balancer = gradnorm_for(problem, place, **options)
    train(problem, balancer, place, data[:stop])
    torch.save({"balancer": balancer.state_dict(), "trunk": problem.trunk.state_dict()}, tmp_path / "run.pt")
    heads = copy.deepcopy(problem.heads)
    expected = train(problem, balancer, place, data[stop:])

    resumed = Problem(linear_problem().trunk, heads, problem.x, problem.targets)
    saved = torch.load(tmp_path / "run.pt", weights_only=True)
    resumed.trunk.load_state_dict(saved["trunk"])
    options = {name: value for name, value in options.items() if name != "initial_losses"}  # the state has them
    again = gradnorm_for(resumed, place, **options)
    again.load_state_dict(saved["balancer"])
    for ours, theirs in zip(train(resumed, again, place, data[stop:]), expected, strict=True):
        assert torch.equal(ours, theirs)
    assert_same_bits(again.state_dict(), balancer.state_dict())
    assert again.report() == balancer.report()
    if options.get("update_every", 1) == 1:
        assert not torch.equal(expected[0], expected[-1])


def test_state_dict_is_a_snapshot_of_plain_types() -> None:
    state = gradnorm_for(linear_problem()).state_dict()
    assert {"weights", "initial_losses", "exp_avg", "exp_avg_sq", "steps", "_extra_state"} <= state.keys()


@pytest.mark.parametrize(
    ("saved", "loaded"),
    [(["a", "b"], ["b", "a"]), (["a", "b"], ["a", "c"]), (["a", "b"], 2), (2, ["a", "b"])],
    ids=str,
)
def test_state_of_other_tasks_is_refused(saved: Any, loaded: Any) -> None:
    with pytest.raises((ValueError, RuntimeError), match="tasks"):
        GradNorm(loaded, alpha=0.5).load_state_dict(GradNorm(saved, alpha=0.5).state_dict())


def test_state_of_another_number_of_tasks_is_refused() -> None:
    with pytest.raises((ValueError, RuntimeError), match=r"tasks|size mismatch for weights"):
        GradNorm(3, alpha=0.5).load_state_dict(GradNorm(2, alpha=0.5).state_dict())


def test_refused_state_changes_nothing() -> None:
    target = GradNorm(["a", "b"], alpha=0.5)
    other = GradNorm(["b", "a"], alpha=0.5)
    other.weights.copy_(torch.tensor([0.5, 1.5]))
    with pytest.raises((ValueError, RuntimeError), match="tasks"):
        target.load_state_dict(other.state_dict())
    assert target.weights.tolist() == [1.0, 1.0]


def test_inside_a_model() -> None:
    """A balancer that is a submodule travels with the model's state dict."""
    problem = linear_problem()
    model = torch.nn.ModuleDict({"trunk": problem.trunk, "balancer": gradnorm_for(problem)})
    state = copy.deepcopy(model.state_dict())
    balanced(problem, model["balancer"]).backward()
    assert not torch.equal(model["balancer"].weights, state["balancer.weights"])
    model.load_state_dict(state)
    assert torch.equal(model["balancer"].weights, state["balancer.weights"])


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda pair: pickle.loads(pickle.dumps(pair)),
}


@pytest.mark.parametrize("make_copy", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("place", ["features", "layer", "tail"])
@pytest.mark.parametrize("moment", ["new", "forked", "called", "stepped"])
def test_copy_at_any_time(moment: str, place: str, make_copy: Any) -> None:
    """Problem and balancer copied together behave as the originals do from then on, and are independent of them."""
    problem = linear_problem()
    balancer = gradnorm_for(problem, place)
    loss = None
    if moment == "stepped":
        balanced(problem, balancer, place).backward()
    elif moment != "new":
        views = views_of(problem, balancer, place)
        if moment == "called":
            loss = balancer(problem.losses(views))
    for parameter in problem.parameters():
        parameter.grad = None
    twin, other = make_copy((problem, balancer))
    if moment == "forked":
        with pytest.raises(RuntimeError, match="without a fork"):
            other(problem.losses(views))
        loss = balancer(problem.losses(views))
    if loss is None:
        loss = balanced(problem, balancer, place)
    before = other.weights.clone()
    loss.backward()
    assert torch.equal(other.weights, before)
    balanced(twin, other, place).backward()
    assert torch.equal(other.weights, balancer.weights) and not torch.equal(other.weights, before)
    for ours, theirs in zip(problem.gradients(), twin.gradients(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("cast", ["bfloat16", "half", "double", "float"])
def test_casts_keep_the_dtype_of_the_state(cast: str) -> None:
    problem = linear_problem()
    balancer = gradnorm_for(problem)
    balanced(problem, balancer).backward()
    before = copy.deepcopy(balancer.state_dict())
    getattr(torch.nn.ModuleDict({"model": problem.trunk, "balancer": balancer}), cast)()
    assert_same_bits(balancer.state_dict(), before)
    balancer.to(torch.bfloat16)
    assert_same_bits(balancer.state_dict(), before)
    assert problem.trunk.shared.weight.dtype == {"half": torch.float16}.get(cast, getattr(torch, cast))
