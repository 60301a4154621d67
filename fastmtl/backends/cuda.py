"""The CUDA backend for NVIDIA GPUs where Triton is missing: fused kernels of the compiled library, through torch's stable ABI.

Float32, bfloat16 and float16 gradients.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastmtl.backends.layer_moments import LayerMoments, Primitives

LIBRARY = Path(__file__).resolve().parent.parent / "_C_cuda.so"
LEAST_CAPABILITY = (8, 0)  # what the kernels are compiled for starts here
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@functools.cache
def _failure_to_load() -> str | None:
    """Loads the library; the reason where that fails."""
    if not LIBRARY.exists():
        return f"the library is not built: {LIBRARY} is missing (no nvcc when fastmtl was installed)"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    try:
        torch.ops.load_library(str(LIBRARY))
    except OSError as error:
        return f"the library {LIBRARY} failed to load under torch {torch.__version__}: {error}"
    return None


def unavailable(device: torch.device, dtype: torch.dtype | None = None) -> str | None:
    """Why this backend cannot run on ``device`` (for gradients of ``dtype``), None where it can."""
    if dtype is not None and dtype not in DTYPES:
        return f"it takes {', '.join(str(known).removeprefix('torch.') for known in DTYPES)}, not {dtype}"
    if device.type != "cuda" or torch.version.hip is not None:
        return f"it runs on NVIDIA GPUs, not on {device.type}{' (ROCm)' if torch.version.hip else ''}"
    reason = _failure_to_load()
    if reason is None and not torch.cuda.is_available():
        reason = "torch sees no GPU"
    if reason is None and torch.cuda.get_device_capability() < LEAST_CAPABILITY:
        needed, found = LEAST_CAPABILITY, torch.cuda.get_device_capability()
        reason = f"it needs compute capability {needed[0]}.{needed[1]}, this GPU has {found[0]}.{found[1]}"
    return reason


def _ops() -> Any:
    return torch.ops.fastmtl_cuda


def sum_norms(grads: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
    """Sum over tasks and each task's squared Frobenius norm."""
    return _ops().sum_norms(grads)


def sum_norms_update(grads: Sequence[Tensor | None], *arguments: Any) -> tuple[Tensor, Tensor]:
    """`sum_norms` and `gradnorm_update` in one launch."""
    return _ops().sum_norms_update(grads, *arguments)


def sum_moments(grads: Sequence[Tensor | None]) -> tuple[Tensor, Tensor, Tensor]:
    """Sum over tasks, Gram matrix M of the sums over dimension 0, and Q = B * sum_b of the per-sample Gram matrices."""
    return _ops().sum_moments(grads)


def sum_moments_update(grads: Sequence[Tensor | None], *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """`sum_moments` and `gnr_update` in one launch."""
    return _ops().sum_moments_update(grads, *arguments)


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


# The moments of layers take their matrix products from torch, so that what these form goes through memory: T weight gradients of
# each sample written and read once where they are formed (for M alone, of the batch), or B S^2 products of pairs of S positions.
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
