"""Linear layers: [B, ..., in] and T times [B, ..., out]."""

from __future__ import annotations

import math

from torch import Tensor

from fastmtl.backends.contract import present_of, statistics_dtype
from fastmtl.backends.layer_moments.factors import Block, Factors, Sizes, memory_of
from fastmtl.backends.layer_moments.primitives import Gradients


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
