"""The kernels under AddressSanitizer with UBSan, and under ThreadSanitizer: they compile without torch."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
AVX2 = ["-mavx2", "-mfma", "-mf16c", "-mprfchw"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_kernels_under(sanitizer: str, tmp_path: Path) -> None:
    flags = ["-std=c++17", "-O1", "-g1", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"]
    sources = [*sorted((ROOT / "csrc/kernels/cpu").glob("*.cpp")), ROOT / "tests/kernels/sanitize_main.cpp"]
    objects, compilers = [], []
    for source in sources:
        isa = AVX512 if "avx512" in source.name else AVX2 if "avx2" in source.name else []
        objects.append(str(tmp_path / f"{source.stem}.o"))
        compilers.append(subprocess.Popen(["g++", *flags, *isa, "-c", str(source), "-o", objects[-1]]))
    assert [compiler.wait() for compiler in compilers] == [0] * len(compilers)
    program = str(tmp_path / "main")
    subprocess.run(["g++", f"-fsanitize={sanitizer}", *objects, "-o", program, "-pthread"], check=True)
    fixed_addresses = ["setarch", "-R"] if sanitizer == "thread" and shutil.which("setarch") else []
    done = subprocess.run([*fixed_addresses, program], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.endswith("ok\n"), done.stdout + done.stderr
