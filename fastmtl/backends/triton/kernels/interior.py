"""The interior-point method of GNR's update: what its solvers for few and for many tasks share.

The same steps as `fastmtl.backends.reference.max_min`: see there. Vectors are [P], matrices [P, P], all float64; those of a
task and a variable lie transposed, [k, i]. ``zero`` is 0, see `max_min_many`.
"""

import triton
import triton.language as tl

from fastmtl.backends.triton.kernels.numbers import all_of, at_least

ITERATIONS = tl.constexpr(32)
SMALLEST_PIVOT = tl.constexpr(1e-11)  # of the diagonal; below, the Hessian counts as indefinite
_SMALLEST_NOISE = tl.constexpr(1e-9)  # n_k >= this times v_k^2: bounds the ratio of a task without noise
_FARTHEST = tl.constexpr(3.0)  # the largest relative change of a weight in one iteration
# Converged: after a whole step, no longer than this, the gap that bounds what is left is almost the barrier's, 1e-5.
_GAP = tl.constexpr(1.2e-5)
_LAST_STEP = tl.constexpr(3e-3)
_TOLERANCE = tl.constexpr(1e-9)  # rounding of a matrix whose diagonal is about 1


@triton.jit
def square(P: tl.constexpr, zero=0):
    """Row, column and offset of a [P, P] matrix."""
    row = (tl.arange(0, P) + zero)[:, None]
    column = (tl.arange(0, P) + zero)[None, :]
    return row, column, row * P + column


@triton.jit
def diagonal_of(A, P: tl.constexpr):
    """Of a matrix, as a vector."""
    row, column, _ = square(P)
    return tl.sum(tl.where(row == column, A, 0.0), 0)


@triton.jit
def _element(x, i, j):
    """x[j] of a vector, whose indices are i."""
    return tl.sum(tl.where(i == j, x, 0.0), 0)


@triton.jit
def steps_of(active, P: tl.constexpr):
    """Up to the last active task; known at run time, so that no loop over tasks is unrolled."""
    return tl.max(tl.where(active, tl.arange(0, P) + 1, 0), 0)


@triton.jit
def eliminate(A, y, steps, zero, P: tl.constexpr):
    """Elimination of A x = y by the diagonal's pivots, which are the squares of those of Cholesky's factor.

    Takes the upper triangle of A. Returns U in that of a tile, y so far, and the pivots.
    """
    row, _, _ = square(P, zero)
    i = tl.arange(0, P) + zero
    pivots = tl.full([P], 1.0, tl.float64)
    for j in range(steps):
        right = tl.sum(tl.where(row == j, A, 0.0), 0)
        inverse = 1.0 / _element(right, i, j)
        pivots = tl.where(i == j, right, pivots)
        right = tl.where(i > j, right, 0.0)
        y -= right * (_element(y, i, j) * inverse)
        A -= right[:, None] * (right * inverse)[None, :]
    return A, y, pivots


@triton.jit
def substitute(U, y, pivots, steps, zero, P: tl.constexpr):
    """Solves U x = y; what is past the steps stays y."""
    row, _, _ = square(P, zero)
    i = tl.arange(0, P) + zero
    inverses = 1.0 / pivots
    for back in range(steps):
        j = steps - 1 - back
        right = tl.sum(tl.where(row == j, U, 0.0), 0)
        known = tl.sum(tl.where((i > j) & (i < steps), right * y, 0.0), 0)
        y = tl.where(i == j, (y - known) * inverses, y)
    return y


@triton.jit
def semidefinite(A, active, P: tl.constexpr):
    """Whether a matrix, 0 outside the active tasks, is positive semidefinite up to rounding."""
    row, column, _ = square(P)
    tolerance = tl.where(active, _TOLERANCE, tl.full([P], 1.0, tl.float64))
    A += tl.where(row == column, tolerance[:, None], 0.0)
    _, _, pivots = eliminate(A, tl.zeros([P], tl.float64), steps_of(active, P), 0, P)
    return all_of(pivots > 0)


@triton.jit
def task_noises(Rv, total, noise, v, rows, i):
    """v_i (A_k v)_i of some tasks k, from R_ik v_k, its sum over all k plus the noise, and the noise, the sum of E_ik v_k.

    A_k is R with row and column k 0, plus E.
    """
    return tl.where(rows[:, None] == i[None, :], noise[None, :], total[None, :] - Rv) * v[None, :]


@triton.jit
def noises(sums, v, active):
    """n_k = v' A_k v, from the sums over i of v_i (A_k v)_i."""
    return tl.where(active, at_least(sums, _SMALLEST_NOISE * v * v), 1.0)


@triton.jit
def log_ratios(n, v, active):
    """z_k = log n_k / v_k^2."""
    return tl.where(active, tl.log(n) - 2 * tl.log(v), 0.0)


@triton.jit
def largest(z, active):
    """Of the active tasks; NaN where one is."""
    unknown = tl.max((active & (z != z)).to(tl.int32), 0) != 0
    return tl.where(unknown, float("nan"), tl.max(tl.where(active, z, float("-inf")), 0))


@triton.jit
def barrier_terms(n, z, pi, one, sigma, tasks):
    """The barrier problem at a point: slacks s, mu, D, c, h, the sum of D, dsigma's share, and the Hessian's diagonal.

    Last: what makes the Hessian convex where all A_k are semidefinite is sum_k 2 pi_k q_k q_k' and this on its diagonal.
    """
    s = tl.where(one != 0, sigma - z, 1.0)  # slacks, positive
    mu = at_least(0.2 * tl.sum(pi * s, 0), 1e-5) / tasks
    D = pi / s
    h = one * mu / s
    sum_D = tl.sum(D, 0)
    bounded = tl.where(s < 1, s, 1.0)
    diagonal = 2 * pi + 4 * D + pi * bounded / (1 - bounded / 2)
    more = 0.1 * (pi + one * 0.01 / tasks) - 2 * pi
    return s, mu, D, pi / n, h, sum_D, (tl.sum(h, 0) - 1) / sum_D, diagonal, more


@triton.jit
def fixed_scale(H, mean, active_rows, active, rows, i):
    """Some rows of the Hessian with a first term that fixes the scale: along v the ratios do not change.

    Tasks that are not active get a 1. ``mean`` is the trace by the number of tasks.
    """
    H += tl.where(active_rows & active[None, :], mean, 0.0)
    return H + tl.where(rows[:, None] == i[None, :], tl.where(active, 1e-12 * mean, 1.0)[None, :], 0.0)


@triton.jit
def lengths(dl, ds, dpi, s, pi, active):
    """The largest |dl|, and 1 / the longest steps of v and of pi by their signs."""
    primal = at_least(at_least(tl.max(-dl, 0) / 0.8, 1.0), tl.max(-ds / s, 0) / 0.9)
    dual = at_least(tl.max(tl.where(active, -dpi / pi, 0.0), 0) / 0.9, 1.0)
    return tl.max(tl.abs(dl), 0), primal, dual


@triton.jit
def next_reach(reached, worst, overshot, reach):
    """How far the next step may go: steps that overshoot make the next ones shorter, and are not taken where it is by much."""
    reach = tl.where(reached > worst + 0.01, overshot, 2 * reach)
    return tl.where(reach > _FARTHEST, _FARTHEST, reach), ~(reached > worst + 0.3)


@triton.jit
def next_point(v, dl, pi, dpi, s, ds, one, tasks, farthest, reach, primal_limit, dual_limit):
    """The v and pi to try, the length of the step, the gap there, and whether it has converged (1)."""
    primal = 1 / at_least(farthest / reach, primal_limit)
    stepped = v * (1 + primal * dl)
    pi = pi + 1 / dual_limit * dpi
    pi = pi / tl.sum(pi, 0)
    gap = tl.sum(pi * one * (s + primal * ds), 0)
    converging = ((primal == 1) & (farthest <= _LAST_STEP) & (gap <= _GAP)).to(tl.int32)
    v = tl.where(one != 0, stepped / (tl.sum(stepped * one, 0) / tasks), 1.0)
    return v, pi, primal, gap, converging
