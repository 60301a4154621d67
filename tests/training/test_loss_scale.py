"""What the loss is multiplied with before the backward does not reach the weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

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

POWERS = [2.0**-10, 0.25, 2.0, 2.0**16, -1.0]


def run(problem: Problem, place: str, scale: Callable[[Tensor], Tensor], factor: float, steps: int = 4) -> list[Tensor]:
    """The weights' trajectory of a run whose gradients are unscaled before the step."""
    balancer = gradnorm_for(problem, place)
    trajectory = []
    for _ in range(steps):
        scale(balanced(problem, balancer, place)).backward()
        with torch.no_grad():
            for parameter in problem.parameters():
                parameter -= 0.05 * (parameter.grad / factor)
                parameter.grad = None
        trajectory += [balancer.weights.clone(), balancer.norms.clone(), balancer.rates.clone()]
    return trajectory


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("factor", POWERS)
def test_powers_of_two_leave_the_same_bits(factor: float, place: str, backend: str) -> None:
    problem = linear_problem()
    plain = run(problem.copy(), place, lambda loss: loss, 1.0)
    for ours, expected in zip(run(problem, place, lambda loss: loss * factor, factor), plain, strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("place", PLACES)
def test_other_scales_round(place: str, backend: str) -> None:
    problem = conv_problem()
    plain = run(problem.copy(), place, lambda loss: loss, 1.0)
    for ours, expected in zip(run(problem, place, lambda loss: loss / 3, 1 / 3), plain, strict=True):
        torch.testing.assert_close(ours, expected, rtol=2e-5, atol=0)  # 4 steps of Adam magnify a few roundings


@pytest.mark.parametrize("place", ["features", "layer"])
def test_grad_scaler(place: str, backend: str) -> None:
    problem = linear_problem()
    plain_run, scaled = problem.copy(), problem
    balancer, scaled_balancer = gradnorm_for(plain_run, place), gradnorm_for(scaled, place)
    optimizers = [torch.optim.SGD(p.parameters(), lr=0.05) for p in (plain_run, scaled)]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=2)
    for _ in range(5):
        optimizers[0].zero_grad()
        balanced(plain_run, balancer, place).backward()
        optimizers[0].step()
        optimizers[1].zero_grad()
        scaler.scale(balanced(scaled, scaled_balancer, place)).backward()
        scaler.step(optimizers[1])
        scaler.update()
        assert torch.equal(balancer.weights, scaled_balancer.weights)
    assert scaler.get_scale() == 2.0**18


@pytest.mark.parametrize("place", PLACES)
def test_accumulation(place: str, backend: str) -> None:
    """loss / n over n micro-batches: gradients add up, each backward measures as without the division."""
    problem = linear_problem()
    twin = problem.copy()
    balancer, other = gradnorm_for(problem, place), gradnorm_for(twin, place)
    xs = torch.randn(4, 4, 5)
    for x in xs:
        problem.x = twin.x = x
        used = balancer.weights.clone()
        losses = twin.plain_losses()
        plain = plain_gradients(twin.parameters(), losses, used / 4)
        before = [0 if g is None else g.clone() for g in problem.gradients()]
        (balanced(problem, balancer, place) / 4).backward()
        added = [after - then for after, then in zip(problem.gradients(), before, strict=True)]
        # one more rounding than usual: of the accumulated sum
        plain.size = [size + now.norm() for size, now in zip(plain.size, problem.gradients(), strict=True)]
        assert_same_gradients(added, plain, 3)
        balanced(twin, other, place).backward()
        assert torch.equal(balancer.weights, other.weights)
    assert balancer.counters.tolist() == [4, 0]


@pytest.mark.parametrize("place", PLACES)
def test_float16_under_a_scale_of_2_to_17(place: str, backend: str) -> None:
    """The scale itself is inf in float16; scale times a small slope is not."""
    torch.manual_seed(3)
    problem = linear_problem().to(torch.float16)
    balancer = gradnorm_for(problem, place)
    twin = problem.copy()
    reference = gradnorm_for(twin, place)

    def losses(p: Problem, views: list[Tensor]) -> list[Tensor]:
        return [loss.float() * 2**-12 for loss in p.losses(views)]

    def step(p: Problem, b: object, scale: float) -> None:
        (b(losses(p, views_of(p, b, place))) * scale).backward()  # type: ignore[operator]

    step(problem, balancer, 2.0**17)
    step(twin, reference, 2.0**12)
    assert all(grad.isfinite().all() for grad in problem.gradients())
    assert balancer.counters.tolist() == [1, 0]
    torch.testing.assert_close(balancer.norms, reference.norms, rtol=4 * 2**-10, atol=0)
    torch.testing.assert_close(balancer.weights, reference.weights, rtol=1e-6, atol=0)


def test_float16_losses_under_a_scale_of_2_to_17(backend: str) -> None:
    """Losses that are float16 themselves: scale * w overflows their slope, so the step is refused, not turned to NaN."""
    problem = linear_problem().to(torch.float16)
    balancer = gradnorm_for(problem)
    before = balancer.weights.clone()
    (balanced(problem, balancer) * 2.0**17).backward()
    assert torch.equal(balancer.weights, before)
    assert balancer.counters.tolist() == [0, 1]


@pytest.mark.parametrize("place", PLACES)
def test_scale_zero_changes_nothing(place: str, backend: str) -> None:
    """loss * 0 keeps the graph of a rank without data: gradients are zeros, the state stays."""
    problem = linear_problem()
    balancer = gradnorm_for(problem, place)
    before = {name: tensor.clone() for name, tensor in balancer.named_buffers()}
    (balanced(problem, balancer, place) * 0).backward()
    assert all(not grad.any() for grad in problem.gradients())
    for name, tensor in balancer.named_buffers():
        assert torch.equal(tensor.nan_to_num(-1), before[name].nan_to_num(-1)), name
