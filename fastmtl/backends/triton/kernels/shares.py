"""Tiles of partial results: what each of the programs that share a block's samples leaves for the last of them."""

import triton
import triton.language as tl

from fastmtl.backends.triton.kernels.tiles import added, repeated, summed


@triton.jit
def store_tiles(p_tiles, i_share, tiles, COUNT: tl.constexpr, N: tl.constexpr, V: tl.constexpr):
    """Write a share's COUNT tiles [N, V]."""
    o = tl.arange(0, N)[:, None] * V + tl.arange(0, V)[None, :]
    for k in tl.static_range(COUNT):
        tl.store(p_tiles + (i_share.to(tl.int64) * COUNT + k) * (N * V) + o, tiles[k])


@triton.jit
def sum_tiles(p_tiles, first, count, COUNT: tl.constexpr, R: tl.constexpr, N: tl.constexpr, V: tl.constexpr):
    """COUNT tiles [N, V], added over the shares first ... first + count - 1, R at a time in a fixed order.

    Volatile: other programs of this launch wrote them.
    """
    o = tl.arange(0, N)[None, :, None] * V + tl.arange(0, V)[None, None, :]
    sums = repeated(tl.zeros([R, N, V], tl.float32), COUNT)
    for i in range(0, count, R):
        i_share = i + tl.arange(0, R)[:, None, None]
        m = tl.broadcast_to(i_share < count, [R, N, V])
        more = ()
        for k in tl.static_range(COUNT):
            p = p_tiles + ((first + i_share).to(tl.int64) * COUNT + k) * (N * V) + o
            more = more + (tl.load(p, mask=m, other=0.0, volatile=True),)
        sums = added(sums, more, COUNT)
    return summed(sums, 0, COUNT)
