"""Weights that maximise the smallest ratio of signal to noise among the tasks: the solver of GNR's update, by one program.

Matrices of a task and a variable lie transposed, [k, i]. At 64 tasks the registers hold one or two, so that the others are
in a scratch of float64, `scratch_size`: R and E [P, P], which the caller fills and which are 0 outside the active tasks; q
[P, P]; two rows of factors. What one thread stores there another reads: a barrier stands between. Vectors are [P].
"""

import triton
import triton.language as tl

_ITERATIONS = tl.constexpr(32)
_SMALLEST_NOISE = tl.constexpr(1e-9)  # n_k >= this times v_k^2: bounds the ratio of a task without noise
_FARTHEST = tl.constexpr(3.0)  # the largest relative change of a weight in one iteration
_SMALLEST_PIVOT = tl.constexpr(1e-11)  # of the diagonal; below, the Hessian counts as indefinite
_TOLERANCE = tl.constexpr(1e-9)  # rounding of a matrix whose diagonal is about 1


@triton.jit
def at_least(x, least):
    """The larger one; NaN where x is."""
    return tl.where(x < least, least, x)


@triton.jit
def all_of(condition):
    """Whether a condition [P] holds everywhere."""
    return tl.min(condition.to(tl.int32), 0) != 0


@triton.jit
def element(x, j, P: tl.constexpr):
    """x[j] of a vector."""
    return tl.sum(tl.where(tl.arange(0, P) == j, x, 0.0), 0)


@triton.jit
def square(P: tl.constexpr):
    """Row, column and offset of a [P, P] matrix."""
    row = tl.arange(0, P)[:, None]
    column = tl.arange(0, P)[None, :]
    return row, column, row * P + column


@triton.jit
def eliminate(A, y, T: tl.constexpr, P: tl.constexpr):
    """Elimination of A x = y by the diagonal's pivots, which are the squares of those of Cholesky's factor.

    Returns U in the upper triangle of a tile (what is below has no meaning), y so far, and the pivots.
    """
    row, column, _ = square(P)
    i = tl.arange(0, P)
    pivots = tl.full([P], 1.0, tl.float64)
    for j in range(T):
        left = tl.sum(tl.where(column == j, A, 0.0), 1)
        upper = tl.sum(tl.where(row == j, A, 0.0), 0)
        inverse = 1.0 / element(left, j, P)
        pivots = tl.where(i == j, left, pivots)
        left = tl.where(i > j, left, 0.0)
        y -= left * (element(y, j, P) * inverse)
        A -= left[:, None] * (upper * inverse)[None, :]
    return A, y, pivots


@triton.jit
def substitute(U, y, pivots, T: tl.constexpr, P: tl.constexpr):
    """x of U x = y; what is past T stays y."""
    column = tl.arange(0, P)[None, :]
    i = tl.arange(0, P)
    inverses = 1.0 / pivots
    for back in range(T):
        j = T - 1 - back
        above = tl.sum(tl.where(column == j, U, 0.0), 1)
        x = element(y * inverses, j, P)
        y = tl.where(i == j, x, tl.where(i < j, y - above * x, y))
    return y


@triton.jit
def semidefinite(p_scratch, share, active, T: tl.constexpr, P: tl.constexpr):
    """Whether R + share * E is positive semidefinite up to rounding."""
    row, column, o = square(P)
    tolerance = tl.where(active, _TOLERANCE, tl.full([P], 1.0, tl.float64))
    A = tl.load(p_scratch + o) + share * tl.load(p_scratch + P * P + o)
    A += tl.where(row == column, tolerance[:, None], 0.0)
    _, _, pivots = eliminate(A, tl.zeros([P], tl.float64), T, P)
    return all_of(pivots > 0)


@triton.jit
def _evaluate(p_scratch, v, active, P: tl.constexpr):
    """q [k, i] = v_i (A_k v)_i / n_k, the noises n_k = v' A_k v, and z_k = log n_k / v_k^2."""
    row, column, o = square(P)
    Rv = tl.load(p_scratch + o) * v[:, None]
    noise = tl.sum(tl.load(p_scratch + P * P + o) * v[:, None], 0)
    total = tl.sum(Rv, 0) + noise
    vG = tl.where(row == column, noise[None, :], total[None, :] - Rv) * v[None, :]
    n = tl.where(active, at_least(tl.sum(vG, 1), _SMALLEST_NOISE * v * v), 1.0)
    z = tl.where(active, tl.log(n) - 2 * tl.log(v), 0.0)
    return vG * (1.0 / n)[:, None], n, z


@triton.jit
def _hessian(p_scratch, p_factors, v, D, c, J1, sum_D, diagonal, T: tl.constexpr, P: tl.constexpr):
    """[i, j] of the Hessian of the Lagrangian: sum_k factor_k q_ki q_kj, and what is the same for all factors."""
    row, column, o = square(P)
    i = tl.arange(0, P)
    p_q = p_scratch + 2 * P * P
    H = tl.zeros([P, P], tl.float64)
    for k in range(T):
        q = tl.load(p_q + k * P + i)
        H = tl.fma((tl.load(p_factors + k) * q)[:, None], q[None, :], H)
    R = tl.load(p_scratch + o)
    E = tl.load(p_scratch + P * P + o)
    SA = tl.sum(c, 0) * (R + E) - R * tl.where(row == column, c[:, None], c[:, None] + c[None, :])
    H += 2 * v[:, None] * v[None, :] * SA
    H -= 4 * (tl.load(p_q + o) * D[:, None] + tl.load(p_q + column * P + row) * D[None, :])
    H -= J1[:, None] * J1[None, :] / sum_D
    return H + tl.where(row == column, diagonal[:, None], 0.0)


@triton.jit
def _largest(z, active):
    """Of the active tasks; NaN where one is."""
    unknown = tl.max((active & (z != z)).to(tl.int32), 0) != 0
    return tl.where(unknown, float("nan"), tl.max(tl.where(active, z, float("-inf")), 0))


@triton.jit
def max_min(p_scratch, active, T: tl.constexpr, P: tl.constexpr):
    """v, up to a factor, of the weights that maximise min_k v_k^2 / v' A_k v; A_k is R without row and column k, plus E.

    The same steps as `fastmtl.backends.reference.max_min`: see there. R and E are finite, and visible to all threads.
    """
    row, column, o = square(P)
    i = tl.arange(0, P)
    p_q = p_scratch + 2 * P * P
    p_factors = p_scratch + 3 * P * P
    one = active.to(tl.float64)
    tasks = tl.sum(one, 0)
    E_and_R = tl.load(p_scratch + i * (P + 1)) + tl.load(p_scratch + P * P + i * (P + 1))

    v = tl.full([P], 1.0, tl.float64)
    q, n, z = _evaluate(p_scratch, v, active, P)
    tl.store(p_q + o, q)
    worst = _largest(z, active)
    best = worst
    best_v = v
    sigma = worst + 0.3
    pi = one / tasks  # multipliers
    reach = tl.full([], _FARTHEST, tl.float64)
    iteration = 0
    while iteration < _ITERATIONS:
        s = tl.where(active, sigma - z, 1.0)  # slacks, positive
        mu = at_least(0.2 * tl.sum(pi * s, 0), 1e-5) / tasks
        D = pi / s
        c = pi / n
        h = tl.where(active, mu / s, 0.0)
        sum_D = tl.sum(D, 0)
        hs = (tl.sum(h, 0) - 1) / sum_D
        bounded = tl.where(s < 1, s, 1.0)
        diagonal = 2 * pi + 4 * D + pi * bounded / (1 - bounded / 2)
        # What makes the Hessian convex where all A_k are semidefinite: sum_k 2 pi_k q_k q_k' and this.
        more = 0.1 * (pi + one * 0.01 / tasks) - 2 * pi
        tl.store(p_factors + i, 4 * (D - pi))
        tl.store(p_factors + P + i, 4 * (D - pi) + 2 * pi)
        tl.debug_barrier()
        q = tl.load(p_q + o)
        J1 = 2 * (tl.sum(q * D[:, None], 0) - D)
        y = J1 * hs - 2 * (tl.sum(q * h[:, None], 0) - h)
        excess = 2 * tl.sum(pi * tl.sum(q * q, 1), 0) + tl.sum(more, 0)

        dl = tl.zeros([P], tl.float64)
        convex = 0  # first the Hessian; if that is not safely positive definite, its convex part
        solved = 0
        while (convex < 2) & (solved == 0):
            H = _hessian(p_scratch, p_factors + convex * P, v, D, c, J1, sum_D, diagonal + convex * more, T, P)
            trace = tl.sum(tl.sum(tl.where(row == column, H, 0.0), 1), 0) + (1 - convex) * excess
            # Along v the ratios do not change: the first term fixes the scale. Tasks that are not active get a 1.
            H += tl.where(active[:, None] & active[None, :], trace / tasks, 0.0)
            fixed = tl.where(active, 1e-12 * (trace / tasks), 1.0)
            H += tl.where(row == column, fixed[:, None], 0.0)
            smallest = tl.sum(tl.where(row == column, H, 0.0), 1) * ((1 - convex) * _SMALLEST_PIVOT)
            U, y_left, pivots = eliminate(H, y, T, P)
            solved = all_of((pivots > smallest) & (pivots > 0)).to(tl.int32)
            dl = substitute(U, y_left, pivots, T, P)
            convex += 1

        dl = tl.where(active, dl - tl.sum(v * dl, 0) / tl.sum(v * one, 0), 0.0)
        dsigma = hs + tl.sum(J1 * dl, 0) / sum_D
        ds = tl.where(active, dsigma - 2 * (tl.sum(tl.load(p_q + o) * dl[None, :], 1) - dl), 0.0)
        dpi = tl.where(active, mu / s - pi - D * ds, 0.0)
        farthest = tl.max(tl.abs(dl), 0)
        primal = 1 / at_least(
            at_least(at_least(tl.max(-dl, 0) / 0.8, 1.0), farthest / reach), tl.max(-ds / s, 0) / 0.9
        )
        dual = 1 / at_least(tl.max(tl.where(active, -dpi / pi, 0.0), 0) / 0.9, 1.0)

        stepped = v * (1 + primal * dl)
        new_v = tl.where(active, stepped / (tl.sum(stepped * one, 0) / tasks), 1.0)
        new_pi = pi + dual * dpi
        new_pi = new_pi / tl.sum(new_pi, 0)
        new_q, new_n, new_z = _evaluate(p_scratch, new_v, active, P)
        reached = _largest(new_z, active)
        expected = tl.sum(tl.where(active, new_pi * (s + primal * ds), 0.0), 0)
        # Steps that overshoot make the next ones shorter, and are not taken where it is by much.
        reach = tl.where(reached > worst + 0.01, primal * farthest / 3, 2 * reach)
        reach = tl.where(reach > _FARTHEST, _FARTHEST, reach)
        taken = ~(reached > worst + 0.3)
        tl.debug_barrier()  # all have read q and the factors
        tl.store(p_q + o, new_q, mask=taken)
        v = tl.where(taken, new_v, v)
        pi = tl.where(taken, new_pi, pi)
        n = tl.where(taken, new_n, n)
        z = tl.where(taken, new_z, z)
        sigma = tl.where(taken, at_least(sigma + primal * dsigma, reached + 0.1 * expected), sigma)
        worst = tl.where(taken, reached, worst)
        best_v = tl.where(worst < best, v, best_v)
        best = tl.where(worst < best, worst, best)
        # Without a solution, or where something is NaN, the best point so far stands.
        iteration = tl.where((solved == 1) & (worst == worst), iteration + 1, _ITERATIONS)
    return best_v
