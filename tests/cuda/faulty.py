"""Runs a family of kernels with a fault in its sources: what each tool says of it."""

from __future__ import annotations

import atexit
import functools
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.cuda import nvcc_ptx
from tests.cuda.faults import Fault
from tests.cuda.hosting import compiled_files
from tests.cuda.test_sanitizers import FLAGS, kernels_of, runtime_of
from tests.kernels.sanitizing import ROOT, compiled, linked, run

# Of the variants of the kernels, those that the few cases of a program need: the others only take time to compile.
FEWER = {
    "kernels/cuda/numbers.h": (
        ("return run(DtypeConstant<Dtype::bf16>());", "break;"),
        ("return run(DtypeConstant<Dtype::f16>());", "break;"),
    ),
    "kernels/cuda/tiles.h": (
        ("return vector ? load<Dtype::bf16, 8>(rows) : load<Dtype::bf16, 1>(rows);", "return;"),
        ("return vector ? load<Dtype::f16, 8>(rows) : load<Dtype::f16, 1>(rows);", "return;"),
    ),
    "kernels/cuda/sum_norms.cu": (
        ("p.tasks <= 12 ? run<D, 12, 1>(device, p) : run<D, 64, 1>(device, p)", "run<D, 12, 1>(device, p)"),
        (
            "p.tasks <= 12 ? run<D, 12, kVector<D>>(device, p) : run<D, 64, kVector<D>>(device, p)",
            "run<D, 12, kVector<D>>(device, p)",
        ),
    ),
    "kernels/cuda/sum_moments_few.cu": (
        ("kHas = V == 1 || Capacity > kWideTasks || V == kVector<D>", "kHas = D == Dtype::f32 && V <= 4"),
        ("tasks <= 4 ? made<4, 4>(tasks) : made<8, 4>(tasks)", "tasks <= 4 ? made<4, 4>(tasks) : made<10, 4>(tasks)"),
        ("tasks <= 4 ? made<4, 8>(tasks) : made<8, 8>(tasks)", "{}"),
    ),
    "kernels/cuda/sum_moments_many.cu": (("tasks <= 3 * kSide ? made<3>() : made<4>()", "made<4>()"),),
}


def replaced(text: str, old: str, new: str, at: int = 0) -> str:
    """The text with one of the places where `old` is replaced."""
    parts = text.split(old)
    assert at + 1 < len(parts), f"{old!r} is there {len(parts) - 1} times"
    return old.join(parts[: at + 1]) + new + old.join(parts[at + 1 :])


def sources_with(faults: Sequence[Fault], directory: Path, fewer: bool = True) -> Path:
    """A copy of csrc with the faults, and with few variants."""
    csrc = directory / "csrc"
    shutil.copytree(ROOT / "csrc/kernels", csrc / "kernels")
    for file, changes in FEWER.items() if fewer else ():
        path = csrc / file
        for old, new in changes:
            path.write_text(replaced(path.read_text(), old, new))
    for fault in faults:
        path = csrc / fault.file
        path.write_text(replaced(path.read_text(), fault.old, fault.new, fault.at))
    return csrc


@functools.cache
def _objects(family: str, sanitizer: str, fewer: bool) -> dict[str, Path]:
    """The objects of a program without faults, by the name of the source."""
    directory = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, directory)
    sources = [*kernels_of(family, sources_with([], directory, fewer)), *runtime_of(family)]
    made = compiled(dict.fromkeys(sources, FLAGS), sanitizer, directory)
    return {source.name: path for source, path in zip(sources, made, strict=True)}


def said_under(sanitizer: str, family: str, faults: Sequence[Fault], directory: Path) -> str:
    """What a family's program says in which a sanitizer watches the kernels; empty: nothing."""
    fewer = not any(fault.all_cases for fault in faults)
    kernels = kernels_of(family, sources_with(faults, directory, fewer))
    files = {Path(fault.file).name for fault in faults}
    changed = (
        kernels if any(name.endswith(".h") for name in files) else [path for path in kernels if path.name in files]
    )
    assert changed or not faults, f"no kernel of {family} is made of {files}"
    objects = dict(_objects(family, sanitizer, fewer))
    made = compiled(dict.fromkeys(changed, FLAGS), sanitizer, directory)
    objects.update((source.name, path) for source, path in zip(changed, made, strict=True))
    done = run(linked([*objects.values()], sanitizer, directory), sanitizer, *(["few"] if fewer else []))
    return "" if done.returncode == 0 and done.stdout.endswith("ok\n") else done.stdout + done.stderr


def ptx_with(faults: Sequence[Fault], kernel: str, directory: Path, target: int = 80) -> Path:
    """What nvcc makes of a file of kernels."""
    source, made = sources_with(faults, directory) / f"kernels/cuda/{kernel}.cu", directory / f"{kernel}.ptx"
    compiled_files(
        [[nvcc_ptx.nvcc(), *nvcc_ptx.NVCC_FLAGS, "-ptx", f"-arch=sm_{target}", str(source), "-o", str(made)]]
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
