"""Builds a program with a sanitizer and runs it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SANITIZERS = ["address,undefined", "thread"]


def built(flags: Mapping[Path, Sequence[str]], sanitizer: str, directory: Path) -> Path:
    """The program of these sources, each with flags of its own, two compiled at a time."""
    common = ["-O1", "-g1", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"]
    objects, running = [], []
    for source, own in flags.items():
        objects.append(str(directory / f"{source.name}.o"))
        running.append(subprocess.Popen(["g++", *common, *own, "-x", "c++", "-c", str(source), "-o", objects[-1]]))
        if len(running) == 2:
            assert running.pop(0).wait() == 0
    assert all(compiler.wait() == 0 for compiler in running)
    program = directory / "main"
    subprocess.run(["g++", f"-fsanitize={sanitizer}", *objects, "-o", str(program), "-pthread", "-ldl"], check=True)
    return program


def run(program: Path, sanitizer: str) -> subprocess.CompletedProcess[str]:
    """ThreadSanitizer wants addresses that do not change from run to run."""
    fixed = ["setarch", "-R"] if sanitizer == "thread" and shutil.which("setarch") else []
    return subprocess.run([*fixed, str(program)], capture_output=True, text=True, check=False)
