"""GradNorm as in the paper's algorithm 1, by double backward in plain torch: the oracle for the trajectory of the weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

OPTIMIZERS = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}


class PaperGradNorm:
    """Task weights w as a leaf with its own optimiser; nothing here comes from fastmtl."""

    def __init__(
        self,
        tasks: int,
        *,
        alpha: float,
        lr: float,
        optimizer: str,
        initial_losses: Sequence[float] | None = None,
        min_weight: float = 1e-3,
    ):
        self.w = torch.ones(tasks, dtype=torch.float64, requires_grad=True)
        self.alpha, self.min_weight = alpha, min_weight
        self.optimizer = OPTIMIZERS[optimizer]([self.w], lr=lr)
        self.initial = None if initial_losses is None else torch.tensor(initial_losses, dtype=torch.float64)

    def total(self, losses: Sequence[Tensor]) -> Tensor:
        return sum(w * loss for w, loss in zip(self.w.tolist(), losses, strict=True))

    def update(self, losses: Sequence[Tensor], shared: Sequence[Tensor]) -> None:
        """One step of w. ``losses`` are of the weights' forward; their graph is kept."""
        values = torch.stack([loss.detach() for loss in losses])
        if self.initial is None:
            self.initial = values.clone()
        norms = []
        for k, loss in enumerate(losses):
            grads = torch.autograd.grad(self.w[k] * loss, shared, retain_graph=True, create_graph=True)
            norms.append(torch.cat([grad.reshape(-1) for grad in grads]).norm())
        gradient_norms = torch.stack(norms)
        ratios = values / self.initial
        target = gradient_norms.mean() * (ratios / ratios.mean()) ** self.alpha
        (self.w.grad,) = torch.autograd.grad((gradient_norms - target.detach()).abs().sum(), self.w, retain_graph=True)
        self.optimizer.step()
        with torch.no_grad():
            self.w.clamp_(min=self.min_weight)
            self.w *= len(self.w) / self.w.sum()
