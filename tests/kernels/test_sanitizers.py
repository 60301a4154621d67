"""The kernels under AddressSanitizer with UBSan, and under ThreadSanitizer: they compile without torch."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.kernels.sanitizing import ROOT, SANITIZERS, compiled, linked, run

AVX2 = ["-mavx2", "-mfma", "-mf16c", "-mprfchw"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]


def _flags(source: Path) -> list[str]:
    return AVX512 if "avx512" in source.name else AVX2 if "avx2" in source.name else []


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_kernels_under(sanitizer: str, tmp_path: Path) -> None:
    own = [ROOT / "tests/kernels" / name for name in ("compute_wide.cpp", "sanitize_main.cpp")]
    sources = [*sorted((ROOT / "csrc/kernels/cpu").glob("*.cpp")), *own]
    flags = {source: ["-std=c++17", "-Wno-psabi", *_flags(source)] for source in sources}
    done = run(linked(compiled(flags, sanitizer, tmp_path), sanitizer, tmp_path), sanitizer)
    assert done.returncode == 0 and done.stdout.endswith("ok\n"), done.stdout + done.stderr
