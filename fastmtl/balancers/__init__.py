"""Rules that turn losses and measured gradients into task weights, one paper a file."""

from fastmtl.balancers.base import Balancer
from fastmtl.balancers.dwa import DynamicWeightAverage
from fastmtl.balancers.fixed import FixedWeights
from fastmtl.balancers.gradnorm import GradNorm
from fastmtl.balancers.maxgnr import MaxGNR
from fastmtl.balancers.statistics import GradientStatistics
from fastmtl.balancers.uncertainty import UncertaintyWeighting

__all__ = [
    "Balancer",
    "DynamicWeightAverage",
    "FixedWeights",
    "GradNorm",
    "GradientStatistics",
    "MaxGNR",
    "UncertaintyWeighting",
]
