"""Random problems for the weights of `gnr_update`, and an independent bound on what any weights could reach.

A problem is the moments of one step. `game` forms from them, in NumPy and apart from the library, what the weights are
for: maximise min_k GNR_k(w), GNR_k(w)^2 = w_k^2 num_k / (w' A_k w).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import clarabel
import numpy as np
from numpy.typing import NDArray
from scipy import optimize, sparse

Array = NDArray[np.float64]
Generator = np.random.Generator

# And their floors; that of maxmin is lower than its default, which makes the problems harder.
OBJECTIVES = {"relative": 0.05, "maxmin": 0.1, "intertask": 0.0}
SMALLEST_NOISE = 1e-9  # documented: a noise of less than this times w_k^2 num_k counts as this


@dataclass(frozen=True)
class Problem:
    """One step: M and Q of losses averaged over ``batch`` samples, unweighted."""

    name: str
    M: Array
    Q: Array
    batch: int
    accumulation: int
    objective: str


@dataclass(frozen=True)
class Game:
    """Noise matrices and numerators of the tasks that have a gradient; ``tasks`` are their indices."""

    A: Array
    numerators: Array
    tasks: Array

    def worst(self, weights: Array) -> float:
        """min_k GNR_k(w)."""
        w = weights[self.tasks]
        signal = w**2 * self.numerators
        return float(np.sqrt(np.min(signal / np.maximum(w @ self.A @ w, SMALLEST_NOISE * signal))))


def _noise(rng: Generator, tasks: int, shared: float = 0.5) -> Array:
    """Trace of the covariance of per-sample gradients of unit variance, correlated between tasks."""
    vectors = rng.standard_normal((tasks, 3 * tasks))
    vectors += shared * rng.standard_normal((1, 3 * tasks)) * rng.choice([-1.0, 1.0], (tasks, 1))
    return _unit(vectors) @ _unit(vectors).T


def _unit(vectors: Array) -> Array:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _orthogonal(rng: Generator, tasks: int) -> Array:
    return np.linalg.qr(rng.standard_normal((tasks, tasks)))[0] * rng.lognormal(size=(tasks, 1))


def _positive(rng: Generator, tasks: int) -> Array:
    return np.abs(rng.standard_normal((tasks, tasks + 2))) * rng.lognormal(size=(tasks, 1))


def _random_signs(rng: Generator, tasks: int) -> Array:
    return rng.standard_normal((tasks, int(rng.integers(2, 2 * tasks + 1)))) * rng.lognormal(size=(tasks, 1))


def _conflicting(rng: Generator, tasks: int) -> Array:
    vectors = _unit(rng.standard_normal((tasks, tasks + 1)))
    return vectors - rng.uniform(0.9, 1) * vectors.mean(0)


def _opposed(rng: Generator, tasks: int) -> Array:
    signs = np.where(np.arange(tasks) < max(1, tasks // 2), 1.0, -1.0)[:, None]
    return signs * rng.standard_normal((1, tasks)) + rng.uniform(0.01, 0.3) * rng.standard_normal((tasks, tasks))


def _identical(rng: Generator, tasks: int) -> Array:
    spread = rng.choice([0.0, 1e-6, 1e-2])
    return np.ones((tasks, 1)) * rng.standard_normal((1, 5)) + spread * rng.standard_normal((tasks, 5))


def _drift(rng: Generator, tasks: int) -> Array:
    return 3 * rng.standard_normal((1, tasks)) + rng.standard_normal((tasks, tasks)) * rng.lognormal(size=(tasks, 1))


SIGNALS: dict[str, Callable[[Generator, int], Array]] = {
    "orthogonal": _orthogonal,
    "positive": _positive,
    "random-signs": _random_signs,
    "conflicting": _conflicting,
    "opposed": _opposed,
    "identical": _identical,
    "drift": _drift,
}


def _exact(rng: Generator, signal: Array, batch: int) -> tuple[Array, Array]:
    """M and Q whose S and C are those of a population, with noise of 1e-6 to 100 times the signal."""
    tasks = len(signal)
    level = 10 ** rng.uniform(-6, 2) * 10 ** rng.uniform(-0.5, 0.5, tasks) * np.linalg.norm(signal, axis=1)
    C = batch * _noise(rng, tasks, rng.uniform(0, 2)) * level[:, None] * level
    M = signal @ signal.T + C / batch
    return M, M + (batch - 1) / batch * C


def _sampled(rng: Generator, signal: Array, batch: int, level: float) -> tuple[Array, Array]:
    """M and Q of one small batch: S = M - C/B is indefinite."""
    tasks, size = signal.shape
    samples = level * rng.standard_normal((tasks, batch, size)) + level * rng.standard_normal((1, batch, size))
    samples = samples * np.linalg.norm(signal, axis=1)[:, None, None] / np.sqrt(size) + signal[:, None]
    mean = samples.mean(1)
    return mean @ mean.T, np.einsum("kbp,jbp->kj", samples, samples) / batch


def problem(family: str, index: int, tasks: int, accumulation: int | None = None) -> Problem:
    """Problem number ``index`` of a family, always the same one; small batches are not accumulated unless asked for."""
    rng = np.random.default_rng([zlib.crc32(family.encode()), index, tasks])
    objective = list(OBJECTIVES)[index % len(OBJECTIVES)]
    batch = int(rng.integers(2, 65))
    drawn = int(rng.choice([1, 1, 4]))
    base = family if family in SIGNALS else str(rng.choice(list(SIGNALS)))
    signal = SIGNALS[base](rng, tasks)
    if family == "small-batches":
        drawn = 1
        M, Q = _sampled(rng, signal, batch, 10 ** rng.uniform(-1, 1))
    else:
        M, Q = _exact(rng, signal, batch)
    scales = np.ones(tasks)
    if family == "scales":
        scales = 10 ** rng.uniform(-12, 12, tasks)
    elif family == "zero-gradient":
        scales[rng.integers(tasks)] = 0
    pairs = scales[:, None] * scales
    return Problem(
        name=f"{family}-{index}-T{tasks}-{objective}",
        M=M * pairs,
        Q=Q * pairs,
        batch=batch,
        accumulation=drawn if accumulation is None else accumulation,
        objective=objective,
    )


FAMILIES = [*SIGNALS, "small-batches", "scales", "zero-gradient"]
SIZES = [2, 3, 4, 5, 7, 10, 16]


def _noise_left(S: Array, noise: Array, accumulation: int) -> float:
    """The least of 1 / accumulation to 1, in eight equal factors, that makes S + share * noise semidefinite."""
    tasks = np.flatnonzero((S + noise).diagonal() > 0)
    d = 1 / np.sqrt((S + noise).diagonal()[tasks])
    R, E = (matrix[np.ix_(tasks, tasks)] * d[:, None] * d for matrix in (S, noise))
    for step in range(8):
        share = float(accumulation) ** (step / 8 - 1)
        if np.linalg.eigvalsh(R + share * E).min() > -1e-9:
            return share
    return 1.0


def game(problem: Problem) -> Game:
    """What the weights are for, from the moments."""
    batch, left = problem.batch, 1.0
    if problem.objective == "intertask":
        S, C = problem.M, np.zeros_like(problem.M)
    else:
        C = batch / (batch - 1) * (problem.Q - problem.M)
        S = problem.M - C / batch
        rounding = C.diagonal() <= 1e-6 * (S + C).diagonal()
        C = np.where(rounding[:, None] | rounding, 0, C)
        left = _noise_left(S, C / batch, problem.accumulation)
    tasks = np.flatnonzero(S.diagonal() + C.diagonal() / batch > 0)
    C = C * left
    second = S.diagonal() + C.diagonal() / batch
    numerators = {"relative": C.diagonal() / batch, "maxmin": S.diagonal(), "intertask": second}[problem.objective]
    numerators = np.maximum(numerators, OBJECTIVES[problem.objective] * second)
    A = []
    for k in range(len(tasks)):
        others = S[np.ix_(tasks, tasks)].copy()
        others[k] = others[:, k] = 0
        A.append(others + C[np.ix_(tasks, tasks)] / batch)
    return Game(np.array(A), numerators[tasks], tasks)


def _around(game: Game, weights: Array) -> Array:
    """The matrices of w' A_k w / (w_k^2 num_k), for w = weights * u."""
    w = weights[game.tasks]
    return game.A * w[:, None] * w / (w**2 * game.numerators)[:, None, None]


def is_convex(game: Game, weights: Array) -> bool:
    """Whether all A_k are positive semidefinite, up to rounding."""
    values = np.linalg.eigvalsh(_around(game, weights))
    return bool(np.all(values[:, 0] >= -1e-9 * values[:, -1]))


def conic_bound(game: Game, weights: Array, by: float) -> float:
    """Where all A_k are positive semidefinite: above 0 proves that min_k GNR_k cannot be ``1 + by`` times that of ``weights``.

    With t that GNR and u = w / weights, the least r for which |t A_k^(1/2) u| <= u_k + r for all k, sum u = T, is
    bounded from below by the dual of this second-order cone program, a certificate that needs no trust in the
    solver's path. A w that reaches t would give r <= 0.
    """
    tasks = len(game.tasks)
    target = game.worst(weights) * (1 + by)
    values, vectors = np.linalg.eigh(_around(game, weights))
    roots = target * np.sqrt(np.maximum(values, 0))[:, :, None] * vectors.transpose(0, 2, 1)
    # Rows of A x + s = b, x = (u, r): sum u = T; u >= 0; the floor; then for each task (u_k + r, roots_k u) in the cone.
    rows, cones = [np.append(np.ones(tasks), 0.0)[None]], [clarabel.ZeroConeT(1), clarabel.NonnegativeConeT(tasks)]
    rows.append(np.hstack([-np.eye(tasks), np.zeros((tasks, 1))]))
    # The noise that counts is at least SMALLEST_NOISE u_k^2: floor u_k <= u_k + r.
    cones.append(clarabel.NonnegativeConeT(tasks))
    rows.append(np.hstack([(target * np.sqrt(SMALLEST_NOISE) - 1) * np.eye(tasks), -np.ones((tasks, 1))]))
    for k in range(tasks):
        kept = roots[k][np.linalg.norm(roots[k], axis=1) > 1e-12]
        rows.append(np.append(-np.eye(tasks)[k], -1.0)[None])
        rows.append(np.hstack([-kept, np.zeros((len(kept), 1))]))
        cones.append(clarabel.SecondOrderConeT(1 + len(kept)))
    A = sparse.csc_matrix(np.vstack(rows))
    b, q = np.zeros(A.shape[0]), np.append(np.zeros(tasks), 1.0)
    b[0] = tasks
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.max_threads = 1
    solution = clarabel.DefaultSolver(sparse.csc_matrix((tasks + 1, tasks + 1)), q, A, b, cones, settings).solve()
    if str(solution.status) not in ("Solved", "AlmostSolved"):
        raise AssertionError(f"the oracle did not converge: {solution.status}")
    return float(solution.obj_val_dual)


def best_local(game: Game, weights: Array, starts: int = 6) -> float:
    """The best min_k GNR_k that SLSQP finds from ``weights``, from equal GNR alone and from random points."""
    rng = np.random.default_rng(0)
    tasks = len(game.tasks)
    A = _around(game, weights)

    def z(x: Array) -> tuple[Array, Array]:
        u = np.exp(x[:-1])
        Au = A @ u
        n = np.maximum(Au @ u, SMALLEST_NOISE * u**2)
        slope = 2 * Au * u / n[:, None]
        slope[Au @ u < SMALLEST_NOISE * u**2] = 0
        return np.log(n) - 2 * x[:-1], slope - 2 * np.eye(tasks) * (Au @ u >= SMALLEST_NOISE * u**2)[:, None]

    constraint = {
        "type": "ineq",
        "fun": lambda x: x[-1] - z(x)[0],
        "jac": lambda x: np.hstack([-z(x)[1], np.ones((tasks, 1))]),
    }
    best = game.worst(weights)
    alone = -0.5 * np.log(np.maximum(weights[game.tasks] ** 2 * game.numerators, 1e-300))
    begins = [np.zeros(tasks), alone, *(rng.standard_normal((starts - 2, tasks)))]
    for begin in begins:
        x = np.append(begin, z(np.append(begin, 0.0))[0].max())
        found = optimize.minimize(
            lambda x: (x[-1], np.append(np.zeros(tasks), 1.0)),
            x,
            jac=True,
            constraints=[constraint],
            bounds=[(-20, 20)] * tasks + [(None, None)],
            method="SLSQP",
            options={"maxiter": 100, "ftol": 1e-10},
        )
        if np.all(np.isfinite(found.x)):
            point = weights.copy()
            point[game.tasks] *= np.exp(found.x[:-1] - found.x[:-1].mean())
            best = max(best, game.worst(point))
    return best
