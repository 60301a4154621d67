"""Uncertainty weighting (Kendall, Gal, Cipolla: Multi-Task Learning Using Uncertainty, CVPR 2018, arXiv 1705.07115)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fastmtl.balancers.base import Balancer
from fastmtl.balancers.tasks import Losses, Presence, TasksLike


class UncertaintyWeighting(Balancer):
    """Losses weighted by learned homoscedastic uncertainty: sum_k c_k exp(-s_k) L_k + s_k / 2 with s_k = log sigma_k^2.

    c_k is 1/2 for regression (squared error) and 1 for classification (cross entropy). The s_k are parameters: give
    them to the optimiser, ``Adam([*model.parameters(), *balancer.parameters()])``. Adam moves them by about its lr a step: in
    short trainings give them a group of their own with a larger lr, such as 0.025.

    Args:
        tasks: the number of tasks, 1 to 64, or their names.
        kinds: ``"regression"`` or ``"classification"``: one for all, T of them, or a dict by name.

    Attributes:
        log_variances: [T] float32, s_k, starting at 0.
        weights: [T] float32, c_k exp(-s_k), positive; they need not sum to T.
    """

    def __init__(self, tasks: TasksLike, *, kinds: str | Sequence[str] | Mapping[str, str]):
        super().__init__(tasks)
        self.kinds = self._tasks.choices("kinds", kinds, ("regression", "classification"))
        factors = torch.tensor([0.5 if kind == "regression" else 1.0 for kind in self.kinds], dtype=torch.float32)
        self.register_buffer("_factors", factors, persistent=False)
        self.log_variances = nn.Parameter(torch.zeros(len(self._tasks), dtype=torch.float32))

    @property
    def weights(self) -> Tensor:  # type: ignore[override]
        """The current factors of the losses, without gradient."""
        return self._weights().detach()

    def _weights(self) -> Tensor:
        factors: Tensor = self.get_buffer("_factors")
        return factors * torch.exp(-self.log_variances)

    def forward(self, losses: Losses, *, present: Presence | None = None) -> Tensor:
        """The scalar sum over the present tasks of c_k exp(-s_k) L_k + s_k / 2; arguments as for `Balancer.forward`."""
        batch = self._batch(losses, present)
        wide = any(loss.dtype == torch.float64 for loss in batch.losses)
        values = torch.stack([loss.reshape(()).to(torch.float64 if wide else torch.float32) for loss in batch.losses])
        # Masked before the product too: the gradient of a factor would be the loss of the absent task, whatever it is.
        values = torch.where(batch.present, values, torch.zeros_like(values))
        terms = self._weights() * values + self.log_variances / 2
        return torch.where(batch.present, terms, torch.zeros_like(terms)).sum()

    def report(self) -> dict[str, float]:
        """Scalars for a logger: ``weight`` and ``log_variance`` per task."""
        return super().report() | self._by_task("log_variance", self.log_variances.detach())
