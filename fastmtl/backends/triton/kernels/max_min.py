"""Weights that maximise the smallest ratio of signal to noise among the tasks: the solver of GNR's update, by one program.

At 64 tasks the registers hold two matrices, so that matrices and vectors are kept in a scratch, [3 P + ROWS, P] float64: R
and E, which the caller fills; q; then vectors. Matrices of a task and a variable lie transposed, [k, i]. What one thread
stores there another reads: a barrier stands between, and another one before the place is written anew.
"""

import triton
import triton.language as tl

from fastmtl.backends.triton.kernels.numbers import all_of, at_least

_ITERATIONS = tl.constexpr(32)
_SMALLEST_NOISE = tl.constexpr(1e-9)  # n_k >= this times v_k^2: bounds the ratio of a task without noise
_FARTHEST = tl.constexpr(3.0)  # the largest relative change of a weight in one iteration
_SMALLEST_PIVOT = tl.constexpr(1e-11)  # of the diagonal; below, the Hessian counts as indefinite
_TOLERANCE = tl.constexpr(1e-9)  # rounding of a matrix whose diagonal is about 1

ROWS = tl.constexpr(16)  # vectors of the scratch, by name:
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


@triton.jit
def square(P: tl.constexpr):
    """Row, column and offset of a [P, P] matrix."""
    row = tl.arange(0, P)[:, None]
    column = tl.arange(0, P)[None, :]
    return row, column, row * P + column


@triton.jit
def _zero(steps, i_loop, P: tl.constexpr):
    """0, which the compiler takes for another number in each pass of a loop.

    Added to offsets it keeps them in the loop: else the addresses of all that is in the scratch stay in registers.
    """
    return steps // (P + 1) * i_loop * P


@triton.jit
def _load(p_scratch, zero, name, P: tl.constexpr):
    """A vector of the scratch."""
    return tl.load(p_scratch + (zero + (3 * P + name) * P + tl.arange(0, P)))


@triton.jit
def _store(p_scratch, zero, name, values, P: tl.constexpr):
    tl.store(p_scratch + (zero + (3 * P + name) * P + tl.arange(0, P)), values)


@triton.jit
def _element(x, j, P: tl.constexpr):
    """x[j] of a vector."""
    return tl.sum(tl.where(tl.arange(0, P) == j, x, 0.0), 0)


@triton.jit
def _steps(active, P: tl.constexpr):
    """Up to the last active task; known at run time, so that no loop over tasks is unrolled."""
    return tl.max(tl.where(active, tl.arange(0, P) + 1, 0), 0)


@triton.jit
def _eliminate(A, y, steps, P: tl.constexpr):
    """Elimination of A x = y by the diagonal's pivots, which are the squares of those of Cholesky's factor.

    Returns U in the upper triangle of a tile (what is below has no meaning), y so far, and the pivots.
    """
    row, column, _ = square(P)
    i = tl.arange(0, P)
    pivots = tl.full([P], 1.0, tl.float64)
    for j in range(steps):
        left = tl.sum(tl.where(column == j, A, 0.0), 1)
        upper = tl.sum(tl.where(row == j, A, 0.0), 0)
        inverse = 1.0 / _element(left, j, P)
        pivots = tl.where(i == j, left, pivots)
        left = tl.where(i > j, left, 0.0)
        y -= left * (_element(y, j, P) * inverse)
        A -= left[:, None] * (upper * inverse)[None, :]
    return A, y, pivots


@triton.jit
def _substitute(U, y, pivots, steps, P: tl.constexpr):
    """Solves U x = y; what is past the steps stays y."""
    column = tl.arange(0, P)[None, :]
    i = tl.arange(0, P)
    inverses = 1.0 / pivots
    for back in range(steps):
        j = steps - 1 - back
        above = tl.sum(tl.where(column == j, U, 0.0), 1)
        x = _element(y * inverses, j, P)
        y = tl.where(i == j, x, tl.where(i < j, y - above * x, y))
    return y


@triton.jit
def semidefinite(p_scratch, share, active, P: tl.constexpr):
    """Whether R + share * E is positive semidefinite up to rounding."""
    row, column, o = square(P)
    tolerance = tl.where(active, _TOLERANCE, tl.full([P], 1.0, tl.float64))
    A = tl.load(p_scratch + o) + share * tl.load(p_scratch + P * P + o)
    A += tl.where(row == column, tolerance[:, None], 0.0)
    _, _, pivots = _eliminate(A, tl.zeros([P], tl.float64), _steps(active, P), P)
    return all_of(pivots > 0)


@triton.jit
def _evaluate(p_scratch, zero, active, P: tl.constexpr):
    """At the new v: q [k, i] = v_i (A_k v)_i / n_k, the noises n_k = v' A_k v, and z_k = log n_k / v_k^2."""
    row, column, o = square(P)
    v = _load(p_scratch, zero, _NEW_V, P)
    Rv = tl.load(p_scratch + (zero + o)) * v[:, None]
    noise = tl.sum(tl.load(p_scratch + (zero + P * P + o)) * v[:, None], 0)
    total = tl.sum(Rv, 0) + noise
    vG = tl.where(row == column, noise[None, :], total[None, :] - Rv) * v[None, :]
    n = tl.where(active, at_least(tl.sum(vG, 1), _SMALLEST_NOISE * v * v), 1.0)
    z = tl.where(active, tl.log(n) - 2 * tl.log(v), 0.0)
    return vG * (1.0 / n)[:, None], n, z


@triton.jit
def _hessian(p_scratch, zero, convex, sum_c, sum_D, steps, P: tl.constexpr):
    """[i, j] of the Hessian of the Lagrangian, or of its convex part (1)."""
    row, column, o = square(P)
    i = tl.arange(0, P)
    o_q = zero + 2 * P * P
    o_factors = zero + (3 * P + _FACTOR + convex) * P
    H = tl.zeros([P, P], tl.float64)
    for k in range(steps):
        q = tl.load(p_scratch + (o_q + k * P + i))
        H = tl.fma((tl.load(p_scratch + (o_factors + k)) * q)[:, None], q[None, :], H)
    R = tl.load(p_scratch + (zero + o))
    c = _load(p_scratch, zero, _C, P)
    SA = sum_c * (R + tl.load(p_scratch + (zero + P * P + o)))
    SA -= R * tl.where(row == column, c[:, None], c[:, None] + c[None, :])
    v = _load(p_scratch, zero, _V, P)
    H += 2 * v[:, None] * v[None, :] * SA
    D = _load(p_scratch, zero, _D, P)
    H -= 4 * (tl.load(p_scratch + (o_q + o)) * D[:, None] + tl.load(p_scratch + (o_q + column * P + row)) * D[None, :])
    J1 = _load(p_scratch, zero, _J1, P)
    H -= J1[:, None] * J1[None, :] / sum_D
    return H + tl.where(row == column, _load(p_scratch, zero, _DIAGONAL + convex, P)[:, None], 0.0)


@triton.jit
def _direction(p_scratch, i_loop, n, z, sigma, active, tasks, steps, P: tl.constexpr):
    """Newton's step of the barrier problem from v, pi and q: dl = d log v, ds and dpi go to the scratch.

    Returns dsigma, the largest |dl|, 1 / the longest steps of v and pi by their signs, and whether it could be solved.
    """
    row, column, o = square(P)
    zero = _zero(steps, i_loop, P)
    one = active.to(tl.float64)
    pi = _load(p_scratch, zero, _PI, P)
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
    q = tl.load(p_scratch + (zero + 2 * P * P + o))
    J1 = 2 * (tl.sum(q * D[:, None], 0) - D)
    y = J1 * hs - 2 * (tl.sum(q * h[:, None], 0) - h)
    excess = 2 * tl.sum(pi * tl.sum(q * q, 1), 0) + tl.sum(more, 0)
    _store(p_scratch, zero, _S, s, P)
    _store(p_scratch, zero, _D, D, P)
    _store(p_scratch, zero, _C, c, P)
    _store(p_scratch, zero, _J1, J1, P)
    _store(p_scratch, zero, _FACTOR, 4 * (D - pi), P)
    _store(p_scratch, zero, _FACTOR + 1, 4 * (D - pi) + 2 * pi, P)
    _store(p_scratch, zero, _DIAGONAL, diagonal, P)
    _store(p_scratch, zero, _DIAGONAL + 1, diagonal + more, P)
    tl.debug_barrier()

    dl = tl.zeros([P], tl.float64)
    convex = 0  # first the Hessian; if that is not safely positive definite, its convex part
    solved = 0
    while (convex < 2) & (solved == 0):
        H = _hessian(p_scratch, _zero(steps, i_loop + convex, P), convex, sum_c, sum_D, steps, P)
        trace = tl.sum(tl.sum(tl.where(row == column, H, 0.0), 1), 0) + (1 - convex) * excess
        # Along v the ratios do not change: the first term fixes the scale. Tasks that are not active get a 1.
        H += tl.where(active[:, None] & active[None, :], trace / tasks, 0.0)
        H += tl.where(row == column, tl.where(active, 1e-12 * (trace / tasks), 1.0)[:, None], 0.0)
        smallest = tl.sum(tl.where(row == column, H, 0.0), 1) * ((1 - convex) * _SMALLEST_PIVOT)
        U, left, pivots = _eliminate(H, y, steps, P)
        solved = all_of((pivots > smallest) & (pivots > 0)).to(tl.int32)
        dl = _substitute(U, left, pivots, steps, P)
        convex += 1

    zero = _zero(steps, i_loop + convex, P)
    v = _load(p_scratch, zero, _V, P)
    dl = tl.where(active, dl - tl.sum(v * dl, 0) / tl.sum(v * one, 0), 0.0)
    dsigma = hs + tl.sum(_load(p_scratch, zero, _J1, P) * dl, 0) / sum_D
    ds = tl.where(active, dsigma - 2 * (tl.sum(tl.load(p_scratch + (zero + 2 * P * P + o)) * dl[None, :], 1) - dl), 0.0)
    s = _load(p_scratch, zero, _S, P)
    pi = _load(p_scratch, zero, _PI, P)
    dpi = tl.where(active, mu / s - pi - pi / s * ds, 0.0)
    _store(p_scratch, zero, _DL, dl, P)
    _store(p_scratch, zero, _DS, ds, P)
    _store(p_scratch, zero, _DPI, dpi, P)
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
    _, _, o = square(P)
    one = active.to(tl.float64)
    tasks = tl.sum(one, 0)
    steps = _steps(active, P)
    zero = 0
    # Nothing is known yet, and equal weights are tried: whatever they reach is better.
    _store(p_scratch, zero, _NEW_V, tl.full([P], 1.0, tl.float64), P)
    _store(p_scratch, zero, _NEW_PI, one / tasks, P)
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
    iteration = 0
    while iteration <= _ITERATIONS:
        zero = _zero(steps, iteration, P)
        q, n, z = _evaluate(p_scratch, zero, active, P)
        reached = _largest(z, active)
        # Steps that overshoot make the next ones shorter, and are not taken where it is by much.
        reach = tl.where(reached > worst + 0.01, overshot, 2 * reach)
        reach = tl.where(reach > _FARTHEST, _FARTHEST, reach)
        if not (reached > worst + 0.3):
            v = _load(p_scratch, zero, _NEW_V, P)
            if reached < best:
                _store(p_scratch, zero, _BEST_V, v, P)
                best = reached
            _store(p_scratch, zero, _V, v, P)
            _store(p_scratch, zero, _PI, _load(p_scratch, zero, _NEW_PI, P), P)
            tl.store(p_scratch + (zero + 2 * P * P + o), q)
            worst = reached
            sigma = at_least(new_sigma, reached + margin)
            tl.debug_barrier()
            dsigma, farthest, primal_limit, dual_limit, solved = _direction(
                p_scratch, iteration, n, z, sigma, active, tasks, steps, P
            )
        tl.debug_barrier()

        zero = _zero(steps, iteration + solved, P)
        primal = 1 / at_least(farthest / reach, primal_limit)
        dual = 1 / dual_limit
        v = _load(p_scratch, zero, _V, P)
        stepped = v * (1 + primal * _load(p_scratch, zero, _DL, P))
        pi = _load(p_scratch, zero, _PI, P) + dual * _load(p_scratch, zero, _DPI, P)
        pi = pi / tl.sum(pi, 0)
        margin = 0.1 * tl.sum(pi * one * (_load(p_scratch, zero, _S, P) + primal * _load(p_scratch, zero, _DS, P)), 0)
        _store(p_scratch, zero, _NEW_V, tl.where(active, stepped / (tl.sum(stepped * one, 0) / tasks), 1.0), P)
        _store(p_scratch, zero, _NEW_PI, pi, P)
        tl.debug_barrier()
        new_sigma = sigma + primal * dsigma
        overshot = primal * farthest / 3
        # Without a solution, or where something is NaN, the best point so far stands.
        iteration = tl.where((solved == 1) & (worst == worst), iteration + 1, _ITERATIONS + 1)
    return _load(p_scratch, 0, _BEST_V, P)
