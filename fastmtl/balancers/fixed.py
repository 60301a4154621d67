"""Fixed weights: equal weighting, a grid search's, or another run's static weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fastmtl.balancers.base import Balancer
from fastmtl.balancers.tasks import TasksLike


class FixedWeights(Balancer):
    """Weights that do not change.

    Args:
        tasks: the number of tasks, 1 to 64, or their names.
        weights: T positive numbers or a dict by name, used as given. Default: all 1.
    """

    def __init__(self, tasks: TasksLike, weights: Tensor | Sequence[float] | Mapping[str, float] | None = None):
        super().__init__(tasks)
        given = (
            torch.ones(len(self._tasks), dtype=torch.float32)
            if weights is None
            else self._tasks.numbers("weights", weights)
        )
        self.register_buffer("weights", given)
