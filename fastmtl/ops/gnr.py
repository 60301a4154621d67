"""The update of the GNR weights as an op, its state, and the statistics that it is made of.

After MaxGNR (Fan et al., ACCV 2022, arXiv 2302.09352), whose idea is to choose task weights that maximise each task's
gradient-to-noise ratio, other tasks' gradients being part of the noise. The paper's own equations were not available:
the formulation here is ours, and no number of the paper is claimed as reproduced.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from fastmtl.ops.arguments import as_lists

_FLOORS = {"relative": 0.05, "maxmin": 0.5, "intertask": 0.0, "none": 0.0}  # the last two do not use it


class GNRState(NamedTuple):
    """What the GNR weights remember between steps; every tensor is changed in place by `gnr_update`.

    A pair of tasks is averaged in the steps that both took part in; ``averages / shares`` is the average without the
    bias of its start at zero.
    """

    weights: Tensor  # [T] float32, positive, sum T
    moments: Tensor  # [2, T, T] float32, the last measured M and Q of the unweighted mean losses; NaN: not measured
    averages: Tensor  # [3, T, T] float64, exponentially weighted sums of S, C and M
    shares: Tensor  # [T, T] float64, 1 - decay^n after n steps of the pair
    samples: Tensor  # [1] int64, effective batch of the last accepted step
    counters: Tensor  # [2] int64: accepted steps, steps refused for non-finite losses or gradients
    task_counters: Tensor  # [2, T] int64: steps with a zero gradient, without a gradient


def gnr_state(tasks: int, device: torch.device | str | None = None) -> GNRState:
    """A fresh state for ``tasks`` tasks: weights 1, nothing measured."""
    zeros = lambda *shape, dtype: torch.zeros(shape, dtype=dtype, device=device)  # noqa: E731
    return GNRState(
        weights=torch.ones(tasks, dtype=torch.float32, device=device),
        moments=torch.full((2, tasks, tasks), float("nan"), dtype=torch.float32, device=device),
        averages=zeros(3, tasks, tasks, dtype=torch.float64),
        shares=zeros(tasks, tasks, dtype=torch.float64),
        samples=zeros(1, dtype=torch.int64),
        counters=zeros(2, dtype=torch.int64),
        task_counters=zeros(2, tasks, dtype=torch.int64),
    )


def _check_square(name: str, matrix: Tensor, like: Tensor | None = None) -> None:
    if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"{name}: expected a [T, T] matrix, got {list(matrix.shape)}")
    if matrix.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name}: expected float32 or float64, got {matrix.dtype}")
    if like is not None and (matrix.shape != like.shape or matrix.dtype != like.dtype):
        raise ValueError(f"{name}: expected {list(like.shape)} {like.dtype}, got {list(matrix.shape)} {matrix.dtype}")


def _check_count(name: str, value: int, least: int, why: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected an int, got {value!r}")
    if value < least:
        raise ValueError(f"{name}: expected at least {least}{why}, got {value}")


def covariance(M: Tensor, Q: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    """Unbiased covariance of the per-sample gradients and Gram matrix of the population's gradients, on the device.

    With g_kb the gradient of task k for sample b, M_kj = <mean_b g_kb, mean_b g_jb> and Q_kj = mean_b <g_kb, g_jb>:
    C = B / (B - 1) (Q - M) is the trace of the cross-covariance of tasks k and j, and S = M - C / B estimates the
    inner product of their population gradients. On one batch S_kk can be negative: average first, clamp after.

    Args:
        M, Q: [T, T] float32 or float64, as of `sum_moments` over losses that are averaged over the batch.
        batch: B, the number of samples, at least 2.

    Returns:
        C and S, of the shape and dtype of M.

    Raises:
        TypeError: another dtype, or a batch that is not an int.
        ValueError: other shapes, two dtypes, or fewer than two samples: one sample has no variance.
    """
    _check_square("M", M)
    _check_square("Q", Q, M)
    _check_count("batch", batch, 2, " (variance needs at least two samples)")
    C = batch / (batch - 1) * (Q - M)
    return C, M - C / batch


def gradient_noise_ratio(S: Tensor, C: Tensor, weights: Tensor, batch: int | Tensor) -> tuple[Tensor, Tensor]:
    """GNR of every task under ``weights``, and the one that it would have alone; on the device.

    For task k the update sum_j w_j g_j is the signal w_k grad L_k, its own sampling noise, and the other tasks'
    gradients: N_k(w) = E||sum_j w_j g_j - w_k grad L_k||^2 = w' A_k w, where A_k is S with row and column k set to
    zero, plus C / B. GNR_k(w) = w_k sqrt(S_kk / N_k(w)); alone it is sqrt(S_kk / (C_kk / B)). This formulation is
    ours, after the text of MaxGNR (arXiv 2302.09352), whose equations were not available.

    Args:
        S: [T, T] float32 or float64, Gram matrix of the population's gradients, as of `covariance`.
        C: like S, covariance of the per-sample gradients.
        weights: [T] floating point.
        batch: B, the samples of the whole update (over ranks and accumulated micro-batches), at least 1; a tensor with one
            element is not read.

    Returns:
        Two [T] tensors of the dtype of S. 0 where S_kk <= 0; infinite where there is a signal and no noise (an estimated
        noise below 0 is none); NaN where S or C is.

    Raises:
        TypeError: another dtype of S, or a batch that is not an int.
        ValueError: other shapes, or a batch below 1.
    """
    _check_square("S", S)
    _check_square("C", C, S)
    if not isinstance(batch, Tensor):
        _check_count("batch", batch, 1)
    if weights.shape != S.shape[:1]:
        raise ValueError(f"weights: expected shape {list(S.shape[:1])}, got {list(weights.shape)}")
    w, signals, noise = weights.double(), S.double(), C.double() / batch
    others = w * (1 - torch.eye(w.numel(), dtype=w.dtype, device=w.device))  # row k: w with w_k = 0
    total = ((others @ signals) * others).sum(1) + w @ noise @ w
    power = signals.diagonal().clamp_min(0)

    def root(signal: Tensor, against: Tensor) -> Tensor:
        # 0 / 0 is no signal, hence 0; a signal over 0 is infinite by itself, and what is unknown stays NaN
        return torch.where(signal <= 0, 0.0, signal / against.clamp_min(0)).sqrt().to(S.dtype)

    return root(w.square() * power, total), root(power, noise.diagonal())


def gnr_update(
    M: Tensor,
    Q: Tensor | None,
    message: Tensor,
    state: GNRState,
    *,
    batch: int,
    accumulation: int = 1,
    loss_sum: bool = False,
    objective: Literal["relative", "maxmin", "intertask", "none"] = "relative",
    decay: float = 0.95,
    step: float = 0.1,
    floor: float | None = None,
) -> None:
    """One step of the GNR weights, in place; nothing is read on the host.

    From M and Q follow C and S (see `covariance`); S, C and M are averaged over steps, and the weights take a step in
    log w towards those that maximise min_k of w_k^2 num_k / N_k(w) for the averages, with N_k as in
    `gradient_noise_ratio` and the effective batch B = ``batch * accumulation``. The new weights are for the next step.

    - ``"relative"``: num_k = max(C_kk / B, floor M_kk), the share of its GNR alone that each task keeps.
    - ``"maxmin"``: num_k = max(S_kk, floor M_kk), the GNR itself.
    - ``"intertask"``: num_k = M_kk, and the other tasks' gradients are the only noise: needs no Q.
    - ``"none"``: measures and averages; the weights stay.

    Here M_kk = S_kk + C_kk / B of the averages; C_kk below 1e-6 (S_kk + C_kk) is rounding and counts as 0, with its row
    and column. A noise below 1e-9 w_k^2 num_k counts as that. With ``accumulation`` the noise of an update is C / B, or as much
    more, up to that of one micro-batch, as makes S + noise positive semidefinite: the error of S, which comes from
    single micro-batches, can be larger than the noise that is left. The optimum is global where every A_k is positive
    semidefinite, as it is for exact moments and nearly always for estimates; else it is a local one.

    - Tasks that are absent, got no gradient, or have M_kk <= 0 keep their weight; the others share what they had.
    - A non-finite loss, moment (beyond float32 included) or scale of a present task changes nothing but ``counters[1]``.
      A scale of 0, or a message that is not valid, changes nothing.
    - Without per-sample moments (Q None, or one sample) the averages of S and C become NaN, unknown, for good.

    After MaxGNR (Fan et al., ACCV 2022, arXiv 2302.09352). The paper's own equations were not available: this
    formulation is ours, and no number of the paper is claimed as reproduced.

    Args:
        M, Q: [T, T] float32 or float64, as `sum_moments` gives them for the gradients as they arrived: of
            scale * w_k * grad L_k. Q may be None for ``"intertask"`` and ``"none"``.
        message: [2 + 3T] float32, from `weigh` and `with_scale`. A presence of 2 says "present, but got no gradient".
        state: changed in place; all tensors on one device.
        batch: samples behind these moments.
        accumulation: micro-batches of an update, times the ranks.
        loss_sum: the losses are sums over the batch, not means.
        objective: what the weights are for, see above.
        decay: of the averages, in [0, 1).
        step: of log w towards the solution, in (0, 1].
        floor: least numerator as a share of M_kk, in (0, 1]: bounds what a task without noise (relative) or without
            signal (maxmin) can gain. Default: 0.05 for ``"relative"``, 0.5 for ``"maxmin"``; the others do not use it.

    Raises:
        TypeError: moments of another dtype, counts that are not ints.
        ValueError: an unknown objective; moments or a message of other shapes; numbers out of their range;
            ``"relative"`` or ``"maxmin"`` without per-sample moments or with one sample: variance needs two.
    """
    tasks = state.weights.numel()
    _check_square("M", M)
    if M.shape[0] != tasks:
        raise ValueError(f"M: expected shape [{tasks}, {tasks}] for {tasks} tasks, got {list(M.shape)}")
    if Q is not None:
        _check_square("Q", Q, M)
    elif objective in ("relative", "maxmin"):
        raise ValueError(f"Q: objective {objective!r} needs per-sample moments, got None; 'intertask' needs none")
    arguments = _arguments(message, state, batch, accumulation, loss_sum, objective, decay, step, floor)
    torch.ops.fastmtl.gnr_update(M.detach(), None if Q is None else Q.detach(), *arguments)


def sum_moments_update(
    grads: Sequence[Tensor | None],
    message: Tensor,
    state: GNRState,
    *,
    batch: int,
    accumulation: int = 1,
    loss_sum: bool = False,
    objective: Literal["relative", "maxmin", "intertask", "none"] = "relative",
    decay: float = 0.95,
    step: float = 0.1,
    floor: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`sum_moments` and then `gnr_update` with the moments; on a GPU in one launch.

    Args:
        grads: T tensors [B, ...] of one shape, as they arrived (None: no gradient, counts as zero).
        message, state, batch, accumulation, loss_sum, objective, decay, step, floor: as for `gnr_update`.

    Returns:
        The sum of the gradients, M and Q.

    Raises:
        ValueError, TypeError: as for `sum_moments` and `gnr_update`.
    """
    lists = as_lists(grads)
    lists.check_tasks(state.weights.numel())
    lists.check_batched()
    arguments = _arguments(message, state, batch, accumulation, loss_sum, objective, decay, step, floor)
    total, M, Q = torch.ops.fastmtl.sum_moments_update(lists.flat, *arguments)
    return total, M, Q


def _arguments(
    message: Tensor,
    state: GNRState,
    batch: int,
    accumulation: int,
    loss_sum: bool,
    objective: str,
    decay: float,
    step: float,
    floor: float | None,
) -> tuple[Any, ...]:
    """What the operators take after the moments or the gradients, checked."""
    tasks = state.weights.numel()
    if objective not in _FLOORS:
        raise ValueError(f"objective: expected one of {', '.join(_FLOORS)}, got {objective!r}")
    if message.shape != (2 + 3 * tasks,):
        raise ValueError(f"message: expected shape [{2 + 3 * tasks}] for {tasks} tasks, got {list(message.shape)}")
    _check_count("batch", batch, 1)
    _check_count("accumulation", accumulation, 1)
    used = objective in ("relative", "maxmin")
    if used and batch == 1:
        raise ValueError(
            f"batch: objective {objective!r} needs a variance, and variance needs at least two samples, got 1"
        )
    floor = _FLOORS[objective] if floor is None else floor
    for name, value, valid, expected in (
        ("decay", decay, 0 <= decay < 1, "a number in [0, 1)"),
        ("step", step, 0 < step <= 1, "a number in (0, 1]"),
        ("floor", floor, (0 < floor <= 1) or not used, "a number in (0, 1]"),
    ):
        if not (valid and math.isfinite(value)):
            raise ValueError(f"{name}: expected {expected}, got {value!r}")
    return (message.detach(), *state, batch, accumulation, loss_sum, objective, decay, step, floor)
