"""GNR's update: a step of the weights in one program, alone or at the end of the launch that measured the moments."""

import triton
import triton.language as tl

from fastmtl.backends.triton.kernels.gnr_weights import presence_of, update_weights
from fastmtl.backends.triton.kernels.interior import steps_of
from fastmtl.backends.triton.kernels.max_min_many import AT_ONCE, by_memory
from fastmtl.backends.triton.kernels.numbers import LARGEST, all_of, all_pairs, is_finite


@triton.jit
def _average(p, value, decay, mask):
    """Let an average take one step towards ``value``."""
    tl.store(p, decay * tl.load(p, mask=mask, other=0.0) + (1 - decay) * value, mask=mask)


@triton.jit
def _unscaled(p, units, mask):
    """Of M or Q as they arrived, for losses without weights; 0 outside the mask."""
    values = tl.load(p, mask=mask, other=0.0)
    return tl.where(mask, values.to(tl.float64) / units, 0.0)


@triton.jit
def _moments_of(arrived, p_message, unit, has_noise, rows, i, T: tl.constexpr, HAS_Q: tl.constexpr):
    """Some rows of M and Q, for losses without weights, which pairs of tasks are present, and whether what is known fits."""
    p_M, p_Q, row_stride_M, column_stride_M, row_stride_Q, column_stride_Q = arrived
    pairs = (presence_of(p_message, rows, T) == 1)[:, None] & (presence_of(p_message, i, T) == 1)[None, :]
    units = unit * tl.load(p_message + 2 + T + rows, mask=rows < T, other=1.0).to(tl.float64)[:, None]
    units *= tl.load(p_message + 2 + T + i, mask=i < T, other=1.0).to(tl.float64)[None, :]
    M = _unscaled(p_M + rows[:, None] * row_stride_M + i[None, :] * column_stride_M, units, pairs)
    fits = tl.abs(M) <= LARGEST
    if HAS_Q:
        Q = _unscaled(p_Q + rows[:, None] * row_stride_Q + i[None, :] * column_stride_Q, units, pairs & has_noise)
        fits = fits & (tl.abs(Q) <= LARGEST)
        Q = tl.where(has_noise, Q, float("nan"))
    else:
        Q = tl.full(M.shape, float("nan"), tl.float64)
    return M, Q, pairs, all_pairs(fits)


@triton.jit
def gnr_step(
    p_M,  # float: of gradients of scale * w_k L_k, row and column strides as given; visible to all threads
    p_Q,  # like p_M; not read where not HAS_Q
    row_stride_M,
    column_stride_M,
    row_stride_Q,
    column_stride_Q,
    p_message,  # [2 + 3 T] float32
    p_state,  # weights, moments, averages, shares, samples, counters, task_counters
    p_scratch,  # [scratch_size(P)] float64
    batch,
    accumulation,
    decay,
    step,
    floor,  # the last three float64
    T: tl.constexpr,
    P: tl.constexpr,  # T as a power of two, at least 2
    HAS_Q: tl.constexpr,
    LOSS_SUM: tl.constexpr,
    OBJECTIVE: tl.constexpr,
    ACCUMULATED: tl.constexpr,  # accumulation > 1
    IN_REGISTERS: tl.constexpr,  # see `update_weights`
    CALLS: tl.constexpr,  # likewise
):
    """As `fastmtl.backends.reference.gnr_update`, line by line, in float64; all threads of one program call it."""
    p_weights, p_moments, p_averages, p_shares, p_samples, p_counters, p_task_counters = p_state
    zero = 0
    if P > AT_ONCE:
        # As `zero_of`: no index of what follows stays in registers while the gradients are read. It is not seen to be a
        # multiple of a power of two, either: threads then take single numbers, and fewer registers.
        zero = steps_of(presence_of(p_message, tl.arange(0, P), T) == 1, P) // (P + 1)
    i = tl.arange(0, P) + zero
    m = i < T
    valid = tl.load(p_message)
    scale = tl.load(p_message + 1).to(tl.float64)
    losses = tl.load(p_message + 2 + i, mask=m, other=0.0).to(tl.float64)
    presence = presence_of(p_message, i, T)
    present = presence == 1
    samples = tl.cast(batch, tl.float64)
    has_noise = (batch > 1) & HAS_Q
    unit = scale * scale
    if LOSS_SUM:
        unit *= samples * samples

    # Some rows after others, so that the registers do; and twice, as nothing is to change where anything is not finite.
    BLOCK: tl.constexpr = min(P, AT_ONCE)
    arrived = (p_M, p_Q, row_stride_M, column_stride_M, row_stride_Q, column_stride_Q)
    fits = 1
    for first in range(zero, P + zero, BLOCK):
        rows = first + tl.arange(0, BLOCK)
        _, _, _, these = _moments_of(arrived, p_message, unit, has_noise, rows, i, T, HAS_Q)
        fits &= these.to(tl.int32)
    measured = (valid == 1) & (scale != 0)
    finite = (fits != 0) & all_of(~present | is_finite(losses)) & is_finite(scale)
    accepted = measured & finite

    for first in range(zero, P + zero, BLOCK):
        rows = first + tl.arange(0, BLOCK)
        M, Q, pairs, _ = _moments_of(arrived, p_message, unit, has_noise, rows, i, T, HAS_Q)
        taken = accepted & pairs
        o = rows[:, None] * T + i[None, :]
        tl.store(p_moments + o, M.to(tl.float32), mask=taken)
        tl.store(p_moments + T * T + o, Q.to(tl.float32), mask=taken)
        C = samples / (samples - 1) * (Q - M)
        _average(p_averages + o, M - C / samples, decay, taken)
        _average(p_averages + (T * T + o), C, decay, taken)
        _average(p_averages + (2 * T * T + o), M, decay, taken)
        _average(p_shares + o, 1.0, decay, taken)
    own = tl.load(p_M + i * (row_stride_M + column_stride_M), mask=present, other=1.0)
    without = accepted & present & (own == 0)
    # Before the weights, whose solver takes all registers.
    tl.store(p_samples, tl.cast(batch, tl.int64) * accumulation, mask=accepted)
    tl.store(p_counters, tl.load(p_counters) + accepted.to(tl.int64))
    tl.store(p_counters + 1, tl.load(p_counters + 1) + (measured & ~finite).to(tl.int64))
    missed = accepted & (presence == 2)
    counts = p_task_counters + i
    tl.store(counts, tl.load(counts, mask=m, other=0) + without.to(tl.int64), mask=m)
    tl.store(counts + T, tl.load(counts + T, mask=m, other=0) + missed.to(tl.int64), mask=m)
    if OBJECTIVE != "none":
        if by_memory(p_scratch, accepted, P) != 0:  # and the barrier after the stores of averages
            averages = (p_averages, p_shares, has_noise & (OBJECTIVE != "intertask"))
            update_weights(
                p_weights, averages, p_scratch, p_message, zero, samples, accumulation, step, floor,
                T, P, OBJECTIVE, ACCUMULATED, IN_REGISTERS, CALLS,
            )  # fmt: skip


@triton.jit(noinline=True)
def _step_apart(
    p_M, p_Q, p_message, p_state, p_scratch, batch, accumulation, decay, step, floor, T: tl.constexpr, P: tl.constexpr,
    LOSS_SUM: tl.constexpr, OBJECTIVE: tl.constexpr, ACCUMULATED: tl.constexpr, IN_REGISTERS: tl.constexpr,
):  # fmt: skip
    gnr_step(
        p_M, p_Q, T, 1, T, 1, p_message, p_state, p_scratch, batch, accumulation, decay, step, floor,
        T, P, True, LOSS_SUM, OBJECTIVE, ACCUMULATED, IN_REGISTERS, True,
    )  # fmt: skip


@triton.jit
def gnr_step_of_moments(
    p_M, p_Q, p_message, p_state, p_scratch, batch, accumulation, decay, step, floor, T: tl.constexpr, P: tl.constexpr,
    LOSS_SUM: tl.constexpr, OBJECTIVE: tl.constexpr, ACCUMULATED: tl.constexpr, IN_REGISTERS: tl.constexpr,
    CALLS: tl.constexpr,
):  # fmt: skip
    """`gnr_step` of M and Q that this program has just stored, [T, T]."""
    tl.debug_barrier()  # all threads have stored
    if CALLS:
        _step_apart(
            p_M, p_Q, p_message, p_state, p_scratch, batch, accumulation, decay, step, floor,
            T, P, LOSS_SUM, OBJECTIVE, ACCUMULATED, IN_REGISTERS,
        )  # fmt: skip
    else:
        gnr_step(
            p_M, p_Q, T, 1, T, 1, p_message, p_state, p_scratch, batch, accumulation, decay, step, floor,
            T, P, True, LOSS_SUM, OBJECTIVE, ACCUMULATED, IN_REGISTERS, False,
        )  # fmt: skip


@triton.jit(
    do_not_specialize=[
        "row_stride_M", "column_stride_M", "row_stride_Q", "column_stride_Q", "batch", "accumulation",
    ]
)  # fmt: skip
def gnr_update(
    p_M,
    p_Q,
    row_stride_M,
    column_stride_M,
    row_stride_Q,
    column_stride_Q,
    p_message,
    p_state,
    p_scratch,
    batch,
    accumulation,
    decay: tl.float64,
    step: tl.float64,
    floor: tl.float64,
    T: tl.constexpr,
    P: tl.constexpr,
    HAS_Q: tl.constexpr,
    LOSS_SUM: tl.constexpr,
    OBJECTIVE: tl.constexpr,
    ACCUMULATED: tl.constexpr,
    IN_REGISTERS: tl.constexpr,
    CALLS: tl.constexpr,
):
    """One program."""
    gnr_step(
        p_M, p_Q, row_stride_M, column_stride_M, row_stride_Q, column_stride_Q, p_message, p_state, p_scratch,
        batch, accumulation, decay, step, floor, T, P, HAS_Q, LOSS_SUM, OBJECTIVE, ACCUMULATED, IN_REGISTERS, CALLS,
    )  # fmt: skip
