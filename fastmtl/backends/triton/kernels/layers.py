"""Moments of a layer's weight and bias from tiles of the weight gradients of all tasks, formed in registers.

A layer is a sum over positions (tokens, output pixels) of products of inputs and gradients at the output:
c_k[i, o] = sum_s a[i, s] delta_k[s, o]. The rows i are the inputs of a position: channels, for a convolution channels
and elements of its kernel, unfolded here by index arithmetic; and for the bias one more that is 1.
"""

import triton
import triton.language as tl

from fastmtl.backends.triton.kernels.finish import finish
from fastmtl.backends.triton.kernels.tiles import add_products, joined, repeated, store_symmetric


@triton.jit
def coordinates(i_position, sizes, RANK: tl.constexpr):
    """A tuple of RANK coordinates of positions, counted through ``sizes`` with the last dimension fastest."""
    rest = i_position
    out = ()
    for dim in tl.static_range(RANK - 1, 0, -1):
        out = (rest % sizes[dim],) + out
        rest = rest // sizes[dim]
    return (rest,) + out


@triton.jit
def offsets(i_coordinates, strides, RANK: tl.constexpr, LONG: tl.constexpr):
    """Offsets of ``coordinates``, in integers of type LONG."""
    offset = i_coordinates[0].to(LONG) * strides[0]
    for dim in tl.static_range(1, RANK):
        offset += i_coordinates[dim].to(LONG) * strides[dim]
    return offset


@triton.jit
def tap_of(i_row, channels, area, kernel, CHANNELS_INNER: tl.constexpr):
    """Channel and element of the kernel, in three dimensions, of each row: with the channels innermost, or outermost."""
    if CHANNELS_INNER:
        channel = i_row % channels
        i_tap = i_row // channels
    else:
        i_tap = i_row % area
        channel = i_row // area
    return channel, i_tap // (kernel[1] * kernel[2]), i_tap // kernel[2] % kernel[1], i_tap % kernel[2]


@triton.jit
def inside(i_coordinates, taps, geometry, RANK: tl.constexpr, CHECKED: tl.constexpr):
    """[rows, positions]: whether what lies under an element of the kernel is a pixel and not padding.

    Only dimensions of ``CHECKED`` have padding; the last three coordinates are then those of the output.
    """
    steps, pads, dilations, extents = geometry
    m = (taps[0] >= 0)[:, None] & (i_coordinates[0] >= 0)[None, :]
    for dim in tl.static_range(3):
        if CHECKED[dim]:
            at = (taps[dim] * dilations[dim] - pads[dim])[:, None] + (i_coordinates[RANK - 3 + dim] * steps[dim])[
                None, :
            ]
            m = m & (at >= 0) & (at < extents[dim])
    return m


@triton.jit
def products_of_tiles(tiles, N: tl.constexpr, T: tl.constexpr, HALF: tl.constexpr):
    """[HALF]: inner products of each pair of T tiles [N, V], filled up with zeros."""
    PAIRS: tl.constexpr = T * (T + 1) // 2
    nothing = tl.zeros([N], tl.float32)
    sums = add_products(repeated(nothing, PAIRS), tiles, tiles, T)
    return tl.sum(joined(sums + repeated(nothing, HALF - PAIRS), HALF), 0)


@triton.jit
def by_thread(tile, WARPS: tl.constexpr):
    """[BI, BO] as [threads, V], with V numbers that one thread holds.

    Right for any layout, and free for that of the results of tensor cores: in 16 x 8 numbers a thread of a warp has
    those of rows i, i + 8 and columns 2 j, 2 j + 1.
    """
    BI: tl.constexpr = tile.shape[0]
    BO: tl.constexpr = tile.shape[1]
    DOWN: tl.constexpr = min(WARPS, BI // 16)
    ACROSS: tl.constexpr = WARPS // DOWN
    parts = tl.reshape(tile, [BI // (16 * DOWN), DOWN, 2, 8, BO // (8 * ACROSS), ACROSS, 4, 2])
    return tl.reshape(tl.permute(parts, [1, 3, 5, 6, 0, 2, 4, 7]), [32 * WARPS, BI * BO // (32 * WARPS)])


@triton.jit
def flat_tiles(tiles, present, T: tl.constexpr, WARPS: tl.constexpr):
    """T tiles as of `by_thread`; zeros for tasks without a gradient, whatever the inputs are."""
    out = ()
    for k in tl.static_range(T):
        out = out + (tl.where(((present >> k) & 1) != 0, by_thread(tiles[k], WARPS), 0.0),)
    return out


@triton.jit(do_not_specialize=["present", "samples", "programs", "group", "slices", "tiles_in", "tiles_out", "tiles"])
def form_moments(
    p_inputs,  # groups of channels at pixels of samples
    grads,  # T tensors: groups of outputs at positions of samples
    p_M,  # [T, T] float32
    p_Q,  # [T, T] float32: sum of the Gram matrices of samples
    p_slices,  # [slices, T, tiles, BI * BO] float32, where SLICED
    p_q_partials,  # for Q
    p_q_tickets,
    p_partials,  # for M
    p_tickets,
    present,
    samples,
    positions,  # of a sample; of all samples unless PER_SAMPLE
    channels,  # of a group
    rows,  # inputs of a position, without the one of the bias
    outputs,  # of a group
    tiles_in,
    tiles_out,
    tiles,  # of all groups
    slices,  # of the samples, or of the positions unless PER_SAMPLE: programs that share a tile
    programs,
    group,
    area,  # elements of the kernel
    kernel,  # its three sizes
    geometry,  # steps, paddings, dilations of the kernel and extents of the inputs, three each
    sizes,  # of the positions
    position_strides,  # of the inputs, between positions
    tap_strides,  # of the inputs, between elements of the kernel
    input_strides,  # sample, group, channel
    input_start,  # offset of the first element of the kernel at the first position
    grad_sizes,
    grad_position_strides,  # of each task, or of all if ALIKE
    grad_strides,  # sample, group, output, likewise
    T: tl.constexpr,
    BI: tl.constexpr,
    BO: tl.constexpr,
    BK: tl.constexpr,
    RANK: tl.constexpr,
    GRAD_RANK: tl.constexpr,
    ALIKE: tl.constexpr,
    CHECKED: tl.constexpr,
    CHANNELS_INNER: tl.constexpr,
    BIAS: tl.constexpr,
    PER_SAMPLE: tl.constexpr,  # whether Q is formed
    BATCH: tl.constexpr,  # whether M is formed
    SLICED: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    HALF: tl.constexpr,
    ROWS: tl.constexpr,
    WARPS: tl.constexpr,
    LONG: tl.constexpr,  # int64, or int32 where no tensor reaches further
    LEAN: tl.constexpr,  # whether offsets and masks are computed again rather than kept in registers
):
    """A program takes a tile [BI, BO] of all tasks' gradients, and all samples or a slice of them.

    Each gradient is read once for every tile of rows, each input once for every tile of outputs and element of the
    kernel that meets it: with t_i = ceil((rows + bias) / BI) and t_o = ceil(outputs / BO) that is, of elements,
    T * samples * positions * groups * outputs * t_i and samples * groups * channels * (pixels under the kernel,
    over all its positions) * t_o.
    """
    i_program = tl.program_id(0)
    PAIRS: tl.constexpr = T * (T + 1) // 2
    N: tl.constexpr = 32 * WARPS
    V: tl.constexpr = BI * BO // N
    i_slice = i_program % slices
    i_tile = i_program // slices
    i_out = i_tile % tiles_out * BO + tl.arange(0, BO)
    i_row = i_tile // tiles_out % tiles_in * BI + tl.arange(0, BI)
    i_group = (i_tile // tiles_out // tiles_in).to(tl.int64)
    m_row = i_row < rows
    m_out = i_out < outputs
    channel, tap_d, tap_h, tap_w = tap_of(i_row, channels, area, kernel, CHANNELS_INNER)
    taps = (tap_d, tap_h, tap_w)
    p_rows = p_inputs + i_group * input_strides[1] + input_start
    o_row = channel.to(LONG) * input_strides[2] + offsets(taps, tap_strides, 3, LONG)
    if PER_SAMPLE:
        a_slice = tl.cdiv(samples, slices)
        first_sample = i_slice * a_slice
        last_sample = tl.minimum(first_sample + a_slice, samples)
        first_position = 0
        last_position = positions
    else:
        a_slice = tl.cdiv(tl.cdiv(positions, BK), slices) * BK
        first_sample = 0
        last_sample = 1
        first_position = i_slice * a_slice
        last_position = tl.minimum(first_position + a_slice, positions)

    q_sums = repeated(tl.zeros([N], tl.float32), PAIRS)
    sums = repeated(tl.zeros([N, V], tl.float32), T)
    for b in tl.range(first_sample, last_sample, disable_licm=LEAN):
        i_sample = b.to(tl.int64)
        tiles_of_sample = repeated(tl.zeros([BI, BO], tl.float32), T)
        for i_first in tl.range(first_position, last_position, BK, disable_licm=LEAN):
            i_position = i_first + tl.arange(0, BK)
            m_position = i_position < last_position
            at = coordinates(i_position, sizes, RANK)
            m = m_row[:, None] & m_position[None, :]
            if CHECKED[0] or CHECKED[1] or CHECKED[2]:
                m = m & inside(at, taps, geometry, RANK, CHECKED)
            p = (
                p_rows
                + i_sample * input_strides[0]
                + (o_row[:, None] + offsets(at, position_strides, RANK, LONG)[None, :])
            )
            a = tl.load(p, mask=m, other=0.0).to(OPERAND)
            if BIAS:
                a = tl.where((i_row == rows)[:, None], tl.full([1, 1], 1.0, OPERAND), a)
            at_grad = coordinates(i_position, grad_sizes, GRAD_RANK)
            added = ()
            m_grad = m_position[:, None] & m_out[None, :]
            for k in tl.static_range(T):
                own = grad_strides[0 if ALIKE else k]
                o_grad = (
                    offsets(at_grad, grad_position_strides[0 if ALIKE else k], GRAD_RANK, LONG)[:, None]
                    + (i_out.to(LONG) * own[2])[None, :]
                )
                p = grads[k] + (i_sample * own[0] + i_group * own[1]) + o_grad
                delta = tl.load(p, mask=m_grad & (((present >> k) & 1) != 0), other=0.0).to(OPERAND)
                # Tensor cores truncate as they add: they add up BK positions, the rest is rounded. Written as fma,
                # as a product that is followed by a sum would become a product that accumulates.
                part = tl.dot(a, delta, input_precision=PRECISION)
                added = added + (tl.fma(part, tl.full([1, 1], 1.0, tl.float32), tiles_of_sample[k]),)
            tiles_of_sample = added
        flat = flat_tiles(tiles_of_sample, present, T, WARPS)
        if PER_SAMPLE:
            q_sums = add_products(q_sums, flat, flat, T)
            if BATCH:
                added = ()
                for k in tl.static_range(T):
                    added = added + (sums[k] + flat[k],)
                sums = added
        else:
            sums = flat
    i_pair = tl.arange(0, HALF)
    # Q is finished before M is begun: the registers hold the pairs of one of them.
    if PER_SAMPLE:
        values = tl.sum(joined(q_sums + repeated(tl.zeros([N], tl.float32), HALF - PAIRS), HALF), 0)
        last, values = finish(values, p_q_partials, p_q_tickets, i_program, programs, group, HALF, ROWS)
        if last:
            store_symmetric(p_Q, values, i_pair, T)
    if SLICED and BATCH:
        for k in tl.static_range(T):
            i_stored = (i_slice.to(tl.int64) * T + k) * tiles + i_tile
            o_stored = tl.arange(0, N)[:, None] * V + tl.arange(0, V)[None, :]
            tl.store(p_slices + i_stored * (N * V) + o_stored, sums[k])
    elif BATCH:
        values = products_of_tiles(sums, N, T, HALF)
        last, values = finish(values, p_partials, p_tickets, i_program, programs, group, HALF, ROWS)
        if last:
            store_symmetric(p_M, values, i_pair, T)


@triton.jit(do_not_specialize=["slices", "programs", "group"])
def slice_moments(
    p_slices,  # [slices, T, length] float32: what slices of the batch contribute to the weight gradients
    p_M,  # [T, T] float32
    p_partials,
    p_tickets,
    length,
    slices,
    programs,
    group,
    T: tl.constexpr,
    N: tl.constexpr,
    HALF: tl.constexpr,
    ROWS: tl.constexpr,
):
    """M of the sums over slices, which are added in their order; each number is read once."""
    i_program = tl.program_id(0)
    values = tl.zeros([HALF], tl.float32)
    for i_block in range(i_program, tl.cdiv(length, 4 * N), programs):
        o_group = i_block.to(tl.int64) * (4 * N) + tl.arange(0, N)[:, None] * 4
        o = o_group + tl.arange(0, 4)[None, :]
        m = tl.broadcast_to(o_group < length, [N, 4])  # the length is a multiple of 4
        sums = repeated(tl.zeros([N, 4], tl.float32), T)
        for i_slice in range(slices):
            added = ()
            for k in tl.static_range(T):
                i_stored = i_slice.to(tl.int64) * T + k
                added = added + (sums[k] + tl.load(p_slices + i_stored * length + o, mask=m, other=0.0),)
            sums = added
        values += products_of_tiles(sums, N, T, HALF)
    last, values = finish(values, p_partials, p_tickets, i_program, programs, group, HALF, ROWS)
    if last:
        store_symmetric(p_M, values, tl.arange(0, HALF), T)
