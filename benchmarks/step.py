"""A whole training step with GradNorm and MaxGNR against equal weighting: time and peak memory.

Backbone like ResNet-18 at half width (2.8 M parameters, GroupNorm), batch 8, 64x64 images, features 256 x 8 x 8, T
dense heads.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

import fastmtl
from benchmarks import timing
from fastmtl.balancers import Balancer


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


def backbone() -> nn.Sequential:
    """[B, 3, 64, 64] to [B, 256, 8, 8]."""
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, 1, 1, bias=False), nn.GroupNorm(8, 32), nn.ReLU()]
    for inputs, outputs, stride in ((32, 32, 1), (32, 64, 2), (64, 128, 2), (128, 256, 2)):
        layers += [Block(inputs, outputs, stride), Block(outputs, outputs, 1)]
    return nn.Sequential(*layers)


def head() -> nn.Sequential:
    """A dense head: [B, 256, 8, 8] to [B, 4, 64, 64]."""
    return nn.Sequential(
        nn.Conv2d(256, 64, 3, 1, 1), nn.ReLU(), nn.Conv2d(64, 4, 1), nn.Upsample(scale_factor=8, mode="bilinear")
    )


class Training:
    """One model and its data; a step with any balancer, or the plain loop."""

    def __init__(self, tasks: int):
        torch.manual_seed(0)
        self.trunk, self.heads = backbone(), nn.ModuleList(head() for _ in range(tasks))
        self.images, self.targets = torch.randn(8, 3, 64, 64), torch.randn(tasks, 8, 4, 64, 64)
        self.optimizer = torch.optim.SGD([*self.trunk.parameters(), *self.heads.parameters()], lr=1e-3)

    def losses(self, views: list[Tensor] | tuple[Tensor, ...]) -> list[Tensor]:
        """T scalar losses."""
        return [F.mse_loss(h(v), y) for h, v, y in zip(self.heads, views, self.targets, strict=True)]

    def plain(self) -> Callable[[], None]:
        """Equal weighting, without any library."""

        def step() -> None:
            self.optimizer.zero_grad()
            torch.stack(self.losses([self.trunk(self.images)] * len(self.heads))).sum().backward()
            self.optimizer.step()

        return step

    def balanced(self, balancer: Balancer) -> Callable[[], None]:
        """The same with a balancer."""

        def step() -> None:
            self.optimizer.zero_grad()
            balancer(self.losses(balancer.fork(self.trunk(self.images)))).backward()
            self.optimizer.step()

        return step

    def one_backward_a_task(self, balancer: Balancer) -> Callable[[], None]:
        """The usual way: each task's gradient of all shared parameters by a backward of its own."""
        shared = list(self.trunk.parameters())

        def step() -> None:
            self.optimizer.zero_grad()
            balancer.backward(self.losses([self.trunk(self.images)] * len(self.heads)), shared)
            self.optimizer.step()

        return step

    def variants(self) -> dict[str, Callable[[], None]]:
        """The baseline first."""
        tasks, last = len(self.heads), self.trunk[-1]
        assert isinstance(last, Block)
        return {
            "equal weighting, plain loop": self.plain(),
            "FixedWeights": self.balanced(fastmtl.FixedWeights(tasks)),
            "GradNorm, features": self.balanced(fastmtl.GradNorm(tasks, alpha=1.5)),
            "GradNorm, last conv layer": self.balanced(fastmtl.GradNorm(tasks, alpha=1.5, source=last.conv2)),
            "MaxGNR, features": self.balanced(fastmtl.MaxGNR(tasks, source="features")),
            "MaxGNR, last conv layer": self.balanced(fastmtl.MaxGNR(tasks, source=last.conv2)),
            "GradNorm, a backward a task": self.one_backward_a_task(fastmtl.GradNorm(tasks, alpha=1.5)),
        }


def main(
    tasks: Annotated[list[int], typer.Option(help="numbers of tasks")] = [3, 10],  # noqa: B006
    rounds: int = 30,
    threads: int = 2,
    output: Annotated[Path | None, typer.Option(help="write the figures as JSON")] = None,
) -> None:
    """Print time and peak memory against equal weighting."""
    torch.set_num_threads(threads)
    console, rows = Console(width=140), []
    table = Table("T", "variant", "time / plain [quartiles]", "ms", "peak memory / plain")
    for count in tasks:
        training = Training(count)
        variants = training.variants()
        results = timing.interleaved(variants, rounds)
        peaks = {}
        for name, step in variants.items():
            training.optimizer.zero_grad()
            peaks[name] = timing.peak_bytes(step)
        plain = next(iter(peaks.values()))
        for result in results:
            memory = peaks[result.variant] / plain
            table.add_row(str(count), result.variant, str(result), f"{result.seconds * 1e3:.0f}", f"{memory:.3f}")
            rows.append({"tasks": count, **timing.as_rows([result])[0], "memory": memory})
    console.print(table)
    console.print(timing.conditions())
    if output is not None:
        output.write_text(json.dumps({"conditions": timing.conditions(), "rows": rows}, indent=1))


if __name__ == "__main__":
    typer.run(main)
