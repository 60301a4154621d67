"""A whole training step with GradNorm and MaxGNR against equal weighting: time and peak memory.

The model of `problems`, batch 8, 64x64 images, features 256 x 8 x 8.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks import timing
from benchmarks.problems import Training


def main(
    tasks: Annotated[list[int], typer.Option(help="numbers of tasks")] = [3, 10],  # noqa: B006
    rounds: int = 30,
    threads: int = 2,
    output: Annotated[Path | None, typer.Option(help="write the figures as JSON")] = None,
) -> None:
    """Print time and peak memory against equal weighting."""
    torch.set_num_threads(threads)
    console, rows = Console(width=140), []
    table = Table("T", "variant", "time / plain [quartiles]", "ms", "peak memory / plain")
    for count in tasks:
        training = Training(count)
        variants = training.variants()
        results = timing.interleaved(variants, rounds)
        peaks = {}
        for name, step in variants.items():
            training.optimizer.zero_grad()
            peaks[name] = timing.peak_bytes(step)
        plain = next(iter(peaks.values()))
        for result in results:
            memory = peaks[result.variant] / plain
            table.add_row(str(count), result.variant, str(result), f"{result.seconds * 1e3:.0f}", f"{memory:.3f}")
            rows.append({"tasks": count, **timing.as_rows([result])[0], "memory": memory})
    console.print(table)
    console.print(timing.conditions())
    if output is not None:
        output.write_text(json.dumps({"conditions": timing.conditions(), "rows": rows}, indent=1))


if __name__ == "__main__":
    typer.run(main)
