"""Sections, their items, and how items are worked off in one process."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.gpu_check.machine import Machine
from benchmarks.gpu_check.timed import error_text


class Skipped(Exception):
    """An item that cannot run here, with the reason: neither done nor failed."""


@dataclass(frozen=True)
class Item:
    """One thing to check or to time; ``run`` returns what goes to the results.

    ``wrong`` in what it returns (a text), or ``errors`` (texts by name), make it failed.
    """

    name: str
    run: Callable[[Machine], dict[str, Any]]


@dataclass(frozen=True)
class Scale:
    """How large everything is; tests make it tiny."""

    tasks: tuple[int, ...] = (3, 10, 40)
    dtypes: tuple[torch.dtype, ...] = (torch.bfloat16, torch.float32)
    elements: tuple[int, ...] = (2**24, 2**22, 2**20, 2**26)
    small: int = 2**20  # elements of first calls and determinism
    layer_tasks: tuple[int, ...] = (3, 10)
    layers: int = 1  # sizes of the layers are divided by this
    copied: int = 2**30  # bytes of the buffer whose copy gives the bandwidth
    large: tuple[int, int] = (2**11 + 1, 2**20)  # more than 2^31 elements
    step: tuple[int, int, int] = (128, 64, 64)  # batch, width, size of the images
    step_tasks: tuple[int, ...] = (3, 10)
    cases: tuple[str, ...] | None = None  # ops of the self-check; all
    rounds: int = 30
    seconds: float = 1.5  # of timing for an item
    repeats: int = 10


@dataclass(frozen=True)
class Section:
    """Items that belong together.

    ``share``: of the time; what a section leaves goes to those after it. ``workers``: processes that may share its items,
    1 where times are measured. ``limit``: seconds after which an item counts as hanging.
    """

    name: str
    share: float
    items: Callable[[Scale], list[Item]]
    workers: int = 1
    limit: float = 90.0


def work(
    machine: Machine,
    items: Sequence[Item],
    indices: Sequence[int],
    deadline: float,
    emit: Callable[[dict[str, Any]], None],
) -> None:
    """Work off the items at ``indices`` until ``deadline`` (`time.monotonic`); ``emit`` gets a record before and after each.

    Raises:
        RuntimeError: the device does not recover from what an item did to it.
    """
    for index in indices:
        if time.monotonic() >= deadline:
            return
        item, begun = items[index], time.monotonic()
        emit({"begin": index})
        try:
            figures = item.run(machine)
            machine.synchronize()
            status = "failed" if figures.get("wrong") or figures.get("errors") else "ok"
        except Skipped as reason:
            status, figures = "skipped", {"reason": str(reason)}
        except Exception as error:  # one item's failure is a result
            status, figures = "failed", {"error": error_text(error), "traceback": traceback.format_exc()[-3000:]}
        seconds = time.monotonic() - begun
        emit({"index": index, "name": item.name, "status": status, "took": seconds, **figures})
        if status == "failed":
            machine.synchronize()  # raises where the process is spoiled
