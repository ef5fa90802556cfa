"""Where the work is done: numpy on the host, torch or cupy on a device.

Tensors on the CPU are worked on through numpy's view of the same memory. What is large (bases,
products) stays where it is; what is small (angles, dimensions) is numpy on the host in between.
Every function takes arrays of any of the three libraries.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

import subspan
from subspan import SVD, _arrays, _checks
from subspan.errors import DtypeError

__all__ = [
    "concatenate",
    "flip",
    "give",
    "host",
    "lift",
    "like",
    "permute",
    "put",
    "stretch",
    "svd",
    "swap",
    "take",
    "unit_of",
    "widen",
    "zeros",
]

Floats = NDArray[np.float64]

# Unit of rounding of the dtype in which bases are stored, which decides what counts as rank.
_UNITS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


def unit_of(function: str, name: str, x: Any) -> float:
    """Return the rounding unit of the dtype that ``x`` is stored in; refuse other dtypes."""
    _arrays.require_array(function, name, x)
    stored = _arrays.dtype_name(x)
    if stored not in _UNITS:
        raise DtypeError(
            f"[{function}] {name} must be float16, bfloat16, float32 or float64, got {stored}. "
            "Convert it first"
        )
    return _UNITS[stored]


def lift(function: str, name: str, x: Any, *, wide: bool, axes: int = 2) -> Any:
    """``x`` as an array to work on: float32 or float64 (always that if ``wide``)."""
    unit = unit_of(function, name, x)
    x = _arrays.exportable(function, name, x)
    _checks.ndim(function, name, x, axes, or_more=True)
    if _on_host(x):
        x = _arrays.to_numpy(x)
    return widen(x) if wide or unit == _UNITS["float64"] else _cast(x, "float32")


def _on_host(x: Any) -> bool:
    return _arrays.device_of(x) == "cpu"


def give(source: Any, out: Any, dtype: str | None = None) -> Any:
    """``out`` in the library and on the device of ``source``, cast to ``dtype``."""
    if dtype is not None:
        out = _cast(out, dtype)
    return _arrays.from_numpy(source, out) if isinstance(out, np.ndarray) else out


def host(x: Any) -> Floats:
    """``x`` as float64 on the host."""
    return np.asarray(_arrays.to_numpy(x), dtype=np.float64)


def like(x: Any, values: NDArray[Any]) -> Any:
    """``values`` of the host beside ``x``, in its dtype."""
    return give(x, values.astype(_arrays.dtype_name(x)))


def widen(x: Any) -> Any:
    """``x`` in float64."""
    return _cast(x, "float64")


def _cast(x: Any, dtype: str) -> Any:
    if _arrays.library_of(x) == "torch":
        return x.to(getattr(sys.modules["torch"], dtype))
    return x.astype(dtype, copy=False)


def zeros(x: Any, shape: tuple[int, ...]) -> Any:
    """Zeros of the library, device and dtype of ``x``."""
    out = _arrays.empty_like_on(x, shape)
    out[...] = 0
    return out


def take(x: Any, places: NDArray[np.int64]) -> Any:
    """Rows ``places`` of the first axis."""
    if _arrays.library_of(x) == "torch":
        return x[sys.modules["torch"].from_numpy(places).to(x.device)]
    return x[places]


def put(x: Any, places: NDArray[np.int64], values: Any) -> None:
    """Set rows ``places`` of the first axis."""
    if _arrays.library_of(x) == "torch":
        x[sys.modules["torch"].from_numpy(places).to(x.device)] = values
    else:
        x[places] = values


def flip(x: Any) -> Any:
    """Rows of every matrix in reverse order."""
    return x.flip(-2) if _arrays.library_of(x) == "torch" else x[..., ::-1, :]


def svd(x: Any) -> SVD:
    """Thin SVD of finite matrices."""
    return SVD(*subspan.svd(x, nonfinite="ignore")[:3])


def swap(x: Any) -> Any:
    """Transpose of every matrix, a view."""
    return x.swapaxes(-1, -2)


def permute(x: Any, axes: Sequence[int]) -> Any:
    """Axes in another order, a view."""
    return x.permute(*axes) if _arrays.library_of(x) == "torch" else x.transpose(*axes)


def stretch(x: Any, shape: tuple[int, ...]) -> Any:
    """``x`` broadcast to ``shape``, a view."""
    library = _arrays.library_of(x)
    return sys.modules[library].broadcast_to(x, shape)


def concatenate(parts: Sequence[Any], axis: int) -> Any:
    """Join arrays along an axis."""
    if _arrays.library_of(parts[0]) == "torch":
        return sys.modules["torch"].cat(list(parts), dim=axis)
    return sys.modules[_arrays.library_of(parts[0])].concatenate(list(parts), axis=axis)
