"""The CUDA backend without a GPU: its library compiled for the host, whose tensors stand in for a GPU's."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch

from fastmtl.backends import cuda as backend

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "cuda_host"
KERNELS = sorted((ROOT / "csrc/kernels/cuda").glob("*.cu"))
SOURCES = [
    *KERNELS,
    *sorted(path for path in (ROOT / "csrc/kernels/cuda").glob("*.cpp") if path.name != "launch.cpp"),
    *sorted(path for path in (ROOT / "csrc/torch").glob("cuda_*.cpp") if path.name != "cuda_device.cpp"),
    *sorted((ROOT / "tests/cuda").glob("*_on_host.cpp")),
]
FLAGS = ["-std=c++20", "-O1", "-g1", "-fPIC", "-pthread", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Wno-attributes"]

PROCESSORS = 3  # small cases then have several blocks, each with several tiles


def newest(*patterns: str) -> float:
    """When the last of the files was changed."""
    return max(path.stat().st_mtime for pattern in patterns for path in ROOT.glob(pattern))


@contextlib.contextmanager
def alone(name: str) -> Iterator[None]:
    """One process at a time is inside."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def compiled_files(commands: list[list[str]]) -> None:
    """Runs compilers, two at a time; what one says in vain is shown."""

    def run(command: list[str]) -> None:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, commands))


def _build() -> Path:
    target = BUILD / "fastmtl_cuda_on_host.so"
    with alone("library"):
        if target.exists() and target.stat().st_mtime > newest("csrc/**/*.*", "tests/cuda/*_on_host.*"):
            return target
        torch_directory = Path(torch.__file__).parent
        flags = [
            *FLAGS,
            "-DFASTMTL_DISPATCH=CPU",
            "-DTORCH_TARGET_VERSION=0x020a000000000000ULL",
            f"-isystem{torch_directory / 'include'}",
            f"-I{ROOT / 'tests/cuda'}",
        ]
        objects = [str(BUILD / f"{source.name}.o") for source in SOURCES]
        compiled_files(
            [
                ["g++", *flags, "-c", "-x", "c++", str(source), "-o", built]
                for source, built in zip(SOURCES, objects, strict=True)
            ]
        )
        made = BUILD / "new.so"
        libraries = [f"-L{torch_directory / 'lib'}", "-ltorch_cpu", "-ltorch", "-ldl"]
        compiled_files([["g++", "-shared", "-pthread", *objects, "-o", str(made), *libraries]])
        made.replace(target)
    return target


@functools.cache
def _outcome() -> Path | AssertionError:
    """The library, or why there is none: what failed once is not tried again for each test."""
    try:
        return _build()
    except AssertionError as error:
        return error


@functools.cache
def library() -> Any:
    """The library; its ops are those of ``torch.ops.fastmtl_cuda``, for tensors of the CPU."""
    if not KERNELS:
        pytest.skip(
            "the kernels are compiled for the host from their sources, which an installed package is tested without"
        )
    if sys.platform != "linux" or shutil.which("g++") is None:
        pytest.skip("the kernels are compiled for the host by g++ on Linux")
    path = _outcome()
    if isinstance(path, AssertionError):
        raise path
    torch.ops.load_library(str(path))
    return ctypes.CDLL(str(path))


@contextlib.contextmanager
def on_host(processors: int = PROCESSORS, resident: int = 2, order: int = 0) -> Iterator[Any]:
    """While inside, the CUDA backend runs on the CPU's tensors: a thread of the host for each of a block.

    Args:
        processors, resident: multiprocessors, and blocks that each holds.
        order: seed of the order of blocks; 0 takes them by their index.
    """
    loaded = library()
    loaded.fastmtl_processors(processors)
    loaded.fastmtl_resident_blocks(resident)
    loaded.fastmtl_order_of_blocks(order)
    with mock.patch.object(backend, "unavailable", return_value=None):
        yield loaded


HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_int64, ctypes.c_int, ctypes.c_void_p, ctypes.c_int64)


@contextlib.contextmanager
def launches_go_to(handle: Callable[[SimpleNamespace], None], **options: Any) -> Iterator[None]:
    """While inside, launches are handed over: name of the kernel, blocks, threads, and the bytes of its arguments."""
    errors: list[BaseException] = []

    def call(name: bytes, blocks: int, threads: int, address: int, size: int) -> None:
        try:
            if not errors:  # what follows a failed launch says nothing
                handle(
                    SimpleNamespace(
                        name=name.decode(), blocks=blocks, threads=threads, parameters=ctypes.string_at(address, size)
                    )
                )
        except BaseException as error:  # it cannot cross the library
            errors.append(error)

    held = HANDLER(call)
    with on_host(**options) as loaded:
        loaded.fastmtl_fresh_workspace(1)
        loaded.fastmtl_on_launch(held)
        try:
            yield
        finally:
            loaded.fastmtl_on_launch(None)
            loaded.fastmtl_fresh_workspace(0)
            if errors:
                raise errors[0]
