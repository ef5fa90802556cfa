"""What the decompositions take and give back: numpy to work in, the caller's library at the end."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subspan import _arrays, _checks
from subspan.errors import DtypeError, InvalidArgumentError, UnsupportedError

__all__ = ["Array", "dense", "finite", "give", "imported", "modes", "tensor"]

Array = NDArray[Any]


def dense(function: str, name: str, x: Any) -> Array:
    """``x`` in float32 or float64 on the host, in place where it lies there already."""
    _arrays.require_array(function, name, x)
    x = _arrays.exportable(function, name, x)
    if _arrays.device_of(x) != "cpu":
        raise UnsupportedError(
            f"[{function}] {name} must be on the CPU, got an array on {_arrays.device_of(x)}. "
            "Copy it to the host first"
        )
    if (dtype := _arrays.dtype_name(x)) not in {"float32", "float64"}:
        raise DtypeError(
            f"[{function}] {name} must be float32 or float64, got {dtype}. Convert it first"
        )
    return _arrays.to_numpy(x)


def finite(function: str, name: str, x: Array, where: Array | None = None) -> None:
    """Raise where ``x`` holds NaN or infinity; ``where``: of what counts."""
    good = np.isfinite(x)
    if where is not None:
        good |= ~where
    if not good.all():
        first = tuple(int(i) for i in np.argwhere(~good)[0])
        raise InvalidArgumentError(
            f"[{function}] {name} must be finite, got {x[first]} at {first}. "
            "Leave such elements out, by a mask where the function takes one"
        )


def tensor(function: str, x: Any, *, least: int = 3, remedy: str = "") -> Array:
    """``x`` as a tensor without empty modes; finite."""
    found = dense(function, "x", x)
    if found.ndim < least:
        raise InvalidArgumentError(
            f"[{function}] x must have {least} or more modes, got {found.ndim} (shape "
            f"{found.shape}){remedy}"
        )
    if found.size == 0:
        raise InvalidArgumentError(
            f"[{function}] x must have no empty mode, got shape {found.shape}"
        )
    return found


def modes(function: str, name: str, given: Sequence[int], order: int) -> tuple[int, ...]:
    """Return distinct modes, from 0."""
    found = tuple(
        _checks.integer(function, name, n, low=-order, high=order - 1) % order for n in given
    )
    if len(set(found)) < len(found):
        raise InvalidArgumentError(f"[{function}] {name} must be distinct modes, got {given}")
    return found


def give(source: Any, out: Array) -> Any:
    """``out`` as an array of the library of ``source``."""
    return _arrays.from_numpy(source, out)


def imported(function: str, name: str) -> Any:
    """Return an optional library, to which results are handed over."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise UnsupportedError(
            f"[{function}] {package} must be installed, got {error}. pip install {package}"
        ) from None
