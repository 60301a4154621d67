"""The weights of `gnr_update` against independent optima: a conic certificate, or the best local search finds."""

import numpy as np
import pytest
import torch

from fastmtl import ops
from tests.ops import gnr_problems
from tests.ops.gnr_problems import FAMILIES, SIZES

TOLERANCE = 1e-3  # of GNR itself, not of its square
PROBLEMS = [(index, SIZES[index // 3 % len(SIZES)]) for index in range(105)]
LARGE = [(0, 31), (1, 33), (0, 64), (1, 64), (2, 64)]
# Simpler solvers cycle or stall here: without rejected steps, without shorter ones, without a convex fallback.
HARD = [
    ("random-signs", 20390, 16),
    ("random-signs", 21584, 10),
    ("conflicting", 730, 5),
    ("opposed", 375, 10),
    ("positive", 978, 4),
    ("opposed", 77, 3),
    ("zero-gradient", 87, 10),
]


@pytest.fixture(autouse=True)
def one_thread():
    """The reference is many small operations."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def solution(problem, update=ops.gnr_update):
    """The weights after one whole step from fresh."""
    tasks = len(problem.M)
    state = ops.gnr_state(tasks)
    _, message = ops.weigh([torch.ones(())] * tasks, state.weights, torch.ones(tasks, dtype=torch.bool))
    M, Q = torch.from_numpy(problem.M), torch.from_numpy(problem.Q)
    sizes = {"batch": problem.batch, "accumulation": problem.accumulation}
    floor = gnr_problems.OBJECTIVES[problem.objective] or None
    update(M, Q, message, state, **sizes, objective=problem.objective, decay=0.0, step=1.0, floor=floor)
    weights = state.weights.double().numpy()
    assert state.counters.tolist() == [1, 0], problem.name
    assert np.all(np.isfinite(weights)) and np.all(weights > 0), problem.name
    assert weights.sum() == pytest.approx(tasks, rel=1e-6), problem.name
    return weights


def is_best(problem, update=ops.gnr_update):
    """Whether no weights are better by more than the tolerance."""
    weights, game = solution(problem, update), gnr_problems.game(problem)
    if len(game.tasks) == 1:  # nothing to choose
        return True
    if gnr_problems.is_convex(game, weights):
        return gnr_problems.conic_bound(game, weights, TOLERANCE) > 0
    return gnr_problems.best_local(game, weights) <= (1 + TOLERANCE) * game.worst(weights)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_weights_are_better(backend, family):
    problems = [gnr_problems.problem(family, index, tasks) for index, tasks in PROBLEMS + LARGE]
    assert [problem.name for problem in problems if not is_best(problem)] == []


@pytest.mark.parametrize(("family", "index", "tasks"), HARD)
def test_hard_problems(backend, family, index, tasks):
    assert is_best(gnr_problems.problem(family, index, tasks))


@pytest.mark.parametrize("index", range(12))
def test_a_task_without_gradient_keeps_its_weight(backend, index):
    problem = gnr_problems.problem("zero-gradient", index, SIZES[index % len(SIZES)])
    weights, game = solution(problem), gnr_problems.game(problem)
    assert np.all(np.delete(weights, game.tasks) == 1)


@pytest.mark.parametrize("index", range(30))
def test_far_more_samples_in_an_update_than_measured(backend, index):
    """S, from small batches, cannot tell so little noise: as much of it is left as makes the problem one that has a solution."""
    problem = gnr_problems.problem("small-batches", index, SIZES[index % len(SIZES)], accumulation=64)
    assert is_best(problem)


def test_the_certificate_notices_a_worse_point():
    """The oracle must refuse weights that are 1 % away, and accept none that it can improve."""
    for family in ("positive", "conflicting", "drift"):
        problem = gnr_problems.problem(family, 3, 5)
        weights, game = solution(problem), gnr_problems.game(problem)
        worse = weights.copy()
        worse[game.tasks[0]] *= 1.05
        assert gnr_problems.conic_bound(game, worse, 1e-3) <= 0
        assert gnr_problems.best_local(game, worse) == pytest.approx(game.worst(weights), rel=1e-4)
