"""Arguments of the array functions: stacks in float64, Grams and their square roots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

import subspan
from subspan import Moments, _arrays, _checks
from subspan.errors import DtypeError, InvalidArgumentError

__all__ = [
    "Floats",
    "grams_of",
    "like",
    "matrices_of",
    "means_of",
    "named",
    "scales_of",
    "square_root",
]

Floats = NDArray[np.float64]

_FLOATS = ("float16", "bfloat16", "float32", "float64")
_FLOOR = 1e-6  # of the largest weight: what is divided by is never smaller


def named(names: Sequence[str] | None, index: int) -> str:
    """Return what to call matrix ``index`` of a stack."""
    return f"matrix {index}" if names is None else repr(names[index])


def matrices_of(
    function: str, weight: Any, names: Sequence[str] | None, *, single: bool = False
) -> tuple[Any, tuple[int, ...]]:
    """Return weights as a stack (batch, m, n), and the leading axes they came with.

    Of float64; with ``single`` of float32, but for weights in float64.
    """
    _arrays.require_array(function, "weight", weight)
    _checks.ndim(function, "weight", weight, 2, or_more=True)
    if _arrays.dtype_name(weight) not in _FLOATS:
        raise DtypeError(
            f"[{function}] weight must be float16, bfloat16, float32 or float64, got "
            f"{_arrays.dtype_name(weight)}"
        )
    single &= _arrays.dtype_name(weight) != "float64"
    x = np.asarray(_arrays.to_numpy(weight), np.float32 if single else np.float64)
    if 0 in x.shape:
        raise InvalidArgumentError(f"[{function}] weight must not be empty, got shape {x.shape}")
    stack = x.reshape(-1, *x.shape[-2:])
    if names is not None and len(names) != len(stack):
        raise InvalidArgumentError(
            f"[{function}] names must be one for each of {len(stack)} matrices, got {len(names)}"
        )
    _finite(function, "weight", stack, names)
    return stack, x.shape[:-2]


def grams_of(
    function: str, inputs: Any, lead: tuple[int, ...], n: int, names: Sequence[str] | None,
    *, centred: bool = False, name: str = "gram",
) -> Floats:  # fmt: skip
    """Return second moments (batch or 1, n, n) of arrays or of `Moments`, one or one a matrix."""
    count = int(np.prod(lead, dtype=np.int64))
    if isinstance(inputs, Moments):
        inputs = [inputs]
    if isinstance(inputs, Sequence) and all(isinstance(one, Moments) for one in inputs):
        if len(inputs) not in {1, count}:
            raise InvalidArgumentError(
                f"[{function}] {name} must be one Moments or one for each of {count} matrices, "
                f"got {len(inputs)}"
            )
        for index, one in enumerate(inputs):
            if not one.count:
                raise InvalidArgumentError(
                    f"[{function}] {name} of {named(names, index)} must have rows, got none. "
                    "Run calibration tokens through the layer first"
                )
        stack = np.stack([one.covariance(0) if centred else one.second_moment() for one in inputs])
    elif centred:
        raise InvalidArgumentError(
            f"[{function}] {name} must be Moments where affine is set, got "
            f"{type(inputs).__name__}: a Gram matrix knows no mean"
        )
    else:
        _arrays.require_array(function, name, inputs)
        _checks.ndim(function, name, inputs, 2, or_more=True)
        x = np.asarray(_arrays.to_numpy(inputs), np.float64)
        stack = x.reshape(-1, *x.shape[-2:])
    if stack.shape[1:] != (n, n) or len(stack) not in {1, count}:
        raise InvalidArgumentError(
            f"[{function}] {name} must be ({n}, {n}), one or one for each of {count} matrices, got "
            f"shape {stack.shape[1:] if len(stack) == 1 else stack.shape}"
        )
    _finite(function, name, stack, names)
    return stack


def like(x: Any, value: Any) -> Any:
    """Return ``value`` in the library, on the device and in the dtype of ``x``."""
    name = _arrays.dtype_name(x)
    if _arrays.library_of(x) == "torch":
        return _arrays.from_numpy(x, np.ascontiguousarray(value)).to(x.dtype)
    return _arrays.from_numpy(x, value.astype(name, order="C", copy=False))


def means_of(inputs: Any) -> Floats:
    """Return the means (batch or 1, n) of `Moments`."""
    return np.stack([one.mean for one in ([inputs] if isinstance(inputs, Moments) else inputs)])


def scales_of(
    function: str, value: Any, lead: tuple[int, ...], n: int,
    names: Sequence[str] | None, *, name: str,
) -> Floats:  # fmt: skip
    """Return weights >= 0 as (batch or 1, n), lifted to 1e-6 of the largest; all zero: ones."""
    _arrays.require_array(function, name, value)
    x = np.asarray(_arrays.to_numpy(value), np.float64)
    count = int(np.prod(lead, dtype=np.int64))
    if x.ndim == 0 or x.shape[-1] != n or x.size not in {n, n * count}:
        raise InvalidArgumentError(
            f"[{function}] {name} must be ({n},), one or one for each of {count} matrices, got "
            f"shape {x.shape}"
        )
    x = x.reshape(-1, n)
    _finite(function, name, x, names)
    if (x < 0).any():
        bad = int(np.argwhere(x < 0)[0, 0])
        raise InvalidArgumentError(
            f"[{function}] {name} of {named(names, bad)} must be >= 0, got {x[bad].min():g}"
        )
    largest = x.max(axis=-1, keepdims=True)
    return np.where(largest > 0, np.maximum(x, _FLOOR * largest), 1.0)


def square_root(gram: Floats) -> Floats:
    """Return S with ``S S^T = gram`` for positive semidefinite matrices, singular ones too.

    Cholesky where it goes through; where rank is missing, eigenvectors times the roots of the
    eigenvalues, those below zero by rounding taken for zero. S is not inverted anywhere.
    """
    found = subspan.cholesky(gram, errors="info")
    root = np.asarray(found.factor)
    singular = np.flatnonzero(found.info)
    if len(singular):
        axes = subspan.eigh(gram[singular])
        root[singular] = axes.vectors * np.sqrt(np.maximum(axes.values, 0.0))[:, None, :]
    return root


def _finite(function: str, name: str, stack: Any, names: Sequence[str] | None) -> None:
    good = np.isfinite(stack).reshape(len(stack), -1).all(axis=1)
    if not good.all():
        bad = int(np.flatnonzero(~good)[0])
        raise InvalidArgumentError(
            f"[{function}] {name} of {named(names, bad)} must be finite, got NaN or infinity"
        )
