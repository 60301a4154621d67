"""Works off a part of one section in a process of its own, and writes a line of JSON for each item: started by `isolated`."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_check.machine import Gpu
from benchmarks.gpu_check.running import Scale, work
from benchmarks.gpu_check.sections import SECTIONS


def main() -> None:
    """See the arguments."""
    parser = argparse.ArgumentParser()
    parser.add_argument("section", choices=SECTIONS)
    parser.add_argument("--indices", required=True, help="of the items, with commas")
    parser.add_argument("--seconds", type=float, required=True, help="no item starts later")
    parser.add_argument("--lines", type=Path, required=True, help="the file to write to")
    arguments = parser.parse_args()
    torch.set_num_threads(2)  # several children share the processor
    deadline = time.monotonic() + arguments.seconds
    with arguments.lines.open("a", buffering=1) as lines:

        def emit(record: dict[str, Any]) -> None:
            lines.write(json.dumps(record) + "\n")

        indices = [int(index) for index in arguments.indices.split(",")]
        work(Gpu(), SECTIONS[arguments.section].items(Scale()), indices, deadline, emit)
        emit({"end": True})


if __name__ == "__main__":
    main()
