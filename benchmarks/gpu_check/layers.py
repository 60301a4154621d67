"""Moments of layers beside the layer's own backward for one task, and beside forming T weight gradients."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu_check.backends import beside
from benchmarks.gpu_check.gradients import Problem, graph_of, repeats, short
from benchmarks.gpu_check.machine import Machine
from benchmarks.gpu_check.running import Item, Scale
from benchmarks.gpu_check.timed import Call, interleaved
from fastmtl import ops

Made = tuple[nn.Module, Tensor, Callable[..., tuple[Tensor, Tensor]]]


def _linear(width: int, batch: int, tokens: int) -> Made:
    shape = (batch, width) if tokens == 1 else (batch, tokens, width)
    return nn.Linear(width, width), torch.randn(shape), ops.linear_moments


def _conv(channels: int, size: int, batch: int) -> Made:
    moments = partial(ops.conv_moments, kernel_size=3, padding=1)
    return nn.Conv2d(channels, channels, 3, padding=1), torch.randn(batch, channels, size, size), moments


def layers(divisor: int) -> dict[str, Callable[[], Made]]:
    """Makers by name; sizes are divided by ``divisor``."""
    found: dict[str, Callable[[], Made]] = {}
    for width, batch, tokens in ((1024, 256, 1), (4096, 256, 1), (1024, 16, 256), (256, 64, 64)):
        width, batch = width // divisor, max(2, batch // divisor)
        found[f"linear {width}, B {batch}, {tokens} tokens"] = partial(_linear, width, batch, max(1, tokens // divisor))
    for channels, size, batch in ((512, 8, 64), (256, 16, 64), (64, 64, 32)):
        channels, size, batch = channels // divisor, max(4, size // divisor), max(2, batch // divisor)
        found[f"conv2d {channels}, 3x3, B {batch}, {size}x{size}"] = partial(_conv, channels, size, batch)
    return found


class LayerProblem:
    """A layer that ran forward, and T gradients at its output."""

    def __init__(self, make: Callable[[], Made], tasks: int, dtype: torch.dtype, device: torch.device):
        torch.manual_seed(0)
        layer, inputs, self.moments = make()
        layer, self.inputs = layer.to(device, dtype), inputs.to(device, dtype)
        self.leaf = self.inputs.clone().requires_grad_()
        self.output, self.parameters = layer(self.leaf), list(layer.parameters())
        self.grads = [torch.randn_like(self.output) for _ in range(tasks)]
        self.name = "linear_moments" if isinstance(layer, nn.Linear) else "conv_moments"

    def backward(self) -> tuple[Tensor, ...]:
        """The layer's own, for one task."""
        return torch.autograd.grad(self.output, [*self.parameters, self.leaf], self.grads[0], retain_graph=True)

    def op(self, per_sample: bool = True) -> tuple[Tensor, Tensor]:
        """M and Q."""
        return self.moments(self.inputs, self.grads, per_sample=per_sample)

    def plain(self) -> Tensor:
        """M alone, from T weight gradients."""
        formed = [torch.autograd.grad(self.output, self.parameters, g, retain_graph=True) for g in self.grads]
        rows = torch.stack([torch.cat([part.flatten() for part in parts]) for parts in formed]).float()
        return rows @ rows.T


def _timed(make: Callable[[], Made], tasks: int, dtype: torch.dtype, scale: Scale, machine: Machine) -> dict[str, Any]:
    problem = LayerProblem(make, tasks, dtype, machine.device)
    errors: dict[str, str] = {}
    M, expected = problem.op()[0], problem.plain()
    error = float((M.float() - expected).abs().max() / expected.abs().max())
    # The gradients that plain operations form are rounded to their dtype, and convolutions in float32 use TF32.
    bound = 4 * torch.finfo(dtype).eps + 5e-3
    wrong = None if error <= bound else f"M differs from formed gradients by {error:.2e} of the largest number"
    variants: dict[str, Call] = {
        "backward": problem.backward,
        "op": problem.op,
        "M only": partial(problem.op, per_sample=False),
        "plain, M only": problem.plain,
    }
    variants |= graph_of(machine, problem.op, errors)
    others = beside(machine, problem.name, dtype, problem.op)
    variants |= others
    figures = interleaved(machine, variants, rounds=scale.rounds, seconds=scale.seconds)
    return {
        **figures,
        "errors": {**figures["errors"], **errors},
        "wrong": wrong,
        "difference": error,
        "beside": list(others),
    }


def _repeats(make: Callable[[], Made], dtype: torch.dtype, scale: Scale, machine: Machine) -> dict[str, Any]:
    problem = LayerProblem(make, scale.layer_tasks[0], dtype, machine.device)
    return repeats(
        machine, lambda _: Problem("moments", problem.op, problem.plain, 0, problem.name, dtype), scale.repeats
    )


def times(scale: Scale) -> list[Item]:
    """Each layer for each number of tasks and dtype."""
    return [
        Item(f"{name} {short(dtype)} T={tasks}", partial(_timed, make, tasks, dtype, scale))
        for tasks in scale.layer_tasks
        for dtype in scale.dtypes
        for name, make in layers(scale.layers).items()
    ]


def determinism(scale: Scale) -> list[Item]:
    """Each layer for the fewest tasks."""
    return [
        Item(f"{name} {short(dtype)}", partial(_repeats, make, dtype, scale))
        for dtype in scale.dtypes
        for name, make in layers(scale.layers).items()
    ]
