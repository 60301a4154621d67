"""Whether the installed CUDA library can be loaded, under a torch with CUDA or without, on a machine without a GPU or a driver.

It is run as a program: in a process of the tests the ops may be those of the library for the host.
"""

import re
import sys

import torch

from fastmtl.backends import cuda
from fastmtl.backends.contract import COMPOSED, SCHEMAS

if not cuda.LIBRARY.exists():
    print(f"SKIPPED: {cuda.LIBRARY.name} is missing, as there was no nvcc")
    sys.exit()

reason = cuda.unavailable(torch.device("cuda"))
print(f"torch {torch.__version__}, CUDA {torch.version.cuda}; the CUDA backend: {reason or 'can run'}")
if torch.version.cuda is None:
    assert reason == f"torch {torch.__version__} is built without CUDA", reason
elif not torch.cuda.is_available():
    assert reason == "torch sees no GPU", reason  # which it says after it has loaded the library

torch.ops.load_library(str(cuda.LIBRARY))
names = {name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("fastmtl_cuda::")}
print(f"ops: {', '.join(sorted(names))}")
names.remove("architectures")
assert names == {name for name in SCHEMAS if hasattr(cuda, name) and name not in COMPOSED}, "not those of the backend"
for name in names:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"fastmtl_cuda::{name}", "CUDA"), name
architectures = torch.ops.fastmtl_cuda.architectures()
print(f"built for {architectures}")
first = re.match(r"(\d+)\.(\d)", architectures)
assert first is not None and cuda.runs_on((int(first[1]), int(first[2])), architectures), architectures
