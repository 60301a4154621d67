"""The fork's kernels for many tasks: the sum of T gradients and their statistics, by row tiles."""

import triton
import triton.language as tl

from fastmtl.backends.triton.kernels.finish import finish, is_last, store_row, sum_rows
from fastmtl.backends.triton.kernels.gnr import gnr_step_of_moments
from fastmtl.backends.triton.kernels.gradnorm import gradnorm_step
from fastmtl.backends.triton.kernels.rows import (
    addresses,
    load_rows,
    plus,
    present_rows,
    products,
    row_mask,
    row_offsets,
    store_columns,
    store_lower,
)


@triton.jit(do_not_specialize=["present", "programs", "group"])
def sum_norms_many(
    grads,  # T tensors of one shape, type and layout, [positions]
    p_total,  # of that shape and type
    p_norms,  # [T] float32: squared norms
    p_partials,
    p_tickets,
    present,  # a bit for each task
    programs,
    group,
    positions,
    sizes,
    strides,  # of all tasks
    total_strides,
    p_message,  # these and the next are arguments of `gradnorm_step`
    p_state,
    alpha: tl.float64,
    lr: tl.float64,
    beta1: tl.float64,
    beta2: tl.float64,
    eps: tl.float64,
    min_weight: tl.float64,
    T: tl.constexpr,
    TASKS: tl.constexpr,  # T as a power of two, at least 16
    RANK: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    VECTOR: tl.constexpr,
    ROWS: tl.constexpr,
    STEP: tl.constexpr,  # whether GradNorm's update follows
    ADAM: tl.constexpr,
):
    """Reads each gradient once and writes the sum once; the last program writes the norms, and makes GradNorm's step."""
    i_program = tl.program_id(0)
    p_grads = addresses(grads, T, TASKS)
    m_task = present_rows(present, T, TASKS)
    squares = tl.zeros([TASKS, K // V], tl.float32)
    for i_block in range(i_program, tl.cdiv(positions, K), programs):
        i_position = i_block.to(tl.int64) * K + tl.arange(0, K)
        m = row_mask(i_position, positions, V, VECTOR)
        o_grads = row_offsets(i_position, sizes, strides, RANK, V, VECTOR)
        o_total = row_offsets(i_position, sizes, total_strides, RANK, V, VECTOR)
        b_grads = load_rows(p_grads, grads[0], o_grads, m_task, m, V, VECTOR).to(tl.float32)
        store_columns(p_total, o_total, tl.sum(b_grads, 0), m, V, VECTOR)
        squares += tl.sum(tl.reshape(b_grads * b_grads, [TASKS, K // V, V]), 2)
    values = tl.sum(squares, 1)
    last, norms = finish(values, p_partials, p_tickets, i_program, programs, group, TASKS, ROWS)
    if last:
        i_task = tl.arange(0, TASKS)
        tl.store(p_norms + i_task, norms, mask=i_task < T)
        if STEP:
            gradnorm_step(norms, p_message, p_state, alpha, lr, beta1, beta2, eps, min_weight, T, TASKS, ADAM)


@triton.jit
def _sum_samples(
    p_grads,  # [TASKS]
    m_task,
    first_grad,  # a pointer of their type
    p_total,
    i_block,
    first,
    last,
    q_sums,
    positions,
    sizes,
    strides,
    sample_stride,
    total_strides,
    total_sample_stride,
    TASKS: tl.constexpr,
    RANK: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    VECTOR: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A block's samples first ... last - 1: ``q_sums`` with their products added, and the [TASKS, K] sums over samples."""
    i_position = i_block.to(tl.int64) * K + tl.arange(0, K)
    m = row_mask(i_position, positions, V, VECTOR)
    o_grads = row_offsets(i_position, sizes, strides, RANK, V, VECTOR)
    o_total = row_offsets(i_position, sizes, total_strides, RANK, V, VECTOR)
    sample_sums = tl.zeros([TASKS, K], tl.float32)
    for b in range(first, last):
        i_sample = b.to(tl.int64)
        b_grads = load_rows(p_grads, first_grad, i_sample * sample_stride + o_grads, m_task, m, V, VECTOR)
        total = tl.sum(b_grads.to(tl.float32), 0)
        store_columns(p_total, i_sample * total_sample_stride + o_total, total, m, V, VECTOR)
        q_sums = plus(q_sums, products(b_grads, b_grads, PRECISION), 1.0)
        sample_sums += b_grads.to(tl.float32)
    return q_sums, sample_sums


@triton.jit
def _store_moments(p_M, p_Q, values, batch, T: tl.constexpr, TASKS: tl.constexpr):
    q, m = tl.split(tl.reshape(values, [TASKS * TASKS, 2]))
    store_lower(p_Q, q * batch, T, TASKS)
    store_lower(p_M, m, T, TASKS)


@triton.jit(do_not_specialize=["present", "programs", "group", "samples", "accumulation"])
def sum_moments_many(
    grads,  # T tensors of one shape, type and layout, [batch, positions]
    p_total,  # of that shape and type
    p_M,  # [T, T] float32
    p_Q,  # [T, T] float32
    p_partials,
    p_tickets,
    present,
    programs,
    group,
    batch,
    positions,
    sizes,
    strides,  # of all tasks
    sample_stride,
    total_strides,
    total_sample_stride,
    p_message,  # from here on what `gnr_step` takes; not read where not STEP
    p_state,
    p_scratch,
    samples,
    accumulation,
    decay: tl.float64,
    step: tl.float64,
    floor: tl.float64,
    T: tl.constexpr,
    TASKS: tl.constexpr,  # T as a power of two, at least 16
    RANK: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    VECTOR: tl.constexpr,
    ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
    STEP: tl.constexpr,  # whether the update of the GNR weights follows
    P: tl.constexpr,
    LOSS_SUM: tl.constexpr,
    OBJECTIVE: tl.constexpr,
    ACCUMULATED: tl.constexpr,
    IN_REGISTERS: tl.constexpr,
    CALLS: tl.constexpr,
):
    """Reads each gradient once and writes the sum once; a program takes all samples of its blocks of positions."""
    i_program = tl.program_id(0)
    p_grads = addresses(grads, T, TASKS)
    m_task = present_rows(present, T, TASKS)
    q_sums = tl.zeros([TASKS, TASKS], tl.float32)
    m_sums = tl.zeros([TASKS, TASKS], tl.float32)
    for i_block in range(i_program, tl.cdiv(positions, K), programs):
        q_sums, sample_sums = _sum_samples(
            p_grads, m_task, grads[0], p_total, i_block, 0, batch, q_sums, positions, sizes, strides, sample_stride,
            total_strides, total_sample_stride, TASKS, RANK, K, V, VECTOR, PRECISION,
        )  # fmt: skip
        m_sums = plus(m_sums, products(sample_sums, sample_sums, PRECISION), 1.0)
    WIDTH: tl.constexpr = 2 * TASKS * TASKS
    values = tl.reshape(tl.join(q_sums, m_sums), [WIDTH])
    last, values = finish(values, p_partials, p_tickets, i_program, programs, group, WIDTH, ROWS)
    if last:
        _store_moments(p_M, p_Q, values, batch, T, TASKS)
        if STEP:
            gnr_step_of_moments(
                p_M, p_Q, p_message, p_state, p_scratch, samples, accumulation, decay, step, floor, T, P, LOSS_SUM,
                OBJECTIVE, ACCUMULATED, IN_REGISTERS, CALLS,
            )  # fmt: skip


@triton.jit(do_not_specialize=["present", "splits", "blocks", "samples", "accumulation"])
def sum_moments_many_split(
    grads,
    p_total,
    p_M,
    p_Q,
    p_partials,  # blocks * (splits + 1) rows of 2 TASKS^2, then blocks * splits tiles of TASKS * K
    p_tickets,
    present,
    splits,
    blocks,
    batch,
    positions,
    sizes,
    strides,
    sample_stride,
    total_strides,
    total_sample_stride,
    p_message,
    p_state,
    p_scratch,
    samples,
    accumulation,
    decay: tl.float64,
    step: tl.float64,
    floor: tl.float64,
    T: tl.constexpr,
    TASKS: tl.constexpr,
    RANK: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    VECTOR: tl.constexpr,
    ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
    STEP: tl.constexpr,
    P: tl.constexpr,
    LOSS_SUM: tl.constexpr,
    OBJECTIVE: tl.constexpr,
    ACCUMULATED: tl.constexpr,
    IN_REGISTERS: tl.constexpr,
    CALLS: tl.constexpr,
):
    """As `sum_moments_many` for few positions and many samples; see `sums.sum_moments_split`."""
    i_program = tl.program_id(0)
    i_block = i_program // splits
    i_split = i_program % splits
    WIDTH: tl.constexpr = 2 * TASKS * TASKS
    nothing = tl.zeros([TASKS, TASKS], tl.float32)
    q_sums, sample_sums = _sum_samples(
        addresses(grads, T, TASKS), present_rows(present, T, TASKS), grads[0], p_total, i_block,
        batch * i_split // splits, batch * (i_split + 1) // splits, nothing, positions, sizes, strides, sample_stride,
        total_strides, total_sample_stride, TASKS, RANK, K, V, VECTOR, PRECISION,
    )  # fmt: skip
    store_row(p_partials, i_program, tl.reshape(tl.join(q_sums, nothing), [WIDTH]), WIDTH)
    p_tile = p_partials + (blocks * (splits + 1)).to(tl.int64) * WIDTH
    p_tile += tl.arange(0, TASKS)[:, None] * K + tl.arange(0, K)[None, :]
    tl.store(p_tile + i_program.to(tl.int64) * (TASKS * K), sample_sums)
    if is_last(p_tickets + 1 + i_block, splits):
        whole = tl.zeros([TASKS, K], tl.float32)
        for i in range(splits):
            whole += tl.load(p_tile + (i_block * splits + i).to(tl.int64) * (TASKS * K), volatile=True)
        values = tl.reshape(tl.join(nothing, products(whole, whole, PRECISION)), [WIDTH])
        values += sum_rows(p_partials, i_block * splits, splits, WIDTH, ROWS)
        store_row(p_partials, blocks * splits + i_block, values, WIDTH)
        if is_last(p_tickets, blocks):
            _store_moments(p_M, p_Q, sum_rows(p_partials, blocks * splits, blocks, WIDTH, ROWS), batch, T, TASKS)
            if STEP:
                gnr_step_of_moments(
                    p_M, p_Q, p_message, p_state, p_scratch, samples, accumulation, decay, step, floor, T, P, LOSS_SUM,
                    OBJECTIVE, ACCUMULATED, IN_REGISTERS, CALLS,
                )  # fmt: skip
