"""What a backend supplies to the algorithms of this package: one read of each gradient for each of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

Gradients: TypeAlias = Sequence[Tensor | None]
RowsLinear: TypeAlias = Callable[[Tensor, Gradients, bool, bool, bool, int], list[Tensor]]


@dataclass(frozen=True)
class Costs:
    """What operations of torch take, in multiply-adds of its float32 matrix products; as given on a CPU, see `cost`."""

    read: int = 8  # a number that a kernel reads
    formed: int = 44  # a number that a product writes and a kernel reads
    call: int = 250_000  # one call of torch: 5 us
    least_rows: int = 128  # of a product: fewer make poor ones


@dataclass(frozen=True)
class Primitives:
    """The ops of `contract.SCHEMAS` of the same names, and what other operations cost beside them.

    ``rows_linear``, where a backend has it: M of a linear layer with one position a sample, and Q where wanted, in one call.
    It takes inputs [B, in] and gradients [B, out] of one dtype, whether there is a bias, whether Q is wanted, whether M
    comes from pairs of samples or from weight gradients, and how many samples or rows of these are worked on at a time.
    """

    gram: Callable[[Gradients, int], Tensor]
    cross_gram: Callable[[Gradients, Gradients], Tensor]
    sample_gram: Callable[[Gradients, Tensor], Tensor]
    costs: Costs = Costs()
    rows_linear: RowsLinear | None = None
