"""`benchmarks.gpu_check` without a GPU: a clean exit; and every section on a stand-in for the device, tiny, on the CPU."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu_check import __main__ as main
from benchmarks.gpu_check import gradients, isolated, running, timed
from benchmarks.gpu_check.machine import Gpu, Sample, flat
from benchmarks.gpu_check.running import Item, Scale, Section
from benchmarks.gpu_check.sections import SECTIONS
from fastmtl.backends import cuda, reference
from fastmtl.backends.contract import SCHEMAS
from fastmtl.ops import use_backend

ROOT = Path(__file__).resolve().parents[2]
TINY = Scale(
    tasks=(3,),
    dtypes=(torch.bfloat16, torch.float32),
    elements=(2**14,),
    small=2**14,
    layer_tasks=(2,),
    layers=32,
    copied=2**12,
    large=(40, 64),
    step=(2, 8, 16),
    step_tasks=(2,),
    cases=("sum_norms", "gradnorm_update"),
    rounds=2,
    seconds=0.0,
    repeats=2,
)


class StandIn:
    """The CPU as a device whose calls take a second for each that came before."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.calls = 0

    def synchronize(self) -> None: ...

    def chill(self) -> None: ...

    def timed(self, call: Callable[[], object]) -> Callable[[], Sample]:
        call()
        self.calls += 1
        sample = Sample(float(self.calls), 1e-6)
        return lambda: sample

    def captured(self, call: Callable[[], Any]) -> tuple[Callable[[], object], Any]:
        results = call()

        def replay() -> None:
            for tensor, value in zip(flat(results), flat(call()), strict=True):
                tensor.copy_(value)

        return replay, results

    def on_streams(self, call: Callable[[], Any], times: int) -> list[Any]:
        return [call() for _ in range(times)]

    def peak_bytes(self, call: Callable[[], object]) -> int:
        call()
        return 1000

    def free_bytes(self) -> int:
        return 2**34

    def conditions(self) -> dict[str, Any]:
        return {"device": "stand-in", "capability": [0, 0]}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(tmp_path: Path, *arguments: str, machine: Any = None, scale: Scale = TINY) -> tuple[int, dict[str, Any]]:
    output = tmp_path / "results.json"
    status = main.main(["--output", str(output), *arguments], machine or StandIn(), scale)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return status, json.loads(output.read_text(), parse_constant=refuse)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_succeeds(tmp_path):
    output = tmp_path / "results.json"
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--output", str(output)]
    said = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert said.returncode == 0, said.stderr
    assert "no GPU" in said.stdout
    assert not output.exists()


def test_it_needs_no_packages_but_torch():
    program = """
import sys
for name in ("typer", "rich", "pytest", "scipy", "hypothesis", "matplotlib"):
    sys.modules[name] = None
import benchmarks.gpu_check.__main__, benchmarks.gpu_check.child
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_every_section_runs_and_is_in_the_results(tmp_path, capsys):
    status, results = run(tmp_path)
    said = capsys.readouterr().out
    assert status == 0, results["failures"]
    assert list(results["sections"]) == list(SECTIONS)
    for name, section in results["sections"].items():
        expected = [item.name for item in SECTIONS[name].items(TINY)]
        assert [item["name"] for item in section["items"]] == expected
        assert section["counts"] == {"ok": len(expected), "failed": 0, "skipped": 0}
        assert section["not_run"] == []
    for key in ("date", "torch", "python", "triton", "device", "capability", "commit"):
        assert key in results["conditions"]
    assert "nothing failed" in said
    for title in ("self-check against", "ops, caches cold", "updates, us", "whole steps", "moments of layers"):
        assert title in said


def test_figures_of_an_op(tmp_path):
    _, results = run(tmp_path, "--only", "ops")
    first, *items = results["sections"]["ops"]["items"]
    assert first["bandwidth"] > 0
    item = next(item for item in items if item["name"] == f"sum_norms bfloat16 T=3 n={2**14}")
    assert item["moved"] == (3 + 1) * 2 * 2**14
    assert set(item["timings"]) == {"copy", "op", "plain", "graph"}
    seconds = item["timings"]["op"]["seconds"]
    share = item["of_bandwidth"]["op"]
    assert share["median"] == pytest.approx(
        item["moved"] / seconds["median"] / first["bandwidth"], rel=2e-3
    )  # four digits
    assert item["rounds"] == TINY.rounds


def test_other_backends_are_checked_and_timed_beside(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cuda, "unavailable", lambda device, dtype=None: None)  # which then is the reference's work
    for op in SCHEMAS:
        monkeypatch.setattr(cuda, op, getattr(reference, op), raising=False)
    sections = [
        part for name in ("first calls", "ops", "updates", "layers", "determinism") for part in ("--only", name)
    ]
    status, results = run(tmp_path, *sections)
    assert status == 0, results["failures"]
    for name in ("ops", "updates", "layers"):
        items = [item for item in results["sections"][name]["items"] if "beside" in item]
        assert items
        assert all(item["beside"] == ["cuda"] and item["timings"]["cuda"]["seconds"]["median"] > 0 for item in items)
    assert capsys.readouterr().out.count("by other backends") == 3


@pytest.mark.parametrize("section", ["first calls", "determinism"])
def test_a_wrong_result_of_another_backend_fails(tmp_path, monkeypatch, section):
    calls = itertools.count()

    def sum_norms(grads):
        total, norms = reference.sum_norms(grads)
        return total, norms * (1 + next(calls))

    monkeypatch.setattr(cuda, "unavailable", lambda device, dtype=None: None)
    for op in SCHEMAS:
        monkeypatch.setattr(cuda, op, getattr(reference, op), raising=False)
    monkeypatch.setattr(cuda, "sum_norms", sum_norms, raising=False)
    status, results = run(tmp_path, "--only", section)
    assert status == 1
    assert results["failures"]
    assert all(line.startswith(f"{section}: sum_norms") and "cuda" in line for line in results["failures"])


def test_ratios_are_within_a_round():
    # The stand-in's calls take 1, 2, 3, ... seconds; the second round has the other order.
    figures = timed.interleaved(StandIn(), {"a": lambda: None, "b": lambda: None}, rounds=2, seconds=0.0)
    assert figures["timings"]["b"]["ratio"] == pytest.approx({"median": 1.375, "low": 1.0625, "high": 1.6875})
    assert figures["timings"]["b"]["seconds"]["median"] == pytest.approx(2.5)


def test_a_variant_that_raises_leaves_the_others(tmp_path):
    def broken() -> None:
        raise ValueError("no")

    figures = timed.interleaved(StandIn(), {"bad": broken, "good": lambda: None}, rounds=2, seconds=0.0)
    assert figures["errors"] == {"bad": "ValueError: no"}
    assert figures["timings"]["good"]["ratio"]["median"] == 1


def broken_gram(tensors: Any, tasks: int) -> Any:
    raise RuntimeError("gram is broken")


def wrong_norms(grads: Any) -> Any:
    total, norms = real_norms(grads)
    return total, norms * 1.01


real_norms = reference.sum_norms


def test_an_op_that_raises_is_reported_and_the_rest_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reference, "gram", broken_gram)
    with use_backend("reference"):
        status, results = run(tmp_path, "--only", "first calls", "--only", "ops")
    assert status == 1
    for section in results["sections"].values():
        wrong = {item["name"].split()[0] for item in section["items"] if item["status"] == "failed"}
        right = {item["name"].split()[0] for item in section["items"] if item["status"] == "ok"}
        assert wrong == {"gram"}
        assert {"sum_norms", "sum_moments", "squared_norms", "weighted_sum"} <= right
    assert all("RuntimeError: gram is broken" in line for line in results["failures"])
    assert "gram is broken" in capsys.readouterr().out


def test_a_wrong_op_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "sum_norms", wrong_norms)
    scale = dataclasses.replace(TINY, cases=None)
    problem = gradients.first_calls(scale)
    with use_backend("reference"):
        figures = {item.name: item.run(StandIn()) for item in problem if item.name.startswith("sum_norms")}
        status, results = run(tmp_path, "--only", "large")
    assert all("differs from plain" in f["wrong"] for f in figures.values())
    assert status == 1
    assert [line.split(":")[1] for line in results["failures"]] == [" sum_norms T=2", " sum_norms T=1"]


class Event:
    def __init__(self, enable_timing: bool):
        assert enable_timing

    def record(self) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, other: Event) -> float:
        return (other.at - self.at) * 1e3


class Stream:
    def wait_stream(self, other: Stream) -> None: ...


class Graph:
    """Replays what was called while it was captured."""

    def replay(self) -> None:
        self.replayed = True


class Cuda:
    """As much of `torch.cuda` as `Gpu` calls, on the CPU."""

    Event, Stream, CUDAGraph = Event, Stream, Graph

    @staticmethod
    def get_device_properties(device: Any) -> Any:
        return types.SimpleNamespace(name="NVIDIA X1", multi_processor_count=2, total_memory=2**20, L2_cache_size=2**10)

    current_device = staticmethod(lambda: 0)
    current_stream = staticmethod(Stream)
    synchronize = empty_cache = reset_peak_memory_stats = staticmethod(lambda: None)
    stream = graph = staticmethod(lambda value: contextlib.nullcontext())
    memory_allocated = staticmethod(lambda: 5)
    max_memory_allocated = staticmethod(lambda: 12)
    mem_get_info = staticmethod(lambda: (10, 20))
    get_device_capability = staticmethod(lambda device: (9, 0))


def test_the_gpu_layer_on_a_mock_of_torch_cuda(monkeypatch):
    for name in [name for name in dir(Cuda) if not name.startswith("_")]:
        monkeypatch.setattr(torch.cuda, name, getattr(Cuda, name))
    gpu = Gpu()
    assert gpu.device == torch.device("cuda", 0)
    gpu.device = torch.device("cpu")
    gpu.chill()
    read = gpu.timed(lambda: time.sleep(0.01))
    assert 0.01 <= read().host <= read().device < 5
    calls: list[int] = []
    replay, results = gpu.captured(lambda: calls.append(1) or torch.ones(2))
    replay()
    assert len(calls) == 4 and flat(results)[0].tolist() == [1, 1]
    assert len(gpu.on_streams(lambda: 1, 3)) == 3
    assert gpu.peak_bytes(lambda: None) == 7
    assert gpu.free_bytes() == 10
    known = gpu.conditions()
    assert known["device"] == "NVIDIA X1" and known["capability"] == [9, 0]
    assert main._default_output(gpu).name == "gpu-nvidia-x1.json"


class Drifting(StandIn):
    """Replays give other bits."""

    def captured(self, call: Callable[[], Any]) -> tuple[Callable[[], object], Any]:
        replay, results = super().captured(call)

        def other() -> None:
            replay()
            flat(results)[-1].mul_(1 + 1e-6)

        return other, results


def test_a_graph_with_other_bits_is_noticed(tmp_path):
    status, results = run(tmp_path, "--only", "ops", machine=Drifting())
    assert status == 1
    items = results["sections"]["ops"]["items"][1:]
    assert all("other bits" in item["errors"]["graph"] for item in items if "float32" in item["name"])


class Racing(StandIn):
    """Two streams give other bits."""

    def on_streams(self, call: Callable[[], Any], times: int) -> list[Any]:
        results = super().on_streams(call, times)
        flat(results[1])[-1].add_(1)
        return results


def test_other_bits_on_two_streams_are_noticed(tmp_path):
    status, results = run(tmp_path, "--only", "determinism", machine=Racing())
    assert status == 1
    assert any("in 1 of 2 on two streams" in line for line in results["failures"])


class Small(StandIn):
    def free_bytes(self) -> int:
        return 1000


def test_what_does_not_fit_the_memory_is_skipped(tmp_path):
    status, results = run(tmp_path, "--only", "large", machine=Small())
    assert status == 0
    assert results["sections"]["large"]["counts"] == {"ok": 0, "failed": 0, "skipped": 8}
    assert "GiB" in results["sections"]["large"]["items"][0]["reason"]


def test_what_does_not_fit_the_time_is_named(tmp_path, capsys):
    status, results = run(tmp_path, "--only", "layers", "--minutes", "0")
    assert status == 0
    assert results["sections"]["layers"]["items"] == []
    assert results["sections"]["layers"]["not_run"] == [i.name for i in SECTIONS["layers"].items(TINY)]
    assert "did not fit the time" in capsys.readouterr().out


class Spoiled(StandIn):
    """As after an illegal access: nothing works any more."""

    def synchronize(self) -> None:
        raise RuntimeError("an illegal memory access was encountered")


def test_a_spoiled_device_ends_the_process_but_not_the_report():
    records: list[dict[str, Any]] = []
    items = [Item("one", lambda machine: {}), Item("two", lambda machine: {})]
    with pytest.raises(RuntimeError, match="illegal"):
        running.work(Spoiled(), items, range(2), time.monotonic() + 60, records.append)
    assert [record.get("status") for record in records] == [None, "failed"]
    section = Section("some", 1.0, lambda scale: items)
    assert [record["status"] for record in main.here(Spoiled(), TINY, section, time.monotonic() + 60)] == ["failed"]


CHILD = """
import json, os, sys, time
indices, lines = [int(i) for i in sys.argv[1].split(",")], open(sys.argv[2], "a", buffering=1)
def emit(**record): lines.write(json.dumps(record) + "\\n")
for i in indices:
    emit(begin=i)
    if i == 1: print("about to die", file=sys.stderr, flush=True); os.abort()
    if i == 4: time.sleep(60)
    emit(index=i, name=str(i), status="failed" if i == 2 else "ok", took=0.0)
    if i == 2: sys.exit(1)
emit(end=True)
"""


def child(section: str, indices: Any, seconds: float, lines: Path) -> list[str]:
    return [sys.executable, "-S", "-c", CHILD, ",".join(map(str, indices)), str(lines)]


@pytest.mark.parametrize("workers", [1, 2])
def test_deaths_and_hangs_cost_one_item(workers):
    records = isolated.run_isolated(
        "some", [str(i) for i in range(6)], workers=workers, deadline=time.monotonic() + 60, limit=3.0, command=child
    )
    assert [record["index"] for record in records] == list(range(6))
    assert [record["status"] for record in records] == ["ok", "failed", "failed", "ok", "failed", "ok"]
    assert "the process ended with status" in records[1]["error"]
    assert "about to die" in records[1]["traceback"]
    assert "hung" in records[4]["error"]


def test_a_child_that_cannot_start_fails_its_items():
    def command(section: str, indices: Any, seconds: float, lines: Path) -> list[str]:
        return [sys.executable, "-S", "-c", "raise SystemExit('no such module')"]

    records = isolated.run_isolated(
        "some", ["a", "b"], workers=1, deadline=time.monotonic() + 60, limit=30.0, command=command
    )
    assert [record["status"] for record in records] == ["failed", "failed"]
    assert "no such module" in records[0]["traceback"]


def test_an_item_that_is_late_is_ended(monkeypatch):
    monkeypatch.setattr(isolated, "GRACE", 0.5)
    begun = time.monotonic()
    records = isolated.run_isolated("some", ["x"] * 5, workers=5, deadline=begun + 1, limit=60.0, command=child)
    assert time.monotonic() - begun < 20
    assert 4 not in [record["index"] for record in records]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_real_child_reports_that_it_cannot_start():
    records = isolated.run_isolated("updates", ["x"], workers=1, deadline=time.monotonic() + 100, limit=90.0)
    assert records[0]["status"] == "failed"
    assert "ended with status 1" in records[0]["error"]
    assert "benchmarks" in records[0]["traceback"] or "CUDA" in records[0]["traceback"]
