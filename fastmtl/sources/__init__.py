"""Where gradients are measured: the features, layers, or any parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias, cast

from torch import Tensor, nn

from fastmtl.sources.base import Gradients, Measured, Probe, Source, Statistics, sums
from fastmtl.sources.features import Features
from fastmtl.sources.layer import Layers
from fastmtl.sources.parameters import Parameters, gram_of, squared_norms_of

SourceLike: TypeAlias = str | nn.Module | Tensor | Sequence[nn.Module] | Sequence[Tensor]

__all__ = [
    "Features",
    "Gradients",
    "Layers",
    "Measured",
    "Parameters",
    "Probe",
    "Source",
    "SourceLike",
    "Statistics",
    "gram_of",
    "has_samples",
    "resolve",
    "squared_norms_of",
    "sums",
]


def _is_layers(source: SourceLike) -> bool:
    return isinstance(source, Sequence) and len(source) > 0 and all(isinstance(item, nn.Module) for item in source)


def has_samples(source: SourceLike) -> bool:
    """Whether per-sample gradients can be measured there: at the features and at layers, not at bare parameters."""
    return isinstance(source, (str, nn.Module)) or _is_layers(source)


def resolve(source: SourceLike, tasks: int, statistics: Statistics) -> Source:
    """The source that a user's ``source=`` means, for a number of tasks and what is to be measured.

    Raises:
        ValueError, TypeError: it means none, or cannot give these statistics.
    """
    if isinstance(source, str) and source == "features":
        return Features(statistics)
    if isinstance(source, nn.Module):
        return Layers([source], tasks, statistics)
    if isinstance(source, Tensor):
        return Parameters([source], statistics)
    if _is_layers(source):
        return Layers(cast(Sequence[nn.Module], source), tasks, statistics)
    if isinstance(source, Sequence) and not isinstance(source, str):
        return Parameters(cast(Sequence[Tensor], source), statistics)
    raise TypeError(f"source: expected 'features', a layer or layers, or parameters, got {source!r}")
