"""Linear layers: [B, ..., in] and T times [B, ..., out]."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from fastmtl.backends.contract import present_of, statistics_dtype
from fastmtl.backends.layer_moments import cost
from fastmtl.backends.layer_moments.factors import Block, Factors, Operands, Sizes, memory_of
from fastmtl.backends.layer_moments.patches import Geometry
from fastmtl.backends.layer_moments.primitives import Costs, Gradients, Primitives


class LinearFactors(Factors):
    """The positions are those of all dimensions between the first and the last."""

    def __init__(self, inputs: Tensor, grads: Gradients, bias: bool):
        like = present_of(grads)[0]
        self.device = inputs.device
        self._inputs, self._grads, self.bias, self.dtype = inputs, grads, bias, statistics_dtype(like)
        inner, outputs = inputs.shape[-1], like.shape[-1]
        self.sizes = Sizes(
            batch=inputs.shape[0],
            groups=1,
            positions=math.prod(inputs.shape[1:-1]),
            inputs=inner,
            outputs=outputs,
            tasks=len(grads),
            memory=memory_of(inputs, like, inner * outputs),
        )

    def _by_position(self, tensor: Tensor, block: Block) -> Tensor:
        part = block.of(tensor).unsqueeze(1)
        return part if part.dim() == 4 else part.reshape(block.samples, 1, self.sizes.positions, tensor.shape[-1])

    def inputs(self, block: Block) -> Tensor:
        """[b, 1, positions, in]."""
        return self._by_position(self._inputs, block).to(self.dtype)

    def grad(self, task: int, block: Block) -> Tensor | None:
        """[b, 1, positions, out]."""
        grad = self._grads[task]
        return None if grad is None else self._by_position(grad, block)

    def sample_input_gram(self, block: Block) -> Tensor:
        """As of `Factors`; with one position a sample a sum of squares."""
        if self.sizes.positions != 1:
            return super().sample_input_gram(block)
        return self.with_bias(self.inputs(block).square().sum(-1, keepdim=True))

    def operands(self) -> Operands:
        """A kernel of one element goes over the positions."""
        rank = self._inputs.dim() - 2
        geometry = Geometry((1,) * rank, (1,) * rank, ((0, 0),) * rank, (1,) * rank)
        grads = [None if grad is None else grad.movedim(-1, 1) for grad in self._grads]
        return Operands(self._inputs.movedim(-1, 1), grads, geometry, 1, self.bias)

    def _single_positions(self) -> tuple[Tensor, list[Tensor | None]]:
        """Inputs [B, in] and gradients [B, out], for one position a sample."""
        return self._rows(self._inputs), [None if grad is None else self._rows(grad) for grad in self._grads]

    def _rows(self, tensor: Tensor) -> Tensor:
        """[B, features], for one position a sample: what is one already, at no call."""
        rows = tensor if tensor.dim() == 2 else tensor.flatten(0, -2)
        return rows if rows.dtype == self.dtype else rows.to(self.dtype)

    def in_one_call(self, primitives: Primitives, way: str, per_sample: bool) -> tuple[Tensor, Tensor]:
        """M and Q, for one position a sample, by a backend that has a call for it."""
        assert primitives.rows_linear is not None
        pairs, rows = _one_call(self.sizes, way, per_sample, primitives.costs)
        M, *Q = primitives.rows_linear(*self._single_positions(), self.bias, per_sample, pairs, rows)
        return M, Q[0] if per_sample else torch.full_like(M, torch.nan)

    def form_of_single_positions(self, primitives: Primitives, per_sample: bool) -> tuple[Tensor, None]:
        """M, for one position a sample, from weight gradients formed some rows of all tasks at a time, in few calls.

        In small layers the calls cost more than the products. The plan never forms the gradients of single samples here.
        """
        assert not per_sample
        inputs, grads = self._single_positions()
        tile, _ = cost.rows_and_samples(self.sizes, per_sample)
        M: Tensor | None = None
        for first in range(0, self.sizes.outputs, tile):
            count = min(tile, self.sizes.outputs - first)
            formed: list[Tensor | None] = []
            for grad in grads:
                rows = None if grad is None else grad.narrow(1, first, count)
                formed.append(None if rows is None else rows.T @ inputs)
                if self.bias:
                    formed.append(None if rows is None else rows.sum(0))
            part = primitives.gram(formed, self.sizes.tasks)
            M = part if M is None else M.add_(part)
        assert M is not None
        return M, None


@functools.lru_cache(maxsize=cost.KEPT)
def _one_call(sizes: Sizes, way: str, per_sample: bool, costs: Costs) -> tuple[bool, int]:
    """Whether M comes from pairs of samples, and how many samples, or rows of weight gradients, at a time."""
    if cost.plan(sizes, way, per_sample, costs).batch == "form":
        return False, cost.rows_and_samples(sizes, False)[0]
    samples, _ = cost.samples_of_panels(sizes, costs)
    # Here the products of all tasks are held, with the inner products of the inputs.
    return True, max(1, min(samples, sizes.memory // (sizes.tasks * sizes.outputs + sizes.batch)))
