"""Weights that maximise the smallest ratio of signal to noise among the tasks, by an interior-point method."""

from __future__ import annotations

import torch
from torch import Tensor

ITERATIONS = 32
SMALLEST_NOISE = 1e-9  # n_k >= this times v_k^2: bounds the ratio of a task without noise
FARTHEST = 3.0  # the largest relative change of a weight in one iteration
SMALLEST_PIVOT = 1e-11  # of the diagonal; below, the Hessian counts as indefinite
# Converged: after a whole step, no longer than this, the gap that bounds what is left is almost the barrier's, 1e-5.
GAP = 1.2e-5
LAST_STEP = 3e-3


def _evaluate(R: Tensor, E: Tensor, v: Tensor, active: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """G (column k is A_k v), the noises n_k = v' A_k v, and z_k = log n_k / v_k^2; z is 0 where not active."""
    noise = E @ v
    G = (R @ v + noise)[:, None] - R * v
    G = torch.where(torch.eye(v.numel(), dtype=torch.bool, device=v.device), noise, G)
    n = torch.where(active, torch.maximum(v @ G, SMALLEST_NOISE * v.square()), 1.0)
    return G, n, torch.where(active, n.log() - 2 * v.log(), 0.0)


def _solve(H: Tensor, fallback: Tensor, right: Tensor) -> Tensor:
    """H x = right, with ``fallback`` in place of an H that is not safely positive definite."""
    factor, failed = torch.linalg.cholesky_ex(H, check_errors=False)
    safe = (failed == 0) & (factor.diagonal().square() > SMALLEST_PIVOT * H.diagonal()).all()
    convex, failed = torch.linalg.cholesky_ex(fallback, check_errors=False)
    convex = torch.where(failed == 0, convex, float("nan"))
    return torch.cholesky_solve(right[:, None], torch.where(safe, factor, convex))[:, 0]


def max_min(S: Tensor, noise: Tensor, numerators: Tensor, active: Tensor) -> Tensor:
    """Log w of the weights that maximise min_k w_k^2 num_k / N_k(w) over the active tasks.

    N_k(w) = w' A_k w, where A_k is S with row and column k set to zero, plus ``noise``. A primal-dual interior-point
    method on: minimise sigma where z_k(log v) <= sigma, with z_k = -log of the ratio and w_k = v_k / sqrt(num_k), in
    float64; the best point until it has converged is returned. Where the Hessian of the Lagrangian is indefinite a convex
    part of it takes its place. The constants are by trial on random problems (up to 64 tasks, see
    tests/ops/gnr_problems.py): half converge within 8 iterations, nearly all within 20. Nothing is read on the host, so
    that all iterations are made here, the last ones in vain; the compiled backends stop.

    Args:
        S, noise: [T, T] float64; what stands in rows and columns of tasks that are not active is ignored.
        numerators: [T] float64, positive for the active tasks.
        active: [T] bool.

    Returns:
        [T] float64, up to a constant; 0 for the tasks that are not active, NaN for the others where a matrix is not finite.
    """
    d = torch.where(active, numerators, 1.0).rsqrt()
    pairs = active[:, None] & active
    scaling = d[:, None] * d
    # With zeros in their rows and columns, and no multiplier, the other tasks do not touch any of what follows.
    R, E = (torch.where(pairs, matrix * scaling, 0.0) for matrix in (S, noise))
    sound = (R.isfinite() & E.isfinite()).all()
    tasks = active.sum(dtype=d.dtype)
    eye = torch.eye(d.numel(), dtype=d.dtype, device=d.device)
    ones = pairs.to(d.dtype)

    v = torch.ones_like(d)
    G, n, z = _evaluate(R, E, v, active)
    worst = torch.where(active, z, -torch.inf).max()
    best, best_v = worst, v
    sigma = worst + 0.3
    pi = torch.where(active, 1 / tasks, 0.0)  # multipliers
    reach = torch.full_like(sigma, FARTHEST)
    converged = torch.zeros_like(sound)
    for _ in range(ITERATIONS):
        s = torch.where(active, sigma - z, 1.0)  # slacks, positive
        mu = torch.clamp_min(0.2 * (pi @ s), 1e-5) / tasks
        q = v[:, None] * G / n
        g = torch.where(pairs, 2 * (q - eye), 0.0)  # column k: gradient of z_k
        D = pi / s
        c = pi / n
        J1 = g @ D
        # Newton's step of the barrier problem in dl = d log v, once sigma, slacks and multipliers are eliminated:
        # H is sum_k pi_k times the Hessian of z_k, plus g diag(D) g' less its part along sigma, J1 J1' / sum D.
        SA = c.sum() * (R + E) - R * c - c[:, None] * R + torch.diag(c * R.diagonal())
        qD = q * D
        bounded = s.clamp_max(1.0)
        H = 2 * v[:, None] * v * SA + 4 * (q * (D - pi)) @ q.T - 4 * (qD + qD.T) - torch.outer(J1, J1) / D.sum()
        H = H + torch.diag(2 * pi + 4 * D + pi * bounded / (1 - bounded / 2))
        # What is left of it without the parts that are never convex: positive definite where all A_k are semidefinite.
        convex = H + 2 * (q * pi) @ q.T + torch.diag(torch.where(active, 0.1 * (pi + 0.01 / tasks) - 2 * pi, 0.0))
        # Along v the ratios do not change: `ones` fixes the scale. Tasks that are not active get a 1, and a step of 0.
        fixed = convex.diagonal().sum() / tasks * (ones + 1e-12 * eye) + torch.diag((~active).to(d.dtype))
        h = torch.where(active, mu / s, 0.0)
        hs = (h.sum() - 1) / D.sum()
        dl = _solve(H + fixed, convex + fixed, J1 * hs - g @ h)
        dl = torch.where(active, dl - (v * dl).sum() / torch.where(active, v, 0.0).sum(), 0.0)
        dsigma = hs + J1 @ dl / D.sum()
        ds = torch.where(active, dsigma - dl @ g, 0.0)
        dpi = torch.where(active, mu / s - pi - D * ds, 0.0)

        one, farthest = torch.ones_like(mu), dl.abs().max()
        limits = [one, (-dl).max() / 0.8, farthest / reach, (-ds / s).max() / 0.9]
        primal = 1 / torch.stack(limits).max()
        dual = 1 / torch.maximum(one, torch.where(active, -dpi / pi, 0.0).max() / 0.9)
        stepped = v * (1 + primal * dl)
        point = [
            stepped / (torch.where(active, stepped, 0.0).sum() / tasks),
            (pi + dual * dpi) / (pi + dual * dpi).sum(),
        ]
        point += _evaluate(R, E, point[0], active)
        reached = torch.where(active, point[-1], -torch.inf).max()
        expected = torch.where(active, point[1] * (s + primal * ds), 0.0).sum()
        point += [reached, torch.maximum(sigma + primal * dsigma, reached + 0.1 * expected)]
        # Steps that overshoot make the next ones shorter, and are not taken where it is by much: without this a few
        # problems in a thousand cycle.
        reach = torch.where(reached > worst + 0.01, primal * farthest / 3, 2 * reach).clamp_max(FARTHEST)
        rejected = reached > worst + 0.3
        here = (v, pi, G, n, z, worst, sigma)
        v, pi, G, n, z, worst, sigma = (torch.where(rejected, a, b) for a, b in zip(here, point, strict=True))
        better = (worst < best) & ~converged
        converged = converged | (~rejected & (primal == 1) & (farthest <= LAST_STEP) & (expected <= GAP))
        best, best_v = torch.where(better, worst, best), torch.where(better, v, best_v)
    return torch.where(active, torch.where(sound, (best_v * d).log(), float("nan")), 0.0)
