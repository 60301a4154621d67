"""Layers as the source: weight and bias together; for GradNorm one, the last shared layer, is the paper's choice."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node
from torch.nn.utils.parametrize import is_parametrized

from fastmtl.backends.contract import present_of
from fastmtl.sources import pairs, uses
from fastmtl.sources.base import Gradients, Measured, Probe, Statistics, add_up, sums
from fastmtl.sources.graph import edges_of
from fastmtl.sources.parameters import CarriedProbe, Parameters, carry


class MomentsProbe:
    """M and Q of the parameters of several layers, from the inputs of the layers and the gradients at their outputs."""

    def __init__(self, roots: Sequence[GradientEdge], layers: Sequence[uses.LayerUse]):
        self.roots, self.layers = roots, layers

    def places(self) -> list[Node]:
        """The operations of the layers."""
        return [layer.output.node for layer in self.layers]

    def sum_and_measure(self, grads: Gradients) -> tuple[list[Tensor | None], Measured]:
        """The sums at the fork and the moments, all layers together."""
        tasks = range(len(grads[0]))
        carried = [carry(self.roots, grads, task, [layer.output for layer in self.layers]) for task in tasks]
        device = next(grad.device for level in grads for grad in level if grad is not None)
        # A backward may be called inside autocast, which would round the products to half precision.
        with torch.autocast(device.type, enabled=False):
            measured = [
                layer.moments(deltas)
                for layer, deltas in zip(self.layers, zip(*carried, strict=True), strict=True)
                if present_of(deltas)
            ]
        nothing = torch.zeros((len(tasks), len(tasks)), device=device)
        return sums(grads), add_up(measured) if measured else (nothing, nothing)


class Layers:
    """The weights and biases of modules, between the inputs and the fork.

    For norms a single linear layer or 2-d convolution that is used once is measured from pairs of positions where
    that is cheaper than to form its weight gradient for each task; all else is formed by autograd.
    """

    def __init__(self, modules: Sequence[nn.Module], tasks: int, statistics: Statistics):
        for module in modules:
            if not list(module.parameters(recurse=False)) or is_parametrized(module):
                raise ValueError(
                    "source: expected a layer with parameters of its own (nn.Linear, nn.Conv2d, ...; of a parametrised layer or "
                    f"a block give the parameters themselves, as a list), got {module}"
                )
        own = [parameter for module in modules for parameter in module.parameters(recurse=False)]
        if len(set(map(id, own))) != len(own):
            raise ValueError("source: expected different layers, got one twice, or layers that share a parameter")
        self._modules, self._tasks, self._statistics = list(modules), tasks, statistics
        self._parameters = Parameters(own, "norms" if statistics == "moments" else statistics)

    def locate(self, features: Sequence[Tensor], before_tail: Sequence[Tensor] | None) -> Probe:
        """Find the layers in the graph behind ``features``."""
        roots, trained, found = self._parameters.find(features)
        if self._statistics == "moments":
            return MomentsProbe(roots, self._uses(trained, found, features[0].shape[0]))
        if self._statistics == "norms" and len(trained) == len(self._parameters.parameters):
            use = self._pairs(trained, found)
            if use is not None and use.pays(self._tasks):
                return pairs.PairsProbe(roots, use)
        return CarriedProbe(roots, edges_of(trained), self._statistics)

    def _uses(
        self, trained: Sequence[Tensor], found: Sequence[list[tuple[Node, int]]], batch: int
    ) -> list[uses.LayerUse]:
        users = list(zip(trained, found, strict=True))
        layers = []
        for module in self._modules:
            own = {id(parameter) for parameter in module.parameters(recurse=False)}
            layers.append(uses.use_of(module, [user for user in users if id(user[0]) in own], batch))
        return layers

    def _pairs(self, trained: Sequence[Tensor], found: Sequence[list[tuple[Node, int]]]) -> pairs.LayerUse | None:
        nodes = {node for users in found for node, _ in users}
        if len(self._modules) != 1 or len(nodes) != 1 or any(len(users) != 1 for users in found):
            return None
        ((node, position),) = found[0]
        return pairs.use_of(node, position, trained[0], len(trained) == 2)
