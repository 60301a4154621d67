"""Convolutions and transposed convolutions: [B, C_in, *size] and T times [B, C_out, *out]."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from fastmtl.backends.contract import present_of, statistics_dtype
from fastmtl.backends.layer_moments.factors import Block, Factors, Operands, Sizes, joined, memory_of
from fastmtl.backends.layer_moments.patches import (
    Geometry,
    joined_patches,
    pad,
    patch_gram,
    patch_gram_cost,
    patch_gram_memory,
    patches,
    pixels,
)
from fastmtl.backends.layer_moments.primitives import Gradients


@dataclass(frozen=True, kw_only=True)
class _SizesByPixels(Sizes):
    """Of a convolution whose patches' products are sums of products of pixels, see `patch_gram`."""

    by_pixels: int  # multiply-adds for the patches of two samples, one group
    pixels: int  # numbers of one image
    held: int  # numbers while the products of two samples are formed, one group

    def square_cost(self) -> int:
        """Multiply-adds of the products of the inputs of two samples."""
        return self.groups * self.by_pixels

    def inputs_memory(self) -> int:
        """Numbers held for each sample to form products of inputs: pixels, not patches."""
        return self.pixels

    def square_memory(self) -> int:
        """Numbers held while the products of the inputs of two samples are formed."""
        return self.groups * self.held


class ConvFactors(Factors):
    """A convolution is a linear layer whose inputs are patches; the gradients are those of the output pixels."""

    def __init__(self, inputs: Tensor, grads: Gradients, geometry: Geometry, mode: str, groups: int, bias: bool):
        like = present_of(grads)[0]
        self.device = inputs.device
        self._inputs, self._grads, self.bias, self.dtype = inputs, grads, bias, statistics_dtype(like)
        self._geometry, self._mode = geometry, mode
        self._places = tuple(like.shape[2:])
        inner, outputs = inputs.shape[1] // groups * geometry.area, like.shape[1]
        self.sizes = Sizes(
            batch=inputs.shape[0],
            groups=groups,
            positions=math.prod(self._places),
            inputs=inner,
            outputs=outputs // groups,
            tasks=len(grads),
            memory=memory_of(inputs.numel() + like.numel() + inner * outputs),
        )
        # Products of pixels need zeros around them: other paddings come first.
        padded_first = mode != "zeros"
        self._size = geometry.padded(inputs.shape[2:]) if padded_first else tuple(inputs.shape[2:])
        self._rest = geometry.without_padding() if padded_first else geometry
        by_pixels = patch_gram_cost(self._size, self._rest, inputs.shape[1] // groups)
        self._by_pixels = by_pixels < self.sizes.positions**2 * inner
        if self._by_pixels:
            self.sizes = _SizesByPixels(
                **vars(self.sizes),
                by_pixels=by_pixels,
                pixels=math.prod(self._size) * inputs.shape[1],
                held=patch_gram_memory(self._size, self._rest),
            )

    def operands(self) -> Operands:
        """The images, padded where it is not with zeros."""
        padded = pad(self._inputs, self._geometry, self._mode) if self._mode != "zeros" else self._inputs
        return Operands(padded, self._grads, self._rest, self.sizes.groups, self.bias)

    def _images(self, block: Block) -> Tensor:
        return block.of(self._inputs).to(self.dtype)

    def inputs(self, block: Block) -> Tensor:
        """[b, groups, output pixels, C_in / groups * kernel elements]."""
        padded = pad(self._images(block), self._geometry, self._mode)
        return patches(padded, self._geometry, self.sizes.groups, self._places)

    def joined_inputs(self, block: Block) -> Tensor:
        """[groups, b * output pixels, C_in / groups * kernel elements]."""
        padded = pad(self._images(block), self._geometry, self._mode)
        return joined_patches(padded, self._geometry, self.sizes.groups, self._places)

    def grad(self, task: int, block: Block) -> Tensor | None:
        """[b, groups, output pixels, C_out / groups]."""
        grad = self._grads[task]
        return None if grad is None else pixels(block.of(grad), self.sizes.groups)

    def _pixels(self, block: Block) -> Tensor:
        images = self._images(block)
        return pixels(pad(images, self._geometry, self._mode) if self._mode != "zeros" else images, self.sizes.groups)

    def sample_input_gram(self, block: Block) -> Tensor:
        """[b, groups, output pixels, output pixels]."""
        if not self._by_pixels:
            return super().sample_input_gram(block)
        own = self._pixels(block)
        return self.with_bias(patch_gram(own, own, self._size, self._rest))

    def input_gram(self, left: Block, right: Block) -> Tensor:
        """[groups, output pixels of left, output pixels of right]."""
        if not self._by_pixels:
            return super().input_gram(left, right)
        rows, columns = (joined(self._pixels(block)) for block in (left, right))
        return self.with_bias(patch_gram(rows, columns, self._size, self._rest))


class TransposedConvFactors(Factors):
    """The roles change: patches of the gradients meet the pixels of the input. The bias is not part of the products."""

    bias = False

    def __init__(self, inputs: Tensor, grads: Gradients, geometry: Geometry, groups: int):
        like = present_of(grads)[0]
        self.device = inputs.device
        self._inputs, self._grads, self.dtype = inputs, grads, statistics_dtype(like)
        self._geometry = geometry
        self._places = tuple(inputs.shape[2:])  # output_padding may leave room for more
        outputs = like.shape[1] * geometry.area
        self.sizes = Sizes(
            batch=inputs.shape[0],
            groups=groups,
            positions=math.prod(self._places),
            inputs=inputs.shape[1] // groups,
            outputs=outputs // groups,
            tasks=len(grads),
            memory=memory_of(inputs.numel() + like.numel() + inputs.shape[1] // groups * outputs),
            copies=True,
        )

    def inputs(self, block: Block) -> Tensor:
        """[b, groups, input pixels, C_in / groups]."""
        return pixels(block.of(self._inputs).to(self.dtype), self.sizes.groups)

    def grad(self, task: int, block: Block) -> Tensor | None:
        """[b, groups, input pixels, C_out / groups * kernel elements]."""
        grad = self._grads[task]
        if grad is None:
            return None
        padded = pad(block.of(grad), self._geometry, "zeros")
        return patches(padded, self._geometry, self.sizes.groups, self._places)
