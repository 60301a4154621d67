"""Dynamic weight average (Liu, Johns, Davison: End-to-End MTL with Attention, CVPR 2019, arXiv 1803.10704)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastmtl.balancers.base import Balancer, recomputing
from fastmtl.balancers.numbers import at_least
from fastmtl.balancers.tasks import Batch, TasksLike


class DynamicWeightAverage(Balancer):
    """Weights from how much each task's epoch loss fell: w_k = T softmax_k(L_k(t-1) / L_k(t-2) / tau) (paper, eq. 7).

    L is a task's mean loss over an epoch; the weights are 1 in the first two. Call ``balancer.end_epoch()`` after each epoch
    (the other balancers have it too, and do nothing).

    Args:
        tasks: the number of tasks, 1 to 64, or their names.
        temperature: tau of the softmax, > 0; 2 in the paper. Larger values make the weights more equal.

    Attributes:
        weights: [T] float32, positive, sum T.

    Non-finite losses are left out of an epoch's mean. A task whose mean loss is not positive, or that was absent for an
    epoch, counts with the ratio 1.
    """

    weights: Tensor
    _loss_sum: Tensor
    _loss_count: Tensor
    _epoch_losses: Tensor

    def __init__(self, tasks: TasksLike, temperature: float = 2.0):
        super().__init__(tasks)
        self.temperature = at_least("temperature", temperature, 0.0, low_allowed=False)
        count = len(self._tasks)
        self.register_buffer("weights", torch.ones(count, dtype=torch.float32))
        self.register_buffer("_loss_sum", torch.zeros(count, dtype=torch.float64))
        self.register_buffer("_loss_count", torch.zeros(count, dtype=torch.int64))
        self.register_buffer("_epoch_losses", torch.full((2, count), math.nan, dtype=torch.float64))

    def _weigh(self, batch: Batch, token: Tensor | None) -> Tensor:
        if self._training_now() and not recomputing():
            with torch.no_grad():
                values = torch.stack([loss.detach().reshape(()).double() for loss in batch.losses])
                counted = batch.present & values.isfinite()
                self._loss_sum += torch.where(counted, values, 0.0)
                self._loss_count += counted
        return super()._weigh(batch, token)

    def end_epoch(self) -> None:
        """Set the weights from the mean losses of the last two epochs and begin a new one; nothing is read on the host."""
        with torch.no_grad():
            self._epoch_losses[0] = self._epoch_losses[1]
            self._epoch_losses[1] = self._loss_sum / self._loss_count  # NaN where a task was absent
            self._loss_sum.zero_()
            self._loss_count.zero_()
            before, last = self._epoch_losses
            ratios = torch.where((before > 0) & (last > 0), last / before, 1.0)
            shares = torch.softmax(ratios / self.temperature, 0).clamp_min(torch.finfo(torch.float32).tiny)
            self.weights.copy_(len(self._tasks) * shares)

    def report(self) -> dict[str, float]:
        """Scalars for a logger: ``weight`` and ``epoch_loss`` (the last complete epoch's mean; NaN before) per task."""
        return super().report() | self._by_task("epoch_loss", self._epoch_losses[1])
