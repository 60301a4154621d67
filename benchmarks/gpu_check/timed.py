"""Variants timed in rounds, in rotating order: medians, quartiles, and ratios to the first within a round."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.gpu_check.machine import Machine, Sample

Call = Callable[[], object]


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else list(values) * 3
    return {"median": median, "low": low, "high": high}


def error_text(error: BaseException) -> str:
    """Type and message, not more than a screen."""
    return f"{type(error).__name__}: {error}"[:2000]


def interleaved(
    machine: Machine,
    variants: Mapping[str, Call],
    *,
    rounds: int,
    seconds: float,
    cold: bool = True,
    warmup: int = 3,
) -> dict[str, Any]:
    """Time every variant once a round; the first that works is the baseline.

    Args:
        rounds: at most so many, and after five of them none that starts later than ``seconds``.
        cold: with the caches emptied before each call.

    Returns:
        ``timings``: by variant ``seconds`` and ``host`` (of the device, and of the host until the call returned) and
        ``ratio``, each with median and quartiles. ``errors``: of variants that raised, by name. ``rounds``.
    """
    errors: dict[str, str] = {}
    working: dict[str, Call] = {}
    for name, call in variants.items():
        try:
            for _ in range(warmup):
                call()
            machine.synchronize()
            working[name] = call
        except Exception as error:  # whatever one variant raises, the others are timed
            errors[name] = error_text(error)
    names = list(working)
    samples: dict[str, list[Sample]] = {name: [] for name in names}
    begun = time.monotonic()
    done = 0
    while names and done < rounds and (done < 5 or time.monotonic() - begun < seconds):
        started = {}
        for offset in range(len(names)):
            name = names[(done + offset) % len(names)]
            if cold:
                machine.chill()
            started[name] = machine.timed(working[name])
        machine.synchronize()
        for name, read in started.items():
            samples[name].append(read())
        done += 1
    timings = {
        name: {
            "seconds": quartiles([sample.device for sample in samples[name]]),
            "host": quartiles([sample.host for sample in samples[name]]),
            "ratio": quartiles(
                [
                    own.device / max(base.device, 1e-9)
                    for own, base in zip(samples[name], samples[names[0]], strict=True)
                ]
            ),
        }
        for name in names
    }
    return {"timings": timings, "errors": errors, "rounds": done}
