"""Measuring without weighting: gradient norms, variance, noise scale and conflict of the tasks, for logs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from fastmtl.balancers.gnr import NoiseBalancer
from fastmtl.balancers.tasks import TasksLike
from fastmtl.sources import SourceLike, has_samples


class GradientStatistics(NoiseBalancer):
    """Fixed weights, and statistics of the tasks' gradients inside the ordinary backward.

    After a backward: `moments` (M and Q), `norms`, `variance`, `noise_scale`, `gnr` and `cosines`; `report` has them all.
    Where the source is bare parameters only `gram`, `norms` and `cosines` are measured.

    Args:
        tasks: the number of tasks, 1 to 64, or their names.
        source: as for `MaxGNR`, or parameters.
        weights: T positive numbers or a dict by name, used as given. Default: all 1.
        ema: decay of the averages over batches that `noise_scale` and `gnr` are ratios of, in [0, 1).
        loss_reduction, accumulation_steps, update_every: as for `MaxGNR`.
    """

    def __init__(
        self,
        tasks: TasksLike,
        *,
        source: SourceLike,
        weights: Tensor | Sequence[float] | Mapping[str, float] | None = None,
        ema: float = 0.95,
        loss_reduction: Literal["mean", "sum"] = "mean",
        accumulation_steps: int = 1,
        update_every: int = 1,
    ):
        super().__init__(
            tasks,
            source=source,
            statistics="moments" if has_samples(source) else "gram",
            objective="none",
            ema=ema,
            step=1.0,  # of weights that do not move
            floor=None,
            loss_reduction=loss_reduction,
            accumulation_steps=accumulation_steps,
            update_every=update_every,
        )
        if weights is not None:
            with torch.no_grad():
                self.weights.copy_(self._tasks.numbers("weights", weights))
