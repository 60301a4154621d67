"""The build: incremental with ninja, and installing without a compiler."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="needs a checkout: the tests run on a wheel")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """The sources alone, without what was built in the checkout."""
    place = tmp_path_factory.mktemp("checkout")
    for name in ("csrc", "fastmtl"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, place)
    return place


def run(checkout, *arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=checkout,
        env={**{key: value for key, value in os.environ.items() if not key.startswith("FASTMTL")}, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def build(checkout, **environment):
    return run(checkout, "setup.py", "build_ext", "--inplace", **environment)


def test_without_a_compiler_it_installs_and_says_so(checkout):
    built = build(checkout, PATH="", CXX="")
    assert built.returncode == 0, built.stderr
    assert "WITHOUT its C++ backend" in built.stderr and "no C++ compiler found" in built.stderr
    used = run(checkout, "-c", "import torch, fastmtl; print(fastmtl.ops.gram(torch.ones(2, 3)).tolist())")
    assert used.stdout.strip() == "[[3.0, 3.0], [3.0, 3.0]]", used.stderr
    reason = (
        "from fastmtl.ops.selection import unavailable; import torch; print(unavailable('cpp', torch.device('cpu')))"
    )
    assert "the library is not built" in run(checkout, "-c", reason).stdout
    forced = run(checkout, "-c", "import torch, fastmtl; fastmtl.ops.gram(torch.ones(2, 3))", FASTMTL_BACKEND="cpp")
    assert forced.returncode != 0
    assert (
        "FASTMTL_BACKEND forces backend 'cpp', which cannot run gram on cpu: the library is not built" in forced.stderr
    )


def test_a_demanded_build_that_is_impossible_fails(checkout):
    built = build(checkout, PATH="", CXX="", FASTMTL_CPP="1")
    assert built.returncode != 0
    assert "FASTMTL_CPP=1, but the C++ backend cannot be built: no C++ compiler found" in built.stderr


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "c++", "clang++"))), reason="needs a C++ compiler")
def test_the_build_is_incremental(checkout):
    first = build(checkout, FASTMTL_CPP="1")
    assert first.returncode == 0, first.stderr
    assert (checkout / "fastmtl" / "_C_cpu.so").exists()
    assert "no work to do" in build(checkout, FASTMTL_CPP="1").stdout
    changed = checkout / "csrc" / "kernels" / "cpu" / "isa.cpp"
    changed.write_text(changed.read_text() + "\n")
    again = build(checkout, FASTMTL_CPP="1").stdout
    assert "-o csrc/kernels/cpu/isa.o" in again and "-o csrc/kernels/cpu/moments.o" not in again
    assert run(checkout, "-c", "from fastmtl.backends import cpp; print(cpp.instruction_set())").returncode == 0
