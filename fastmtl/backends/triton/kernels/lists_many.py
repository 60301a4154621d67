"""Kernels over lists of columns for many tasks: a tile has a row for each task; see `kernels.lists`."""

import triton
import triton.language as tl

from fastmtl.backends.triton.kernels.finish import finish_parts, store_row, sum_rows
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
from fastmtl.backends.triton.kernels.tiles import pair_of, repeated


@triton.jit
def row_addresses(tensors, i_column, FIRST: tl.constexpr, T: tl.constexpr, R: tl.constexpr, G: tl.constexpr):
    """[R, 1] int64: where the tensors of a column start, of tasks from FIRST on; for rows past the last task that of FIRST."""
    i_row = FIRST + tl.arange(0, R)[:, None]
    out = tl.zeros([R, 1], tl.int64) + address_of(tensors, i_column, FIRST, G)
    for k in tl.static_range(FIRST + 1, min(T, FIRST + R)):
        out = tl.where(i_row == k, address_of(tensors, i_column, k, G), out)
    return out


@triton.jit
def row_present(present, i_column, FIRST: tl.constexpr, T: tl.constexpr, R: tl.constexpr, G: tl.constexpr):
    """[R, 1]: which tasks, from FIRST on, have a tensor in a column."""
    i_row = FIRST + tl.arange(0, R)[:, None]
    WORDS: tl.constexpr = (T + WORD - 1) // WORD
    return is_present(chosen_words(present, i_column, WORDS, G), i_row, T, WORDS)


@triton.jit
def row_offsets(i_position, sizes, strides, FIRST: tl.constexpr, T: tl.constexpr, R: tl.constexpr, RANK: tl.constexpr):
    """[R, K] offsets of positions [1, K], counted through ``sizes``, each row by its own strides."""
    i_row = FIRST + tl.arange(0, R)[:, None]
    rest = i_position
    offset = tl.zeros([R, 1], tl.int64) + i_position * 0
    for dim in tl.static_range(RANK - 1, -1, -1):
        own = tl.zeros([R, 1], tl.int64)
        for k in tl.static_range(FIRST, min(T, FIRST + R)):
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
    FIRST: tl.constexpr,
    T: tl.constexpr,
    R: tl.constexpr,
    RANK: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """[R, K]: the values of a block, a row for each task from FIRST on, zeros for those without a tensor."""
    i_position = i_block.to(tl.int64) * K + tl.arange(0, K).to(tl.int64)[None, :]
    if RANK == 0:
        offsets = i_position
    else:
        offsets = row_offsets(i_position, sizes, strides, FIRST, T, R, RANK)
    p = addresses.to(element) + offsets
    m = i_position < positions
    if VECTOR:
        # Positions come in whole groups of 16 bytes, which start at multiples of 16 bytes.
        p = tl.max_contiguous(tl.multiple_of(p, [16, 16]), [1, V])
        m = tl.max_constancy(m, [1, V])
    return tl.load(p, mask=m & m_rows, other=0.0)


@triton.jit
def add_tile_products(sums, tiles, COUNT: tl.constexpr, PRECISION: tl.constexpr):
    """``sums`` of each pair i >= j of COUNT tiles, with their products added."""
    out = ()
    for i in tl.static_range(COUNT):
        for j in tl.static_range(i + 1):
            out = out + (plus(sums[i * (i + 1) // 2 + j], products(tiles[i], tiles[j], PRECISION), 1.0),)
    return out


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
    G: tl.constexpr,
    RANK: tl.constexpr,
    R: tl.constexpr,  # rows of a tile, as many as the tensor cores' at least
    TILES: tl.constexpr,  # that hold T rows
    K: tl.constexpr,
    V: tl.constexpr,
    VECTOR: tl.constexpr,
    ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """As `lists.gram_few`; the tasks are shared out among tiles, which are multiplied in pairs."""
    i_program = tl.program_id(0)
    begin, end = run_of(i_program, programs, blocks)
    WIDTH: tl.constexpr = R * R
    PAIRS: tl.constexpr = TILES * (TILES + 1) // 2
    sums = repeated(tl.zeros([R, R], tl.float32), PAIRS)
    for i_column in range(column_at(ends, begin, G), column_at(ends, end - 1, G) + 1):
        addresses = ()
        m_rows = ()
        for i in tl.static_range(TILES):
            addresses = addresses + (row_addresses(tensors, i_column, i * R, T, R, G),)
            m_rows = m_rows + (row_present(present, i_column, i * R, T, R, G),)
        first, last, positions = blocks_of(ends, tails, i_column, begin, end, K, G)
        for i_block in range(first, last):
            tiles = ()
            for i in tl.static_range(TILES):
                tiles = tiles + (
                    load_rows(
                        addresses[i], tensors[0][0].dtype, m_rows[i], i_block, positions, sizes, strides, i * R, T, R,
                        RANK, K, V, VECTOR,
                    ),
                )  # fmt: skip
            sums = add_tile_products(sums, tiles, TILES, PRECISION)
    for i in tl.static_range(PAIRS):
        store_row(p_partials, i_program * PAIRS + i, tl.reshape(sums[i], [WIDTH]), WIDTH)
    if finish_parts(p_partials, p_tickets, i_program, programs, group, PAIRS, WIDTH, ROWS):
        # The lower half to both places: the parts of a tf32 product are not added in the same order for k, j and j, k.
        i_value = tl.arange(0, WIDTH)
        for i_pair in range(PAIRS):
            values = sum_rows(p_partials + i_pair * WIDTH, programs, tl.cdiv(programs, group), WIDTH, ROWS, PAIRS)
            i_left, i_right = pair_of(i_pair, TILES)
            row, column = i_left * R + i_value // R, i_right * R + i_value % R
            m = (row < T) & (column <= row)
            values += tl.load(p_gram + row * T + column, mask=m & (accumulate != 0), other=0.0)
            tl.store(p_gram + row * T + column, values, mask=m)
            tl.store(p_gram + column * T + row, values, mask=m & (column < row))
