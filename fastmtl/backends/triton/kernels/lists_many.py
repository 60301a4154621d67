"""Kernels over lists of columns for many tasks: a tile has a row for each task, [T_PAD, K]; see `kernels.lists`."""

import triton
import triton.language as tl

from fastmtl.backends.triton.kernels.finish import finish
from fastmtl.backends.triton.kernels.lists import (
    VARYING,
    WORD,
    address_of,
    blocks_of,
    chosen_words,
    column_at,
    is_present,
    run_of,
)
from fastmtl.backends.triton.kernels.rows import plus, products


@triton.jit
def row_addresses(tensors, i_column, T: tl.constexpr, T_PAD: tl.constexpr, G: tl.constexpr):
    """[T_PAD, 1] int64: where the tensors of a column start; the first again for rows past the last task."""
    i_row = tl.arange(0, T_PAD)[:, None]
    out = tl.zeros([T_PAD, 1], tl.int64) + address_of(tensors, i_column, 0, G)
    for k in tl.static_range(1, T):
        out = tl.where(i_row == k, address_of(tensors, i_column, k, G), out)
    return out


@triton.jit
def row_present(present, i_column, T: tl.constexpr, T_PAD: tl.constexpr, G: tl.constexpr):
    """[T_PAD, 1]: which tasks have a tensor in a column."""
    i_row = tl.arange(0, T_PAD)[:, None]
    WORDS: tl.constexpr = (T + WORD - 1) // WORD
    return is_present(chosen_words(present, i_column, WORDS, G), i_row, T, WORDS)


@triton.jit
def row_offsets(i_position, sizes, strides, T: tl.constexpr, T_PAD: tl.constexpr, RANK: tl.constexpr):
    """[T_PAD, K] offsets of positions [1, K], counted through ``sizes``, each row by its own strides."""
    i_row = tl.arange(0, T_PAD)[:, None]
    rest = i_position
    offset = tl.zeros([T_PAD, 1], tl.int64) + i_position * 0
    for dim in tl.static_range(RANK - 1, -1, -1):
        own = tl.zeros([T_PAD, 1], tl.int64)
        for k in tl.static_range(T):
            own = tl.where(i_row == k, strides[k][dim], own)
        if dim > 0:
            offset += (rest % sizes[dim]) * own
            rest = rest // sizes[dim]
        else:
            offset += rest * own
    return offset


@triton.jit
def load_rows(
    addresses,
    element: tl.constexpr,
    m_rows,
    i_block,
    positions,
    sizes,
    strides,
    T: tl.constexpr,
    T_PAD: tl.constexpr,
    RANK: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """[T_PAD, K]: the values of a block, a row for each task, zeros for those without a tensor."""
    i_position = i_block.to(tl.int64) * K + tl.arange(0, K).to(tl.int64)[None, :]
    if RANK == 0:
        offsets = i_position
    else:
        offsets = row_offsets(i_position, sizes, strides, T, T_PAD, RANK)
    p = addresses.to(element) + offsets
    m = i_position < positions
    if VECTOR:
        # Positions come in whole groups of 16 bytes, which start at multiples of 16 bytes.
        p = tl.max_contiguous(tl.multiple_of(p, [16, 16]), [1, V])
        m = tl.max_constancy(m, [1, V])
    return tl.load(p, mask=m & m_rows, other=0.0)


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=["tensors"])
def gram_many(
    tensors,
    p_gram,
    p_partials,
    p_tickets,
    present,
    ends,
    tails,
    accumulate,
    programs,
    group,
    blocks,
    sizes,
    strides,
    T: tl.constexpr,
    T_PAD: tl.constexpr,  # T as a power of two, at least 16
    G: tl.constexpr,
    RANK: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    VECTOR: tl.constexpr,
    ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """As `lists.gram_few`."""
    i_program = tl.program_id(0)
    begin, end = run_of(i_program, programs, blocks)
    sums = tl.zeros([T_PAD, T_PAD], tl.float32)
    for i_column in range(column_at(ends, begin, G), column_at(ends, end - 1, G) + 1):
        addresses = row_addresses(tensors, i_column, T, T_PAD, G)
        m_rows = row_present(present, i_column, T, T_PAD, G)
        first, last, positions = blocks_of(ends, tails, i_column, begin, end, K, G)
        for i_block in range(first, last):
            x = load_rows(
                addresses,
                tensors[0][0].dtype,
                m_rows,
                i_block,
                positions,
                sizes,
                strides,
                T,
                T_PAD,
                RANK,
                K,
                V,
                VECTOR,
            )
            sums = plus(sums, products(x, x, PRECISION), 1.0)
    WIDTH: tl.constexpr = T_PAD * T_PAD
    values = tl.reshape(sums, [WIDTH])
    is_last, values = finish(values, p_partials, p_tickets, i_program, programs, group, WIDTH, ROWS)
    if is_last:
        # The lower half to both places: the parts of a tf32 product are not added in the same order for k, j and j, k.
        i_value = tl.arange(0, WIDTH)
        row, column = i_value // T_PAD, i_value % T_PAD
        m = (row < T) & (column <= row)
        values += tl.load(p_gram + row * T + column, mask=m & (accumulate != 0), other=0.0)
        tl.store(p_gram + row * T + column, values, mask=m)
        tl.store(p_gram + column * T + row, values, mask=m & (column < row))
