"""Functions on gradients that the caller already has; what the balancers are made of."""

import fastmtl.ops.library  # noqa: F401  (registers the operators)
from fastmtl.ops.gnr import GNRState, covariance, gnr_state, gnr_update, gradient_noise_ratio, sum_moments_update
from fastmtl.ops.gradnorm import GradNormState, gradnorm_state, gradnorm_update, sum_norms_update
from fastmtl.ops.layers import conv_moments, embedding_moments, linear_moments, norm_moments
from fastmtl.ops.lists import gram, squared_norms, weighted_sum
from fastmtl.ops.message import weigh, with_scale
from fastmtl.ops.selection import use_backend
from fastmtl.ops.sums import sum_moments, sum_norms

__all__ = [
    "GNRState",
    "GradNormState",
    "conv_moments",
    "covariance",
    "embedding_moments",
    "gnr_state",
    "gnr_update",
    "gradient_noise_ratio",
    "gradnorm_state",
    "gradnorm_update",
    "gram",
    "linear_moments",
    "norm_moments",
    "squared_norms",
    "sum_moments",
    "sum_moments_update",
    "sum_norms",
    "sum_norms_update",
    "use_backend",
    "weigh",
    "weighted_sum",
    "with_scale",
]
