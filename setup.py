"""Builds the C++ backend, ``fastmtl/_C_cpu.so``, with ninja. Without a compiler the package installs without it.

The library holds no Python symbols and uses torch's stable ABI alone, so one wheel serves every Python and every torch
from 2.10 on. ``FASTMTL_CPP=auto|0|1``: build if possible (default), never, or fail where it is not possible.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Distribution, Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
SOURCES = sorted(
    str(p.relative_to(ROOT)) for p in [*ROOT.glob("csrc/torch/cpu_*.cpp"), *ROOT.glob("csrc/kernels/cpu/*.cpp")]
)
LIBRARY = "fastmtl/_C_cpu.so"

CXXFLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast", "-Wall", "-Wextra"]
# Files of one instruction set; everything else is compiled for the baseline. Chosen at run time, see isa.cpp.
AVX2 = ["-mavx2", "-mfma", "-mf16c", "-mprfchw"]
ISA_FLAGS = {
    "compute_avx2.cpp": AVX2,
    "compute_avx512.cpp": [
        *AVX2,
        *(f"-mavx512{part}" for part in ("f", "bw", "dq", "vl")),
        "-mprefer-vector-width=512",
    ],
}

NINJA_RULES = """\
rule compile
  command = $cxx $flags -MMD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
rule link
  command = $cxx -shared $in -o $out $ldflags
"""


class CannotBuildError(RuntimeError):
    """Why the C++ backend cannot be built here."""


def escape(path: str | Path) -> str:
    """A path in a ninja file."""
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def compiler() -> str:
    """The C++ compiler: CXX, else the usual names."""
    for name in filter(None, (os.environ.get("CXX"), "g++", "c++", "clang++")):
        if shutil.which(name):
            return name
    raise CannotBuildError("no C++ compiler found (looked for $CXX, g++, c++, clang++)")


def torch_directory() -> Path:
    """Where the torch at hand lives. It is not imported: that would take longer than a rebuild without changes."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise CannotBuildError("torch is missing: install torch >= 2.10, then fastmtl with --no-build-isolation")
    version = importlib.metadata.version("torch")
    if tuple(int(part) for part in version.split(".")[:2]) < (2, 10):
        raise CannotBuildError(f"torch >= 2.10 is needed for its stable ABI, got {version}")
    return Path(spec.origin).parent


def write_ninja(directory: Path, target: Path) -> None:
    """Write ``build.ninja``, leaving an unchanged file alone so that nothing is rebuilt."""
    torch = torch_directory()
    # The version that is targeted, not the one at hand: 2.10.
    flags = [*CXXFLAGS, "-DTORCH_TARGET_VERSION=0x020a000000000000ULL", f"-isystem {escape(torch / 'include')}"]
    # $ORIGIN is not needed: Python has loaded libtorch before it loads this library.
    ldflags = ["-Wl,--no-undefined", f"-L{escape(torch / 'lib')}", "-ltorch_cpu", "-ltorch"]
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    lines = [f"cxx = {escape(compiler())}", f"ldflags = {' '.join(ldflags)}", NINJA_RULES]
    objects = []
    for source in SOURCES:
        name = Path(source).name
        built = escape(Path(source).with_suffix(".o"))
        isa = ISA_FLAGS.get(name, []) if x86 else []
        torch_free = [flag for flag in flags if not flag.startswith(("-isystem", "-DTORCH"))]
        chosen = flags if source.startswith("csrc/torch/") else [*torch_free, *isa]
        lines.append(f"build {built}: compile {escape(ROOT / source)}\n  flags = {' '.join(chosen)}")
        objects.append(built)
    lines.append(f"build {escape(target)}: link {' '.join(objects)}\n")
    text = "\n".join(lines)
    file = directory / "build.ninja"
    if not file.exists() or file.read_text() != text:
        file.write_text(text)


class BuildCpp(build_ext):
    """Ninja in place of setuptools' own compiling; a failure is an error only where ``FASTMTL_CPP=1``."""

    def run(self) -> None:
        mode = os.environ.get("FASTMTL_CPP", "auto")
        if mode not in ("auto", "0", "1"):
            raise ValueError(f"FASTMTL_CPP: expected auto, 0 or 1, got {mode!r}")
        if mode == "0":
            return
        target = (ROOT if self.inplace or self.editable_mode else Path(self.build_lib).resolve()) / LIBRARY
        try:
            self.build_with_ninja(target)
        except (CannotBuildError, OSError, subprocess.CalledProcessError) as error:
            if mode == "1":
                raise RuntimeError(f"FASTMTL_CPP=1, but the C++ backend cannot be built: {error}") from error
            bar = "*" * 100
            message = (
                f"\n{bar}\nfastmtl is installed WITHOUT its C++ backend and will be slow on CPUs: {error}\n{bar}\n"
            )
            print(message, file=sys.stderr, flush=True)

    def build_with_ninja(self, target: Path) -> None:
        try:
            import ninja
        except ImportError as error:
            raise CannotBuildError("the package ninja is missing") from error
        directory = ROOT / "build" / "cpp"
        directory.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_ninja(directory, target)
        subprocess.run([str(Path(ninja.BIN_DIR) / "ninja")], cwd=directory, check=True)

    def get_outputs(self) -> list[str]:
        return [str(Path(self.build_lib) / LIBRARY)]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class PlatformWheel(bdist_wheel):
    """Any Python, this platform: the library knows torch, not Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


class BinaryDistribution(Distribution):
    """Has a library even though it has no extension module in setuptools' sense."""

    def has_ext_modules(self) -> bool:
        return True


setup(
    distclass=BinaryDistribution,
    ext_modules=[Extension("fastmtl._C_cpu", SOURCES)],
    cmdclass={"build_ext": BuildCpp, "bdist_wheel": PlatformWheel},
)
