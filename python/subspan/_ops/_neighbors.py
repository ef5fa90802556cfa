"""Arguments and results that the searches for neighbours have in common."""

from __future__ import annotations

from typing import Any

import numpy as np

from subspan import _arrays, _checks
from subspan.errors import DtypeError, InvalidArgumentError

__all__ = ["METRICS", "allowed", "distance_dtype", "exclusion", "rounded", "rows"]

METRICS = ("euclidean", "sqeuclidean", "inner_product", "cosine")
_DTYPES = ("float16", "bfloat16", "float32", "float64", "int8", "uint8")


def rows(function: str, x: Any, y: Any) -> tuple[Any, Any, bool]:
    """Return x and y as the core takes them, and whether y is x."""
    _arrays.require_same(function, x=x, y=y)
    name = _arrays.dtype_name(x)
    if name not in _DTYPES:
        raise DtypeError(
            f"[{function}] x must be float16, bfloat16, float32, float64, int8 or uint8, "
            f"got {name}. Convert it first"
        )
    _checks.ndim(function, "x", x, 2)
    queries = _arrays.exportable(function, "x", x)
    if y is None:
        return queries, queries, True
    if (came := _arrays.dtype_name(y)) != name:
        raise DtypeError(f"[{function}] y must be {name} like x, got {came}. Convert it first")
    _checks.ndim(function, "y", y, 2)
    return queries, _arrays.exportable(function, "y", y), False


def exclusion(function: str, exclude_self: Any, same: bool) -> bool:
    """Return whether a row is kept from being its own neighbour."""
    if exclude_self is None:
        return same
    if not isinstance(exclude_self, (bool, np.bool_)):
        raise DtypeError(f"[{function}] exclude_self must be a bool or None, got {exclude_self!r}")
    if exclude_self and not same:
        raise InvalidArgumentError(
            f"[{function}] exclude_self must be False where y is given, got True. "
            "Leave y out: then the rows of x are searched"
        )
    return bool(exclude_self)


def distance_dtype(function: str, x: Any, dtype: Any) -> str:
    """Return the dtype that distances are to have."""
    if dtype is None:
        return "float64" if _arrays.dtype_name(x) == "float64" else "float32"
    return _checks.choice(function, "dtype", dtype, ("float32", "float64"))


def rounded(distances: Any, dtype: str) -> Any:
    """Return distances in float64 as that dtype; what is too large becomes inf."""
    if dtype == "float64":
        return distances
    if _arrays.library_of(distances) == "torch":
        return distances.float()
    with np.errstate(over="ignore"):
        return distances.astype(dtype)


def allowed(function: str, mask: Any, ids: Any, q: int, n: int) -> Any:
    """Return bytes (1, n) or (q, n), 1 where there may be a neighbour; None: everywhere."""
    allowed = None
    if mask is not None:
        _arrays.require_array(function, "mask", mask)
        if (name := _arrays.dtype_name(mask)) != "bool":
            raise DtypeError(f"[{function}] mask must be bool, got {name}. Compare it with 0 first")
        shape = tuple(int(extent) for extent in mask.shape)
        if shape not in {(n,), (q, n)}:
            raise InvalidArgumentError(
                f"[{function}] mask must have shape ({n},) or ({q}, {n}), got {shape}"
            )
        allowed = _arrays.to_numpy(mask)
        allowed = allowed[None] if len(shape) == 1 else allowed
    if ids is not None:
        listed = _listed(function, ids, n)
        allowed = listed if allowed is None else allowed & listed
    return None if allowed is None else allowed.view(np.uint8)


def _listed(function: str, ids: Any, n: int) -> np.ndarray[Any, Any]:
    _arrays.require_array(function, "ids", ids)
    if (name := _arrays.dtype_name(ids)) != "int64":
        raise DtypeError(f"[{function}] ids must be int64, got {name}. Convert them first")
    _checks.ndim(function, "ids", ids, 1)
    chosen = _arrays.to_numpy(ids)
    outside = chosen[(chosen < 0) | (chosen >= n)]
    if outside.size:
        raise InvalidArgumentError(
            f"[{function}] ids must be in 0..{n - 1}, got {outside[0]}"
            if n
            else f"[{function}] ids must be empty where y has no rows, got {outside[0]}"
        )
    listed = np.zeros((1, n), bool)
    listed[0, chosen] = True
    return listed
