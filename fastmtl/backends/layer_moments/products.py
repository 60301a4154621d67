"""M and Q of a layer that is a sum of outer products, from pairs of positions or from formed gradients.

    pairs   sum_{s,s'} <a_s, a_s'> <delta_ks, delta_js'>   (Goodfellow 2015, arXiv 1510.01799; Li et al. 2021,
                                                            arXiv 2110.05679)
    form    the weight gradients, a few rows of all tasks at a time

Sums over the positions of each sample give Q, over all positions of the batch M.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from fastmtl.backends.contract import present_of
from fastmtl.backends.layer_moments import cost
from fastmtl.backends.layer_moments.factors import Block, Factors, blocks, joined, parted, times
from fastmtl.backends.layer_moments.primitives import Primitives

Forming: TypeAlias = Callable[[bool], tuple[Tensor, Tensor | None]]  # as `by_forming` with its first two arguments


def moments(
    primitives: Primitives, factors: Factors, form: Forming, way: str, per_sample: bool
) -> tuple[Tensor, Tensor]:
    """M and Q; Q is NaN unless ``per_sample`` is set."""
    sizes = factors.sizes
    plan = cost.plan(sizes, way, per_sample, primitives.costs)
    M = Q = None
    if plan.samples == "pairs":
        Q = samples_by_pairs(primitives, factors)
    if plan.batch == "pairs":
        M = batch_by_pairs(primitives, factors)
    if "form" in (plan.samples, plan.batch):
        formed_M, formed_Q = form(plan.samples == "form")
        M = formed_M if M is None else M
        Q = formed_Q if Q is None else Q
    assert M is not None
    return M, torch.full_like(M, torch.nan) if Q is None else Q.mul_(sizes.batch)


def samples_by_pairs(primitives: Primitives, factors: Factors) -> Tensor:
    """sum_b <c_kb, c_jb> from the pairs of positions of each sample."""
    sizes = factors.sizes
    total: Tensor | None = None
    for block in blocks(sizes.batch, cost.samples_of_block(sizes)):
        gram = factors.sample_input_gram(block)
        if sizes.positions == sizes.groups == 1:
            rows = [None if grad is None else grad.flatten(1) for grad in factors.grads(block)]
            part = primitives.sample_gram(rows, gram.flatten())
        else:
            part = _crossed(primitives, factors, block, block, functools.partial(times, gram))
        total = part if total is None else total.add_(part)
    assert total is not None
    return (total + total.T).div_(2)


def batch_by_pairs(primitives: Primitives, factors: Factors) -> Tensor:
    """<sum_b c_kb, sum_b c_jb> from all pairs of positions of the batch.

    The order within a pair does not matter, so each block of samples meets only itself and those after it; what it
    has in common with those counts twice.
    """
    sizes = factors.sizes
    total: Tensor | None = None
    rows, columns = cost.samples_of_panels(sizes, primitives.costs)
    for left in blocks(sizes.batch, rows):
        for right in blocks(sizes.batch, columns, left.first):
            gram = factors.input_gram(left, right)
            own = min(max(0, left.last - right.first), right.samples) * sizes.positions
            gram.narrow(-1, own, gram.shape[-1] - own).mul_(2)

            def product(grad: Tensor, gram: Tensor = gram, samples: int = left.samples) -> Tensor:
                return parted(times(gram, joined(grad)), samples)

            part = _crossed(primitives, factors, left, right, product)
            total = part if total is None else total.add_(part)
    assert total is not None
    return (total + total.T).div_(2)


def _crossed(
    primitives: Primitives, factors: Factors, left: Block, right: Block, product: Callable[[Tensor], Tensor]
) -> Tensor:
    """<product(delta_k of right), delta_j of left>, one product at a time."""
    grads = factors.grads(left)
    rows = []
    for task in range(len(grads)):
        grad = factors.grad(task, right)
        if grad is None:
            rows.append(present_of(grads)[0].new_zeros((1, len(grads)), dtype=factors.dtype))
        else:
            rows.append(primitives.cross_gram([product(grad.to(factors.dtype))], grads))
    return torch.cat(rows)


def by_forming(primitives: Primitives, factors: Factors, per_sample: bool) -> tuple[Tensor, Tensor | None]:
    """M, and sum_b <c_kb, c_jb> where ``per_sample`` is set, from formed gradients."""
    sizes = factors.sizes
    M: Tensor | None = None
    Q: Tensor | None = None
    tile, samples = cost.rows_and_samples(sizes, per_sample)
    for first in range(0, sizes.outputs, tile):
        rows = range(first, min(first + tile, sizes.outputs))

        def part(block: Block, rows: range = rows) -> list[Tensor | None]:
            inputs = factors.inputs(block) if per_sample else factors.joined_inputs(block)
            return [_formed(factors, grad, rows, inputs, per_sample) for grad in factors.grads(block)]

        M, Q = _added(M, Q, by_summing(primitives, part, blocks(sizes.batch, samples), per_sample))
    if factors.bias:
        positions = sizes.groups * sizes.outputs * sizes.tasks

        def bias(block: Block) -> list[Tensor | None]:
            return [None if grad is None else _summed(grad, factors.dtype, per_sample) for grad in factors.grads(block)]

        parts = blocks(sizes.batch, sizes.memory // positions)
        M, Q = _added(M, Q, by_summing(primitives, bias, parts, per_sample))
    assert M is not None
    return M, Q


def _formed(factors: Factors, grad: Tensor | None, rows: range, inputs: Tensor, per_sample: bool) -> Tensor | None:
    """Some rows of a weight gradient: of each sample, or [1, ...] of all of them."""
    if grad is None:
        return None
    grad = grad.narrow(-1, rows.start, len(rows)).to(factors.dtype)
    if per_sample:
        return grad.transpose(-1, -2) @ inputs
    return (joined(grad).transpose(-1, -2) @ inputs).unsqueeze(0)


def _summed(grad: Tensor, dtype: torch.dtype, per_sample: bool) -> Tensor:
    """Gradients of the bias: of each sample, or [1, ...] of all of them."""
    if not per_sample:
        return grad.sum((0, 2), dtype=dtype).unsqueeze(0)
    return grad.sum(2, dtype=dtype)


def _added(
    M: Tensor | None, Q: Tensor | None, more: tuple[Tensor, Tensor | None]
) -> tuple[Tensor | None, Tensor | None]:
    more_M, more_Q = more
    return more_M if M is None else M + more_M, more_Q if Q is None or more_Q is None else Q + more_Q


def by_summing(
    primitives: Primitives, part: Callable[[Block], list[Tensor | None]], parts: list[Block], per_sample: bool
) -> tuple[Tensor, Tensor | None]:
    """M, and sum_b <c_kb, c_jb> where ``per_sample`` is set, of the contributions ``part(block)``.

    Those are T tensors [samples, ...] with memory of their own.
    """
    Q: Tensor | None = None
    sums: list[Tensor | None] = []
    for block in parts:
        contributions = part(block)
        tasks = len(contributions)
        if per_sample:
            products = primitives.gram(contributions, tasks)
            Q = products if Q is None else Q + products
        summed = [None if c is None else c.squeeze(0) if c.shape[0] == 1 else c.sum(0) for c in contributions]
        if sums:
            summed = [None if a is None or b is None else a.add_(b) for a, b in zip(sums, summed, strict=True)]
        sums = summed
    return primitives.gram(sums, tasks), Q
