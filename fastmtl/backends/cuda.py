"""The CUDA backend for NVIDIA GPUs where Triton is missing: fused kernels of the compiled library, through torch's stable ABI.

Float32, bfloat16 and float16 gradients.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastmtl.backends.compiled import CompiledOps, failure_to_load
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
    return failure_to_load(LIBRARY)


def runs_on(capability: tuple[int, int], architectures: str) -> bool:
    """Whether code for these GPUs, as TORCH_CUDA_ARCH_LIST names them, runs on one of that compute capability."""
    for major, minor, kind, ptx in re.findall(r"(\d+)\.(\d)([af]?)(\+PTX)?", architectures):
        made = (int(major), int(minor))
        # "a": for one GPU alone; PTX of no kind: for all that come later.
        later = kind != "a" and capability >= made and (capability[0] == made[0] or bool(ptx and not kind))
        if later or capability == made:
            return True
    return False


def unavailable(device: torch.device, dtype: torch.dtype | None = None) -> str | None:
    """Why this backend cannot run on ``device`` (for gradients of ``dtype``), None where it can."""
    if dtype is not None and dtype not in DTYPES:
        return f"it takes {', '.join(str(known).removeprefix('torch.') for known in DTYPES)}, not {dtype}"
    if device.type != "cuda" or torch.version.hip is not None:
        return f"it runs on NVIDIA GPUs, not on {device.type}{' (ROCm)' if torch.version.hip else ''}"
    reason = _failure_to_load()
    if reason is not None:
        return reason
    if not torch.cuda.is_available():
        return "torch sees no GPU"
    found = torch.cuda.get_device_capability(device)
    has = f"this GPU has {found[0]}.{found[1]}"
    if found < LEAST_CAPABILITY:
        return f"it needs compute capability {LEAST_CAPABILITY[0]}.{LEAST_CAPABILITY[1]}, {has}"
    architectures = str(_ops().architectures())
    if not runs_on(found, architectures):
        return f"it was built for compute capability {architectures} (TORCH_CUDA_ARCH_LIST), {has}"
    return None


def _ops() -> Any:
    return torch.ops.fastmtl_cuda


_compiled = CompiledOps(_ops)
sum_norms = _compiled.sum_norms
sum_moments = _compiled.sum_moments
gram = _compiled.gram
squared_norms = _compiled.squared_norms
weighted_sum = _compiled.weighted_sum
weighted_sum_out = _compiled.weighted_sum_out
cross_gram = _compiled.cross_gram
sample_gram = _compiled.sample_gram
weigh = _compiled.weigh
gradnorm_update = _compiled.gradnorm_update
gnr_update = _compiled.gnr_update


def sum_norms_update(grads: Sequence[Tensor | None], *arguments: Any) -> tuple[Tensor, Tensor]:
    """`sum_norms` and `gradnorm_update` in one launch."""
    return _ops().sum_norms_update(grads, *arguments)


def sum_moments_update(grads: Sequence[Tensor | None], *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """`sum_moments` and `gnr_update` in one launch."""
    return _ops().sum_moments_update(grads, *arguments)


# The moments of layers take their matrix products from torch, so that what these form goes through memory: T weight gradients of
# each sample written and read once where they are formed (for M alone, of the batch), or B S^2 products of pairs of S positions.
_layers = LayerMoments(Primitives(gram, cross_gram, sample_gram))
linear_moments = _layers.linear_moments
conv_moments = _layers.conv_moments
embedding_moments = _layers.embedding_moments
norm_moments = _layers.norm_moments
