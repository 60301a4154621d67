"""Builds the compiled backends with ninja: ``fastmtl/_C_cpu.so`` (C++) and ``fastmtl/_C_cuda.so`` (CUDA).

Both hold no Python symbols and use torch's stable ABI alone, so one wheel serves every Python and every torch from 2.10 on,
with CUDA or without. Without a compiler the package installs without its library. ``FASTMTL_CPP=auto|0|1`` and
``FASTMTL_CUDA=auto|0|1``: build if possible (default), never, or fail where it is not possible. ``TORCH_CUDA_ARCH_LIST``
chooses the GPUs, in torch's syntax ("8.0;9.0+PTX").
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from setuptools import Distribution, Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent

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

NVCCFLAGS = ["-std=c++17", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra"]
ARCHITECTURES = ("8.0", "8.6", "8.9", "9.0", "10.0", "12.0")  # the last as PTX too, for GPUs that come later
LEAST_CAPABILITY = (8, 0)  # as fastmtl/backends/cuda.py has it

NINJA_RULES = """\
rule compile
  command = $cxx $flags -MMD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
rule nvcc
  command = $nvcc $flags -MD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
rule link
  command = $cxx -shared $in -o $out $ldflags
"""


class CannotBuildError(RuntimeError):
    """Why a library cannot be built here."""


def found(*patterns: str) -> list[str]:
    """The files of these patterns, relative to here."""
    return sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern))


def escape(path: str | Path) -> str:
    """A path in a ninja file, where it says what is built from what."""
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def in_shell(words: Iterable[str]) -> str:
    """Words of a command in a ninja file."""
    return shlex.join(words).replace("$", "$$")


@functools.cache
def compiler() -> str:
    """The C++ compiler: CXX, else the usual names."""
    for name in filter(None, (os.environ.get("CXX"), "g++", "c++", "clang++")):
        if shutil.which(name):
            return name
    raise CannotBuildError("no C++ compiler found (looked for $CXX, g++, c++, clang++)")


@functools.cache
def torch_directory() -> Path:
    """Where the torch at hand lives. It is not imported: that would take longer than a rebuild without changes."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise CannotBuildError("torch is missing: install torch >= 2.10, then fastmtl with --no-build-isolation")
    version = importlib.metadata.version("torch")
    if tuple(int(part) for part in version.split(".")[:2]) < (2, 10):
        raise CannotBuildError(f"torch >= 2.10 is needed for its stable ABI, got {version}")
    return Path(spec.origin).parent


def torch_flags() -> list[str]:
    """For files that include torch. The version that is targeted, not the one at hand: 2.10."""
    return ["-DTORCH_TARGET_VERSION=0x020a000000000000ULL", "-isystem", str(torch_directory() / "include")]


def torch_libraries() -> list[str]:
    """Never those of CUDA. $ORIGIN is not needed: Python has loaded libtorch before it loads the library."""
    return ["-Wl,--no-undefined", f"-L{torch_directory() / 'lib'}", "-ltorch_cpu", "-ltorch"]


def ninja_text(
    target: Path,
    sources: Sequence[str],
    flags_of: Callable[[str], Sequence[str]],
    ldflags: Sequence[str],
    nvcc: str = "",
) -> str:
    """A ``build.ninja`` that compiles each source with its flags, and links them all."""
    lines = [f"{name} = {in_shell([path])}" for name, path in (("cxx", compiler()), ("nvcc", nvcc)) if path]
    lines += [f"ldflags = {in_shell(ldflags)}", NINJA_RULES]
    objects = []
    for source in sources:
        rule, built = "nvcc" if source.endswith(".cu") else "compile", escape(Path(source).with_suffix(".o"))
        lines.append(f"build {built}: {rule} {escape(ROOT / source)}\n  flags = {in_shell(flags_of(source))}")
        objects.append(built)
    return "\n".join([*lines, f"build {escape(target)}: link {' '.join(objects)}\n"])


def cpp_ninja(target: Path) -> str:
    """The C++ library's."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")

    def flags_of(source: str) -> list[str]:
        if source.startswith("csrc/torch/"):
            return [*CXXFLAGS, *torch_flags()]
        return [*CXXFLAGS, *(ISA_FLAGS.get(Path(source).name, []) if x86 else [])]

    return ninja_text(target, CPP.sources(), flags_of, torch_libraries())


def find_nvcc() -> str | None:
    """The CUDA compiler: NVCC, else of the toolkit that the environment names, else on the PATH."""
    chosen = os.environ.get("NVCC")
    if chosen:
        return chosen  # to be found or to be an error
    named = [Path(os.environ[name]) / "bin" for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    places = [*map(str, named), os.environ.get("PATH", os.defpath), "/usr/local/cuda/bin"]
    return next(filter(None, (shutil.which("nvcc", path=place) for place in places if place)), None)


def asked(*command: str) -> str:
    """What a compiler says of itself."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise CannotBuildError(f"{command[0]} cannot be started: {error}") from error
    if done.returncode != 0:
        raise CannotBuildError(f"{shlex.join(command)} failed: {(done.stderr or done.stdout).strip()[-1000:]}")
    return done.stdout + done.stderr


def toolkit(nvcc: str, host: Sequence[str]) -> tuple[Path, Path]:
    """Where a compiler's headers and libraries are. It is asked: it may be a script that starts another one."""
    said = asked(nvcc, *host, "--dryrun", "-c", str(ROOT / CUDA.sources()[0]), "-o", os.devnull)
    values = dict(re.findall(r"^#\$ (TOP|INCLUDES|LIBRARIES)=(.*)$", said, re.MULTILINE))
    words = shlex.split(f"{values.get('INCLUDES', '')} {values.get('LIBRARIES', '')}")
    places = [Path(word[2:]) for word in words if word[:2] in ("-I", "-L")]
    # Toolkits that come as Python packages have other folders than their compiler believes.
    places += [Path(values["TOP"].strip()) / name for name in ("include", "lib64", "lib") if "TOP" in values]

    def place_of(file: str) -> Path:
        for place in places:
            if (place / file).exists():
                return place.resolve()
        raise CannotBuildError(f"the CUDA toolkit of {nvcc} has no {file}")

    return place_of("cuda_runtime.h"), place_of("libcudart_static.a")


def code_for_gpus(nvcc: str) -> tuple[list[str], str]:
    """Flags that say which GPUs code is made for; the same as TORCH_CUDA_ARCH_LIST has it."""
    known = set(asked(nvcc, "--list-gpu-code").split())
    wanted = re.split(r"[;\s]+", os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip(" ;"))
    if wanted == [""]:
        wanted = [name for name in ARCHITECTURES if f"sm_{name.replace('.', '')}" in known]
        wanted[-1:] = [f"{name}+PTX" for name in wanted[-1:]]
    flags, names = [], []
    for name in wanted:
        parts = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", name)
        if parts is None:
            raise CannotBuildError(f"TORCH_CUDA_ARCH_LIST: expected numbers such as 8.0;9.0+PTX, got {name!r}")
        major, minor, kind, ptx = parts.groups()
        if (int(major), int(minor)) < LEAST_CAPABILITY:
            continue  # lists are often shared by many packages
        if f"sm_{major}{minor}" not in known:
            raise CannotBuildError(f"TORCH_CUDA_ARCH_LIST: {nvcc} makes no code for {name}, only for {sorted(known)}")
        names.append(name)
        number = f"{major}{minor}{kind}"
        flags += [f"-gencode=arch=compute_{number},code={made}_{number}" for made in ("sm", *["compute"] * bool(ptx))]
    if not flags:
        raise CannotBuildError("no GPU of compute capability 8.0 or later is left to make code for")
    return flags, ";".join(names)


def cuda_ninja(target: Path) -> str:
    """The CUDA library's. CUDA's runtime is linked statically, so that no other version can take its place."""
    nvcc = find_nvcc()
    if nvcc is None:
        raise CannotBuildError("no nvcc found (looked for $NVCC, in $CUDA_HOME, $CUDA_PATH, PATH, /usr/local/cuda)")
    gpus, names = code_for_gpus(nvcc)
    host = [] if os.environ.get("NVCC_CCBIN") else ["-ccbin", compiler()]
    include, library = toolkit(nvcc, host)
    threads = f"--threads={min(os.cpu_count() or 1, 4)}"  # several GPUs' code at a time
    kernel_flags = [*NVCCFLAGS, *host, *gpus, threads]
    # Headers of the kernels have pragmas for nvcc.
    host_flags = [
        *CXXFLAGS,
        "-Wno-unknown-pragmas",
        *torch_flags(),
        "-isystem",
        str(include),
        "-DFASTMTL_DISPATCH=CUDA",
        f'-DFASTMTL_ARCHITECTURES="{names}"',
    ]
    ldflags = [*torch_libraries(), f"-L{library}", "-lcudart_static", "-lrt", "-ldl", "-lpthread"]
    ldflags.append("-Wl,--exclude-libs,ALL")  # hidden as the rest
    return ninja_text(
        target,
        CUDA.sources(),
        lambda source: kernel_flags if source.endswith(".cu") else host_flags,
        ldflags,
        nvcc,
    )


@dataclass(frozen=True)
class Library:
    """A backend's library, and how it is built."""

    backend: str
    variable: str  # auto, 0 or 1
    path: str
    patterns: tuple[str, ...]
    ninja: Callable[[Path], str]
    without: str  # what it means to do without

    def sources(self) -> list[str]:
        return found(*self.patterns)

    def mode(self) -> str:
        mode = os.environ.get(self.variable, "auto")
        if mode not in ("auto", "0", "1"):
            raise ValueError(f"{self.variable}: expected auto, 0 or 1, got {mode!r}")
        return mode

    def build(self, target: Path) -> None:
        try:
            import ninja
        except ImportError as error:
            raise CannotBuildError("the package ninja is missing") from error
        directory = ROOT / "build" / self.backend.lower().replace("c++", "cpp")
        directory.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        file, text = directory / "build.ninja", self.ninja(target)
        if not file.exists() or file.read_text() != text:  # an unchanged file is left alone: nothing is rebuilt
            file.write_text(text)
        subprocess.run([str(Path(ninja.BIN_DIR) / "ninja")], cwd=directory, check=True)


CPP = Library(
    "C++",
    "FASTMTL_CPP",
    "fastmtl/_C_cpu.so",
    ("csrc/torch/cpu_*.cpp", "csrc/kernels/cpu/*.cpp"),
    cpp_ninja,
    "will be slow on CPUs",
)
CUDA = Library(
    "CUDA",
    "FASTMTL_CUDA",
    "fastmtl/_C_cuda.so",
    ("csrc/torch/cuda_*.cpp", "csrc/kernels/cuda/*.cpp", "csrc/kernels/cuda/*.cu"),
    cuda_ninja,
    "will need Triton to be fast on GPUs",
)


class BuildLibraries(build_ext):
    """Ninja in place of setuptools' own compiling; a failure is an error only where the library was asked for."""

    def run(self) -> None:
        modes = {library: library.mode() for library in (CPP, CUDA)}
        place = ROOT if self.inplace or self.editable_mode else Path(self.build_lib).resolve()
        for library, mode in modes.items():
            target = place / library.path
            if mode == "0" or (library is CUDA and mode == "auto" and find_nvcc() is None):
                target.unlink(missing_ok=True)  # of an earlier build
                continue
            try:
                library.build(target)
            except (CannotBuildError, OSError, subprocess.CalledProcessError) as error:
                target.unlink(missing_ok=True)
                if mode == "1":
                    reason = f"{library.variable}=1, but the {library.backend} backend cannot be built: {error}"
                    raise RuntimeError(reason) from error
                bar = "*" * 100
                message = f"fastmtl is installed WITHOUT its {library.backend} backend and {library.without}: {error}"
                print(f"\n{bar}\n{message}\n{bar}\n", file=sys.stderr, flush=True)

    def get_outputs(self) -> list[str]:
        paths = [Path(self.build_lib) / library.path for library in (CPP, CUDA)]
        return [str(path) for path in paths if path.exists()]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class PlatformWheel(bdist_wheel):
    """Any Python, this platform: the libraries know torch, not Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


class BinaryDistribution(Distribution):
    """Has libraries even though it has no extension module in setuptools' sense."""

    def has_ext_modules(self) -> bool:
        return True


setup(
    distclass=BinaryDistribution,
    ext_modules=[Extension("fastmtl._C_cpu", CPP.sources()), Extension("fastmtl._C_cuda", CUDA.sources())],
    cmdclass={"build_ext": BuildLibraries, "bdist_wheel": PlatformWheel},
)
