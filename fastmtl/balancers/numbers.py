"""Reading numbers that users pass, with errors that name the argument."""

from __future__ import annotations

import math

from torch import Tensor


def at_least(name: str, value: float, low: float, *, low_allowed: bool) -> float:
    """A finite number from ``low`` on.

    Raises:
        TypeError, ValueError: it is none.
    """
    number = _number(name, value)
    if not math.isfinite(number) or number < low or (number == low and not low_allowed):
        raise ValueError(f"{name}: expected a finite number {'>=' if low_allowed else '>'} {low:g}, got {value!r}")
    return number


def fraction(name: str, value: float, *, zero: bool, one: bool) -> float:
    """A number from 0 to 1, of which ``zero`` and ``one`` say whether the ends are allowed.

    Raises:
        TypeError, ValueError: it is none.
    """
    number = _number(name, value)
    if not 0 <= number <= 1 or (number == 0 and not zero) or (number == 1 and not one):
        raise ValueError(f"{name}: expected a number in {'[' if zero else '('}0, 1{']' if one else ')'}, got {value!r}")
    return number


def number_or_scalar(name: str, value: float | Tensor) -> float | Tensor:
    """A number, or a tensor of one.

    Raises:
        TypeError: it is neither.
    """
    if not isinstance(value, Tensor):
        return _number(name, value)
    if value.numel() != 1 or value.is_complex():
        raise TypeError(f"{name}: expected a number, or a tensor of one, got shape {list(value.shape)}, {value.dtype}")
    return value.reshape(())


def whole(name: str, value: int) -> int:
    """A whole number from 1 on.

    Raises:
        ValueError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}: expected a whole number from 1, got {value!r}")
    return value


def _number(name: str, value: float) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name}: expected a number, got {value!r}") from error
