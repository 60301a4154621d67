"""The moments of an embedding's weight, for few tasks: sums of gradient rows over equal indices.

Rows are taken in the order of a stable sort of the indices: equal indices follow each other, and among them those of one
sample. Runs of equal indices are the segments of M, runs of equal indices and samples those of Q. A program walks chunks
of rows, and of a segment that crosses the end of a chunk it leaves the part: in slot 0 of the chunk what belongs to the
segment that was open before its first row, in slot 1 what belongs to one that starts in it and is open at its end. A
second launch joins those parts.
"""

import triton
import triton.language as tl

from fastmtl.backends.triton.kernels.finish import finish, store_row
from fastmtl.backends.triton.kernels.moments import moments_row, pair_row, store_moments
from fastmtl.backends.triton.kernels.tiles import add_products, added, offsets_of, repeated, summed


@triton.jit
def _position(p_order, i_row, m_row, NARROW: tl.constexpr):
    """The positions of sorted rows; 32-bit where they fit, as they are divided."""
    position = tl.load(p_order + i_row, mask=m_row, other=0)
    if NARROW:
        return position.to(tl.int32)
    else:
        return position


@triton.jit
def _any(condition):
    return tl.max(condition.to(tl.int32), 0) != 0


@triton.jit
def _column_offsets(i_block, N: tl.constexpr, V: tl.constexpr):
    """[1, N, 1] int64: the first column of each group of V."""
    return ((i_block.to(tl.int64) * N + tl.arange(0, N)) * V)[None, :, None]


@triton.jit
def _border_offsets(
    i_chunk, i_level, i_slot, k, o_group, columns, LEVELS: tl.constexpr, T: tl.constexpr, V: tl.constexpr,
    VECTOR: tl.constexpr,
):  # fmt: skip
    """Offsets of task k's part of one chunk's border, for groups of columns."""
    o_row = (((i_chunk * LEVELS + i_level) * 2 + i_slot) * T + k) * columns
    o = o_row + o_group
    return tl.multiple_of(o, [VECTOR, VECTOR, VECTOR]) + tl.arange(0, V)[None, None, :]


@triton.jit
def _cleared(tiles, m, C: tl.constexpr, T: tl.constexpr):
    """T tiles [C, N, V] with zeros where ``m`` [C], which is true somewhere."""
    out = ()
    for k in tl.static_range(T):
        if C == 1:
            out = out + (tl.zeros_like(tiles[k]),)
        else:
            out = out + (tl.where(m[:, None, None], 0.0, tiles[k]),)
    return out


@triton.jit
def _added_where(left, right, m, C: tl.constexpr, T: tl.constexpr):
    """T sums, ``right`` counted where ``m`` [C], which is true somewhere."""
    out = ()
    for k in tl.static_range(T):
        if C == 1:
            out = out + (left[k] + right[k],)
        else:
            out = out + (left[k] + tl.where(m[:, None, None], right[k], 0.0),)
    return out


@triton.jit
def _add_pairs(sums, tiles, m, T: tl.constexpr):
    """``sums`` [C, N] of pairs k >= j with the products of T tiles [C, N, V], counted where ``m`` [C]."""
    out = ()
    for k in tl.static_range(T):
        for j in tl.static_range(k + 1):
            product = tl.sum(tiles[k] * tiles[j], 2)
            out = out + (sums[k * (k + 1) // 2 + j] + tl.where(m[:, None], product, 0.0),)
    return out


@triton.jit
def _row(q_sums, m_sums, N: tl.constexpr, PAIRS: tl.constexpr, HALF: tl.constexpr):
    """[2 HALF]: sums [N] as a row of partial results."""
    return moments_row(pair_row(q_sums, N, PAIRS, HALF), pair_row(m_sums, N, PAIRS, HALF), HALF)


@triton.jit
def _store_parts(
    p_borders, i_chunk, i_level, i_slot, tiles, m_lane, o_group, columns, LEVELS: tl.constexpr, C: tl.constexpr,
    N: tl.constexpr, V: tl.constexpr, VECTOR: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """Write T tiles [C, N, V] where ``m_lane`` [C]; 8 columns in two parts of 16 bytes, by the threads that have them."""
    W: tl.constexpr = 4 if V == 8 else V
    m = tl.broadcast_to(m_lane[:, None, None] & (o_group < columns), [C, N, W])
    for k in tl.static_range(T):
        o = _border_offsets(
            i_chunk[:, None, None], i_level, i_slot[:, None, None], k, o_group, columns, LEVELS, T, W, VECTOR
        )
        if V == 8:
            left, right = tl.split(tl.permute(tl.reshape(tiles[k], [C, N, 2, 4]), [0, 1, 3, 2]))
            tl.store(p_borders + o, left, mask=m)
            tl.store(p_borders + o + 4, right, mask=m)
        else:
            tl.store(p_borders + o, tiles[k], mask=m)


@triton.jit(do_not_specialize=["present", "rows", "length", "blocks", "padding"])
def embedding_chunks(
    p_indices,  # [rows], sorted
    p_order,  # [rows] int64: where they were
    grads,  # T tensors [rows, columns]
    p_borders,  # [chunks, LEVELS, 2, T, columns] float32
    p_partials,
    present,
    padding,  # the index whose rows do not count, -1 for none
    rows,
    sample_rows,  # rows of one sample
    columns,
    length,  # rows of a chunk
    blocks,  # of columns
    row_sizes,
    row_strides,  # of each gradient
    column_strides,
    T: tl.constexpr,
    RANK: tl.constexpr,
    C: tl.constexpr,  # chunks that a program walks side by side
    N: tl.constexpr,
    V: tl.constexpr,
    BORDER_VECTOR: tl.constexpr,  # what all steps between groups of borders are multiples of; those of gradients are of V
    AHEAD: tl.constexpr,  # rows that are read at a time
    PER_SAMPLE: tl.constexpr,
    NARROW: tl.constexpr,
    HALF: tl.constexpr,
):
    """Reads each gradient once. A row of ``p_partials`` for each program: sums of Q and M over the segments inside."""
    PAIRS: tl.constexpr = T * (T + 1) // 2
    LEVELS: tl.constexpr = 2 if PER_SAMPLE else 1
    i_program = tl.program_id(0)
    o_group = _column_offsets(i_program % blocks, N, V)
    i_chunk = (i_program // blocks).to(tl.int64) * C + tl.arange(0, C)
    first = i_chunk * length
    last = tl.minimum(first + length, rows)
    m_chunk = first < rows
    m_before = m_chunk & (first > 0)

    # The index and sample of the open segments, and whether these started in the chunk.
    index = tl.load(p_indices + first, mask=m_chunk, other=0)
    sample = _position(p_order, first, m_chunk, NARROW) // sample_rows
    before = tl.load(p_indices + first - 1, mask=m_before, other=0)
    started_M = ~m_before | (before != index)
    started_Q = started_M | (_position(p_order, first - 1, m_before, NARROW) // sample_rows != sample)
    parts_M = repeated(tl.zeros([C, N, V], tl.float32), T)
    parts_Q = repeated(tl.zeros([C, N, V], tl.float32), T)
    m_sums = repeated(tl.zeros([C, N], tl.float32), PAIRS)
    q_sums = repeated(tl.zeros([C, N], tl.float32), PAIRS)
    slot_0 = tl.zeros([C], tl.int64)

    for i in range(0, length, AHEAD):
        indices = ()
        samples = ()
        tiles = ()
        for a in tl.static_range(AHEAD):
            i_row = first + i + a
            m_row = i_row < last
            next_index = tl.where(m_row, tl.load(p_indices + i_row, mask=m_row, other=0), index)
            position = _position(p_order, i_row, m_row, NARROW)
            m = (m_row & (next_index != padding))[:, None, None] & (o_group < columns)
            m = tl.broadcast_to(m, [C, N, V])
            for k in tl.static_range(T):
                o_row = offsets_of(position.to(tl.int64), row_sizes, row_strides[k], RANK)
                o = o_row[:, None, None] + o_group * column_strides[k]
                o = tl.multiple_of(o, [V, V, V]) + tl.arange(0, V)[None, None, :]
                # Converted when it is used: until then it takes fewer registers.
                tiles = tiles + (tl.load(grads[k] + o, mask=m & (((present >> k) & 1) != 0), other=0.0),)
            indices = indices + (next_index,)
            samples = samples + (position // sample_rows,)
        for a in tl.static_range(AHEAD):
            m_row = first + i + a < last
            ends_M = m_row & (indices[a] != index)
            if PER_SAMPLE:
                ends_Q = ends_M | (m_row & (samples[a] != sample))
                if _any(ends_Q):
                    q_sums = _add_pairs(q_sums, parts_Q, ends_Q & started_Q, T)
                    _store_parts(
                        p_borders, i_chunk, 0, slot_0, parts_Q, ends_Q & ~started_Q, o_group, columns, LEVELS, C, N, V,
                        BORDER_VECTOR, T,
                    )  # fmt: skip
                    parts_M = _added_where(parts_M, parts_Q, ends_Q, C, T)
                    parts_Q = _cleared(parts_Q, ends_Q, C, T)
                    started_Q = started_Q | ends_Q
            if _any(ends_M):
                m_sums = _add_pairs(m_sums, parts_M, ends_M & started_M, T)
                _store_parts(
                    p_borders, i_chunk, LEVELS - 1, slot_0, parts_M, ends_M & ~started_M, o_group, columns, LEVELS, C,
                    N, V, BORDER_VECTOR, T,
                )  # fmt: skip
                parts_M = _cleared(parts_M, ends_M, C, T)
                started_M = started_M | ends_M
            row = ()
            for k in tl.static_range(T):
                row = row + (tiles[a * T + k].to(tl.float32),)
            if PER_SAMPLE:
                parts_Q = added(parts_Q, row, T)
            else:
                parts_M = added(parts_M, row, T)
            index = tl.where(m_row, indices[a], index)
            sample = tl.where(m_row, samples[a], sample)

    m_after = m_chunk & (last < rows)
    after = tl.load(p_indices + last, mask=m_after, other=0)
    open_M = m_after & (after == index)
    if PER_SAMPLE:
        open_Q = open_M & (_position(p_order, last, m_after, NARROW) // sample_rows == sample)
        parts_M = added(parts_M, parts_Q, T)
        q_sums = _add_pairs(q_sums, parts_Q, m_chunk & started_Q & ~open_Q, T)
        _store_parts(
            p_borders, i_chunk, 0, (open_Q & started_Q).to(tl.int64), parts_Q, m_chunk & (open_Q | ~started_Q),
            o_group, columns, LEVELS, C, N, V, BORDER_VECTOR, T,
        )  # fmt: skip
    m_sums = _add_pairs(m_sums, parts_M, m_chunk & started_M & ~open_M, T)
    _store_parts(
        p_borders, i_chunk, LEVELS - 1, (open_M & started_M).to(tl.int64), parts_M, m_chunk & (open_M | ~started_M),
        o_group, columns, LEVELS, C, N, V, BORDER_VECTOR, T,
    )  # fmt: skip
    row = _row(summed(q_sums, 0, PAIRS), summed(m_sums, 0, PAIRS), N, PAIRS, HALF)
    store_row(p_partials, i_program, row, 2 * HALF)


@triton.jit
def _parts_of(
    p_borders, i_chunk, i_level, i_slot, m_chunk, o_group, columns, LEVELS: tl.constexpr, R: tl.constexpr,
    N: tl.constexpr, V: tl.constexpr, VECTOR: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """T tiles [R, N, V]: one slot of R chunks."""
    m = tl.broadcast_to(m_chunk[:, None, None] & (o_group < columns), [R, N, V])
    out = ()
    for k in tl.static_range(T):
        o = _border_offsets(i_chunk[:, None, None], i_level, i_slot, k, o_group, columns, LEVELS, T, V, VECTOR)
        out = out + (tl.load(p_borders + o, mask=m, other=0.0),)
    return out


@triton.jit
def _chunks_of(
    p_indices, p_order, i_chunk, index, sample, rows, sample_rows, length, W: tl.constexpr, BY_SAMPLE: tl.constexpr,
    NARROW: tl.constexpr,
):  # fmt: skip
    """How many of the chunks after ``i_chunk`` the segment that is open at its end reaches into, at least 1."""
    count = i_chunk * 0 + 1
    goes_on = True
    while goes_on:
        # Of W more chunks: those whose end the segment passes come first.
        end = (i_chunk + count + 1 + tl.arange(0, W)) * length
        m = end < rows
        passes = m & (tl.load(p_indices + end, mask=m, other=0) == index)
        if BY_SAMPLE:
            passes = passes & (_position(p_order, end, m, NARROW) // sample_rows == sample)
        passed = tl.sum(passes.to(tl.int32), 0)
        count += passed
        goes_on = passed == W
    return count


@triton.jit
def _joined_segment(
    sums, p_indices, p_order, p_borders, i_chunk, i_level, o_group, padding, rows, sample_rows, columns, length,
    LEVELS: tl.constexpr, R: tl.constexpr, N: tl.constexpr, V: tl.constexpr, VECTOR: tl.constexpr, W: tl.constexpr,
    T: tl.constexpr, BY_SAMPLE: tl.constexpr, NARROW: tl.constexpr,
):  # fmt: skip
    """``sums`` [N] with the products of the segment that starts in a chunk and is open at its end, if there is one."""
    first = i_chunk * length
    last = first + length
    is_open = last < rows
    index = tl.load(p_indices + last, mask=is_open, other=0)
    sample = _position(p_order, last, is_open, NARROW) // sample_rows
    is_open = is_open & (tl.load(p_indices + last - 1, mask=is_open, other=0) == index) & (index != padding)
    m_before = is_open & (first > 0)
    passes = m_before & (tl.load(p_indices + first - 1, mask=m_before, other=0) == index)
    if BY_SAMPLE:
        is_open = is_open & (_position(p_order, last - 1, is_open, NARROW) // sample_rows == sample)
        passes = passes & (_position(p_order, first - 1, m_before, NARROW) // sample_rows == sample)
    if is_open & ~passes:
        count = _chunks_of(p_indices, p_order, i_chunk, index, sample, rows, sample_rows, length, W, BY_SAMPLE, NARROW)
        i_part = tl.arange(0, R)
        parts = _parts_of(
            p_borders, i_chunk + i_part, i_level, 1, i_part < 1, o_group, columns, LEVELS, R, N, V, VECTOR, T
        )
        for i in range(0, count, R):
            i_next = i + i_part
            more = _parts_of(
                p_borders, i_chunk + 1 + i_next, i_level, 0, i_next < count, o_group, columns, LEVELS, R, N, V, VECTOR, T
            )  # fmt: skip
            parts = added(parts, more, T)
        whole = summed(parts, 0, T)
        sums = add_products(sums, whole, whole, T)
    return sums


@triton.jit(do_not_specialize=["rows", "length", "blocks", "padding", "batch", "programs", "group"])
def embedding_borders(
    p_indices,
    p_order,
    p_borders,
    p_M,  # [T, T] float32
    p_Q,  # [T, T] float32
    p_partials,  # programs rows of `embedding_chunks`, then those of this launch
    p_tickets,
    padding,
    batch,
    rows,
    sample_rows,
    columns,
    length,
    blocks,
    programs,  # as many as of `embedding_chunks`, for the same chunks
    group,
    T: tl.constexpr,
    C: tl.constexpr,
    N: tl.constexpr,
    V: tl.constexpr,
    BORDER_VECTOR: tl.constexpr,
    R: tl.constexpr,  # parts that are read at a time
    W: tl.constexpr,  # chunks that are looked through at a time
    PER_SAMPLE: tl.constexpr,
    NARROW: tl.constexpr,
    HALF: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Joins the segments that cross the ends of chunks: each by the program of the chunk where it starts."""
    PAIRS: tl.constexpr = T * (T + 1) // 2
    LEVELS: tl.constexpr = 2 if PER_SAMPLE else 1
    i_program = tl.program_id(0)
    o_group = _column_offsets(i_program % blocks, N, V)
    m_sums = repeated(tl.zeros([N], tl.float32), PAIRS)
    q_sums = repeated(tl.zeros([N], tl.float32), PAIRS)
    for lane in range(0, C):
        i_chunk = (i_program // blocks).to(tl.int64) * C + lane
        if PER_SAMPLE:
            q_sums = _joined_segment(
                q_sums, p_indices, p_order, p_borders, i_chunk, 0, o_group, padding, rows, sample_rows, columns, length,
                LEVELS, R, N, V, BORDER_VECTOR, W, T, True, NARROW,
            )  # fmt: skip
        m_sums = _joined_segment(
            m_sums, p_indices, p_order, p_borders, i_chunk, LEVELS - 1, o_group, padding, rows, sample_rows, columns,
            length, LEVELS, R, N, V, BORDER_VECTOR, W, T, False, NARROW,
        )  # fmt: skip
    row = _row(q_sums, m_sums, N, PAIRS, HALF)
    row += tl.load(p_partials + i_program.to(tl.int64) * (2 * HALF) + tl.arange(0, 2 * HALF))
    p_own = p_partials + programs.to(tl.int64) * (2 * HALF)
    last, values = finish(row, p_own, p_tickets, i_program, programs, group, 2 * HALF, ROWS)
    if last:
        store_moments(p_M, p_Q, values, batch, T, HALF, PER_SAMPLE)
