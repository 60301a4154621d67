"""The fork's kernels for few tasks: the sum of T gradients and their statistics, one tile of each task in registers."""

import triton
import triton.language as tl

from fastmtl.backends.triton.kernels.finish import finish, is_last, store_row, sum_rows
from fastmtl.backends.triton.kernels.gnr import gnr_step_of_moments
from fastmtl.backends.triton.kernels.gradnorm import gradnorm_step
from fastmtl.backends.triton.kernels.moments import moments_row, pair_row, store_moments
from fastmtl.backends.triton.kernels.shares import store_tiles, sum_tiles
from fastmtl.backends.triton.kernels.tiles import (
    add_pairs,
    add_products,
    add_squares,
    added,
    joined,
    load_tile,
    repeated,
    tile_mask,
    tile_offsets,
)


@triton.jit
def load_and_sum(grads, p_total, m, present, o_grads, o_total, T: tl.constexpr):
    """A tuple of T float32 tiles; their sum, in the order of the tasks, goes to ``p_total``."""
    tiles = ()
    for k in tl.static_range(T):
        tiles = tiles + (load_tile(grads[k] + o_grads[k], m, k, present),)
    total = tiles[0]
    for k in tl.static_range(1, T):
        total = total + tiles[k]
    tl.store(p_total + o_total, total.to(p_total.dtype.element_ty), mask=m)
    return tiles


@triton.jit
def task_offsets(
    i_block, sizes, strides, T: tl.constexpr, RANK: tl.constexpr, N: tl.constexpr, V: tl.constexpr,
    VECTOR: tl.constexpr, NB: tl.constexpr = 1,
):  # fmt: skip
    """A tuple of T [NB * N, V] offsets of a block."""
    out = ()
    for k in tl.static_range(T):
        out = out + (tile_offsets(i_block, sizes, strides[k], RANK, N, V, VECTOR, NB),)
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
    # Addresses of many tasks are formed again rather than kept: registers are short.
    for i_block in tl.range(i_program, tl.cdiv(positions, N * V), programs, disable_licm=True):
        m = tile_mask(i_block, positions, N, V, VECTOR)
        o_grads = task_offsets(i_block, sizes, strides, T, RANK, N, V, VECTOR)
        o_total = tile_offsets(i_block, sizes, total_strides, RANK, N, V, VECTOR)
        tiles = load_and_sum(grads, p_total, m, present, o_grads, o_total, T)
        sums = add_squares(sums, tiles, T)
    values = tl.sum(joined(sums + repeated(tl.zeros([N], tl.float32), WIDTH - T), WIDTH), 0)
    last, norms = finish(values, p_partials, p_tickets, i_program, programs, group, WIDTH, ROWS)
    if last:
        i_task = tl.arange(0, WIDTH)
        tl.store(p_norms + i_task, norms, mask=i_task < T)
        if STEP:
            gradnorm_step(norms, p_message, p_state, alpha, lr, beta1, beta2, eps, min_weight, T, WIDTH, ADAM)


@triton.jit
def _of_samples(i_sample, stride, offsets, V: tl.constexpr, VECTOR: tl.constexpr):
    """The offsets [NB * N, V] of a block in the samples of its rows; aligned groups of V are aligned in every sample."""
    o = i_sample * stride + offsets
    if VECTOR:
        return tl.multiple_of(o, [1, V])
    else:
        return o


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
    NB: tl.constexpr,
    N: tl.constexpr,
    V: tl.constexpr,
    VECTOR: tl.constexpr,
    FUSED: tl.constexpr,  # an instruction for each product, and more to compile
):
    """A block's samples first ... last - 1, NB at a time, each in N rows of a tile.

    Returns ``q_sums`` [NB * N] with their products added, and T tiles [NB * N, V], sums over samples.
    """
    m_block = tile_mask(i_block, positions, N, V, VECTOR, NB)
    o_block = task_offsets(i_block, sizes, strides, T, RANK, N, V, VECTOR, NB)
    o_total = tile_offsets(i_block, sizes, total_strides, RANK, N, V, VECTOR, NB)
    sums = repeated(tl.zeros([NB * N, V], tl.float32), T)
    for i_first in range(first, last, NB):
        if NB == 1:  # offsets stay what they are, pointers move on
            i_sample = i_first.to(tl.int64)
            p_grads = ()
            for k in tl.static_range(T):
                p_grads = p_grads + (grads[k] + i_sample * sample_strides[k],)
            p_sample = p_total + i_sample * total_sample_stride
            tiles = load_and_sum(p_grads, p_sample, m_block, present, o_block, o_total, T)
        else:
            i_sample = (i_first + tl.arange(0, NB * N) // N).to(tl.int64)[:, None]
            o_grads = ()
            for k in tl.static_range(T):
                o_grads = o_grads + (_of_samples(i_sample, sample_strides[k], o_block[k], V, VECTOR),)
            o_sample = _of_samples(i_sample, total_sample_stride, o_total, V, VECTOR)
            tiles = load_and_sum(grads, p_total, m_block & (i_sample < last), present, o_grads, o_sample, T)
        if FUSED:
            q_sums = add_pairs(q_sums, tiles, T, NB * N, V)
        else:
            q_sums = add_products(q_sums, tiles, tiles, T)
        sums = added(sums, tiles, T)
    return q_sums, sums


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
    IN_REGISTERS: tl.constexpr,
    CALLS: tl.constexpr,
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
            total_strides, total_sample_stride, T, RANK, 1, N, V, VECTOR, True,
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
            gnr_step_of_moments(
                p_M, p_Q, p_message, p_state, p_scratch, samples, accumulation, decay, step, floor, T, P, LOSS_SUM,
                OBJECTIVE, ACCUMULATED, IN_REGISTERS, CALLS,
            )  # fmt: skip


@triton.jit(do_not_specialize=["present", "splits", "group", "blocks", "samples", "accumulation"])
def sum_moments_split(
    grads,
    p_total,
    p_M,
    p_Q,
    p_partials,  # rows of 2 HALF: of programs, groups and blocks; then tiles of T * N * V: of programs and groups
    p_tickets,
    present,
    batch,
    positions,
    splits,  # programs of each block
    group,  # programs of a block that share a ticket
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
    NB: tl.constexpr,
    N: tl.constexpr,
    V: tl.constexpr,
    VECTOR: tl.constexpr,
    HALF: tl.constexpr,
    ROWS: tl.constexpr,
    R: tl.constexpr,  # tiles of each task that are read at a time
    STEP: tl.constexpr,  # whether the update of the GNR weights follows
    P: tl.constexpr,
    LOSS_SUM: tl.constexpr,
    OBJECTIVE: tl.constexpr,
    ACCUMULATED: tl.constexpr,
    IN_REGISTERS: tl.constexpr,
    CALLS: tl.constexpr,
):
    """As `sum_moments_few` for few positions and many samples: a program takes a share of the samples of one block.

    M needs the sum over all samples before its square, so the sums of the shares go through memory: the last program of a
    group of shares adds up the group's, the last of these the groups', as in `finish`.
    """
    i_program = tl.program_id(0)
    i_block = i_program // splits
    i_split = i_program % splits
    i_member = i_split // group
    groups = tl.cdiv(splits, group)
    members = tl.minimum(group, splits - i_member * group)
    i_group = i_block * groups + i_member
    PAIRS: tl.constexpr = T * (T + 1) // 2
    q_sums, tiles = _sum_samples(
        grads, p_total, i_block, batch * i_split // splits, batch * (i_split + 1) // splits,
        repeated(tl.zeros([NB * N], tl.float32), PAIRS), present, positions, sizes, strides, sample_strides,
        total_strides, total_sample_stride, T, RANK, NB, N, V, VECTOR, T <= 8,
    )  # fmt: skip
    p_group_rows = p_partials + (blocks * splits).to(tl.int64) * (2 * HALF)
    p_block_rows = p_group_rows + (blocks * groups).to(tl.int64) * (2 * HALF)
    p_tiles = p_block_rows + blocks.to(tl.int64) * (2 * HALF)
    p_group_tiles = p_tiles + (blocks * splits).to(tl.int64) * (T * N * V)
    zeros = tl.zeros([HALF], tl.float32)
    row = moments_row(pair_row(q_sums, NB * N, PAIRS, HALF), zeros, HALF)
    store_row(p_partials, i_program, row, 2 * HALF)
    if NB > 1:
        folded = ()
        for k in tl.static_range(T):
            folded = folded + (tl.sum(tl.reshape(tiles[k], [NB, N, V]), 0),)
        tiles = folded
    store_tiles(p_tiles, i_program, tiles, T, N, V)
    if is_last(p_tickets + 1 + blocks + i_group, members):
        i_first = i_block * splits + i_member * group
        store_row(p_group_rows, i_group, sum_rows(p_partials, i_first, members, 2 * HALF, ROWS), 2 * HALF)
        store_tiles(p_group_tiles, i_group, sum_tiles(p_tiles, i_first, members, T, R, N, V), T, N, V)
        if is_last(p_tickets + 1 + i_block, groups):
            whole = sum_tiles(p_group_tiles, i_block * groups, groups, T, R, N, V)
            m_sums = add_products(repeated(tl.zeros([N], tl.float32), PAIRS), whole, whole, T)
            values = moments_row(zeros, pair_row(m_sums, N, PAIRS, HALF), HALF)
            values += sum_rows(p_group_rows, i_block * groups, groups, 2 * HALF, ROWS)
            store_row(p_block_rows, i_block, values, 2 * HALF)
            if is_last(p_tickets, blocks):
                store_moments(p_M, p_Q, sum_rows(p_block_rows, 0, blocks, 2 * HALF, ROWS), batch, T, HALF, True)
                if STEP:
                    gnr_step_of_moments(
                        p_M, p_Q, p_message, p_state, p_scratch, samples, accumulation, decay, step, floor, T, P, LOSS_SUM,
                        OBJECTIVE, ACCUMULATED, IN_REGISTERS, CALLS,
                    )  # fmt: skip
