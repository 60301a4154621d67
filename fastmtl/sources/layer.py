"""Layers as the source: weight and bias together; for GradNorm one, the last shared layer, is the paper's choice."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node
from torch.nn.utils.parametrize import is_parametrized

from fastmtl.backends.contract import present_of
from fastmtl.sources import pairs, uses
from fastmtl.sources.base import Gradients, Measured, Probe, Statistics, add_up, nothing, sums
from fastmtl.sources.graph import edges_of, mixes_samples, nodes_between
from fastmtl.sources.parameters import CarriedProbe, Parameters, carry


class MomentsProbe(Probe):
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
        measured = [
            layer.moments(deltas)
            for layer, deltas in zip(self.layers, zip(*carried, strict=True), strict=True)
            if present_of(deltas)
        ]
        return sums(grads), add_up(measured) if measured else nothing("moments", len(tasks), device)


class Layers:
    """The weights and biases of modules, between the inputs and the fork.

    For norms a single linear layer or 2-d convolution that is used once is measured from pairs of positions where
    that is cheaper than to form its weight gradient for each task; all else is formed by autograd.
    """

    def __init__(self, modules: Sequence[nn.Module], tasks: int, statistics: Statistics):
        instead = "layers themselves" if statistics == "moments" else "layers or the parameters themselves"
        for module in modules:
            count = len(list(module.parameters(recurse=False)))
            if not count or count != len(list(module.parameters())) or is_parametrized(module):
                raise ValueError(
                    "source: expected a layer with parameters of its own and no others inside (nn.Linear, nn.Conv2d, ...; of a "
                    f"block or a parametrised layer give the {instead}, as a list), got {type(module).__name__}"
                )
        own = [parameter for module in modules for parameter in module.parameters(recurse=False)]
        if len(set(map(id, own))) != len(own):
            raise ValueError("source: expected different layers, got one twice, or layers that share a parameter")
        self._modules, self._tasks, self._statistics = list(modules), tasks, statistics
        self._parameters = Parameters(own, "norms" if statistics == "moments" else statistics)
        self._knows_samples = False

    def locate(self, features: Sequence[Tensor], before_tail: Sequence[Tensor] | None) -> Probe:
        """Find the layers in the graph behind ``features``."""
        roots, trained, found = self._parameters.find(features)
        if self._statistics == "moments":
            layers = self._uses(trained, found, features[0].shape[0])
            self._check_samples(roots, features, layers)
            return MomentsProbe(roots, layers)
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
        return pairs.use_of(node, position, trained[0], trained[1] if len(trained) == 2 else None)

    def _check_samples(
        self, roots: Sequence[GradientEdge], features: Sequence[Tensor], layers: Sequence[uses.LayerUse]
    ) -> None:
        """Once, by one small backward: the features of a sample come from that sample's positions in the layers alone.

        Shapes cannot tell samples from positions where there are as many of both. This is the one place that reads a value
        on the host, in the first measured step.

        Raises:
            ValueError: they come from others' positions too.
        """
        if self._knows_samples:
            return
        batch, outputs = features[0].shape[0], [layer.output for layer in layers]
        first = [torch.zeros_like(level) for level in features]
        for level in first:
            level[0].normal_(generator=torch.Generator(level.device).manual_seed(0))
        reached = carry(roots, [[level] for level in first], 0, outputs)
        for module, delta in zip(self._modules, reached, strict=True):
            if delta is None:
                continue
            others = delta.unflatten(0, (batch, -1))[1:]
            if not bool(others.isfinite().all()):
                return  # nothing to see in this step: look again in the next
            if bool((others != 0).any()) and not any(
                map(mixes_samples, nodes_between(roots, [o.node for o in outputs]))
            ):
                raise ValueError(
                    f"source: the features of one sample depend on several samples of {type(module).__name__}'s input. Expected "
                    "an input whose first dimension is that of the samples, or that has each sample's positions next to each "
                    "other. (nn.MultiheadAttention works sequence first inside, whatever batch_first says: measure at another "
                    "layer)"
                )
        self._knows_samples = True
