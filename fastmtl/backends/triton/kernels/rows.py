"""Row tiles: many tensors as the rows of one tile, so that the code does not grow with their number."""

import triton
import triton.language as tl

from fastmtl.backends.triton.kernels.tiles import offsets_of


@triton.jit
def addresses(tensors, COUNT: tl.constexpr, ROWS: tl.constexpr):
    """[ROWS] int64: where COUNT tensors begin."""
    i_row = tl.arange(0, ROWS)
    out = tl.zeros([ROWS], tl.int64)
    for k in tl.static_range(COUNT):
        out = tl.where(i_row == k, tensors[k].to(tl.int64), out)
    return out


@triton.jit
def present_rows(present, COUNT: tl.constexpr, ROWS: tl.constexpr):
    """[ROWS]: the rows of tensors that arrived."""
    i_row = tl.arange(0, ROWS)
    return (i_row < COUNT) & (((present.to(tl.int64) >> i_row.to(tl.int64)) & 1) != 0)


@triton.jit
def row_offsets(i_position, sizes, strides, RANK: tl.constexpr, V: tl.constexpr, VECTOR: tl.constexpr):
    """Offsets of positions [K]; in groups of V that lie side by side where ``VECTOR``."""
    if VECTOR:
        o_lane = i_position % V
        return offsets_of(i_position - o_lane, sizes, strides, RANK) + o_lane
    else:
        return offsets_of(i_position, sizes, strides, RANK)


@triton.jit
def row_mask(i_position, positions, V: tl.constexpr, VECTOR: tl.constexpr):
    """[K]: which positions exist; the same for a whole group where ``VECTOR``, so that it is read at once."""
    if VECTOR:
        return i_position // V * V < positions
    else:
        return i_position < positions


@triton.jit
def load_rows(p_rows, like, o_position, m_row, m_position, V: tl.constexpr, VECTOR: tl.constexpr):
    """[ROWS, K] in the type of what ``like`` points to; zeros where not both masks are set.

    That groups can be read at once is said of the pointers: it is not seen through their selection.
    """
    p = p_rows.to(like.dtype)[:, None] + o_position[None, :]
    if VECTOR:
        p = tl.max_contiguous(tl.multiple_of(p, [1, 16]), [1, V])
    return tl.load(p, mask=m_row[:, None] & m_position[None, :], other=0.0)


@triton.jit
def store_columns(p_first, o_position, values, m_position, V: tl.constexpr, VECTOR: tl.constexpr):
    """Write [K] values, of a tile of one row."""
    p = p_first + o_position
    if VECTOR:
        p = tl.max_contiguous(tl.multiple_of(p, [16]), [V])
    tl.store(p, values.to(p_first.dtype.element_ty), mask=m_position)


@triton.jit
def plus(total, part, factor):
    """``total`` + ``part`` * ``factor``, apart from the tensor cores: an addition would be made part of the product."""
    return tl.fma(part, tl.full(part.shape, factor, tl.float32), total)


@triton.jit
def products(left, right, PRECISION: tl.constexpr):
    """[rows of left, rows of right] inner products over K, a short chain on tensor cores, which truncate.

    Of half-precision tiles as they are, of float32 by ``PRECISION``.
    """
    if left.dtype != right.dtype or left.dtype == tl.float32:
        return tl.dot(left.to(tl.float32), tl.trans(right.to(tl.float32)), input_precision=PRECISION)
    else:
        return tl.dot(left, tl.trans(right))


@triton.jit
def store_lower(p_matrix, values, T: tl.constexpr, TASKS: tl.constexpr):
    """Write the lower triangle of the [T, T] corner of [TASKS, TASKS], given flat, to both halves of a matrix.

    The halves differ in their last bits, as the parts of float32 products are added in another order.
    """
    i_row = tl.arange(0, TASKS * TASKS) // TASKS
    i_column = tl.arange(0, TASKS * TASKS) % TASKS
    m = (i_row < T) & (i_column <= i_row)
    tl.store(p_matrix + i_row * T + i_column, values, mask=m)
    tl.store(p_matrix + i_column * T + i_row, values, mask=m & (i_column < i_row))
