"""The ops on gradients: first calls against plain torch operations, bits that repeat, and times against the memory's speed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_check.backends import beside
from benchmarks.gpu_check.machine import Machine, flat
from benchmarks.gpu_check.running import Item, Scale, Skipped
from benchmarks.gpu_check.timed import Call, error_text, interleaved
from benchmarks.problems import list_shapes
from fastmtl import ops

OPS = ("sum_norms", "sum_moments", "gram", "squared_norms", "weighted_sum")
SAMPLES = 64


@dataclass(frozen=True)
class Problem:
    """One op on one problem: the op, the same in plain torch operations, and the bytes that must be read and written."""

    name: str
    call: Callable[[], Any]
    plain: Callable[[], Any]
    moved: int
    op: str
    dtype: torch.dtype

    def beside(self, machine: Machine) -> dict[str, Callable[[], Any]]:
        """See `backends.beside`."""
        return beside(machine, self.op, self.dtype, self.call)


def short(dtype: torch.dtype) -> str:
    """Its name without "torch."."""
    return str(dtype).removeprefix("torch.")


def plain_sum_norms(grads: list[Tensor]) -> tuple[Tensor, Tensor]:
    """By stacking."""
    stacked = torch.stack(grads)
    return stacked.sum(0), torch.linalg.vector_norm(stacked.flatten(1), dim=1, dtype=torch.float32).square()


def plain_sum_moments(grads: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """By stacking and two products."""
    stacked = torch.stack(grads)
    sums, numbers = stacked.sum(1, dtype=torch.float32).flatten(1), stacked.flatten(1).float()
    return stacked.sum(0), sums @ sums.T, stacked.shape[1] * (numbers @ numbers.T)


def _rows(tensors: list[list[Tensor]]) -> Tensor:
    return torch.stack([torch.cat([part.flatten() for part in task]) for task in tensors])


def plain_gram(tensors: list[list[Tensor]]) -> Tensor:
    """By stacking and a product."""
    rows = _rows(tensors).float()
    return rows @ rows.T


def plain_squared_norms(tensors: list[list[Tensor]]) -> Tensor:
    """As torch's own clipping of gradients does it."""
    norms = torch._foreach_norm([part for task in tensors for part in task], 2, torch.float32)
    return torch.stack(list(norms)).view(len(tensors), -1).square().sum(1)


def plain_weighted_sum(tensors: list[list[Tensor]], weights: Tensor) -> list[Tensor]:
    """By stacking and a product."""
    rows = _rows(tensors)
    total = (weights @ rows.float()).to(rows.dtype)
    return list(total.split([part.numel() for part in tensors[0]]))


def make(op: str, tasks: int, elements: int, dtype: torch.dtype, machine: Machine, samples: int = SAMPLES) -> Problem:
    """The problem, on the device.

    Raises:
        Skipped: there is too little memory for the gradients and what plain operations make of them.
    """
    size = torch.finfo(dtype).bits // 8
    needed, free = tasks * elements * (2 * size + 4) + 2 * elements * size, machine.free_bytes()
    if needed > 0.85 * free:
        raise Skipped(f"it takes {needed / 2**30:.1f} GiB, {free / 2**30:.1f} are free")
    generator = torch.Generator(machine.device).manual_seed(elements + tasks)
    rows = [torch.randn(elements, generator=generator, device=machine.device, dtype=dtype) for _ in range(tasks)]
    name = f"{op} {short(dtype)} T={tasks} n={elements}"
    read = tasks * elements * size
    if op in ("sum_norms", "sum_moments"):
        grads = [row.view(samples, -1) for row in rows]
        call, plain = (ops.sum_norms, plain_sum_norms) if op == "sum_norms" else (ops.sum_moments, plain_sum_moments)
        return Problem(name, lambda: call(grads), lambda: plain(grads), read + elements * size, op, dtype)
    lists = [list(row.split(list_shapes(elements))) for row in rows]
    if op == "weighted_sum":
        weights = torch.rand(tasks, generator=generator, device=machine.device)
        out = [torch.empty_like(part) for part in lists[0]]
        return Problem(
            name,
            lambda: ops.weighted_sum(lists, weights, out=out),
            lambda: plain_weighted_sum(lists, weights),
            read + elements * size,
            op,
            dtype,
        )
    if op == "gram":
        return Problem(name, lambda: ops.gram(lists), lambda: plain_gram(lists), read, op, dtype)
    return Problem(name, lambda: ops.squared_norms(lists), lambda: plain_squared_norms(lists), read, op, dtype)


def difference(results: Any, expected: Any) -> float:
    """Largest error in units of the largest expected number, beyond the rounding of the results' dtype; NaN: infinite."""
    worst = 0.0
    for result, exact in zip(flat(results), flat(expected), strict=True):
        scale = float(exact.double().abs().max())
        error = float((result.double() - exact.double()).abs().max()) / max(scale, 1e-300)
        excess = error - 2 * torch.finfo(result.dtype).eps
        worst = max(worst, excess if excess == excess else float("inf"))
    return worst


def same_bits(results: Any, others: Any) -> bool:
    """Whether they agree bit for bit."""
    return all(torch.equal(a, b) for a, b in zip(flat(results), flat(others), strict=True))


def copies(results: Any) -> list[Tensor]:
    """What later calls cannot change."""
    return [tensor.clone() for tensor in flat(results)]


def first_call(machine: Machine, make_problem: Callable[[Machine], Problem]) -> dict[str, Any]:
    """Seconds of the first and the second call (the first compiles), and the difference from plain torch operations."""
    problem = make_problem(machine)
    first = machine.timed(problem.call)
    machine.synchronize()
    second = machine.timed(problem.call)
    errors = {}
    expected = flat(problem.plain())
    for name, call in {"op": problem.call, **problem.beside(machine)}.items():
        results = copies(call())
        machine.synchronize()
        errors[name] = difference(results, expected)
    said = [
        f"{name} differs from plain torch operations by {error:.2e} of the largest number"
        for name, error in errors.items()
        if not error <= 1e-4
    ]
    return {
        "first": first().host,
        "second": second().host,
        "difference": max(errors.values()),
        "wrong": "; ".join(said) or None,
    }


def repeats(machine: Machine, make_problem: Callable[[Machine], Problem], times: int) -> dict[str, Any]:
    """Whether the same inputs give the same bits, one call after another and on two streams side by side."""
    problem = make_problem(machine)
    said = []
    for name, call in {"op": problem.call, **problem.beside(machine)}.items():
        results_of = partial(_copied, call)
        expected = results_of()
        alone = sum(not same_bits(results_of(), expected) for _ in range(times))
        # What writes into memory that it was given cannot run twice at once.
        streams = 0
        if not problem.name.startswith("weighted_sum"):
            streams = sum(not same_bits(results, expected) for results in machine.on_streams(results_of, times))
        if alone or streams:
            said.append(f"{name}: other bits in {alone} of {times} calls, and in {streams} of {times} on two streams")
    return {"wrong": "; ".join(said) or None, "calls": times}


def _copied(call: Callable[[], Any]) -> list[Tensor]:
    return copies(call())


def graph_of(machine: Machine, call: Callable[[], Any], errors: dict[str, str], name: str = "graph") -> dict[str, Call]:
    """The replay as a variant, after a look whether it gives the bits of the call; else a word in ``errors``."""
    try:
        expected = copies(call())
        replay, results = machine.captured(call)
        for tensor in flat(results):
            tensor.zero_()
        replay()
        machine.synchronize()
        if not same_bits(results, expected):
            errors[name] = "the replayed graph gives other bits than the call"
    except Exception as error:
        errors[name] = error_text(error)
        return {}
    return {name: replay}


def timed_op(machine: Machine, make_problem: Callable[[Machine], Problem], scale: Scale) -> dict[str, Any]:
    """The op, its graph, plain operations, and other backends, beside a copy that moves as many bytes; caches cold."""
    problem = make_problem(machine)
    errors: dict[str, str] = {}
    source = torch.zeros(problem.moved // 2, dtype=torch.uint8, device=machine.device)
    target = torch.empty_like(source)
    variants: dict[str, Call] = {"copy": lambda: target.copy_(source), "op": problem.call, "plain": problem.plain}
    variants |= graph_of(machine, problem.call, errors)
    others = problem.beside(machine)
    for name, call in others.items():
        variants |= {name: call} | graph_of(machine, call, errors, f"{name}, graph")
    figures = interleaved(machine, variants, rounds=scale.rounds, seconds=scale.seconds)
    return {**figures, "errors": {**figures["errors"], **errors}, "moved": problem.moved, "beside": list(others)}


def bandwidth(machine: Machine, scale: Scale) -> dict[str, Any]:
    """Bytes a second, read and written, of copying a large buffer; and what the shortest of launches takes."""
    source = torch.zeros(min(scale.copied, machine.free_bytes() // 4), dtype=torch.uint8, device=machine.device)
    target, number = torch.empty_like(source), torch.zeros((), device=machine.device)
    replay, _ = machine.captured(number.zero_)
    variants: dict[str, Call] = {"copy": lambda: target.copy_(source), "launch": number.zero_, "launch, graph": replay}
    figures = interleaved(machine, variants, rounds=scale.rounds, seconds=2 * scale.seconds)
    if "copy" in figures["timings"]:
        figures["bandwidth"] = 2 * source.numel() / figures["timings"]["copy"]["seconds"]["median"]
    return figures


def _problems(scale: Scale, elements: tuple[int, ...]) -> list[tuple[str, Callable[[Machine], Problem]]]:
    found: list[tuple[str, Callable[[Machine], Problem]]] = []

    def add(op: str, tasks: int, number: int, dtype: torch.dtype, samples: int = SAMPLES) -> None:
        name = f"{op} {short(dtype)} T={tasks} n={number}" + (f" B={samples}" if samples != SAMPLES else "")
        found.append((name, lambda machine: make(op, tasks, number, dtype, machine, samples)))

    for number in elements:
        for tasks in scale.tasks:
            for dtype in scale.dtypes:
                for op in OPS:
                    add(op, tasks, number, dtype)
        for dtype in scale.dtypes:  # many samples of few features must fill the chip too
            add("sum_moments", scale.tasks[0], number, dtype, number // 256)
    return found


def first_calls(scale: Scale) -> list[Item]:
    """One a kernel: they also fill the cache of compiled kernels for what is timed later."""
    return [Item(name, partial(first_call, make_problem=maker)) for name, maker in _problems(scale, (scale.small,))]


def determinism(scale: Scale) -> list[Item]:
    """On the sizes of the first calls."""
    return [
        Item(name, partial(repeats, make_problem=maker, times=scale.repeats))
        for name, maker in _problems(scale, (scale.small,))
    ]


def times(scale: Scale) -> list[Item]:
    """The speed of light first, then the ops; what may not fit time or memory last."""
    return [Item("bandwidth", partial(bandwidth, scale=scale))] + [
        Item(name, partial(timed_op, make_problem=maker, scale=scale))
        for name, maker in _problems(scale, scale.elements)
    ]
