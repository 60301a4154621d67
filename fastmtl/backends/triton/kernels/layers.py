"""Moments of a layer's weight and bias from tiles of the weight gradients of all tasks, formed in registers.

A layer is a sum over positions (tokens, output pixels) of products of inputs and gradients at the output:
c_k[i, o] = sum_s a[i, s] delta_k[s, o]. The rows i are the inputs of a position: channels, for a convolution channels
and elements of its kernel, unfolded here by index arithmetic. The bias is added up by programs of its own.
"""

import triton
import triton.language as tl

from fastmtl.backends.triton.kernels.finish import finish
from fastmtl.backends.triton.kernels.tiles import add_products, added, joined, pair_of, repeated, store_symmetric


@triton.jit
def coordinates(i_position, sizes, reciprocals, RANK: tl.constexpr, QUICK: tl.constexpr):
    """A tuple of RANK coordinates of positions, counted through ``sizes`` with the last dimension fastest.

    Where QUICK, x // size is floor((x + 1) r / 2^32), r = floor((2^32 - 1) / size), which holds for (x + 1) size <= 2^32.
    """
    rest = i_position
    out = ()
    for dim in tl.static_range(RANK - 1, 0, -1):
        if QUICK:
            reciprocal = (reciprocals[dim].to(tl.int64) >> 1).to(tl.uint32)
            outer = tl.umulhi((rest + 1).to(tl.uint32), reciprocal + tl.zeros_like(rest).to(tl.uint32)).to(tl.int32)
        else:
            outer = rest // sizes[dim]
        out = (rest - outer * sizes[dim],) + out
        rest = outer
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
def flat_tiles(tiles, T: tl.constexpr, WARPS: tl.constexpr):
    """T tiles as of `by_thread`."""
    out = ()
    for k in tl.static_range(T):
        out = out + (by_thread(tiles[k], WARPS),)
    return out


@triton.jit
def of_present(values, present, i_pair, T: tl.constexpr):
    """Values of pairs; zeros for tasks without a gradient, whatever the inputs are."""
    row, column = pair_of(i_pair, T)
    return tl.where(((present >> row) & (present >> column) & 1) != 0, values, 0.0)


@triton.jit
def pair_sums(sums, N: tl.constexpr, T: tl.constexpr, HALF: tl.constexpr):
    """[HALF]: a tuple of sums [N] of each pair, added up, and filled up with zeros."""
    PAIRS: tl.constexpr = T * (T + 1) // 2
    return tl.sum(joined(sums + repeated(tl.zeros([N], tl.float32), HALF - PAIRS), HALF), 0)


@triton.jit
def products_of_tiles(tiles, N: tl.constexpr, T: tl.constexpr, HALF: tl.constexpr):
    """[HALF]: inner products of each pair of T tiles [N, V]."""
    nothing = repeated(tl.zeros([N], tl.float32), T * (T + 1) // 2)
    return pair_sums(add_products(nothing, tiles, tiles, T), N, T, HALF)


@triton.jit
def load_grads(
    grads, i_sample, i_group, i_position, i_out, m, present, layout,
    T: tl.constexpr, RANK: tl.constexpr, ALIKE: tl.constexpr, LONG: tl.constexpr, QUICK: tl.constexpr,
):  # fmt: skip
    """A tuple of T tiles [positions, outputs]; zeros for tasks without a gradient."""
    sizes, reciprocals, position_strides, strides = layout
    at = coordinates(i_position, sizes, reciprocals, RANK, QUICK)
    out = ()
    for k in tl.static_range(T):
        own = strides[0 if ALIKE else k]
        o_position = offsets(at, position_strides[0 if ALIKE else k], RANK, LONG)
        p = grads[k] + (i_sample * own[0] + i_group * own[1])
        p = p + (o_position[:, None] + (i_out.to(LONG) * own[2])[None, :])
        out = out + (tl.load(p, mask=m & (((present >> k) & 1) != 0), other=0.0),)
    return out


@triton.jit
def load_inputs(
    p_rows, i_position, m_row, m_position, o_row, taps, geometry, layout,
    RANK: tl.constexpr, CHECKED: tl.constexpr, LONG: tl.constexpr, QUICK: tl.constexpr,
):  # fmt: skip
    """[rows, positions] of one sample."""
    sizes, reciprocals, position_strides = layout
    at = coordinates(i_position, sizes, reciprocals, RANK, QUICK)
    m = m_row[:, None] & m_position[None, :]
    if CHECKED[0] or CHECKED[1] or CHECKED[2]:
        m = m & inside(at, taps, geometry, RANK, CHECKED)
    return tl.load(p_rows + (o_row[:, None] + offsets(at, position_strides, RANK, LONG)[None, :]), mask=m, other=0.0)


@triton.jit
def store_slices(p_stored, o_stored, tiles, task_stride, T: tl.constexpr):
    """Write the T tiles of a slice."""
    for k in tl.static_range(T):
        tl.store(p_stored + k * task_stride + o_stored, tiles[k])


@triton.jit
def of_bias(
    grads, p_stored, task_stride, present, i_group, i_out, m_out, span, layout,
    T: tl.constexpr, BI: tl.constexpr, BO: tl.constexpr, BK: tl.constexpr, RANK: tl.constexpr, ALIKE: tl.constexpr,
    PER_SAMPLE: tl.constexpr, STORED: tl.constexpr, HALF: tl.constexpr, LONG: tl.constexpr,
    QUICK: tl.constexpr,
):  # fmt: skip
    """Contributions to Q and M [HALF] of some outputs' bias: of sums over positions, where STORED as a tile of one row."""
    first_sample, last_sample, first_position, last_position = span
    q_sums = repeated(tl.zeros([BO], tl.float32), T * (T + 1) // 2)
    sums = repeated(tl.zeros([BO, 1], tl.float32), T)
    for b in tl.range(first_sample, last_sample):
        sums_of_sample = repeated(tl.zeros([BO, 1], tl.float32), T)
        for i_first in tl.range(first_position, last_position, BK):
            i_position = i_first + tl.arange(0, BK)
            m = (i_position < last_position)[:, None] & m_out[None, :]
            deltas = load_grads(
                grads, b.to(tl.int64), i_group, i_position, i_out, m, present, layout, T, RANK, ALIKE, LONG, QUICK
            )
            added_up = ()
            for k in tl.static_range(T):
                added_up = added_up + (tl.sum(deltas[k].to(tl.float32), 0)[:, None],)
            sums_of_sample = added(sums_of_sample, added_up, T)
        if PER_SAMPLE:
            q_sums = add_products(q_sums, sums_of_sample, sums_of_sample, T)
        sums = added(sums, sums_of_sample, T)
    if STORED:
        tiles = ()
        for k in tl.static_range(T):
            tiles = tiles + (tl.where(tl.arange(0, BI)[None, :] == 0, sums[k], 0.0),)
        store_slices(p_stored, tl.arange(0, BO)[:, None] * BI + tl.arange(0, BI)[None, :], tiles, task_stride, T)
    return pair_sums(q_sums, BO, T, HALF), products_of_tiles(sums, BO, T, HALF)


@triton.jit
def of_weight(
    p_inputs, grads, p_stored, task_stride, present, i_group, i_first_row, i_out, m_out, span,
    channels, rows, area, kernel, geometry, layout, tap_strides, input_strides, grad_layout,
    T: tl.constexpr, BI: tl.constexpr, BO: tl.constexpr, BK: tl.constexpr, RANK: tl.constexpr, GRAD_RANK: tl.constexpr,
    ALIKE: tl.constexpr, CHECKED: tl.constexpr, CHANNELS_INNER: tl.constexpr, ONE_TAP: tl.constexpr,
    PER_SAMPLE: tl.constexpr, BATCH: tl.constexpr, ONE_STEP: tl.constexpr, STORED: tl.constexpr, OPERAND: tl.constexpr,
    PRECISION: tl.constexpr, HALF: tl.constexpr, WARPS: tl.constexpr, LONG: tl.constexpr, QUICK: tl.constexpr,
):  # fmt: skip
    """Contributions to Q and M [HALF] of a tile of the weight."""
    first_sample, last_sample, first_position, last_position = span
    N: tl.constexpr = 32 * WARPS
    V: tl.constexpr = BI * BO // N
    i_row = i_first_row + tl.arange(0, BI)
    m_row = i_row < rows
    channel, tap_d, tap_h, tap_w = tap_of(i_row, channels, area, kernel, CHANNELS_INNER)
    if ONE_TAP:
        _, tap_d, tap_h, tap_w = tap_of(i_first_row + tl.arange(0, 1), channels, area, kernel, CHANNELS_INNER)
    taps = (tap_d, tap_h, tap_w)
    o_row = channel.to(LONG) * input_strides[2] + offsets(taps, tap_strides, 3, LONG)
    q_sums = repeated(tl.zeros([N], tl.float32), T * (T + 1) // 2)
    sums = repeated(tl.zeros([N, V], tl.float32), T)
    # Offsets and masks are computed again rather than kept: registers are short.
    for b in tl.range(first_sample, last_sample, disable_licm=True):
        i_sample = b.to(tl.int64)
        tiles = repeated(tl.zeros([BI, BO], tl.float32), T)
        # A loop of one step vanishes: the next sample's loads are then under way during this one's products.
        for i_first in tl.range(first_position, BK if ONE_STEP else last_position, BK, disable_licm=True):
            i_position = i_first + tl.arange(0, BK)
            m_position = i_position < last_position
            a = load_inputs(
                p_inputs + i_sample * input_strides[0], i_position, m_row, m_position, o_row, taps, geometry, layout,
                RANK, CHECKED, LONG, QUICK,
            )  # fmt: skip
            m = m_position[:, None] & m_out[None, :]
            deltas = load_grads(
                grads, i_sample, i_group, i_position, i_out, m, present, grad_layout, T, GRAD_RANK, ALIKE, LONG, QUICK
            )
            # Tensor cores truncate as they add: they add up BK positions, the rest is rounded. Written as fma, as a
            # product that is followed by a sum would become a product that accumulates.
            summed_up = ()
            for k in tl.static_range(T):
                part = tl.dot(a.to(OPERAND), deltas[k].to(OPERAND), input_precision=PRECISION)
                summed_up = summed_up + (tl.fma(part, tl.full([1, 1], 1.0, tl.float32), tiles[k]),)
            tiles = summed_up
        flat = flat_tiles(tiles, T, WARPS)
        if PER_SAMPLE:
            q_sums = add_products(q_sums, flat, flat, T)
            if BATCH:
                sums = added(sums, flat, T)
        else:
            sums = flat
    values = tl.zeros([HALF], tl.float32)
    if STORED:
        store_slices(p_stored, tl.arange(0, N)[:, None] * V + tl.arange(0, V)[None, :], sums, task_stride, T)
    elif BATCH:
        values = products_of_tiles(sums, N, T, HALF)
    return pair_sums(q_sums, N, T, HALF), values


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
    rows,  # inputs of a position
    outputs,  # of a group
    tiles_in,  # of the rows, and one of the bias
    tiles_out,
    tiles,  # of all groups
    slices,  # of the samples, or of the positions unless PER_SAMPLE: programs that share a tile
    programs,
    group,
    area,  # elements of the kernel
    kernel,  # its three sizes
    geometry,  # steps, paddings, dilations of the kernel and extents of the inputs, three each
    sizes,  # of the positions
    reciprocals,  # 2 r + 1 of each size, as of `coordinates`, and 2^40: odd and of 64 bits, for one variant of the kernel
    position_strides,  # of the inputs, between positions
    tap_strides,  # of the inputs, between elements of the kernel
    input_strides,  # sample, group, channel
    input_start,  # offset of the first element of the kernel at the first position
    grad_sizes,
    grad_reciprocals,
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
    ONE_TAP: tl.constexpr,  # whether all rows of a tile are channels under one element of the kernel
    BIAS: tl.constexpr,
    PER_SAMPLE: tl.constexpr,  # whether Q is formed
    BATCH: tl.constexpr,  # whether M is formed
    ONE_STEP: tl.constexpr,  # whether BK positions are all of a sample
    SLICED: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    HALF: tl.constexpr,
    ROWS: tl.constexpr,
    WARPS: tl.constexpr,
    LONG: tl.constexpr,  # int64, or int32 where no tensor reaches further
    QUICK: tl.constexpr,  # as of `coordinates`
):
    """A program takes a tile [BI, BO] of all tasks' gradients, and all samples or a slice of them.

    Each gradient is read once for every tile of rows and for the bias, each input once for every tile of outputs and
    element of the kernel that meets it: with t_i = ceil(rows / BI) + bias and t_o = ceil(outputs / BO) that is, of
    elements, T * samples * positions * groups * outputs * t_i and samples * groups * channels * (pixels under the
    kernel, over all its positions) * t_o.
    """
    i_program = tl.program_id(0)
    i_slice = i_program % slices
    i_tile = i_program // slices
    i_out = i_tile % tiles_out * BO + tl.arange(0, BO)
    i_tile_in = i_tile // tiles_out % tiles_in
    i_group = (i_tile // tiles_out // tiles_in).to(tl.int64)
    m_out = i_out < outputs
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

    # Of the slice and the tile; another task's lie `tiles` tiles further.
    p_stored = p_slices + (i_slice.to(tl.int64) * T * tiles + i_tile) * (BI * BO)
    task_stride = tiles.to(tl.int64) * (BI * BO)
    span = (first_sample, last_sample, first_position, last_position)
    grad_layout = (grad_sizes, grad_reciprocals, grad_position_strides, grad_strides)
    if BIAS and i_tile_in == tiles_in - 1:
        q_values, values = of_bias(
            grads, p_stored, task_stride, present, i_group, i_out, m_out, span, grad_layout,
            T, BI, BO, BK, GRAD_RANK, ALIKE, PER_SAMPLE, SLICED and BATCH, HALF, LONG, QUICK,
        )  # fmt: skip
    else:
        q_values, values = of_weight(
            p_inputs + i_group * input_strides[1] + input_start, grads, p_stored, task_stride, present, i_group,
            i_tile_in * BI, i_out, m_out, span, channels, rows, area, kernel, geometry, (sizes, reciprocals, position_strides),
            tap_strides, input_strides, grad_layout, T, BI, BO, BK, RANK, GRAD_RANK, ALIKE, CHECKED, CHANNELS_INNER,
            ONE_TAP, PER_SAMPLE, BATCH, ONE_STEP, SLICED and BATCH, OPERAND, PRECISION, HALF, WARPS, LONG, QUICK,
        )  # fmt: skip
    i_pair = tl.arange(0, HALF)
    if PER_SAMPLE:
        last, q_values = finish(q_values, p_q_partials, p_q_tickets, i_program, programs, group, HALF, ROWS)
        if last:
            store_symmetric(p_Q, of_present(q_values, present, i_pair, T), i_pair, T)
    if BATCH and not SLICED:
        last, values = finish(values, p_partials, p_tickets, i_program, programs, group, HALF, ROWS)
        if last:
            store_symmetric(p_M, of_present(values, present, i_pair, T), i_pair, T)


@triton.jit(do_not_specialize=["present", "slices", "programs", "group"])
def slice_moments(
    p_slices,  # [slices, T, length] float32: what slices of the batch contribute to the weight gradients
    p_M,  # [T, T] float32
    p_partials,
    p_tickets,
    present,
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
        i_pair = tl.arange(0, HALF)
        store_symmetric(p_M, of_present(values, present, i_pair, T), i_pair, T)
