"""A section worked off by child processes: one that dies or hangs costs the item that it was at, not the rest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Command = Callable[[str, Sequence[int], float, Path], list[str]]

ROOT = Path(__file__).resolve().parents[2]
GRACE = 10.0  # seconds for the item that is under way at the deadline


def child_command(section: str, indices: Sequence[int], seconds: float, lines: Path) -> list[str]:
    """What starts `child`."""
    module = [sys.executable, "-m", "benchmarks.gpu_check.child", section]
    where = ["--indices", ",".join(map(str, indices)), "--lines", str(lines)]
    return [*module, *where, "--seconds", f"{seconds:.1f}"]


class Worker:
    """Children, one after another, that work off one list of items."""

    def __init__(
        self,
        section: str,
        names: Sequence[str],
        indices: Sequence[int],
        deadline: float,
        limit: float,
        folder: Path,
        command: Command,
    ):
        self.section, self.names, self.pending = section, names, list(indices)
        self.deadline, self.limit, self.command = deadline, limit, command
        self.lines, self.errors = (folder / f"{section}-{indices[0]}.{kind}" for kind in ("lines", "errors"))
        self.records: list[dict[str, Any]] = []
        self.read, self.done = 0, False
        self.process: subprocess.Popen[bytes] | None = None
        self._start()

    def _start(self) -> None:
        seconds = self.deadline - time.monotonic()
        if not self.pending or seconds <= 0:
            self.done = True
            return
        self.at: int | None = None
        self.since, self.ended = time.monotonic(), False
        command = self.command(self.section, self.pending, seconds, self.lines)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *_paths()])}
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=errors, stderr=errors)

    def _take_lines(self) -> None:
        if not self.lines.exists():
            return
        text = self.lines.read_text()
        complete = text.rfind("\n") + 1
        for line in text[self.read : complete].splitlines():
            record = json.loads(line)
            if "begin" in record:
                self.at, self.since = record["begin"], time.monotonic()
            elif "index" in record:
                self._took(record)
            else:
                self.ended = True
        self.read = complete

    def _took(self, record: dict[str, Any]) -> None:
        self.pending.remove(record["index"])
        self.records.append(record)
        self.at, self.since = None, time.monotonic()

    def _failed(self, error: str) -> None:
        """The item that it was at failed; where it was at none it cannot start, and all that is pending failed."""
        said = self.errors.read_text()[-2000:] if self.errors.exists() else ""
        for index in list(self.pending) if self.at is None else [self.at]:
            record = {"index": index, "name": self.names[index], "status": "failed", "took": 0.0}
            self._took({**record, "error": error, "traceback": said})

    def look(self) -> None:
        """Take what there is to read; start anew after a death, end what hangs or is late."""
        code = None if self.process is None else self.process.poll()
        self._take_lines()
        now = time.monotonic()
        if code is not None:
            if self.ended:
                self.done = True
            elif self.at is None and code != 0 and self.records and self.records[-1]["status"] == "failed":
                self._start()  # it reported a failure and found itself spoiled
            else:
                self._failed(f"the process ended with status {code}")
                self._start()
        elif now > self.deadline + GRACE:
            self.stop()
            self.done = True
        elif now - self.since > self.limit:
            self.stop()
            self._failed(f"hung: no end after {self.limit:.0f} s")
            self._start()

    def stop(self) -> None:
        """End the child."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def _paths() -> list[str]:
    held = os.environ.get("PYTHONPATH")
    return held.split(os.pathsep) if held else []


def run_isolated(
    section: str,
    names: Sequence[str],
    *,
    workers: int,
    deadline: float,
    limit: float,
    command: Command = child_command,
) -> list[dict[str, Any]]:
    """Records of the items that were worked off until ``deadline`` (`time.monotonic`), in their order."""
    count = max(1, min(workers, len(names)))
    with tempfile.TemporaryDirectory(prefix="fastmtl-gpu-check-") as folder:
        shards = [range(first, len(names), count) for first in range(count)]
        crew = [Worker(section, names, shard, deadline, limit, Path(folder), command) for shard in shards]
        try:
            while not all(worker.done for worker in crew):
                for worker in crew:
                    if not worker.done:
                        worker.look()
                time.sleep(0.05)
        finally:
            for worker in crew:
                worker.stop()
    return sorted((record for worker in crew for record in worker.records), key=lambda record: record["index"])
