"""Micro benchmarks of the ops on CPU: as a multiple of one pass over the same memory, and of the same in torch operations.

The floor is `floor.cpp`: it reads each gradient once, and writes a sum where the op does. Beside it stands what the op's
multiply-adds in float32 alone take at the processor's peak rate: an op that could do both at once would take the longer
of the two. All variants of a case that returns a total allocate it, as a backward does, from memory that was freed.
"""

from __future__ import annotations

import ctypes
import functools
import json
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks import timing
from benchmarks.problems import list_shapes
from fastmtl.backends import cpp, reference

FLOOR = Path(__file__).resolve().parent / "floor.cpp"
ISA_FLAGS = {
    "generic": ["-DFASTMTL_VECTOR_BYTES=16"],
    "avx2": ["-DFASTMTL_VECTOR_BYTES=32", "-mavx2", "-mfma"],
    "avx512": ["-DFASTMTL_VECTOR_BYTES=64", "-mavx512f", "-mfma", "-mprefer-vector-width=512"],
}


@functools.cache
def _library() -> tuple[ctypes.CDLL, ctypes.c_void_p]:
    """The compiled floor and torch's parallel loop."""
    folder = tempfile.mkdtemp(prefix="fastmtl-floor-")
    target = str(Path(folder) / "floor.so")
    flags = ["-std=c++17", "-O3", "-ffp-contract=fast", "-fPIC", "-shared", *ISA_FLAGS[cpp.instruction_set()]]
    subprocess.run(["g++", *flags, str(FLOOR), "-o", target], check=True)
    library = ctypes.CDLL(target)
    library.fastmtl_floor.restype = library.fastmtl_arithmetic.restype = ctypes.c_float
    torch_cpu = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    return library, ctypes.cast(torch_cpu.torch_parallel_for, ctypes.c_void_p)


def floor(grads: Sequence[Tensor], out: Tensor | None = None) -> None:
    """One pass over ``grads`` (of any dtype, read as float32) that writes ``out`` if there is one."""
    pointers = (ctypes.c_void_p * len(grads))(*(g.data_ptr() for g in grads))
    count = grads[0].numel() * grads[0].element_size() // 4
    target = ctypes.c_void_p(None if out is None else out.data_ptr())
    sizes = ctypes.c_int64(len(grads)), ctypes.c_int64(count)
    library, parallel_for = _library()
    library.fastmtl_floor(pointers, *sizes, target, ctypes.c_int64(torch.get_num_threads()), parallel_for)


def arithmetic(multiply_adds: int) -> None:
    """So many multiply-adds of float32, in registers."""
    library, parallel_for = _library()
    count, threads = ctypes.c_int64(multiply_adds), ctypes.c_int64(torch.get_num_threads())
    library.fastmtl_arithmetic(count, threads, ctypes.c_float(0.5), parallel_for)


def keep_freed_memory() -> None:
    """Let glibc keep what is freed, as caching allocators do.

    By itself it gives some large blocks back to the system and not others: one variant of a round would then have to touch
    new pages, which takes as long as the sum, and another would not.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


@dataclass(frozen=True)
class Case:
    """One op on one problem, the pass over the same memory, its multiply-adds, and the same in torch operations."""

    name: str
    run: Callable[[], object]
    floor: Callable[[], object]
    torch: Callable[[], object]
    multiply_adds: int


def cases(word: str = "") -> list[Callable[[], Case]]:
    """Makers of the cases, since all of them together would not fit the memory."""
    makers: list[Callable[[], Case]] = []

    def add(name: str, make: Callable[[str], Case]) -> None:
        if word in name:
            makers.append(functools.partial(make, name))

    for dtype in (torch.float32, torch.bfloat16):
        for tasks in (3, 10):
            for exponent in (20, 22, 24):
                if tasks == 10 and exponent == 24 and dtype != torch.float32:
                    continue
                kind = str(dtype).removeprefix("torch.")
                for op in ("sum_moments", "sum_norms"):
                    add(
                        f"{op} {kind} T={tasks} 2^{exponent}",
                        functools.partial(_sum_case, op, tasks, 2**exponent, dtype),
                    )
    for tasks, elements in ((3, 2_400_000), (3, 24_000_000), (10, 2_400_000), (10, 24_000_000), (40, 2_400_000)):
        for op in ("gram", "squared_norms"):
            add(f"{op} float32 T={tasks} P={elements}", functools.partial(_list_case, op, tasks, elements))
        add(f"weighted_sum float32 T={tasks} P={elements}", functools.partial(_weighted_case, tasks, elements))
    return makers


def _pairs(tasks: int) -> int:
    return tasks * (tasks + 1) // 2


def _sum_case(op: str, tasks: int, elements: int, dtype: torch.dtype, name: str) -> Case:
    grads = [torch.randn(8, elements // 8).to(dtype) for _ in range(tasks)]
    return Case(
        name,
        lambda: getattr(cpp, op)(grads),
        lambda: floor(grads, torch.empty_like(grads[0])),
        lambda: getattr(reference, op)(grads),
        # Of moments: those of each sample and those of the sum over samples.
        _pairs(tasks) * (elements + elements // 8) if op == "sum_moments" else tasks * elements,
    )


def _list_case(op: str, tasks: int, elements: int, name: str) -> Case:
    rows = [torch.randn(elements) for _ in range(tasks)]
    tensors = [part for row in rows for part in row.split(list_shapes(elements))]
    return Case(
        name,
        lambda: getattr(cpp, op)(tensors, tasks),
        lambda: floor(rows),
        lambda: getattr(reference, op)(tensors, tasks),
        elements * (_pairs(tasks) if op == "gram" else tasks),
    )


def _weighted_case(tasks: int, elements: int, name: str) -> Case:
    rows = [torch.randn(elements) for _ in range(tasks)]
    out, other, weights = torch.empty(elements), torch.empty(elements), torch.ones(tasks)
    return Case(
        name,
        lambda: cpp.weighted_sum_out(rows, tasks, weights, [out]),
        lambda: floor(rows, other),
        lambda: reference.weighted_sum_out(rows, tasks, weights, [out]),
        elements * tasks,
    )


def main(
    word: Annotated[str, typer.Argument(help="only the cases whose name contains this")] = "",
    rounds: int = 30,
    threads: int = 2,
    output: Annotated[Path | None, typer.Option(help="write the figures as JSON")] = None,
) -> None:
    """Print each op's time as a multiple of its floor, and how many times faster it is than torch operations."""
    torch.set_num_threads(threads)
    console, rows = Console(width=110), []
    keep_freed_memory()
    table = Table("case", "ms", "time / floor [quartiles]", "arithmetic / floor", "torch / time")
    for make in cases(word):
        case = make()
        variants: dict[str, Callable[[], object]] = {
            "floor": case.floor,
            "op": case.run,
            "torch": case.torch,
            "arithmetic": functools.partial(arithmetic, case.multiply_adds),
        }
        floor_time, op, plain, least = timing.interleaved(variants, rounds)
        speedup = plain.seconds / op.seconds
        table.add_row(case.name, f"{op.seconds * 1e3:.2f}", str(op), f"{least.ratio:.2f}", f"{speedup:.1f}x")
        figures = {"floor": floor_time.seconds, "arithmetic": least.seconds, "speedup": speedup}
        rows.append({"case": case.name, **timing.as_rows([op])[0], **figures})
    conditions = {**timing.conditions(), "instructions": cpp.instruction_set()}
    console.print(table)
    console.print(conditions)
    if output is not None:
        output.write_text(json.dumps({"conditions": conditions, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
