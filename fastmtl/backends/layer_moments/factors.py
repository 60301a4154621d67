"""A layer as a sum of outer products: c_kb = sum_s delta_kbs (x) a_bs, over positions s and in groups.

Positions are tokens, pixels or just the sample; a group has its own inputs and outputs, and its part of the weight.
Inputs are [B, groups, positions, inputs], gradients [B, groups, positions, outputs]: given for a range of samples
at a time, so that what has to be copied (patches, wider dtypes) stays small.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from fastmtl.backends.layer_moments.patches import Geometry
from fastmtl.backends.layer_moments.primitives import Gradients


@dataclass(frozen=True)
class Block:
    """A range of samples."""

    first: int
    last: int

    @property
    def samples(self) -> int:
        """How many."""
        return self.last - self.first

    def of(self, tensor: Tensor) -> Tensor:
        """These samples of a tensor."""
        return tensor if self.samples == tensor.shape[0] else tensor.narrow(0, self.first, self.samples)


def blocks(batch: int, size: int, first: int = 0) -> list[Block]:
    """The samples from ``first`` on in blocks of at most ``size``, of nearly equal size."""
    length = batch - first
    count = -(-length // max(1, min(size, length)))
    return [Block(first + length * i // count, first + length * (i + 1) // count) for i in range(count)]


@dataclass(frozen=True)
class Sizes:
    """What costs depend on, and the costs themselves. ``memory``: how many numbers may be held beyond what was given."""

    batch: int
    groups: int
    positions: int
    inputs: int
    outputs: int
    tasks: int
    memory: int
    copies: bool = False  # whether gradients are not views: those of all tasks are then held

    def square_cost(self) -> int:
        """Multiply-adds of the products of the inputs of two samples."""
        return self.groups * self.positions**2 * self.inputs

    def form_cost(self) -> int:
        """Multiply-adds of forming one task's gradient of one sample."""
        return self.groups * self.positions * self.inputs * self.outputs

    def formed(self) -> int:
        """Elements of one task's formed gradient."""
        return self.groups * self.inputs * self.outputs

    def grads_memory(self) -> int:
        """Numbers held for each sample beside the products of inputs: gradients that are copies, and one product."""
        return self.groups * self.positions * self.outputs * (2 + (self.tasks if self.copies else 0))

    def inputs_memory(self) -> int:
        """Numbers held for each sample to form products of inputs."""
        return self.groups * self.positions * self.inputs

    def square_memory(self) -> int:
        """Numbers held while the products of the inputs of two samples are formed."""
        return self.groups * self.positions**2


# Small layers need not be cut: some pages of memory are always there.
LEAST_MEMORY = 1 << 20


def memory_of(layer: int) -> int:
    """How many numbers may be held: as many as the layer itself has, its activations and one weight gradient."""
    return max(layer, LEAST_MEMORY)


@dataclass(frozen=True)
class Operands:
    """What a layer's products are made of, seen as a convolution with zeros around it: for backends that unfold it."""

    inputs: Tensor  # [B, channels, *size]
    grads: Gradients  # [B, outputs, *places]
    geometry: Geometry
    groups: int
    bias: bool


class Factors(ABC):
    """The inputs and the gradients of a layer, by blocks of samples; the numbers are ``dtype`` where products are formed."""

    sizes: Sizes
    dtype: torch.dtype
    device: torch.device
    bias: bool  # whether a constant input 1 belongs to every position

    @abstractmethod
    def inputs(self, block: Block) -> Tensor:
        """[b, groups, positions, inputs], in ``dtype``."""

    @abstractmethod
    def grad(self, task: int, block: Block) -> Tensor | None:
        """[b, groups, positions, outputs], in whatever dtype it has; None where it did not arrive."""

    def joined_inputs(self, block: Block) -> Tensor:
        """The same as [groups, b * positions, inputs]."""
        return joined(self.inputs(block))

    def sample_input_gram(self, block: Block) -> Tensor:
        """[b, groups, positions, positions]: inner products of the inputs of each sample, the constant input included."""
        inputs = self.inputs(block)
        return self.with_bias(inputs @ inputs.transpose(-1, -2))

    def input_gram(self, left: Block, right: Block) -> Tensor:
        """[groups, left, right]: inner products of the inputs at all positions of the two blocks, as above."""
        rows, columns = (self.joined_inputs(block) for block in (left, right))
        return self.with_bias(rows @ columns.transpose(-1, -2))

    def with_bias(self, gram: Tensor) -> Tensor:
        """``gram`` with the product of the constant inputs added, in place."""
        return gram.add_(1) if self.bias else gram

    def grads(self, block: Block) -> Gradients:
        """The gradients of all tasks."""
        return [self.grad(task, block) for task in range(self.sizes.tasks)]


def joined(tensor: Tensor) -> Tensor:
    """[b, groups, positions, f] as [groups, b * positions, f]; positions stay innermost in memory where they are."""
    if tensor.shape[2] == 1 or tensor.stride(-1) == 1 or tensor.stride(-2) != 1:
        return tensor.transpose(0, 1).flatten(1, 2)
    return tensor.permute(1, 3, 0, 2).flatten(2).transpose(-1, -2)


def parted(tensor: Tensor, samples: int) -> Tensor:
    """The inverse of `joined`."""
    return tensor.unflatten(1, (samples, tensor.shape[1] // samples)).transpose(0, 1)


def times(gram: Tensor, factor: Tensor) -> Tensor:
    """``gram @ factor``, laid out in memory as ``factor`` is, so that both can be read side by side."""
    if factor.stride(-1) == 1 or factor.stride(-2) != 1:
        return gram @ factor
    return (factor.transpose(-1, -2) @ gram.transpose(-1, -2)).transpose(-1, -2)
