"""The command line: ``python -m benchmarks.experiments.multimnist``."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks.experiments.multimnist import data, report, timing
from benchmarks.experiments.multimnist.train import METHODS, Result, Settings, SourceName, train
from fastmtl.ops.selection import backend_name

DEFAULTS = Settings()
TIMING_ROUNDS = 60


def _parse_methods(text: str) -> tuple[str, ...]:
    methods = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in methods if name not in METHODS]
    if unknown or not methods:
        raise typer.BadParameter(f"expected some of {','.join(METHODS)}, got {text!r}", param_hint="--methods")
    return methods


def run(
    methods: tuple[str, ...], settings: Settings, output: Path, console: Console, timing_rounds: int = TIMING_ROUNDS
) -> list[Result]:
    """Train with each method, time the steps, print the table and write results.json and pictures to ``output``."""
    output.mkdir(parents=True, exist_ok=True)
    train_digits, test_digits = data.split(data.load_digits(), settings.seed)
    held_out = data.held_out_pairs(test_digits, settings.held_out_pairs, settings.seed)
    say = partial(console.print, highlight=False)
    say(
        f"MultiMNIST: {len(train_digits):,} training digits, {len(test_digits):,} held-out digits; {settings.epochs} "
        f"epochs of {settings.train_pairs:,} pairs, {len(held_out):,} held-out pairs. GradNorm: source "
        f"{settings.source}, alpha {settings.alpha:g}. Backend: {backend_name(torch.device('cpu'), 'sum_norms')}."
    )
    columns = (TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    results = []
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        for method in methods:
            bar = progress.add_task(method, total=settings.steps)
            start = time.perf_counter()
            results.append(train(method, settings, train_digits, held_out, partial(progress.advance, bar)))
            if not console.is_terminal:
                say(f"{method}: {settings.steps} steps in {time.perf_counter() - start:.0f} s")
        warmup = 5
        bar = progress.add_task("step times", total=timing_rounds + warmup)
        after_round = partial(progress.advance, bar)
        times = timing.measure(
            methods, settings, train_digits, rounds=timing_rounds, warmup=warmup, after_round=after_round
        )
    console.print()
    console.print(report.table(results, times))
    say(f"\n{report.notes(settings, times)}")
    report.save_results(output / "results.json", results, times, settings)
    report.save_picture(output / "weights.png", results, settings)
    written = [f"{output / 'results.json'}", f"{output / 'weights.png'} (weights over time)"]
    if report.save_noise_picture(output / "noise.png", results, settings):
        written.append(f"{output / 'noise.png'} (GNR and variance over time)")
    say(f"\nWritten: {', '.join(written)}", soft_wrap=True)
    return results


def main(
    epochs: Annotated[int, typer.Option(min=1, help="Epochs for each method.")] = DEFAULTS.epochs,
    methods: Annotated[str, typer.Option(help="Which methods, separated by commas.")] = ",".join(METHODS),
    source: Annotated[
        SourceName, typer.Option(help="Where GradNorm measures: at the features, or at the last shared layer.")
    ] = DEFAULTS.source,
    alpha: Annotated[float, typer.Option(min=0, help="GradNorm's pull of slow tasks.")] = DEFAULTS.alpha,
    seed: Annotated[int, typer.Option(min=0, help="Of the split, the pairs and the first weights.")] = DEFAULTS.seed,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch; the same number repeats bit for bit.")] = 2,
    output: Annotated[Path, typer.Option(help="Folder for results.json and pictures.")] = Path("results/demo"),
) -> None:
    """Train MultiMNIST with each weighting method and compare them on held-out digits."""
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    settings = Settings(epochs=epochs, source=source, alpha=alpha, seed=seed)
    run(_parse_methods(methods), settings, output, _console())


def _console() -> Console:
    """A terminal as it is; a pipe or file wide enough for the table."""
    console = Console()
    return console if console.is_terminal else Console(width=100)


if __name__ == "__main__":
    typer.run(main)
