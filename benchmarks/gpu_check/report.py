"""The results file and the tables that are printed."""

from __future__ import annotations

import datetime
import json
import math
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import timing
from benchmarks.gpu_check.isolated import ROOT
from benchmarks.gpu_check.machine import Machine, triton_version
from fastmtl.version import __version__

Record = dict[str, Any]


def _commit() -> str | None:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def conditions(machine: Machine) -> Record:
    """The device, versions, and the date."""
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    versions = {"fastmtl": __version__, "commit": _commit(), "triton": triton_version()}
    return {"date": now, **versions, **timing.conditions(), **machine.conditions()}


def section_results(names: Sequence[str], records: Sequence[Record], took: float) -> Record:
    """What goes to the file of one section: also the names of what did not fit the time."""
    done = {record["index"] for record in records}
    counts = {status: sum(r["status"] == status for r in records) for status in ("ok", "failed", "skipped")}
    not_run = [name for index, name in enumerate(names) if index not in done]
    return {"took": took, "counts": counts, "not_run": not_run, "items": list(records)}


def add_shares(sections: dict[str, Record]) -> None:
    """Each op's bytes a second as a share of the measured copy's: ``of_bandwidth``."""
    items = sections.get("ops", {}).get("items", [])
    speed = next((item["bandwidth"] for item in items if "bandwidth" in item), None)
    for item in items:
        if speed is not None and "moved" in item:
            item["of_bandwidth"] = {
                name: {key: item["moved"] / value / speed for key, value in timed["seconds"].items()}
                for name, timed in item["timings"].items()
            }


def failures(sections: dict[str, Record]) -> list[str]:
    """A line for each failed item."""
    lines = []
    for name, section in sections.items():
        for item in section["items"]:
            if item["status"] == "failed":
                texts = [
                    item.get("error"),
                    item.get("wrong"),
                    *(f"{k}: {v}" for k, v in item.get("errors", {}).items()),
                ]
                said = "; ".join(str(text).splitlines()[0] for text in texts if text)
                lines.append(f"{name}: {item['name']}: {said[:300]}")
    return lines


def _plain(value: Any) -> Any:
    """With numbers to four digits, and what JSON has no numbers for as text."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else str(value)
    return value


def write(path: Path, results: Record) -> None:
    """Whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(path.suffix + ".part")
    part.write_text(json.dumps(_plain(results), separators=(",", ":"), allow_nan=False) + "\n")
    part.replace(path)


# -- tables --------------------------------------------------------------------------------------------------------------


def _table(title: str, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    if not rows:
        return
    widths = [max(len(row[column]) for row in [headers, *rows]) for column in range(len(headers))]
    yield f"\n{title}"
    for row in [headers, *rows]:
        yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _timed(item: Record, variant: str, key: str) -> dict[str, float] | None:
    return item.get("timings", {}).get(variant, {}).get(key)


def _microseconds(item: Record, variant: str, key: str = "seconds") -> str:
    value = _timed(item, variant, key)
    return "-" if value is None else f"{value['median'] * 1e6:.1f}"


def _ratio(item: Record, variant: str) -> str:
    value = _timed(item, variant, "ratio")
    return "-" if value is None else f"{value['median']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"


def _times_faster(item: Record) -> str:
    op, plain = _timed(item, "op", "seconds"), _timed(item, "plain", "seconds")
    return "-" if op is None or plain is None else f"{plain['median'] / max(op['median'], 1e-9):.1f}x"


def _share(item: Record, variant: str) -> str:
    value = item.get("of_bandwidth", {}).get(variant)
    return "-" if value is None else f"{100 * value['median']:.0f} %"


def _with_timings(section: Record) -> list[Record]:
    return [item for item in section["items"] if item.get("timings")]


def _self_check(section: Record) -> Iterator[str]:
    rows: dict[tuple[str, str], list[Record]] = {}
    for item in section["items"]:
        for backend, outcome in item.get("checked", {}).items():
            rows.setdefault((backend, item["op"]), []).append(outcome)
        if "runs" in item:
            yield "  backends: " + ", ".join(f"{name} {state}" for name, state in item["backends"].items())
            yield "  runs: " + ", ".join(f"{op}: {name}" for op, name in item["runs"].items())
    yield from _table(
        "self-check against the float64 reference: worst error in units of the tolerance",
        ("backend", "op", "cases", "worst", "failed"),
        [
            (
                *key,
                str(sum(o["cases"] for o in outcomes)),
                f"{max(o['worst'] for o in outcomes):.3f}",
                str(sum(len(o["failed"]) for o in outcomes)),
            )
            for key, outcomes in sorted(rows.items())
        ],
    )


def _first_calls(section: Record) -> Iterator[str]:
    slowest = sorted((item for item in section["items"] if "first" in item), key=lambda item: -item["first"])[:8]
    rows = [(item["name"], f"{item['first']:.2f} s", f"{item['difference']:.1e}") for item in slowest]
    yield from _table("slowest first calls (they compile)", ("case", "first call", "difference"), rows)


def _ops(section: Record) -> Iterator[str]:
    for item in section["items"]:
        if "bandwidth" in item:
            yield f"\n  copy: {item['bandwidth'] / 1e9:.0f} GB/s read and written; empty launch: " + (
                f"{_microseconds(item, 'launch')} us, as a graph {_microseconds(item, 'launch, graph')} us"
            )
    rows = [
        (
            item["name"],
            _microseconds(item, "op"),
            _share(item, "op"),
            _microseconds(item, "graph"),
            _share(item, "graph"),
            _ratio(item, "graph"),
            _microseconds(item, "op", "host"),
            _times_faster(item),
        )
        for item in _with_timings(section)
        if "moved" in item
    ]
    headers = ("case", "us", "of copy speed", "graph, us", "of copy speed", "graph / copy of as many bytes", "host, us")
    yield from _table("ops, caches cold", (*headers, "plain / op"), rows)
    rows = [
        (
            item["name"],
            name,
            _microseconds(item, name),
            _share(item, name),
            _microseconds(item, f"{name}, graph"),
            _share(item, f"{name}, graph"),
            _ratio(item, f"{name}, graph"),
            _microseconds(item, name, "host"),
        )
        for item in _with_timings(section)
        for name in item.get("beside", [])
    ]
    yield from _table("the same ops by other backends", (headers[0], "backend", *headers[1:]), rows)


def _updates(section: Record) -> Iterator[str]:
    variants = ("op", "op, graph", "plain", "plain, graph")
    rows = [
        (item["name"], *(_microseconds(item, v) for v in variants), _microseconds(item, "op", "host"))
        for item in _with_timings(section)
    ]
    yield from _table("updates, us", ("case", *variants, "op, host"), rows)
    rows = [
        (
            item["name"],
            name,
            _microseconds(item, name),
            _microseconds(item, f"{name}, graph"),
            _microseconds(item, name, "host"),
        )
        for item in _with_timings(section)
        for name in item.get("beside", [])
    ]
    yield from _table("the same by other backends, us", ("case", "backend", "op", "op, graph", "op, host"), rows)


def _steps(section: Record) -> Iterator[str]:
    rows = []
    for item in _with_timings(section):
        peaks = item.get("peaks", {})
        base = next(iter(peaks.values()), 0) or 1
        for variant, timed in item["timings"].items():
            memory = f"{peaks[variant] / base:.3f}" if variant in peaks else "-"
            rows.append(
                (item["name"], variant, _ratio(item, variant), f"{timed['seconds']['median'] * 1e3:.2f}", memory)
            )
    yield from _table("whole steps", ("step", "variant", "time / plain", "ms", "peak memory / plain"), rows)


def _layers(section: Record) -> Iterator[str]:
    variants = ("op", "graph", "M only", "plain, M only")
    rows = [
        (item["name"], _microseconds(item, "backward"), *(_ratio(item, v) for v in variants))
        for item in _with_timings(section)
    ]
    yield from _table(
        "moments of layers / the layer's backward for one task", ("layer", "backward, us", *variants), rows
    )
    rows = [
        (item["name"], name, _ratio(item, name)) for item in _with_timings(section) for name in item.get("beside", [])
    ]
    yield from _table("the same by other backends", ("layer", "backend", "op / backward"), rows)


TABLES = {
    "self-check": _self_check,
    "first calls": _first_calls,
    "ops": _ops,
    "updates": _updates,
    "steps": _steps,
    "layers": _layers,
}


def summary(results: Record) -> str:
    """Everything that is printed."""
    lines = ["", ", ".join(f"{key} {value}" for key, value in results["conditions"].items() if value is not None)]
    for name, section in results["sections"].items():
        lines += TABLES.get(name, lambda section: iter(()))(section)
    rows = []
    for name, section in results["sections"].items():
        counts = section["counts"]
        cells = [str(counts["ok"]), str(counts["failed"]), str(counts["skipped"]), str(len(section["not_run"]))]
        rows.append((name, *cells, f"{section['took']:.0f} s"))
    lines += _table("sections", ("section", "ok", "failed", "skipped", "did not fit the time", "took"), rows)
    failed = failures(results["sections"])
    lines += [f"\n{len(failed)} failed"] + [f"  {line}" for line in failed[:40]] if failed else ["\nnothing failed"]
    return "\n".join(lines)
