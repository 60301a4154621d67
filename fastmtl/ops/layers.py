"""Moments of the gradients of a layer's weight and bias, without forming T of them.

From the layer's input and the T gradients at its output. With c_kb what sample b adds to the gradient of task k with
respect to weight and bias together, and B samples:

    M_kj = <sum_b c_kb, sum_b c_jb>        Q_kj = B * sum_b <c_kb, c_jb>

as for `fastmtl.ops.sum_moments`, whose B/(B-1) * (Q - M) is the per-sample covariance. Inner products of weight
gradients are sums over pairs of positions (Goodfellow 2015, arXiv 1510.01799, for one position a sample; Li et al.
2021, arXiv 2110.05679, for several); where that costs more than forming them (the choice of Bu et al. 2022, arXiv
2205.10683), they are formed a few rows at a time. Nothing is read on the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from fastmtl.backends.contract import DTYPES, present_of
from fastmtl.backends.layer_moments.patches import Geometry, patch_gram, patch_gram_cost
from fastmtl.ops.arguments import Gradients, as_lists
from fastmtl.ops.library import call

__all__ = [
    "Geometry",
    "conv_moments",
    "embedding_moments",
    "linear_moments",
    "norm_moments",
    "patch_gram",
    "patch_gram_cost",
]

Way: TypeAlias = Literal["auto", "pairs", "form"]
PaddingMode: TypeAlias = Literal["zeros", "reflect", "replicate", "circular"]


def linear_moments(
    input: Tensor,
    grads: Gradients,
    *,
    bias: bool = True,
    per_sample: bool = True,
    way: Way = "auto",
) -> tuple[Tensor, Tensor]:
    """M and Q of the weight and bias of `torch.nn.Linear`.

    Args:
        input: [B, ..., in], what the layer read. Floating point, any strides.
        grads: T gradients [B, ..., out] at the layer's output (None: no gradient, counts as zeros), or one tensor
            [T, B, ..., out]. float32, bfloat16, float16 or float64; any strides. Products are formed in float32 (float64
            for float64 gradients).
        bias: whether the layer has one.
        per_sample: whether Q is wanted; else it is filled with NaN, and cheaper.
        way: "pairs" (of positions), "form" (the weight gradients, a few rows at a time), or "auto": what costs less.
            Q of one position a sample is always that of pairs.

    Returns:
        M and Q, [T, T] float32 (float64 for float64 gradients).

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not agree; no gradient at all; an unknown ``way``.
    """
    flat = _checked(grads, way)
    _check_input("input", input, flat)
    like = present_of(flat)[0]
    if input.dim() < 2 or like.shape[:-1] != input.shape[:-1]:
        raise ValueError(
            "grads: expected the shape of input [B, ..., in] but for the last dimension, got "
            f"{list(like.shape)} for an input of shape {list(input.shape)}"
        )
    return call(torch.ops.fastmtl.linear_moments, input, flat, bias, per_sample, way)


def conv_moments(
    input: Tensor,
    grads: Gradients,
    kernel_size: int | Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    transposed: bool = False,
    padding_mode: PaddingMode = "zeros",
    bias: bool = True,
    per_sample: bool = True,
    way: Way = "auto",
) -> tuple[Tensor, Tensor]:
    """M and Q of the weight and bias of `torch.nn.Conv1d`, 2d, 3d, or of their transposed forms.

    Args:
        input: [B, C_in, *spatial] with one to three spatial dimensions, what the layer read. Floating point, any strides.
        grads: T gradients [B, C_out, *out] at the layer's output, as for `linear_moments`.
        kernel_size, stride, padding, dilation, groups, padding_mode: those of the layer; "same" and "valid" too. The
            output_padding of a transposed convolution shows in the shape of the gradients.
        transposed: whether the layer is a transposed convolution.
        bias, per_sample, way: as for `linear_moments`.

    Returns:
        M and Q, [T, T] float32 (float64 for float64 gradients).

    Raises:
        ValueError, TypeError: as for `linear_moments`; options that do not fit the shapes.
    """
    flat = _checked(grads, way)
    _check_input("input", input, flat)
    like = present_of(flat)[0]
    rank = input.dim() - 2
    if rank not in (1, 2, 3):
        raise ValueError(f"input: expected [B, C_in, *spatial] with 1 to 3 spatial dimensions, got {list(input.shape)}")
    kernel, steps, spread = (
        _numbers(name, value, rank, 1)
        for name, value in (("kernel_size", kernel_size), ("stride", stride), ("dilation", dilation))
    )
    pads = _padding(padding, kernel, steps, spread, transposed)
    if padding_mode not in ("zeros", "reflect", "replicate", "circular") or (transposed and padding_mode != "zeros"):
        allowed = "'zeros'" if transposed else "'zeros', 'reflect', 'replicate' or 'circular'"
        raise ValueError(f"padding_mode: expected {allowed}, got {padding_mode!r}")
    if groups < 1 or input.shape[1] % groups or (like.dim() > 1 and like.shape[1] % groups):
        raise ValueError(
            f"groups: expected a number that divides the channels, got {groups} for an input of shape "
            f"{list(input.shape)} and gradients of shape {list(like.shape)}"
        )
    _check_conv_shape(input, like, kernel, steps, pads, spread, transposed)
    flat_pads = [pad for pair in pads for pad in pair]
    options = (kernel, steps, flat_pads, spread, groups, transposed, padding_mode, bias, per_sample, way)
    return call(torch.ops.fastmtl.conv_moments, input, flat, *options)


def embedding_moments(
    indices: Tensor,
    grads: Gradients,
    *,
    padding_idx: int | None = None,
    per_sample: bool = True,
    way: Way = "auto",
) -> tuple[Tensor, Tensor]:
    """M and Q of the weight of `torch.nn.Embedding`; ``scale_grad_by_freq``, which mixes samples, has none.

    Args:
        indices: [B, ...] int64 or int32, what the layer read.
        grads: T gradients [B, ..., dim] at the layer's output, as for `linear_moments`.
        padding_idx: the index that gets no gradient, as the module keeps it: not negative.
        per_sample: as for `linear_moments`.
        way: "pairs" (of equal indices), "form" (sums over equal indices), or "auto": what costs less. Memory does not
            depend on the size of the vocabulary.

    Returns:
        M and Q, [T, T] float32 (float64 for float64 gradients).

    Raises:
        ValueError, TypeError: as for `linear_moments`; a negative ``padding_idx``.
    """
    flat = _checked(grads, way)
    _check_input("indices", indices, flat, integers=True)
    like = present_of(flat)[0]
    if indices.dim() < 1 or like.shape[:-1] != indices.shape:
        raise ValueError(
            f"grads: expected the shape of indices [B, ...] and one more dimension, got {list(like.shape)} for "
            f"indices of shape {list(indices.shape)}"
        )
    if padding_idx is not None and padding_idx < 0:
        raise ValueError(f"padding_idx: expected an index from 0 on, as torch.nn.Embedding keeps it, got {padding_idx}")
    return call(torch.ops.fastmtl.embedding_moments, indices, flat, padding_idx, per_sample, way)


def norm_moments(
    normalized: Tensor,
    grads: Gradients,
    parameter_dims: Sequence[int],
    *,
    bias: bool = True,
    per_sample: bool = True,
) -> tuple[Tensor, Tensor]:
    """M and Q of the weight and bias of `torch.nn.GroupNorm`, `LayerNorm`, `RMSNorm` or `InstanceNorm`.

    The per-sample contributions are sums over the dimensions that the parameters do not have, and are formed. For a
    BatchNorm in training samples mix: M is that of its parameters, Q has no meaning.

    Args:
        normalized: [B, ...], the input of the affine part: x-hat, before weight and bias. Floating point, any strides.
        grads: T gradients at the layer's output, of the same shape; as for `linear_moments`.
        parameter_dims: the dimensions that weight and bias have: ``(1,)`` for GroupNorm, the last ones for LayerNorm.
        bias: whether the layer has one.
        per_sample: as for `linear_moments`.

    Returns:
        M and Q, [T, T] float32 (float64 for float64 gradients).

    Raises:
        ValueError, TypeError: as for `linear_moments`; dimensions that do not exist, repeat, or include the batch's.
    """
    flat = _checked(grads, "auto")
    _check_input("normalized", normalized, flat)
    like = present_of(flat)[0]
    if normalized.dim() < 2 or like.shape != normalized.shape:
        raise ValueError(
            f"grads: expected the shape of normalized [B, ...], {list(normalized.shape)}, got {list(like.shape)}"
        )
    rank = normalized.dim()
    dims = [dim + rank if dim < 0 else dim for dim in parameter_dims]
    if not dims or len(set(dims)) < len(dims) or not all(1 <= dim < rank for dim in dims):
        raise ValueError(
            f"parameter_dims: expected distinct dimensions from 1 to {rank - 1}, got {list(parameter_dims)}"
        )
    return call(torch.ops.fastmtl.norm_moments, normalized, flat, sorted(dims), bias, per_sample)


def _checked(grads: Gradients, way: str) -> list[Tensor | None]:
    lists = as_lists(grads)
    if lists.nested:
        raise TypeError("grads: expected T tensors, got lists of tensors: moments of several layers add up")
    if way not in ("auto", "pairs", "form"):
        raise ValueError(f"way: expected 'auto', 'pairs' or 'form', got {way!r}")
    return lists.flat


def _check_input(name: str, tensor: Tensor, grads: list[Tensor | None], integers: bool = False) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")
    allowed = (torch.int64, torch.int32) if integers else DTYPES
    if tensor.dtype not in allowed:
        raise TypeError(f"{name}: expected one of {', '.join(map(str, allowed))}, got {tensor.dtype}")
    device = present_of(grads)[0].device
    if tensor.device != device:
        raise ValueError(f"{name}: expected a tensor on {device}, like the gradients, got one on {tensor.device}")


def _numbers(name: str, value: int | Sequence[int], rank: int, least: int) -> list[int]:
    numbers = [value] * rank if isinstance(value, int) else list(value)
    if len(numbers) != rank or any(not isinstance(n, int) or n < least for n in numbers):
        raise ValueError(f"{name}: expected a number or {rank} numbers from {least} on, got {value!r}")
    return numbers


def _padding(
    padding: int | Sequence[int] | str, kernel: list[int], stride: list[int], dilation: list[int], transposed: bool
) -> list[tuple[int, int]]:
    """(before, after) for each dimension."""
    if not isinstance(padding, str):
        return [(pad, pad) for pad in _numbers("padding", padding, len(kernel), 0)]
    if padding not in ("same", "valid") or transposed:
        allowed = "numbers" if transposed else "numbers, 'same' or 'valid'"
        raise ValueError(f"padding: expected {allowed}, got {padding!r}")
    if padding == "valid":
        return [(0, 0)] * len(kernel)
    if any(step != 1 for step in stride):
        raise ValueError(f"padding: expected numbers for a strided convolution (stride {stride}), got 'same'")
    totals = [spread * (size - 1) for spread, size in zip(dilation, kernel, strict=True)]
    return [(total // 2, total - total // 2) for total in totals]


def _check_conv_shape(
    input: Tensor,
    grad: Tensor,
    kernel: list[int],
    stride: list[int],
    padding: list[tuple[int, int]],
    dilation: list[int],
    transposed: bool,
) -> None:
    """Raise unless the gradients have the batch of the input and a size that the layer's output can have."""
    size = list(input.shape[2:])
    least, most = [], []
    for extent, k, s, pads, d in zip(size, kernel, stride, padding, dilation, strict=True):
        reach = d * (k - 1) + 1
        if transposed:
            least.append((extent - 1) * s - sum(pads) + reach)
            most.append(least[-1] + max(s, d) - 1)
        else:
            least.append((extent + sum(pads) - reach) // s + 1)
            most.append(least[-1])
    out = list(grad.shape[2:])
    if (
        grad.dim() != input.dim()
        or grad.shape[0] != input.shape[0]
        or not all(low <= got <= high for low, got, high in zip(least, out, most, strict=True))
    ):
        sizes = f"{least} to {most}" if least != most else str(least)
        raise ValueError(
            f"grads: expected [{input.shape[0]}, C_out, *{sizes}] for an input of shape {list(input.shape)} and these "
            f"options, got {list(grad.shape)}"
        )
