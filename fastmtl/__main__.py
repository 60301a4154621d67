"""``python -m fastmtl``: versions, backends, and a check of every op on every device against the reference."""

from __future__ import annotations

import platform
import sys

import torch

from fastmtl import testing
from fastmtl.backends.contract import SCHEMAS
from fastmtl.ops.selection import BACKENDS, backend_name, unavailable
from fastmtl.version import __version__


def devices() -> list[torch.device]:
    """The CPU, and the accelerator where torch sees one."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return [torch.device("cpu")] + ([accelerator] if accelerator is not None else [])


def main() -> int:
    """Print the report; 0 where every op passed."""
    print(
        f"fastmtl {__version__}, torch {torch.__version__}, Python {platform.python_version()}, {platform.platform()}"
    )
    failed = 0
    cases = list(testing.cases())
    for device in devices():
        print(f"\n{device.type}")
        for name in BACKENDS:
            reason = unavailable(name, device)
            print(f"  {name:10} {'available' if reason is None else f'not available: {reason}'}")
        chosen = {op: backend_name(device, op) for op in SCHEMAS}
        print("  runs       " + ", ".join(f"{op}: {name}" for op, name in chosen.items()))
        for name in BACKENDS:
            if unavailable(name, device) is not None:
                continue
            for op in SCHEMAS:
                runs = [case for case in cases if case.op == op and unavailable(name, device, op, case.dtype) is None]
                outcomes = [testing.check(case, name, device) for case in runs]
                wrong = [outcome for outcome in outcomes if not outcome.passed]
                worst = max(outcome.error for outcome in outcomes)
                verdict = "ok" if not wrong else f"FAILED {len(wrong)}: {', '.join(str(o.case) for o in wrong[:5])}"
                print(f"  {name:10} {op:18} {len(outcomes):4} cases, worst {worst:8.3f} of the tolerance  {verdict}")
                failed += len(wrong)
    print(f"\n{'every op agrees with the reference' if not failed else f'{failed} cases FAILED'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
