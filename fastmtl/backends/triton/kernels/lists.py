"""Kernels over lists of columns: T tensors each, of any length, many columns a launch; one tile of each task in registers.

A launch takes G columns: T * G pointers by value, and where each column ends in the row of all blocks of the launch. Every
program takes one run of that row, so it meets few columns and chooses their pointers rarely. Columns whose tensors lie
alike are flat runs (``RANK`` 0); one whose tensors do not is a launch of its own, with sizes and strides.

In tuples Triton compiles a variant for each pattern of ones and of multiples of 16, whatever ``do_not_specialize`` says:
integers that change from call to call are passed as 2 x + 1, for x > 0 (``odd``).
"""

import triton
import triton.language as tl

from fastmtl.backends.triton.kernels.finish import finish
from fastmtl.backends.triton.kernels.tiles import (
    add_pairs,
    joined,
    load_tile,
    pair_of,
    positions_of,
    repeated,
    store_symmetric,
    tile_mask,
    tile_offsets,
)


@triton.jit
def chosen(values, i, COUNT: tl.constexpr):
    """The i-th of COUNT scalars."""
    out = values[0]
    for c in tl.static_range(1, COUNT):
        out = tl.where(i == c, values[c], out)
    return out


@triton.jit
def address_of(tensors, i_column, k: tl.constexpr, G: tl.constexpr):
    """Where task k's tensor of a column starts, int64."""
    out = tensors[0][k].to(tl.int64)
    for g in tl.static_range(1, G):
        out = tl.where(i_column == g, tensors[g][k].to(tl.int64), out)
    return out


@triton.jit
def out_address(outs, i_column, G: tl.constexpr):
    """Where the output of a column starts, int64."""
    out = outs[0].to(tl.int64)
    for g in tl.static_range(1, G):
        out = tl.where(i_column == g, outs[g].to(tl.int64), out)
    return out


@triton.jit
def addresses_of(tensors, i_column, START: tl.constexpr, COUNT: tl.constexpr, G: tl.constexpr):
    """A tuple of COUNT: where the tensors of task START and those after it start in a column, int64."""
    out = ()
    for j in tl.static_range(COUNT):
        out = out + (address_of(tensors, i_column, START + j, G),)
    return out


@triton.jit
def column_at(ends, i_block, G: tl.constexpr):
    """Which column a block of the row of all blocks belongs to."""
    i_column = i_block * 0
    for g in tl.static_range(G - 1):
        # Counting the ends that are passed would be made vector code, which reserves local memory.
        i_column = tl.where(i_block >= (ends[g] >> 1), g + 1, i_column)
    return i_column


@triton.jit
def run_of(i_program, programs, blocks):
    """The first block of a program and that after its last; programs differ by one block at most."""
    begin = i_program.to(tl.int64) * blocks // programs
    end = (i_program.to(tl.int64) + 1) * blocks // programs
    return begin.to(tl.int32), end.to(tl.int32)


@triton.jit
def blocks_of(ends, tails, i_column, begin, end, BLOCK: tl.constexpr, G: tl.constexpr):
    """Of the run begin ... end: its first and last block within a column; and the positions of the column, int64.

    ``tails``, the positions in the last blocks, fit 32 bits for columns of any length.
    """
    start = begin * 0
    for g in tl.static_range(1, G):
        start = tl.where(i_column == g, ends[g - 1] >> 1, start)
    stop = chosen(ends, i_column, G) >> 1
    positions = (stop - start - 1).to(tl.int64) * BLOCK + (chosen(tails, i_column, G) >> 1)
    return tl.maximum(begin, start) - start, tl.minimum(end, stop) - start, positions


WORD = tl.constexpr(30)  # tasks in a word; its sign bit is set and its lowest, so that nothing is known of it
# Arguments of the statistics that change from call to call.
VARYING = [
    *("tensors", "present", "ends", "tails", "accumulate"),
    *("programs", "group", "blocks", "sizes", "strides"),
]


@triton.jit
def chosen_words(present, i_column, WORDS: tl.constexpr, G: tl.constexpr):
    """A tuple of words: bit i of the w-th says whether task w * WORD + i has a tensor in a column."""
    out = ()
    for w in tl.static_range(WORDS):
        here = present[0][w]
        for g in tl.static_range(1, G):
            here = tl.where(i_column == g, present[g][w], here)
        out = out + (here >> 1,)
    return out


@triton.jit
def is_present(words, i_task, T: tl.constexpr, WORDS: tl.constexpr):
    """Whether tasks (any shape; also past the last) have a tensor."""
    bits = words[0]
    for w in tl.static_range(1, WORDS):
        bits = tl.where(i_task >= w * WORD, words[w], bits)
    return (i_task < T) & (((bits >> (i_task % WORD)) & 1) != 0)


@triton.jit
def pointers_at(
    address,
    element: tl.constexpr,
    i_block,
    sizes,
    strides,
    RANK: tl.constexpr,
    N: tl.constexpr,
    V: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """[N, V] pointers to a block; in aligned groups of 16 bytes where ``VECTOR``."""
    if RANK == 0:
        _, offsets = positions_of(i_block, N, V)
    else:
        offsets = tile_offsets(i_block, sizes, strides, RANK, N, V, VECTOR)
    p = address.to(element) + offsets
    if VECTOR:
        # The hints have to be on the pointers themselves: what is known of an integer is lost where it becomes one.
        p = tl.max_contiguous(tl.multiple_of(p, [16, 16]), [1, V])
    return p


@triton.jit
def load_task(
    address, element: tl.constexpr, words, i_block, m, sizes, strides, k: tl.constexpr, RANK: tl.constexpr,
    N: tl.constexpr, V: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """Task k's float32 tile [N, V], of a tensor at ``address``."""
    own = strides[k if RANK > 0 else 0]
    p = pointers_at(address, element, i_block, sizes, own, RANK, N, V, VECTOR)
    return load_tile(p, m, k % WORD, words[k // WORD])


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=["tensors"])
def gram_few(
    tensors,  # G tuples of T tensors
    p_gram,  # [T, T] float32
    p_partials,
    p_tickets,
    present,  # G tuples of words: a bit for each task, see `chosen_words`
    ends,  # G, odd: the blocks of the columns up to here
    tails,  # G, odd: the positions in a column's last block
    accumulate,  # whether to add to what an earlier launch left
    programs,
    group,
    blocks,
    sizes,
    strides,  # of each task, where RANK > 0
    T: tl.constexpr,
    G: tl.constexpr,
    RANK: tl.constexpr,
    N: tl.constexpr,
    V: tl.constexpr,
    VECTOR: tl.constexpr,
    WIDTH: tl.constexpr,  # T (T + 1) / 2 as a power of two, at least 2
    ROWS: tl.constexpr,
):
    """Reads each gradient once; the last program writes the matrix."""
    i_program = tl.program_id(0)
    begin, end = run_of(i_program, programs, blocks)
    PAIRS: tl.constexpr = T * (T + 1) // 2
    sums = repeated(tl.zeros([N], tl.float32), PAIRS)
    for i_column in range(column_at(ends, begin, G), column_at(ends, end - 1, G) + 1):
        addresses = addresses_of(tensors, i_column, 0, T, G)
        words = chosen_words(present, i_column, 1, G)
        first, last, positions = blocks_of(ends, tails, i_column, begin, end, N * V, G)
        for i_block in range(first, last):
            m = tile_mask(i_block, positions, N, V, VECTOR)
            tiles = ()
            for k in tl.static_range(T):
                tile = load_task(
                    addresses[k], tensors[0][0].dtype, words, i_block, m, sizes, strides, k, RANK, N, V, VECTOR
                )
                tiles = tiles + (tile,)
            sums = add_pairs(sums, tiles, T, N, V)
    values = tl.sum(joined(sums + repeated(tl.zeros([N], tl.float32), WIDTH - PAIRS), WIDTH), 0)
    is_last, values = finish(values, p_partials, p_tickets, i_program, programs, group, WIDTH, ROWS)
    if is_last:
        i_pair = tl.arange(0, WIDTH)
        row, column = pair_of(i_pair, T)
        before = tl.load(p_gram + row * T + column, mask=(row < T) & (accumulate != 0), other=0.0)
        store_symmetric(p_gram, before + values, i_pair, T)


@triton.jit
def _squares_of_chunk(
    sums, tensors, words, i_column, first, last, positions, sizes, strides,
    START: tl.constexpr, COUNT: tl.constexpr, G: tl.constexpr, RANK: tl.constexpr, N: tl.constexpr, V: tl.constexpr,
    VECTOR: tl.constexpr,
):  # fmt: skip
    """A tuple of COUNT ``sums`` [N], from task START on, with the squares of a run of blocks of a column."""
    addresses = addresses_of(tensors, i_column, START, COUNT, G)
    chunk = ()
    for j in tl.static_range(COUNT):
        chunk = chunk + (sums[START + j],)
    for i_block in range(first, last):
        m = tile_mask(i_block, positions, N, V, VECTOR)
        out = ()
        for j in tl.static_range(COUNT):
            tile = load_task(
                addresses[j], tensors[0][0].dtype, words, i_block, m, sizes, strides, START + j, RANK, N, V, VECTOR
            )
            out = out + (chunk[j] + tl.sum(tile * tile, 1),)
        chunk = out
    return chunk


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=["tensors"])
def squared_norms(
    tensors,
    p_norms,  # [T] float32
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
    N: tl.constexpr,
    V: tl.constexpr,
    VECTOR: tl.constexpr,
    C: tl.constexpr,
    WIDTH: tl.constexpr,  # T as a power of two, at least 2
    ROWS: tl.constexpr,
):
    """As `gram_few`, the diagonal alone, of C tasks at a time: registers hold their addresses."""
    i_program = tl.program_id(0)
    begin, end = run_of(i_program, programs, blocks)
    WORDS: tl.constexpr = (T + WORD - 1) // WORD
    sums = repeated(tl.zeros([N], tl.float32), T)
    for i_column in range(column_at(ends, begin, G), column_at(ends, end - 1, G) + 1):
        words = chosen_words(present, i_column, WORDS, G)
        first, last, positions = blocks_of(ends, tails, i_column, begin, end, N * V, G)
        out = ()
        for c in tl.static_range(0, T, C):
            out = out + _squares_of_chunk(
                sums, tensors, words, i_column, first, last, positions, sizes, strides, c, C if c + C < T else T - c,
                G, RANK, N, V, VECTOR,
            )  # fmt: skip
        sums = out
    values = tl.sum(joined(sums + repeated(tl.zeros([N], tl.float32), WIDTH - T), WIDTH), 0)
    is_last, values = finish(values, p_partials, p_tickets, i_program, programs, group, WIDTH, ROWS)
    if is_last:
        i_task = tl.arange(0, WIDTH)
        before = tl.load(p_norms + i_task, mask=(i_task < T) & (accumulate != 0), other=0.0)
        tl.store(p_norms + i_task, before + values, mask=i_task < T)


@triton.jit
def address_in_chunk(tensors, i_column, i_chunk, j: tl.constexpr, T: tl.constexpr, C: tl.constexpr, G: tl.constexpr):
    """Where the tensor of task i_chunk * C + j starts, int64; that of the last task for tasks past it.

    The chunk is chosen before the column: the other way round all T addresses of a column could be formed outside the
    loop over chunks, and be held in registers.
    """
    out = i_chunk.to(tl.int64) * 0
    for g in tl.static_range(G):
        here = tensors[g][j].to(tl.int64)
        for c in tl.static_range(1, (T + C - 1) // C):
            here = tl.where(i_chunk == c, tensors[g][c * C + j if c * C + j < T else T - 1].to(tl.int64), here)
        out = tl.where(i_column == g, here, out)
    return out


@triton.jit
def here_in_chunk(words, i_chunk, T: tl.constexpr, C: tl.constexpr, WORDS: tl.constexpr):
    """A tuple of C: whether task i_chunk * C + j has a tensor."""
    out = ()
    for j in tl.static_range(C):
        out = out + (is_present(words, i_chunk * C + j, T, WORDS),)
    return out


@triton.jit
def weights_in_chunk(p_weights, stride, here, i_chunk, C: tl.constexpr):
    """A tuple of C: the weights of tasks i_chunk * C + j, float32; 0 for those without a tensor."""
    out = ()
    for j in tl.static_range(C):
        out = out + (tl.load(p_weights + (i_chunk * C + j) * stride, mask=here[j], other=0.0).to(tl.float32),)
    return out


@triton.jit
def strides_in_chunk(strides, i_chunk, j: tl.constexpr, T: tl.constexpr, C: tl.constexpr, RANK: tl.constexpr):
    """A tuple of RANK: the strides of task i_chunk * C + j."""
    out = ()
    for dim in tl.static_range(RANK):
        here = strides[j][dim]
        for c in tl.static_range(1, (T + C - 1) // C):
            here = tl.where(i_chunk == c, strides[c * C + j if c * C + j < T else T - 1][dim], here)
        out = out + (here,)
    return out


@triton.jit(
    do_not_specialize=[
        "tensors",
        "outs",
        "p_weights",
        "weight_stride",
        "present",
        "ends",
        "tails",
        "programs",
        "blocks",
        "sizes",
        "strides",
        "out_strides",
    ],
    do_not_specialize_on_alignment=["tensors", "outs", "p_weights"],
)
def weighted_sum(
    tensors,  # G tuples of T tensors
    outs,  # G tensors; each may be one of its column
    p_weights,  # [T]
    weight_stride,
    present,
    ends,
    tails,
    programs,
    blocks,
    sizes,
    strides,
    out_strides,
    T: tl.constexpr,
    C: tl.constexpr,  # tasks that are read side by side
    G: tl.constexpr,
    RANK: tl.constexpr,
    N: tl.constexpr,
    V: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """Reads each gradient once and writes the sum once; float32, in the order of the tasks."""
    i_program = tl.program_id(0)
    begin, end = run_of(i_program, programs, blocks)
    CHUNKS: tl.constexpr = (T + C - 1) // C
    WORDS: tl.constexpr = (T + WORD - 1) // WORD
    element: tl.constexpr = outs[0].dtype
    for i_column in range(column_at(ends, begin, G), column_at(ends, end - 1, G) + 1):
        first, last, positions = blocks_of(ends, tails, i_column, begin, end, N * V, G)
        out = out_address(outs, i_column, G)
        words = chosen_words(present, i_column, WORDS, G)
        if CHUNKS == 1:  # read once, not for each block
            here = here_in_chunk(words, 0, T, C, WORDS)
            weights = weights_in_chunk(p_weights, weight_stride, here, 0, C)
        for i_block in range(first, last):
            m = tile_mask(i_block, positions, N, V, VECTOR)
            total = tl.zeros([N, V], tl.float32)
            for i_chunk in range(0, CHUNKS):
                if CHUNKS > 1:
                    here = here_in_chunk(words, i_chunk, T, C, WORDS)
                    weights = weights_in_chunk(p_weights, weight_stride, here, i_chunk, C)
                tiles = ()
                for j in tl.static_range(C):
                    address = address_in_chunk(tensors, i_column, i_chunk, j, T, C, G)
                    if RANK == 0:
                        p = pointers_at(address, element, i_block, sizes, sizes, RANK, N, V, VECTOR)
                    else:
                        own = strides_in_chunk(strides, i_chunk, j, T, C, RANK)
                        p = pointers_at(address, element, i_block, sizes, own, RANK, N, V, VECTOR)
                    tiles = tiles + (tl.load(p, mask=m & here[j], other=0.0),)
                for j in tl.static_range(C):
                    total = total + weights[j] * tiles[j].to(tl.float32)
            p = pointers_at(out, element, i_block, sizes, out_strides, RANK, N, V, VECTOR)
            tl.store(p, total.to(element.element_ty), mask=m)
