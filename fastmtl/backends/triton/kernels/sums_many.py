"""The fork's kernels for many tasks: the sum of T gradients and their statistics, by row tiles."""

import triton
import triton.language as tl

from fastmtl.backends.triton.kernels.finish import finish
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
    positions,
    programs,
    group,
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


@triton.jit(do_not_specialize=["present", "programs", "group"])
def sum_moments_many(
    grads,  # T tensors of one shape, type and layout, [batch, positions]
    p_total,  # of that shape and type
    p_M,  # [T, T] float32
    p_Q,  # [T, T] float32
    p_partials,
    p_tickets,
    present,
    batch,
    positions,
    programs,
    group,
    sizes,
    strides,  # of all tasks
    sample_stride,
    total_strides,
    total_sample_stride,
    T: tl.constexpr,
    TASKS: tl.constexpr,  # T as a power of two, at least 16
    RANK: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    VECTOR: tl.constexpr,
    ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Reads each gradient once and writes the sum once; a program takes all samples of its blocks of positions."""
    i_program = tl.program_id(0)
    p_grads = addresses(grads, T, TASKS)
    m_task = present_rows(present, T, TASKS)
    q_sums = tl.zeros([TASKS, TASKS], tl.float32)
    m_sums = tl.zeros([TASKS, TASKS], tl.float32)
    for i_block in range(i_program, tl.cdiv(positions, K), programs):
        i_position = i_block.to(tl.int64) * K + tl.arange(0, K)
        m = row_mask(i_position, positions, V, VECTOR)
        o_grads = row_offsets(i_position, sizes, strides, RANK, V, VECTOR)
        o_total = row_offsets(i_position, sizes, total_strides, RANK, V, VECTOR)
        sample_sums = tl.zeros([TASKS, K], tl.float32)
        for b in range(batch):
            i_sample = b.to(tl.int64)
            b_grads = load_rows(p_grads, grads[0], i_sample * sample_stride + o_grads, m_task, m, V, VECTOR)
            total = tl.sum(b_grads.to(tl.float32), 0)
            store_columns(p_total, i_sample * total_sample_stride + o_total, total, m, V, VECTOR)
            q_sums = plus(q_sums, products(b_grads, b_grads, PRECISION), 1.0)
            sample_sums += b_grads.to(tl.float32)
        m_sums = plus(m_sums, products(sample_sums, sample_sums, PRECISION), 1.0)
    SIZE: tl.constexpr = TASKS * TASKS
    values = tl.reshape(tl.join(q_sums, m_sums), [2 * SIZE])
    last, values = finish(values, p_partials, p_tickets, i_program, programs, group, 2 * SIZE, ROWS)
    if last:
        q, m = tl.split(tl.reshape(values, [SIZE, 2]))
        store_lower(p_Q, q * batch, T, TASKS)
        store_lower(p_M, m, T, TASKS)
