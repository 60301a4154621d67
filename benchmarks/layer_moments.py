"""Moments of layers beside the layer's own backward, and the constants of the cost model.

`python -m benchmarks.layer_moments` prints, for layers of many shapes, the time of each way as a ratio to the time of
the layer's backward for one task, from interleaved rounds, and which way the cost model takes.
`python -m benchmarks.layer_moments constants` measures what `fastmtl/backends/layer_moments/cost.py` assumes: each in
multiply-adds of a matrix product that take as long.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.timing import conditions, interleaved
from fastmtl import ops
from fastmtl.backends.layer_moments import patches

Moments = Callable[..., tuple[Tensor, Tensor]]


def layers(tasks: int) -> dict[str, tuple[nn.Module, Tensor, Moments]]:
    """Name, layer, input, and how its moments are called for."""
    found: dict[str, tuple[nn.Module, Tensor, Moments]] = {}
    for width in (100, 256, 512, 1024, 2048, 4096):
        found[f"linear {width}, B 256"] = nn.Linear(width, width), torch.randn(256, width), ops.linear_moments
    for positions in (4, 16, 64, 256, 1024):
        found[f"linear 256, B 16, {positions} tokens"] = (
            nn.Linear(256, 256),
            torch.randn(16, positions, 256),
            ops.linear_moments,
        )
    for channels, size in ((512, 8), (256, 8), (128, 16), (64, 32)):
        found[f"conv2d {channels}, 3x3, B 16, {size}x{size}"] = (
            nn.Conv2d(channels, channels, 3, padding=1),
            torch.randn(16, channels, size, size),
            partial(ops.conv_moments, kernel_size=3, padding=1),
        )
    found["embedding 64, B 16, 128 tokens"] = (
        nn.Embedding(10000, 64),
        torch.randint(10000, (16, 128)),
        ops.embedding_moments,
    )
    return found


def ratios(tasks: int, rounds: int) -> None:
    """Print one line a layer."""
    for name, (layer, inputs, moments) in layers(tasks).items():
        leaf = inputs.clone().requires_grad_(inputs.is_floating_point())
        output = layer(leaf)
        grads = [torch.randn_like(output) for _ in range(tasks)]
        wanted = [*layer.parameters()] + ([leaf] if leaf.requires_grad else [])

        def backward(output: Tensor = output, wanted: list[Tensor] = wanted, grads: list[Tensor] = grads) -> object:
            return torch.autograd.grad(output, wanted, grads[0], retain_graph=True)

        variants: dict[str, Callable[[], object]] = {"backward": backward}
        for way in ("auto", "pairs", "form"):
            variants[way] = partial(moments, inputs, grads, way=way)
        variants["auto, M only"] = partial(moments, inputs, grads, per_sample=False)
        base, *others = interleaved(variants, rounds=rounds, warmup=1)
        print(f"{name:36} {base.seconds * 1e3:8.2f} ms  " + "  ".join(f"{r.variant} {r}" for r in others), flush=True)


def constants() -> None:
    """Print times of small operations in multiply-adds of a matrix product of the size of a tile."""
    rows = torch.randn(512, 512)
    products = torch.randn(4, 1024, 1024)
    geometry = patches.Geometry((3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1))
    pixels, numbers = torch.randn(1, 8 * 64, 64), torch.randn(3, 1 << 22)
    grad, slots = torch.randn(4096, 64), torch.randint(4096, (4096,))
    shifted = 6 * (8 * 100) ** 2  # numbers that are shifted and added for 8 images of 8x8 pixels
    base, *others = interleaved(
        {
            "product": lambda: rows @ rows,
            "number": lambda: ops.gram(numbers),
            "formed": lambda: torch.bmm(products[:, :, :4], products[:, :4]),
            "shift": lambda: patches.patch_gram(pixels, pixels, (8, 8), geometry),
            "sum": lambda: torch.zeros_like(grad).index_add_(0, slots, grad),
        },
        rounds=20,
    )
    each = base.seconds / rows.shape[0] ** 3
    amounts = {"number": numbers.numel(), "formed": products.numel(), "shift": shifted, "sum": grad.numel()}
    print(f"a multiply-add takes {each * 1e12:.1f} ps; in multiply-adds:")
    for result in others:
        if result.variant in amounts:
            print(f"  {result.variant:8} {result.seconds / each / amounts[result.variant]:6.1f}")


if __name__ == "__main__":
    torch.manual_seed(0)
    print(conditions())
    if "constants" in sys.argv[1:]:
        constants()
    else:
        ratios(tasks=3, rounds=20)
