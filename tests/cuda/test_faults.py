"""Planted faults in the CUDA kernels: which tool notices them, family by family.

The kernels run compiled for the host, with a sanitizer, in their family's program `sanitize_<family>.cpp`. ThreadSanitizer
sees a race; AddressSanitizer with UBSan sees what is outside of memory, an address where nothing lies, one that is not
aligned, an index that an array does not have; the program itself sees values that plain loops do not give.

| fault                                         | sum_norms | lists        | products | sum_moments | updates          |
| --------------------------------------------- | --------- | ------------ | -------- | ----------- | ---------------- |
| a barrier left out                            | race      | race         | race     | race        | race             |
| a fence left out                              | race      | race         | race     | race        |                  |
| tiles taken by several blocks                 | race      | values, race | values   | values      |                  |
| two blocks with one row of partial results    | race      |              |          |             |                  |
| groups' rows over blocks' rows                | values    |              |          | values      |                  |
| a bound one too large                         | outside   | outside      | outside  |             | nowhere, outside |
| no bound                                      | outside   |              | outside  |             |                  |
| a bound one too small                         | values    | values       |          |             |                  |
| no mask of missing gradients                  | nowhere   | nowhere      | nowhere  | nowhere     |                  |
| a wrong stride                                | outside   |              | outside  |             |                  |
| 16 bytes at a time where they are not aligned | values    | aligned      | outside  | values      |                  |
| the last group as large as the others         | values    |              |          | values      |                  |
| a ticket that is not put back                 | values    |              |          |             |                  |
| a warp's sum without its last step            | values    |              |          |             |                  |
| columns that are not there                    | index     |              |          |             |                  |
| a barrier for half of the threads             | race      |              |          |             |                  |
| no mask of tasks                              |           | outside      |          |             |                  |
| accumulate forgotten                          |           | values       |          |             |                  |
| the other triangle                            |           | values       |          | values      |                  |
| the length of another column                  |           | values       |          |             |                  |
| sums that do not begin at 0                   |           | values       |          | values      |                  |
| a tile of the column before                   |           | values       |          |             |                  |
| columns without their last tile               |           | values       |          |             |                  |
| pointers of another column                    |           | outside      |          |             |                  |
| one task too many                             |           | outside      |          |             |                  |
| no bound of the result                        |           | outside      |          | outside     |                  |
| half of the result                            |           | values       | values   | values      |                  |
| a variant for fewer tasks                     |           | values       |          |             |                  |
| rows that a tile does not have                |           | index        | index    |             |                  |
| fewer rows than there are                     |           | values       |          |             |                  |
| a workspace that is too small                 |           | outside      |          | outside     | outside          |
| shared memory that nobody wrote               |           | values       |          | values      |                  |
| one row for all warps                         |           | race         |          |             |                  |
| one thread too many                           |           | index        |          |             |                  |
| what is missing has a weight                  |           | values       |          |             |                  |
| the weight of another task                    |           | values       |          |             |                  |
| a stride forgotten                            |           | values       |          |             |                  |
| groups as if they began at 0                  |           | values       |          |             |                  |
| 16-bit numbers in the wrong order             |           | values       |          |             |                  |
| samples as another task has them              |           |              | values   | values      |                  |
| a tile of one sample                          |           |              | values   |             |                  |
| weights without a bound                       |           |              | outside  |             |                  |
| the weight of another sample                  |           |              | values   |             |                  |
| one weight too few                            |           |              | values   |             |                  |
| no bound of the rows                          |           |              | outside  |             |                  |
| no bound of the columns                       |           |              | outside  |             |                  |
| rows as if they lay beside each other         |           |              | values   |             | values           |
| a tile without its last positions             |           |              | values   |             |                  |
| positions of 16 bits                          |           |              | values   |             |                  |
| a bound of samples one too large              |           |              |          | outside     |                  |
| no bound of what is stored                    |           |              |          | outside     |                  |
| no bound of positions                         |           |              |          | outside     |                  |
| shares that overlap                           |           |              |          | race        |                  |
| shares that leave samples out                 |           |              |          | values      |                  |
| lanes beyond a sample's                       |           |              |          | values      |                  |
| rows of lanes that are not added up           |           |              |          | values      |                  |
| more threads than pairs                       |           |              |          | index       |                  |
| sums of the tile before                       |           |              |          | values      |                  |
| a step that nobody asked for                  |           |              |          | outside     |                  |
| a sample after the last                       |           |              |          | outside     |                  |
| one tile for all samples                      |           |              |          | race        |                  |
| sums stored beyond the positions              |           |              |          | outside     |                  |
| sums over one task too few                    |           |              |          | values      |                  |
| blocks of tiles as if each had its own        |           |              |          | values      |                  |
| one ticket for all groups                     |           |              |          | values      |                  |
| tickets of another tile                       |           |              |          | values      |                  |
| partial results of another tile               |           |              |          | race        |                  |
| samples shared where there are no positions   |           |              |          | values      |                  |
| lanes of many tasks                           |           |              |          | values      |                  |
| bfloat16 as float16                           |           |              |          | values      |                  |
| 8 numbers of 16 bits in place of 4            |           |              |          | values      |                  |
| a loss that is not there                      |           |              |          |             | values           |
| a message without its head                    |           |              |          |             | values           |
| weights as if they lay beside each other      |           |              |          |             | values           |
| float64 as float32                            |           |              |          |             | values           |
| a sum by every thread                         |           |              |          |             | race             |
| an update by every thread                     |           |              |          |             | values           |
| a refusal by every thread                     |           |              |          |             | values           |
| an order by every thread                      |           |              |          |             | race             |
| tasks in another order                        |           |              |          |             | values           |
| a column without its last row                 |           |              |          |             | values           |
| a root by every thread                        |           |              |          |             | race             |
| a workspace without one matrix                |           |              |          |             | outside          |
| no step back                                  |           |              |          |             | values           |

The barriers are each one of these kernels and of the rules, and so are the fences, but for those without which the kernels
are right; ThreadSanitizer says nothing there, as it should:
- After `sum_rows`, everywhere: a ticket's own barrier or that after `finish` follows each call.
- After `finish`: in `gram_few` that after `sum_rows` stands for it; elsewhere a thread reads what it wrote itself, until a
  barrier of GradNorm's step in `sum_norms`. Where `sum_rows` has a thread for each sum, `sum_moments` needs it.
- After `block_sums`, and before `finish` in `squared_norms` and where products are stored: `finish` stores what the same
  thread wrote.
- Inside `sum_rows` and `block_sums` where a family has more sums than threads, or does not call them.
- Of GNR's step, after the averages and before `solve`: other threads read them after a barrier that comes later.

ThreadSanitizer sees the fences because the host's executor tells it of no order but the kernel's own; in the PTX they are
looked for as well. Not noticed either, and right without them: a guard that saves work alone (the slices of `sum_rows`; rows
beyond a tile's where it is read, and tasks beyond the last, for which no gradient is there). A `__ldcg` that became a plain
load is not noticed: that the first cache may hold an older value is nothing that a host has.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.cuda.faults import FAULTS, NOTHING, Fault, table
from tests.cuda.faulty import ptx_with, said_under, sources_with, tickets_are_fenced
from tests.cuda.test_sanitizers import FAMILIES
from tests.kernels.sanitizing import SANITIZERS
from tests.shared import ALL_CASES

# Without FASTMTL_ALL_CASES=1.
FEW = (
    "sum_norms: the barrier before a ticket",
    "sum_norms: the fence before a ticket",
    "sum_norms: the fence after a ticket",
    "sum_norms: the barrier of GradNorm's weights",
    "sum_norms: a bound one too large",
    "lists: one row for all warps",
    "products: the barrier after a tile's products of cross_gram",
    "sum_moments: one tile for all samples",
    "updates: the barrier after x is read",
)

on_host = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")


def test_the_table() -> None:
    assert table() in (__doc__ or "")
    assert set(FEW) <= {str(fault) for fault in FAULTS}


def test_every_fault_can_be_planted(tmp_path: Path) -> None:
    """In the sources as they are, whether it runs by default or not."""
    for number, fault in enumerate(FAULTS):
        directory = tmp_path / str(number)
        sources_with([fault], directory, fewer=not fault.all_cases)
        shutil.rmtree(directory)


@on_host
@pytest.mark.parametrize("fault", [fault for fault in FAULTS if ALL_CASES or str(fault) in FEW], ids=str)
def test_a_fault(fault: Fault, tmp_path: Path) -> None:
    tool, says = fault.seen
    said = said_under(tool, fault.family, [fault], tmp_path)
    assert says in said if fault.seen != NOTHING else said == ""


@on_host
@pytest.mark.skipif(not ALL_CASES, reason="with FASTMTL_ALL_CASES=1 alone")
def test_barriers_that_stand_for_one_another(tmp_path: Path) -> None:
    names = ("lists: the barrier after finish", "lists: the barrier after sum_rows")  # from behind: places are counted
    both = [fault for name in names for fault in FAULTS if str(fault) == name]
    assert "data race" in said_under("thread", "lists", both, tmp_path)


@on_host
@pytest.mark.parametrize("tool", SANITIZERS)
@pytest.mark.parametrize("family", FAMILIES if ALL_CASES else ["sum_norms"])
def test_nothing_is_seen_without_a_fault(family: str, tool: str, tmp_path: Path) -> None:
    assert said_under(tool, family, [], tmp_path) == ""


def test_the_order_of_tickets(tmp_path: Path):
    """Missing fences change no value in the PTX executor, whose memory is sequentially consistent: they must be there."""
    kernels = ptx_with([], "sum_norms", tmp_path).read_text().split(".visible .entry")[1:]
    for text in kernels:
        assert tickets_are_fenced(text)
        first = text.index("membar.gl")
        second = text.index("membar.gl", first + 1)
        for place in (first, second):
            assert not tickets_are_fenced(text[:place] + text[place + len("membar.gl") :])
        barrier = text.rindex("bar.sync", 0, first)
        assert not tickets_are_fenced(text[:barrier] + text[barrier + len("bar.sync") :])
