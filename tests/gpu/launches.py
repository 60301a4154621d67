"""Catches the launches of Triton kernels, so that they can be compiled and executed without a GPU."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

TARGETS = {f"sm_{arch}": GPUTarget("cuda", arch, 32) for arch in (80, 90, 100, 120)} | {
    "gfx942": GPUTarget("hip", "gfx942", 64)
}
SM80 = TARGETS["sm_80"]
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


class Pointer:
    """Stands for a tensor whose memory does not exist: what Triton looks at when it specialises a kernel."""

    def __init__(self, tensor: torch.Tensor):
        self.dtype = tensor.dtype
        self._offset = tensor.storage_offset() * tensor.element_size()

    def data_ptr(self) -> int:
        return self._offset


def _with_pointers(value: Any) -> Any:
    if isinstance(value, torch._subclasses.FakeTensor):
        return Pointer(value)
    return tuple(_with_pointers(item) for item in value) if isinstance(value, tuple) else value


@dataclass
class Launch:
    """One launch: ``kernel[grid](*args, **kwargs)``."""

    kernel: JITFunction[Any]
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def name(self) -> str:
        return self.kernel.fn.__name__

    @functools.cached_property
    def bound(self) -> dict[str, Any]:
        """The kernel's arguments by name."""
        names = [parameter.name for parameter in self.kernel.params]
        positional = dict(zip(names, self.args, strict=False))
        return positional | {name: self.kwargs[name] for name in names if name in self.kwargs}

    def specialized(self, target: GPUTarget) -> tuple[Any, dict[str, Any], Any, Any]:
        """Options, signature, constants and attributes, as Triton's own launch derives them."""
        backend = make_backend(target)
        binder = create_function_from_signature(self.kernel.signature, self.kernel.params, backend)
        args, kwargs = _with_pointers(self.args), {k: _with_pointers(v) for k, v in self.kwargs.items()}
        bound, specialization, options = binder(*args, **{"debug": False, **kwargs})
        return self.kernel._pack_args(backend, kwargs, bound, specialization, options)

    def compiled(self, target: GPUTarget = SM80) -> Any:
        """The kernel as it would be compiled for this launch on ``target``."""
        options, signature, constexprs, attrs = self.specialized(target)
        source = ASTSource(fn=self.kernel, signature=signature, constexprs=constexprs, attrs=attrs)
        return triton.compile(source, target=target, options=options.__dict__)

    def arguments(self, target: GPUTarget = SM80) -> list[tuple[Any, str]]:
        """Values and types of what the compiled kernel takes: tuples flattened, constants left out."""
        _, signature, _, _ = self.specialized(target)
        flat: list[tuple[Any, str]] = []

        def walk(value: Any, kind: Any) -> None:
            if isinstance(kind, (tuple, list)):
                for item, item_kind in zip(value, kind, strict=True):
                    walk(item, item_kind)
            elif kind != "constexpr":
                flat.append((value, kind))

        for name, kind in signature.items():
            walk(self.bound[name], kind)
        return flat


@contextlib.contextmanager
def intercepted(handle: Callable[[Launch], None]) -> Iterator[None]:
    """While inside, every launch goes to ``handle`` and nowhere else."""
    original = JITFunction.run

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        handle(Launch(self, tuple(grid), args, kwargs))

    JITFunction.run = run
    try:
        yield
    finally:
        JITFunction.run = original


@dataclass(frozen=True)
class Usage:
    """What ptxas made of a kernel."""

    registers: int
    stack: int  # bytes of local memory: spills and arrays that are indexed at run time
    shared: int  # bytes, without dynamic shared memory


def usage(compiled: Any) -> Usage:
    """Registers and memory of a kernel compiled for an NVIDIA target."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [TOOLS / "cuobjdump", "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.findall(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", text)
    assert len(found) == 1, text
    registers, stack, shared, local = map(int, found[0])
    return Usage(registers, stack + local, shared)


_TICKET = re.compile(r"atom\.(global\.gpu\.acq_rel|acq_rel\.gpu\.global|global\.acq_rel\.gpu)\.add\.[us]32")
_ORDERING = re.compile(r"\b(bar\.sync|barrier\.sync|bar\.warp\.sync|st\.global)")


def tickets_in_order(text: str) -> bool:
    """Whether PTX takes every ticket with release and acquire, and after a barrier that follows the last store before it."""
    last = ""
    for line in text.splitlines():
        if re.search(r"\batom\.", line) and (not _TICKET.search(line) or last in ("", "st.global")):
            return False
        found = _ORDERING.search(line)
        last = found.group(1) if found else last
    return True


def emulator_path() -> str | None:
    """Where the PTX executor lies; `FASTMTL_PTXEMU` names its directory."""
    return os.environ.get("FASTMTL_PTXEMU")
