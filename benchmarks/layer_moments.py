"""Moments of layers beside the layer's own backward, and the constants of the cost model.

``constants`` measures what `fastmtl/backends/layer_moments/cost.py` assumes: each in multiply-adds of a matrix product
that take as long.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks import timing
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


def cases(tasks: int) -> Iterator[tuple[str, dict[str, Callable[[], object]]]]:
    """Name, and the layer's backward for one task, then each way to its moments."""
    for name, (layer, inputs, moments) in layers(tasks).items():
        leaf = inputs.clone().requires_grad_(inputs.is_floating_point())
        output = layer(leaf)
        grads = [torch.randn_like(output) for _ in range(tasks)]
        wanted = [*layer.parameters()] + ([leaf] if leaf.requires_grad else [])
        yield (
            name,
            {
                "backward": partial(torch.autograd.grad, output, wanted, grads[0], retain_graph=True),
                **{way: partial(moments, inputs, grads, way=way) for way in ("auto", "pairs", "form")},
                "auto, M only": partial(moments, inputs, grads, per_sample=False),
            },
        )


app = typer.Typer(no_args_is_help=True)


@app.command()
def ratios(
    tasks: int = 3,
    rounds: int = 40,
    threads: int = 2,
    output: Annotated[Path | None, typer.Option(help="write the figures as JSON")] = None,
) -> None:
    """Print, for layers of many shapes, the time of the moments against the layer's own backward for one task."""
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    console, rows = Console(width=150), []
    table = Table("layer", "backward, ms", "auto", "pairs", "form", "auto, M only")
    for name, variants in cases(tasks):
        base, *others = timing.interleaved(variants, rounds, warmup=1)
        table.add_row(name, f"{base.seconds * 1e3:.2f}", *(str(ratio) for ratio in others))
        rows.append({"layer": name, "tasks": tasks, "backward": base.seconds, "ways": timing.as_rows(others)})
    console.print(table)
    console.print(timing.conditions())
    if output is not None:
        output.write_text(json.dumps({"conditions": timing.conditions(), "rows": rows}, indent=1) + "\n")


@app.command()
def constants() -> None:
    """Print times of small operations in multiply-adds of a matrix product of the size of a tile."""
    rows = torch.randn(512, 512)
    products = torch.randn(4, 1024, 1024)
    geometry = patches.Geometry((3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1))
    pixels, numbers = torch.randn(1, 8 * 64, 64), torch.randn(3, 1 << 22)
    grad, slots = torch.randn(4096, 64), torch.randint(4096, (4096,))
    shifted = 6 * (8 * 100) ** 2  # numbers that are shifted and added for 8 images of 8x8 pixels
    base, *others = timing.interleaved(
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
    app()
