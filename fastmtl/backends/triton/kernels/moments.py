"""What kernels of moments end with: sums of pairs as rows of partial results, and M and Q from their sum."""

import triton
import triton.language as tl

from fastmtl.backends.triton.kernels.tiles import joined, repeated, store_symmetric


@triton.jit
def pair_row(sums, N: tl.constexpr, PAIRS: tl.constexpr, HALF: tl.constexpr):
    """[HALF], at least 2: PAIRS values [N] added over N; zeros past the last."""
    return tl.sum(joined(sums + repeated(tl.zeros([N], tl.float32), HALF - PAIRS), HALF), 0)


@triton.jit
def moments_row(q_row, m_row, HALF: tl.constexpr):
    """[2 HALF]: those of Q and M as one row."""
    return tl.reshape(tl.join(q_row, m_row), [2 * HALF])


@triton.jit
def store_moments(p_M, p_Q, values, batch, T: tl.constexpr, HALF: tl.constexpr, PER_SAMPLE: tl.constexpr):
    """M and Q [T, T] from the sum of all rows; Q is NaN unless PER_SAMPLE."""
    q_row, m_row = tl.split(tl.reshape(values, [HALF, 2]))
    i_pair = tl.arange(0, HALF)
    store_symmetric(p_M, m_row, i_pair, T)
    if PER_SAMPLE:
        store_symmetric(p_Q, q_row * batch, i_pair, T)
    else:
        store_symmetric(p_Q, tl.full([HALF], float("nan"), tl.float32), i_pair, T)
