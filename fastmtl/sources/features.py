"""``source="features"``: the shared representation itself, the tensor that the heads read."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastmtl.backends.contract import present_of
from fastmtl.sources.base import Gradients, Probe
from fastmtl.sources.graph import edges_of
from fastmtl.sources.parameters import CarriedProbe


class FeaturesProbe:
    """Sum and norms in one pass over the gradients that arrive at the fork."""

    def sum_and_measure(self, grads: Gradients) -> tuple[list[Tensor | None], Tensor]:
        """The sums, and ||dL_k/dZ||^2 over all levels of Z (the representation gradient of MGDA-UB and IMTL-G)."""
        totals: list[Tensor | None] = []
        squared: Tensor | None = None
        for level in grads:
            arrived = present_of(level)
            if not arrived:
                totals.append(None)
                continue
            if len(arrived) == 1:  # its own sum: no copy
                total, norms = arrived[0], torch.ops.fastmtl.squared_norms(level, len(level))
            else:
                total, norms = torch.ops.fastmtl.sum_norms(level)
            totals.append(total)
            squared = norms if squared is None else squared + norms
        assert squared is not None, "the fork asks only where a gradient arrived"
        return totals, squared


class Features:
    """The features, wherever they come from."""

    def locate(self, features: Sequence[Tensor], before_tail: Sequence[Tensor] | None) -> Probe:
        """Without a tail the gradients arrive at the fork by themselves; through a tail they are carried."""
        if before_tail is None:
            return FeaturesProbe()
        return CarriedProbe(edges_of(features), edges_of(before_tail))
