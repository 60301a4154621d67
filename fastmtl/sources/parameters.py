"""Parameters, or an inner tensor, as the source: each task's gradient is carried there inside the backward of the fork.

The gradients that arrive at the fork are carried through the shared operations before it (norm, ReLU, residual) by
nested calls of autograd, one per task, that visit only the nodes between the fork and the source.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from fastmtl.backends.contract import present_of
from fastmtl.sources.base import Gradients, Probe, sums
from fastmtl.sources.graph import edges_of, users


def carry(
    roots: Sequence[GradientEdge], grads: Gradients, task: int, targets: Sequence[GradientEdge]
) -> tuple[Tensor | None, ...]:
    """One task's gradients at ``targets``, from its gradients at ``roots``; None where none arrives."""
    arrived = [(root, level[task]) for root, level in zip(roots, grads, strict=True) if level[task] is not None]
    if not arrived:
        return (None,) * len(targets)
    outputs, grad_outputs = zip(*arrived, strict=True)
    return torch.autograd.grad(outputs, targets, grad_outputs, retain_graph=True, allow_unused=True)


class CarriedProbe:
    """Norms of the tasks' gradients at edges of the graph, formed by autograd itself."""

    def __init__(self, roots: Sequence[GradientEdge], targets: Sequence[GradientEdge]):
        self.roots, self.targets = roots, targets

    def sum_and_measure(self, grads: Gradients) -> tuple[list[Tensor | None], Tensor]:
        """The sums at the fork and the squared norms at the targets, all targets together."""
        device = next(grad.device for level in grads for grad in level if grad is not None)
        squared = []
        for task in range(len(grads[0])):  # one task at a time: T gradients of the parameters need not exist at once
            carried = carry(self.roots, grads, task, self.targets)
            if present_of(carried):
                squared.append(torch.ops.fastmtl.squared_norms(carried, 1))
            else:
                squared.append(torch.zeros(1, device=device))
        return sums(grads), torch.cat(squared)


class Parameters:
    """Any list of shared parameters, taken together as one vector."""

    def __init__(self, parameters: Sequence[Tensor], argument: str = "source"):
        self.parameters = list(parameters)
        if not self.parameters:
            raise ValueError(f"{argument}: expected at least one parameter, got none")
        for index, parameter in enumerate(self.parameters):
            if not isinstance(parameter, Tensor) or not parameter.is_leaf:
                raise TypeError(
                    f"{argument}[{index}]: expected a parameter (a leaf tensor), got {type(parameter).__name__}"
                )

    def find(self, features: Sequence[Tensor]) -> tuple[list[GradientEdge], list[Tensor], list[list[tuple[Node, int]]]]:
        """The roots of the graph behind ``features``, the parameters that are trained, and the operations that use each.

        Raises:
            ValueError: no parameter is trained, or none took part in computing ``features``.
        """
        if torch.compiler.is_compiling():
            raise RuntimeError("source: expected 'features' in a compiled step, where inner gradients are out of reach")
        trained = [parameter for parameter in self.parameters if parameter.requires_grad]
        if not trained:
            raise ValueError("source: none of its parameters requires grad")
        roots = edges_of(features)
        found = users(roots, trained)
        if not any(found):
            raise ValueError(
                "source: its parameters took no part in computing `features`. Was the model copied after the balancer was "
                "made, or is the layer used after the fork? In a compiled model use source='features' or fork(..., tail=)"
            )
        return roots, trained, found

    def locate(self, features: Sequence[Tensor], before_tail: Sequence[Tensor] | None) -> Probe:
        """Find the parameters in the graph behind ``features``."""
        roots, trained, _ = self.find(features)
        return CarriedProbe(roots, edges_of(trained))
