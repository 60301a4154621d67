"""Runs `sum_norms` with a fault in its sources: what each tool says of it."""

from __future__ import annotations

import functools
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.cuda import nvcc_ptx
from tests.cuda.hosting import compiled_files
from tests.cuda.test_sanitizers import FLAGS, runtime_of
from tests.kernels.sanitizing import ROOT, compiled, linked, run

KERNEL = "kernels/cuda/sum_norms.cu"
# Of the variants of the kernel, those that the cases here need: the others only take time to compile.
FEWER = (
    (
        "with_dtype(dtype, [&](auto constant) { return run<decltype(constant)::value>(device, vector, p); })",
        "run<Dtype::f32>(device, vector, p)",
    ),
    ("p.tasks <= 12 ? run<D, 12, 1>(device, p) : run<D, 64, 1>(device, p)", "run<D, 12, 1>(device, p)"),
    (
        "p.tasks <= 12 ? run<D, 12, kVector<D>>(device, p) : run<D, 64, kVector<D>>(device, p)",
        "run<D, 12, kVector<D>>(device, p)",
    ),
)


@dataclass(frozen=True)
class Fault:
    """Text of a file of csrc, of which one place, `at` from 0, is replaced; and what is known to notice it, and how."""

    name: str
    file: str
    old: str
    new: str
    at: int = 0
    seen: tuple[tuple[str, str], ...] = ()  # a tool and a part of what it says


def replaced(text: str, old: str, new: str, at: int = 0) -> str:
    """The text with one of the places where `old` is replaced."""
    parts = text.split(old)
    assert at + 1 < len(parts), f"{old!r} is there {len(parts) - 1} times"
    return old.join(parts[: at + 1]) + new + old.join(parts[at + 1 :])


def sources_with(faults: Sequence[Fault], directory: Path) -> Path:
    """A copy of the kernels, with the faults and with few variants; the file of the kernel."""
    csrc = directory / "csrc"
    shutil.copytree(ROOT / "csrc/kernels", csrc / "kernels")
    kernel = csrc / KERNEL
    for old, new in FEWER:
        kernel.write_text(replaced(kernel.read_text(), old, new))
    for fault in faults:
        path = csrc / fault.file
        path.write_text(replaced(path.read_text(), fault.old, fault.new, fault.at))
    return kernel


@functools.cache
def _runtime(sanitizer: str) -> list[Path]:
    directory = Path(tempfile.mkdtemp())
    return compiled(dict.fromkeys(runtime_of("sum_norms"), FLAGS), sanitizer, directory)


def said_under(sanitizer: str, faults: Sequence[Fault], directory: Path) -> str:
    """What the program says in which a sanitizer watches the kernel; empty: nothing."""
    kernel = sources_with(faults, directory)
    objects = [*compiled({kernel: FLAGS}, sanitizer, directory), *_runtime(sanitizer)]
    done = run(linked(objects, sanitizer, directory), sanitizer, "few")
    return "" if done.returncode == 0 and done.stdout.endswith("ok\n") else done.stdout + done.stderr


def ptx_with(faults: Sequence[Fault], directory: Path, target: int = 80) -> Path:
    """What nvcc makes of the kernel."""
    kernel, made = sources_with(faults, directory), directory / "kernel.ptx"
    compiled_files(
        [[nvcc_ptx.nvcc(), *nvcc_ptx.NVCC_FLAGS, "-ptx", f"-arch=sm_{target}", str(kernel), "-o", str(made)]]
    )
    return made


_ORDERING = re.compile(
    r"^\s*(?:@\S+\s+)?(bar\.sync|membar\.gl|fence\.(?:sc|acq_rel)\.gpu|atom\.|st\.global|ld\.global)", re.M
)


def tickets_are_fenced(text: str) -> bool:
    """Whether every atomic of a kernel's PTX follows a barrier and then a fence, and a fence and then a barrier follow it."""
    found = ["fence" if name.startswith(("membar", "fence")) else name for name in _ORDERING.findall(text)]
    places = [place for place, name in enumerate(found) if name == "atom."]
    return bool(places) and all(
        found[place - 2 : place] == ["bar.sync", "fence"]
        and found[place + 1] == "fence"
        and found[place + 1 : found.index("bar.sync", place)] in (["fence"], ["fence", "st.global"])  # the ticket's own
        for place in places
    )
