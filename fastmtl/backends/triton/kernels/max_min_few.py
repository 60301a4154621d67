"""Weights that maximise the smallest ratio of signal to noise among few tasks: the solver of GNR's update, in registers.

The rows of one matrix are read one by one, and so go through a scratch of 2 [P, P] float64. What one thread stores there
another reads: a barrier stands between, and another one before the place is written anew.
"""

import triton
import triton.language as tl

from fastmtl.backends.triton.kernels.interior import (
    ITERATIONS,
    SMALLEST_PIVOT,
    barrier_terms,
    diagonal_of,
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


@triton.jit
def _evaluate(R, E, v, active, P: tl.constexpr):
    """At v: q [k, i] = v_i (A_k v)_i / n_k, the noises n_k = v' A_k v, and z_k = log n_k / v_k^2."""
    i = tl.arange(0, P)
    Rv = R * v[:, None]
    noise = tl.sum(E * v[:, None], 0)
    vG = task_noises(Rv, tl.sum(Rv, 0) + noise, noise, v, i, i)
    n = noises(tl.sum(vG, 1), v, active)
    return vG * (1.0 / n)[:, None], n, log_ratios(n, v, active)


@triton.jit
def _squares(p_scratch, q, factors, steps, P: tl.constexpr):
    """sum_k factor_k q_ki q_kj."""
    row, _, o = square(P)
    tl.store(p_scratch + o, q)
    tl.store(p_scratch + P * P + o, q * factors[:, None])
    tl.debug_barrier()
    A = tl.zeros([P, P], tl.float64)
    for k in range(steps):
        p_row = p_scratch + k * P
        A = tl.fma(tl.load(p_row + P * P + row), tl.load(p_row + tl.arange(0, P))[None, :], A)
    tl.debug_barrier()  # all have read
    return A


@triton.jit
def _direction(p_scratch, R, E, q, n, z, v, pi, one, sigma, tasks, steps, P: tl.constexpr):
    """Newton's step of the barrier problem: dl = d log v, ds, dpi, dsigma; how far it may go, and whether it could be solved."""
    row, column, _ = square(P)
    active = one != 0
    s, mu, D, c, h, sum_D, hs, diagonal, more = barrier_terms(n, z, pi, one, sigma, tasks)
    J1 = 2 * (tl.sum(q * D[:, None], 0) - D)
    y = J1 * hs - 2 * (tl.sum(q * h[:, None], 0) - h)
    excess = 2 * tl.sum(tl.sum(q * q * pi[:, None], 0), 0) + tl.sum(more, 0)
    # What is the same for the Hessian of the Lagrangian and for its convex part.
    SA = tl.sum(c, 0) * (R + E) - R * tl.where(row == column, c[:, None], c[:, None] + c[None, :])
    qD = q * D[:, None]
    same = 2 * v[:, None] * v[None, :] * SA - 4 * (qD + tl.trans(qD)) - J1[:, None] * J1[None, :] / sum_D
    i = tl.arange(0, P)

    dl = tl.zeros([P], tl.float64)
    convex = 0  # first the Hessian; if that is not safely positive definite, its convex part
    solved = 0
    while (convex < 2) & (solved == 0):
        H = same + _squares(p_scratch, q, 4 * (D - pi) + 2 * convex * pi, steps, P)
        H += tl.where(row == column, (diagonal + convex * more)[None, :], 0.0)
        trace = tl.sum(diagonal_of(H, P), 0) + (1 - convex) * excess
        H = fixed_scale(H, trace / tasks, active[:, None], active, i, i)
        smallest = diagonal_of(H, P) * ((1 - convex) * SMALLEST_PIVOT)
        U, left, pivots = eliminate(H, y, steps, 0, P)
        solved = all_of((pivots > smallest) & (pivots > 0)).to(tl.int32)
        dl = substitute(U, left, pivots, steps, 0, P)
        convex += 1

    dl = tl.where(active, dl - tl.sum(v * dl, 0) / tl.sum(v * one, 0), 0.0)
    dsigma = hs + tl.sum(J1 * dl, 0) / sum_D
    ds = tl.where(active, dsigma - 2 * (tl.sum(q * dl[None, :], 1) - dl), 0.0)
    dpi = tl.where(active, mu / s - pi - D * ds, 0.0)
    farthest, primal_limit, dual_limit = lengths(dl, ds, dpi, s, pi, active)
    return s, dl, ds, dpi, dsigma, farthest, primal_limit, dual_limit, solved


@triton.jit
def max_min_few(p_scratch, R, E, active, P: tl.constexpr):
    """The v [P], up to a factor, of weights that maximise min_k v_k^2 / v' A_k v; A_k is R with row and column k 0, plus E.

    R and E are finite, and 0 outside the active tasks.
    """
    one = active.to(tl.float64)
    tasks = tl.sum(one, 0)
    steps = steps_of(active, P)
    # Nothing is known yet, and equal weights are tried: whatever they reach is better.
    new_v = tl.full([P], 1.0, tl.float64)
    new_pi = one / tasks  # multipliers
    # Made anew: a name for what another name holds would not be carried through the loop, where it is given that one's value.
    v = tl.full([P], 1.0, tl.float64)
    pi = one / tasks
    best_v = new_v
    s = new_v
    dl = new_v
    ds = new_v
    dpi = new_v
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
        q, n, z = _evaluate(R, E, new_v, active, P)
        reached = largest(z, active)
        reach, taken = next_reach(reached, worst, overshot, reach)
        if taken:
            v = new_v
            pi = new_pi
            best_v = tl.where(reached < best, v, best_v)
            best = tl.where(reached < best, reached, best)
            worst = reached
            sigma = at_least(new_sigma, reached + margin)
            if converging == 1:
                iteration = ITERATIONS
            else:
                s, dl, ds, dpi, dsigma, farthest, primal_limit, dual_limit, solved = _direction(
                    p_scratch, R, E, q, n, z, v, pi, one, sigma, tasks, steps, P
                )
        new_v, new_pi, primal, gap, converging = next_point(
            v, dl, pi, dpi, s, ds, one, tasks, farthest, reach, primal_limit, dual_limit
        )
        margin = 0.1 * gap
        new_sigma = sigma + primal * dsigma
        overshot = primal * farthest / 3
        # Without a solution, or where something is NaN, the best point so far stands.
        iteration = tl.where((solved == 1) & (worst == worst), iteration + 1, ITERATIONS + 1)
    return best_v
