"""The C++ backend for CPUs: fused kernels of the compiled library, through torch's stable ABI."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastmtl.backends.compiled import CompiledOps, failure_to_load
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
    return failure_to_load(LIBRARY)


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

sum_norms_update = followed_by(sum_norms, gradnorm_update)
sum_moments_update = followed_by(sum_moments, gnr_update)


def rows_linear_moments(*arguments: Any) -> list[Tensor]:
    """M and Q of a linear layer with one position a sample, see `Primitives.rows_linear`."""
    return _ops().rows_linear_moments(*arguments)


_layers = LayerMoments(Primitives(gram, cross_gram, sample_gram, rows_linear=rows_linear_moments))
linear_moments = _layers.linear_moments
conv_moments = _layers.conv_moments
embedding_moments = _layers.embedding_moments
norm_moments = _layers.norm_moments
