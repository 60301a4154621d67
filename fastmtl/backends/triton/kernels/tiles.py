"""Tiles of positions, and tuples of tiles."""

import triton
import triton.language as tl


@triton.jit
def offsets_of(i_position, sizes, strides, RANK: tl.constexpr):
    """Offsets of positions (int64, any shape), counted through ``sizes`` with the last dimension fastest."""
    rest = i_position
    offset = i_position * 0
    for dim in tl.static_range(RANK - 1, 0, -1):
        offset += (rest % sizes[dim]) * strides[dim]
        rest = rest // sizes[dim]
    return offset + rest * strides[0]


@triton.jit
def positions_of(i_block, N: tl.constexpr, V: tl.constexpr, NB: tl.constexpr = 1):
    """[N, 1] and [N, V] int64: the first position of each group of V, and all positions, of a block; NB times over."""
    i_group = tl.arange(0, NB * N)
    if NB > 1:
        i_group = i_group % N
    o_group = i_block.to(tl.int64) * (N * V) + i_group.to(tl.int64)[:, None] * V
    return o_group, o_group + tl.arange(0, V)[None, :]


@triton.jit
def tile_offsets(
    i_block, sizes, strides, RANK: tl.constexpr, N: tl.constexpr, V: tl.constexpr, VECTOR: tl.constexpr,
    NB: tl.constexpr = 1,
):  # fmt: skip
    """[NB * N, V] offsets of a block of positions, NB times over; in aligned groups of V where ``VECTOR``."""
    o_group, o_position = positions_of(i_block, N, V, NB)
    if VECTOR:
        return tl.multiple_of(offsets_of(o_group, sizes, strides, RANK), [V, V]) + tl.arange(0, V)[None, :]
    else:
        return offsets_of(o_position, sizes, strides, RANK)


@triton.jit
def tile_mask(i_block, positions, N: tl.constexpr, V: tl.constexpr, VECTOR: tl.constexpr, NB: tl.constexpr = 1):
    """[NB * N, V]: which positions of a block exist; the same for a whole group where ``VECTOR``: it is read at once."""
    o_group, o_position = positions_of(i_block, N, V, NB)
    if VECTOR:
        return tl.broadcast_to(o_group < positions, [NB * N, V])
    else:
        return o_position < positions


@triton.jit
def load_tile(p, m, k: tl.constexpr, present):
    """Task k's values in float32; zeros, and nothing read, where its bit of ``present`` is not set."""
    return tl.load(p, mask=m & (((present.to(tl.int64) >> k) & 1) != 0), other=0.0).to(tl.float32)


@triton.jit
def repeated(value, COUNT: tl.constexpr):
    """A tuple of COUNT times ``value``."""
    out = ()
    for _ in tl.static_range(COUNT):
        out = out + (value,)
    return out


@triton.jit
def added(left, right, COUNT: tl.constexpr):
    """The sums of two tuples."""
    out = ()
    for k in tl.static_range(COUNT):
        out = out + (left[k] + right[k],)
    return out


@triton.jit
def summed(tiles, AXIS: tl.constexpr, COUNT: tl.constexpr):
    """Each of COUNT tiles, added over one dimension.

    Rather than flattened by a reshape: Triton 3.6 counts the numbers of a reduced tile, reshaped, more than once.
    """
    out = ()
    for k in tl.static_range(COUNT):
        out = out + (tl.sum(tiles[k], AXIS),)
    return out


@triton.jit
def _stacked(values, COUNT: tl.constexpr):
    """[..., 2, 2, ...] of a tuple of COUNT values [...], a power of two, in their order."""
    if COUNT == 1:
        return values[0]
    else:
        half: tl.constexpr = COUNT // 2
        out = ()
        for i in tl.static_range(half):
            out = out + (tl.join(values[i], values[i + half]),)
        return _stacked(out, half)


@triton.jit
def joined(values, COUNT: tl.constexpr):
    """[N, COUNT] of a tuple of COUNT values [N], a power of two from 2 on. Stays in each thread's registers."""
    return tl.reshape(_stacked(values, COUNT), [values[0].shape[0], COUNT])


@triton.jit
def add_products(sums, left, right, T: tl.constexpr, AXIS: tl.constexpr = 1):
    """``sums`` of each pair k >= j, with the products of left_k and right_j added over AXIS: [N] and [N, V], or the like."""
    out = ()
    for k in tl.static_range(T):
        for j in tl.static_range(k + 1):
            out = out + (sums[k * (k + 1) // 2 + j] + tl.sum(left[k] * right[j], AXIS),)
    return out


@triton.jit
def lanes(tile, N: tl.constexpr, V: tl.constexpr):
    """A tuple of the V columns [N] of a tile [N, V], in no particular order. Stays in each thread's registers."""
    if V == 1:
        return (tl.sum(tile, 1),)
    elif V == 2:
        return tl.split(tl.reshape(tile, [N, 2]))
    else:
        left, right = tl.split(tl.reshape(tile, [N, V // 2, 2]))
        return lanes(left, N, V // 2) + lanes(right, N, V // 2)


@triton.jit
def all_lanes(tiles, T: tl.constexpr, N: tl.constexpr, V: tl.constexpr):
    """A tuple of the `lanes` of T tiles: V of the first, V of the second, ..."""
    out = ()
    for k in tl.static_range(T):
        out = out + lanes(tiles[k], N, V)
    return out


@triton.jit
def add_pairs(sums, tiles, T: tl.constexpr, N: tl.constexpr, V: tl.constexpr):
    """As `add_products` of tiles [N, V] with themselves, an instruction for each product.

    Lane by lane: few values of a tile of 16-bit numbers are held in float32 at once.
    """
    values = all_lanes(tiles, T, N, V)
    for v in tl.static_range(V):
        out = ()
        for k in tl.static_range(T):
            for j in tl.static_range(k + 1):
                out = out + (tl.fma(values[k * V + v], values[j * V + v], sums[k * (k + 1) // 2 + j]),)
        sums = out
    return sums


@triton.jit
def add_squares(sums, tiles, T: tl.constexpr):
    """``sums`` [N] of each of T tiles [N, V] with the squares of its values."""
    out = ()
    for k in tl.static_range(T):
        out = out + (sums[k] + tl.sum(tiles[k] * tiles[k], 1),)
    return out


@triton.jit
def pair_of(i_pair, T: tl.constexpr):
    """Row and column, row >= column, of the i-th pair in the order of `add_products`; rows past T for pairs past the last."""
    row = i_pair * 0
    for k in tl.static_range(1, T + 1):
        row += (i_pair >= k * (k + 1) // 2).to(tl.int32)
    return row, i_pair - row * (row + 1) // 2


@triton.jit
def store_symmetric(p_matrix, values, i_pair, T: tl.constexpr):
    """Write the values of pairs to both halves of a [T, T] matrix."""
    row, column = pair_of(i_pair, T)
    m_pair = row < T
    tl.store(p_matrix + row * T + column, values, mask=m_pair)
    tl.store(p_matrix + column * T + row, values, mask=m_pair & (row != column))
