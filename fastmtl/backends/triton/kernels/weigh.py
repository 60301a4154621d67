"""The weighted sum of the losses, and the message for the fork."""

import triton
import triton.language as tl


@triton.jit
def weigh(
    losses,  # T tensors of one element
    p_weights,  # [T] float32
    p_present,  # [T] bool
    p_loss,  # [] float64 or float32
    p_message,  # [2 + 3 T] float32
    T: tl.constexpr,
    WIDTH: tl.constexpr,  # T as a power of two, at least 2
):
    """As `fastmtl.backends.reference.weigh`, in the dtype of ``p_loss``; one program."""
    DTYPE: tl.constexpr = p_loss.dtype.element_ty
    i_task = tl.arange(0, WIDTH)
    m = i_task < T
    values = tl.zeros([WIDTH], DTYPE)
    for k in tl.static_range(T):
        values = tl.where(i_task == k, tl.load(losses[k]).to(DTYPE), values)
    weights = tl.load(p_weights + i_task, mask=m, other=0.0)
    present = m & (tl.load(p_present + i_task, mask=m, other=0) != 0)
    # What an absent task has in place of a loss may be NaN.
    tl.store(p_loss, tl.sum(tl.where(present, weights.to(DTYPE) * values, 0.0), 0))
    tl.store(p_message + i_task, tl.full([WIDTH], 1.0, tl.float32), mask=i_task < 2)
    tl.store(p_message + 2 + i_task, values.to(tl.float32), mask=m)
    tl.store(p_message + 2 + T + i_task, weights, mask=m)
    tl.store(p_message + 2 + 2 * T + i_task, present.to(tl.float32), mask=m)
