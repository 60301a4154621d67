"""Micro benchmarks of the ops on CPU: their time as a multiple of one pass over the same memory, and of torch operations.

``python benchmarks/ops.py [--rounds N] [--json FILE] [WORD]`` prints a table (of the cases whose name contains WORD).
The variants of a case run in turns, so that what else the machine does hits all of them; a row gives the median ratio
over the quiet rounds (those in which the floor was within 15 % of its fastest quarter), and their least and largest.

The floor is `floor.cpp`: reads each gradient once, and writes a sum where the op does. All variants of a case that
returns a total allocate it anew (pages and all), as a backward does.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

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
    flags = ["-std=c++17", "-O3", "-fPIC", "-shared", *ISA_FLAGS[cpp.instruction_set()]]
    subprocess.run(["g++", *flags, str(FLOOR), "-o", target], check=True)
    library = ctypes.CDLL(target)
    library.fastmtl_floor.restype = ctypes.c_float
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


@dataclass(frozen=True)
class Case:
    """One op on one problem, the pass over the same memory, and the same in torch operations."""

    name: str
    run: Callable[[], object]
    floor: Callable[[], object]
    torch: Callable[[], object]


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


def _sum_case(op: str, tasks: int, elements: int, dtype: torch.dtype, name: str) -> Case:
    grads = [torch.randn(8, elements // 8).to(dtype) for _ in range(tasks)]
    return Case(
        name,
        lambda: getattr(cpp, op)(grads),
        lambda: floor(grads, torch.empty_like(grads[0])),
        lambda: getattr(reference, op)(grads),
    )


def _shapes(elements: int) -> list[int]:
    """A list like a network's parameters: a few large, some middling, many small tensors."""
    sizes = [
        elements // 4,
        elements // 4,
        elements // 8,
        elements // 8,
        *[elements // 64] * 8,
        *[elements // 4096] * 16,
        *[64] * 20,
    ]
    return [*sizes, elements - sum(sizes)]


def _list_case(op: str, tasks: int, elements: int, name: str) -> Case:
    rows = [torch.randn(elements) for _ in range(tasks)]
    tensors = [part for row in rows for part in row.split(_shapes(elements))]
    return Case(
        name,
        lambda: getattr(cpp, op)(tensors, tasks),
        lambda: floor(rows),
        lambda: getattr(reference, op)(tensors, tasks),
    )


def _weighted_case(tasks: int, elements: int, name: str) -> Case:
    rows = [torch.randn(elements) for _ in range(tasks)]
    out, other, weights = torch.empty(elements), torch.empty(elements), torch.ones(tasks)
    return Case(
        name,
        lambda: cpp.weighted_sum_out(rows, tasks, weights, [out]),
        lambda: floor(rows, other),
        lambda: reference.weighted_sum_out(rows, tasks, weights, [out]),
    )


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(case: Case, rounds: int) -> dict[str, object]:
    """Times of the three variants in turns, summarised."""
    with_torch = max(3, rounds // 5)
    for call in (case.run, case.floor):
        call()
    times = [(_seconds(case.floor), _seconds(case.run)) for _ in range(rounds)]
    slow = [(_seconds(case.run), _seconds(case.torch)) for _ in range(with_torch)]
    quiet_limit = 1.15 * statistics.quantiles([f for f, _ in times], n=4)[0]
    quiet = [(f, r) for f, r in times if f <= quiet_limit]
    ratios = [r / f for f, r in quiet]
    return {
        "case": case.name,
        "ms": 1e3 * statistics.median(r for _, r in quiet),
        "floor_ms": 1e3 * statistics.median(f for f, _ in quiet),
        "times_floor": statistics.median(ratios),
        "times_floor_min": min(ratios),
        "times_floor_max": max(ratios),
        "quiet_rounds": len(quiet),
        "speedup_over_torch": statistics.median(t / r for r, t in slow),
        "speedup_over_torch_min": min(t / r for r, t in slow),
        "speedup_over_torch_max": max(t / r for r, t in slow),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("word", nargs="?", default="", help="only cases whose name contains this")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path, help="write the results there as well")
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {cpp.instruction_set()}")
    print(f"{'case':40} {'ms':>8} {'x floor':>8} {'(min..max)':>14} {'vs torch':>9} {'(min..max)':>14}")
    results = []
    for make in cases(arguments.word):
        result = measure(make(), arguments.rounds)
        results.append(result)
        print(
            "{case:40} {ms:8.2f} {times_floor:8.2f} {times_floor_min:6.2f} ..{times_floor_max:6.2f} "
            "{speedup_over_torch:8.1f}x {speedup_over_torch_min:6.1f} ..{speedup_over_torch_max:6.1f}".format(**result),
            flush=True,
        )
    if arguments.json:
        context = {"torch": torch.__version__, "threads": torch.get_num_threads(), "isa": cpp.instruction_set()}
        arguments.json.write_text(json.dumps({**context, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
