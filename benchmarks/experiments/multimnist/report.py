"""What the demo leaves behind: a table, results.json and a picture of the weights over time."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullFormatter
from rich.table import Table

from benchmarks.experiments.multimnist.model import TASKS
from benchmarks.experiments.multimnist.timing import BASELINE, StepTimes
from benchmarks.experiments.multimnist.train import Result, Settings
from benchmarks.timing import Ratio
from benchmarks.timing import conditions as timing_conditions
from fastmtl.ops.selection import backend_name

CPU = torch.device("cpu")
COLORS = dict(zip(TASKS, ("#0072b2", "#e69f00", "#a0a0a0"), strict=True))
# Curves often coincide: a wide one below, a dashed one above.
STYLES = dict(zip(TASKS, ("-", "--", "-"), strict=True))
WIDTHS = dict(zip(TASKS, (1.8, 1.8, 3.2), strict=True))
LAYERS = dict(zip(TASKS, (3, 4, 2), strict=True))


def title_of(method: str, settings: Settings) -> str:
    """The method as readers call it."""
    names = {"equal": "equal weights", "uncertainty": "uncertainty weighting", "dwa": "dynamic weight average"}
    names["maxgnr"] = "MaxGNR (last shared layer, relative)"
    return names.get(method, rf"GradNorm ({settings.source}, $\alpha$ = {settings.alpha:g})")


def conditions(settings: Settings, times: StepTimes) -> dict[str, Any]:
    """Under what conditions the numbers were taken."""
    return {
        **timing_conditions(),
        "batch_size": settings.batch_size,
        "backend": backend_name(CPU, "sum_norms"),
        "equal_weights_step_ms": round(times.baseline_ms, 2),
        "timing_rounds": times.rounds,
    }


def table(results: list[Result], times: StepTimes) -> Table:
    """The comparison, a row a method."""
    # Narrow, so that it fits into 80 columns.
    made = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    made.add_column("\nmethod\n")
    for header in (
        "\naccuracy %\nleft right",
        "cross\nentropy\nleft right",
        "\nrec.\nerror",
        "final\nweights\nleft right rec",
        f"step\ntime\n{backend_name(CPU, 'sum_norms')}",
        "step\ntime\nreference",
    ):
        made.add_column(header, justify="right", no_wrap=True)
    for result in results:
        made.add_row(
            result.method,
            f"{100 * result.accuracy['left']:.1f}  {100 * result.accuracy['right']:.1f}",
            f"{result.loss['left']:.2f}  {result.loss['right']:.2f}",
            f"{result.loss['reconstruction']:.1f}",
            " ".join(f"{result.weights[task][-1]:.2f}" for task in TASKS),
            _times(times.default[result.method]),
            _times(times.reference.get(result.method)),
        )
    return made


def _times(ratio: Ratio | None) -> str:
    return "-" if ratio is None else f"{ratio.ratio:.2f}x\n{ratio.low:.2f}-{ratio.high:.2f}"


def notes(settings: Settings, times: StepTimes) -> str:
    """What the table's numbers mean, printed below it."""
    now = conditions(settings, times)
    return (
        f"One run a method, all from the same first weights and on the same batches (seed {settings.seed}, "
        f"{settings.epochs} epochs, {settings.steps} steps). Losses are unweighted; rec. error: squared error of the "
        f"reconstruction, summed over an image. GradNorm: source {settings.source}, alpha {settings.alpha:g}. MaxGNR: last "
        f"shared layer, relative objective.\n"
        f"Step time: a whole training step as a multiple of the one with equal weights ({times.baseline_ms:.1f} ms): "
        f"median, below it the quartiles, over the quieter half of {times.rounds} rounds in which all took turns. The row "
        f"{BASELINE!r} is a second copy of the same, so it shows the noise. Methods that measure gradients are also "
        f"timed with the reference backend.\n"
        f"torch {now['torch']}, threads: {now['threads']}, batch size {now['batch_size']}, CPU: {now['processor']}, backend: "
        f"{now['backend']}."
    )


def save_results(path: Path, results: list[Result], times: StepTimes, settings: Settings) -> None:
    """All numbers, the weights of every step included, as JSON."""
    everything = {
        "settings": dataclasses.asdict(settings),
        "conditions": conditions(settings, times),
        "results": [dataclasses.asdict(result) for result in results],
        "step_times": dataclasses.asdict(times),
    }
    path.write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")


def save_picture(path: Path, results: list[Result], settings: Settings) -> None:
    """The weights over time, a panel a method, all on the same axes."""
    panels = {title_of(result.method, settings): result.weights for result in results}
    _save_curves(path, panels, settings, "task weight (logarithmic)", same_axis=True)


def save_noise_picture(path: Path, results: list[Result], settings: Settings) -> bool:
    """GNR and per-sample gradient variance over time, where a method measured them; whether one did."""
    names = {"gnr": "gradient-to-noise ratio in the update", "variance": "per-sample gradient variance"}
    panels = {names[what]: values for result in results for what, values in result.noise.items()}
    if panels:
        _save_curves(path, panels, settings, "last shared layer (logarithmic)", same_axis=False)
    return bool(panels)


def _save_curves(
    path: Path, panels: dict[str, dict[str, list[float]]], settings: Settings, label: str, *, same_axis: bool
) -> None:
    """Curves by task over the epochs, a panel each."""
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.6 * columns, 0.7 + 2.7 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=same_axis, squeeze=False)
    for axis, (title, curves) in zip(axes.flat, panels.items(), strict=False):
        for task, values in curves.items():
            epochs = [step * settings.epochs / settings.steps for step in range(len(values))]
            style = {"color": COLORS[task], "linewidth": WIDTHS[task], "zorder": LAYERS[task]}
            axis.plot(epochs, values, STYLES[task], label=task, **style)
        axis.set_title(title, fontsize=11)
        axis.set_yscale("log")
        axis.grid(color="0.9", linewidth=0.8)
        axis.spines[["top", "right"]].set_visible(False)
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis in axes.flat[max(0, len(panels) - columns) : len(panels)]:  # the lowest of each column
        axis.tick_params(labelbottom=True)
    figure.supxlabel("epoch", fontsize=10)
    figure.supylabel(label, fontsize=10)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(TASKS), frameon=False)
    figure.savefig(path, dpi=150)
