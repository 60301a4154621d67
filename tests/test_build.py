"""The build: incremental with ninja, and installing without a compiler, of C++ or of CUDA."""

import os
import shutil
import subprocess
import sys
import zipfile
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
    return run(checkout, "setup.py", "build_ext", "--inplace", **{"FASTMTL_CUDA": "0", **environment})


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


# CUDA. Kernels take minutes to compile: those of the backend are built by `make`, here is one that stands for them.

KERNEL = """\
#include "launch.h"
namespace fastmtl::cuda {
__global__ void nothing(Launch) {}
const void* some_kernel() { return reinterpret_cast<const void*>(&nothing); }
}  // namespace fastmtl::cuda
"""


@pytest.fixture(scope="module")
def cuda_checkout(checkout, tmp_path_factory):
    place = tmp_path_factory.mktemp("cuda") / "checkout"
    shutil.copytree(checkout, place, ignore=shutil.ignore_patterns("build", "*.so"))
    kernels, bindings = place.glob("csrc/kernels/cuda/*.c*"), place.glob("csrc/torch/cuda_*.cpp")
    for path in [*kernels, *bindings]:
        if path.name not in ("launch.cpp", "cuda_device.cpp"):
            path.unlink()
    (place / "csrc/kernels/cuda/some_kernel.cu").write_text(KERNEL)
    return place


def build_cuda(checkout, mode="1", **environment):
    clean = {"NVCC": "", "CUDA_HOME": "", "CUDA_PATH": "", "TORCH_CUDA_ARCH_LIST": "8.0"}
    return build(checkout, FASTMTL_CPP="0", FASTMTL_CUDA=mode, **{**clean, **environment})


def fake_nvcc(place, codes="sm_80 sm_90", dryrun="exit 3"):
    """A compiler that only says what it could do."""
    script = place / "bin" / "nvcc"
    script.parent.mkdir()
    script.write_text(f"""#!/bin/sh
case "$*" in
  *--list-gpu-code*) echo "{codes}" ;;
  *--dryrun*) {dryrun} ;;
  *) exit 4 ;;
esac
""")
    script.chmod(0o755)
    return script


def real_nvcc():
    """As the environment names it, or the first on the PATH; the test is skipped where it is not there."""
    found = os.environ.get("NVCC") or shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if found is None or shutil.which("g++") is None:
        pytest.skip("nvcc or g++ is not here")
    return found


@pytest.mark.parametrize("variable", ["FASTMTL_CPP", "FASTMTL_CUDA"])
def test_a_mode_that_does_not_exist_is_an_error(checkout, variable):
    built = build(checkout, **{variable: "yes"})
    assert built.returncode != 0
    assert f"{variable}: expected auto, 0 or 1, got 'yes'" in built.stderr


def test_a_demanded_cuda_build_without_nvcc_fails(cuda_checkout):
    built = build_cuda(cuda_checkout, NVCC="/nowhere/nvcc")
    assert built.returncode != 0
    assert "FASTMTL_CUDA=1, but the CUDA backend cannot be built: /nowhere/nvcc cannot be started" in built.stderr


@pytest.mark.skipif(Path("/usr/local/cuda/bin/nvcc").exists(), reason="nvcc is where it is always looked for")
def test_without_nvcc_nothing_is_missed_unless_demanded(cuda_checkout):
    built = build_cuda(cuda_checkout, "auto", PATH="")
    assert built.returncode == 0 and "WITHOUT" not in built.stderr
    assert "cannot be built: no nvcc found" in build_cuda(cuda_checkout, PATH="").stderr


def test_without_cuda_it_installs_and_says_so(cuda_checkout, tmp_path):
    stale = cuda_checkout / "fastmtl/_C_cuda.so"
    stale.touch()
    built = build_cuda(cuda_checkout, "auto", CUDA_HOME=str(fake_nvcc(tmp_path).parents[1]), CXX="true")
    assert built.returncode == 0, built.stderr
    assert "WITHOUT its CUDA backend" in built.stderr and f"{tmp_path}/bin/nvcc -ccbin true --dryrun" in built.stderr
    assert not stale.exists()  # a library of other sources would be loaded


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ("8.0;Ampere", "expected numbers such as 8.0;9.0+PTX, got 'Ampere'"),
        ("8.0 99.0", "makes no code for 99.0, only for ['sm_80', 'sm_90']"),
        ("7.0 7.5+PTX", "no GPU of compute capability 8.0 or later is left"),
    ],
)
def test_gpus_that_cannot_be_are_an_error(cuda_checkout, tmp_path, wanted, reason):
    built = build_cuda(cuda_checkout, NVCC=str(fake_nvcc(tmp_path)), CXX="true", TORCH_CUDA_ARCH_LIST=wanted)
    assert built.returncode != 0 and reason in built.stderr


@pytest.mark.parametrize(
    ("wanted", "codes"),
    [
        ("", ["sm_80", "sm_90", "compute_90"]),  # of those that are made by default, what this nvcc knows
        ("7.5 8.0+PTX;9.0a", ["sm_80", "compute_80", "sm_90a"]),
    ],
)
def test_gpus_and_the_toolkit_of_nvcc(cuda_checkout, tmp_path, wanted, codes):
    """The toolkit is that which nvcc names, wherever it is."""
    place = tmp_path / "a toolkit"
    (place / "lib").mkdir(parents=True)
    (place / "lib/libcudart_static.a").touch()
    (place / "cuda_runtime.h").touch()
    says = f"""echo '#$ TOP={place}'; echo '#$ INCLUDES="-I{place}"  '; echo '#$ LIBRARIES=  "-L/nowhere"'"""
    nvcc = fake_nvcc(tmp_path, dryrun=says)
    built = build_cuda(cuda_checkout, NVCC=str(nvcc), CXX="false", TORCH_CUDA_ARCH_LIST=wanted)
    assert built.returncode != 0
    text = (cuda_checkout / "build/cuda/build.ninja").read_text()
    assert f"nvcc = {nvcc}" in text and f"-isystem '{place}'" in text and f"'-L{place}/lib' -lcudart_static" in text
    flags = next(line for line in text.splitlines() if "-gencode" in line)
    assert [word.split("code=")[2] for word in flags.split() if word.startswith("-gencode")] == codes


def test_the_cuda_build_is_incremental(cuda_checkout):
    found = real_nvcc()
    first = build_cuda(cuda_checkout, NVCC=found)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "no work to do" in build_cuda(cuda_checkout, NVCC=found).stdout
    (cuda_checkout / "csrc/kernels/cuda/some_kernel.cu").write_text(KERNEL + "\n")
    again = build_cuda(cuda_checkout, NVCC=found).stdout
    assert "-o csrc/kernels/cuda/some_kernel.o" in again
    assert "-o csrc/kernels/cuda/launch.o" not in again and "-o csrc/torch/" not in again
    (cuda_checkout / "csrc/kernels/cuda/launch.h").touch()  # which all three include
    assert build_cuda(cuda_checkout, NVCC=found).stdout.count(" -c ") == 3
    assert not needed_from_cuda(cuda_checkout / "fastmtl/_C_cuda.so")
    for mode in "10":  # what was built before does not go into a wheel that shall be without
        settings = {"FASTMTL_CPP": "0", "FASTMTL_CUDA": mode, "NVCC": found, "TORCH_CUDA_ARCH_LIST": "8.0"}
        made = run(cuda_checkout, "setup.py", "bdist_wheel", "--dist-dir", f"dist{mode}", **settings)
        assert made.returncode == 0, made.stderr
        (wheel,) = (cuda_checkout / f"dist{mode}").glob("*-py3-none-*.whl")
        assert ("fastmtl/_C_cuda.so" in zipfile.ZipFile(wheel).namelist()) == (mode == "1")


def needed_from_cuda(library):
    """Libraries of CUDA that it asks for: there must be none, as a torch without CUDA brings none along."""
    if shutil.which("readelf") is None:
        return []
    text = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
    return [line for line in text.splitlines() if "NEEDED" in line and "cuda" in line]


def test_a_torch_without_cuda_does_not_load_the_library(cuda_checkout):
    (cuda_checkout / "fastmtl/_C_cuda.so").touch()
    asked = """
import torch
torch.version.cuda = None
from fastmtl.backends import cuda
print(cuda.unavailable(torch.device("cuda")))
"""
    said = run(cuda_checkout, "-c", asked)
    assert said.stdout.startswith("torch ") and said.stdout.strip().endswith("is built without CUDA"), said.stderr


@pytest.mark.skipif(not (ROOT / "fastmtl/_C_cuda.so").exists(), reason="the CUDA library is not built")
def test_the_library_that_is_built_here():
    """Its ops are there under any torch, with no GPU and no driver."""
    checked = run(ROOT, "tests/cuda/check_library.py", PYTHONPATH=str(ROOT))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert not needed_from_cuda(ROOT / "fastmtl/_C_cuda.so")
