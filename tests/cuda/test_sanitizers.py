"""CUDA kernels, compiled for the host, under AddressSanitizer with UBSan, and under ThreadSanitizer.

A family of kernels has a program, `sanitize_<family>.cpp`: on memory of exactly the right size, in several orders of blocks,
and against plain loops. What ThreadSanitizer takes for ordered is what a GPU would: see `block_on_host.cpp`.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.kernels.sanitizing import ROOT, SANITIZERS, compiled, linked, run

HERE = ROOT / "tests/cuda"
FLAGS = ["-std=c++20", f"-I{HERE}", "-Wno-unknown-pragmas", "-Wno-attributes"]
# The kernels of each program.
FAMILIES = {
    "sum_norms": ["sum_norms"],
    "lists": ["gram_few", "gram_many", "squared_norms", "weighted_sum"],
    "products": ["products"],
    "sum_moments": ["sum_moments_few", "sum_moments_many"],
    "updates": ["updates"],
}


def kernels_of(family: str, csrc: Path = ROOT / "csrc") -> list[Path]:
    """The kernels, and where their launch is planned beside them."""
    kernels = [csrc / f"kernels/cuda/{name}.cu" for name in FAMILIES[family]]
    return [*kernels, *(path for path in (csrc / "kernels/cuda").glob("*.cpp") if path.stem == family)]


def runtime_of(family: str) -> list[Path]:
    """What a program has beside its kernels."""
    return [HERE / f"sanitize_{family}.cpp", HERE / "block_on_host.cpp", HERE / "start_on_host.cpp"]


def test_every_kernel_has_a_program() -> None:
    kernels = {path.stem for path in (ROOT / "csrc/kernels/cuda").glob("*.cu")}
    assert kernels == {name for names in FAMILIES.values() for name in names}


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
@pytest.mark.parametrize("sanitizer", SANITIZERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_kernels_under(family: str, sanitizer: str, tmp_path: Path) -> None:
    flags = dict.fromkeys([*kernels_of(family), *runtime_of(family)], FLAGS)
    done = run(linked(compiled(flags, sanitizer, tmp_path), sanitizer, tmp_path), sanitizer)
    assert done.returncode == 0 and done.stdout.endswith("ok\n"), done.stdout + done.stderr
