"""What the backends of compiled libraries share: loading one, and its ops as a backend has them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def failure_to_load(library: Path) -> str | None:
    """Loads a library; the reason where that fails."""
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        return f"the library {library} failed to load under torch {torch.__version__}: {error}"
    return None


class CompiledOps:
    """The ops of a library that compiled backends have in common; ``ops()`` gives its namespace of `torch.ops`."""

    def __init__(self, ops: Callable[[], Any]):
        self._ops = ops

    def sum_norms(self, grads: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
        """Sum over tasks and each task's squared Frobenius norm."""
        return self._ops().sum_norms(grads)

    def sum_moments(self, grads: Sequence[Tensor | None]) -> tuple[Tensor, Tensor, Tensor]:
        """Sum over tasks, Gram matrix M of the sums over dimension 0, and Q = B * sum_b of the per-sample Gram matrices."""
        return self._ops().sum_moments(grads)

    def gram(self, tensors: Sequence[Tensor | None], tasks: int) -> Tensor:
        """Inner products of the T gradients, each a list of N tensors."""
        return self._ops().gram(tensors, tasks)

    def squared_norms(self, tensors: Sequence[Tensor | None], tasks: int) -> Tensor:
        """Squared norms of the T gradients, each a list of N tensors."""
        return self._ops().squared_norms(tensors, tasks)

    def weighted_sum(self, tensors: Sequence[Tensor | None], tasks: int, weights: Tensor) -> list[Tensor]:
        """sum_k w_k g_k of T gradients, each a list of N tensors; N tensors."""
        return self._ops().weighted_sum(tensors, tasks, weights)

    def weighted_sum_out(
        self, tensors: Sequence[Tensor | None], tasks: int, weights: Tensor, out: Sequence[Tensor]
    ) -> None:
        """As `weighted_sum`, into ``out``; ``out[n]`` may be one of the gradients that it is the sum of."""
        self._ops().weighted_sum_out(tensors, tasks, weights, out)

    def cross_gram(self, left: Sequence[Tensor | None], right: Sequence[Tensor | None]) -> Tensor:
        """Inner products of tensors of one shape: [len(left), len(right)]."""
        return self._ops().cross_gram(left, right)

    def sample_gram(self, grads: Sequence[Tensor | None], weights: Tensor) -> Tensor:
        """sum_b weights_b <g_kb, g_jb> of T gradients [B, ...]."""
        return self._ops().sample_gram(grads, weights)

    def weigh(self, losses: Sequence[Tensor], weights: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """The sum of w_k L_k over the present tasks, and the message (scale 1) for the fork."""
        return self._ops().weigh(losses, weights, present)

    def gradnorm_update(self, *arguments: Any) -> None:
        """One step of GradNorm's weights; arguments as of `fastmtl.backends.reference.gradnorm_update`."""
        self._ops().gradnorm_update(*arguments)

    def gnr_update(self, *arguments: Any) -> None:
        """One step of the GNR weights; arguments as of `fastmtl.backends.reference.gnr_update`."""
        self._ops().gnr_update(*arguments)
