"""Executes launches of Triton kernels as the PTX that they are compiled to, in the PTX executor.

The executor is a development tool beside the project: ``FASTMTL_PTXEMU`` names the directory of its ``ptxemu.py``.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from tests.gpu.calls import without_calls
from tests.gpu.launches import Launch, emulator_path, intercepted


def emulator() -> Any:
    """The executor's module; the test is skipped where it is not there."""
    path = emulator_path()
    if path is None:
        pytest.skip("the PTX executor is not here: set FASTMTL_PTXEMU to its directory")
    if path not in sys.path:
        sys.path.append(path)
    module = importlib.import_module("ptxemu")
    if not hasattr(module._Chunk, "knows_half_words"):
        _teach_half_words(module._Chunk)
    return module


def _teach_half_words(chunk: Any) -> None:
    """Races in shared memory are sought by words: the second half of a vector's word was checked with its first.

    Without this, warps that store the same halves seem to race.
    """
    check = chunk._race

    def race(self: Any, address: Any, mask: Any, write: bool, same: Any = False) -> None:
        before = getattr(self, "half_words", None)
        halves = write and before is not None and np.array_equal(before[1], mask) and (address % 4 == 2).all()
        if halves and np.array_equal(before[0] + 2, address):
            same = True
        self.half_words = (address, mask) if write else None
        check(self, address, mask, write, same)

    chunk._race, chunk.knows_half_words = race, True


@dataclass
class Run:
    """What was executed: each launch with its counts of bytes, and what its PTX looks like."""

    launches: list[Launch] = field(default_factory=list)
    counts: list[dict[str, int]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def total(self, key: str) -> int:
        """A count over all launches."""
        return sum(counts.get(key, 0) for counts in self.counts)


def _storage(tensor: Tensor) -> np.ndarray[Any, Any]:
    with _disable_current_modes():  # to `_Written` this would be a write
        flat = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
    return flat.numpy()


class _Written(TorchDispatchMode):
    """Knows which bytes of the tensors that were made uninitialised have been written since, by launches."""

    def __init__(self) -> None:
        super().__init__()
        self.masks: dict[int, tuple[torch.UntypedStorage, np.ndarray[Any, Any]]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"):
            storage = made.untyped_storage()
            self.masks[storage.data_ptr()] = (
                storage,
                np.zeros(storage.nbytes(), bool),
            )  # held: its address stays its own
        elif func._schema.is_mutable and isinstance(made, Tensor):
            self.masks.pop(made.untyped_storage().data_ptr(), None)  # written by torch
        return made

    def mask(self, start: int, size: int) -> np.ndarray[Any, Any]:
        """A byte each: whether it has been written."""
        return self.masks[start][1] if start in self.masks else np.ones(size, bool)


def executable(text: str) -> str:
    """PTX that the executor knows: no calls; rounding to tf32, halves away from zero, in integer arithmetic."""
    rounding = r"cvt\.rna\.tf32\.f32\s+(%\w+), (%\w+);"
    return re.sub(rounding, r"add.u32 \1, \2, 4096;\n\tand.b32 \1, \1, -8192;", without_calls(text))


def execute(
    launch: Launch, written: _Written, seed: int = 0, text: str | None = None, **options: Any
) -> tuple[dict[str, int], dict[int, tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]]:
    """One launch of ``text``, by default its PTX for sm_80: the counts, and each storage's bytes and which are written."""
    ptxemu = emulator()
    compiled = launch.compiled()
    device = ptxemu.Device(size=options.pop("size", 1 << 26))
    bases: dict[int, int] = {}
    raws: dict[int, np.ndarray[Any, Any]] = {}
    values: list[Any] = []
    for value, kind in launch.arguments():
        if isinstance(value, Tensor):
            raw, start = _storage(value), value.untyped_storage().data_ptr()
            if start not in bases:
                raws[start] = raw
                base = bases[start] = device.put(raw, value_name(launch, value))
                device.init[base : base + len(raw)] = written.mask(start, len(raw))
            values.append(bases[start] + value.data_ptr() - start)
        elif kind == "fp64":
            values.append(np.float64(value))
        elif kind == "fp32":
            values.append(np.float32(value))
        else:
            values.append(int(value))
    module = ptxemu.Module(executable(text or compiled.asm["ptx"]))
    threads = 32 * compiled.metadata.num_warps
    counts = ptxemu.launch(
        device, module, compiled.metadata.name, launch.grid, threads, values,
        dynshared=compiled.metadata.shared, seed=seed, race_global=True, **options,
    )  # fmt: skip

    after = {}
    for start, base in bases.items():
        size = len(raws[start])
        after[start] = (device.mem[base : base + size].copy(), device.init[base : base + size].copy())
    return dict(counts), after


def value_name(launch: Launch, value: Tensor) -> str:
    """The name of the kernel's argument that a tensor is, or is part of."""

    def holds(item: Any) -> bool:
        return item is value or (isinstance(item, tuple) and any(holds(part) for part in item))

    return next((name for name, item in launch.bound.items() if holds(item)), "?")


@contextlib.contextmanager
def executed_as_ptx(seeds: Sequence[int] = (0, 1, 2), **options: Any) -> Iterator[Run]:
    """While inside, launches run as PTX, once for each seed (an order of blocks and warps): all must give the same bits."""
    emulator()
    run = Run()

    def handle(launch: Launch) -> None:
        results = [execute(launch, written, seed, **options) for seed in seeds]
        counts, memory = results[0]
        for _, other in results[1:]:
            for start, (bytes_of, _) in memory.items():
                assert np.array_equal(bytes_of, other[start][0]), (
                    f"{launch.name}: the order of blocks changes the result"
                )
        run.launches.append(launch)
        run.counts.append(counts)
        run.texts.append(launch.compiled().asm["ptx"])
        for value, _ in launch.arguments():
            if isinstance(value, Tensor):
                start = value.untyped_storage().data_ptr()
                _storage(value)[:] = memory[start][0]
                if start in written.masks:
                    written.masks[start][1][:] = memory[start][1]

    written = _Written()
    with written, intercepted(handle):
        yield run
