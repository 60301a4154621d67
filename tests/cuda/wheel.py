"""Of a wheel, under a torch with CUDA or without, on a machine without a GPU: whether its CUDA library can be loaded."""

import torch

from fastmtl.backends import cuda
from fastmtl.backends.contract import SCHEMAS

assert cuda.LIBRARY.exists(), f"the wheel has no {cuda.LIBRARY.name}: it was built without nvcc"
reason = cuda.unavailable(torch.device("cuda"))
print(f"torch {torch.__version__}, CUDA backend: {reason}")
if torch.version.cuda is None:
    assert reason == f"torch {torch.__version__} is built without CUDA", reason
else:
    assert reason == "torch sees no GPU", reason  # so it has loaded the library
torch.ops.load_library(str(cuda.LIBRARY))
names = {name for name in SCHEMAS if torch._C._dispatch_has_kernel_for_dispatch_key(f"fastmtl_cuda::{name}", "CUDA")}
print(f"ops: {', '.join(sorted(names))}")
assert names == {name for name in SCHEMAS if hasattr(cuda, name)}, names
