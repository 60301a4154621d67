"""Which way is cheaper, and how much is done at a time: multiply-adds and memory of both ways.

For each sample, with n positions, weight in * out and T tasks (MATH, section 3):

    pairs   n^2 (in + T out) for Q; for M the same with the positions of the whole batch; T^2 n out for the last products
    form    T n in out for both, and T^2 in out for the last products
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fastmtl.backends.layer_moments.factors import Factors

_BLOCKS = 8
_LEAST_ROWS = 64

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
    # Pairs of blocks are computed once.
    block = samples_of_panels(factors)[0]
    pairs = (factors.square_cost() + n**2 * tasks * outer) * batch * (batch + block) // 2
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
    held = factors.square_memory() + factors.inputs_memory() + factors.grads_memory()
    return factors.sizes.memory // held


def samples_of_panels(factors: Factors) -> tuple[int, int]:
    """Samples whose inputs meet, left and right, such that their products and what goes with them fit the memory."""
    sizes = factors.sizes
    n, batch = sizes.positions, sizes.batch
    square, single = factors.square_memory(), factors.inputs_memory() + factors.grads_memory()
    # Few rows make poor matrix products, few blocks compute pairs twice.
    rows = max(-(-batch // _BLOCKS), -(-_LEAST_ROWS // n))
    rows = max(1, min(rows, batch, sizes.memory // (4 * (square + single))))
    return rows, max(1, (sizes.memory - rows * single) // (rows * square + single))


def rows_and_samples(factors: Factors, per_sample: bool) -> tuple[int, int]:
    """Rows of the weight gradients and samples that are formed at a time.

    A fifth of the memory is for the sums of all tasks' rows, and two for what is formed with what it is formed of.
    """
    sizes = factors.sizes
    row = sizes.groups * sizes.inputs * sizes.tasks
    rows = max(1, min(sizes.outputs, sizes.memory // (5 * row)))
    copied = sizes.groups * sizes.positions * sizes.inputs + factors.grads_memory()
    return rows, 2 * sizes.memory // (5 * (copied + (rows * row if per_sample else 0)))
