"""Weights that maximise the smallest ratio of signal to noise among many tasks: the solver of GNR's update, in a scratch.

At 64 tasks the registers hold two matrices, so that matrices and vectors are kept in a scratch, [4 P + ROWS, P] float64: R
and E, which the caller fills; q; then vectors; then the Hessian. What one thread stores there another reads: a barrier stands
between, and another one before the place is written anew.
"""

import triton
import triton.language as tl

from fastmtl.backends.triton.kernels.interior import (
    ITERATIONS,
    SMALLEST_PIVOT,
    barrier_terms,
    eliminate,
    fixed_scale,
    largest,
    lengths,
    log_ratios,
    next_point,
    next_reach,
    noises,
    square,
    steps_of,
    substitute,
    task_noises,
)
from fastmtl.backends.triton.kernels.numbers import all_of, at_least

ROWS = tl.constexpr(23)  # vectors of the scratch, by name:
_V = tl.constexpr(0)
_PI = tl.constexpr(1)
_NEW_V = tl.constexpr(2)
_NEW_PI = tl.constexpr(3)
_BEST_V = tl.constexpr(4)
_S = tl.constexpr(5)
_D = tl.constexpr(6)
_C = tl.constexpr(7)
_J1 = tl.constexpr(8)
_FACTOR = tl.constexpr(9)  # and 10: of the Hessian, and of its convex part
_DIAGONAL = tl.constexpr(11)  # and 12
_DL = tl.constexpr(13)
_DS = tl.constexpr(14)
_DPI = tl.constexpr(15)
_ONE = tl.constexpr(16)  # of the active tasks, 0 of the others
_SUMS = tl.constexpr(17)  # of the rows of q, times dl
_N = tl.constexpr(18)
_BARRIER = tl.constexpr(19)
UNITS = tl.constexpr(20)  # and 21: the caller's
_NUMBER = tl.constexpr(22)  # the first one alone
AT_ONCE = tl.constexpr(16)  # rows of a matrix, where several matrices are combined


@triton.jit
def zero_of(steps, i_loop, P: tl.constexpr):
    """0, which the compiler takes for another number in each pass of a loop, and before it.

    Added to indices it keeps them there: else those of all layouts, and the addresses of all that is in the scratch, stay in
    registers.
    """
    return steps // (P + 1) * i_loop * P


@triton.jit
def load_vector(p_scratch, i, name, P: tl.constexpr):
    """A vector of the scratch, or some elements."""
    return tl.load((p_scratch + i) + (3 * P + name) * P)


@triton.jit
def store_vector(p_scratch, i, name, values, P: tl.constexpr):
    """Write a vector of the scratch, or some elements; others read it after a barrier."""
    tl.store((p_scratch + i) + (3 * P + name) * P, values)


@triton.jit
def load_column(p_scratch, rows, name, P: tl.constexpr):
    """Of a vector, as a column: a number for each of some rows of a matrix."""
    return tl.load((p_scratch + rows[:, None]) + (3 * P + name) * P)


@triton.jit
def rows_from(first, p_scratch, i, P: tl.constexpr):
    """`AT_ONCE` rows of a matrix, and where they are in the first one: registers do not hold all of several matrices."""
    rows = first + tl.arange(0, AT_ONCE)
    return rows, p_scratch + (rows[:, None] * P + i[None, :])


@triton.jit
def by_memory(p_scratch, number, P: tl.constexpr):
    """A number, by way of the scratch; after a barrier.

    For conditions of long branches. Of every access to memory the compiler lists all that depends on it, and all that these
    depend on, one by one: what a branch's condition comes from would list the branch, and compiling take twice as long.
    """
    p = p_scratch + (3 * P + _NUMBER) * P
    tl.store(p, number.to(tl.float64))
    tl.debug_barrier()
    return tl.load(p)


@triton.jit
def _evaluate(p_scratch, zero, P: tl.constexpr):
    """At the new v: q [k, i] = v_i (A_k v)_i / n_k and n_k = v' A_k v go to the scratch; the largest z_k = log n_k / v_k^2."""
    i = tl.arange(0, P) + zero
    v = load_vector(p_scratch, i, _NEW_V, P)
    total = tl.zeros([P], tl.float64)
    noise = tl.zeros([P], tl.float64)
    for first in range(zero, P + zero, AT_ONCE):
        rows, p_tile = rows_from(first, p_scratch, i, P)
        v_column = load_column(p_scratch, rows, _NEW_V, P)
        total += tl.sum(tl.load(p_tile) * v_column, 0)
        noise += tl.sum(tl.load(p_tile + P * P) * v_column, 0)
    total += noise
    for first in range(zero, P + zero, AT_ONCE):
        rows, p_tile = rows_from(first, p_scratch, i, P)
        Rv = tl.load(p_tile) * load_column(p_scratch, rows, _NEW_V, P)
        vG = task_noises(Rv, total, noise, v, rows, i)
        active = load_vector(p_scratch, rows, _ONE, P) != 0
        n = noises(tl.sum(vG, 1), load_vector(p_scratch, rows, _NEW_V, P), active)
        store_vector(p_scratch, rows, _N, n, P)
        tl.store(p_tile + 2 * P * P, vG * (1.0 / n)[:, None])
    tl.debug_barrier()
    n = load_vector(p_scratch, i, _N, P)
    active = load_vector(p_scratch, i, _ONE, P) != 0
    return largest(log_ratios(n, v, active), active)


@triton.jit
def _hessian(p_scratch, zero, convex, sum_c, sum_D, steps, P: tl.constexpr):
    """H [i, j] of the scratch: the Hessian of the Lagrangian, or its convex part (1)."""
    i = tl.arange(0, P) + zero
    column = i[None, :]
    c = load_vector(p_scratch, i, _C, P)
    v = load_vector(p_scratch, i, _V, P)
    D = load_vector(p_scratch, i, _D, P)
    J1 = load_vector(p_scratch, i, _J1, P)
    diagonal = load_vector(p_scratch, i, _DIAGONAL + convex, P)
    for first in range(zero, P + zero, AT_ONCE):
        rows, p_tile = rows_from(first, p_scratch, i, P)
        row = rows[:, None]
        H = tl.zeros([AT_ONCE, P], tl.float64)
        for k in range(steps):
            p_q = p_scratch + (2 * P * P + k * P)
            factor = tl.load(p_scratch + ((3 * P + _FACTOR + convex) * P + k))
            H = tl.fma(factor * tl.load(p_q + row), tl.load(p_q + i)[None, :], H)
        R = tl.load(p_tile)
        SA = sum_c * (R + tl.load(p_tile + P * P))
        c_column = load_column(p_scratch, rows, _C, P)
        SA -= R * tl.where(row == column, c_column, c_column + c[None, :])
        H += 2 * load_column(p_scratch, rows, _V, P) * v[None, :] * SA
        qD = tl.load(p_tile + 2 * P * P) * load_column(p_scratch, rows, _D, P)
        H -= 4 * (qD + tl.load(p_scratch + (2 * P * P + column * P + row)) * D[None, :])
        H -= load_column(p_scratch, rows, _J1, P) * J1[None, :] / sum_D
        tl.store(p_tile + (3 * P + ROWS) * P, H + tl.where(row == column, diagonal[None, :], 0.0))


@triton.jit
def _scaled_hessian(p_scratch, zero, convex, excess, tasks, P: tl.constexpr):
    """H of the scratch with the term of `fixed_scale`, and the smallest pivots that are taken; after a barrier."""
    i = tl.arange(0, P) + zero
    p_diagonal = p_scratch + (3 * P + ROWS) * P + i * (P + 1)
    mean = (tl.sum(tl.load(p_diagonal), 0) + (1 - convex) * excess) / tasks
    tl.debug_barrier()  # all have read
    active = load_vector(p_scratch, i, _ONE, P) != 0
    for first in range(zero, P + zero, AT_ONCE):
        rows, p_tile = rows_from(first, p_scratch + (3 * P + ROWS) * P, i, P)
        active_rows = load_column(p_scratch, rows, _ONE, P) != 0
        tl.store(p_tile, fixed_scale(tl.load(p_tile), mean, active_rows, active, rows, i))
    tl.debug_barrier()
    _, _, o = square(P, zero)
    H = tl.load(p_scratch + ((3 * P + ROWS) * P + o))
    smallest = tl.load(p_diagonal) * ((1 - convex) * SMALLEST_PIVOT)
    tl.debug_barrier()  # all have read
    return H, smallest


@triton.jit
def _direction(p_scratch, i_loop, sigma, tasks, steps, P: tl.constexpr):
    """Newton's step of the barrier problem from v, n, pi and q: dl = d log v, ds and dpi go to the scratch.

    Returns dsigma, how far it may go, see `lengths`, and whether it could be solved.
    """
    zero = zero_of(steps, i_loop, P)
    i = tl.arange(0, P) + zero
    one = load_vector(p_scratch, i, _ONE, P)
    pi = load_vector(p_scratch, i, _PI, P)
    n = load_vector(p_scratch, i, _N, P)
    z = log_ratios(n, load_vector(p_scratch, i, _V, P), one != 0)
    s, mu, D, c, h, sum_D, hs, diagonal, more = barrier_terms(n, z, pi, one, sigma, tasks)
    sum_c = tl.sum(c, 0)
    store_vector(p_scratch, i, _S, s, P)
    store_vector(p_scratch, i, _D, D, P)
    store_vector(p_scratch, i, _BARRIER, h, P)
    store_vector(p_scratch, i, _C, c, P)
    store_vector(p_scratch, i, _FACTOR, 4 * (D - pi), P)
    store_vector(p_scratch, i, _FACTOR + 1, 4 * (D - pi) + 2 * pi, P)
    store_vector(p_scratch, i, _DIAGONAL, diagonal, P)
    store_vector(p_scratch, i, _DIAGONAL + 1, diagonal + more, P)
    tl.debug_barrier()

    qD = tl.zeros([P], tl.float64)
    qh = tl.zeros([P], tl.float64)
    excess = tl.sum(more, 0)
    for first in range(zero, P + zero, AT_ONCE):
        rows, p_tile = rows_from(first, p_scratch, i, P)
        q = tl.load(p_tile + 2 * P * P)
        qD += tl.sum(q * load_column(p_scratch, rows, _D, P), 0)
        qh += tl.sum(q * load_column(p_scratch, rows, _BARRIER, P), 0)
        excess += 2 * tl.sum(tl.sum(q * q * load_column(p_scratch, rows, _PI, P), 0), 0)
    J1 = 2 * (qD - D)
    store_vector(p_scratch, i, _J1, J1, P)
    y = J1 * hs - 2 * (qh - h)
    tl.debug_barrier()

    dl = tl.zeros([P], tl.float64)
    convex = 0  # first the Hessian; if that is not safely positive definite, its convex part
    solved = 0
    while (convex < 2) & (solved == 0):
        zero = zero_of(steps, i_loop + convex, P)
        _hessian(p_scratch, zero, convex, sum_c, sum_D, steps, P)
        tl.debug_barrier()
        H, smallest = _scaled_hessian(p_scratch, zero, convex, excess, tasks, P)
        U, left, pivots = eliminate(H, y, steps, zero, P)
        solved = all_of((pivots > smallest) & (pivots > 0)).to(tl.int32)
        dl = substitute(U, left, pivots, steps, zero, P)
        convex += 1

    zero = zero_of(steps, i_loop + convex, P)
    i = tl.arange(0, P) + zero
    one = load_vector(p_scratch, i, _ONE, P)
    active = one != 0
    v = load_vector(p_scratch, i, _V, P)
    dl = tl.where(active, dl - tl.sum(v * dl, 0) / tl.sum(v * one, 0), 0.0)
    for first in range(zero, P + zero, AT_ONCE):
        rows, p_tile = rows_from(first, p_scratch, i, P)
        store_vector(p_scratch, rows, _SUMS, tl.sum(tl.load(p_tile + 2 * P * P) * dl[None, :], 1), P)
    tl.debug_barrier()
    dsigma = hs + tl.sum(load_vector(p_scratch, i, _J1, P) * dl, 0) / sum_D
    ds = tl.where(active, dsigma - 2 * (load_vector(p_scratch, i, _SUMS, P) - dl), 0.0)
    s = load_vector(p_scratch, i, _S, P)
    pi = load_vector(p_scratch, i, _PI, P)
    dpi = tl.where(active, mu / s - pi - pi / s * ds, 0.0)
    store_vector(p_scratch, i, _DL, dl, P)
    store_vector(p_scratch, i, _DS, ds, P)
    store_vector(p_scratch, i, _DPI, dpi, P)
    farthest, primal_limit, dual_limit = lengths(dl, ds, dpi, s, pi, active)
    return dsigma, farthest, primal_limit, dual_limit, solved


@triton.jit(noinline=True)
def _direction_apart(p_scratch, i_loop, sigma, tasks, steps, P: tl.constexpr):
    return _direction(p_scratch, i_loop, sigma, tasks, steps, P)


@triton.jit
def max_min_many(p_scratch, active, P: tl.constexpr, CALLS: tl.constexpr):
    """The v [P], up to a factor, of weights that maximise min_k v_k^2 / v' A_k v; A_k is R with row and column k 0, plus E.

    R and E are finite, 0 outside the active tasks, and visible to all threads.
    """
    one = active.to(tl.float64)
    tasks = tl.sum(one, 0)
    steps = steps_of(active, P)
    i = tl.arange(0, P) + zero_of(steps, 1, P)
    store_vector(p_scratch, i, _ONE, one, P)
    # Nothing is known yet, and equal weights are tried: whatever they reach is better.
    store_vector(p_scratch, i, _NEW_V, tl.full([P], 1.0, tl.float64), P)
    store_vector(p_scratch, i, _NEW_PI, one / tasks, P)
    tl.debug_barrier()
    worst = tl.full([], float("inf"), tl.float64)
    best = worst
    sigma = worst
    reach = worst
    overshot = worst
    new_sigma = -worst
    margin = tl.full([], 0.3, tl.float64)
    dsigma = margin
    farthest = margin
    primal_limit = margin
    dual_limit = margin
    solved = 1
    converging = 0
    iteration = 0
    while iteration <= ITERATIONS:
        zero = zero_of(steps, iteration, P)
        i = tl.arange(0, P) + zero
        reached = by_memory(p_scratch, _evaluate(p_scratch, zero, P), P)
        reach, taken = next_reach(reached, worst, overshot, reach)
        if taken:
            v = load_vector(p_scratch, i, _NEW_V, P)
            if reached < best:
                store_vector(p_scratch, i, _BEST_V, v, P)
                best = reached
            store_vector(p_scratch, i, _V, v, P)
            store_vector(p_scratch, i, _PI, load_vector(p_scratch, i, _NEW_PI, P), P)
            worst = reached
            sigma = at_least(new_sigma, reached + margin)
            tl.debug_barrier()
            if converging == 1:
                iteration = ITERATIONS
            elif CALLS:
                dsigma, farthest, primal_limit, dual_limit, solved = _direction_apart(
                    p_scratch, iteration, sigma, tasks, steps, P
                )
            else:
                dsigma, farthest, primal_limit, dual_limit, solved = _direction(
                    p_scratch, iteration, sigma, tasks, steps, P
                )
        tl.debug_barrier()

        i = tl.arange(0, P) + zero_of(steps, iteration + solved, P)
        one = load_vector(p_scratch, i, _ONE, P)
        v, pi, primal, gap, converging = next_point(
            load_vector(p_scratch, i, _V, P),
            load_vector(p_scratch, i, _DL, P),
            load_vector(p_scratch, i, _PI, P),
            load_vector(p_scratch, i, _DPI, P),
            load_vector(p_scratch, i, _S, P),
            load_vector(p_scratch, i, _DS, P),
            one, tasks, farthest, reach, primal_limit, dual_limit,
        )  # fmt: skip
        margin = 0.1 * gap
        store_vector(p_scratch, i, _NEW_V, v, P)
        store_vector(p_scratch, i, _NEW_PI, pi, P)
        tl.debug_barrier()
        new_sigma = sigma + primal * dsigma
        overshot = primal * farthest / 3
        # Without a solution, or where something is NaN, the best point so far stands.
        iteration = tl.where((solved == 1) & (worst == worst), iteration + 1, ITERATIONS + 1)
    return load_vector(p_scratch, tl.arange(0, P) + zero_of(steps, iteration, P), _BEST_V, P)
