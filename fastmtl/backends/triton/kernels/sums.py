"""The fork's kernels for few tasks: the sum of T gradients and their statistics, one tile of each task in registers."""

import triton
import triton.language as tl

from fastmtl.backends.triton.kernels.finish import finish, is_last, store_row, sum_rows
from fastmtl.backends.triton.kernels.gnr import gnr_step
from fastmtl.backends.triton.kernels.gradnorm import gradnorm_step
from fastmtl.backends.triton.kernels.moments import moments_row, pair_row, store_moments
from fastmtl.backends.triton.kernels.tiles import (
    add_pairs,
    add_squares,
    added,
    joined,
    load_tile,
    repeated,
    store_symmetric,
    tile_mask,
    tile_offsets,
)


@triton.jit
def load_and_sum(
    grads, p_total, i_sample, m, present, o_grads, o_total, sample_strides, total_sample_stride, T: tl.constexpr
):
    """A tuple of T float32 tiles; their sum, in the order of the tasks, goes to ``p_total``."""
    tiles = ()
    for k in tl.static_range(T):
        tiles = tiles + (load_tile(grads[k] + i_sample * sample_strides[k] + o_grads[k], m, k, present),)
    total = tiles[0]
    for k in tl.static_range(1, T):
        total = total + tiles[k]
    p = p_total + i_sample * total_sample_stride + o_total
    tl.store(p, total.to(p_total.dtype.element_ty), mask=m)
    return tiles


@triton.jit
def task_offsets(
    i_block, sizes, strides, T: tl.constexpr, RANK: tl.constexpr, N: tl.constexpr, V: tl.constexpr, VECTOR: tl.constexpr
):
    """A tuple of T [N, V] offsets of a block."""
    out = ()
    for k in tl.static_range(T):
        out = out + (tile_offsets(i_block, sizes, strides[k], RANK, N, V, VECTOR),)
    return out


@triton.jit(do_not_specialize=["present", "programs", "group"])
def sum_norms_few(
    grads,  # T tensors of one shape, [positions]
    p_total,  # like them
    p_norms,  # [T] float32: squared norms
    p_partials,
    p_tickets,
    present,  # a bit for each task
    positions,
    programs,
    group,
    sizes,
    strides,  # of each task
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
    RANK: tl.constexpr,
    N: tl.constexpr,
    V: tl.constexpr,
    VECTOR: tl.constexpr,
    WIDTH: tl.constexpr,  # T as a power of two, at least 2
    ROWS: tl.constexpr,
    STEP: tl.constexpr,  # whether GradNorm's update follows
    ADAM: tl.constexpr,
):
    """Reads each gradient once and writes the sum once; the last program writes the norms, and makes GradNorm's step."""
    i_program = tl.program_id(0)
    sums = repeated(tl.zeros([N], tl.float32), T)
    no_samples = repeated(0, T)
    for i_block in range(i_program, tl.cdiv(positions, N * V), programs):
        m = tile_mask(i_block, positions, N, V, VECTOR)
        o_grads = task_offsets(i_block, sizes, strides, T, RANK, N, V, VECTOR)
        o_total = tile_offsets(i_block, sizes, total_strides, RANK, N, V, VECTOR)
        tiles = load_and_sum(grads, p_total, 0, m, present, o_grads, o_total, no_samples, 0, T)
        sums = add_squares(sums, tiles, T, N, V)
    values = tl.sum(joined(sums + repeated(tl.zeros([N], tl.float32), WIDTH - T), WIDTH), 0)
    last, norms = finish(values, p_partials, p_tickets, i_program, programs, group, WIDTH, ROWS)
    if last:
        i_task = tl.arange(0, WIDTH)
        tl.store(p_norms + i_task, norms, mask=i_task < T)
        if STEP:
            gradnorm_step(norms, p_message, p_state, alpha, lr, beta1, beta2, eps, min_weight, T, WIDTH, ADAM)


@triton.jit
def _both(q_sums, m_sums, N: tl.constexpr, PAIRS: tl.constexpr, HALF: tl.constexpr):
    """[2 HALF]: the sums over N of PAIRS values of Q, then of M, each filled up with zeros."""
    nothing = repeated(tl.zeros([N], tl.float32), HALF - PAIRS)
    return tl.sum(joined(q_sums + nothing + m_sums + nothing, 2 * HALF), 0)


@triton.jit
def _store_moments(p_M, p_Q, values, batch, T: tl.constexpr, HALF: tl.constexpr):
    i_pair = tl.arange(0, HALF)
    halves = tl.reshape(values, [2, HALF])
    is_q = tl.arange(0, 2)[:, None] == 0
    store_symmetric(p_Q, tl.sum(tl.where(is_q, halves, 0.0), 0) * batch, i_pair, T)
    store_symmetric(p_M, tl.sum(tl.where(is_q, 0.0, halves), 0), i_pair, T)


@triton.jit
def _sum_samples(
    grads,
    p_total,
    i_block,
    first,
    last,
    q_sums,
    present,
    positions,
    sizes,
    strides,
    sample_strides,
    total_strides,
    total_sample_stride,
    T: tl.constexpr,
    RANK: tl.constexpr,
    N: tl.constexpr,
    V: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """A block's samples first ... last - 1: ``q_sums`` with their products added, and the T [N, V] sums over samples."""
    m = tile_mask(i_block, positions, N, V, VECTOR)
    o_grads = task_offsets(i_block, sizes, strides, T, RANK, N, V, VECTOR)
    o_total = tile_offsets(i_block, sizes, total_strides, RANK, N, V, VECTOR)
    sample_sums = repeated(tl.zeros([N, V], tl.float32), T)
    for b in range(first, last):
        i_sample = b.to(tl.int64)
        tiles = load_and_sum(
            grads, p_total, i_sample, m, present, o_grads, o_total, sample_strides, total_sample_stride, T
        )
        q_sums = add_pairs(q_sums, tiles, T, N, V)
        sample_sums = added(sample_sums, tiles, T)
    return q_sums, sample_sums


@triton.jit(do_not_specialize=["present", "programs", "group", "samples", "accumulation"])
def sum_moments_few(
    grads,  # T tensors of one shape, [batch, positions]
    p_total,  # like them
    p_M,  # [T, T] float32
    p_Q,  # [T, T] float32
    p_partials,
    p_tickets,
    present,  # a bit for each task
    batch,
    positions,
    programs,
    group,
    sizes,
    strides,  # of each task
    sample_strides,
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
    RANK: tl.constexpr,
    N: tl.constexpr,
    V: tl.constexpr,
    VECTOR: tl.constexpr,
    HALF: tl.constexpr,  # T (T + 1) / 2 as a power of two
    ROWS: tl.constexpr,
    STEP: tl.constexpr,  # whether the update of the GNR weights follows
    P: tl.constexpr,
    LOSS_SUM: tl.constexpr,
    OBJECTIVE: tl.constexpr,
    ACCUMULATED: tl.constexpr,
    BOTH: tl.constexpr,  # whether registers hold the sums of pairs for M beside those for Q
):
    """Reads each gradient once and writes the sum once; a program takes all samples of its blocks of positions.

    Unless BOTH, what a block adds to M is added up over the program at once, and is kept where its partial results go.
    """
    i_program = tl.program_id(0)
    PAIRS: tl.constexpr = T * (T + 1) // 2
    zeros = tl.zeros([N], tl.float32)
    q_sums = repeated(zeros, PAIRS)
    m_sums = repeated(zeros, PAIRS)
    p_m = p_partials + i_program.to(tl.int64) * (2 * HALF) + tl.arange(0, HALF)
    m_row = tl.zeros([HALF], tl.float32)
    for i_block in range(i_program, tl.cdiv(positions, N * V), programs):
        q_sums, sample_sums = _sum_samples(
            grads, p_total, i_block, 0, batch, q_sums, present, positions, sizes, strides, sample_strides,
            total_strides, total_sample_stride, T, RANK, N, V, VECTOR,
        )  # fmt: skip
        if BOTH:
            m_sums = add_pairs(m_sums, sample_sums, T, N, V)
        else:
            m_row = pair_row(add_pairs(repeated(zeros, PAIRS), sample_sums, T, N, V), N, PAIRS, HALF)
            if i_block != i_program:
                m_row += tl.load(p_m, volatile=True)
            tl.debug_barrier()  # a thread may read what another has written
            tl.store(p_m, m_row)
            tl.debug_barrier()
    if BOTH:
        m_row = pair_row(m_sums, N, PAIRS, HALF)
    values = moments_row(pair_row(q_sums, N, PAIRS, HALF), m_row, HALF)
    last, values = finish(values, p_partials, p_tickets, i_program, programs, group, 2 * HALF, ROWS)
    if last:
        store_moments(p_M, p_Q, values, batch, T, HALF, True)
        if STEP:
            tl.debug_barrier()  # all threads have stored
            gnr_step(
                p_M, p_Q, T, 1, T, 1, p_message, p_state, p_scratch, samples, accumulation, decay, step, floor,
                T, P, True, LOSS_SUM, OBJECTIVE, ACCUMULATED,
            )  # fmt: skip


@triton.jit(do_not_specialize=["present", "splits", "blocks", "samples", "accumulation"])
def sum_moments_split(
    grads,
    p_total,
    p_M,
    p_Q,
    p_partials,  # (blocks * splits + blocks) * 2 HALF, then blocks * splits * T * N * V
    p_tickets,
    present,
    batch,
    positions,
    splits,
    blocks,
    sizes,
    strides,
    sample_strides,
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
    RANK: tl.constexpr,
    N: tl.constexpr,
    V: tl.constexpr,
    VECTOR: tl.constexpr,
    HALF: tl.constexpr,
    ROWS: tl.constexpr,
    STEP: tl.constexpr,  # whether the update of the GNR weights follows
    P: tl.constexpr,
    LOSS_SUM: tl.constexpr,
    OBJECTIVE: tl.constexpr,
    ACCUMULATED: tl.constexpr,
):
    """As `sum_moments_few` for few positions and many samples: a program takes a share of the samples of one block.

    M needs the sum over all samples before its square, so the sums of the shares go through memory: once written and once
    read, by the last program of each block.
    """
    i_program = tl.program_id(0)
    i_block = i_program // splits
    i_split = i_program % splits
    PAIRS: tl.constexpr = T * (T + 1) // 2
    zeros = tl.zeros([N], tl.float32)
    q_sums, sample_sums = _sum_samples(
        grads, p_total, i_block, batch * i_split // splits, batch * (i_split + 1) // splits, repeated(zeros, PAIRS),
        present, positions, sizes, strides, sample_strides, total_strides, total_sample_stride, T, RANK, N, V, VECTOR,
    )  # fmt: skip
    store_row(p_partials, i_program, _both(q_sums, repeated(zeros, PAIRS), N, PAIRS, HALF), 2 * HALF)
    p_sums = p_partials + (blocks * (splits + 1)).to(tl.int64) * (2 * HALF)
    p_tile = p_sums + tl.arange(0, N)[:, None] * V + tl.arange(0, V)[None, :]
    for k in tl.static_range(T):
        tl.store(p_tile + (i_program.to(tl.int64) * T + k) * (N * V), sample_sums[k])
    if is_last(p_tickets + 1 + i_block, splits):
        whole = repeated(tl.zeros([N, V], tl.float32), T)
        for i in range(splits):
            i_share = (i_block * splits + i).to(tl.int64) * T
            added = ()
            for k in tl.static_range(T):
                added = added + (whole[k] + tl.load(p_tile + (i_share + k) * (N * V), volatile=True),)
            whole = added
        m_sums = add_pairs(repeated(zeros, PAIRS), whole, T, N, V)
        values = _both(repeated(zeros, PAIRS), m_sums, N, PAIRS, HALF)
        values += sum_rows(p_partials, i_block * splits, splits, 2 * HALF, ROWS)
        store_row(p_partials, blocks * splits + i_block, values, 2 * HALF)
        if is_last(p_tickets, blocks):
            _store_moments(p_M, p_Q, sum_rows(p_partials, blocks * splits, blocks, 2 * HALF, ROWS), batch, T, HALF)
            if STEP:
                tl.debug_barrier()
                gnr_step(
                    p_M, p_Q, T, 1, T, 1, p_message, p_state, p_scratch, samples, accumulation, decay, step, floor,
                    T, P, True, LOSS_SUM, OBJECTIVE, ACCUMULATED,
                )  # fmt: skip
