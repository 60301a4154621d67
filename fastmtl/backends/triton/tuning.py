"""Configurations by trial instead of arithmetic: only where a user asks for it.

    from fastmtl.backends.triton.tuning import autotune
    autotune(lambda: fastmtl.ops.sum_moments(grads))

The configurations that the call uses are replaced, for these sizes and in this process, by the fastest of their
neighbours. Another number of programs adds partial results in another order: results then differ from before in their last
bits, and repeat bit for bit after.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol, TypeVar

Key = tuple[Hashable, ...]


class Tunable(Protocol):
    """A configuration that has neighbours."""

    def neighbours(self) -> Sequence[Any]:
        """Other configurations for the same work."""


C = TypeVar("C", bound=Tunable)

_chosen: dict[Key, Any] = {}
_asked: dict[Key, Tunable] | None = None


def tunable(choose: Callable[..., C]) -> Callable[..., C]:
    """Lets `autotune` replace what a function of hashable arguments chooses."""

    @functools.wraps(choose)
    def chosen(*arguments: Any) -> C:
        key = (choose.__name__, *arguments)
        config = _chosen.get(key)
        if config is None:
            config = choose(*arguments)
        if _asked is not None:
            _asked[key] = config
        return config

    return chosen


def _milliseconds(call: Callable[[], Any]) -> float:
    from triton.testing import do_bench

    return float(do_bench(call, quantiles=[0.5]))


def autotune(
    call: Callable[[], Any], milliseconds: Callable[[Callable[[], Any]], float] = _milliseconds
) -> dict[Key, Any]:
    """Try the neighbours of every configuration that ``call`` uses, one after the other, and keep the fastest.

    Args:
        call: runs ops on a GPU, on tensors of the sizes to tune for.
        milliseconds: how long a call takes; by default the median of repeated calls with a cold cache.

    Returns:
        The configurations kept, by the function that chose them and its arguments.
    """
    global _asked
    _asked = {}
    try:
        call()
        asked = _asked
    finally:
        _asked = None
    for key, config in asked.items():
        times = {config: milliseconds(call)}
        for other in config.neighbours():
            _chosen[key] = other
            times[other] = milliseconds(call)
        _chosen[key] = min(times, key=lambda tried: times[tried])
    return {key: _chosen[key] for key in asked}


def forget() -> None:
    """Go back to the configurations by arithmetic."""
    _chosen.clear()
