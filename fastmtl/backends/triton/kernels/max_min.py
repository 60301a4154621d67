"""Weights that maximise the smallest ratio of signal to noise among the tasks: the solver of GNR's update, by one program.

At 64 tasks the registers hold two matrices, so that matrices and vectors are kept in a scratch, [4 P + ROWS, P] float64: R
and E, which the caller fills; q; then vectors; then the Hessian. Matrices of a task and a variable lie transposed, [k, i].
What one thread stores there another reads: a barrier stands between, and another one before the place is written anew.
"""

import triton
import triton.language as tl

from fastmtl.backends.triton.kernels.numbers import all_of, at_least

_ITERATIONS = tl.constexpr(32)
_SMALLEST_NOISE = tl.constexpr(1e-9)  # n_k >= this times v_k^2: bounds the ratio of a task without noise
_FARTHEST = tl.constexpr(3.0)  # the largest relative change of a weight in one iteration
_SMALLEST_PIVOT = tl.constexpr(1e-11)  # of the diagonal; below, the Hessian counts as indefinite
# Converged: after a whole step, no longer than this, the gap that bounds what is left is almost the barrier's, 1e-5.
_GAP = tl.constexpr(1.2e-5)
_LAST_STEP = tl.constexpr(3e-3)
_TOLERANCE = tl.constexpr(1e-9)  # rounding of a matrix whose diagonal is about 1

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
_SUMS = tl.constexpr(17)  # of a matrix's rows
_N = tl.constexpr(18)
_BARRIER = tl.constexpr(19)
UNITS = tl.constexpr(20)  # and 21: the caller's
_NUMBER = tl.constexpr(22)  # the first one alone
AT_ONCE = tl.constexpr(16)  # rows of a matrix, where several matrices are combined


@triton.jit
def square(P: tl.constexpr, zero=0):
    """Row, column and offset of a [P, P] matrix."""
    row = (tl.arange(0, P) + zero)[:, None]
    column = (tl.arange(0, P) + zero)[None, :]
    return row, column, row * P + column


@triton.jit
def _zero(steps, i_loop, P: tl.constexpr):
    """0, which the compiler takes for another number in each pass of a loop.

    Added to indices it keeps them in the loop: else those of all layouts, and the addresses of all that is in the scratch,
    stay in registers.
    """
    return steps // (P + 1) * i_loop * P


@triton.jit
def load_vector(p_scratch, zero, name, P: tl.constexpr):
    """A vector of the scratch."""
    return tl.load((p_scratch + (tl.arange(0, P) + zero)) + (3 * P + name) * P)


@triton.jit
def store_vector(p_scratch, zero, name, values, P: tl.constexpr):
    """Write a vector of the scratch; others read it after a barrier."""
    tl.store((p_scratch + (tl.arange(0, P) + zero)) + (3 * P + name) * P, values)


@triton.jit
def load_rows(p_scratch, rows, name, P: tl.constexpr):
    """Of a vector, as a column: a number for each of some rows of a matrix."""
    return tl.load((p_scratch + rows[:, None]) + (3 * P + name) * P)


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
def _row_sums(p_scratch, zero, A, P: tl.constexpr):
    """Of a matrix, as a vector; after a barrier.

    Threads hold rows of a matrix between them, so that a vector of row sums lies many times in the registers, and all that is
    computed from it: through memory it gets back to one number a thread or two.
    """
    store_vector(p_scratch, zero, _SUMS, tl.sum(A, 1), P)
    tl.debug_barrier()
    return load_vector(p_scratch, zero, _SUMS, P)


@triton.jit
def _element(x, i, j):
    """x[j] of a vector, whose indices are i."""
    return tl.sum(tl.where(i == j, x, 0.0), 0)


@triton.jit
def _steps(active, P: tl.constexpr):
    """Up to the last active task; known at run time, so that no loop over tasks is unrolled."""
    return tl.max(tl.where(active, tl.arange(0, P) + 1, 0), 0)


@triton.jit
def _eliminate(A, y, steps, zero, P: tl.constexpr):
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
def _substitute(U, y, pivots, steps, zero, P: tl.constexpr):
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
def semidefinite(p_scratch, share, active, P: tl.constexpr):
    """Whether R + share * E is positive semidefinite up to rounding."""
    row, column, o = square(P)
    tolerance = tl.where(active, _TOLERANCE, tl.full([P], 1.0, tl.float64))
    A = tl.load(p_scratch + o) + share * tl.load(p_scratch + P * P + o)
    A += tl.where(row == column, tolerance[:, None], 0.0)
    _, _, pivots = _eliminate(A, tl.zeros([P], tl.float64), _steps(active, P), 0, P)
    return all_of(pivots > 0)


@triton.jit
def _evaluate(p_scratch, zero, P: tl.constexpr):
    """At the new v: q [k, i] = v_i (A_k v)_i / n_k, the noises n_k = v' A_k v, and z_k = log n_k / v_k^2."""
    row, column, o = square(P, zero)
    i = tl.arange(0, P) + zero
    v_rows = load_rows(p_scratch, i, _NEW_V, P)
    Rv = tl.load(p_scratch + o) * v_rows
    noise = tl.sum(tl.load(p_scratch + P * P + o) * v_rows, 0)
    total = tl.sum(Rv, 0) + noise
    v = load_vector(p_scratch, zero, _NEW_V, P)
    vG = tl.where(row == column, noise[None, :], total[None, :] - Rv) * v[None, :]
    active = load_vector(p_scratch, zero, _ONE, P) != 0
    n = tl.where(active, at_least(_row_sums(p_scratch, zero, vG, P), _SMALLEST_NOISE * v * v), 1.0)
    z = tl.where(active, tl.log(n) - 2 * tl.log(v), 0.0)
    store_vector(p_scratch, zero, _N, n, P)
    tl.debug_barrier()
    return vG * (1.0 / load_rows(p_scratch, i, _N, P)), n, z, active


@triton.jit
def _hessian(p_scratch, zero, convex, sum_c, sum_D, steps, P: tl.constexpr):
    """H [i, j] of the scratch: the Hessian of the Lagrangian, or its convex part (1), some rows after others."""
    BLOCK: tl.constexpr = min(P, AT_ONCE)
    i = tl.arange(0, P) + zero
    column = i[None, :]
    c = load_vector(p_scratch, zero, _C, P)
    v = load_vector(p_scratch, zero, _V, P)
    D = load_vector(p_scratch, zero, _D, P)
    J1 = load_vector(p_scratch, zero, _J1, P)
    diagonal = load_vector(p_scratch, zero, _DIAGONAL + convex, P)
    for first in range(zero, P + zero, BLOCK):
        rows = first + tl.arange(0, BLOCK)
        row = rows[:, None]
        p_tile = p_scratch + (row * P + column)
        H = tl.zeros([BLOCK, P], tl.float64)
        for k in range(steps):
            p_q = p_scratch + (2 * P * P + k * P)
            factor = tl.load(p_scratch + ((3 * P + _FACTOR + convex) * P + k))
            H = tl.fma(factor * tl.load(p_q + row), tl.load(p_q + i)[None, :], H)
        R = tl.load(p_tile)
        SA = sum_c * (R + tl.load(p_tile + P * P))
        c_rows = load_rows(p_scratch, rows, _C, P)
        SA -= R * tl.where(row == column, c_rows, c_rows + c[None, :])
        H += 2 * load_rows(p_scratch, rows, _V, P) * v[None, :] * SA
        qD = tl.load(p_tile + 2 * P * P) * load_rows(p_scratch, rows, _D, P)
        H -= 4 * (qD + tl.load(p_scratch + (2 * P * P + column * P + row)) * D[None, :])
        H -= load_rows(p_scratch, rows, _J1, P) * J1[None, :] / sum_D
        tl.store(p_tile + (3 * P + ROWS) * P, H + tl.where(row == column, diagonal[None, :], 0.0))


@triton.jit
def _direction(p_scratch, i_loop, n, z, sigma, tasks, steps, P: tl.constexpr):
    """Newton's step of the barrier problem from v, pi and q: dl = d log v, ds and dpi go to the scratch.

    Returns dsigma, the largest |dl|, 1 / the longest steps of v and pi by their signs, and whether it could be solved.
    """
    zero = _zero(steps, i_loop, P)
    _, _, o = square(P, zero)
    i = tl.arange(0, P) + zero
    one = load_vector(p_scratch, zero, _ONE, P)
    active = one != 0
    pi = load_vector(p_scratch, zero, _PI, P)
    s = tl.where(active, sigma - z, 1.0)  # slacks, positive
    mu = at_least(0.2 * tl.sum(pi * s, 0), 1e-5) / tasks
    D = pi / s
    c = pi / n
    sum_c = tl.sum(c, 0)
    sum_D = tl.sum(D, 0)
    h = one * mu / s
    hs = (tl.sum(h, 0) - 1) / sum_D
    bounded = tl.where(s < 1, s, 1.0)
    diagonal = 2 * pi + 4 * D + pi * bounded / (1 - bounded / 2)
    # What makes the Hessian convex where all A_k are semidefinite: sum_k 2 pi_k q_k q_k' and this.
    more = 0.1 * (pi + one * 0.01 / tasks) - 2 * pi
    store_vector(p_scratch, zero, _S, s, P)
    store_vector(p_scratch, zero, _D, D, P)
    store_vector(p_scratch, zero, _BARRIER, h, P)
    store_vector(p_scratch, zero, _C, c, P)
    store_vector(p_scratch, zero, _FACTOR, 4 * (D - pi), P)
    store_vector(p_scratch, zero, _FACTOR + 1, 4 * (D - pi) + 2 * pi, P)
    store_vector(p_scratch, zero, _DIAGONAL, diagonal, P)
    store_vector(p_scratch, zero, _DIAGONAL + 1, diagonal + more, P)
    tl.debug_barrier()

    q = tl.load(p_scratch + (2 * P * P + o))
    J1 = 2 * (tl.sum(q * load_rows(p_scratch, i, _D, P), 0) - D)
    store_vector(p_scratch, zero, _J1, J1, P)
    y = J1 * hs - 2 * (tl.sum(q * load_rows(p_scratch, i, _BARRIER, P), 0) - h)
    excess = 2 * tl.sum(tl.sum(q * q * load_rows(p_scratch, i, _PI, P), 0), 0) + tl.sum(more, 0)
    tl.debug_barrier()

    dl = tl.zeros([P], tl.float64)
    convex = 0  # first the Hessian; if that is not safely positive definite, its convex part
    solved = 0
    while (convex < 2) & (solved == 0):
        zero = _zero(steps, i_loop + convex, P)
        _hessian(p_scratch, zero, convex, sum_c, sum_D, steps, P)
        tl.debug_barrier()
        row, column, o = square(P, zero)
        i = tl.arange(0, P) + zero
        active = load_vector(p_scratch, zero, _ONE, P) != 0
        H = tl.load(p_scratch + ((3 * P + ROWS) * P + o))
        tl.debug_barrier()  # all have read
        trace = tl.sum(tl.sum(tl.where(row == column, H, 0.0), 0), 0) + (1 - convex) * excess
        # Along v the ratios do not change: the first term fixes the scale. Tasks that are not active get a 1.
        pairs = active[None, :] & (load_rows(p_scratch, i, _ONE, P) != 0)
        H += tl.where(pairs, trace / tasks, 0.0)
        H += tl.where(row == column, tl.where(active, 1e-12 * (trace / tasks), 1.0)[None, :], 0.0)
        smallest = tl.sum(tl.where(row == column, H, 0.0), 0) * ((1 - convex) * _SMALLEST_PIVOT)
        U, left, pivots = _eliminate(H, y, steps, zero, P)
        solved = all_of((pivots > smallest) & (pivots > 0)).to(tl.int32)
        dl = _substitute(U, left, pivots, steps, zero, P)
        convex += 1

    zero = _zero(steps, i_loop + convex, P)
    _, _, o = square(P, zero)
    one = load_vector(p_scratch, zero, _ONE, P)
    active = one != 0
    v = load_vector(p_scratch, zero, _V, P)
    dl = tl.where(active, dl - tl.sum(v * dl, 0) / tl.sum(v * one, 0), 0.0)
    dsigma = hs + tl.sum(load_vector(p_scratch, zero, _J1, P) * dl, 0) / sum_D
    q_dl = _row_sums(p_scratch, zero, tl.load(p_scratch + (2 * P * P + o)) * dl[None, :], P)
    ds = tl.where(active, dsigma - 2 * (q_dl - dl), 0.0)
    s = load_vector(p_scratch, zero, _S, P)
    pi = load_vector(p_scratch, zero, _PI, P)
    dpi = tl.where(active, mu / s - pi - pi / s * ds, 0.0)
    store_vector(p_scratch, zero, _DL, dl, P)
    store_vector(p_scratch, zero, _DS, ds, P)
    store_vector(p_scratch, zero, _DPI, dpi, P)
    primal = at_least(at_least(tl.max(-dl, 0) / 0.8, 1.0), tl.max(-ds / s, 0) / 0.9)
    dual = at_least(tl.max(tl.where(active, -dpi / pi, 0.0), 0) / 0.9, 1.0)
    return dsigma, tl.max(tl.abs(dl), 0), primal, dual, solved


@triton.jit
def _largest(z, active):
    """Of the active tasks; NaN where one is."""
    unknown = tl.max((active & (z != z)).to(tl.int32), 0) != 0
    return tl.where(unknown, float("nan"), tl.max(tl.where(active, z, float("-inf")), 0))


@triton.jit
def max_min(p_scratch, active, P: tl.constexpr):
    """The v [P], up to a factor, of weights that maximise min_k v_k^2 / v' A_k v; A_k is R with row and column k 0, plus E.

    The same steps as `fastmtl.backends.reference.max_min`: see there. R and E are finite, 0 outside the active tasks, and
    visible to all threads.
    """
    one = active.to(tl.float64)
    tasks = tl.sum(one, 0)
    steps = _steps(active, P)
    zero = 0
    store_vector(p_scratch, zero, _ONE, one, P)
    # Nothing is known yet, and equal weights are tried: whatever they reach is better.
    store_vector(p_scratch, zero, _NEW_V, tl.full([P], 1.0, tl.float64), P)
    store_vector(p_scratch, zero, _NEW_PI, one / tasks, P)
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
    while iteration <= _ITERATIONS:
        zero = _zero(steps, iteration, P)
        _, _, o = square(P, zero)
        q, n, z, active = _evaluate(p_scratch, zero, P)
        reached = by_memory(p_scratch, _largest(z, active), P)
        # Steps that overshoot make the next ones shorter, and are not taken where it is by much.
        reach = tl.where(reached > worst + 0.01, overshot, 2 * reach)
        reach = tl.where(reach > _FARTHEST, _FARTHEST, reach)
        if not (reached > worst + 0.3):
            v = load_vector(p_scratch, zero, _NEW_V, P)
            if reached < best:
                store_vector(p_scratch, zero, _BEST_V, v, P)
                best = reached
            store_vector(p_scratch, zero, _V, v, P)
            store_vector(p_scratch, zero, _PI, load_vector(p_scratch, zero, _NEW_PI, P), P)
            tl.store(p_scratch + (2 * P * P + o), q)
            worst = reached
            sigma = at_least(new_sigma, reached + margin)
            tl.debug_barrier()
            if converging == 1:
                iteration = _ITERATIONS
            else:
                dsigma, farthest, primal_limit, dual_limit, solved = _direction(
                    p_scratch, iteration, n, z, sigma, tasks, steps, P
                )
        tl.debug_barrier()

        zero = _zero(steps, iteration + solved, P)
        one = load_vector(p_scratch, zero, _ONE, P)
        primal = 1 / at_least(farthest / reach, primal_limit)
        dual = 1 / dual_limit
        v = load_vector(p_scratch, zero, _V, P)
        stepped = v * (1 + primal * load_vector(p_scratch, zero, _DL, P))
        pi = load_vector(p_scratch, zero, _PI, P) + dual * load_vector(p_scratch, zero, _DPI, P)
        pi = pi / tl.sum(pi, 0)
        s = load_vector(p_scratch, zero, _S, P) + primal * load_vector(p_scratch, zero, _DS, P)
        gap = tl.sum(pi * one * s, 0)
        margin = 0.1 * gap
        converging = ((primal == 1) & (farthest <= _LAST_STEP) & (gap <= _GAP)).to(tl.int32)
        store_vector(p_scratch, zero, _NEW_V, tl.where(one != 0, stepped / (tl.sum(stepped * one, 0) / tasks), 1.0), P)
        store_vector(p_scratch, zero, _NEW_PI, pi, P)
        tl.debug_barrier()
        new_sigma = sigma + primal * dsigma
        overshot = primal * farthest / 3
        # Without a solution, or where something is NaN, the best point so far stands.
        iteration = tl.where((solved == 1) & (worst == worst), iteration + 1, _ITERATIONS + 1)
    return load_vector(p_scratch, 0, _BEST_V, P)
