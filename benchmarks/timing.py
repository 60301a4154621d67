"""Timing of alternatives side by side: interleaved, in quiet rounds, as ratios to the first of them."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own messages

import torch


@dataclass(frozen=True)
class Ratio:
    """A variant's time against the baseline's of the same round: median and quartiles over the quiet rounds."""

    variant: str
    seconds: float
    ratio: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.ratio:.3f} [{self.low:.3f}, {self.high:.3f}]"


def interleaved(
    variants: Mapping[str, Callable[[], object]],
    rounds: int = 30,
    warmup: int = 3,
    after_round: Callable[[], None] = lambda: None,
) -> list[Ratio]:
    """Time every variant once a round, in rotating order; the first is the baseline.

    The machine may be shared: the half of the rounds that took longest in all is left out.
    """
    names = list(variants)
    for _ in range(warmup):
        for name in names:
            variants[name]()
        after_round()
    timed: list[dict[str, float]] = []
    for index in range(rounds):
        seconds = {}
        for offset in range(len(names)):
            name = names[(index + offset) % len(names)]
            start = time.perf_counter()
            variants[name]()
            seconds[name] = time.perf_counter() - start
        timed.append(seconds)
        after_round()
    quiet = sorted(timed, key=lambda seconds: sum(seconds.values()))[: max(2, rounds // 2)]
    results = []
    for name in names:
        ratios = [seconds[name] / seconds[names[0]] for seconds in quiet]
        low, _, high = statistics.quantiles(ratios, n=4)
        median = statistics.median(seconds[name] for seconds in quiet)
        results.append(Ratio(name, median, statistics.median(ratios), low, high))
    return results


def peak_bytes(step: Callable[[], object]) -> int:
    """Most memory that one call allocates on top of what was there, from the allocator's own records."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    # Of one cycle: ``acc_events`` changes nothing, but without it torch 2.11 warns that it keeps no others.
    with torch.profiler.profile(profile_memory=True, activities=activities, acc_events=True) as profile:
        step()
    records = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(records, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def conditions() -> dict[str, str | int]:
    """What a figure depends on."""
    processor = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as lines:
            processor = next((line.split(":")[1].strip() for line in lines if "model name" in line), processor)
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "processor": processor,
    }


def as_rows(results: list[Ratio]) -> list[dict[str, object]]:
    """For a results file."""
    return [asdict(result) for result in results]
