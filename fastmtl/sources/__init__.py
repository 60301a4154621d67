"""Where gradients are measured: the features, a layer, or any parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from torch import Tensor, nn

from fastmtl.sources.base import Gradients, Probe, Source, sums
from fastmtl.sources.features import Features
from fastmtl.sources.layer import Layer
from fastmtl.sources.parameters import CarriedProbe, Parameters

SourceLike: TypeAlias = str | nn.Module | Tensor | Sequence[Tensor]

__all__ = [
    "CarriedProbe",
    "Features",
    "Gradients",
    "Layer",
    "Parameters",
    "Probe",
    "Source",
    "SourceLike",
    "resolve",
    "sums",
]


def resolve(source: SourceLike, tasks: int) -> Source:
    """The source that a user's ``source=`` means, for a number of tasks.

    Raises:
        ValueError, TypeError: it means none.
    """
    if isinstance(source, str) and source == "features":
        return Features()
    if isinstance(source, nn.Module):
        return Layer(source, tasks)
    if isinstance(source, Tensor):
        return Parameters([source])
    if isinstance(source, Sequence) and not isinstance(source, str):
        return Parameters(source)
    raise TypeError(f"source: expected 'features', a layer or parameters, got {source!r}")
