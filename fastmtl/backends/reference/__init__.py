"""The pure-PyTorch backend: runs on every device and is the oracle that the other backends are checked against.

Written for clarity, not speed. The ops and their conventions are those of `contract`; the symbols those of the papers.
"""

from __future__ import annotations

import torch

from fastmtl.backends.contract import followed_by
from fastmtl.backends.reference.gnr import gnr_update
from fastmtl.backends.reference.gradnorm import gradnorm_update, weigh
from fastmtl.backends.reference.layers import (
    conv_moments,
    cross_gram,
    embedding_moments,
    linear_moments,
    norm_moments,
    sample_gram,
)
from fastmtl.backends.reference.lists import gram, squared_norms, weighted_sum, weighted_sum_out
from fastmtl.backends.reference.sums import sum_moments, sum_norms

__all__ = [
    "conv_moments",
    "cross_gram",
    "embedding_moments",
    "gnr_update",
    "gradnorm_update",
    "gram",
    "linear_moments",
    "norm_moments",
    "sample_gram",
    "squared_norms",
    "sum_moments",
    "sum_moments_update",
    "sum_norms",
    "sum_norms_update",
    "unavailable",
    "weigh",
    "weighted_sum",
    "weighted_sum_out",
]

sum_norms_update = followed_by(sum_norms, gradnorm_update)
sum_moments_update = followed_by(sum_moments, gnr_update)


def unavailable(device: torch.device, dtype: torch.dtype | None = None) -> str | None:
    """Why this backend cannot run on ``device``, None where it can. The reference runs everywhere."""
    return None
