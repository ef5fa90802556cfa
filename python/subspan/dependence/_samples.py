"""Samples as every measure wants them: checked, two axes, numpy or torch."""

import sys
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from subspan import _arrays
from subspan.errors import DtypeError, InvalidArgumentError, UnsupportedError

__all__ = [
    "Floats",
    "Unit",
    "constant",
    "delivered",
    "in_units",
    "is_torch",
    "read",
    "read_arrays",
    "read_constant",
    "root",
    "wide",
]

Floats = NDArray[Any]
"""float32 or float64."""


def read_arrays(function: str, *, least: int, paired: bool = True, **arrays: Any) -> list[Any]:
    """Return samples (n, d), torch tensors with their gradients and all others in numpy.

    Raises unless they are finite, of one library and dtype, with ``least`` rows or more and, if
    ``paired``, as many as each other. One axis is one column.
    """
    _arrays.require_same(function, **arrays)
    first, *_ = arrays
    wanted = _arrays.dtype_name(arrays[first])
    n = int(arrays[first].shape[0]) if len(arrays[first].shape) else 0
    out = []
    for name, array in arrays.items():
        came = _arrays.dtype_name(array)
        if came not in {"float32", "float64"}:
            raise DtypeError(
                f"[{function}] {name} must be float32 or float64, got {came}. Convert it first"
            )
        if came != wanted:
            raise DtypeError(
                f"[{function}] {name} must be {wanted} like {first}, got {came}. Convert it first"
            )
        if len(array.shape) not in {1, 2}:
            raise InvalidArgumentError(
                f"[{function}] {name} must be (n, d) or (n,), got shape {tuple(array.shape)}"
            )
        rows = int(array.shape[0])
        if rows < least:
            raise InvalidArgumentError(
                f"[{function}] {name} must have at least {least} rows, got {rows}"
            )
        if paired and rows != n:
            raise InvalidArgumentError(
                f"[{function}] {name} must have {n} rows like {first}, got {rows}"
            )
        if _arrays.device_of(array) != "cpu":
            raise UnsupportedError(
                f"[{function}] {name} must be on the CPU, got {_arrays.device_of(array)}. "
                "Copy it to the host first"
            )
        _require_finite(function, name, _arrays.to_numpy(array))
        kept = array if _arrays.library_of(array) == "torch" else _arrays.to_numpy(array)
        out.append(kept if len(kept.shape) == 2 else kept[:, None])
    return out


def read(function: str, *, least: int, **arrays: Any) -> list[Any]:
    """Return paired samples (n, d): numpy arrays, or tensors where one of them wants a gradient."""
    samples = read_arrays(function, least=least, **arrays)
    if any(map(_wants_gradient, samples)):
        return samples
    return [_arrays.to_numpy(sample) for sample in samples]


def read_constant(function: str, *, least: int, **arrays: Any) -> list[Floats]:
    """Return paired samples (n, d) in numpy; refuses tensors whose gradient would be lost."""
    for name, array in arrays.items():
        _arrays.exportable(function, name, array)
    return read(function, least=least, **arrays)


def delivered(value: Any, *samples: Any) -> Any:
    """Return a float, or where samples are tensors a tensor of no axes that knows them."""
    if not is_torch(samples[0]):
        return float(value)
    return value if is_torch(value) else value + sum(0.0 * sample.sum() for sample in samples)


def is_torch(a: Any) -> bool:
    """Whether a is a tensor."""
    return _arrays.library_of(a) == "torch"


def wide(a: Any) -> Any:
    """Return a in float64."""
    return a.double() if is_torch(a) else a.astype(np.float64)


def constant(a: Any) -> Any:
    """Return a without its gradient."""
    return a.detach() if is_torch(a) else a


def root(square: Any) -> Any:
    """Return the root of what rounding may have made negative, whose gradient is then 0."""
    return square**0.5 if float(constant(square)) > 0 else 0.0 * square


def _wants_gradient(a: Any) -> bool:
    return bool(is_torch(a) and a.requires_grad and sys.modules["torch"].is_grad_enabled())


def _require_finite(function: str, name: str, rows: Floats) -> None:
    # A sum is finite only if all are; where it is not, it may have overflowed.
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(rows.sum()):
            return
    finite = np.isfinite(rows)
    if finite.all():
        return
    place = np.unravel_index(int(np.argmin(finite)), rows.shape)
    what = "NaN" if np.isnan(rows[place]) else "infinity"
    where = f"row {place[0]}" + (f", column {place[1]}" if len(place) == 2 else "")
    raise InvalidArgumentError(
        f"[{function}] {name} must be finite, got {what} in {where}. Drop that row from all samples"
    )


class Unit(NamedTuple):
    """Rows over a power of two, so that no square over- or underflows."""

    rows: Any
    scale: float
    """What distances of ``rows`` are to be multiplied by; 0 where all rows are equal."""


def in_units(rows: Any) -> Unit:
    """Return rows whose greatest departure from their middle is between 1/2 and 1."""
    if rows.shape[1] == 0:
        return Unit(rows, 0.0)
    plain = _arrays.to_numpy(rows)
    low, high = plain.min(axis=0).astype(np.float64), plain.max(axis=0).astype(np.float64)
    spread = float((high / 2 - low / 2).max())
    if spread == 0:
        return Unit(rows, 0.0)
    scale = float(2.0 ** max(int(np.frexp(spread)[1]), int(np.finfo(plain.dtype).minexp) + 6))
    # The middle goes first only where what is far from 0 could overflow.
    if max(abs(float(low.min())), abs(float(high.max()))) > 1e3 * spread:
        middle = (high / 2 + low / 2).astype(plain.dtype)
        rows = rows - (rows.new_tensor(middle) if is_torch(rows) else middle)
    return Unit(rows * (1 / scale), scale)
