"""Balancers that measure gradient noise: moments of the per-sample gradients, and what follows from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from fastmtl import ops
from fastmtl.balancers.measuring import MeasuringBalancer
from fastmtl.balancers.numbers import fraction, whole
from fastmtl.balancers.tasks import TasksLike
from fastmtl.sources import Measured, SourceLike, Statistics

Objective: TypeAlias = Literal["relative", "maxmin", "intertask", "none"]


class NoiseBalancer(MeasuringBalancer):
    """Keeps the moments of the last measured batch and their averages over batches; `fastmtl.ops.gnr_update` is its rule.

    Attributes:
        weights: [T] float32, positive, sum T. Changed in place in each backward: clone them for a graph of your own.
        averages: [3, T, T] float64, exponentially weighted sums of S, C and M; ``shares`` [T, T] are the sums of their
            weights, so that ``averages / shares`` are means.
    """

    averages: Tensor
    shares: Tensor
    samples: Tensor
    counters: Tensor
    task_counters: Tensor

    def __init__(
        self,
        tasks: TasksLike,
        *,
        source: SourceLike,
        statistics: Statistics,
        objective: Objective,
        ema: float,
        step: float,
        floor: float | None,
        loss_reduction: Literal["mean", "sum"],
        accumulation_steps: int,
        update_every: int,
    ):
        super().__init__(tasks, source=source, statistics=statistics, update_every=update_every)
        self.objective: Objective = objective
        self.ema = fraction("ema", ema, zero=True, one=False)
        self.step = fraction("step", step, zero=False, one=True)
        self.floor = None if floor is None else fraction("floor", floor, zero=False, one=True)
        if loss_reduction not in ("mean", "sum"):
            raise ValueError(f"loss_reduction: expected 'mean' or 'sum', got {loss_reduction!r}")
        self.loss_reduction: Literal["mean", "sum"] = loss_reduction
        self.accumulation_steps = whole("accumulation_steps", accumulation_steps)
        for name, tensor in ops.gnr_state(len(self._tasks))._asdict().items():
            self.register_buffer("_moments" if name == "moments" else name, tensor)

    def _state(self) -> ops.GNRState:
        return ops.GNRState(
            *(self.get_buffer("_moments" if name == "moments" else name) for name in ops.GNRState._fields)
        )

    def _options(self, batch: int) -> dict[str, Any]:
        return {
            "batch": batch,
            "accumulation": self.accumulation_steps,
            "loss_sum": self.loss_reduction == "sum",
            "objective": self.objective,
            "decay": self.ema,
            "step": self.step,
            "floor": self.floor,
        }

    def take(self, measured: Measured, message: Tensor, batch: int) -> None:
        """One update of averages and weights; see `fastmtl.ops.gnr_update`."""
        samples = measured[1] if self.statistics == "moments" else None
        ops.gnr_update(measured[0], samples, message, self._state(), **self._options(batch))

    def sum_and_take(self, grads: Sequence[Tensor | None], message: Tensor, batch: int) -> Tensor:
        """The same in one pass with the sum; see `fastmtl.ops.sum_moments_update`."""
        return ops.sum_moments_update(grads, message, self._state(), **self._options(batch))[0]

    # -- looking at it -------------------------------------------------------------------------------------------------

    @property
    def moments(self) -> tuple[Tensor, Tensor]:
        """M and Q of the last measured batch, [T, T] float32, of the unweighted, unscaled losses; NaN before the first.

        M_kj is the inner product of the tasks' mini-batch gradients and Q_kj the mean over the samples of that of their
        per-sample gradients. Rows of a task that was absent keep their last values.

        Raises:
            RuntimeError: M alone is measured (see `norms` and `gram`).
        """
        self._needs_samples("moments")
        second, samples = self.get_buffer("_moments").clone().unbind()
        return second, samples

    @property
    def gram(self) -> Tensor:
        """M of the last measured batch, [T, T] float32: inner products of the tasks' mini-batch gradients."""
        return self.get_buffer("_moments")[0].clone()

    @property
    def norms(self) -> Tensor:
        """[T] float32, ||grad L_k|| of the last measured batch."""
        return self.get_buffer("_moments")[0].diagonal().clamp_min(0).sqrt()

    @property
    def variance(self) -> Tensor:
        """[T] float32, unbiased per-sample gradient variance C_kk (the trace of its covariance) of the last measured batch.

        Raises:
            RuntimeError: no per-sample gradients are measured.
        """
        self._needs_samples("variance")
        second, samples = (matrix.diagonal().double() for matrix in self.get_buffer("_moments"))
        batch = self.samples / self.accumulation_steps
        difference = samples - second
        # What is left of a float32 difference of nearly equal numbers is rounding.
        certain = torch.where(difference < 1e-6 * samples, torch.zeros_like(difference), difference)
        return (batch / (batch - 1) * certain).float()

    @property
    def gnr(self) -> Tensor:
        """[T] float32, GNR_k(w) of each task in the current weighted update, from the averaged S and C.

        The norm of the task's own part of the update over the root of its expected squared noise: the task's sampling
        noise and all other tasks' parts. See `fastmtl.ops.gradient_noise_ratio`.

        Raises:
            RuntimeError: no per-sample gradients are measured.
        """
        signal, covariance, _ = self._averaged("gnr")
        return ops.gradient_noise_ratio(signal, covariance, self.weights, self.samples)[0].float()

    @property
    def noise_scale(self) -> Tensor:
        """[T] float32, simple noise scale C_kk / S_kk in samples (McCandlish et al. 2018, arXiv 1812.06162, appendix A).

        A ratio of averages over batches; infinite where no signal has been seen above the noise.

        Raises:
            RuntimeError: no per-sample gradients are measured.
        """
        signal, covariance, _ = self._averaged("noise_scale")
        variance, squared = covariance.diagonal().clamp_min(0), signal.diagonal()
        return torch.where(squared <= 0, torch.inf, variance / squared).float()

    @property
    def cosines(self) -> Tensor:
        """[T] float32, cosine of each task's gradient with the weighted sum of all, of the last measured batch."""
        second, weights = self.get_buffer("_moments")[0].double().nan_to_num(0.0), self.weights.double()
        products = second @ weights
        return (products / (second.diagonal() * (weights @ products)).clamp_min(0).sqrt()).float()

    def _averaged(self, what: str) -> Tensor:
        self._needs_samples(what)
        return self.averages / self.shares

    def _needs_samples(self, what: str) -> None:
        if self.statistics != "moments":
            raise RuntimeError(
                f"{what}: no per-sample gradients are measured here (objective='intertask', or parameters as the source); "
                "norms, gram and cosines are there"
            )

    def report(self) -> dict[str, float]:
        """Scalars for a logger; waits for the device.

        Per task: ``weight``, ``norm``, ``cosine`` (with the weighted sum) and, where per-sample gradients are measured,
        ``variance``, ``gnr`` and ``noise_scale``; counts of updates with a ``zero_gradient`` or with ``no_gradient``. In all:
        ``updates`` and those refused as ``non_finite``.
        """
        report = super().report() | self._by_task("norm", self.norms) | self._by_task("cosine", self.cosines)
        if self.statistics == "moments":
            for what in ("variance", "gnr", "noise_scale"):
                report |= self._by_task(what, getattr(self, what))
        for kind, row in zip(("zero_gradient", "no_gradient"), self.task_counters.tolist(), strict=True):
            report |= {f"{kind}/{name}": count for name, count in zip(self.tasks, row, strict=True)}
        updates, non_finite = self.counters.tolist()
        return report | {"updates": updates, "non_finite": non_finite}
