"""What nvcc makes of every CUDA kernel, as a table: python -m tests.cuda.report [--match TEXT]. No GPU is needed."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.cuda.hosting import BUILD, KERNELS, alone, newest
from tests.cuda.nvcc_ptx import nvcc, ptx_of
from tests.gpu import machines
from tests.gpu.launches import TOOLS
from tests.gpu.machines import Machine
from tests.gpu.report import print_table

MACHINES = (machines.A100, machines.A40, machines.L40S, machines.H100, machines.B200, machines.RTX_5090)
DTYPES = ("f32", "f64", "bf16", "f16")  # as csrc/kernels/dtype.h numbers them


@dataclass(frozen=True)
class Line:
    """One kernel, compiled for one machine."""

    source: str
    kernel: str  # with its template's arguments, see `readable`
    machine: Machine
    threads: int  # of a block, at most
    promised: int  # blocks that a processor is to hold at once, by the kernel's launch bounds
    registers: int  # of a thread
    stack: int  # bytes of local memory of a thread: spills, and arrays that are indexed at run time
    spill_stores: int  # bytes
    spill_loads: int
    shared: int  # bytes of a block
    wide_loads: int  # of 16 bytes
    wide_stores: int

    @property
    def warps(self) -> int:
        return -(-self.threads // 32)

    @property
    def resident(self) -> int:
        """Blocks that a processor holds at once."""
        return self.machine.resident(self.registers, self.warps, self.shared)

    @property
    def occupancy(self) -> float:
        """Warps that a processor holds, of those that it could."""
        return self.resident * self.warps / self.machine.chip.warps

    def __str__(self) -> str:
        return f"{self.kernel}-{self.machine.target}"

    def cells(self) -> tuple[str, ...]:
        spills = f"{self.spill_stores}/{self.spill_loads}"
        numbers = (self.threads, self.registers, self.stack, spills, self.shared, self.resident)
        return tuple(
            map(
                str,
                (
                    *(self.source, self.kernel, self.machine.target, *numbers, f"{self.occupancy:.0%}"),
                    *(self.wide_loads, self.wide_stores),
                ),
            )
        )


HEAD = (
    *("file", "kernel", "target", "threads", "registers", "stack", "spills", "shared", "resident", "occupancy"),
    *("16-byte loads", "16-byte stores"),
)


def readable(symbol: str) -> str:
    """sum_norms_kernel<bf16, 12, 8> for the name that the linker sees; other names are left as they are."""
    name = re.match(r"_ZN7fastmtl4cuda(?:\d+_GLOBAL__N__\w*?_\d+_)?(\d+)", symbol)
    if name is None:
        return symbol
    rest = symbol[name.end() :]
    kernel, rest = rest[: int(name.group(1))], rest[int(name.group(1)) :]
    arguments = re.match(r"I((?:L(?:NS_5DtypeE|[a-z])\d+E)*)E", rest)
    if arguments is None:
        return kernel
    found = re.findall(r"L(NS_5DtypeE|[a-z])(\d+)E", arguments.group(1))
    words = [DTYPES[int(value)] if kind.startswith("N") else value for kind, value in found]
    return f"{kernel}<{', '.join(words)}>"


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def _assembled(source: Path, target: str) -> tuple[str, str, str]:
    """A file's PTX, what the assembler said of it, and the machine's instructions."""
    number = int(target.removeprefix("sm_"))
    ptx = ptx_of(source, number)
    said, code = (BUILD / f"{source.stem}.{number}.{kind}" for kind in ("ptxas", "sass"))
    with alone(code.name):
        if not code.exists() or code.stat().st_mtime < newest("csrc/kernels/**/*.*"):
            cubin = BUILD / f"{source.stem}.{number}.cubin"
            said.write_text(_run(nvcc(), "-cubin", f"-arch={target}", "-Xptxas=-v", str(ptx), "-o", str(cubin)))
            new = code.with_suffix(".new")
            new.write_text(_run(str(TOOLS / "nvdisasm"), "-c", str(cubin)))
            new.replace(code)
    return ptx.read_text(), said.read_text(), code.read_text()


def _numbers(pattern: str, text: str, what: str) -> tuple[int, ...]:
    found = re.search(pattern, text)
    assert found is not None, f"{what}: no {pattern} in {text}"
    return tuple(map(int, found.groups()))


def lines_of(source: Path, machine: Machine) -> list[Line]:
    """All kernels of a file, compiled for one machine."""
    ptx, said, code = _assembled(source, machine.target)
    bounds = r"\.entry (\w+)\([^)]*\)\s*\.maxntid (\d+)[\d, ]*\s*(?:\.minnctapersm (\d+))?"
    launches = {symbol: (int(threads), int(blocks or 1)) for symbol, threads, blocks in re.findall(bounds, ptx)}
    parts = re.split(r"Compiling entry function '(\w+)' for '\w+'", said)[1:]
    instructions = dict(re.findall(r"^\.text\.(\w+):\n(.*?)(?=^\.text\.|\Z)", code, re.MULTILINE | re.DOTALL))
    lines = []
    for symbol, text in zip(parts[::2], parts[1::2], strict=True):
        stack, stores, loads = _numbers(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", text, symbol
        )
        (registers,) = _numbers(r"Used (\d+) registers", text, symbol)
        shared = re.search(r"(\d+) bytes smem", text)
        body = instructions[symbol]
        lines.append(
            Line(
                source.name,
                readable(symbol),
                machine,
                *launches.get(symbol, (1024, 1)),
                registers,
                stack,
                stores,
                loads,
                int(shared.group(1)) if shared else 0,
                len(re.findall(r"\bLDG\.[.\w]*128\b", body)),
                len(re.findall(r"\bSTG\.[.\w]*128\b", body)),
            )
        )
    assert lines, f"{source} has no kernel"
    return lines


def report(match: str = "") -> Iterator[Line]:
    """Every kernel on every machine."""
    for source in KERNELS:
        for machine in MACHINES:
            if match in f"{source.stem}-{machine.target}":
                yield from lines_of(source, machine)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--match", default="", help="part of FILE-sm_80")
    rows = [HEAD]
    for line in report(parser.parse_args().match):
        rows.append(line.cells())
        print(".", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)
    print_table(rows)


if __name__ == "__main__":
    main()
