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
        positions = math.prod(inputs.shape[1:-1])
        self.sizes = _sizes(inputs.shape[0], positions, inputs.shape[-1], like.shape[-1], len(grads))

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

    def form_of_single_positions(self, primitives: Primitives, per_sample: bool) -> tuple[Tensor, None]:
        """M, for one position a sample, from weight gradients formed some rows of all tasks at a time, in few calls.

        In small layers the calls cost more than the products. The plan never forms the gradients of single samples here.
        """
        assert not per_sample
        inputs, grads = single_positions(self._inputs, self._grads)
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


def _sizes(batch: int, positions: int, inputs: int, outputs: int, tasks: int) -> Sizes:
    numbers = batch * positions * (inputs + outputs) + inputs * outputs
    return Sizes(batch, 1, positions, inputs, outputs, tasks, memory=memory_of(numbers))


def single_positions(inputs: Tensor, grads: Gradients) -> tuple[Tensor, list[Tensor | None]]:
    """Inputs [B, in] and gradients [B, out] where there is one position a sample, in the dtype of statistics.

    What is that already costs no call.
    """
    dtype = statistics_dtype(present_of(grads)[0])

    def rows(tensor: Tensor) -> Tensor:
        tensor = tensor if tensor.dim() == 2 else tensor.flatten(0, -2)
        return tensor if tensor.dtype == dtype else tensor.to(dtype)

    return rows(inputs), [None if grad is None else rows(grad) for grad in grads]


def rows_moments(
    primitives: Primitives, inputs: Tensor, grads: Gradients, bias: bool, per_sample: bool, way: str
) -> tuple[Tensor, Tensor]:
    """M and Q, for one position a sample, by a backend that has a call for it."""
    assert primitives.rows_linear is not None
    rows, gradients = single_positions(inputs, grads)
    outputs = present_of(gradients)[0].shape[1]
    pairs, together = _plan_of_rows(*rows.shape, outputs, len(grads), way, primitives.costs)
    M, *Q = primitives.rows_linear(rows, gradients, bias, per_sample, pairs, together)
    return M, Q[0] if per_sample else torch.full_like(M, torch.nan)


@functools.lru_cache(maxsize=cost.KEPT)
def _plan_of_rows(batch: int, inputs: int, outputs: int, tasks: int, way: str, costs: Costs) -> tuple[bool, int]:
    """Whether M comes from pairs of samples, and how many samples, or rows of weight gradients, at a time."""
    sizes = _sizes(batch, 1, inputs, outputs, tasks)
    if way == "form" or (way == "auto" and not cost.pairs_of_rows_take_less(sizes)):
        return False, cost.rows_and_samples(sizes, False)[0]
    samples, _ = cost.samples_of_panels(sizes, costs)
    # Here the products of all tasks are held, with the inner products of the inputs.
    return True, max(1, min(samples, sizes.memory // (tasks * outputs + batch)))
