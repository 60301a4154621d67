"""Which way is cheaper, and how much is done at a time.

Costs are counted in multiply-adds of a matrix product. With n positions a sample, weight in * out, T tasks and B samples
(MATH, section 3):

    pairs   n^2 (in + T out) a sample for Q, and for M the same with the positions of the whole batch, of which half
            suffices; products [positions, out] of all tasks are written and read beside the gradients
    form    T n in out a sample for both; gradients [out, in] of all tasks are written and read: for Q once a sample

and every call of torch costs what its overhead does.

The constants of a CPU (`primitives.Costs`) are those that `python -m benchmarks.layer_moments constants` printed on one
core of an AMD EPYC with AVX-512 (20 ps a multiply-add), rounded. By torch's products, with T = 3, the model forms M of a
Linear layer on 256 samples up to width 256 and takes pairs from 320 on (measured: forming faster at 256, pairs at 512). For
Linear 256 -> 256 on 16 samples it takes pairs for M at 4 tokens and forms it from 16 on (measured: pairs faster at 4, equal
at 16, forming at 64). For Conv2d 3x3 it takes pairs with images of 8x8 and 256 channels, and forms with 16x16 and 128 (as
measured). The C++ backend, whose kernels take one position a sample, forms M on 256 samples up to width 200 (measured on
an EPYC with AVX2: forming faster at 160, both alike at 200, pairs from 224 on). Among "auto", "pairs" and "form" the chosen
one took at most some 15 % longer than the fastest.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

from fastmtl.backends.layer_moments.factors import Sizes
from fastmtl.backends.layer_moments.primitives import Costs

KEPT = 1024  # plans that are remembered: a network has fewer layers and sizes of batches
_BLOCKS = 8  # of samples that meet: few compute pairs twice
_BLOCK = 24  # samples, of a kernel's block, that meet in both orders: with AVX2, in float32
_PAIRS = 1.1  # what its multiply-adds take, with the packing of both sides, of those of forming: measured

Way = Literal["pairs", "form"]


@dataclass(frozen=True)
class Plan:
    """How M (``batch``) and Q (``samples``, None: not at all) are computed."""

    batch: Way
    samples: Way | None


@functools.lru_cache(maxsize=KEPT)
def plan(sizes: Sizes, way: str, per_sample: bool, costs: Costs) -> Plan:
    """The cheapest plan, or the one of ``way``. Q of one position a sample is always that of pairs: nothing is cheaper."""
    single = sizes.positions == 1
    if way == "pairs":
        return Plan("pairs", "pairs" if per_sample else None)
    if way == "form":
        return Plan("form", None if not per_sample else "pairs" if single else "form")
    of_batch: dict[Way, int] = {
        "pairs": batch_by_pairs(sizes, costs),
        "form": _by_forming(sizes, False, costs),
    }
    batch = min(of_batch, key=lambda name: of_batch[name])
    if not per_sample:
        return Plan(batch, None)
    if single or _samples_by_pairs(sizes, costs) + of_batch[batch] < _by_forming(sizes, True, costs):
        return Plan(batch, "pairs")
    return Plan("form", "form")


def _count(length: int, size: int) -> int:
    """Parts of ``size`` in ``length``."""
    return -(-length // max(1, size))


def _beside(sizes: Sizes, costs: Costs) -> int:
    """Products of all tasks that are written, and read with the gradients, for each sample."""
    return sizes.groups * sizes.positions * sizes.outputs * sizes.tasks * (costs.formed + sizes.tasks * costs.read)


def _samples_by_pairs(sizes: Sizes, costs: Costs) -> int:
    products = sizes.square_cost() + sizes.groups * sizes.positions**2 * sizes.tasks * sizes.outputs
    calls = _count(sizes.batch, samples_of_block(sizes)) * (5 + 4 * sizes.tasks)
    return sizes.batch * (products + _beside(sizes, costs)) + calls * costs.call


def batch_by_pairs(sizes: Sizes, costs: Costs) -> int:
    """M from all pairs of positions."""
    rows, columns = samples_of_panels(sizes, costs)
    # On average a panel reaches over half of the batch.
    count = _count(sizes.batch, rows) * _count((sizes.batch + rows) // 2, columns)
    products = sizes.square_cost() + sizes.groups * sizes.positions**2 * sizes.tasks * sizes.outputs
    met = sizes.batch * (sizes.batch + rows) // 2
    return met * products + count * (rows * _beside(sizes, costs) + (6 + 6 * sizes.tasks) * costs.call)


def _by_forming(sizes: Sizes, per_sample: bool, costs: Costs) -> int:
    """M, and Q where ``per_sample`` is set."""
    rows, samples = rows_and_samples(sizes, per_sample)
    count = _count(sizes.outputs, rows) * _count(sizes.batch, samples)
    formed = sizes.tasks * sizes.formed() * (sizes.batch if per_sample else 1) * (costs.formed + sizes.tasks)
    return sizes.batch * sizes.tasks * sizes.form_cost() + formed + count * (6 + 6 * sizes.tasks) * costs.call


def pairs_of_rows_take_less(sizes: Sizes) -> bool:
    """Whether M of one position a sample comes cheaper from pairs, in a backend that has a call for either way.

    With kernels of its own for layers that are not large, multiply-adds are nearly all that counts.
    """
    pairs = (sizes.batch + _BLOCK) * (sizes.inputs + sizes.tasks * sizes.outputs)
    return _PAIRS * pairs < 2 * sizes.tasks * sizes.inputs * sizes.outputs


def samples_of_block(sizes: Sizes) -> int:
    """Samples whose products of inputs, and what goes with them, fit the memory."""
    held = sizes.square_memory() + sizes.inputs_memory() + sizes.grads_memory()
    return sizes.memory // held


def samples_of_panels(sizes: Sizes, costs: Costs) -> tuple[int, int]:
    """Samples whose inputs meet, left and right, such that their products and what goes with them fit the memory."""
    n, batch = sizes.positions, sizes.batch
    square, single = sizes.square_memory(), sizes.inputs_memory() + sizes.grads_memory()
    rows = max(-(-batch // _BLOCKS), -(-costs.least_rows // n))
    rows = max(1, min(rows, batch, sizes.memory // (4 * (square + single))))
    return rows, max(1, (sizes.memory - rows * single) // (rows * square + single))


def rows_and_samples(sizes: Sizes, per_sample: bool) -> tuple[int, int]:
    """Rows of the weight gradients and samples that are formed at a time.

    A fifth of the memory is for the sums of all tasks' rows, and two for what is formed with what it is formed of.
    """
    row = sizes.groups * sizes.inputs * sizes.tasks
    rows = max(1, min(sizes.outputs, sizes.memory // max(1, 5 * row)))  # no inputs: no weights
    copied = sizes.groups * sizes.positions * sizes.inputs + sizes.grads_memory()
    return rows, 2 * sizes.memory // (5 * (copied + (rows * row if per_sample else 0)))
