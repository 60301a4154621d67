"""Which way is cheaper, and how much is done at a time: multiply-adds and memory of both ways.

For each sample, with n positions, weight in * out and T tasks (MATH, section 3):

    pairs   n^2 (in + T out) for Q; for M the same with the positions of the whole batch; T^2 n out for the last products
    form    T n in out for both, and T^2 in out for the last products
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fastmtl.backends.layer_moments.factors import Factors

Way = Literal["pairs", "form"]


@dataclass(frozen=True)
class Plan:
    """How M (``batch``) and Q (``samples``, None: not at all) are computed."""

    batch: Way
    samples: Way | None


def plan(factors: Factors, way: str, per_sample: bool) -> Plan:
    """The cheapest plan, or the one of ``way``. Q of one position a sample is always that of pairs: nothing is cheaper."""
    sizes = factors.sizes
    single = sizes.positions == 1
    if way == "pairs":
        return Plan("pairs", "pairs" if per_sample else None)
    if way == "form":
        return Plan("form", None if not per_sample else "pairs" if single else "form")
    n, batch, tasks = sizes.positions, sizes.batch, sizes.tasks
    outer = sizes.groups * sizes.outputs
    form = batch * tasks * factors.form_cost()
    # Half of the pairs suffices for M.
    pairs = (factors.square_cost() * batch**2 + (batch * n) ** 2 * tasks * outer) / (2 if batch > 1 else 1)
    batch_way: Way = "pairs" if pairs < form else "form"
    if not per_sample:
        return Plan(batch_way, None)
    pairs_of_samples = batch * (factors.square_cost() + tasks * n * (n + tasks) * outer)
    form_of_samples = form + batch * tasks**2 * factors.formed()
    if single or pairs_of_samples + min(pairs, form) < form_of_samples:
        return Plan(batch_way, "pairs")
    return Plan("form", "form")


def samples_of_block(factors: Factors) -> int:
    """Samples whose products of inputs, and what goes with them, fit the memory."""
    sizes = factors.sizes
    n = sizes.positions
    return sizes.memory // (factors.square_memory() + sizes.groups * n * 2 * sizes.outputs)


def samples_of_square(factors: Factors) -> int:
    """Samples of a block such that the products of the inputs of two blocks, and what goes with them, fit the memory."""
    sizes = factors.sizes
    linear = 2 * sizes.groups * sizes.positions * (sizes.inputs + sizes.outputs)
    samples = 1
    while samples < sizes.batch and factors.square_memory() * (2 * samples) ** 2 + linear * 2 * samples <= sizes.memory:
        samples *= 2
    return samples


def rows_and_samples(factors: Factors, per_sample: bool) -> tuple[int, int]:
    """Rows of the weight gradients and samples that are formed at a time."""
    sizes = factors.sizes
    row = sizes.groups * sizes.inputs * sizes.tasks
    rows = max(1, min(sizes.outputs, sizes.memory // (4 * row)))
    copied = sizes.groups * sizes.positions * (sizes.inputs + sizes.outputs)
    return rows, sizes.memory // (2 * (copied + (rows * row if per_sample else 0)))
