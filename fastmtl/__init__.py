"""fastmtl: task weighting for multi-task training, measured inside the one ordinary backward."""

from fastmtl import ops
from fastmtl.balancers import (
    Balancer,
    DynamicWeightAverage,
    FixedWeights,
    GradientStatistics,
    GradNorm,
    MaxGNR,
    UncertaintyWeighting,
)
from fastmtl.version import __version__

__all__ = [
    "Balancer",
    "DynamicWeightAverage",
    "FixedWeights",
    "GradNorm",
    "GradientStatistics",
    "MaxGNR",
    "UncertaintyWeighting",
    "__version__",
    "ops",
]
