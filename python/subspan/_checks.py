"""Argument checks with one form of message: ``[function] argument must be ..., got ...``."""

from __future__ import annotations

import operator
from collections.abc import Collection
from typing import Any

from subspan.errors import DtypeError, InvalidArgumentError

__all__ = ["choice", "integer", "ndim", "real"]


def integer(
    function: str, name: str, value: Any, *, low: int | None = None, high: int | None = None
) -> int:
    """``value`` as an int in low..high (both included)."""
    try:
        number = operator.index(value)
        if isinstance(value, bool):
            raise TypeError
    except TypeError:
        raise DtypeError(
            f"[{function}] {name} must be an integer, got {type(value).__name__} {value!r}"
        ) from None
    if (low is not None and number < low) or (high is not None and number > high):
        bounds = f"in {low}..{high}" if high is not None and low is not None else f">= {low}"
        raise InvalidArgumentError(f"[{function}] {name} must be {bounds}, got {number}")
    return number


def real(
    function: str, name: str, value: Any, *, low: float = float("-inf"), high: float = float("inf")
) -> float:
    """``value`` as a float in [low, high]; NaN is refused."""
    if isinstance(value, (str, bytes, bool)):
        raise DtypeError(f"[{function}] {name} must be a number, got {value!r}")
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise DtypeError(
            f"[{function}] {name} must be a number, got {type(value).__name__}"
        ) from None
    if not low <= number <= high:
        raise InvalidArgumentError(f"[{function}] {name} must be in [{low}, {high}], got {number}")
    return number


def choice(function: str, name: str, value: Any, allowed: Collection[str]) -> str:
    """``value`` if it is one of ``allowed``."""
    if value not in allowed:
        options = ", ".join(repr(option) for option in allowed)
        raise InvalidArgumentError(f"[{function}] {name} must be one of {options}, got {value!r}")
    return str(value)


def ndim(function: str, name: str, x: Any, wanted: int, *, or_more: bool = False) -> None:
    """``x`` has ``wanted`` axes, or at least so many."""
    came = len(x.shape)
    if came == wanted or (or_more and came > wanted):
        return
    more = " or more" if or_more else ""
    raise InvalidArgumentError(
        f"[{function}] {name} must have {wanted}{more} axes, got {came} (shape {tuple(x.shape)})"
    )
