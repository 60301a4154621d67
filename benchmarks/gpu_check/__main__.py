"""``python -m benchmarks.gpu_check``: self-check, op and step benchmarks on a GPU; one results file and a summary."""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_check import report
from benchmarks.gpu_check.isolated import run_isolated
from benchmarks.gpu_check.machine import Gpu, Machine
from benchmarks.gpu_check.running import Scale, Section, work
from benchmarks.gpu_check.sections import SECTIONS

Run = Callable[[Section, float], list[dict[str, Any]]]


def in_processes(section: Section, deadline: float) -> list[dict[str, Any]]:
    """Records of a section that is worked off by child processes."""
    names = [item.name for item in section.items(Scale())]
    return run_isolated(section.name, names, workers=section.workers, deadline=deadline, limit=section.limit)


def here(machine: Machine, scale: Scale, section: Section, deadline: float) -> list[dict[str, Any]]:
    """Records of a section that is worked off in this process, as far as the device lets it."""
    records: list[dict[str, Any]] = []
    items = section.items(scale)
    try:
        work(machine, items, range(len(items)), deadline, records.append)
    except Exception as error:  # the device does not recover: what came before is kept
        print(f"{section.name}: given up: {error}", file=sys.stderr)
    return [record for record in records if "index" in record]


def run_sections(
    machine: Machine, scale: Scale, run: Run, sections: Sequence[Section], minutes: float, output: Path
) -> dict[str, Any]:
    """All sections; each ends by its share of the time, what one leaves goes to the next. The file is written after each."""
    begun = time.monotonic()
    results: dict[str, Any] = {"conditions": report.conditions(machine), "minutes": minutes, "sections": {}}
    total, share = sum(section.share for section in sections), 0.0
    for section in sections:
        share += section.share / total
        started = time.monotonic()
        print(f"{section.name}: until {share * minutes * 60:.0f} s of {minutes * 60:.0f} s", flush=True)
        records = run(section, begun + share * minutes * 60)
        names = [item.name for item in section.items(scale)]
        results["sections"][section.name] = report.section_results(names, records, time.monotonic() - started)
        report.add_shares(results["sections"])
        results["failures"] = report.failures(results["sections"])
        results["took"] = time.monotonic() - begun
        report.write(output, results)
    return results


def _default_output(machine: Machine) -> Path:
    name = str(machine.conditions().get("device", machine.device.type)).lower()
    slug = "-".join("".join(c if c.isalnum() else " " for c in name).split())
    return Path(__file__).resolve().parents[1] / "results" / f"gpu-{slug}.json"


def main(arguments: Sequence[str] | None = None, machine: Machine | None = None, scale: Scale | None = None) -> int:
    """0 where nothing failed, or there is no GPU; a ``machine`` is used in this process instead of the GPU."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__)
    parser.add_argument("--minutes", type=float, default=9.0, help="of the whole; nothing starts later")
    parser.add_argument("--output", type=Path, help="results file; default: benchmarks/results/gpu-DEVICE.json")
    parser.add_argument("--only", action="append", choices=list(SECTIONS), help="this section (may be repeated)")
    parser.add_argument("--one-process", action="store_true", help="for debuggers and profilers: a crash ends it all")
    options = parser.parse_args(arguments)
    scale = Scale() if scale is None else scale
    run: Run = in_processes
    if machine is None:
        if not torch.cuda.is_available():
            print(f"no GPU: torch {torch.__version__} sees none, so there is nothing to check or time here")
            return 0
        machine = Gpu()
        if options.one_process:
            run = functools.partial(here, machine, scale)
    else:
        run = functools.partial(here, machine, scale)
    sections = [section for name, section in SECTIONS.items() if options.only is None or name in options.only]
    output = _default_output(machine) if options.output is None else options.output
    results = run_sections(machine, scale, run, sections, options.minutes, output)
    print(report.summary(results))
    print(f"\nresults: {output}")
    return 1 if results["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
