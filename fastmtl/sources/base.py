"""What a source is: where the gradients of the tasks are measured, and which of their statistics it can give."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, Protocol, TypeAlias

import torch
from torch import Tensor
from torch.autograd.graph import Node

from fastmtl import ops  # noqa: F401  (registers torch.ops.fastmtl)
from fastmtl.backends.contract import present_of, statistics_dtype

Gradients: TypeAlias = Sequence[Sequence[Tensor | None]]  # [N levels][T tasks], None: did not arrive
# What is measured of the tasks' gradients as they arrive: their squared norms [T], their Gram matrix M [T, T], or M and
# the per-sample Gram matrix Q [T, T].
Statistics: TypeAlias = Literal["norms", "gram", "moments"]
Measured: TypeAlias = tuple[Tensor, ...]  # (squared norms,), (M,) or (M, Q)


class Probe(ABC):
    """A source located in the graph of one forward pass."""

    @abstractmethod
    def sum_and_measure(self, grads: Gradients) -> tuple[list[Tensor | None], Measured]:
        """The sum over the tasks for each level, and the statistics of the tasks' gradients at the source."""

    def in_one_pass(self, grads: Gradients) -> Sequence[Tensor | None] | None:
        """The gradients of the one tensor that is both summed and measured, where there is no more to it; else None."""
        return None

    @abstractmethod
    def places(self) -> list[Node]:
        """The nodes of the graph whose gradients are measured; none where they are those of the fork itself."""


class Source(Protocol):
    """A place in the network; made for one kind of statistics."""

    def locate(self, features: Sequence[Tensor], before_tail: Sequence[Tensor] | None) -> Probe:
        """Find the source in the graph that made ``features``.

        Args:
            features: the tensors that the fork will split.
            before_tail: the tensors that the user gave to the fork, where a tail made ``features`` of them.

        Raises:
            ValueError: it is not there, or cannot give its statistics.
        """


def sums(grads: Gradients) -> list[Tensor | None]:
    """The sum over the tasks for each level; None where no gradient arrived."""
    totals: list[Tensor | None] = []
    for level in grads:
        arrived = present_of(level)
        if len(arrived) <= 1:
            totals.append(arrived[0] if arrived else None)
        else:
            totals.append(torch.ops.fastmtl.sum_norms(level)[0])
    return totals


def add_up(parts: Sequence[Measured]) -> Measured:
    """The statistics of several places taken together: they are sums of squares and products, so they add up."""
    total = parts[0]
    for part in parts[1:]:
        total = tuple(a + b for a, b in zip(total, part, strict=True))
    return total


def nothing(statistics: Statistics, tasks: int, device: torch.device) -> Measured:
    """The statistics where no gradient arrived."""
    if statistics == "norms":
        return (torch.zeros(tasks, dtype=torch.float32, device=device),)
    return tuple(
        torch.zeros((tasks, tasks), dtype=torch.float32, device=device)
        for _ in range(2 if statistics == "moments" else 1)
    )


def widened(tensor: Tensor) -> Tensor:
    """In the dtype of its statistics, so that products are not rounded to half precision."""
    return tensor.to(statistics_dtype(tensor))
