"""Layers of every kind with gradients at their outputs, and their moments by brute force: one backward per sample and task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fastmtl import ops

Grads = list[Tensor | None]


@dataclass
class Problem:
    """A layer, what it reads, and how its moments are called for."""

    name: str
    layer: Callable[[], nn.Module]
    shape: Sequence[int]
    moments: Callable[..., tuple[Tensor, Tensor]]
    options: dict[str, Any] = field(default_factory=dict)
    ways: Sequence[str] = ("pairs", "form", "auto")
    vocabulary: int = 0

    def make(self, tasks: int = 3, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor, list[Tensor]]:
        """The layer, its input and the gradients at its output: numbers of ``dtype``, the same for each of them."""
        generator = torch.Generator().manual_seed(1)
        torch.manual_seed(0)
        layer = self.layer().double()
        if self.vocabulary:
            inputs = torch.randint(self.vocabulary, self.shape, generator=generator)
        else:
            inputs = torch.randn(self.shape, generator=generator, dtype=torch.float64).to(dtype)
        shape = layer(inputs if self.vocabulary else inputs.double()).shape
        common = torch.randn(shape, generator=generator, dtype=torch.float64)
        grads = [
            (common + (k + 1) * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)
            for k in range(tasks)
        ]
        return layer, inputs, grads

    def measure(self, inputs: Tensor, grads: Grads, **more: Any) -> tuple[Tensor, Tensor]:
        """M and Q by the function under test."""
        if self.moments is ops.norm_moments:
            more = {key: value for key, value in more.items() if key != "way"}
        return self.moments(inputs, grads, **self.options, **more)


def contributions(layer: nn.Module, inputs: Tensor, grads: Grads) -> Tensor:
    """c_kb [T, B, P] in float64: what sample b adds to the gradient of all parameters of the layer."""
    parameters = list(layer.parameters())
    batch = inputs.shape[0]
    rows = []
    for grad in grads:
        for b in range(batch):
            if grad is None:
                rows.append(torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64))
                continue
            sample = inputs[b : b + 1]
            output = layer(sample.double() if sample.is_floating_point() else sample)
            own = torch.autograd.grad(output, parameters, grad[b : b + 1].double())
            rows.append(torch.cat([g.flatten() for g in own]))
    return torch.stack(rows).view(len(grads), batch, -1)


def brute_force(layer: nn.Module, inputs: Tensor, grads: Grads) -> tuple[Tensor, Tensor]:
    """M and Q from one backward per sample and task, in float64."""
    return from_contributions(contributions(layer, inputs, grads))


def from_contributions(own: Tensor) -> tuple[Tensor, Tensor]:
    """M and Q of c_kb [T, B, P] in plain torch, in the dtype given."""
    sums = own.sum(1)
    return sums @ sums.T, own.shape[1] * torch.einsum("kbp,jbp->kj", own, own)


def linear(name: str, shape: Sequence[int], outputs: int, bias: bool = True) -> Problem:
    return Problem(name, lambda: nn.Linear(shape[-1], outputs, bias=bias), shape, ops.linear_moments, {"bias": bias})


CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def conv(name: str, shape: Sequence[int], outputs: int, kernel: Any, **options: Any) -> Problem:
    def layer() -> nn.Module:
        return CONVOLUTIONS[len(shape) - 2](shape[1], outputs, kernel, **options)

    return Problem(name, layer, shape, ops.conv_moments, {"kernel_size": kernel, **options})


def transposed(name: str, shape: Sequence[int], outputs: int, kernel: Any, **options: Any) -> Problem:
    def layer() -> nn.Module:
        return TRANSPOSED[len(shape) - 2](shape[1], outputs, kernel, **options)

    given = {key: value for key, value in options.items() if key != "output_padding"}
    return Problem(name, layer, shape, ops.conv_moments, {"kernel_size": kernel, "transposed": True, **given})


def embedding(name: str, shape: Sequence[int], size: int, vocabulary: int, padding_idx: int | None = None) -> Problem:
    def layer() -> nn.Module:
        return nn.Embedding(vocabulary, size, padding_idx=padding_idx)

    options = {} if padding_idx is None else {"padding_idx": padding_idx}
    return Problem(name, layer, shape, ops.embedding_moments, options, vocabulary=vocabulary)


class Affine(nn.Module):
    """The affine part of a normalisation: x-hat times weight, plus bias."""

    def __init__(self, shape: Sequence[int], dims: Sequence[int], bias: bool):
        super().__init__()
        sizes = [shape[d] if d in dims else 1 for d in range(len(shape))]
        self.weight = nn.Parameter(torch.ones(sizes))
        self.bias = nn.Parameter(torch.zeros(sizes)) if bias else None

    def forward(self, normalized: Tensor) -> Tensor:
        return normalized * self.weight + (0 if self.bias is None else self.bias)


def affine(name: str, shape: Sequence[int], dims: Sequence[int], bias: bool = True) -> Problem:
    options = {"parameter_dims": dims, "bias": bias}
    return Problem(name, lambda: Affine(shape, dims, bias), shape, ops.norm_moments, options, ways=("auto",))


LINEARS = [
    linear("linear", (6, 7), 5),
    linear("linear-no-bias", (6, 7), 5, bias=False),
    linear("linear-one-sample", (1, 7), 5),
    linear("linear-wide", (3, 40), 50),
    linear("linear-many-samples", (90, 3), 4),
    linear("linear-kernels", (140, 70), 66),  # those of the C++ backend on any CPU
    linear("linear-tokens", (4, 6, 7), 5),
    linear("linear-tokens-no-bias", (4, 6, 7), 5, bias=False),
    linear("linear-grid", (3, 2, 4, 7), 5),
]
CONVS = [
    conv("conv2d", (4, 3, 9, 7), 6, 3),
    conv("conv2d-padded", (4, 3, 9, 7), 6, 3, padding=1),
    conv("conv2d-no-bias", (4, 3, 9, 7), 6, 3, padding=1, bias=False),
    conv("conv2d-1x1", (4, 3, 5, 6), 6, 1),
    conv("conv2d-1x1-stride", (4, 3, 5, 6), 6, 1, stride=2),
    conv("conv2d-stride", (4, 3, 9, 7), 6, (3, 2), stride=(2, 3), padding=(0, 1)),
    conv("conv2d-dilation", (4, 3, 9, 7), 6, (2, 3), dilation=(3, 2), padding=(1, 2)),
    conv("conv2d-same", (4, 3, 6, 7), 6, (4, 3), padding="same", dilation=(1, 2)),
    conv("conv2d-same-reflect", (4, 3, 6, 7), 6, (2, 3), padding="same", padding_mode="reflect"),
    conv("conv2d-valid", (4, 3, 6, 7), 6, 3, padding="valid"),
    conv("conv2d-reflect", (4, 3, 9, 7), 6, 3, padding=2, padding_mode="reflect"),
    conv("conv2d-replicate", (4, 3, 9, 7), 6, 3, padding=2, padding_mode="replicate"),
    conv("conv2d-circular", (4, 3, 9, 7), 6, (3, 4), padding=(1, 2), stride=2, padding_mode="circular"),
    conv("conv2d-groups", (4, 4, 9, 7), 6, 3, groups=2, padding=1),
    conv("conv2d-depthwise", (4, 4, 9, 7), 8, 3, groups=4, padding=1, dilation=2),
    conv("conv2d-one-place", (4, 4, 3, 3), 6, 3, groups=2),
    conv("conv2d-whole-image", (4, 3, 3, 3), 6, 3),
    conv("conv1d", (4, 3, 11), 5, 4, stride=3, padding=2, dilation=2),
    conv("conv1d-circular", (4, 3, 11), 5, 4, padding=2, padding_mode="circular"),
    conv("conv3d", (2, 2, 4, 5, 3), 4, (2, 3, 2), stride=(1, 2, 1), padding=(1, 1, 0)),
    conv("conv3d-groups-replicate", (2, 4, 4, 5, 3), 4, 2, padding=1, groups=2, padding_mode="replicate"),
    transposed("transposed2d", (4, 6, 4, 3), 5, 3),
    transposed("transposed2d-stride", (4, 6, 4, 3), 4, (3, 2), stride=(2, 3), padding=(1, 0)),
    transposed("transposed2d-output-padding", (4, 6, 4, 3), 4, 3, stride=2, padding=1, output_padding=1),
    transposed("transposed2d-output-padding-dilation", (4, 6, 4, 3), 4, 3, dilation=3, output_padding=2, bias=False),
    transposed("transposed2d-groups", (4, 6, 4, 3), 4, 3, stride=2, groups=2, padding=1),
    transposed("transposed2d-one-pixel", (4, 6, 1, 1), 4, 3),
    transposed("transposed1d", (4, 3, 7), 5, 4, stride=2, output_padding=1, dilation=2),
    transposed("transposed3d", (2, 4, 2, 3, 2), 2, 2, stride=(2, 1, 2), output_padding=(1, 0, 1)),
]
EMBEDDINGS = [
    embedding("embedding", (4, 9), 5, 6),
    embedding("embedding-padding", (4, 9), 5, 4, padding_idx=2),
    embedding("embedding-first-is-padding", (4, 9), 5, 4, padding_idx=0),
    embedding("embedding-one", (7,), 5, 4),
    embedding("embedding-grid", (3, 4, 2), 5, 100),
]
NORMS = [
    affine("groupnorm", (4, 6, 5, 3), (1,)),
    affine("groupnorm-no-bias", (4, 6, 5, 3), (1,), bias=False),
    affine("layernorm", (4, 7, 6), (2,)),
    affine("layernorm-two-dims", (4, 3, 7, 6), (2, 3)),
    affine("layernorm-of-samples", (5, 6), (1,)),
    affine("rmsnorm", (4, 7, 6), (2,), bias=False),
]
PROBLEMS = {problem.name: problem for problem in [*LINEARS, *CONVS, *EMBEDDINGS, *NORMS]}
