"""torch.compile(fullgraph=True) of a training step: the same numbers as eager, over several steps with an optimiser.

The trap that this guards: a compiled backward that reads the weights after their update, and uses the new ones for the trunk's
gradient and the old ones for the heads'. It shows where a view's gradient is formed elementwise (heads with one output).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastmtl import GradNorm
from tests.training.networks import Problem, balanced, conv_problem, gradnorm_for, linear_problem

STEPS = 4
# The compiler's own: it instantiates autograd.Function, and imports torch.jit.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def one_output() -> Problem:
    return linear_problem(outputs=1)


def pooled() -> Problem:
    return conv_problem(pooled=True)


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def run(problem: Problem, balancer: GradNorm, forward: Callable[[], Tensor]) -> list[list[Tensor]]:
    """Per step: loss, weights, norms and the gradients of trunk and heads; trained by Adam."""
    optimizer = torch.optim.Adam(problem.parameters(), lr=1e-2)
    history = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = forward()
        loss.backward()
        grads = [grad.clone() for grad in problem.gradients() if grad is not None]
        history.append([loss.detach(), balancer.weights.clone(), balancer.norms.clone(), *grads])
        optimizer.step()
    return history


def compare(problem: Problem, place: str, backend: str, forward: Any = balanced, **options: Any) -> None:
    """A large step of the weights, so that old and new ones differ much."""
    twin = problem.copy()
    balancers = [gradnorm_for(p, place, lr=0.2, **options) for p in (problem, twin)]
    compiled = torch.compile(lambda: forward(problem, balancers[0], place), fullgraph=True, backend=backend)
    ours = run(problem, balancers[0], compiled)
    expected = run(twin, balancers[1], lambda: forward(twin, balancers[1], place))
    for step, (a, b) in enumerate(zip(ours, expected, strict=True)):
        for n, (mine, theirs) in enumerate(zip(a, b, strict=True)):
            # each step multiplies earlier rounding through Adam: a few bits a step
            assert (mine - theirs).norm() <= 2e-5 * (theirs.norm() + 1e-3), f"step {step}, value {n}"
    assert (expected[-1][1] - expected[0][1]).abs().max() > 0.1
    assert balancers[0].counters.tolist() == [STEPS, 0]


BOTH = ["aot_eager", "inductor"]
CASES = [(one_output, "inductor"), (pooled, "inductor")]  # where the trap shows; inductor takes its time
CASES += [(make, "aot_eager") for make in (one_output, pooled, conv_problem, linear_problem)]


@pytest.mark.parametrize(("make", "backend"), CASES)
def test_same_numbers(make: Callable[[], Problem], backend: str) -> None:
    compare(make(), "features", backend)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_optimizers(optimizer: str) -> None:
    compare(one_output(), "features", "aot_eager", optimizer=optimizer, alpha=0.0)


@pytest.mark.parametrize("backend", BOTH)
def test_tail(backend: str) -> None:
    compare(one_output(), "tail", backend)


@pytest.mark.parametrize("backend", BOTH)
def test_absent_task_and_scale(backend: str) -> None:
    """Presence as data, and a scaled loss."""
    present = torch.tensor([True, False, True])

    def forward(problem: Problem, balancer: GradNorm, place: str) -> Tensor:
        losses = problem.losses(balancer.fork(problem.trunk(problem.x)))
        return balancer(losses, present=present) * 4

    compare(one_output(), "features", backend, forward)


def test_named_tasks_and_a_pyramid() -> None:
    problem = one_output()
    twin = problem.copy()

    def forward(p: Problem, balancer: GradNorm) -> Tensor:
        stem, shared = p.trunk.inner(p.x)
        views = balancer.fork({"stem": stem, "shared": shared})
        names = balancer.tasks
        return balancer({n: p.loss(k, views[n]["stem"] + views[n]["shared"]) for k, n in enumerate(names)})

    balancers = [GradNorm(["a", "b", "c"], alpha=0.5, lr=0.2) for _ in range(2)]
    compiled = torch.compile(lambda: forward(problem, balancers[0]), fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(
        run(problem, balancers[0], compiled), run(twin, balancers[1], lambda: forward(twin, balancers[1])), strict=True
    ):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-6)


def own_levels(problem: Problem, balancer: GradNorm, _: str) -> Tensor:
    """A pyramid with one level a head: nothing is added up, each level's gradient is formed elementwise."""
    stem, shared = problem.trunk.inner(problem.x)
    views = balancer.fork((stem, shared, torch.relu(shared)))
    return balancer([problem.loss(k, views[k][k]) for k in range(3)])


@pytest.mark.parametrize("backend", BOTH)
def test_level_of_a_single_head(backend: str) -> None:
    compare(one_output(), "features", backend, own_levels)


@pytest.mark.parametrize("compile_what", ["trunk", "heads"])
def test_compiled_parts_around_an_eager_fork(compile_what: str) -> None:
    problem = pooled()
    twin = problem.copy()
    balancers = [gradnorm_for(p, "features", lr=0.2) for p in (problem, twin)]
    part = problem.trunk if compile_what == "trunk" else problem.heads[1]
    part.compile(fullgraph=True, backend="aot_eager")
    if compile_what == "heads":  # Dynamo looks at .grad of its inputs
        warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
    histories = [run(p, b, lambda p=p, b=b: balanced(p, b)) for p, b in zip((problem, twin), balancers, strict=True)]
    for ours, theirs in zip(*histories, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-6)


def test_no_recompilation_after_the_first_steps() -> None:
    problem = one_output()
    balancer = gradnorm_for(problem)
    step = torch.compile(lambda: balanced(problem, balancer), fullgraph=True, backend="aot_eager")
    step().backward()
    step().backward()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(3):
            step().backward()


@pytest.mark.parametrize("place", ["layer", "parameters"])
def test_layer_source_raises_in_a_compiled_step(place: str) -> None:
    problem = one_output()
    balancer = gradnorm_for(problem, place)
    compiled = torch.compile(lambda: balanced(problem, balancer), fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match="source: expected 'features' in a compiled step"):
        compiled()


@pytest.mark.parametrize("backend", BOTH)
def test_layer_source_behind_a_compiled_trunk(backend: str) -> None:
    """The trunk alone compiled, the fork eager: right numbers, or an error that tells what to do."""
    problem = one_output()
    twin = problem.copy()
    balancers = [gradnorm_for(p, "layer", lr=0.2) for p in (problem, twin)]
    problem.trunk.compile(fullgraph=True, backend=backend)
    try:
        ours = run(problem, balancers[0], lambda: balanced(problem, balancers[0]))
    except (ValueError, RuntimeError) as error:
        if "source='features'" not in str(error):
            raise
        return
    expected = run(twin, balancers[1], lambda: balanced(twin, balancers[1]))
    for a, b in zip(ours, expected, strict=True):
        for mine, theirs in zip(a, b, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=2e-5, atol=2e-6)


def test_update_every_raises_in_a_compiled_step() -> None:
    problem = one_output()
    balancer = gradnorm_for(problem, update_every=2)
    compiled = torch.compile(lambda: balanced(problem, balancer), fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match="update_every: expected 1"):
        compiled()


class InPlaceHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 1)

    def forward(self, view: Tensor) -> Tensor:
        return self.linear(view.mul_(2.0))


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_in_place_head_is_never_silently_wrong(backend: str) -> None:
    """torch's error, or the gradients that the same head gives out of place."""
    problem = one_output()
    problem.heads[0] = InPlaceHead()
    twin = problem.copy()
    balancer = gradnorm_for(problem)
    used = balancer.weights.clone()
    try:
        torch.compile(lambda: balanced(problem, balancer), fullgraph=True, backend=backend)().backward()
    except Exception as error:
        if "in-place" not in str(error) and "inplace" not in str(error):
            raise
        return
    twin.heads[0] = twin.heads[0].linear
    features = twin.trunk(twin.x)
    losses = twin.losses([features * 2, features, features])
    expected = torch.autograd.grad(
        sum(w * loss for w, loss in zip(used.tolist(), losses, strict=True)), twin.parameters(), allow_unused=True
    )
    for ours, theirs in zip(problem.gradients(), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
