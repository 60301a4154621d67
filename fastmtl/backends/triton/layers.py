"""Launches of the moments of linear layers and convolutions.

For few tasks one kernel forms tiles of the weight gradients of all tasks and reduces them, see `kernels.layers`. The rest
(pairs of positions, many tasks, transposed convolutions) is the shared code of `layer_moments`, with matrix products by
torch, some rows or pairs of positions at a time, and the kernels of `lists` and `products` for what follows.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
import triton.language as tl
from torch import Tensor

from fastmtl.backends.layer_moments import LayerMoments, Moments, Primitives
from fastmtl.backends.layer_moments.conv import ConvFactors
from fastmtl.backends.layer_moments.factors import Factors, Operands
from fastmtl.backends.layer_moments.linear import LinearFactors
from fastmtl.backends.layer_moments.products import Forming
from fastmtl.backends.triton import layer_configs
from fastmtl.backends.triton.chips import Chip, chip_of
from fastmtl.backends.triton.kernels import layers as kernels
from fastmtl.backends.triton.launching import OPTIONS, Programs, filled, power_of_two, rows_for
from fastmtl.backends.triton.layout import merged
from fastmtl.backends.triton.workspace import workspace

_HALF = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


class FusedLayerMoments(LayerMoments):
    """With weight gradients formed by kernels where they fit the registers."""

    def _of_factors(self, factors: Factors, way: str, per_sample: bool, form: Forming | None = None) -> Moments:
        if isinstance(factors, (LinearFactors, ConvFactors)) and factors.sizes.tasks <= layer_configs.MOST_TASKS:
            form = functools.partial(form_moments, factors.operands())
        return super()._of_factors(factors, way, per_sample, form)
