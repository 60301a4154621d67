"""The moments of a norm layer's weight and bias, for few tasks: the per-sample gradients stay in registers.

Tiles have four dimensions: samples, two of parameters and positions, and groups of V that are read at once. What lies
together in memory comes last: parameters (INNER) as in a layer norm or with channels last, else positions.
"""

import triton
import triton.language as tl

from fastmtl.backends.triton.kernels.finish import finish, is_last, store_row, sum_rows
from fastmtl.backends.triton.kernels.moments import moments_row, pair_row, store_moments
from fastmtl.backends.triton.kernels.shares import store_tiles, sum_tiles
from fastmtl.backends.triton.kernels.tiles import add_products, added, load_tile, offsets_of, repeated, summed


@triton.jit
def _along(index, AXIS: tl.constexpr):
    """[N] as one of four dimensions, int64."""
    wide = index.to(tl.int64)
    if AXIS == 0:
        return wide[:, None, None, None]
    elif AXIS == 1:
        return wide[None, :, None, None]
    else:
        return wide[None, None, :, None]


@triton.jit
def _offsets(
    i_sample, i_parameter, i_position, sample_stride, parameter_sizes, parameter_strides, position_sizes,
    position_strides, PARAMETER_RANK: tl.constexpr, POSITION_RANK: tl.constexpr, V: tl.constexpr,
):  # fmt: skip
    """[NB, N, N, V] offsets of one tensor from the indices of its groups, each [.., 1] along its dimension."""
    o_group = (
        i_sample * sample_stride
        + offsets_of(i_parameter, parameter_sizes, parameter_strides, PARAMETER_RANK)
        + offsets_of(i_position, position_sizes, position_strides, POSITION_RANK)
    )
    return tl.multiple_of(o_group, [V, V, V, V]) + tl.arange(0, V)[None, None, None, :]


@triton.jit
def _add_positions(
    sums,  # T, or with bias 2 T, tiles [NB, N, N, V], or [NB, N, N, 1] where positions lie together
    normalized,
    grads,
    present,
    i_sample,
    i_parameter,
    m_outer,  # which samples and parameters exist
    positions,  # of one sample
    parameter_sizes,
    parameter_strides,
    position_sizes,
    position_strides,
    sample_strides,
    T: tl.constexpr,
    BIAS: tl.constexpr,
    INNER: tl.constexpr,
    PARAMETER_RANK: tl.constexpr,
    POSITION_RANK: tl.constexpr,
    NB: tl.constexpr,
    NP: tl.constexpr,
    NS: tl.constexpr,
    V: tl.constexpr,
):
    """``sums`` with what all positions of some samples add to the gradients of weight and bias."""
    VS: tl.constexpr = 1 if INNER else V
    for i_first in range(0, positions, NS * VS):
        i_position = _along(i_first + tl.arange(0, NS) * VS, 1 if INNER else 2)
        m_group = m_outer & (i_position < positions)
        m = tl.broadcast_to(m_group, [NB, m_group.shape[1], m_group.shape[2], V])
        o = _offsets(
            i_sample, i_parameter, i_position, sample_strides[T], parameter_sizes, parameter_strides[T],
            position_sizes, position_strides[T], PARAMETER_RANK, POSITION_RANK, V,
        )  # fmt: skip
        x = tl.load(normalized + o, mask=m, other=0.0).to(tl.float32)
        of_weight = ()
        of_bias = ()
        for k in tl.static_range(T):
            o = _offsets(
                i_sample, i_parameter, i_position, sample_strides[k], parameter_sizes, parameter_strides[k],
                position_sizes, position_strides[k], PARAMETER_RANK, POSITION_RANK, V,
            )  # fmt: skip
            grad = load_tile(grads[k] + o, m, k, present)
            # What is normalised may be infinite where a gradient that did not arrive is zero.
            product = tl.where(((present >> k) & 1) != 0, x * grad, 0.0)
            if INNER:
                of_weight = of_weight + (sums[k] + product,)
                if BIAS:
                    of_bias = of_bias + (sums[T + k] + grad,)
            else:
                of_weight = of_weight + (sums[k] + tl.sum(product, 3, keep_dims=True),)
                if BIAS:
                    of_bias = of_bias + (sums[T + k] + tl.sum(grad, 3, keep_dims=True),)
        sums = of_weight + of_bias
    return sums


@triton.jit
def _add_pairs(sums, tiles, T: tl.constexpr, BIAS: tl.constexpr, AXIS: tl.constexpr):
    """``sums`` with the products of pairs of the gradients of weights, and of biases, added over the last AXIS."""
    sums = add_products(sums, tiles, tiles, T, AXIS)
    if BIAS:
        of_bias = ()
        for k in tl.static_range(T):
            of_bias = of_bias + (tiles[T + k],)
        sums = add_products(sums, of_bias, of_bias, T, AXIS)
    return sums


@triton.jit
def _block(
    q_sums,  # [NB, NP] of each pair
    normalized,
    grads,
    present,
    i_block,
    first,
    last,  # samples
    parameters,
    positions,
    parameter_sizes,
    parameter_strides,
    position_sizes,
    position_strides,
    sample_strides,
    T: tl.constexpr,
    BIAS: tl.constexpr,
    INNER: tl.constexpr,
    PER_SAMPLE: tl.constexpr,
    PARAMETER_RANK: tl.constexpr,
    POSITION_RANK: tl.constexpr,
    NB: tl.constexpr,
    NP: tl.constexpr,
    NS: tl.constexpr,
    V: tl.constexpr,
):
    """``q_sums`` with the samples first ... last - 1 of a block of parameters, and their gradients [NP, V], summed."""
    COUNT: tl.constexpr = T * (2 if BIAS else 1)
    POSITION_AXIS: tl.constexpr = 1 if INNER else 2
    N1: tl.constexpr = NS if INNER else NP
    N2: tl.constexpr = NP if INNER else NS
    VP: tl.constexpr = V if INNER else 1
    o_parameter = (i_block.to(tl.int64) * NP + tl.arange(0, NP)) * VP
    i_parameter = _along(o_parameter, 2 if INNER else 1)
    nothing = repeated(tl.zeros([NB, N1, N2, VP], tl.float32), COUNT)
    sums = nothing
    totals = repeated(tl.zeros([NB, NP, VP], tl.float32), COUNT)
    for i_first in range(first, last, NB):
        i_sample = _along(i_first + tl.arange(0, NB), 0)
        sums = _add_positions(
            sums, normalized, grads, present, i_sample, i_parameter,
            (i_sample < last) & (i_parameter < parameters), positions, parameter_sizes, parameter_strides,
            position_sizes, position_strides, sample_strides, T, BIAS, INNER, PARAMETER_RANK, POSITION_RANK,
            NB, NP, NS, V,
        )  # fmt: skip
        if PER_SAMPLE:
            by_sample = summed(sums, POSITION_AXIS, COUNT)
            q_sums = _add_pairs(q_sums, by_sample, T, BIAS, 2)
            totals = added(totals, by_sample, COUNT)
            sums = nothing
    if not PER_SAMPLE:
        totals = summed(sums, POSITION_AXIS, COUNT)
    return q_sums, summed(totals, 0, COUNT)


@triton.jit(do_not_specialize=["present", "blocks", "splits", "chunk", "programs", "group"])
def norm_moments_few(
    normalized,  # [batch, parameters x positions]
    grads,  # T tensors like it
    p_M,  # [T, T] float32
    p_Q,  # [T, T] float32
    p_partials,
    p_tickets,
    present,
    batch,
    parameters,
    positions,
    blocks,  # of parameters
    splits,  # of the samples of each block
    chunk,  # samples of a split
    programs,
    group,
    parameter_sizes,
    parameter_strides,  # of each gradient, then of what is normalised; so the other strides
    position_sizes,
    position_strides,
    sample_strides,
    T: tl.constexpr,
    BIAS: tl.constexpr,
    INNER: tl.constexpr,
    PER_SAMPLE: tl.constexpr,
    SPLIT: tl.constexpr,  # whether programs share blocks: each has one, and some of its samples
    PARAMETER_RANK: tl.constexpr,
    POSITION_RANK: tl.constexpr,
    NB: tl.constexpr,
    NP: tl.constexpr,
    NS: tl.constexpr,
    V: tl.constexpr,
    HALF: tl.constexpr,  # T (T + 1) / 2 as a power of two, at least 2
    ROWS: tl.constexpr,
):
    """Reads what is normalised and each gradient once.

    Where SPLIT, the gradients of each program's samples go to the workspace, and the last program of a block adds them
    up for M; ``p_partials`` takes (programs + blocks) * 2 HALF numbers and programs * T (2 T with bias) * NP * V.
    """
    PAIRS: tl.constexpr = T * (T + 1) // 2
    COUNT: tl.constexpr = T * (2 if BIAS else 1)
    VP: tl.constexpr = V if INNER else 1
    i_program = tl.program_id(0)
    q_sums = repeated(tl.zeros([NB, NP], tl.float32), PAIRS)
    m_sums = repeated(tl.zeros([NP], tl.float32), PAIRS)
    if SPLIT:
        i_block = i_program // splits
        i_split = i_program % splits
        q_sums, totals = _block(
            q_sums, normalized, grads, present, i_block, i_split * chunk, tl.minimum((i_split + 1) * chunk, batch),
            parameters, positions, parameter_sizes, parameter_strides, position_sizes, position_strides,
            sample_strides, T, BIAS, INNER, PER_SAMPLE, PARAMETER_RANK, POSITION_RANK, NB, NP, NS, V,
        )  # fmt: skip
        p_sums = p_partials + (programs + blocks).to(tl.int64) * (2 * HALF)
        store_tiles(p_sums, i_program, totals, COUNT, NP, VP)
        zeros = tl.zeros([HALF], tl.float32)
        store_row(
            p_partials,
            i_program,
            moments_row(pair_row(summed(q_sums, 0, PAIRS), NP, PAIRS, HALF), zeros, HALF),
            2 * HALF,
        )
        if is_last(p_tickets + 1 + i_block, splits):
            totals = sum_tiles(p_sums, i_block * splits, splits, COUNT, NB * NS, NP, VP)
            m_sums = _add_pairs(m_sums, totals, T, BIAS, 1)
            row = moments_row(zeros, pair_row(m_sums, NP, PAIRS, HALF), HALF)
            row += sum_rows(p_partials, i_block * splits, splits, 2 * HALF, ROWS)
            store_row(p_partials, programs + i_block, row, 2 * HALF)
            if is_last(p_tickets, blocks):
                values = sum_rows(p_partials, programs, blocks, 2 * HALF, ROWS)
                store_moments(p_M, p_Q, values, batch, T, HALF, PER_SAMPLE)
    else:
        for i_block in range(i_program, blocks, programs):
            q_sums, totals = _block(
                q_sums, normalized, grads, present, i_block, 0, batch, parameters, positions, parameter_sizes,
                parameter_strides, position_sizes, position_strides, sample_strides, T, BIAS, INNER, PER_SAMPLE,
                PARAMETER_RANK, POSITION_RANK, NB, NP, NS, V,
            )  # fmt: skip
            m_sums = _add_pairs(m_sums, totals, T, BIAS, 1)
        row = moments_row(pair_row(summed(q_sums, 0, PAIRS), NP, PAIRS, HALF), pair_row(m_sums, NP, PAIRS, HALF), HALF)
        last, values = finish(row, p_partials, p_tickets, i_program, programs, group, 2 * HALF, ROWS)
        if last:
            store_moments(p_M, p_Q, values, batch, T, HALF, PER_SAMPLE)
