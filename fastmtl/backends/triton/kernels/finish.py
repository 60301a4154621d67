"""The end of a launch: partial results of all programs, added in a fixed order by the program that comes last.

Every program stores its partial results, then takes a ticket. Programs are in groups: the last of a group adds up the
group's, the last of these the groups'. Which program comes last changes from run to run; what it adds, and in which
order, does not. The barrier before a ticket orders the stores of all threads before the one thread's atomic operation, and
its release and acquire order them before what the last program reads. The last one puts the ticket back to zero.
"""

import triton
import triton.language as tl


@triton.jit
def is_last(p_ticket, count):
    """Whether this is the last of ``count`` programs to come here; what the others stored before can then be read."""
    tl.debug_barrier()
    arrived = tl.atomic_add(p_ticket, 1, sem="acq_rel", scope="gpu")
    last = arrived == count - 1
    if last:
        tl.store(p_ticket, 0)
    return last


@triton.jit
def sum_rows(p_rows, first, count, WIDTH: tl.constexpr, ROWS: tl.constexpr, PARTS: tl.constexpr = 1):
    """[WIDTH]: the first columns of rows first ... first + count - 1 of a matrix of PARTS * WIDTH, added in a fixed order.

    Volatile: another program of this launch wrote them.
    """
    o_column = tl.arange(0, WIDTH)[None, :]
    total = tl.zeros([ROWS, WIDTH], tl.float32)
    for i in range(0, count, ROWS):
        i_row = i + tl.arange(0, ROWS)[:, None]
        p = p_rows + (first + i_row).to(tl.int64) * (PARTS * WIDTH) + o_column
        total += tl.load(p, mask=i_row < count, other=0.0, volatile=True)
    return tl.sum(total, 0)


@triton.jit
def store_row(p_rows, i_row, values, WIDTH: tl.constexpr):
    """Write one program's partial results."""
    tl.store(p_rows + i_row.to(tl.int64) * WIDTH + tl.arange(0, WIDTH), values)


@triton.jit
def finish(values, p_partials, p_tickets, i_program, programs, group, WIDTH: tl.constexpr, ROWS: tl.constexpr):
    """Whether this program is the last of all, and then the sum of all programs' values [WIDTH].

    Takes (programs + groups) * WIDTH numbers of ``p_partials`` and 1 + groups of ``p_tickets``.
    """
    store_row(p_partials, i_program, values, WIDTH)
    i_group = i_program // group
    groups = tl.cdiv(programs, group)
    members = tl.minimum(group, programs - i_group * group)
    total = tl.zeros([WIDTH], tl.float32)
    last = is_last(p_tickets + 1 + i_group, members)
    if last:
        store_row(p_partials, programs + i_group, sum_rows(p_partials, i_group * group, members, WIDTH, ROWS), WIDTH)
        last = is_last(p_tickets, groups)
        if last:
            total = sum_rows(p_partials, programs, groups, WIDTH, ROWS)
    return last, total


@triton.jit
def finish_parts(
    p_partials, p_tickets, i_program, programs, group, PARTS: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr
):
    """As `finish` of a row of PARTS * WIDTH values, more than registers hold, that each program has stored.

    Whether this program is the last of all: then the sums of the groups are rows from ``programs`` on.
    """
    i_group = i_program // group
    members = tl.minimum(group, programs - i_group * group)
    last = is_last(p_tickets + 1 + i_group, members)
    if last:
        for i_part in range(PARTS):
            part = sum_rows(p_partials + i_part * WIDTH, i_group * group, members, WIDTH, ROWS, PARTS)
            store_row(p_partials, (programs + i_group) * PARTS + i_part, part, WIDTH)
        last = is_last(p_tickets, tl.cdiv(programs, group))
    return last
