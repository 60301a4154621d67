"""The cases of `ops` under pytest-benchmark: ``pytest benchmarks``. They report; they never fail on a time."""

from __future__ import annotations

import pytest
import torch

from benchmarks.ops import cases, keep_freed_memory
from fastmtl.backends import cpp

REASON = cpp.unavailable(torch.device("cpu"))
SMALL = [make for make in cases() if "2^24" not in make.args[-1] and "P=24000000" not in make.args[-1]]  # type: ignore[attr-defined]


@pytest.mark.skipif(REASON is not None, reason=str(REASON))
@pytest.mark.parametrize("variant", ["run", "floor", "torch"])
@pytest.mark.parametrize("make", SMALL, ids=lambda make: make.args[-1])
def test_op(benchmark, make, variant: str) -> None:  # type: ignore[no-untyped-def]
    keep_freed_memory()
    case = make()
    benchmark.group = case.name
    benchmark.extra_info["instruction_set"] = cpp.instruction_set()
    benchmark.pedantic(getattr(case, variant), rounds=5, warmup_rounds=1)
