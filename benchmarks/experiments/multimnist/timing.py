"""What a training step costs with each method, measured apart from the training and method against method."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.experiments.multimnist.data import Digits, Pairs, training_pairs
from benchmarks.experiments.multimnist.train import MEASURING, Settings, Trainer
from benchmarks.timing import Ratio, interleaved
from fastmtl import ops

BASELINE = "equal"
DIVISOR = "divisor"  # a copy of its own, so that the row of equal weights shows the noise
BATCHES = 4


@dataclass(frozen=True)
class StepTimes:
    """Step times as multiples of that with equal weights, with the default backend and (measuring methods) the reference."""

    baseline_ms: float
    rounds: int
    default: dict[str, Ratio]
    reference: dict[str, Ratio]


def _steps(trainer: Trainer, batches: list[Pairs], backend: str | None) -> Callable[[], None]:
    """A call that takes the next step, on a forced backend where one is named."""
    taken = 0

    def step() -> None:
        nonlocal taken
        with ops.use_backend(backend) if backend else contextlib.nullcontext():
            trainer.step(batches[taken % len(batches)])
        taken += 1

    return step


def measure(
    methods: tuple[str, ...],
    settings: Settings,
    digits: Digits,
    *,
    rounds: int = 60,
    warmup: int = 5,
    after_round: Callable[[], None] = lambda: None,
) -> StepTimes:
    """Time whole training steps of all methods in turn, each round on the same batch for all."""
    batches = list(training_pairs(digits, BATCHES * settings.batch_size, settings.seed, 0).batches(settings.batch_size))
    variants = {DIVISOR: _steps(Trainer(BASELINE, settings), batches, None)}
    for method in methods:
        variants[method] = _steps(Trainer(method, settings), batches, None)
        if method in MEASURING:
            variants[f"{method}, reference"] = _steps(Trainer(method, settings), batches, "reference")
    ratios = {ratio.variant: ratio for ratio in interleaved(variants, rounds, warmup, after_round)}
    return StepTimes(
        baseline_ms=1e3 * ratios[DIVISOR].seconds,
        rounds=rounds,
        default={method: ratios[method] for method in methods},
        reference={method: ratios[f"{method}, reference"] for method in methods if method in MEASURING},
    )
