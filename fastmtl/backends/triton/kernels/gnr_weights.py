"""The weights of GNR's update: a step towards the best ones for the averages, by one program."""

import triton
import triton.language as tl

from fastmtl.backends.triton.kernels.interior import diagonal_of, semidefinite, square
from fastmtl.backends.triton.kernels.max_min_few import max_min_few
from fastmtl.backends.triton.kernels.max_min_many import (
    AT_ONCE,
    UNITS,
    by_memory,
    load_column,
    load_vector,
    max_min_many,
    rows_from,
    store_vector,
)
from fastmtl.backends.triton.kernels.numbers import SMALLEST, all_of, all_pairs, at_least, is_finite

_ROUNDING = tl.constexpr(1e-6)  # a variance below this times the mean square is float32 rounding
_SHARES = tl.constexpr(9)  # from 1 / accumulation to 1: how little of the sampling noise may be left in an update


@triton.jit
def presence_of(p_message, i, T: tl.constexpr):
    """Of tasks: 1 where a gradient arrived, 2 where one should have; 0 past the last."""
    return tl.load(p_message + 2 + 2 * T + i, mask=i < T, other=0.0)


@triton.jit
def _noise_left(p_scratch, zero, R, E, active, accumulation, P: tl.constexpr, IN_REGISTERS: tl.constexpr):
    """The share of a micro-batch's noise that is left in an update, as in `fastmtl.backends.reference.gnr`.

    R and E are S and the noise of a micro-batch, in units that make the diagonal of their sum 1; they are in the scratch
    unless IN_REGISTERS.
    """
    _, _, o = square(P, zero)
    left = tl.full([], 1.0, tl.float64)
    tried = 0
    while tried < _SHARES - 1:
        exponent = tl.cast(tried, tl.float64) / (_SHARES - 1) - 1
        share = tl.exp(exponent * tl.log(tl.cast(accumulation, tl.float64)))
        if IN_REGISTERS:
            A = R + share * E
        else:
            A = tl.load(p_scratch + o) + share * tl.load(p_scratch + P * P + o)
        fits = semidefinite(A, active, P)
        left = tl.where(fits, share, left)
        tried = tl.where(fits, _SHARES - 1, tried + 1)
    return left


@triton.jit
def _units(averages, p_message, samples, i, T: tl.constexpr):
    """Units of the tasks that make the diagonal of S plus the noise of a micro-batch 1.

    Also of each task: 0 where it is not to be weighed, 1 where it has no noise, else 2.
    """
    p_averages, p_shares, measured = averages
    present = presence_of(p_message, i, T) == 1
    o_diagonal = i * (T + 1)
    share = tl.load(p_shares + o_diagonal, mask=present, other=1.0)
    o_signal = tl.where(measured, 0, 2 * T * T)
    signal = tl.load(p_averages + (o_signal + o_diagonal), mask=present, other=0.0) / share
    alone = tl.load(p_averages + (T * T + o_diagonal), mask=present, other=0.0) / share
    kept = measured & ~(alone <= _ROUNDING * (signal + alone))  # the rest is rounding; S + C is Q
    second = signal + tl.where(kept, alone / samples, 0.0)
    active = present & (second > 0)
    return 1 / tl.sqrt(tl.where(active, second, 1.0)), active.to(tl.float64) + (active & kept).to(tl.float64)


@triton.jit
def _in_units(averages, rows, d_rows, kinds_rows, i, d, kinds, samples, T: tl.constexpr):
    """Some rows of R and E: S and the noise of a micro-batch in these units, transposed. And whether all is finite (1)."""
    p_averages, p_shares, measured = averages
    o_average = i[None, :] * T + rows[:, None]
    kind = tl.minimum(kinds_rows, kinds[None, :])
    units = d_rows * d[None, :]
    units /= tl.load(p_shares + o_average, mask=kind > 0, other=1.0)
    o_signal = tl.where(measured, 0, 2 * T * T)
    R = tl.load(p_averages + (o_signal + o_average), mask=kind > 0, other=0.0) * units
    E = tl.load(p_averages + (T * T + o_average), mask=kind > 1, other=0.0) / samples * units
    return R, E, all_pairs(is_finite(R) & is_finite(E)).to(tl.int32)


@triton.jit
def _scales(signal, alone, active, measured, floor, OBJECTIVE: tl.constexpr):
    """1 / the square roots of what the noise is compared with, from the diagonals of R and E."""
    plain = tl.where(measured, alone if OBJECTIVE == "relative" else signal, signal)
    return 1 / tl.sqrt(tl.where(active, at_least(plain, floor * (signal + alone)), 1.0))


@triton.jit
def _blend(p_weights, best, active, step, i, T: tl.constexpr):
    """A step of the weights towards the best ones, which are given up to a factor; none where these are not finite."""
    goal = tl.where(active, tl.log(best), 0.0)
    now = tl.load(p_weights + i, mask=i < T, other=1.0).to(tl.float64)
    blended = tl.where(active, tl.exp((1 - step) * tl.log(now) + step * goal), 0.0)
    budget = T - tl.sum(tl.where(active | (i >= T), 0.0, now), 0)  # the tasks left out keep their weight
    scaled = at_least((blended * (budget / tl.sum(blended, 0))).to(tl.float32), SMALLEST)
    tl.store(p_weights + i, scaled, mask=active & all_of(is_finite(goal)))


@triton.jit
def _update_few(
    p_weights, averages, p_scratch, p_message, zero, samples, accumulation, step, floor, T: tl.constexpr, P: tl.constexpr,
    OBJECTIVE: tl.constexpr, ACCUMULATED: tl.constexpr,
):  # fmt: skip
    """`update_weights`, in registers."""
    i = tl.arange(0, P) + zero
    d, kinds = _units(averages, p_message, samples, i, T)
    R, E, sound = _in_units(averages, i, d[:, None], kinds[:, None], i, d, kinds, samples, T)
    if sound != 0:
        active = kinds > 0
        left = tl.full([], 1.0, tl.float64)
        if ACCUMULATED:
            left = _noise_left(p_scratch, zero, R, E, active, accumulation, P, True)
        r = _scales(diagonal_of(R, P), diagonal_of(E, P) * left, active, averages[2], floor, OBJECTIVE)
        R *= r[:, None] * r[None, :]
        E *= (left * r)[:, None] * r[None, :]
        _blend(p_weights, max_min_few(p_scratch, R, E, active, P) * r * d, active, step, i, T)


@triton.jit
def _update_many(
    p_weights, averages, p_scratch, p_message, zero, samples, accumulation, step, floor, T: tl.constexpr, P: tl.constexpr,
    OBJECTIVE: tl.constexpr, ACCUMULATED: tl.constexpr, CALLS: tl.constexpr,
):  # fmt: skip
    """`update_weights`, in the scratch, where the units are vector UNITS and the next one what `_units` tells of each task."""
    _, _, o = square(P, zero)
    i = tl.arange(0, P) + zero
    d, kinds = _units(averages, p_message, samples, i, T)
    store_vector(p_scratch, i, UNITS, d, P)
    store_vector(p_scratch, i, UNITS + 1, kinds, P)
    tl.debug_barrier()
    sound = 1
    for first in range(zero, P + zero, AT_ONCE):
        rows, p_tile = rows_from(first, p_scratch, i, P)
        d_rows = load_column(p_scratch, rows, UNITS, P)
        kinds_rows = load_column(p_scratch, rows, UNITS + 1, P)
        R, E, finite = _in_units(averages, rows, d_rows, kinds_rows, i, d, kinds, samples, T)
        tl.store(p_tile, R)
        tl.store(p_tile + P * P, E)
        sound &= finite
    if by_memory(p_scratch, sound, P) != 0:
        d = load_vector(p_scratch, i, UNITS, P)
        active = load_vector(p_scratch, i, UNITS + 1, P) > 0
        left = tl.full([], 1.0, tl.float64)
        if ACCUMULATED:
            left = _noise_left(p_scratch, zero, 0.0, 0.0, active, accumulation, P, False)
        signal = tl.load(p_scratch + i * (P + 1))
        alone = tl.load(p_scratch + P * P + i * (P + 1)) * left
        r = _scales(signal, alone, active, averages[2], floor, OBJECTIVE)
        R = tl.load(p_scratch + o) * r[:, None] * r[None, :]
        E = tl.load(p_scratch + P * P + o) * (left * r)[:, None] * r[None, :]
        tl.debug_barrier()  # all have read
        tl.store(p_scratch + o, R)
        tl.store(p_scratch + P * P + o, E)
        tl.debug_barrier()
        store_vector(p_scratch, i, UNITS, r * d, P)
        v = max_min_many(p_scratch, active, P, CALLS)
        active = load_vector(p_scratch, i, UNITS + 1, P) > 0  # rather than kept
        _blend(p_weights, v * load_vector(p_scratch, i, UNITS, P), active, step, i, T)


@triton.jit(noinline=True)
def _update_many_apart(
    p_weights, averages, p_scratch, p_message, zero, samples, accumulation, step, floor, T: tl.constexpr, P: tl.constexpr,
    OBJECTIVE: tl.constexpr, ACCUMULATED: tl.constexpr,
):  # fmt: skip
    _update_many(
        p_weights, averages, p_scratch, p_message, zero, samples, accumulation, step, floor, T, P, OBJECTIVE, ACCUMULATED,
        True,
    )  # fmt: skip


@triton.jit
def update_weights(
    p_weights,
    averages,  # their pointer, that of the shares, and whether the noise is measured: else M is S, and there is no noise
    p_scratch,
    p_message,
    zero,  # see `max_min_many.zero_of`
    samples,
    accumulation,
    step,
    floor,
    T: tl.constexpr,
    P: tl.constexpr,
    OBJECTIVE: tl.constexpr,
    ACCUMULATED: tl.constexpr,
    IN_REGISTERS: tl.constexpr,  # whether these hold the matrices; else the scratch, for P of `AT_ONCE` and more
    CALLS: tl.constexpr,  # whether parts are functions, which are compiled apart
):
    """A step of the weights towards the best ones for the averages; none where these are not finite."""
    if IN_REGISTERS:
        _update_few(
            p_weights, averages, p_scratch, p_message, zero, samples, accumulation, step, floor, T, P, OBJECTIVE, ACCUMULATED
        )  # fmt: skip
    elif CALLS:
        _update_many_apart(
            p_weights, averages, p_scratch, p_message, zero, samples, accumulation, step, floor, T, P, OBJECTIVE, ACCUMULATED
        )  # fmt: skip
    else:
        _update_many(
            p_weights, averages, p_scratch, p_message, zero, samples, accumulation, step, floor, T, P, OBJECTIVE, ACCUMULATED,
            False,
        )  # fmt: skip
