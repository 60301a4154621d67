"""The gradients of T tasks as the fork's kernels take them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fastmtl.backends.contract import empty_total
from fastmtl.backends.triton.launching import filled
from fastmtl.backends.triton.layout import Layout, readable


@dataclass(frozen=True)
class Inputs:
    """T gradients, and the memory of their sum."""

    total: Tensor
    tensors: tuple[Tensor, ...]  # with any in place of those that did not arrive
    present: int  # a bit for each that did
    layout: Layout  # of the total, then of the gradients

    @property
    def tasks(self) -> int:
        """T."""
        return len(self.tensors)

    @property
    def positions(self) -> dict[str, Any]:
        """Arguments that say how positions are laid out."""
        layout = self.layout
        return {
            "positions": layout.positions,
            "sizes": layout.sizes,
            "strides": layout.strides[1:],
            "total_strides": layout.strides[0],
            "RANK": layout.rank,
            "VECTOR": layout.vector,
        }

    @property
    def samples(self) -> dict[str, Any]:
        """Arguments that say how samples and positions are laid out."""
        return {
            "batch": self.total.shape[0],
            "sample_strides": self.layout.sample_strides[1:],
            "total_sample_stride": self.layout.sample_strides[0],
            **self.positions,
        }


def inputs_of(grads: Sequence[Tensor | None], by_sample: bool) -> Inputs:
    """Gradients as they arrived, of which at least one did; ``by_sample``: dimension 0 is that of the samples."""
    total = empty_total(grads)
    tensors, present = filled(grads)
    (_, *tensors), layout = readable([total, *tensors], by_sample)
    return Inputs(total, tuple(tensors), present, layout)
