"""What a backend supplies to the algorithms of this package: one read of each gradient for each of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

Gradients: TypeAlias = Sequence[Tensor | None]


@dataclass(frozen=True)
class Costs:
    """What operations of torch take, in multiply-adds of its float32 matrix products; as given on a CPU, see `cost`."""

    read: int = 8  # a number that a kernel reads
    formed: int = 44  # a number that a product writes and a kernel reads
    call: int = 250_000  # one call of torch: 5 us
    least_rows: int = 128  # of a product: fewer make poor ones


@dataclass(frozen=True)
class Primitives:
    """The ops of `contract.SCHEMAS` of the same names, and what other operations cost beside them."""

    gram: Callable[[Gradients, int], Tensor]
    cross_gram: Callable[[Gradients, Gradients], Tensor]
    sample_gram: Callable[[Gradients, Tensor], Tensor]
    costs: Costs = Costs()
