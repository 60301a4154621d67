"""Runs cases of the shared table on the Triton backend, executed without a GPU: for work on the kernels.

python -m tests.gpu.try_cases OP[,OP] [--by ptx|ttsem] [--match TEXT] [--slow]
"""

from __future__ import annotations

import argparse
import contextlib
import time
from typing import Any

import torch

from fastmtl import testing
from fastmtl.backends import triton as backend
from fastmtl.backends.triton import chips

SMALL = chips.Chip("a small one", 3)  # so that small cases have several programs, and several blocks a program


def executed_by_ttsem() -> Any:
    from ttsem import sanitize

    return sanitize.session(80, cuda_is_cpu=False, races="record")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ops")
    parser.add_argument("--by", choices=("ptx", "ttsem"), default="ttsem")
    parser.add_argument("--match", default="")
    args = parser.parse_args()
    from tests.gpu.ptx import executed_as_ptx

    testing.BACKENDS["triton"] = backend
    torch.use_deterministic_algorithms(True)
    for case in testing.cases():
        if case.op not in args.ops.split(",") or case.dtype == torch.float64 or args.match not in str(case):
            continue
        start = time.time()
        executed = executed_as_ptx() if args.by == "ptx" else executed_by_ttsem()
        try:
            with chips.assume(SMALL), contextlib.ExitStack() as stack:
                run = stack.enter_context(executed)
                outcome = testing.check(case, "triton", torch.device("cpu"))
            races = {fault.buffer for fault in getattr(run, "races", [])}
            verdict = f"{outcome.error:7.3f} of the tolerance {'' if outcome.passed else 'FAILED'}"
            print(f"{case!s:60} {verdict} {time.time() - start:5.1f} s {races or ''}", flush=True)
        except Exception as error:
            print(f"{case!s:60} RAISED")
            cause: BaseException | None = error
            while cause is not None:
                print("   ", type(cause).__name__, str(cause)[-600:])
                cause = cause.__cause__


if __name__ == "__main__":
    main()
