"""Small multi-task networks, and what plain autograd says about them: the oracle of the training tests."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fastmtl import Balancer, GradNorm

PLACES = ("features", "layer", "parameters", "tail")


class ConvTrunk(nn.Module):
    """Stem, then the last shared layer, followed by norm, ReLU and a residual."""

    def __init__(self, width: int = 6, batch_norm: bool = False):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        # No bias before a batch norm: its gradient is 0, and what is computed for it nothing but rounding.
        self.shared = nn.Conv2d(width, width, 3, padding=1, bias=not batch_norm)
        self.norm: nn.Module = nn.BatchNorm2d(width) if batch_norm else nn.GroupNorm(2, width)

    def inner(self, x: Tensor) -> tuple[Tensor, Tensor]:
        stem = torch.relu(self.stem(x))
        return stem, self.shared(stem)

    def tail(self, inner: tuple[Tensor, Tensor]) -> Tensor:
        stem, shared = inner
        return stem + torch.relu(self.norm(shared))

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.inner(x))


class LinearTrunk(ConvTrunk):
    """The same of linear layers."""

    def __init__(self, width: int = 6, inputs: int = 5):
        nn.Module.__init__(self)
        self.stem = nn.Linear(inputs, width)
        self.shared = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)


class PooledHead(nn.Module):
    """Global average pooling, one output: the gradient of the view is formed elementwise."""

    def __init__(self, width: int):
        super().__init__()
        self.linear = nn.Linear(width, 1)

    def forward(self, view: Tensor) -> Tensor:
        return self.linear(view.flatten(2).mean(2) if view.dim() == 4 else view)


@dataclass
class Problem:
    """A network with T heads, a batch, and the tasks' losses."""

    trunk: Any
    heads: nn.ModuleList
    x: Tensor
    targets: list[Tensor]
    factors: list[float] = field(default_factory=list)

    @property
    def tasks(self) -> int:
        return len(self.heads)

    def parameters(self) -> list[nn.Parameter]:
        return list(nn.ModuleList([self.trunk, self.heads]).parameters())

    def gradients(self) -> list[Tensor | None]:
        return [parameter.grad for parameter in self.parameters()]

    def loss(self, task: int, view: Tensor) -> Tensor:
        difference = self.heads[task](view) - self.targets[task]
        return (difference * difference).mean() * (task + 1.0)

    def losses(self, views: Sequence[Tensor]) -> list[Tensor]:
        return [self.loss(task, view) for task, view in enumerate(views)]

    def plain_losses(self) -> list[Tensor]:
        return self.losses([self.trunk(self.x)] * self.tasks)

    def copy(self) -> Problem:
        return copy.deepcopy(self)

    def to(self, dtype: torch.dtype) -> Problem:
        """With parameters, inputs and targets of another dtype."""
        self.trunk.to(dtype), self.heads.to(dtype)
        self.x, self.targets = self.x.to(dtype), [target.to(dtype) for target in self.targets]
        return self


def linear_problem(tasks: int = 3, *, width: int = 6, outputs: int = 2, batch: int = 4, inputs: int = 5) -> Problem:
    heads = nn.ModuleList(nn.Linear(width, outputs) for _ in range(tasks))
    targets = [torch.randn(batch, outputs) for _ in range(tasks)]
    return Problem(LinearTrunk(width, inputs), heads, torch.randn(batch, inputs), targets)


def conv_problem(
    tasks: int = 3, *, width: int = 6, batch: int = 2, size: int = 5, pooled: bool = False, batch_norm: bool = False
) -> Problem:
    """Every second head pools and has one output (all where ``pooled``), the others are convolutions."""
    heads = nn.ModuleList(PooledHead(width) if pooled or k % 2 else nn.Conv2d(width, 2, 1) for k in range(tasks))
    targets = [torch.randn(batch, 1) if isinstance(h, PooledHead) else torch.randn(batch, 2, size, size) for h in heads]
    return Problem(ConvTrunk(width, batch_norm), heads, torch.randn(batch, 3, size, size), targets)


def source_of(problem: Problem, place: str) -> Any:
    shared = problem.trunk.shared
    return {"layer": shared, "parameters": [problem.trunk.stem.weight, shared.weight]}.get(place, "features")


def gradnorm_for(problem: Problem, place: str = "features", **options: Any) -> GradNorm:
    """A GradNorm balancer that starts away from equal weights, so that a forgotten weight shows."""
    balancer = GradNorm(problem.tasks, source=source_of(problem, place), **{"alpha": 0.5, **options})
    with torch.no_grad():
        uneven = torch.linspace(0.5, 1.5, problem.tasks)
        balancer.weights.copy_(uneven * (problem.tasks / uneven.sum()))
    return balancer


def views_of(problem: Problem, balancer: Balancer, place: str = "features") -> Any:
    if place == "tail":
        return balancer.fork(problem.trunk.inner(problem.x), tail=problem.trunk.tail)
    return balancer.fork(problem.trunk(problem.x))


def balanced(problem: Problem, balancer: Balancer, place: str = "features") -> Tensor:
    """The balanced loss of one step."""
    return balancer(problem.losses(views_of(problem, balancer, place)))


def add_up(weights: Tensor, losses: Sequence[Tensor]) -> Tensor:
    """The plain weighted sum."""
    return sum((weight.item() * loss for weight, loss in zip(weights, losses, strict=True)), torch.zeros(()))


@dataclass
class Plain:
    """Gradients of the plain weighted sum, and the size of what was added up in them."""

    total: list[Tensor | None]
    size: list[Tensor]  # sum over the tasks of ||w_k dL_k/dp||


def plain_gradients(parameters: Sequence[Tensor], losses: Sequence[Tensor], weights: Tensor) -> Plain:
    size = [torch.zeros((), dtype=torch.float64) for _ in parameters]
    for weight, loss in zip(weights.tolist(), losses, strict=True):
        for n, grad in enumerate(torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)):
            size[n] += 0.0 if grad is None else weight * grad.double().norm()
    total = torch.autograd.grad(add_up(weights, losses), parameters, allow_unused=True)
    return Plain(list(total), size)


def assert_same_gradients(
    gradients: Sequence[Tensor | None], plain: Plain, tasks: int, dtype: torch.dtype = torch.float32
) -> None:
    """Equal up to the order of the T additions (T - 1 roundings on each side) and one rounding in each layer below."""
    roundings = 2 * (tasks - 1) + 4
    for n, (ours, expected, size) in enumerate(zip(gradients, plain.total, plain.size, strict=True)):
        assert (ours is None) == (expected is None), f"parameter {n}"
        if ours is not None and expected is not None:
            assert ours.dtype == expected.dtype and ours.shape == expected.shape
            error = (ours.double() - expected.double()).norm()
            assert error <= roundings * torch.finfo(dtype).eps / 2 * size, f"parameter {n}: {error / size:.2e}"


def task_norms(losses: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """||grad L_k|| with respect to ``targets`` taken together, by autograd."""
    norms = []
    for loss in losses:
        grads = torch.autograd.grad(loss, targets, retain_graph=True, allow_unused=True)
        norms.append(torch.stack([g.double().square().sum() for g in grads if g is not None]).sum().sqrt())
    return torch.stack(norms)
