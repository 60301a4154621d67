"""Planted faults in the CUDA kernel `sum_norms` and what it is made of: which tool notices them.

@TABLE@
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cuda.faulty import Fault, ptx_with, said_by_executor, said_under, tickets_are_fenced
from tests.gpu.executing import ALL_CASES

FINISH, SUM, STEP = "kernels/cuda/finish.h", "kernels/cuda/sum_norms.cu", "kernels/gradnorm_update.h"
BARRIER, FENCE, SYNC = "__syncthreads();", "__threadfence();", "team_.sync();"
