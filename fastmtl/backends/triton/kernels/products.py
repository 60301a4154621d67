"""Inner products between two lists of tensors, and weighted by sample: each tensor is read once."""

import triton
import triton.language as tl

from fastmtl.backends.triton.kernels.finish import finish
from fastmtl.backends.triton.kernels.rows import (
    addresses,
    load_rows,
    plus,
    present_rows,
    products,
    row_mask,
    row_offsets,
    store_lower,
)
from fastmtl.backends.triton.kernels.tiles import (
    joined,
    load_tile,
    offsets_of,
    repeated,
    store_symmetric,
    tile_mask,
    tile_offsets,
)


@triton.jit
def _block(
    tensors, i_block, m, present, sizes, strides,
    COUNT: tl.constexpr, RANK: tl.constexpr, N: tl.constexpr, V: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """A tuple of COUNT float32 tiles [N, V]."""
    out = ()
    for k in tl.static_range(COUNT):
        o = tile_offsets(i_block, sizes, strides[k], RANK, N, V, VECTOR)
        out = out + (load_tile(tensors[k] + o, m, k, present),)
    return out


@triton.jit(do_not_specialize=["present_left", "present_right", "programs", "group"])
def cross_gram_few(
    left,  # R tensors of one shape, [positions]
    right,  # T tensors of that shape
    p_out,  # [R, T] float32
    p_partials,
    p_tickets,
    present_left,  # a bit for each tensor
    present_right,
    positions,
    programs,
    group,
    sizes,
    left_strides,  # of each tensor
    right_strides,
    R: tl.constexpr,
    T: tl.constexpr,
    RANK: tl.constexpr,
    N: tl.constexpr,
    V: tl.constexpr,
    VECTOR: tl.constexpr,
    WIDTH: tl.constexpr,  # R T as a power of two, at least 2
    ROWS: tl.constexpr,
):
    """One tile of each tensor in registers."""
    i_program = tl.program_id(0)
    PAIRS: tl.constexpr = R * T
    sums = repeated(tl.zeros([N], tl.float32), PAIRS)
    for i_block in range(i_program, tl.cdiv(positions, N * V), programs):
        m = tile_mask(i_block, positions, N, V, VECTOR)
        rows = _block(left, i_block, m, present_left, sizes, left_strides, R, RANK, N, V, VECTOR)
        columns = _block(right, i_block, m, present_right, sizes, right_strides, T, RANK, N, V, VECTOR)
        added = ()
        for i in tl.static_range(R):
            for j in tl.static_range(T):
                added = added + (sums[i * T + j] + tl.sum(rows[i] * columns[j], 1),)
        sums = added
    values = tl.sum(joined(sums + repeated(tl.zeros([N], tl.float32), WIDTH - PAIRS), WIDTH), 0)
    last, values = finish(values, p_partials, p_tickets, i_program, programs, group, WIDTH, ROWS)
    if last:
        i_pair = tl.arange(0, WIDTH)
        tl.store(p_out + i_pair, values, mask=i_pair < PAIRS)


@triton.jit(do_not_specialize=["present_left", "present_right", "programs", "group"])
def cross_gram_many(
    left,  # R tensors of one shape, type and layout, [positions]
    right,  # T tensors of that shape, of one type and layout
    p_out,  # [R, T] float32
    p_partials,
    p_tickets,
    present_left,
    present_right,
    positions,
    programs,
    group,
    sizes,
    left_strides,  # of all of them
    right_strides,
    R: tl.constexpr,
    T: tl.constexpr,
    LEFT: tl.constexpr,  # R as a power of two, at least 16
    RIGHT: tl.constexpr,  # T likewise
    RANK: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    VECTOR: tl.constexpr,
    ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Row tiles of both lists."""
    i_program = tl.program_id(0)
    p_left = addresses(left, R, LEFT)
    p_right = addresses(right, T, RIGHT)
    m_left = present_rows(present_left, R, LEFT)
    m_right = present_rows(present_right, T, RIGHT)
    sums = tl.zeros([LEFT, RIGHT], tl.float32)
    for i_block in range(i_program, tl.cdiv(positions, K), programs):
        i_position = i_block.to(tl.int64) * K + tl.arange(0, K)
        m = row_mask(i_position, positions, V, VECTOR)
        o_left = row_offsets(i_position, sizes, left_strides, RANK, V, VECTOR)
        o_right = row_offsets(i_position, sizes, right_strides, RANK, V, VECTOR)
        b_left = load_rows(p_left, left[0], o_left, m_left, m, V, VECTOR)
        b_right = load_rows(p_right, right[0], o_right, m_right, m, V, VECTOR)
        sums = plus(sums, products(b_left, b_right, PRECISION), 1.0)
    WIDTH: tl.constexpr = LEFT * RIGHT
    values = tl.reshape(sums, [WIDTH])
    last, values = finish(values, p_partials, p_tickets, i_program, programs, group, WIDTH, ROWS)
    if last:
        i_row = tl.arange(0, WIDTH) // RIGHT
        i_column = tl.arange(0, WIDTH) % RIGHT
        tl.store(p_out + i_row * T + i_column, values, mask=(i_row < R) & (i_column < T))


@triton.jit(do_not_specialize=["present", "programs", "group"])
def sample_gram_few(
    grads,  # T tensors of one shape, [batch, positions]
    p_weights,  # [batch] float32
    p_out,  # [T, T] float32
    p_partials,
    p_tickets,
    present,
    batch,
    positions,
    programs,
    group,
    sizes,
    strides,
    sample_strides,
    T: tl.constexpr,
    RANK: tl.constexpr,
    N: tl.constexpr,
    G: tl.constexpr,
    V: tl.constexpr,
    VECTOR: tl.constexpr,
    WIDTH: tl.constexpr,  # T (T + 1) / 2 as a power of two, at least 2
    ROWS: tl.constexpr,
):
    """A block is G groups of V positions of each of N / G samples; one tile of each task in registers."""
    i_program = tl.program_id(0)
    PAIRS: tl.constexpr = T * (T + 1) // 2
    SAMPLES: tl.constexpr = N // G
    o_group = tl.arange(0, N).to(tl.int64) % G * V
    o_sample = tl.arange(0, N).to(tl.int64) // G
    o_lane = tl.arange(0, V)[None, :]
    a_sample = tl.cdiv(positions, G * V)  # blocks
    sums = repeated(tl.zeros([N], tl.float32), PAIRS)
    for i_block in range(i_program, tl.cdiv(batch, SAMPLES) * a_sample, programs):
        i_sample = (i_block // a_sample).to(tl.int64) * SAMPLES + o_sample
        i_group = (i_block % a_sample).to(tl.int64) * (G * V) + o_group
        m_group = (i_sample < batch) & (i_group < positions)
        # A weight that is not finite must meet no group that is not there.
        weights = tl.load(p_weights + i_sample, mask=m_group, other=0.0)
        if VECTOR:
            m = tl.broadcast_to(m_group[:, None], [N, V])
        else:
            m = m_group[:, None] & (i_group[:, None] + o_lane < positions)
        tiles = ()
        for k in tl.static_range(T):
            o = (i_sample * sample_strides[k])[:, None]
            if VECTOR:
                o = tl.multiple_of(o + offsets_of(i_group[:, None], sizes, strides[k], RANK), [V, V]) + o_lane
            else:
                o = o + offsets_of(i_group[:, None] + o_lane, sizes, strides[k], RANK)
            tiles = tiles + (load_tile(grads[k] + o, m, k, present),)
        added = ()
        for k in tl.static_range(T):
            for j in tl.static_range(k + 1):
                added = added + (sums[k * (k + 1) // 2 + j] + weights * tl.sum(tiles[k] * tiles[j], 1),)
        sums = added
    values = tl.sum(joined(sums + repeated(tl.zeros([N], tl.float32), WIDTH - PAIRS), WIDTH), 0)
    last, values = finish(values, p_partials, p_tickets, i_program, programs, group, WIDTH, ROWS)
    if last:
        store_symmetric(p_out, values, tl.arange(0, WIDTH), T)


@triton.jit(do_not_specialize=["present", "programs", "group"])
def sample_gram_many(
    grads,  # T tensors of one shape, type and layout, [batch, positions]
    p_weights,  # [batch] float32
    p_out,  # [T, T] float32
    p_partials,
    p_tickets,
    present,
    batch,
    positions,
    programs,
    group,
    sizes,
    strides,  # of all of them
    sample_stride,
    T: tl.constexpr,
    TASKS: tl.constexpr,  # T as a power of two, at least 16
    RANK: tl.constexpr,
    K: tl.constexpr,
    P: tl.constexpr,
    V: tl.constexpr,
    VECTOR: tl.constexpr,
    ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A block is P positions of each of K / P samples, a row tile.

    The products of one sample are weighted as a whole; where a block has several samples, its values are, in float32.
    """
    i_program = tl.program_id(0)
    SAMPLES: tl.constexpr = K // P
    p_grads = addresses(grads, T, TASKS)
    m_task = present_rows(present, T, TASKS)
    o_position = tl.arange(0, P).to(tl.int64)
    o_sample = tl.arange(0, SAMPLES).to(tl.int64)
    a_sample = tl.cdiv(positions, P)
    sums = tl.zeros([TASKS, TASKS], tl.float32)
    for i_block in range(i_program, tl.cdiv(batch, SAMPLES) * a_sample, programs):
        i_position = (i_block % a_sample).to(tl.int64) * P + o_position
        i_sample = (i_block // a_sample).to(tl.int64) * SAMPLES
        m = row_mask(i_position, positions, V, VECTOR)
        o = row_offsets(i_position, sizes, strides, RANK, V, VECTOR)
        if SAMPLES == 1:
            b_grads = load_rows(p_grads, grads[0], i_sample * sample_stride + o, m_task, m, V, VECTOR)
            sums = plus(sums, products(b_grads, b_grads, PRECISION), tl.load(p_weights + i_sample))
        else:
            i_sample += o_sample
            m_sample = i_sample < batch
            p = p_grads.to(grads[0].dtype)[:, None, None] + (i_sample * sample_stride)[None, :, None]
            p += o[None, None, :]
            if VECTOR:
                p = tl.max_contiguous(tl.multiple_of(p, [1, 1, 16]), [1, 1, V])
            m = m_task[:, None, None] & m_sample[None, :, None] & m[None, None, :]
            b_grads = tl.load(p, mask=m, other=0.0)
            weights = tl.load(p_weights + i_sample, mask=m_sample, other=0.0)
            # A weight that is not finite must meet no position that is not there.
            weighted = tl.where(m, b_grads.to(tl.float32) * weights[None, :, None], 0.0)
            part = products(tl.reshape(weighted, [TASKS, K]), tl.reshape(b_grads, [TASKS, K]), PRECISION)
            sums = plus(sums, part, 1.0)
    WIDTH: tl.constexpr = TASKS * TASKS
    values = tl.reshape(sums, [WIDTH])
    last, values = finish(values, p_partials, p_tickets, i_program, programs, group, WIDTH, ROWS)
    if last:
        store_lower(p_out, values, T, TASKS)
