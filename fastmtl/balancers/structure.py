"""Features as users pass them (a tensor, a tuple, a list or a dict of tensors) to a flat list of levels and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from torch import Tensor

Features: TypeAlias = Tensor | Sequence[Tensor] | Mapping[str, Tensor]


def flatten(features: Features, name: str) -> tuple[list[Tensor], Callable[[Sequence[Tensor]], Any]]:
    """The levels of ``features``, which errors call ``name``, and how to build the same structure from others.

    Raises:
        TypeError, ValueError: no tensors, or an empty structure.
    """
    rebuild: Callable[[Sequence[Tensor]], Any]
    if isinstance(features, Tensor):
        levels, rebuild = [features], lambda items: items[0]
    elif isinstance(features, Mapping):
        names = list(features)
        levels, rebuild = list(features.values()), lambda items: dict(zip(names, items, strict=True))
    elif isinstance(features, Sequence) and not isinstance(features, str):
        form = type(features)
        levels = list(features)
        rebuild = (lambda items: form(*items)) if hasattr(form, "_fields") else (tuple if form is tuple else list)
    else:
        raise TypeError(f"{name}: expected a tensor, or a sequence or dict of tensors, got {type(features).__name__}")
    if not levels:
        raise ValueError(f"{name}: expected at least one tensor, got none")
    for index, level in enumerate(levels):
        if not isinstance(level, Tensor) or not level.is_floating_point():
            what = level.dtype if isinstance(level, Tensor) else type(level).__name__
            raise TypeError(f"{name}[{index}]: expected a floating-point tensor, got {what}")
    return levels, rebuild
