"""Gradients of more than 2^31 elements, against sums over chunks: a dropped tail or a 32-bit offset shows."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_check.machine import Machine
from benchmarks.gpu_check.running import Item, Scale, Skipped
from fastmtl import ops

SPIKE = 2.0**15  # in the last place: its square is about half of the sum of 2^31 squares


def _grads(tasks: int, scale: Scale, machine: Machine) -> list[Tensor]:
    """[B, P] bfloat16, with a spike at the end of each."""
    samples, size = scale.large
    needed = int((2 * tasks + 1) * samples * size * 2)
    free = machine.free_bytes()
    if needed > 0.9 * free:
        raise Skipped(f"it takes {needed / 2**30:.0f} GiB, {free / 2**30:.0f} are free")
    generator = torch.Generator(machine.device).manual_seed(0)
    grads = []
    for _ in range(tasks):
        grad = torch.empty(scale.large, dtype=torch.bfloat16, device=machine.device).normal_(generator=generator)
        grad[-1, -1] = SPIKE
        grads.append(grad)
    return grads


def _chunks(grads: list[Tensor], rows: int = 128) -> Iterator[Tensor]:
    """[T, rows, P] float64, a few samples at a time."""
    for start in range(0, grads[0].shape[0], rows):
        yield torch.stack([grad[start : start + rows] for grad in grads]).double()


def _gram(grads: list[Tensor]) -> Tensor:
    return torch.stack([c.flatten(1) @ c.flatten(1).T for c in _chunks(grads, 16)]).sum(0)


def _of_sums(grads: list[Tensor]) -> Tensor:
    sums = torch.stack([chunk.sum(1) for chunk in _chunks(grads, 16)]).sum(0)
    return sums @ sums.T


def _compared(pairs: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Any]:
    errors = {}
    for name, (result, expected) in pairs.items():
        error = float((result.double() - expected).abs().max() / expected.abs().max())
        if not error <= 1e-4:
            errors[name] = f"differs by {error:.2e} of the largest number"
    return {"errors": errors}


def _wrong_total(total: Tensor | list[Tensor], grads: list[Tensor], weights: list[float]) -> dict[str, str]:
    """Compared a few samples at a time, one rounding allowed."""
    assert isinstance(total, Tensor)
    for start in range(0, total.shape[0], 64):
        part = slice(start, start + 64)
        expected = sum(weight * grad[part].float() for weight, grad in zip(weights, grads, strict=True))
        assert isinstance(expected, Tensor)
        if not bool(((total[part].float() - expected).abs() <= 2**-7 * expected.abs()).all()):
            return {"total": f"the sum is wrong in samples {start} to {start + 63}"}
    return {}


def _sum_norms(grads: list[Tensor]) -> dict[str, Any]:
    total, norms = ops.sum_norms(grads)
    errors = _wrong_total(total, grads, [1.0] * len(grads))
    compared = _compared({"norms": (norms, _gram(grads).diagonal())})
    return {"errors": {**compared["errors"], **errors}}


def _sum_moments(grads: list[Tensor]) -> dict[str, Any]:
    total, M, Q = ops.sum_moments(grads)
    errors = _wrong_total(total, grads, [1.0] * len(grads))
    compared = _compared({"M": (M, _of_sums(grads)), "Q": (Q, grads[0].shape[0] * _gram(grads))})
    return {"errors": {**compared["errors"], **errors}}


def _lists(grads: list[Tensor]) -> dict[str, Any]:
    """Each gradient in a list of its own; `gram` and `squared_norms`."""
    exact = _gram(grads)
    lists = [[grad] for grad in grads]
    return _compared({"gram": (ops.gram(lists), exact), "norms": (ops.squared_norms(lists), exact.diagonal())})


def _weighted_sum(grads: list[Tensor]) -> dict[str, Any]:
    weights = [0.5, 2.0][: len(grads)]
    total = ops.weighted_sum(grads, torch.tensor(weights, device=grads[0].device))
    return {"errors": _wrong_total(total, grads, weights)}


def _run(machine: Machine, check: Callable[[list[Tensor]], dict[str, Any]], tasks: int, scale: Scale) -> dict[str, Any]:
    return check(_grads(tasks, scale, machine))


def items(scale: Scale) -> list[Item]:
    """Two tasks, and one where the memory holds only one."""
    checks = {"sum_norms": _sum_norms, "sum_moments": _sum_moments, "lists": _lists, "weighted_sum": _weighted_sum}
    return [
        Item(f"{name} T={tasks}", functools.partial(_run, check=check, tasks=tasks, scale=scale))
        for tasks in (2, 1)
        for name, check in checks.items()
    ]
