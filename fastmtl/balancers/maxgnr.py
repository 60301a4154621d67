"""GNR weighting, after MaxGNR (Fan, Chen, Wang, Wang, Zhang: MaxGNR, ACCV 2022, arXiv 2302.09352)."""

from __future__ import annotations

from typing import Literal

from fastmtl.balancers.gnr import NoiseBalancer
from fastmtl.balancers.tasks import TasksLike
from fastmtl.sources import SourceLike

OBJECTIVES = ("relative", "maxmin", "intertask")


class MaxGNR(NoiseBalancer):
    """Task weights that maximise the smallest gradient-to-noise ratio (GNR) of the tasks.

    To each task the other tasks' gradients are noise (inter-task gradient noise), besides the sampling noise of its own.
    With S the inner products of the tasks' true gradients, C the covariance of their per-sample gradients and B the
    samples of an update, task k's GNR in the update sum_j w_j g_j is

        GNR_k(w)^2 = w_k^2 S_kk / N_k(w),   N_k(w) = E || sum_j w_j g_j - w_k grad L_k ||^2 = w' A_k w,

    A_k being S with row and column k set to zero, plus C / B. S and C are unbiased estimates from every batch, averaged
    over batches; the weights that maximise min_k are found on the device by an interior-point method, and the current weights
    move towards them. They are used from the next step on: weights that were chosen from the batch they then train on would
    bias its gradient.

    The paper's abstract is the source of the idea. Its own equations were not available to us: this formulation is ours,
    and no number of the paper is claimed to be reproduced by it.

    Args:
        tasks: the number of tasks, 1 to 64, or their names.
        source: where gradients are measured. A layer, or a list of layers: linear, convolution, embedding and norm layers
            that are shared by the tasks, used once, with samples first; shared operations may follow before the fork.
            ``"features"``: a shift added to every sample's features; nearly free, but the mean feature gradient can vanish
            where that of the parameters does not. Parameters: with the objective ``"intertask"``.
        objective: ``"relative"``: the share of its single-task GNR that each task keeps, so that all suffer equally from
            the others. ``"maxmin"``: GNR itself; tasks without information are held back only by ``floor``.
            ``"intertask"``: GNR without the sampling noise: needs no variance.
        ema: decay of the averages of S and C, in [0, 1); 0 takes the last batch alone.
        step: how far log w moves towards the solution in a step, in (0, 1].
        floor: ``"relative"``: least share of a task's gradient that counts as its noise (default 0.05); ``"maxmin"``: as its
            signal (default 0.5: a task of pure noise gets at most twice the power of the others in the update; the
            estimates of S alone would give it everything). Bounds the weight of tasks with hardly any.
        loss_reduction: whether the losses are means or sums over the samples. A mean over a number of elements that
            varies from batch to batch and from sample to sample (valid pixels) measures M and Q exactly, but biases S and C,
            whose samples then count unequally: divide by a fixed expected number instead.
        accumulation_steps: backwards that are added up before the optimiser steps; the noise of an update is that of
            ``accumulation_steps`` batches, as far as S, which stays as uncertain as the batches that it is measured on, can
            tell so little: with many steps average longer (``ema``).
        update_every: measure and update in every n-th step only; the steps between cost nothing.

    Attributes:
        weights: [T] float32, positive, sum T. Changed in place in each backward: clone them for a graph of your own.

    After a backward `moments`, `norms`, `variance`, `gnr`, `noise_scale` and `cosines` say what was measured. A step with a
    non-finite loss, gradient or scale changes nothing and is counted in `report`. A batch of one sample has no variance:
    the fork raises. The objectives assume independent samples: batch normalisation in training, or a loss that compares
    samples of a batch, mixes them (a warning says so for the first).
    """

    def __init__(
        self,
        tasks: TasksLike,
        *,
        source: SourceLike,
        objective: Literal["relative", "maxmin", "intertask"] = "relative",
        ema: float = 0.95,
        step: float = 0.1,
        floor: float | None = None,
        loss_reduction: Literal["mean", "sum"] = "mean",
        accumulation_steps: int = 1,
        update_every: int = 1,
    ):
        if objective not in OBJECTIVES:
            raise ValueError(f"objective: expected one of {', '.join(OBJECTIVES)}, got {objective!r}")
        super().__init__(
            tasks,
            source=source,
            statistics="gram" if objective == "intertask" else "moments",
            objective=objective,
            ema=ema,
            step=step,
            floor=floor,
            loss_reduction=loss_reduction,
            accumulation_steps=accumulation_steps,
            update_every=update_every,
        )

    def extra_repr(self) -> str:
        """For ``print``."""
        return f"{super().extra_repr()}, objective={self.objective!r}, ema={self.ema}, step={self.step}"
