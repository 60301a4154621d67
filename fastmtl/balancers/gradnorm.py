"""GradNorm (Chen, Badrinarayanan, Lee, Rabinovich: GradNorm, ICML 2018, arXiv 1711.02257)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from fastmtl import ops
from fastmtl.balancers.measuring import MeasuringBalancer
from fastmtl.balancers.numbers import at_least
from fastmtl.balancers.tasks import TasksLike
from fastmtl.sources import Measured, SourceLike

_LEFT_OUT = {
    0: "its loss cannot be compared with L(0): it was negative, or has not been positive yet. GradNorm's training rates need "
    "losses that start above 0 and do not fall below; give initial_losses, shift the loss, or use alpha=0",
    2: "its loss was given, but no gradient reached its view. Did its head read the features instead of its view, or another "
    "task's view? Pass present= where the task is absent",
}


class GradNorm(MeasuringBalancer):
    """Task weights that equalise the tasks' gradient norms, moderated by how fast each trains (algorithm 1 of the paper).

    With G_k = w_k ||grad L_k|| at the source, r_k = (L_k / L_k(0)) / mean_j (L_j / L_j(0)) and the target mean(G)
    r_k^alpha, the weights take one optimiser step down sum_k |G_k - target_k| in each backward, in closed form and
    without a second backward; then they are scaled to the sum T. A step trains with the weights from before its update.

    Args:
        tasks: the number of tasks, 1 to 64, or their names.
        alpha: strength of the pull of slow tasks, >= 0. 0 makes gradient norms equal; the paper used 0.12 (toy), 1.5
            (NYUv2) and 0.2 to 0.3 (facial landmarks), others found 0 best on Cityscapes (Liu et al. 2021). There is
            no good default.
        source: where norms are measured. ``"features"``: the gradient of the features, nearly free. A layer
            (``nn.Linear``, ``nn.Conv2d``, ...): its weight and bias together, the paper's choice for the last shared
            layer; shared operations may follow it before the fork. A parameter or a list: those together.
        lr: step size of the weights (0.025 in the paper). Adam moves every weight by about ``lr`` a step, so small weights
            fluctuate; `static_weights` is steadier.
        optimizer: ``"adam"`` (the paper's, betas 0.9 and 0.999) or ``"sgd"``.
        initial_losses: L_k(0), positive: T numbers or a dict by name, such as log(C) for cross entropy over C classes
            (paper, footnote 2). Default: each task's first positive loss.
        min_weight: floor of the weights before they are scaled to the sum T, in (0, 1).
        update_every: measure and update in every n-th step only; the steps between cost nothing.

    Attributes:
        weights: [T] float32, positive, sum T. Changed in place in each backward: clone them for a graph of your own.
        norms: [T] float32, the last ||grad L_k|| (unweighted, without the loss scale).
        rates: [T] float32, the last r_k.

    A step with a non-finite loss, gradient or scale changes nothing and is counted in `report`. GradNorm is the
    subject of US patent 11,537,895 B2.
    """

    norms: Tensor
    rates: Tensor
    weight_sum: Tensor
    counters: Tensor
    task_counters: Tensor

    def __init__(
        self,
        tasks: TasksLike,
        *,
        alpha: float,
        source: SourceLike = "features",
        lr: float = 0.025,
        optimizer: Literal["adam", "sgd"] = "adam",
        initial_losses: Tensor | Sequence[float] | Mapping[str, float] | None = None,
        min_weight: float = 1e-3,
        update_every: int = 1,
    ):
        super().__init__(tasks, source=source, statistics="norms", update_every=update_every)
        self.alpha = at_least("alpha", alpha, 0.0, low_allowed=True)
        self.lr = at_least("lr", lr, 0.0, low_allowed=True)
        self.min_weight = at_least("min_weight", min_weight, 0.0, low_allowed=False)
        if self.min_weight >= 1:
            raise ValueError(f"min_weight: expected less than 1, the mean of the weights, got {min_weight!r}")
        if optimizer not in ("adam", "sgd"):
            raise ValueError(f"optimizer: expected 'adam' or 'sgd', got {optimizer!r}")
        self.optimizer: Literal["adam", "sgd"] = optimizer
        for name, tensor in ops.gradnorm_state(len(self._tasks))._asdict().items():
            self.register_buffer(name, tensor)
        if initial_losses is not None:
            self.get_buffer("initial_losses").copy_(self._tasks.numbers("initial_losses", initial_losses))
        self._warned: set[tuple[int, int]] = set()

    def _state(self) -> ops.GradNormState:
        return ops.GradNormState(*(getattr(self, name) for name in ops.GradNormState._fields))

    def _options(self) -> dict[str, Any]:
        return {"alpha": self.alpha, "lr": self.lr, "optimizer": self.optimizer, "min_weight": self.min_weight}

    def take(self, measured: Measured, message: Tensor, batch: int) -> None:
        """One step of the weights; see `fastmtl.ops.gradnorm_update`."""
        (squared_norms,) = measured
        ops.gradnorm_update(squared_norms, message, self._state(), **self._options())
        self._look()

    def sum_and_take(self, grads: Sequence[Tensor | None], message: Tensor, batch: int) -> Tensor:
        """The same in one pass with the sum; see `fastmtl.ops.sum_norms_update`."""
        total, _ = ops.sum_norms_update(grads, message, self._state(), **self._options())
        self._look()
        return total

    def _look(self) -> None:
        # On the CPU looking costs nothing; on other devices `report` looks.
        if not torch.compiler.is_compiling() and self.task_counters.device.type == "cpu":
            self._warn_of_left_out(self.task_counters.tolist())

    def _warn_of_left_out(self, counts: list[list[int]]) -> None:
        for kind, reason in _LEFT_OUT.items():
            for task, count in enumerate(counts[kind]):
                if count and (kind, task) not in self._warned:
                    self._warned.add((kind, task))
                    warnings.warn(f"task {self.tasks[task]!r} is left out of weighting: {reason}", stacklevel=2)

    def static_weights(self) -> Tensor:
        """The weights averaged over the measured steps so far, for a second run with fixed weights (paper, section 5.4).

        Returns:
            [T] float32, sum T; the current weights where no step was measured yet.
        """
        updates = self.counters[0]
        return torch.where(updates > 0, self.weight_sum / updates.clamp_min(1), self.weights.double()).float()

    def report(self) -> dict[str, float]:
        """Scalars for a logger; waits for the device.

        Per task: ``weight``, ``norm`` (the last gradient norm), ``rate`` (the last r_k), and counts of updates in which the task
        had an ``unusable_loss``, a ``zero_gradient`` (normal now and then; always: its view was not read) or ``no_gradient``.
        In all: ``updates`` and those refused as ``non_finite``.
        """
        counts = self.task_counters.tolist()
        self._warn_of_left_out(counts)
        report = super().report() | self._by_task("norm", self.norms) | self._by_task("rate", self.rates)
        for kind, row in zip(("unusable_loss", "zero_gradient", "no_gradient"), counts, strict=True):
            report |= {f"{kind}/{name}": count for name, count in zip(self.tasks, row, strict=True)}
        updates, non_finite = self.counters.tolist()
        return report | {"updates": updates, "non_finite": non_finite}

    def extra_repr(self) -> str:
        """For ``print``."""
        return f"{super().extra_repr()}, alpha={self.alpha}, lr={self.lr}, optimizer={self.optimizer!r}"
