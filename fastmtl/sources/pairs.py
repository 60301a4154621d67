"""Norms of a layer's weight gradients from pairs of positions, without forming the weight gradients.

The weight gradient of a layer is a sum over positions s (samples, or samples and pixels) of delta_s (x) a_s, with
a_s the layer's input at s (for a convolution its patch) and delta_s the gradient at its output. So

    ||grad_W L_k||^2 = sum_{s,s'} <a_s, a_s'> <delta_ks, delta_ks'>,

and a bias appends 1 to a. The Gram matrix of the inputs is formed once and serves all tasks. For a convolution it
comes from the Gram matrix of single pixels, added up over the kernel's offsets: kernel-size times fewer products
than with patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node
from torch.nn import functional as F

from fastmtl.backends.contract import statistics_dtype
from fastmtl.sources.base import Gradients, Measured, sums
from fastmtl.sources.graph import kept_tensor
from fastmtl.sources.parameters import carry

# Shifting and adding one number of the Gram matrix costs about as much as this many multiply-adds of a matrix product.
_SHIFT_COST = 16
# The padded copy of the pixels' Gram matrix is made for a part of the samples at a time.
_BLOCKS = 4


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(statistics_dtype(tensor))


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
        inputs = _wide(self._input())
        gram = inputs @ inputs.T
        return gram.add_(1) if self.bias else gram

    @staticmethod
    def by_position(delta: Tensor) -> Tensor:
        """The gradient at the output as [N, outputs]."""
        return _wide(delta)


@dataclass(frozen=True)
class Conv2d:
    """One use of a weight in an ungrouped, not transposed 2-d convolution."""

    node: Node
    weight: Tensor
    bias: bool

    def _geometry(self) -> tuple[Tensor, list[int], list[int], list[int], list[int]]:
        node = self.node
        stride, padding, dilation = (
            list(getattr(node, f"_saved_{name}")) for name in ("stride", "padding", "dilation")
        )
        inputs = kept_tensor(node, "input")
        assert inputs is not None, "use_of has looked"
        out = [
            (size + 2 * pad - dil * (kernel - 1) - 1) // step + 1
            for size, pad, dil, kernel, step in zip(
                inputs.shape[2:], padding, dilation, self.weight.shape[2:], stride, strict=True
            )
        ]
        return inputs, stride, padding, dilation, out

    def pays(self, tasks: int) -> bool:
        """Whether pairs need fewer multiply-adds than forming, and no more memory than the layer's own tensors."""
        inputs, _, padding, _, (height, width) = self._geometry()
        batch, channels, *size = inputs.shape
        outputs, patch = self.weight.shape[0], self.weight[0].numel()
        pixels, positions = batch * size[0] * size[1], batch * height * width
        padded = batch * (size[0] + 2 * padding[0]) * (size[1] + 2 * padding[1])
        shifts = _SHIFT_COST * sum(self.weight.shape[2:]) * padded**2
        pairs = pixels**2 * channels + shifts + tasks * positions**2 * outputs
        memory = positions**2 + 3 * padded * -(-padded // min(batch, _BLOCKS))
        own = inputs.numel() + positions * outputs + 2 * self.weight.numel()
        return pairs < tasks * positions * patch * outputs and memory <= own

    def input_gram(self) -> Tensor:
        """[N, N] inner products of the patches of N output positions."""
        inputs, stride, padding, dilation, (height, width) = self._geometry()
        batch, channels, rows, columns = inputs.shape
        pixels = _wide(inputs).transpose(0, 1).reshape(channels, -1)
        pad_y, pad_x = padding
        tall, wide = rows + 2 * pad_y, columns + 2 * pad_x
        steps = [(dilation[0] * wide, self.weight.shape[2]), (dilation[1], self.weight.shape[3])]
        gram = pixels.new_empty((batch, height * width, batch * height * width))
        block = -(-batch // _BLOCKS)
        for first in range(0, batch, block):
            count = min(block, batch - first)
            own = pixels.view(channels, batch, -1)[:, first : first + count].reshape(channels, -1)
            products = (own.T @ pixels).view(count, rows, columns, batch, rows, columns)
            products = F.pad(products, (pad_x, pad_x, pad_y, pad_y, 0, 0, pad_x, pad_x, pad_y, pad_y))
            added = products.view(count * tall * wide, batch * tall * wide)
            for shift, times in steps:  # along the diagonal: both positions of a pair move by the same offset
                added = _add_shifted(added, shift, times)
            added = added.view(count, tall, wide, batch, tall, wide)
            y, x = (slice(0, (size - 1) * step + 1, step) for size, step in zip((height, width), stride, strict=True))
            gram[first : first + count] = added[:, y, x, :, y, x].reshape(count, height * width, -1)
        gram = gram.view(batch * height * width, -1)
        return gram.add_(1) if self.bias else gram

    @staticmethod
    def by_position(delta: Tensor) -> Tensor:
        """The gradient at the output as [N, outputs]."""
        if delta.stride(1) == 1:  # channels last: a view
            return _wide(delta.movedim(1, -1).reshape(-1, delta.shape[1]))
        return _wide(delta.transpose(0, 1).reshape(delta.shape[1], -1).T)


def _add_shifted(gram: Tensor, shift: int, times: int) -> Tensor:
    """sum_i gram[s + i * shift, s' + i * shift]; what lies beyond the end counts as zero."""
    result = gram.clone() if times > 1 else gram
    for i in range(1, times):
        offset = i * shift
        result[:-offset, :-offset] += gram[offset:, offset:]
    return result


LayerUse = Linear | Conv2d


def use_of(node: Node, position: int, weight: Tensor, bias: bool) -> LayerUse | None:
    """The use of ``weight`` as input ``position`` of ``node``, where pairs of positions can measure it."""
    match node.name(), position, bias:
        case ("AddmmBackward0", 2, True) | ("MmBackward0", 1, False):
            saved = "mat1" if bias else "self"
            return Linear(node, weight, bias, saved) if kept_tensor(node, saved) is not None else None
        case ("ConvolutionBackward0", 1, _) if weight.dim() == 4:
            plain = not node._saved_transposed and node._saved_groups == 1  # type: ignore[attr-defined]
            return Conv2d(node, weight, bias) if plain and kept_tensor(node, "input") is not None else None
    return None


class PairsProbe:
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
