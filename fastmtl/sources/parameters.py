"""Parameters, or an inner tensor, as the source: each task's gradient is carried there inside the backward of the fork.

The gradients that arrive at the fork are carried through the shared operations before it (norm, ReLU, residual) by
nested calls of autograd, one per task, that visit only the nodes between the fork and the source.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from fastmtl.backends.contract import present_of
from fastmtl.sources.base import Gradients, Measured, Probe, Statistics, sums
from fastmtl.sources.graph import edges_of, users


def carry(
    roots: Sequence[GradientEdge], grads: Gradients, task: int, targets: Sequence[GradientEdge]
) -> tuple[Tensor | None, ...]:
    """One task's gradients at ``targets``, from its gradients at ``roots``; None where none arrives."""
    arrived = [(root, level[task]) for root, level in zip(roots, grads, strict=True) if level[task] is not None]
    if not arrived:
        return (None,) * len(targets)
    outputs, grad_outputs = zip(*arrived, strict=True)
    # One that is sparse would have met another task's, and become dense, before the operations behind the fork.
    grad_outputs = tuple(grad if grad.layout is torch.strided else grad.to_dense() for grad in grad_outputs)
    return torch.autograd.grad(outputs, targets, grad_outputs, retain_graph=True, allow_unused=True)


def squared_norms_of(gradients: Iterable[Sequence[Tensor | None]], device: torch.device) -> Tensor:
    """[T] squared norms of T gradients, each a list of N tensors, of which only one need exist at a time."""
    zero = torch.zeros(1, dtype=torch.float32, device=device)
    return torch.cat([torch.ops.fastmtl.squared_norms(g, 1) if present_of(g) else zero for g in gradients])


def gram_of(gradients: Iterable[Sequence[Tensor | None]], device: torch.device) -> Tensor:
    """[T, T] inner products of T gradients, each a list of N tensors."""
    lists = list(gradients)
    flat = [tensor for tensors in lists for tensor in tensors]
    if not present_of(flat):
        return torch.zeros((len(lists), len(lists)), dtype=torch.float32, device=device)
    return torch.ops.fastmtl.gram(flat, len(lists))


class CarriedProbe(Probe):
    """Norms or Gram matrix of the tasks' gradients at edges of the graph, formed by autograd itself."""

    def __init__(self, roots: Sequence[GradientEdge], targets: Sequence[GradientEdge], statistics: Statistics):
        self.roots, self.targets = roots, targets
        self.measure = squared_norms_of if statistics == "norms" else gram_of

    def places(self) -> list[Node]:
        """Where the gradients are carried."""
        return [edge.node for edge in self.targets]

    def sum_and_measure(self, grads: Gradients) -> tuple[list[Tensor | None], Measured]:
        """The sums at the fork and the statistics at the targets, all targets together."""
        device = next(grad.device for level in grads for grad in level if grad is not None)
        carried = (carry(self.roots, grads, task, self.targets) for task in range(len(grads[0])))
        measured = self.measure(carried, device)
        return sums(grads), (measured,)


class Parameters:
    """Any list of shared parameters, taken together as one vector."""

    def __init__(self, parameters: Sequence[Tensor], statistics: Statistics, argument: str = "source"):
        module = isinstance(parameters, torch.nn.Module) and not isinstance(parameters, torch.nn.ParameterList)
        if module or isinstance(parameters, Tensor) or not isinstance(parameters, Iterable):
            raise TypeError(f"{argument}: expected a list of parameters, got {type(parameters).__name__}")
        self.parameters = list(parameters)
        self.statistics = statistics
        if statistics == "moments":
            raise ValueError(
                f"{argument}: per-sample gradients are measured at 'features' or at layers (modules), not at parameters. Give "
                "the layer, or use what needs the task gradients alone (MaxGNR's objective='intertask')"
            )
        if not self.parameters:
            raise ValueError(f"{argument}: expected at least one parameter, got none")
        for index, parameter in enumerate(self.parameters):
            if not isinstance(parameter, Tensor) or not parameter.is_leaf:
                raise TypeError(
                    f"{argument}[{index}]: expected a parameter (a leaf tensor), got {type(parameter).__name__}"
                )

        if len(set(map(id, self.parameters))) != len(self.parameters):
            raise ValueError(f"{argument}: expected different parameters, got one twice")

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
        return CarriedProbe(roots, edges_of(trained), self.statistics)
