"""``source="features"``: the shared representation itself, the tensor that the heads read.

Its gradient has two readings. GradNorm takes the norm of the whole tensor dL_k/dZ, ``sqrt(Q_kk / B)``: the
representation gradient of MGDA-UB and IMTL-G. Variance and gradient-to-noise ratio need a parameter that all samples
share: there it is a shift of shape ``Z.shape[1:]`` added to every sample's features, whose gradient is the sum over the
batch, with the moments M and Q.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.graph import Node

from fastmtl.backends.contract import present_of
from fastmtl.sources.base import Gradients, Measured, Probe, Statistics, add_up, nothing, sums
from fastmtl.sources.graph import edges_of
from fastmtl.sources.parameters import CarriedProbe, carry


def _level(level: Sequence[Tensor | None], statistics: Statistics) -> tuple[Tensor, Measured]:
    """Sum and statistics of one tensor's gradients in one pass; at least one arrived."""
    if statistics != "norms":
        total, second, samples = torch.ops.fastmtl.sum_moments(level)
        return total, (second,) if statistics == "gram" else (second, samples)
    arrived = present_of(level)
    if len(arrived) == 1:  # its own sum: no copy
        return arrived[0], (torch.ops.fastmtl.squared_norms(level, len(level)),)
    total, squared_norms = torch.ops.fastmtl.sum_norms(level)
    return total, (squared_norms,)


class FeaturesProbe(Probe):
    """Sum and statistics in one pass over the gradients that arrive at the fork."""

    def __init__(self, statistics: Statistics):
        self.statistics = statistics

    def places(self) -> list[Node]:
        """Those of the fork."""
        return []

    def in_one_pass(self, grads: Gradients) -> Sequence[Tensor | None] | None:
        """A single tensor's gradients, two or more of them: one is its own sum and needs no copy."""
        single = len(grads) == 1 and self.statistics != "gram" and len(present_of(grads[0])) > 1
        return grads[0] if single else None

    def sum_and_measure(self, grads: Gradients) -> tuple[list[Tensor | None], Measured]:
        """The sums, and the statistics over all levels of Z together."""
        measured = [_level(level, self.statistics) if present_of(level) else None for level in grads]
        totals = [None if part is None else part[0] for part in measured]
        return totals, add_up([part[1] for part in measured if part is not None])


class BeforeTailProbe(Probe):
    """Moments at the features that the user gave to the fork: each task's gradient is carried back through the tail."""

    def __init__(self, roots: Sequence[Tensor], targets: Sequence[Tensor], statistics: Statistics):
        self.roots, self.targets, self.statistics = edges_of(roots), edges_of(targets), statistics

    def places(self) -> list[Node]:
        """Where the gradients are carried."""
        return [edge.node for edge in self.targets]

    def sum_and_measure(self, grads: Gradients) -> tuple[list[Tensor | None], Measured]:
        """The sums after the tail, and the statistics before it."""
        tasks = len(grads[0])
        carried = [carry(self.roots, grads, task, self.targets) for task in range(tasks)]
        levels = [level for level in zip(*carried, strict=True) if present_of(level)]
        if levels:
            return sums(grads), add_up([_level(level, self.statistics)[1] for level in levels])
        like = next(grad for level in grads for grad in level if grad is not None)
        return sums(grads), nothing(self.statistics, tasks, like.device)


class Features:
    """The features, wherever they come from."""

    def __init__(self, statistics: Statistics):
        self.statistics = statistics

    def locate(self, features: Sequence[Tensor], before_tail: Sequence[Tensor] | None) -> Probe:
        """Without a tail the gradients arrive at the fork by themselves; through a tail they are carried."""
        if before_tail is None:
            return FeaturesProbe(self.statistics)
        if self.statistics == "norms":
            return CarriedProbe(edges_of(features), edges_of(before_tail), "norms")
        return BeforeTailProbe(features, before_tail, self.statistics)
