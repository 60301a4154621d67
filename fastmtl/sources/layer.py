"""One layer as the source: its weight and bias together, the paper's choice for GradNorm (the last shared layer)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from fastmtl.sources.base import Probe
from fastmtl.sources.parameters import Parameters


class Layer:
    """The weight and bias of one module."""

    def __init__(self, module: nn.Module):
        own = list(module.parameters(recurse=False))
        if not own:
            raise ValueError(
                f"source: expected a layer with parameters of its own (nn.Linear, nn.Conv2d, ...), got {module}"
            )
        self._parameters = Parameters(own)

    def locate(self, features: Sequence[Tensor], before_tail: Sequence[Tensor] | None) -> Probe:
        """Find the layer in the graph behind ``features``."""
        return self._parameters.locate(features, before_tail)
