"""Runs cases of the shared table on the Triton backend, executed without a GPU: for work on the kernels.

python -m tests.gpu.try_cases OP[,OP] [--by ptx|ttsem] [--match TEXT]
"""

from __future__ import annotations

import argparse
import time

import torch

from fastmtl import testing
from fastmtl.backends import triton as backend
from fastmtl.backends.triton import chips
from tests.gpu.executing import SMALL, executed_by_ttsem
from tests.gpu.ptx import executed_as_ptx
from tests.shared import poisoned_memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ops")
    parser.add_argument("--by", choices=("ptx", "ttsem"), default="ttsem")
    parser.add_argument("--match", default="")
    args = parser.parse_args()

    testing.BACKENDS["triton"] = backend
    executed = {"ptx": executed_as_ptx, "ttsem": executed_by_ttsem}[args.by]
    for case in testing.cases():
        if case.op not in args.ops.split(",") or case.dtype not in backend.DTYPES or args.match not in str(case):
            continue
        start = time.time()
        try:
            with poisoned_memory(), chips.assume(SMALL), executed():
                outcome = testing.check(case, "triton", torch.device("cpu"))
            verdict = f"{outcome.error:7.3f} of the tolerance {'' if outcome.passed else 'FAILED'}"
            print(f"{case!s:60} {verdict} {time.time() - start:5.1f} s", flush=True)
        except Exception as error:
            print(f"{case!s:60} RAISED")
            cause: BaseException | None = error
            while cause is not None:
                print("   ", type(cause).__name__, str(cause)[-600:])
                cause = cause.__cause__


if __name__ == "__main__":
    main()
