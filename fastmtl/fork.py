"""The two autograd nodes where everything happens, and the one edge between them.

    features ──> Fork ──> view_1 … view_T ──> heads ──> losses ──> WeightedSum ──> loss
                   └───────────── token ─────────────────────────────┘

In the backward WeightedSum runs first. The gradient that arrives at it is the loss scale (GradScaler's factor, one
over the accumulation steps). It sends scale, losses and the weights used back to Fork as the "gradient" of the
token. Fork runs when all view gradients and the token's have arrived: it measures, updates the weights and passes on
the sum. No Python state lives between the two, so the order of several forwards and backwards does not matter and
all of it compiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastmtl import ops
from fastmtl.sources.base import Gradients, Measured, Probe, Statistics, nothing, sums


class Rule(Protocol):
    """What the fork asks of a balancer."""

    statistics: Statistics  # what is to be measured

    def take(self, measured: Measured, message: Tensor, batch: int) -> None:
        """Update the weights from statistics of the arrived gradients, those of scale * w_k * L_k, of ``batch`` samples."""

    def sum_and_take(self, grads: Sequence[Tensor | None], message: Tensor, batch: int) -> Tensor:
        """The same from the arrived gradients of one tensor, in one pass that also gives their sum."""


def _by_level(flat: Sequence[Any], tasks: int) -> list[list[Any]]:
    """The views or gradients of all levels, level after level, as [N levels][T tasks]."""
    return [list(flat[start : start + tasks]) for start in range(0, len(flat), tasks)]


def _without_gradient(grads: Gradients, tasks: int) -> list[int]:
    return [task for task in range(tasks) if all(level[task] is None for level in grads)]


def mark_missing(message: Tensor, missing: Sequence[int], tasks: int) -> Tensor:
    """The message with presence 2 for the tasks that are present but whose gradient did not arrive."""
    if not missing:
        return message
    factor = [1.0] * (2 + 2 * tasks) + [2.0 if task in missing else 1.0 for task in range(tasks)]
    return message * torch.tensor(factor, dtype=message.dtype, device=message.device)


class _Fork(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rule: Rule, probe: Probe, tasks: int, batch: int, *features: Tensor) -> tuple[Tensor, ...]:
        ctx.rule, ctx.probe, ctx.tasks, ctx.batch = rule, probe, tasks, batch
        ctx.set_materialize_grads(False)
        token = features[0].new_zeros(2 + 3 * tasks, dtype=torch.float32)
        return (*(level.view_as(level) for level in features for _ in range(tasks)), token)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *arrived: Tensor | None) -> tuple[Any, ...]:
        *flat, message = arrived
        tasks = ctx.tasks
        grads = _by_level(flat, tasks)
        if message is None:  # not a backward of the balanced loss: nothing to measure
            return (None, None, None, None, *sums(grads))
        missing = _without_gradient(grads, tasks)
        message = mark_missing(message, missing, tasks)
        level = ctx.probe.in_one_pass(grads)
        if level is not None:
            return (None, None, None, None, ctx.rule.sum_and_take(level, message, ctx.batch))
        if len(missing) == tasks:
            totals, measured = sums(grads), nothing(ctx.rule.statistics, tasks, message.device)
        else:
            totals, measured = ctx.probe.sum_and_measure(grads)
        ctx.rule.take(measured, message, ctx.batch)
        return (None, None, None, None, *totals)


class _Join(torch.autograd.Function):
    """The fork that measures nothing: T aliases forward, one fused sum backward."""

    @staticmethod
    def forward(ctx: Any, tasks: int, *features: Tensor) -> tuple[Tensor, ...]:
        ctx.tasks = tasks
        ctx.set_materialize_grads(False)
        return tuple(level.view_as(level) for level in features for _ in range(tasks))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *flat: Tensor | None) -> tuple[Any, ...]:
        return (None, *sums(_by_level(flat, ctx.tasks)))


class _WeightedSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, token: Tensor | None, weights: Tensor, present: Tensor, absent: tuple[bool, ...], *losses: Tensor
    ) -> Tensor:
        # The snapshot of losses and weights is made by an op: Inductor would drop a `weights.clone()` and read the
        # buffer in the backward, after the update.
        loss, message = ops.weigh(losses, weights, present)
        ctx.save_for_backward(message)
        ctx.absent, ctx.sends = absent, token is not None
        ctx.like = [(item.dtype, item.shape) for item in losses]
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Any, ...]:
        (message,) = ctx.saved_tensors
        tasks = len(ctx.absent)
        weights, present = message[2 + tasks : 2 + 2 * tasks], message[2 + 2 * tasks :]
        slopes = (scale * (weights * present)).unbind()
        grads = [
            None if gone else slope if like == (slope.dtype, slope.shape) else slope.to(like[0]).view(like[1])
            for slope, gone, like in zip(slopes, ctx.absent, ctx.like, strict=True)
        ]
        return (ops.with_scale(message, scale) if ctx.sends else None, None, None, None, *grads)


def fork(
    features: Sequence[Tensor], tasks: int, rule: Rule, probe: Probe, batch: int
) -> tuple[list[list[Tensor]], Tensor]:
    """T views of each of N feature tensors of ``batch`` samples, [N][T], and the token for `weighted_sum`."""
    *views, token = _Fork.apply(rule, probe, tasks, batch, *features)
    return _by_level(views, tasks), token


def join(features: Sequence[Tensor], tasks: int) -> list[list[Tensor]]:
    """T views of each of N feature tensors, [N][T], whose gradients are summed and not measured."""
    if torch.compiler.is_compiling() and not any(level.requires_grad for level in features):
        # Without a graph Dynamo shifts the arguments of a function that takes any number of them.
        return [[level.view_as(level) for _ in range(tasks)] for level in features]
    return _by_level(_Join.apply(tasks, *features), tasks)


def weighted_sum(
    losses: Sequence[Tensor], weights: Tensor, present: Tensor, absent: tuple[bool, ...], token: Tensor | None
) -> Tensor:
    """The sum of w_k L_k; its backward sends the message to the fork that made ``token``."""
    if not (torch.is_grad_enabled() and any(loss.requires_grad for loss in losses)):  # as in `join`
        return ops.weigh(losses, weights, present)[0]
    return _WeightedSum.apply(token, weights, present, absent, *losses)
