"""The Triton solvers of GNR's update on hard problems, against independent optima as in `tests.ops.test_gnr_optimum`.

The steps that these take, rejected ones above all, are rare: a solver that was wrong after such a step passed all shared cases.
"""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

from fastmtl.backends import triton as backend
from tests.gpu.executing import executed_by_ttsem
from tests.ops import gnr_problems
from tests.ops.test_gnr_optimum import HARD, is_best
from tests.shared import ALL_CASES

# In a scratch, which takes an executor longer: from 17 tasks on.
MANY = [("opposed", 375, 17), ("random-signs", 20390, 20)]


def update(M: Tensor, Q: Tensor, message: Tensor, state: Any, **options: Any) -> None:
    """As `fastmtl.ops.gnr_update`, by this backend."""
    if options["floor"] is None:
        options["floor"] = 1.0  # an objective that reads none
    options["loss_sum"] = False
    order = ("batch", "accumulation", "loss_sum", "objective", "decay", "step", "floor")
    backend.gnr_update(M, Q, message, *state, *[options[name] for name in order])


@pytest.mark.parametrize(("family", "index", "tasks"), HARD + (MANY if ALL_CASES else MANY[:1]))
def test_hard_problems(family: str, index: int, tasks: int):
    with executed_by_ttsem():
        assert is_best(gnr_problems.problem(family, index, tasks), update)


@pytest.mark.parametrize("tasks", [3, 20])
def test_far_more_samples_in_an_update_than_measured(tasks: int):
    with executed_by_ttsem():
        assert is_best(gnr_problems.problem("small-batches", 1, tasks, accumulation=64), update)
