"""Linear layers: [B, ..., in] and T times [B, ..., out]; with one position a sample also without the general machinery."""

from __future__ import annotations

import math

from torch import Tensor

from fastmtl.backends.contract import present_of, statistics_dtype
from fastmtl.backends.layer_moments.factors import Block, Factors, Sizes, memory_of
from fastmtl.backends.layer_moments.primitives import Gradients, Primitives


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


def of_single_positions(
    primitives: Primitives, inputs: Tensor, grads: Gradients, bias: bool, per_sample: bool, tile: int
) -> tuple[Tensor, Tensor | None]:
    """M, and sum_b <c_kb, c_jb> where ``per_sample`` is set, for [B, in] and T times [B, out], in few calls.

    M from weight gradients, of which ``tile`` rows of all tasks are formed at a time. In small layers the calls cost more
    than the products.
    """
    dtype = statistics_dtype(present_of(grads)[0])
    inputs, wide = inputs.to(dtype), [None if grad is None else grad.to(dtype) for grad in grads]
    outputs = present_of(grads)[0].shape[1]
    M: Tensor | None = None
    for first in range(0, outputs, tile):
        count = min(tile, outputs - first)
        formed: list[Tensor | None] = []
        for grad in wide:
            rows = None if grad is None else grad.narrow(1, first, count)
            formed.append(None if rows is None else rows.T @ inputs)
            if bias:
                formed.append(None if rows is None else rows.sum(0))
        part = primitives.gram(formed, len(grads))
        M = part if M is None else M.add_(part)
    assert M is not None
    if not per_sample:
        return M, None
    squares = inputs.square().sum(1)
    return M, primitives.sample_gram(grads, squares.add_(1) if bias else squares)
