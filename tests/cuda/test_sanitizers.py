"""CUDA kernels, compiled for the host, under AddressSanitizer with UBSan, and under ThreadSanitizer.

A family of kernels has a program, `sanitize_<family>.cpp`: on memory of exactly the right size, in several orders of blocks,
and against plain loops. What ThreadSanitizer takes for ordered is what a GPU would: see `block_on_host.cpp`.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.kernels.sanitizing import ROOT, SANITIZERS, built, run

HERE = ROOT / "tests/cuda"
FAMILIES = sorted(path.stem.removeprefix("sanitize_") for path in HERE.glob("sanitize_*.cpp"))


def program_of(family: str, sanitizer: str, directory: Path, csrc: Path = ROOT / "csrc") -> Path:
    """The program of a family of kernels, of the sources in `csrc`."""
    flags = ["-std=c++20", f"-I{HERE}", "-Wno-unknown-pragmas", "-Wno-attributes"]
    sources = [
        csrc / f"kernels/cuda/{family}.cu",
        HERE / f"sanitize_{family}.cpp",
        HERE / "block_on_host.cpp",
        HERE / "start_on_host.cpp",
    ]
    return built(dict.fromkeys(sources, flags), sanitizer, directory)


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
@pytest.mark.parametrize("sanitizer", SANITIZERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_kernels_under(family: str, sanitizer: str, tmp_path: Path) -> None:
    done = run(program_of(family, sanitizer, tmp_path), sanitizer)
    assert done.returncode == 0 and done.stdout.endswith("ok\n"), done.stdout + done.stderr
