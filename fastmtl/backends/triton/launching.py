"""What all launches share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

# Contracted products and sums would leave the lanes of a reduction with different last bits, see `kernels`.
OPTIONS: dict[str, Any] = {"enable_fp_fusion": False}


def power_of_two(number: int) -> int:
    """The least power of two that is not less."""
    return 1 << max(0, number - 1).bit_length()


@dataclass(frozen=True)
class Programs:
    """How many programs a launch has, and how many of them share a first ticket: about as many as there are groups.

    Two levels, so that the programs that end last read few partial results each, at the same time.
    """

    count: int

    @property
    def group(self) -> int:
        """Programs that share a ticket."""
        return self.count if self.count <= 32 else power_of_two(int(self.count**0.5))

    def partials(self, width: int) -> int:
        """Numbers of workspace that `kernels.finish.finish` takes."""
        return (self.count + -(-self.count // self.group)) * width


def rows_for(width: int) -> int:
    """Rows of partial results that are read at a time: some 2,048 numbers."""
    return max(1, 2048 // width)


def filled(grads: Sequence[Tensor | None]) -> tuple[list[Tensor], int]:
    """The gradients with any that arrived in place of those that did not, and a bit for each that arrived.

    Kernels read a tensor only where its bit is set: no variant is compiled for each pattern of tasks.
    """
    stand_in = next(grad for grad in grads if grad is not None)
    bits = sum(1 << k for k, grad in enumerate(grads) if grad is not None)
    if bits >= 1 << 63:  # as a signed 64-bit argument
        bits -= 1 << 64
    return [stand_in if grad is None else grad for grad in grads], bits
