"""The update of the weights that maximise the tasks' gradient-to-noise ratios."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmtl.backends.reference.max_min import max_min

ROUNDING = 1e-6  # a variance below this times the mean square is float32 rounding


# From 1 / accumulation to 1: how little of the sampling noise may be left in an update of several micro-batches.
SHARES = 9


def _noise_left(S: Tensor, noise: Tensor, active: Tensor, accumulation: int) -> Tensor:
    """The share of a micro-batch's noise that is left in an update: 1 / accumulation, or more where S cannot tell.

    The expected square of an update is a positive semidefinite form of the weights, S + share * noise. S comes from
    single micro-batches: where its own error is larger than the noise that is left, the form is not one.
    """
    if accumulation == 1:
        return torch.ones((), dtype=S.dtype, device=S.device)
    d = torch.where(active, (S + noise).diagonal(), 1.0).rsqrt()
    pairs = active[:, None] & active
    R, E = (torch.where(pairs, matrix * d[:, None] * d, 0.0) for matrix in (S, noise))
    exponents = torch.linspace(-1, 0, SHARES, dtype=S.dtype, device=S.device)
    shares = float(accumulation) ** exponents
    tolerance = torch.diag(torch.where(active, 1e-9, 1.0).to(S.dtype))
    _, failed = torch.linalg.cholesky_ex(R + shares[:, None, None] * E + tolerance, check_errors=False)
    return torch.where(failed == 0, shares, 1.0).min()


def _ratios(
    averages: Tensor,
    shares: Tensor,
    measured_noise: bool,
    present: Tensor,
    objective: str,
    batch: int,
    accumulation: int,
    floor: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """S, the noise of an update, the numerators and the tasks to weigh, of the averages without the bias of their start."""
    S, C, M = averages / shares
    if objective == "intertask" or not measured_noise:
        second = M.diagonal()
        return M, torch.zeros_like(M), second, present & (second > 0)
    rounding = C.diagonal() <= ROUNDING * (S + C).diagonal()  # S + C is Q
    noise = torch.where(rounding[:, None] | rounding, 0.0, C) / batch
    active = present & ((S + noise).diagonal() > 0)
    noise = noise * _noise_left(S, noise, active, accumulation)
    numerators = noise.diagonal() if objective == "relative" else S.diagonal()
    return S, noise, torch.maximum(numerators, floor * (S + noise).diagonal()), active


def gnr_update(
    M: Tensor,
    Q: Tensor | None,
    message: Tensor,
    weights: Tensor,
    moments: Tensor,
    averages: Tensor,
    shares: Tensor,
    samples: Tensor,
    counters: Tensor,
    task_counters: Tensor,
    batch: int,
    accumulation: int,
    loss_sum: bool,
    objective: str,
    decay: float,
    step: float,
    floor: float,
) -> None:
    """One step of the GNR weights in float64, without a read on the host; see `fastmtl.ops.gnr_update`.

    ``M`` and ``Q`` are those of the gradients as they arrived, that is of ``scale * w_k * grad L_k``.
    """
    tasks = weights.numel()
    scale = message[1].double()
    losses, used, presence = message[2:].double().view(3, tasks)
    no_gradient, present = presence == 2, presence == 1
    pairs = present[:, None] & present
    measured_noise = Q is not None and batch > 1

    units = scale.square() * used[:, None] * used * (batch**2 if loss_sum else 1)
    M = M.double() / units
    Q = Q.double() / units if Q is not None and measured_noise else torch.full_like(M, float("nan"))
    measured = (message[0] == 1) & (scale != 0)
    fits = M.abs() <= torch.finfo(torch.float32).max
    if measured_noise:
        fits &= Q.abs() <= torch.finfo(torch.float32).max
    finite = (~pairs | fits).all() & (~present | losses.isfinite()).all() & scale.isfinite()
    accepted = measured & finite
    taken = accepted & pairs

    C = batch / (batch - 1) * (Q - M) if measured_noise else Q
    new = decay * averages + (1 - decay) * torch.stack([M - C / batch, C, M])
    averages.copy_(torch.where(taken, new, averages))
    shares.copy_(torch.where(taken, decay * shares + (1 - decay), shares))
    moments.copy_(torch.where(taken, torch.stack([M, Q]).float(), moments))

    if objective != "none":
        S, noise, numerators, active = _ratios(
            averages, shares, measured_noise, accepted & present, objective, batch, accumulation, floor
        )
        goal = max_min(S, noise, numerators, active)
        blended = torch.where(active, ((1 - step) * weights.double().log() + step * goal).exp(), 0.0)
        budget = tasks - torch.where(active, 0.0, weights.double()).sum()  # the tasks left out keep their weight
        solved = goal.isfinite().all()
        renormalised = (blended * (budget / blended.sum())).float().clamp_min(torch.finfo(torch.float32).tiny)
        weights.copy_(torch.where(active & solved, renormalised, weights))

    samples.copy_(torch.where(accepted, batch * accumulation, samples))
    counters[0].add_(accepted)
    counters[1].add_(measured & ~finite)
    task_counters[0].add_(accepted & present & (M.diagonal() == 0))
    task_counters[1].add_(accepted & no_gradient)
