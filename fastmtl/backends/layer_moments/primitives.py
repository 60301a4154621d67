"""What a backend supplies to the algorithms of this package: one read of each gradient for each of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

Gradients: TypeAlias = Sequence[Tensor | None]


@dataclass(frozen=True)
class Primitives:
    """The ops of `contract.SCHEMAS` of the same names."""

    gram: Callable[[Gradients, int], Tensor]
    cross_gram: Callable[[Gradients, Gradients], Tensor]
    sample_gram: Callable[[Gradients, Tensor], Tensor]
