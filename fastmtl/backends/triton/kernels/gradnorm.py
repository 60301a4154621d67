"""GradNorm's update: a step in one program, alone or at the end of the launch that measured the norms."""

import triton
import triton.language as tl

from fastmtl.backends.triton.kernels.numbers import LARGEST, SMALLEST, all_of, at_least, is_finite


@triton.jit
def power(base, exponent):
    """Base ** exponent for base >= 0, in float64; 0 ** 0 is 1."""
    positive = base > 0
    raised = tl.exp(exponent * tl.log(tl.where(positive, base, 1.0)))
    return tl.where(positive, raised, tl.where(exponent == 0, 1.0, 0.0))


@triton.jit
def gradnorm_step(
    squared_norms,  # [WIDTH] float: of scale * w_k * grad L_k; anything past T
    p_message,  # [2 + 3 T] float32
    p_state,  # weights, initial_losses, exp_avg, exp_avg_sq, steps, weight_sum, norms, rates, counters, task_counters
    alpha,
    lr,
    beta1,
    beta2,
    eps,
    min_weight,  # all float64
    T: tl.constexpr,
    WIDTH: tl.constexpr,
    ADAM: tl.constexpr,
):
    """As `fastmtl.backends.reference.gradnorm_update`, line by line, in float64."""
    p_weights, p_initial, p_avg, p_avg_sq, p_steps, p_weight_sum, p_norms, p_rates, p_counters, p_task_counters = (
        p_state
    )
    i_task = tl.arange(0, WIDTH)
    m = i_task < T
    valid = tl.load(p_message)
    scale = tl.load(p_message + 1).to(tl.float64)
    losses = tl.load(p_message + 2 + i_task, mask=m, other=0.0).to(tl.float64)
    used = tl.load(p_message + 2 + T + i_task, mask=m, other=1.0).to(tl.float64)
    presence = tl.load(p_message + 2 + 2 * T + i_task, mask=m, other=0.0)
    present = m & (presence == 1)
    no_gradient = m & (presence == 2)
    squares = squared_norms.to(tl.float64)
    task_norms = tl.sqrt(squares) / (tl.abs(scale) * used)

    measured = (valid == 1) & (scale != 0)
    # A square beyond float32 would stay in Adam's second moment for good.
    fits = task_norms * task_norms <= LARGEST
    finite = all_of(~present | (fits & is_finite(losses))) & is_finite(scale)
    accepted = measured & finite

    before = tl.load(p_initial + i_task, mask=m, other=1.0)
    first = accepted & present & (before != before) & (losses > 0)
    initial = tl.where(first, losses.to(tl.float32), before)
    rated = present & (initial > 0) & (losses >= 0)
    taking_part = tl.where(alpha != 0, rated, present)
    ratios = tl.where(rated, losses / initial.to(tl.float64), 0.0)
    mean_ratio = tl.sum(ratios, 0) / tl.sum(rated.to(tl.float64), 0)
    relative = tl.where(mean_ratio > 0, ratios / mean_ratio, 1.0)

    gradient_norms = tl.where(taking_part, used * task_norms, 0.0)
    mean_norm = tl.sum(gradient_norms, 0) / tl.sum(taking_part.to(tl.float64), 0)
    target = mean_norm * power(relative, alpha)
    above = gradient_norms - target
    sign = tl.where(above > 0, 1.0, tl.where(above < 0, -1.0, 0.0))
    gradient = sign.to(tl.float64) * task_norms

    stepped = accepted & taking_part
    steps = tl.load(p_steps + i_task, mask=m, other=0) + stepped.to(tl.int64)
    weights = tl.load(p_weights + i_task, mask=m, other=0.0)
    if ADAM:
        old_avg = tl.load(p_avg + i_task, mask=m, other=0.0).to(tl.float64)
        old_avg_sq = tl.load(p_avg_sq + i_task, mask=m, other=0.0).to(tl.float64)
        avg = beta1 * old_avg + (1 - beta1) * gradient
        avg_sq = beta2 * old_avg_sq + (1 - beta2) * gradient * gradient
        count = steps.to(tl.float64)
        denominator = tl.sqrt(avg_sq / (1 - power(beta2, count))) + eps
        moved = weights.to(tl.float64) - lr * avg / (1 - power(beta1, count)) / denominator
        tl.store(p_avg + i_task, avg.to(tl.float32), mask=stepped)
        tl.store(p_avg_sq + i_task, avg_sq.to(tl.float32), mask=stepped)
    else:
        moved = weights.to(tl.float64) - lr * gradient
    floored = tl.where(taking_part, at_least(moved, min_weight), 0.0)
    # The tasks left out keep their weight.
    budget = T - tl.sum(tl.where(taking_part | ~m, 0.0, weights.to(tl.float64)), 0)
    scaled = (floored * (budget / tl.sum(floored, 0))).to(tl.float32)
    tl.store(p_weights + i_task, at_least(scaled, SMALLEST), mask=stepped)
    tl.store(p_initial + i_task, initial, mask=first)
    tl.store(p_steps + i_task, steps, mask=stepped)
    sums = tl.load(p_weight_sum + i_task, mask=m, other=0.0)
    tl.store(p_weight_sum + i_task, sums + used, mask=m & accepted)
    tl.store(p_norms + i_task, task_norms.to(tl.float32), mask=accepted & present)
    tl.store(p_rates + i_task, relative.to(tl.float32), mask=accepted & rated)

    tl.store(p_counters, tl.load(p_counters) + accepted.to(tl.int64))
    tl.store(p_counters + 1, tl.load(p_counters + 1) + (measured & ~finite).to(tl.int64))
    left_out = accepted & present & ~taking_part
    without = accepted & present & (squares == 0)
    missed = accepted & no_gradient
    counts = p_task_counters + i_task
    tl.store(counts, tl.load(counts, mask=m, other=0) + left_out.to(tl.int64), mask=m)
    tl.store(counts + T, tl.load(counts + T, mask=m, other=0) + without.to(tl.int64), mask=m)
    tl.store(counts + 2 * T, tl.load(counts + 2 * T, mask=m, other=0) + missed.to(tl.int64), mask=m)


@triton.jit
def gradnorm_update(
    p_squared_norms,
    p_message,
    p_state,
    alpha: tl.float64,
    lr: tl.float64,
    beta1: tl.float64,
    beta2: tl.float64,
    eps: tl.float64,
    min_weight: tl.float64,
    T: tl.constexpr,
    WIDTH: tl.constexpr,
    ADAM: tl.constexpr,
):
    """One program."""
    i_task = tl.arange(0, WIDTH)
    squared_norms = tl.load(p_squared_norms + i_task, mask=i_task < T, other=0.0)
    gradnorm_step(squared_norms, p_message, p_state, alpha, lr, beta1, beta2, eps, min_weight, T, WIDTH, ADAM)
