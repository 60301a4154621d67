"""Moments of a layer's weight and bias gradients from its inputs and the gradients at its output: the algorithms.

They are written once, on torch's matrix products and on primitives that each backend supplies. A weight gradient is a
sum of outer products over positions (samples, tokens, pixels): `factors`, and what the layers make of it in `linear`,
`conv` and `embedding`; `products` computes with any of them, and `cost` decides how.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastmtl.backends.contract import present_of, statistics_dtype
from fastmtl.backends.layer_moments.conv import ConvFactors, TransposedConvFactors
from fastmtl.backends.layer_moments.embedding import EmbeddingFactors
from fastmtl.backends.layer_moments.factors import LEAST_MEMORY, Block, Factors, blocks
from fastmtl.backends.layer_moments.linear import LinearFactors, rows_moments
from fastmtl.backends.layer_moments.patches import Geometry
from fastmtl.backends.layer_moments.primitives import Costs, Gradients, Primitives
from fastmtl.backends.layer_moments.products import Forming, by_forming, by_summing, moments

__all__ = ["Costs", "LayerMoments", "Primitives"]

Moments = tuple[Tensor, Tensor]


def _nothing(grads: Gradients, per_sample: bool) -> Moments | None:
    """The moments of gradients without elements."""
    like = present_of(grads)[0]
    if like.numel() > 0:
        return None
    M, Q = (like.new_zeros((len(grads), len(grads)), dtype=statistics_dtype(like)) for _ in range(2))
    return M, Q if per_sample else Q.fill_(torch.nan)


class LayerMoments:
    """The ops on layers, for one backend."""

    def __init__(self, primitives: Primitives):
        self.primitives = primitives

    def linear_moments(self, input: Tensor, grads: Gradients, bias: bool, per_sample: bool, way: str) -> Moments:
        """M and Q of the weight and bias of a linear layer."""
        nothing = _nothing(grads, per_sample)
        if nothing is not None:
            return nothing
        single = math.prod(input.shape[1:-1]) == 1
        if single and self.primitives.rows_linear is not None:
            return rows_moments(self.primitives, input, grads, bias, per_sample, way)
        factors = LinearFactors(input, grads, bias)
        if not single:
            return self._of_factors(factors, way, per_sample)
        form = functools.partial(factors.form_of_single_positions, self.primitives)
        return self._of_factors(factors, way, per_sample, form)

    def conv_moments(
        self,
        input: Tensor,
        grads: Gradients,
        kernel_size: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
        transposed: bool,
        padding_mode: str,
        bias: bool,
        per_sample: bool,
        way: str,
    ) -> Moments:
        """M and Q of the weight and bias of a convolution; ``padding`` is (before, after) of each dimension in turn."""
        nothing = _nothing(grads, per_sample)
        if nothing is not None:
            return nothing
        pads = tuple(zip(padding[::2], padding[1::2], strict=True))
        geometry = Geometry(tuple(kernel_size), tuple(stride), pads, tuple(dilation))
        if not transposed:
            return self._of_factors(ConvFactors(input, grads, geometry, padding_mode, groups, bias), way, per_sample)
        M, Q = self._of_factors(TransposedConvFactors(input, grads, geometry, groups), way, per_sample)
        return self._with_bias(M, Q, grads, tuple(range(2, input.dim())), per_sample) if bias else (M, Q)

    def embedding_moments(
        self, indices: Tensor, grads: Gradients, padding_idx: int | None, per_sample: bool, way: str
    ) -> Moments:
        """M and Q of an embedding's weight."""
        nothing = _nothing(grads, per_sample)
        if nothing is not None:
            return nothing
        factors = EmbeddingFactors(indices, grads, padding_idx)

        def form(per_sample: bool) -> tuple[Tensor, Tensor | None]:
            M = factors.by_slots(self.primitives, per_sample=False)
            return M, factors.by_slots(self.primitives, per_sample=True) if per_sample else None

        return self._of_factors(factors, way, per_sample, form)

    def norm_moments(
        self, normalized: Tensor, grads: Gradients, parameter_dims: Sequence[int], bias: bool, per_sample: bool
    ) -> Moments:
        """M and Q of the weight and bias of a normalisation's affine part."""
        nothing = _nothing(grads, per_sample)
        if nothing is not None:
            return nothing
        dims = tuple(dim for dim in range(1, normalized.dim()) if dim not in parameter_dims)
        dtype = statistics_dtype(present_of(grads)[0])
        M, Q = self._of_sums(
            grads, lambda grad, block: _sum(block.of(normalized).to(dtype) * block.of(grad), dims), per_sample
        )
        return self._with_bias(M, Q, grads, dims, per_sample) if bias else (M, Q)

    def _of_factors(self, factors: Factors, way: str, per_sample: bool, form: Forming | None = None) -> Moments:
        form = form or functools.partial(by_forming, self.primitives, factors)
        return moments(self.primitives, factors, form, way, per_sample)

    def _with_bias(self, M: Tensor, Q: Tensor, grads: Gradients, dims: tuple[int, ...], per_sample: bool) -> Moments:
        """M and Q with those of the gradients summed over ``dims`` added."""
        bias_M, bias_Q = self._of_sums(grads, lambda grad, block: _sum(block.of(grad), dims), per_sample)
        return M + bias_M, Q + bias_Q

    def _of_sums(self, grads: Gradients, contribution: Callable[[Tensor, Block], Tensor], per_sample: bool) -> Moments:
        like = present_of(grads)[0]
        batch = like.shape[0]
        # The contributions of a block take at most the memory of one gradient, and a few pages.
        size = max(batch // len(grads), LEAST_MEMORY * batch // (len(grads) * like.numel()))

        def part(block: Block) -> list[Tensor | None]:
            return [None if grad is None else contribution(grad, block) for grad in grads]

        M, Q = by_summing(self.primitives, part, blocks(batch, size), per_sample)
        return M, torch.full_like(M, torch.nan) if Q is None else Q.mul_(batch)


def _sum(tensor: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Sum over dimensions, if any, in the dtype of statistics and in memory of its own."""
    dtype = statistics_dtype(tensor)
    return tensor.sum(dims, dtype=dtype) if dims else tensor.to(dtype, copy=True)
