"""What the tests of several backends share: which cases are executed where that is slow, and fresh memory that holds NaN."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence

import torch

from fastmtl.testing import Case

# With FASTMTL_ALL_CASES=1 nothing is left out; the tests say otherwise what they leave out, and by which rule.
ALL_CASES = os.environ.get("FASTMTL_ALL_CASES") == "1"
FEW = 20  # ops with no more cases than these leave out none


def by_turns(cases: Sequence[Case], dtypes: Sequence[torch.dtype], first: int) -> list[Case]:
    """Each case of an op in one dtype, the dtypes taking turns from case to case; ``first``: whose turn it is to begin."""
    names: dict[str, list[str]] = {}
    for case in cases:
        known = names.setdefault(case.op, [])
        if case.name not in known:
            known.append(case.name)
    in_full = {op for op in names if ALL_CASES or sum(case.op == op for case in cases) <= FEW}
    return [
        case
        for case in cases
        if case.op in in_full or case.dtype == dtypes[(names[case.op].index(case.name) + first) % len(dtypes)]
    ]


@contextlib.contextmanager
def poisoned_memory() -> Iterator[None]:
    """Every uninitialised tensor is filled with NaN, so that an element that is never written shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.utils.deterministic.fill_uninitialized_memory
        yield
    finally:
        torch.use_deterministic_algorithms(before)
