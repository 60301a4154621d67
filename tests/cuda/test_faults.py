"""Planted faults in the CUDA kernel `sum_norms` and what it is made of: which tool notices them.

The kernel runs compiled for the host, with a sanitizer, in the program `sanitize_sum_norms.cpp`:

| fault                                         | tool                    | what it says      |
|-----------------------------------------------|-------------------------|-------------------|
| the barrier before a ticket                   | ThreadSanitizer         | a race            |
| the barrier after a ticket                    | ThreadSanitizer         | a race            |
| the barrier inside sum_rows                   | ThreadSanitizer         | a race            |
| the barrier inside block_sums                 | ThreadSanitizer         | a race            |
| a barrier for half of the threads             | ThreadSanitizer         | a race            |
| the fence before a ticket                     | ThreadSanitizer         | a race            |
| the fence after a ticket                      | ThreadSanitizer         | a race            |
| the step's first sync                         | ThreadSanitizer         | a race            |
| the step's second sync                        | ThreadSanitizer         | a race            |
| the step's third sync                         | ThreadSanitizer         | a race            |
| tiles taken by several blocks                 | ThreadSanitizer         | a race            |
| two blocks with one row of partial results    | ThreadSanitizer         | a race            |
| groups' rows over blocks' rows                | plain loops             | wrong values      |
| a bound one too large                         | AddressSanitizer, UBSan | outside of memory |
| no bound                                      | AddressSanitizer, UBSan | outside of memory |
| a bound one too small                         | plain loops             | wrong values      |
| no mask of missing gradients                  | AddressSanitizer, UBSan | a null pointer    |
| a wrong stride                                | AddressSanitizer, UBSan | outside of memory |
| 16 bytes at a time where they are not aligned | plain loops             | wrong values      |
| the last group as large as the others         | plain loops             | wrong values      |
| a ticket that is not put back                 | plain loops             | a ticket is not 0 |
| a warp's sum without its last step            | plain loops             | wrong values      |

ThreadSanitizer sees the fences because the host's executor tells it of no order but the kernel's own; in the PTX they are
looked for as well. Not noticed, as the kernel is right without them: the barriers at the end of `sum_rows`, of `finish` and
of `block_sums`. The first two stand for one another here, and after the third each thread reads what it wrote itself; other
callers may need them. A `__ldcg` that became a plain load is not noticed either: that the first cache may hold an older
value is nothing that a host has.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.cuda.faulty import Fault, ptx_with, said_under, tickets_are_fenced
from tests.gpu.executing import ALL_CASES

FINISH, SUM, STEP = "kernels/cuda/finish.h", "kernels/cuda/sum_norms.cu", "kernels/gradnorm_update.h"
BARRIER, FENCE, SYNC = "__syncthreads();", "__threadfence();", "team_.sync();"

FAULTS = [
    Fault("the barrier before a ticket", FINISH, BARRIER, "", 0, seen=(("thread", "data race"),)),
    Fault("the barrier after a ticket", FINISH, BARRIER, "", 1, seen=(("thread", "data race"),)),
    Fault("the barrier inside sum_rows", FINISH, BARRIER, "", 2, seen=(("thread", "data race"),)),
    Fault("the barrier inside block_sums", FINISH, BARRIER, "", 5, seen=(("thread", "data race"),)),
    Fault(
        "a barrier for half of the threads",
        FINISH,
        BARRIER,
        "if (threadIdx.x < 64) __syncthreads();",
        5,
        seen=(("thread", "data race"),),
    ),
    Fault("the fence before a ticket", FINISH, FENCE, "", 0, seen=(("thread", "data race"),)),
    Fault("the fence after a ticket", FINISH, FENCE, "", 1, seen=(("thread", "data race"),)),
    Fault("the step's first sync", STEP, SYNC, "", 0, seen=(("thread", "data race"),)),
    Fault("the step's second sync", STEP, SYNC, "", 1, seen=(("thread", "data race"),)),
    Fault("the step's third sync", STEP, SYNC, "", 2, seen=(("thread", "data race"),)),
    Fault(
        "tiles taken by several blocks",
        SUM,
        "first_group += gridDim.x * tile",
        "first_group += tile",
        seen=(("thread", "data race"),),
    ),
    Fault(
        "two blocks with one row of partial results",
        FINISH,
        "static_cast<int64_t>(block) * width + i",
        "static_cast<int64_t>(block / 2) * width + i",
        seen=(("thread", "data race"),),
    ),
    Fault(
        "groups' rows over blocks' rows",
        FINISH,
        "static_cast<int64_t>(f.blocks + i_group)",
        "static_cast<int64_t>(i_group)",
        seen=(("thread", "expected"),),
    ),
    Fault(
        "a bound one too large",
        SUM,
        "if (group >= groups) break;",
        "if (group > groups) break;",
        seen=(("address,undefined", "heap-buffer-overflow"),),
    ),
    Fault("no bound", SUM, "if (group >= groups) break;", "", seen=(("address,undefined", "heap-buffer-overflow"),)),
    Fault(
        "a bound one too small",
        SUM,
        "if (group >= groups) break;",
        "if (group >= groups - 1) break;",
        seen=(("address,undefined", "expected"),),
    ),
    Fault(
        "no mask of missing gradients",
        SUM,
        "if (p.present >> k & 1) read",
        "if (k < p.tasks) read",
        seen=(("address,undefined", "null pointer"),),
    ),
    Fault(
        "a wrong stride",
        "kernels/cuda/positions.h",
        "coordinates.at[dim] * place.strides[dim]",
        "coordinates.at[dim] * place.strides[1]",
        seen=(("address,undefined", "heap-buffer-overflow"),),
    ),
    Fault(
        "16 bytes at a time where they are not aligned",
        SUM,
        "if (!vector) return",
        "if (false) return",
        seen=(("address,undefined", "expected"),),
    ),
    Fault(
        "the last group as large as the others",
        FINISH,
        "f.blocks - first < f.group ? f.blocks - first : f.group",
        "f.group",
        seen=(("address,undefined", "expected"),),
    ),
    Fault(
        "a ticket that is not put back", FINISH, "if (last) *ticket = 0;", "", seen=(("address,undefined", "expected"),)
    ),
    Fault(
        "a warp's sum without its last step",
        FINISH,
        "distance = 16",
        "distance = 8",
        seen=(("address,undefined", "expected"),),
    ),
]
# Without FASTMTL_ALL_CASES=1.
FEW = (
    "the barrier before a ticket",
    "the fence before a ticket",
    "the fence after a ticket",
    "the step's second sync",
    "a bound one too large",
)

on_host = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")


@on_host
@pytest.mark.parametrize(
    ("fault", "tool", "says"),
    [(fault, *seen) for fault in FAULTS if ALL_CASES or fault.name in FEW for seen in fault.seen],
    ids=lambda value: value.name if isinstance(value, Fault) else value,
)
def test_a_fault(fault, tool, says, tmp_path):
    assert says in said_under(tool, [fault], tmp_path)


@on_host
@pytest.mark.parametrize("tool", ["address,undefined", "thread"])
def test_nothing_is_seen_without_a_fault(tool, tmp_path):
    assert said_under(tool, [], tmp_path) == ""


def test_the_order_of_tickets(tmp_path: Path):
    """Missing fences change no value in the PTX executor, whose memory is sequentially consistent: they must be there."""
    kernels = ptx_with([], tmp_path).read_text().split(".visible .entry")[1:]
    for text in kernels:
        assert tickets_are_fenced(text)
        first = text.index("membar.gl")
        second = text.index("membar.gl", first + 1)
        for place in (first, second):
            assert not tickets_are_fenced(text[:place] + text[place + len("membar.gl") :])
        barrier = text.rindex("bar.sync", 0, first)
        assert not tickets_are_fenced(text[:barrier] + text[barrier + len("bar.sync") :])
