"""Builds a program with a sanitizer and runs it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SANITIZERS = ["address,undefined", "thread"]


def _flags(sanitizer: str) -> list[str]:
    strict = ["-fsanitize=bounds-strict"] if "undefined" in sanitizer else []  # the last array of a struct as well
    return ["-O1", "-g1", f"-fsanitize={sanitizer}", *strict, "-fno-sanitize-recover=all"]


def compiled(flags: Mapping[Path, Sequence[str]], sanitizer: str, directory: Path) -> list[Path]:
    """The objects of these sources, each with flags of its own, two compiled at a time."""
    objects = [directory / f"{source.name}.o" for source in flags]

    def compile_one(source: Path, made: Path) -> None:
        command = ["g++", *_flags(sanitizer), *flags[source], "-x", "c++", "-c", str(source), "-o", str(made)]
        subprocess.run(command, check=True)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(compile_one, flags, objects))
    return objects


def linked(objects: Sequence[Path], sanitizer: str, directory: Path) -> Path:
    """The program."""
    program = directory / "main"
    command = ["g++", f"-fsanitize={sanitizer}", *map(str, objects), "-o", str(program), "-pthread", "-ldl"]
    subprocess.run(command, check=True)
    return program


def run(program: Path, sanitizer: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """ThreadSanitizer wants addresses that do not change from run to run."""
    fixed = ["setarch", "-R"] if sanitizer == "thread" and shutil.which("setarch") else []
    options = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1"}
    return subprocess.run([*fixed, str(program), *arguments], capture_output=True, text=True, check=False, env=options)
