"""The rest of autograd around the fork: checkpointing, saved-tensor hooks, anomaly mode, hooks, threads, determinism."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fastmtl import GradNorm
from tests.training.networks import (
    PLACES,
    Problem,
    assert_same_gradients,
    balanced,
    conv_problem,
    gradnorm_for,
    linear_problem,
    plain_gradients,
    views_of,
)


def run(problem: Problem, place: str, forward: Callable[[Problem, GradNorm, str], Tensor], steps: int = 2) -> GradNorm:
    balancer = gradnorm_for(problem, place)
    for _ in range(steps):
        forward(problem, balancer, place).backward()
    return balancer


def assert_like_plain_step(problem: Problem, place: str, forward: Callable[[Problem, GradNorm, str], Tensor]) -> None:
    """What surrounds the step changes no arithmetic: the same bits, but where another way of measuring is taken."""
    twin = problem.copy()
    ours, expected = run(problem, place, forward), run(twin, place, balanced)
    tolerance = 2**-19 if place == "layer" else 0.0  # saved tensors out of reach: no pairs of positions
    for mine, theirs in zip(problem.gradients(), twin.gradients(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(ours.weights, expected.weights, rtol=tolerance, atol=0)
    torch.testing.assert_close(ours.norms, expected.norms, rtol=tolerance, atol=0)
    assert ours.counters.tolist() == [2, 0]


@pytest.mark.parametrize("place", ["features", "layer", "parameters"])
@pytest.mark.parametrize("make", [linear_problem, conv_problem])
def test_checkpointed_trunk(make: Callable[[], Problem], place: str) -> None:
    def forward(problem: Problem, balancer: GradNorm, _: str) -> Tensor:
        features = checkpoint(problem.trunk, problem.x, use_reentrant=False)
        return balancer(problem.losses(balancer.fork(features)))

    assert_like_plain_step(make(), place, forward)


@pytest.mark.parametrize("place", PLACES)
def test_checkpointed_heads(place: str) -> None:
    def forward(problem: Problem, balancer: GradNorm, place: str) -> Tensor:
        views = views_of(problem, balancer, place)
        return balancer([checkpoint(problem.loss, k, v, use_reentrant=False) for k, v in enumerate(views)])

    assert_like_plain_step(linear_problem(), place, forward)


def test_checkpointed_tail() -> None:
    def forward(problem: Problem, balancer: GradNorm, _: str) -> Tensor:
        views = balancer.fork(
            problem.trunk.inner(problem.x),
            tail=lambda inner: checkpoint(problem.trunk.tail, inner, use_reentrant=False),
        )
        return balancer(problem.losses(views))

    assert_like_plain_step(linear_problem(), "tail", forward)


@pytest.mark.parametrize("place", PLACES)
def test_saved_tensors_on_the_cpu(place: str) -> None:
    def forward(problem: Problem, balancer: GradNorm, place: str) -> Tensor:
        with torch.autograd.graph.save_on_cpu():
            return balanced(problem, balancer, place)

    assert_like_plain_step(conv_problem(), place, forward)


@pytest.mark.parametrize("place", PLACES)
def test_saved_tensors_hooks(place: str) -> None:
    def forward(problem: Problem, balancer: GradNorm, place: str) -> Tensor:
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t.detach().clone(), lambda t: t):
            return balanced(problem, balancer, place)

    assert_like_plain_step(linear_problem(), place, forward)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
def test_anomaly_mode(place: str) -> None:
    with torch.autograd.set_detect_anomaly(True):
        assert_like_plain_step(linear_problem(), place, balanced)


def with_hooks(problem: Problem) -> list[int]:
    """Hooks on every parameter: one that changes its gradient, one that tells that it was accumulated."""
    accumulated: list[int] = []
    for n, parameter in enumerate(problem.parameters()):
        parameter.register_hook(lambda grad: 2 * grad)
        parameter.register_post_accumulate_grad_hook(lambda _, n=n: accumulated.append(n))
    return accumulated


@pytest.mark.parametrize("place", PLACES)
def test_hooks_on_parameters(place: str) -> None:
    """.grad is what hooks make of it, accumulated once, whatever was measured on the way."""
    problem = linear_problem()
    balancer = gradnorm_for(problem, place)
    twin, used = problem.copy(), balancer.weights.clone()
    accumulated = with_hooks(problem)
    balanced(problem, balancer, place).backward()
    assert sorted(accumulated) == list(range(len(problem.parameters())))
    plain = plain_gradients(twin.parameters(), twin.plain_losses(), used * 2)
    assert_same_gradients(problem.gradients(), plain, 3)


def test_hooks_on_views_and_features() -> None:
    """A view's hook changes what its task sends; the features' hook what all of them send."""
    problem = linear_problem()
    balancer = gradnorm_for(problem)
    twin, used = problem.copy(), balancer.weights.clone()
    features = problem.trunk(problem.x)
    features.register_hook(lambda grad: grad / 2)
    views = balancer.fork(features)
    views[1].register_hook(lambda grad: 4 * grad)
    balancer(problem.losses(views)).backward()
    losses = twin.plain_losses()
    shared = list(twin.trunk.parameters())
    plain = plain_gradients(shared, losses, used * torch.tensor([0.5, 2.0, 0.5]))
    assert_same_gradients(problem.gradients()[: len(shared)], plain, 3)


@pytest.mark.parametrize("place", ["features", "layer"])
def test_threads(place: str) -> None:
    """Independent models train in threads at once, each as alone."""
    problems = [linear_problem() for _ in range(4)]
    twins = [problem.copy() for problem in problems]
    balancers: dict[int, GradNorm] = {}
    threads = [
        threading.Thread(target=lambda n=n: balancers.update({n: run(problems[n], place, balanced, steps=20)}))
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n, twin in enumerate(twins):
        expected = run(twin, place, balanced, steps=20)
        assert torch.equal(balancers[n].weights, expected.weights)
        assert all(torch.equal(a, b) for a, b in zip(problems[n].gradients(), twin.gradients(), strict=True))


def test_backward_in_another_thread() -> None:
    problem = linear_problem()
    twin = problem.copy()
    balancer, expected = gradnorm_for(problem), gradnorm_for(twin)
    loss = balanced(problem, balancer)
    thread = threading.Thread(target=loss.backward)
    thread.start()
    thread.join()
    balanced(twin, expected).backward()
    assert torch.equal(balancer.weights, expected.weights)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("make", [linear_problem, conv_problem])
def test_same_bits_twice(make: Callable[[], Problem], place: str, backend: str) -> None:
    def trained() -> tuple[Problem, GradNorm]:
        torch.manual_seed(1)
        problem = make()
        balancer = gradnorm_for(problem, place)
        for _ in range(3):
            balanced(problem, balancer, place).backward()
            with torch.no_grad():
                for parameter in problem.parameters():
                    parameter -= 0.05 * parameter.grad
        return problem, balancer

    (first, a), (second, b) = trained(), trained()
    assert all(torch.equal(x, y) for x, y in zip(first.gradients(), second.gradients(), strict=True))
    for name, buffer in a.named_buffers():
        assert torch.equal(buffer, b.get_buffer(name)), name


OFF: dict[str, Callable[[GradNorm], AbstractContextManager[object]]] = {
    "eval": lambda balancer: balancer.eval() and contextlib.nullcontext(),
    "no_grad": lambda _: torch.no_grad(),
    "inference_mode": lambda _: torch.inference_mode(),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("how", OFF)
def test_measures_nothing_in_evaluation(how: str, place: str, backend: str) -> None:
    """The weighted sum as usual, no change of the state, no fork needed, losses without grad welcome."""
    problem = linear_problem()
    balancer = gradnorm_for(problem, place)
    before = {name: buffer.clone() for name, buffer in balancer.state_dict().items() if isinstance(buffer, Tensor)}
    with OFF[how](balancer):
        views = views_of(problem, balancer, place)
        loss = balancer(problem.losses(views))
        expected = sum(w * x.item() for w, x in zip(balancer.weights.tolist(), problem.plain_losses(), strict=True))
        assert loss.item() == pytest.approx(expected, rel=4 * 2**-23)
        assert balancer([x.detach() for x in problem.plain_losses()]).item() == loss.item()
        if how == "eval":
            twin, used = problem.copy(), balancer.weights.clone()
            loss.backward()
            plain = plain_gradients(twin.parameters(), twin.plain_losses(), used)
            assert_same_gradients(problem.gradients(), plain, 3)
    for name, buffer in before.items():
        assert torch.equal(balancer.get_buffer(name).nan_to_num(-1), buffer.nan_to_num(-1)), name
    balancer.train()
    for parameter in problem.parameters():
        parameter.grad = None
    balanced(problem, balancer, place).backward()  # and on it goes
    assert balancer.counters.tolist() == [1, 0]


@pytest.mark.parametrize("place", PLACES)
def test_update_every(place: str, backend: str) -> None:
    """Steps 1, 4, 7 are measured; the gradients of the others are right too."""
    problem = linear_problem()
    balancer = gradnorm_for(problem, place, update_every=3)
    for step in range(8):
        for parameter in problem.parameters():
            parameter.grad = None
        twin, used = problem.copy(), balancer.weights.clone()
        balanced(problem, balancer, place).backward()
        assert_same_gradients(problem.gradients(), plain_gradients(twin.parameters(), twin.plain_losses(), used), 3)
        assert torch.equal(balancer.weights, used) == (step % 3 != 0)
    assert balancer.counters.tolist() == [3, 0]
