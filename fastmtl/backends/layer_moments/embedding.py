"""Embeddings: indices [B, ...] and T times [B, ..., dim]."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from fastmtl.backends.contract import present_of, statistics_dtype
from fastmtl.backends.layer_moments.factors import Block, Factors, Sizes, memory_of
from fastmtl.backends.layer_moments.primitives import Gradients, Primitives

# Adding one number to its sum takes as long as this many multiply-adds of a matrix product: measured, see `cost`.
_SUM_COST = 50


class _EmbeddingSizes(Sizes):
    """Of an embedding: nothing but sums is formed."""

    def form_cost(self) -> int:
        """Sums over equal indices, in multiply-adds."""
        return _SUM_COST * self.formed()

    def formed(self) -> int:
        """Elements of one task's sums."""
        return self.positions * self.outputs


class EmbeddingFactors(Factors):
    """The inputs are one-hot vectors, which are never formed: pairs of equal indices, or sums over equal indices."""

    bias = False

    def __init__(self, indices: Tensor, grads: Gradients, padding_idx: int | None):
        like = present_of(grads)[0]
        self.device = indices.device
        self._grads, self.dtype, self._padding = grads, statistics_dtype(like), padding_idx
        batch, positions = indices.shape[0], math.prod(indices.shape[1:])
        self._indices = indices.reshape(batch, positions)
        self.sizes: Sizes = _EmbeddingSizes(
            batch=batch,
            groups=1,
            positions=positions,
            inputs=1,
            outputs=like.shape[-1],
            tasks=len(grads),
            memory=memory_of(indices.numel() + like.numel()),
        )

    def inputs(self, block: Block) -> Tensor:
        """Never asked for: both ways work on the indices."""
        raise NotImplementedError("one-hot inputs of an embedding are not formed")

    def grad(self, task: int, block: Block) -> Tensor | None:
        """[b, 1, positions, dim]."""
        grad = self._grads[task]
        sizes = self.sizes
        if grad is None:
            return None
        own = block.of(grad).reshape(block.samples, 1, sizes.positions, sizes.outputs)
        if self._padding is None:
            return own
        read = (block.of(self._indices) != self._padding).reshape(block.samples, 1, sizes.positions, 1)
        return torch.where(read, own, 0.0)  # a product with 0 would keep what is not finite

    def _equal(self, rows: Tensor, columns: Tensor) -> Tensor:
        equal = rows.unsqueeze(-1) == columns.unsqueeze(-2)
        if self._padding is not None:
            equal &= (rows != self._padding).unsqueeze(-1)
        return equal.to(self.dtype)

    def sample_input_gram(self, block: Block) -> Tensor:
        """[b, 1, positions, positions]: 1 where indices are equal."""
        indices = block.of(self._indices).unsqueeze(1)
        return self._equal(indices, indices)

    def input_gram(self, left: Block, right: Block) -> Tensor:
        """[1, left, right], as above."""
        rows, columns = (block.of(self._indices).reshape(1, -1) for block in (left, right))
        return self._equal(rows, columns)

    def _slots(self, per_sample: bool) -> Tensor:
        """[B * positions] slots, the same where the indices (and the samples) are equal; the last one is for padding."""
        indices = self._indices if per_sample else self._indices.reshape(1, -1)
        ordered, order = indices.sort(dim=-1, stable=True)
        ranks = F.pad(ordered.diff(dim=-1).ne(0).cumsum(-1), (1, 0))
        slots = torch.empty_like(ranks).scatter_(-1, order, ranks)
        slots += torch.arange(indices.shape[0], device=indices.device).unsqueeze(-1) * indices.shape[1]
        if self._padding is not None:
            slots = torch.where(indices == self._padding, indices.numel(), slots)
        return slots.flatten()

    def by_slots(self, primitives: Primitives, per_sample: bool) -> Tensor:
        """M, or with ``per_sample`` sum_b <c_kb, c_jb>, from sums over equal indices, some columns of all tasks at a time."""
        sizes = self.sizes
        slots = self._slots(per_sample)
        tile = max(1, sizes.outputs // sizes.tasks)
        total: Tensor | None = None
        for first in range(0, sizes.outputs, tile):
            columns = range(first, min(first + tile, sizes.outputs))
            summed = [self._summed(grad, columns, slots) for grad in self._grads]
            part = primitives.gram(summed, sizes.tasks)
            total = part if total is None else total + part
        assert total is not None
        return total

    def _summed(self, grad: Tensor | None, columns: range, slots: Tensor) -> Tensor | None:
        if grad is None:
            return None
        values = grad.narrow(-1, columns.start, len(columns)).reshape(slots.numel(), -1).to(self.dtype)
        sums = values.new_zeros((slots.numel() + 1, values.shape[1])).index_add_(0, slots, values)
        return sums.narrow(0, 0, slots.numel())
