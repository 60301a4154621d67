"""The device layer: clock, caches, graphs, streams and memory of one GPU."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


@dataclass(frozen=True)
class Sample:
    """Seconds of one call: on the device, and of the host until the call returned."""

    device: float
    host: float


class Machine(Protocol):
    """What the sections know of the device."""

    device: torch.device

    def synchronize(self) -> None:
        """Wait for all that was started."""

    def chill(self) -> None:
        """Leave nothing in the caches that a call could use, nor anything that they still have to write."""

    def timed(self, call: Callable[[], object]) -> Callable[[], Sample]:
        """Start a call; what is returned says how long it took, after `synchronize`."""

    def captured(self, call: Callable[[], Result]) -> tuple[Callable[[], object], Result]:
        """What replays the call as a graph, and the results that each replay writes anew."""

    def on_streams(self, call: Callable[[], Result], times: int) -> list[Result]:
        """Results of the call, started in turn on two streams that run side by side."""

    def peak_bytes(self, call: Callable[[], object]) -> int:
        """Most memory that the call takes on top of what is taken."""

    def free_bytes(self) -> int:
        """Memory that can still be taken."""

    def conditions(self) -> dict[str, Any]:
        """What figures depend on."""


class Gpu:
    """The current GPU of `torch.cuda` (ROCm too)."""

    def __init__(self) -> None:
        self.device = torch.device("cuda", torch.cuda.current_device())
        self._flush: tuple[Tensor, Tensor] | None = None

    def synchronize(self) -> None:
        """Wait for all that was started."""
        torch.cuda.synchronize()

    def chill(self) -> None:
        """Write, then read, more than the L2 cache holds: the read leaves it full of lines that need no writing back.

        Without the read the timed call would pay for writing back lines that are not its own.
        """
        if self._flush is None:
            properties = torch.cuda.get_device_properties(self.device)
            size = max(256 << 20, 4 * getattr(properties, "L2_cache_size", 0))
            self._flush = torch.zeros(size // 4, device=self.device), torch.zeros((), device=self.device)
        buffer, total = self._flush
        buffer.zero_()
        torch.sum(buffer, dim=0, out=total)

    def timed(self, call: Callable[[], object]) -> Callable[[], Sample]:
        """Events before and after: while `chill` runs, the host is ahead, so gaps between launches show only if it falls back."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        begun = time.perf_counter()
        call()
        host = time.perf_counter() - begun
        end.record()
        return lambda: Sample(start.elapsed_time(end) * 1e-3, host)

    def captured(self, call: Callable[[], Result]) -> tuple[Callable[[], object], Result]:
        """Warmed up on a stream of its own, as capture wants it."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(stream)
        self.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = call()
        # The graph reads the memory of what the call reads: both live as long as the replay.
        return functools.partial(_replay, graph, call, results), results

    def on_streams(self, call: Callable[[], Result], times: int) -> list[Result]:
        """Results of the call, started in turn on two streams that run side by side."""
        streams = [torch.cuda.Stream() for _ in range(2)]
        self.synchronize()
        results = []
        for index in range(times):
            with torch.cuda.stream(streams[index % 2]):
                results.append(call())
        self.synchronize()
        return results

    def peak_bytes(self, call: Callable[[], object]) -> int:
        """Most memory that the call takes on top of what is taken."""
        self.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        self.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def free_bytes(self) -> int:
        """Memory that can still be taken; what torch keeps for later is given back first."""
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info()[0]

    def conditions(self) -> dict[str, Any]:
        """The GPU, its driver, and its clocks as they are now."""
        properties = torch.cuda.get_device_properties(self.device)
        return {
            "device": properties.name,
            "capability": list(torch.cuda.get_device_capability(self.device)),
            "processors": properties.multi_processor_count,
            "memory": properties.total_memory,
            "l2_cache": getattr(properties, "L2_cache_size", None),
            "cuda": torch.version.cuda,
            "hip": torch.version.hip,
            **_driver(),
        }


def _replay(graph: torch.cuda.CUDAGraph, *held: object) -> None:
    graph.replay()


def _driver() -> dict[str, str]:
    fields = ("driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "power.limit", "persistence_mode")
    if shutil.which("nvidia-smi") is None:
        return {}
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(fields, (value.strip() for value in said.splitlines()[0].split(",")), strict=False))


def triton_version() -> str | None:
    """Of the Triton that is installed."""
    if importlib.util.find_spec("triton") is None:
        return None
    return str(importlib.import_module("triton").__version__)


def flat(results: Any) -> list[Tensor]:
    """All tensors in nested results."""
    if isinstance(results, Tensor):
        return [results]
    if isinstance(results, (list, tuple)):
        return [tensor for result in results for tensor in flat(result)]
    return []
