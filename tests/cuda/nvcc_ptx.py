"""Executes launches of the CUDA backend as the PTX that nvcc makes of its kernels, in the PTX executor."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.cuda.hosting import BUILD, KERNELS, alone, compiled_files, launches_go_to, newest
from tests.gpu.ptx import _storage, emulator

NVCC_FLAGS = ["-std=c++17", "-O3"]


def nvcc() -> str:
    """The compiler; the test is skipped where it is not there."""
    found = os.environ.get("NVCC") or shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if not found:
        pytest.skip("nvcc is not here")
    return found


def ptx_of(source: Path, target: int) -> Path:
    made = BUILD / f"{source.stem}.{target}.ptx"
    with alone(made.name):
        if not made.exists() or made.stat().st_mtime < newest("csrc/kernels/**/*.*"):
            new = made.with_suffix(".new")
            compiled_files([[nvcc(), *NVCC_FLAGS, "-ptx", f"-arch=sm_{target}", str(source), "-o", str(new)]])
            new.replace(made)
    return made


@functools.cache
def _file_of(kernel: str, target: int) -> tuple[Path, str]:
    """The file that holds a kernel, and its text; of the sources only those that name it are compiled."""
    for source in KERNELS:
        names = re.findall(r"(\w+_kernel)\(\s*const __grid_constant__", source.read_text())
        if not any(f"{len(name)}{name}" in kernel for name in names):
            continue
        path = ptx_of(source, target)
        text = path.read_text()
        if f".entry {kernel}(" in text:
            return path, text
    raise AssertionError(f"no source has the kernel {kernel}")


def _entry(kernel: str, text: str) -> tuple[int, int]:
    """Where a kernel begins and ends."""
    start = text.index(".visible .entry " + kernel + "(")
    start = text.rindex("\n", 0, start) if start else 0
    end = text.find(".visible .entry", start + 30)
    return start, end if end > 0 else len(text)


@functools.cache
def _module_of(path: Path, kernel: str, text: str) -> Any:
    """Of one kernel alone: files are long."""
    start, end = _entry(kernel, text)
    head = text[: text.index(".visible .entry")]
    weak = head.find("\t// .weak")
    return emulator().Module((head if weak < 0 else head[:weak]) + text[start:end])


@functools.cache
def _no_pointers(kernel: str, text: str) -> frozenset[int]:
    """The words of a kernel's arguments of which it reads a part: what else is in them may be what a pointer left there."""
    start, end = _entry(kernel, text)
    body = text[start:end]
    bases = re.findall(r"mov\.[bu]64\s+(%rd\d+), \w+_param_0;", body)
    words = set()
    for base, offset in re.findall(r"ld\.param\.(?:v2\.|v4\.)?[busf](?:8|16|32)\s[^\[]*\[([%\w]+)(?:\+(\d+))?\]", body):
        if base in bases or base.endswith("_param_0"):
            words.add(int(offset or 0) // 8)
    return frozenset(words)


@dataclass
class Run:
    """What was executed."""

    launches: list[SimpleNamespace] = field(default_factory=list)
    counts: list[dict[str, int]] = field(default_factory=list)

    def total(self, key: str) -> int:
        """A count over all launches."""
        return sum(counts.get(key, 0) for counts in self.counts)


class _Memory(TorchDispatchMode):
    """Knows all tensors that ops have seen or made, and which bytes of those made uninitialised have been written."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, tuple[Tensor, np.ndarray[Any, Any]]] = {}

    def note(self, value: Any, written: bool = True) -> None:
        for tensor in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().nbytes():
                start = tensor.untyped_storage().data_ptr()
                if start not in self.storages or not written:
                    size = tensor.untyped_storage().nbytes()
                    self.storages[start] = (tensor, np.full(size, written, bool))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for value in (*args, *kwargs.values()):
            self.note(value)
        name = func.overloadpacket.__name__
        if func.namespace == "fastmtl_cuda":
            with self:  # what it allocates shall be known
                return func._op_dk(torch._C.DispatchKey.CPU, *args, **kwargs)
        made = func(*args, **kwargs)
        self.note(made, written=name not in ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"))
        if func._schema.is_mutable and args and isinstance(args[0], Tensor) and args[0].untyped_storage().nbytes():
            self.storages[args[0].untyped_storage().data_ptr()][1][:] = True
        return made


def execute(
    launch: SimpleNamespace,
    memory: _Memory,
    module: Any,
    seed: int,
    resident: int | None,
    no_pointers: Collection[int] = (),
    size: int = 1 << 26,
) -> tuple[dict[str, int], dict[int, tuple[Any, Any]]]:
    """One launch: its counts, and each storage's bytes, and which are written."""
    ptxemu = emulator()
    device = ptxemu.Device(size=size)
    bases: dict[int, int] = {}
    words = np.frombuffer(launch.parameters.ljust(-(-len(launch.parameters) // 8) * 8, b"\0"), np.uint64).copy()
    for i, word in enumerate(words):  # pointers become addresses of the executor
        if i in no_pointers:
            continue
        for start, (tensor, written) in memory.storages.items():
            if start <= word < start + len(written):
                if start not in bases:
                    raw = _storage(tensor)
                    bases[start] = device.put(raw, f"tensor {len(bases)}")
                    device.init[bases[start] : bases[start] + len(raw)] = written
                words[i] = bases[start] + int(word) - start
    counts = ptxemu.launch(
        device, module, launch.name, launch.blocks, launch.threads, [words.tobytes()[: len(launch.parameters)]],
        seed=seed, resident=resident, race_global=True,
    )  # fmt: skip
    after = {}
    for start, base in bases.items():
        end = base + len(memory.storages[start][1])
        after[start] = (device.mem[base:end].copy(), device.init[base:end].copy())
    return dict(counts), after


@contextlib.contextmanager
def executed_as_nvcc_ptx(
    target: int = 80, seeds: Sequence[int] = (0, 1), resident: Sequence[int | None] = (None, 1), **options: Any
) -> Iterator[Run]:
    """While inside, the CUDA backend's launches run as PTX, once for each order of blocks: all must give the same bits."""
    emulator()
    run, memory = Run(), _Memory()

    def handle(launch: SimpleNamespace) -> None:
        path, text = _file_of(launch.name, target)
        module = _module_of(path, launch.name, text)
        other = _no_pointers(launch.name, text)
        results = [
            execute(launch, memory, module, seed, held, other) for seed, held in zip(seeds, resident, strict=True)
        ]
        counts, after = results[0]
        for _, again in results[1:]:
            for start, (bytes_of, _) in after.items():
                assert np.array_equal(bytes_of, again[start][0]), (
                    f"{launch.name}: the order of blocks changes the result"
                )
        assert not counts.get("lld_bytes") and not counts.get("lst_bytes"), f"{launch.name} uses local memory"
        run.launches.append(launch)
        run.counts.append(counts)
        for start, (bytes_of, written) in after.items():
            tensor, mask = memory.storages[start]
            _storage(tensor)[:] = bytes_of
            mask[:] = written

    with launches_go_to(handle, **options), memory:
        yield run
