"""What the updates of the weights share: limits of float32 and conditions that hold everywhere."""

import triton
import triton.language as tl

LARGEST = tl.constexpr(3.4028234663852886e38)  # of float32
SMALLEST = tl.constexpr(1.1754943508222875e-38)  # of float32, at full precision


@triton.jit
def is_finite(x):
    """Whether a float64 is neither infinite nor NaN."""
    return tl.abs(x) < float("inf")


@triton.jit
def at_least(x, least):
    """The larger one; NaN where x is."""
    return tl.where(x < least, least, x)


@triton.jit
def all_of(condition):
    """Whether a condition [P] holds everywhere."""
    return tl.min(condition.to(tl.int32), 0) != 0


@triton.jit
def all_pairs(condition):
    """Whether a condition [P, P] holds everywhere."""
    return all_of(tl.min(condition.to(tl.int32), 1))
