"""What a source is: where the gradients of the tasks are measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from fastmtl import ops  # noqa: F401  (registers torch.ops.fastmtl)
from fastmtl.backends.contract import present_of

Gradients: TypeAlias = Sequence[Sequence[Tensor | None]]  # [N levels][T tasks], None: did not arrive


class Probe(Protocol):
    """A source located in the graph of one forward pass."""

    def sum_and_measure(self, grads: Gradients) -> tuple[list[Tensor | None], Tensor]:
        """The sum over the tasks for each level, and the [T] squared norms of the tasks' gradients at the source."""


class Source(Protocol):
    """A place in the network."""

    def locate(self, features: Sequence[Tensor], before_tail: Sequence[Tensor] | None) -> Probe:
        """Find the source in the graph that made ``features``.

        Args:
            features: the tensors that the fork will split.
            before_tail: the tensors that the user gave to the fork, where a tail made ``features`` of them.

        Raises:
            ValueError: it is not there.
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
