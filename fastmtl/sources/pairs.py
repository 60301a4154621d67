"""Norms of a layer's weight gradients from pairs of positions, without forming the weight gradients.

The weight gradient of a layer is a sum over positions s (samples, or samples and pixels) of delta_s (x) a_s, with
a_s the layer's input at s (for a convolution its patch) and delta_s the gradient at its output. So

    ||grad_W L_k||^2 = sum_{s,s'} <a_s, a_s'> <delta_ks, delta_ks'>,

and a bias appends 1 to a. The Gram matrix of the inputs is formed once and serves all tasks. For a convolution it
comes from that of single pixels: see `patch_gram`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from fastmtl.ops.layers import Geometry, patch_gram, patch_gram_cost
from fastmtl.sources.base import Gradients, Measured, Probe, sums, widened
from fastmtl.sources.graph import is_bias_of, kept_tensor
from fastmtl.sources.parameters import carry

# The padded copy of the pixels' Gram matrix is made for a part of the samples at a time.
_BLOCKS = 4


@dataclass(frozen=True)
class Linear:
    """One use of a weight as ``input @ weight.T``."""

    node: Node
    weight: Tensor
    bias: bool
    saved: str  # the name under which the node keeps the input

    def _input(self) -> Tensor:
        inputs = kept_tensor(self.node, self.saved)
        assert inputs is not None, "use_of has looked"
        return inputs

    def pays(self, tasks: int) -> bool:
        """Whether pairs need fewer multiply-adds than forming the weight gradients."""
        positions = self._input().shape[0]
        outputs, inputs = self.weight.shape
        return positions * (inputs + tasks * outputs) < tasks * inputs * outputs

    def input_gram(self) -> Tensor:
        """[N, N] inner products of the inputs of N positions."""
        inputs = widened(self._input())
        gram = inputs @ inputs.T
        return gram.add_(1) if self.bias else gram

    @staticmethod
    def by_position(delta: Tensor) -> Tensor:
        """The gradient at the output as [N, outputs]."""
        return widened(delta)


@dataclass(frozen=True)
class Conv2d:
    """One use of a weight in an ungrouped, not transposed 2-d convolution."""

    node: Node
    weight: Tensor
    bias: bool

    def _geometry(self) -> tuple[Tensor, Geometry]:
        node = self.node
        stride, padding, dilation = (
            tuple(getattr(node, f"_saved_{name}")) for name in ("stride", "padding", "dilation")
        )
        inputs = kept_tensor(node, "input")
        assert inputs is not None, "use_of has looked"
        kernel = tuple(self.weight.shape[2:])
        return inputs, Geometry(kernel, stride, tuple((pad, pad) for pad in padding), dilation)

    def pays(self, tasks: int) -> bool:
        """Whether pairs need fewer multiply-adds than forming, and no more memory than the layer's own tensors."""
        inputs, geometry = self._geometry()
        batch, channels, *size = inputs.shape
        outputs, patch = self.weight.shape[0], self.weight[0].numel()
        padded, positions = (math.prod(extents) for extents in (geometry.padded(size), geometry.places(size)))
        pairs = batch**2 * (patch_gram_cost(size, geometry, channels) + tasks * positions**2 * outputs)
        memory = (batch * positions) ** 2 + 3 * batch * padded * padded * -(-batch // max(1, min(batch, _BLOCKS)))
        own = inputs.numel() + batch * positions * outputs + 2 * self.weight.numel()
        return pairs < tasks * batch * positions * patch * outputs and memory <= own

    def input_gram(self) -> Tensor:
        """[N, N] inner products of the patches of N output positions."""
        inputs, geometry = self._geometry()
        batch, channels, *size = inputs.shape
        pixels = widened(inputs).flatten(2).transpose(1, 2)
        positions = batch * math.prod(geometry.places(size))
        gram = pixels.new_empty((positions, positions))
        every = pixels.reshape(-1, channels)
        rows = 0
        for own in pixels.split(-(-batch // _BLOCKS)):
            part = patch_gram(own.reshape(-1, channels), every, size, geometry)
            gram[rows : rows + part.shape[0]] = part
            rows += part.shape[0]
        return gram.add_(1) if self.bias else gram

    @staticmethod
    def by_position(delta: Tensor) -> Tensor:
        """The gradient at the output as [N, outputs]."""
        if delta.stride(1) == 1:  # channels last: a view
            return widened(delta.movedim(1, -1).reshape(-1, delta.shape[1]))
        return widened(delta.transpose(0, 1).reshape(delta.shape[1], -1).T)


LayerUse = Linear | Conv2d


def use_of(node: Any, position: int, weight: Tensor, bias: Tensor | None) -> LayerUse | None:
    """The use of ``weight`` as input ``position`` of ``node``, where pairs of positions can measure it."""
    match node.name(), position:
        case ("AddmmBackward0", 2) if bias is not None and is_bias_of(node, bias):
            plain = node._saved_alpha == node._saved_beta == 1 and kept_tensor(node, "mat1") is not None
            return Linear(node, weight, True, "mat1") if plain else None
        case ("MmBackward0", 1) if bias is None:
            return Linear(node, weight, False, "self") if kept_tensor(node, "self") is not None else None
        case ("ConvolutionBackward0", 1) if weight.dim() == 4:
            plain = not node._saved_transposed and node._saved_groups == 1 and kept_tensor(node, "input") is not None
            return Conv2d(node, weight, bias is not None) if plain else None
    return None


class PairsProbe(Probe):
    """Norms of the weight and bias gradient of one use of a layer."""

    def __init__(self, roots: Sequence[GradientEdge], use: LayerUse):
        self.roots, self.use = roots, use

    def places(self) -> list[Node]:
        """The operation of the layer."""
        return [self.use.node]

    def sum_and_measure(self, grads: Gradients) -> tuple[list[Tensor | None], Measured]:
        """The sums at the fork and the squared norms of the layer's weight and bias gradients."""
        target = [GradientEdge(self.use.node, 0)]
        # A backward may be called inside autocast, which would round the products to half precision.
        full_precision = torch.autocast(self.use.weight.device.type, enabled=False)
        with full_precision:
            gram = self.use.input_gram()
        squared = gram.new_zeros(len(grads[0]))
        for task in range(len(grads[0])):
            (delta,) = carry(self.roots, grads, task, target)
            if delta is not None:
                with full_precision:
                    by_position = self.use.by_position(delta)
                    squared[task] = (gram @ by_position).mul_(by_position).sum()
        return sums(grads), (squared.clamp_min_(0),)
