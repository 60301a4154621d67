"""The Triton backend for GPUs: fused kernels, compiled for the GPU at hand when they first run.

Float32, bfloat16 and float16 gradients. Triton is imported when a kernel is first needed, as the package works without.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

LEAST_CAPABILITY = (8, 0)  # what the kernels are compiled and checked for starts here
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@functools.cache
def _unavailable(device_type: str) -> str | None:
    if device_type not in ("cuda", "xpu"):
        return f"it runs on GPUs, not on {device_type}"
    if importlib.util.find_spec("triton") is None:
        return "the package triton is missing"
    if device_type == "cuda":
        if not torch.cuda.is_available():
            return "torch sees no GPU"
        capability = torch.cuda.get_device_capability()
        if torch.version.hip is None and capability < LEAST_CAPABILITY:
            return f"it needs compute capability {LEAST_CAPABILITY[0]}.{LEAST_CAPABILITY[1]}, this GPU has {capability}"
    return None


def unavailable(device: torch.device, dtype: torch.dtype | None = None) -> str | None:
    """Why this backend cannot run on ``device`` (for gradients of ``dtype``), None where it can."""
    if dtype is not None and dtype not in DTYPES:
        return f"it takes {', '.join(str(known).removeprefix('torch.') for known in DTYPES)}, not {dtype}"
    return _unavailable(device.type)


def _device_of(arguments: Sequence[Any]) -> torch.device:
    for argument in arguments:
        for item in argument if isinstance(argument, (list, tuple)) else (argument,):
            if isinstance(item, Tensor):
                return item.device
    raise AssertionError("every op takes at least one tensor")


@functools.cache
def _module(name: str) -> ModuleType:
    return importlib.import_module(f"fastmtl.backends.triton.{name}")


def _run(module: str, op: str, *arguments: Any) -> Any:
    """Call an op's launches (importing them imports Triton), with the device of its tensors as the current one."""
    launch = getattr(_module(module), op)
    device = _device_of(arguments)
    if device.type == "cpu":  # executed without a GPU, by the tests
        return launch(*arguments)
    devices = torch.get_device_module(device.type)
    if device.index == devices.current_device():
        return launch(*arguments)
    with devices.device(device):  # Triton launches on the current device
        return launch(*arguments)


def sum_moments(grads: Sequence[Tensor | None]) -> tuple[Tensor, Tensor, Tensor]:
    """Sum over tasks, Gram matrix M of the sums over dimension 0, and Q = B * sum_b of the per-sample Gram matrices."""
    return _run("sums", "sum_moments", grads)


def sum_norms(grads: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
    """Sum over tasks and each task's squared Frobenius norm."""
    return _run("sums", "sum_norms", grads)


def gram(tensors: Sequence[Tensor | None], tasks: int) -> Tensor:
    """Inner products of the T gradients, each a list of N tensors."""
    return _run("lists", "gram", tensors, tasks)


def squared_norms(tensors: Sequence[Tensor | None], tasks: int) -> Tensor:
    """Squared norms of the T gradients, each a list of N tensors."""
    return _run("lists", "squared_norms", tensors, tasks)


def weighted_sum(tensors: Sequence[Tensor | None], tasks: int, weights: Tensor) -> list[Tensor]:
    """sum_k w_k g_k of T gradients, each a list of N tensors; N tensors."""
    return _run("lists", "weighted_sum", tensors, tasks, weights)


def weighted_sum_out(tensors: Sequence[Tensor | None], tasks: int, weights: Tensor, out: Sequence[Tensor]) -> None:
    """As `weighted_sum`, into ``out``; ``out[n]`` may be one of the gradients that it is the sum of."""
    _run("lists", "weighted_sum_out", tensors, tasks, weights, out)


def cross_gram(left: Sequence[Tensor | None], right: Sequence[Tensor | None]) -> Tensor:
    """Inner products of tensors of one shape: [len(left), len(right)]."""
    return _run("products", "cross_gram", left, right)


def sample_gram(grads: Sequence[Tensor | None], weights: Tensor) -> Tensor:
    """sum_b weights_b <g_kb, g_jb> of T gradients [B, ...]."""
    return _run("products", "sample_gram", grads, weights)


def linear_moments(*arguments: Any) -> tuple[Tensor, Tensor]:
    """M and Q of a linear layer; arguments as of `fastmtl.backends.reference.linear_moments`."""
    return _run("layers", "linear_moments", *arguments)


def conv_moments(*arguments: Any) -> tuple[Tensor, Tensor]:
    """M and Q of a convolution; arguments as of `fastmtl.backends.reference.conv_moments`."""
    return _run("layers", "conv_moments", *arguments)


def embedding_moments(*arguments: Any) -> tuple[Tensor, Tensor]:
    """M and Q of an embedding; arguments as of `fastmtl.backends.reference.embedding_moments`."""
    return _run("embedding", "embedding_moments", *arguments)


def norm_moments(*arguments: Any) -> tuple[Tensor, Tensor]:
    """M and Q of a norm layer; arguments as of `fastmtl.backends.reference.norm_moments`."""
    return _run("norms", "norm_moments", *arguments)


def weigh(losses: Sequence[Tensor], weights: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of w_k L_k over the present tasks, and the message (scale 1) for the fork."""
    return _run("updates", "weigh", losses, weights, present)


def gradnorm_update(*arguments: Any) -> None:
    """One step of GradNorm's weights; arguments as of `fastmtl.backends.reference.gradnorm_update`."""
    _run("updates", "gradnorm_update", *arguments)


def gnr_update(*arguments: Any) -> None:
    """One step of the GNR weights; arguments as of `fastmtl.backends.reference.gnr_update`."""
    _run("gnr", "gnr_update", *arguments)


def sum_norms_update(grads: Sequence[Tensor | None], *arguments: Any) -> tuple[Tensor, Tensor]:
    """`sum_norms` and `gradnorm_update` in one launch."""
    return _run("sums", "sum_norms_update", grads, *arguments)


def sum_moments_update(grads: Sequence[Tensor | None], *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """`sum_moments` and `gnr_update` in one launch."""
    return _run("sums", "sum_moments_update", grads, *arguments)
