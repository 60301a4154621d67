"""A whole training step with GradNorm and MaxGNR against equal weights: time, peak memory, and as a CUDA graph."""

from __future__ import annotations

import functools
from typing import Any

from benchmarks.gpu_check.machine import Machine
from benchmarks.gpu_check.running import Item, Scale
from benchmarks.gpu_check.timed import error_text, interleaved
from benchmarks.problems import Training

GRAPHS = ("equal weighting, plain loop", "GradNorm, features", "MaxGNR, features")


def _made(machine: Machine, tasks: int, autocast: bool, scale: Scale) -> Training:
    batch, width, size = scale.step
    return Training(tasks, batch=batch, width=width, size=size, device=machine.device, autocast=autocast)


def _timed(machine: Machine, tasks: int, autocast: bool, scale: Scale) -> dict[str, Any]:
    """Steps as they are, caches as a step finds them."""
    training = _made(machine, tasks, autocast, scale)
    variants = training.variants()
    figures = interleaved(machine, variants, rounds=scale.rounds, seconds=3 * scale.seconds, cold=False)
    peaks = {}
    for name in figures["timings"]:
        training.optimizer.zero_grad()
        peaks[name] = machine.peak_bytes(variants[name])
    return {**figures, "peaks": peaks}


def _graphs(machine: Machine, tasks: int, autocast: bool, scale: Scale) -> dict[str, Any]:
    """Steps captured whole, optimiser and all, and replayed: what is left of the price without launches.

    Each variant has a model of its own, as a captured step keeps its gradients in memory of its own.
    """
    errors: dict[str, str] = {}
    replays = {}
    for name in GRAPHS:
        training = _made(machine, tasks, autocast, scale)
        try:
            replays[name], _ = machine.captured(training.variants()[name])
        except Exception as error:
            errors[name] = error_text(error)
    figures = interleaved(machine, replays, rounds=scale.rounds, seconds=2 * scale.seconds, cold=False)
    return {**figures, "errors": {**figures["errors"], **errors}}


def times(scale: Scale) -> list[Item]:
    """float32 and bfloat16 autocast, then the same as graphs."""
    return [
        Item(
            f"step{kind} {'bfloat16 autocast' if autocast else 'float32'} T={tasks}",
            functools.partial(run, tasks=tasks, autocast=autocast, scale=scale),
        )
        for kind, run in (("", _timed), (" as a graph", _graphs))
        for tasks in scale.step_tasks
        for autocast in (False, True)
    ]
