"""One layer as the source: its weight and bias together, the paper's choice for GradNorm (the last shared layer)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from fastmtl.sources.base import Probe
from fastmtl.sources.graph import edges_of
from fastmtl.sources.pairs import PairsProbe, use_of
from fastmtl.sources.parameters import CarriedProbe, Parameters


class Layer:
    """The weight and bias of one module, however often it is used between the inputs and the fork.

    A linear layer or 2-d convolution that is used once is measured from pairs of positions where that is cheaper
    than to form its weight gradient for each task.
    """

    def __init__(self, module: nn.Module, tasks: int):
        own = list(module.parameters(recurse=False))
        if not own or is_parametrized(module):
            raise ValueError(
                "source: expected a layer with parameters of its own (nn.Linear, nn.Conv2d, ...; of a parametrised layer or a "
                f"block give the parameters themselves, as a list), got {module}"
            )
        self._parameters = Parameters(own)
        self._tasks = tasks

    def locate(self, features: Sequence[Tensor], before_tail: Sequence[Tensor] | None) -> Probe:
        """Find the layer in the graph behind ``features``."""
        roots, trained, found = self._parameters.find(features)
        nodes = {node for uses in found for node, _ in uses}
        if (
            len(nodes) == 1
            and all(len(uses) == 1 for uses in found)
            and len(trained) == len(self._parameters.parameters)
        ):
            ((node, position),) = found[0]
            use = use_of(node, position, trained[0], len(trained) == 2)
            if use is not None and use.pays(self._tasks):
                return PairsProbe(roots, use)
        return CarriedProbe(roots, edges_of(trained))
