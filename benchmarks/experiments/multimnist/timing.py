"""What a training step costs with each method, measured apart from the training and method against method."""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.experiments.multimnist.data import Digits, training_pairs
from benchmarks.experiments.multimnist.train import MEASURING, Settings, Trainer
from fastmtl import ops
from fastmtl.ops import selection

BASELINE = "equal"
DIVISOR = ("divisor", None)  # a copy of its own, so that the row of equal weights shows the noise
BATCHES = 4


@dataclass(frozen=True)
class Ratio:
    """Step time as a multiple of the step time with equal weights: median and quartiles over the rounds."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class StepTimes:
    """Ratios by method, with the default backend and (measuring methods) with the reference."""

    baseline_ms: float  # median step with equal weights and the default backend
    rounds: int
    default: dict[str, Ratio]
    reference: dict[str, Ratio]


def measure(
    methods: tuple[str, ...],
    settings: Settings,
    digits: Digits,
    *,
    rounds: int = 60,
    warmup: int = 5,
    after_round: Callable[[], None] = lambda: None,
) -> StepTimes:
    """Time whole training steps of all methods in turn.

    Each round takes one step with every method on the same batch, and divides by the step with equal weights of that
    round: what slows the machine for a while slows all of them. The order moves on by one each round, since the first
    of a round may differ from the last.
    """
    variants: dict[tuple[str, str | None], Trainer] = {DIVISOR: Trainer(BASELINE, settings)}
    for method in methods:
        variants[method, None] = Trainer(method, settings)
        if method in MEASURING:
            variants[method, "reference"] = Trainer(method, settings)
    batches = list(training_pairs(digits, BATCHES * settings.batch_size, settings.seed, 0).batches(settings.batch_size))
    names = list(variants)
    seconds: dict[tuple[str, str | None], list[float]] = {name: [] for name in names}
    for index in range(warmup + rounds):
        first = index % len(names)
        for name in names[first:] + names[:first]:
            with ops.use_backend(name[1]) if name[1] else contextlib.nullcontext():
                start = time.perf_counter()
                variants[name].step(batches[index % BATCHES])
                seconds[name].append(time.perf_counter() - start)
        after_round()
    taken = {name: np.array(values[warmup:]) for name, values in seconds.items()}
    baseline = taken[DIVISOR]
    ratios = {name: _ratio(values / baseline) for name, values in taken.items()}
    return StepTimes(
        baseline_ms=1e3 * float(np.median(baseline)),
        rounds=rounds,
        default={method: ratios[method, None] for method in methods},
        reference={method: ratios[method, "reference"] for method in methods if method in MEASURING},
    )


def _ratio(values: np.ndarray) -> Ratio:
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
    return Ratio(median, low, high)


def backend_name() -> str:
    """The backend that runs by default on this machine's CPU: "cpp", or "reference" where that is not built."""
    return selection.backend_for(torch.device("cpu"), "sum_norms").__name__.rpartition(".")[2]


def cpu_name() -> str:
    """The model of the CPU."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
