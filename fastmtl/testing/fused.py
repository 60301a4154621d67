"""Cases of the ops that measure gradients and update the weights with what was measured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from fastmtl.testing.case import Case
from fastmtl.testing.gnr import gnr_cases
from fastmtl.testing.gradnorm import update_cases
from fastmtl.testing.grads import made_grads

_SHAPES = {"float32": (8, 4, 6, 5), "bfloat16": (8, 40, 9)}


def _after(update: Case, op: str, measured: int, dtype: torch.dtype, missing: bool) -> Case:
    """The case of an update, with gradients in place of its first ``measured`` arguments."""
    tasks = int(update.name[1:].split("-")[0])
    kind = str(dtype).removeprefix("torch.")

    def make(generator: torch.Generator) -> list[Any]:
        arguments = update.make(generator)[measured:]
        message = arguments[0]
        message[1] = torch.where(message[1] == 1024, 1.0, message[1])  # these gradients are not scaled
        return [made_grads(generator, tasks, _SHAPES[kind], dtype, "contiguous", missing), *arguments]

    return Case(op, update.name + ("-missing" if missing else ""), dtype, make)


def fused_cases() -> Iterator[Case]:
    """Cases of `sum_norms_update` and `sum_moments_update`: some of those of the updates."""
    gradnorm = [case for case in update_cases() if "alpha0.12" in case.name or case.name in _OF_GRADNORM]
    gnr = [case for case in gnr_cases() if case.name in _OF_GNR and case.dtype == torch.float32]
    for dtype in (torch.float32, torch.bfloat16):
        for case in gradnorm:
            yield _after(case, "sum_norms_update", 1, dtype, missing=False)
        for case in gnr:
            yield _after(case, "sum_moments_update", 2, dtype, missing=False)
    yield _after(gradnorm[2], "sum_norms_update", 1, torch.float32, missing=True)
    yield _after(gnr[1], "sum_moments_update", 2, torch.float32, missing=True)


_OF_GRADNORM = [f"T3-alpha1.5-adam-{name}" for name in ("first", "absent", "loss-nan", "scale-inf", "not-valid")]
_OF_GNR = [
    "T1-relative",
    "T3-relative",
    "T3-maxmin",
    "T3-intertask",
    "T3-none",
    "T10-relative",
    "T16-relative",
    "T3-relative-absent",
    "T3-relative-loss-nan",
    "T3-relative-not-valid",
]
