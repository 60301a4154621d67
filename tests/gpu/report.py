"""What the compilers make of every kernel at realistic sizes, as a table: python -m tests.gpu.report [--match TEXT]."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor

from fastmtl.backends import triton as backend
from fastmtl.backends.triton import chips, configs
from fastmtl.ops.gnr import gnr_state
from fastmtl.ops.gradnorm import gradnorm_state
from tests.gpu import machines
from tests.gpu.launches import TARGETS, Launch, tickets_in_order, usage
from tests.gpu.machines import RESERVED, Machine
from tests.gpu.recording import recorded

MACHINES = (machines.A100, machines.H100, machines.B200, machines.RTX_5090, machines.MI300X)


@dataclass(frozen=True)
class Subject:
    """A call that stands for one kernel in one configuration.

    ``wide_loads`` and ``wide_stores``: accesses of 16 bytes that it must have at least, one for each gradient read, and one
    for the sum.
    """

    name: str
    tasks: int
    dtype: torch.dtype
    call: Callable[[], Any]
    wide_loads: int = 0
    wide_stores: int = 0

    def __str__(self) -> str:
        return f"{self.name}-T{self.tasks}-{str(self.dtype).removeprefix('torch.')}"


def _grads(tasks: int, shape: Sequence[int], dtype: torch.dtype) -> list[Tensor | None]:
    return [torch.empty(tuple(shape), dtype=dtype, device="cuda") for _ in range(tasks)]


def _wide(op: str, tasks: int, dtype: torch.dtype) -> int:
    """Loads of 16 bytes, one of each task; where kernels have the sums of many pairs some GPUs' are 8 bytes of 16-bit numbers."""
    pairs = op in ("gram", "sum_moments", "sum_moments_update")
    return (
        0 if pairs and configs.lanes_of_pairs(chips.B200, tasks, 16 // dtype.itemsize) * dtype.itemsize < 16 else tasks
    )


def _sums(op: str, tasks: int, dtype: torch.dtype, name: str, shape: Sequence[int], wide: bool) -> Subject:
    def call() -> Any:
        return getattr(backend, op)(_grads(tasks, shape, dtype))

    loads = _wide(op, tasks, dtype) if wide else 0
    return Subject(f"{op}-{name}", tasks, dtype, call, loads, int(loads > 0))


def _made(like: Sequence[Tensor]) -> list[Tensor]:
    return [torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda") for tensor in like]


def _gradnorm(tasks: int) -> list[Any]:
    """Arguments of GradNorm's update after what was measured."""
    message = torch.empty(2 + 3 * tasks, device="cuda")
    return [message, *_made(gradnorm_state(tasks)), 1.5, 0.025, True, 0.9, 0.999, 1e-8, 1e-3]


def _gnr(tasks: int) -> list[Any]:
    """Arguments of the GNR weights' update after what was measured."""
    message = torch.empty(2 + 3 * tasks, device="cuda")
    return [message, *_made(gnr_state(tasks)), 32, 1, False, "relative", 0.95, 0.1, 0.05]


def _update(op: str, tasks: int) -> Subject:
    def call() -> Any:
        if op == "gradnorm_update":
            return backend.gradnorm_update(torch.empty(tasks, device="cuda"), *_gradnorm(tasks))
        if op == "gnr_update":
            M, Q = (torch.empty(tasks, tasks, device="cuda") for _ in range(2))
            return backend.gnr_update(M, Q, *_gnr(tasks))
        losses = [torch.empty((), device="cuda") for _ in range(tasks)]
        present = torch.empty(tasks, dtype=torch.bool, device="cuda")
        return backend.weigh(losses, torch.empty(tasks, device="cuda"), present)

    return Subject(op, tasks, torch.float32, call)


def _sums_with_update(op: str, tasks: int, dtype: torch.dtype) -> Subject:
    def call() -> Any:
        arguments = _gradnorm(tasks) if op == "sum_norms_update" else _gnr(tasks)
        return getattr(backend, op)(_grads(tasks, (32, 256, 56, 56), dtype), *arguments)

    loads = _wide(op, tasks, dtype)
    return Subject(op, tasks, dtype, call, loads, int(loads > 0))


def _lists(op: str, tasks: int, dtype: torch.dtype) -> Subject:
    """Of the parameters of a small network."""

    def call() -> Any:
        lengths = [1 << 20, 4096, 1 << 22]
        tensors = [torch.empty(length, dtype=dtype, device="cuda") for _ in range(tasks) for length in lengths]
        more = [torch.empty(tasks, device="cuda")] if op == "weighted_sum" else []
        return getattr(backend, op)(tensors, tasks, *more)

    wide = 1 if op == "gram" and tasks > configs.FEW_PAIRS else _wide(op, tasks, dtype)
    return Subject(op, tasks, dtype, call, wide, int(op == "weighted_sum"))


def _products(op: str, tasks: int, dtype: torch.dtype) -> Subject:
    def call() -> Any:
        grads = _grads(tasks, (32, 512, 1024), dtype)
        if op == "cross_gram":
            return backend.cross_gram(_grads(tasks - 1, (32, 512, 1024), torch.float32), grads)
        return backend.sample_gram(grads, torch.empty(32, device="cuda"))

    return Subject(op, tasks, dtype, call, 1)


def _layer(op: str, tasks: int, dtype: torch.dtype, way: str = "") -> Subject:
    def call() -> Any:
        def made(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=dtype, device="cuda")

        if op == "linear_moments":
            return backend.linear_moments(made(16, 256, 512), _grads(tasks, (16, 256, 512), dtype), True, True, way)
        if op == "conv_moments":
            sizes = ([3, 3], [1, 1], [1, 1, 1, 1], [1, 1], 1, False, "zeros", True, True, way)
            return backend.conv_moments(made(16, 128, 28, 28), _grads(tasks, (16, 128, 28, 28), dtype), *sizes)
        if op == "embedding_moments":
            indices = torch.empty(16, 256, dtype=torch.int64, device="cuda")
            return backend.embedding_moments(indices, _grads(tasks, (16, 256, 512), dtype), None, True, way)
        return backend.norm_moments(made(32, 128, 28, 28), _grads(tasks, (32, 128, 28, 28), dtype), [1], True, True)

    return Subject(f"{op}-{way}" if way else op, tasks, dtype, call)


def subjects() -> Iterator[Subject]:
    """Every kernel, for a usual number of tasks and for many, in float32 and bfloat16.

    What is left out: float16, which differs from bfloat16 by the instruction that converts it, and all other numbers of
    tasks. Those are executed, see `test_execution`.
    """
    for dtype in (torch.float32, torch.bfloat16):
        for op in ("sum_norms", "sum_moments"):
            for tasks in (3, 8, 10, 40):
                yield _sums(op, tasks, dtype, "features", (32, 256, 56, 56), wide=op == "sum_norms" or tasks < 40)
            yield _sums(op, 10, dtype, "odd", (32, 255, 7, 7), wide=False)
        yield _sums("sum_norms", 64, dtype, "features", (32, 256, 56, 56), wide=False)
        yield _sums("sum_moments", 3, dtype, "split", (4096, 512), wide=True)
        yield _sums("sum_moments", 10, dtype, "split", (4096, 512), wide=False)
        for op, tasks in [("sum_norms_update", (3, 10)), ("sum_moments_update", (3, 10, 16, 40))]:
            for count in tasks:
                yield _sums_with_update(op, count, dtype)
        for tasks in (3, 10, 40):
            for op in ("gram", "squared_norms", "weighted_sum"):
                yield _lists(op, tasks, dtype)
        for tasks in (3, 40):
            for op in ("cross_gram", "sample_gram"):
                yield _products(op, tasks, dtype)
        for tasks in (3, 10):
            for op in ("linear_moments", "conv_moments", "embedding_moments"):
                yield _layer(op, tasks, dtype, "form")
            yield _layer("norm_moments", tasks, dtype)
    for tasks in (3, 64):
        for op in ("gradnorm_update", "gnr_update", "weigh"):
            yield _update(op, tasks)


@dataclass(frozen=True)
class Line:
    """One kernel, compiled for one machine."""

    subject: Subject
    machine: Machine
    launch: Launch
    registers: int  # of a thread
    expected_registers: int | None  # what its configuration was chosen for
    shared: int  # bytes
    spills: int  # bytes of local memory of a thread
    wide_loads: int
    wide_stores: int
    tickets: bool  # whether they are in order, see `tickets_in_order`
    seconds: float  # of processor time, to compile it

    @property
    def warps(self) -> int:
        return int(self.launch.kwargs.get("num_warps", 4))

    @property
    def resident(self) -> int:
        return self.machine.resident(self.registers, self.warps, self.shared)

    @property
    def programs(self) -> int:
        count = 1
        for size in self.launch.grid:
            count *= size
        return count

    def cells(self) -> tuple[str, ...]:
        expected = "" if self.expected_registers is None else f" ({self.expected_registers})"
        dtype = str(self.subject.dtype).removeprefix("torch.")
        occupancy = f"{self.resident * self.warps / self.machine.chip.warps:.0%}"
        numbers = (f"{self.registers}{expected}", self.spills, self.shared, self.resident, occupancy)
        names = (self.launch.name, self.subject.name, self.subject.tasks, dtype, self.machine.target, self.warps)
        loads = (self.wide_loads, self.wide_stores)
        return tuple(map(str, (*names, *numbers, *loads, self.programs, f"{self.seconds:.1f}")))


HEAD = (
    *("kernel", "call", "T", "dtype", "target", "warps", "registers (expected)", "spills", "shared", "resident"),
    *("occupancy", "16-byte loads", "16-byte stores", "programs", "seconds"),
)

_WIDE = r"\.(v4\.b32|v2\.b64|v8\.b32|v4\.b64)"


def _processor_seconds() -> float:
    """Of this process and of those that it has waited for: the assembler is one."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _compiled(launch: Launch, target: str) -> tuple[Any, float]:
    """Compiled anew, and the seconds that it took."""
    before = triton.knobs.compilation.always_compile
    triton.knobs.compilation.always_compile = True
    try:
        start = _processor_seconds()
        return launch.compiled(TARGETS[target]), _processor_seconds() - start
    finally:
        triton.knobs.compilation.always_compile = before


def _number(text: str, name: str) -> int:
    found = re.search(rf"{re.escape(name)}:? +(\d+)", text)
    assert found is not None, name
    return int(found.group(1))


def line_of(subject: Subject, machine: Machine, launch: Launch, expected: int | None) -> Line:
    """Compile one launch."""
    compiled, seconds = _compiled(launch, machine.target)
    dynamic = compiled.metadata.shared
    if "amdgcn" in compiled.asm:
        text = compiled.asm["amdgcn"]
        registers, shared = _number(text, ".vgpr_count"), dynamic  # accumulation registers among them
        # Registers may be spilled to other registers as well; this is the memory.
        spills = _number(text, ".private_segment_fixed_size")
        loads = len(re.findall(r"(global|buffer)_load_dwordx4", text))
        stores = len(re.findall(r"(global|buffer)_store_dwordx4", text))
        tickets = True  # PTX is looked at
    else:
        used, text = usage(compiled), compiled.asm["ptx"]
        kept = RESERVED if used.shared >= RESERVED else 0
        registers, shared, spills = used.registers, used.shared - kept + dynamic, used.stack
        # Volatile and relaxed loads are those of partial results.
        loads = len(re.findall(r"ld\.global(?!\.relaxed)[.\w:]*" + _WIDE, text))
        loads += len(re.findall(r"cp\.async\.cg\.shared\.global", text))  # always of 16 bytes
        stores = len(re.findall(r"st\.global[.\w:]*" + _WIDE, text))
        tickets = tickets_in_order(text)
    return Line(subject, machine, launch, registers, expected, shared, spills, loads, stores, tickets, seconds)


def lines_of(subject: Subject, machine: Machine) -> list[Line]:
    """The subject's launches on one machine, compiled for it; a kernel that is launched several times alike is one line."""
    expected: list[int] = []
    asked = configs.resident

    def noted(chip: chips.Chip, registers: int, *rest: int) -> int:
        expected.append(registers)
        return asked(chip, registers, *rest)

    with mock.patch.object(configs, "resident", noted):
        launches = recorded(subject.call, machine.chip)
    assert launches, f"{subject} launches nothing"
    distinct = {(launch.name, str(launch.specialized(TARGETS[machine.target])[1:])): launch for launch in launches}
    estimate = expected[-1] if expected else None
    return [line_of(subject, machine, launch, estimate) for launch in distinct.values()]


def report(match: str = "") -> Iterator[Line]:
    """Every subject on every machine."""
    for subject in subjects():
        for machine in MACHINES:
            if match in f"{subject}-{machine.target}":
                yield from lines_of(subject, machine)


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as what is in them."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--match", default="", help="part of CALL-T3-float32-sm_80")
    rows = [HEAD]
    for line in report(parser.parse_args().match):
        rows.append(line.cells())
        print(".", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)
    print_table(rows)


if __name__ == "__main__":
    main()
