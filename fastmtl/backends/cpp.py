"""The C++ backend for CPUs: fused kernels of the compiled library, through torch's stable ABI."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastmtl.backends.contract import followed_by
from fastmtl.backends.layer_moments import LayerMoments, Primitives

LIBRARY = Path(__file__).resolve().parent.parent / "_C_cpu.so"


@functools.cache
def _failure_to_load() -> str | None:
    """Loads the library; the reason where that fails."""
    if not LIBRARY.exists():
        return (
            f"the library is not built: {LIBRARY} is missing (no C++ compiler, or no torch, when fastmtl was installed)"
        )
    try:
        torch.ops.load_library(str(LIBRARY))
    except OSError as error:
        return f"the library {LIBRARY} failed to load under torch {torch.__version__}: {error}"
    return None


def unavailable(device: torch.device, dtype: torch.dtype | None = None) -> str | None:
    """Why this backend cannot run on ``device``, None where it can; it takes every dtype."""
    if device.type != "cpu":
        return f"it runs on the cpu, not on {device.type}"
    return _failure_to_load()


def _ops() -> Any:
    reason = _failure_to_load()
    if reason is not None:
        raise RuntimeError(reason)
    return torch.ops.fastmtl_cpp


def instruction_set() -> str:
    """The instruction set that the kernels use: generic, avx2 or avx512. ``FASTMTL_CPU_ISA`` forces one."""
    return str(_ops().selected_isa())


def sum_moments(grads: Sequence[Tensor | None]) -> tuple[Tensor, Tensor, Tensor]:
    """Sum over tasks, Gram matrix M of the sums over dimension 0, and Q = B * sum_b of the per-sample Gram matrices."""
    return _ops().sum_moments(grads)


def sum_norms(grads: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
    """Sum over tasks and each task's squared Frobenius norm."""
    return _ops().sum_norms(grads)


def gram(tensors: Sequence[Tensor | None], tasks: int) -> Tensor:
    """Inner products of the T gradients, each a list of N tensors."""
    return _ops().gram(tensors, tasks)


def squared_norms(tensors: Sequence[Tensor | None], tasks: int) -> Tensor:
    """Squared norms of the T gradients, each a list of N tensors."""
    return _ops().squared_norms(tensors, tasks)


def weighted_sum(tensors: Sequence[Tensor | None], tasks: int, weights: Tensor) -> list[Tensor]:
    """sum_k w_k g_k of T gradients, each a list of N tensors; N tensors."""
    return _ops().weighted_sum(tensors, tasks, weights)


def weighted_sum_out(tensors: Sequence[Tensor | None], tasks: int, weights: Tensor, out: Sequence[Tensor]) -> None:
    """As `weighted_sum`, into ``out``; ``out[n]`` may be one of the gradients that it is the sum of."""
    _ops().weighted_sum_out(tensors, tasks, weights, out)


def cross_gram(left: Sequence[Tensor | None], right: Sequence[Tensor | None]) -> Tensor:
    """Inner products of tensors of one shape: [len(left), len(right)]."""
    return _ops().cross_gram(left, right)


def sample_gram(grads: Sequence[Tensor | None], weights: Tensor) -> Tensor:
    """sum_b weights_b <g_kb, g_jb> of T gradients [B, ...]."""
    return _ops().sample_gram(grads, weights)


_layers = LayerMoments(Primitives(gram, cross_gram, sample_gram))
linear_moments = _layers.linear_moments
conv_moments = _layers.conv_moments
embedding_moments = _layers.embedding_moments
norm_moments = _layers.norm_moments


def weigh(losses: Sequence[Tensor], weights: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of w_k L_k over the present tasks, and the message (scale 1) for the fork."""
    return _ops().weigh(losses, weights, present)


def gradnorm_update(*arguments: Any) -> None:
    """One step of GradNorm's weights; arguments as of `fastmtl.backends.reference.gradnorm_update`."""
    _ops().gradnorm_update(*arguments)


def gnr_update(*arguments: Any) -> None:
    """One step of the GNR weights; arguments as of `fastmtl.backends.reference.gnr_update`."""
    _ops().gnr_update(*arguments)


sum_norms_update = followed_by(sum_norms, gradnorm_update)
sum_moments_update = followed_by(sum_moments, gnr_update)
