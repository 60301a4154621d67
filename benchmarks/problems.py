"""What the benchmarks measure: the model and data of a whole step and all ways to train it, and lists of gradients.

Backbone like ResNet-18 at half width (2.8 M parameters, GroupNorm; ``width=64`` is the full one), images of 64x64, features
at an eighth of their size, T dense heads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastmtl
from fastmtl.balancers import Balancer
from fastmtl.sources import SourceLike


def list_shapes(elements: int) -> list[int]:
    """Sizes of a list like a network's parameters: a few large, some middling, many small tensors."""
    sizes = [
        elements // 4,
        elements // 4,
        elements // 8,
        elements // 8,
        *[elements // 64] * 8,
        *[elements // 4096] * 16,
        *[64] * 20,
    ]
    return [*sizes, elements - sum(sizes)]


class Block(nn.Module):
    """A residual block: conv, norm, ReLU, conv, norm, sum, ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.GroupNorm(8, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.GroupNorm(8, outputs)
        same = stride == 1 and inputs == outputs
        self.skip = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, outputs, H / stride, W / stride]."""
        return F.relu(self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))) + self.skip(x))


def backbone(width: int = 32) -> nn.Sequential:
    """[B, 3, S, S] to [B, 8 * width, S / 8, S / 8]."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.GroupNorm(8, width), nn.ReLU()]
    for inputs, outputs, stride in (
        (width, width, 1),
        (width, 2 * width, 2),
        (2 * width, 4 * width, 2),
        (4 * width, 8 * width, 2),
    ):
        layers += [Block(inputs, outputs, stride), Block(outputs, outputs, 1)]
    return nn.Sequential(*layers)


def head(width: int = 32) -> nn.Sequential:
    """A dense head: [B, 8 * width, S / 8, S / 8] to [B, 4, S, S]."""
    return nn.Sequential(
        nn.Conv2d(8 * width, 2 * width, 3, 1, 1),
        nn.ReLU(),
        nn.Conv2d(2 * width, 4, 1),
        nn.Upsample(scale_factor=8, mode="bilinear"),
    )


class Training:
    """One model and its data; a step with any balancer, or the plain loop."""

    def __init__(
        self,
        tasks: int,
        *,
        batch: int = 8,
        width: int = 32,
        size: int = 64,
        device: torch.device | str = "cpu",
        autocast: bool = False,
    ):
        torch.manual_seed(0)
        self.device, self.autocast = torch.device(device), autocast
        self.trunk = backbone(width).to(self.device)
        self.heads = nn.ModuleList(head(width) for _ in range(tasks)).to(self.device)
        self.images = torch.randn(batch, 3, size, size, device=self.device)
        self.targets = torch.randn(tasks, batch, 4, size, size, device=self.device)
        self.optimizer = torch.optim.SGD([*self.trunk.parameters(), *self.heads.parameters()], lr=1e-3)

    def losses(self, views: list[Tensor] | tuple[Tensor, ...]) -> list[Tensor]:
        """T scalar losses."""
        return [F.mse_loss(h(v), y) for h, v, y in zip(self.heads, views, self.targets, strict=True)]

    def precision(self) -> torch.autocast:
        """bfloat16 for the forward where that was asked for."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast)

    def plain(self) -> Callable[[], None]:
        """Equal weighting, without any library."""

        def step() -> None:
            self.optimizer.zero_grad()
            with self.precision():
                loss = torch.stack(self.losses([self.trunk(self.images)] * len(self.heads))).sum()
            loss.backward()
            self.optimizer.step()

        return step

    def balanced(self, balancer: Balancer) -> Callable[[], None]:
        """The same with a balancer."""

        def step() -> None:
            self.optimizer.zero_grad()
            with self.precision():
                loss = balancer(self.losses(balancer.fork(self.trunk(self.images))))
            loss.backward()
            self.optimizer.step()

        return step

    def one_backward_a_task(self, balancer: Balancer) -> Callable[[], None]:
        """The usual way: each task's gradient of all shared parameters by a backward of its own."""
        shared = list(self.trunk.parameters())

        def step() -> None:
            self.optimizer.zero_grad()
            with self.precision():
                losses = self.losses([self.trunk(self.images)] * len(self.heads))
            balancer.backward(losses, shared)
            self.optimizer.step()

        return step

    def variants(self) -> dict[str, Callable[[], None]]:
        """The baseline first."""
        tasks, last = len(self.heads), self.trunk[-1]
        assert isinstance(last, Block)

        def gradnorm(**options: Any) -> Balancer:
            return fastmtl.GradNorm(tasks, alpha=1.5, **options).to(self.device)

        def maxgnr(source: SourceLike) -> Balancer:
            return fastmtl.MaxGNR(tasks, source=source).to(self.device)

        return {
            "equal weighting, plain loop": self.plain(),
            "FixedWeights": self.balanced(fastmtl.FixedWeights(tasks).to(self.device)),
            "GradNorm, features": self.balanced(gradnorm()),
            "GradNorm, last conv layer": self.balanced(gradnorm(source=last.conv2)),
            "MaxGNR, features": self.balanced(maxgnr("features")),
            "MaxGNR, last conv layer": self.balanced(maxgnr(last.conv2)),
            "GradNorm, a backward a task": self.one_backward_a_task(gradnorm()),
        }
