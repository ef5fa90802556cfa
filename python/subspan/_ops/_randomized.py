"""Randomized truncated SVD over the exact primitives (Halko, Martinsson, Tropp 2011)."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from subspan import _arrays, _core
from subspan._ops._batch import Batch
from subspan.errors import InvalidArgumentError

__all__ = ["svd"]

_MIN_ITERATIONS, _MAX_ITERATIONS = 2, 10
_SETTLED = 1e-3  # relative growth of the captured energy below which iteration stops


def svd(batch: Batch, k: int, *, seed: int, tol: float | None) -> tuple[Any, Any, Any]:
    """Leading k triplets of every matrix; matrices one after the other."""
    u = batch.empty(batch.m, k)
    s = batch.empty(k)
    vh = batch.empty(k, batch.n)
    missed = 0.0
    for b in range(batch.size):
        a = _arrays.to_numpy(batch.rows[b, ...])
        if batch.nonfinite != "ignore" and not np.isfinite(a).all():
            if batch.nonfinite == "raise":
                raise InvalidArgumentError(
                    f"[svd] a must be finite, got NaN or infinity in matrix {b} of {batch.size}. "
                    'Pass nonfinite="propagate" to get NaN for it and results for the others'
                )
            batch.info[b] = -1
            left, values, right = (np.full(shape, np.nan) for shape in ((1, 1), (1,), (1, 1)))
        else:
            left, values, right = _one(a, k, seed)
            if tol is not None:
                missed = max(missed, _relative_error(a, left, values, right))
        for target, source in ((u, left), (s, values), (vh, right)):
            target[b] = _like(target, source)
    if tol is not None and missed > tol:
        warnings.warn(
            f"[svd] the randomized factors of rank {k} have a relative error of {missed:.3g}, more "
            f"than tol={tol:g}: raise k, or use method='exact'",
            UserWarning,
            stacklevel=3,
        )
    return u, s, vh


def _one(a: np.ndarray[Any, Any], k: int, seed: int) -> tuple[Any, Any, Any]:
    m, n = a.shape
    width = min(m, n, k + max(10, k // 2))
    test = np.empty(n * width, a.dtype)
    _core.fill_normal(test, seed, 0)
    # An exact power of two keeps the products of huge or tiny entries in range.
    top = float(np.abs(a).max(initial=0.0))
    shift = -int(np.frexp(top)[1])
    scaled = np.ldexp(a, shift)
    basis = _orthonormal(scaled @ test.reshape(n, width))
    captured = 0.0
    for iteration in range(_MAX_ITERATIONS):
        core = basis.T @ scaled
        before, captured = captured, float(np.square(core.astype(np.float64)).sum())
        if iteration >= _MIN_ITERATIONS and captured - before <= _SETTLED * captured:
            break
        basis = _orthonormal(scaled @ _orthonormal(core.T))
    core = np.ascontiguousarray(basis.T @ scaled)
    values = np.empty((1, width), a.dtype)
    small, right = np.empty((1, width, width), a.dtype), np.empty((1, width, n), a.dtype)
    info = np.zeros(1, np.int32)
    _core.svd(core[None], values, small, right, info, "ignore", True)
    with np.errstate(over="ignore"):  # a norm may be beyond the range of the entries
        unscaled = np.ldexp(values[0, :k], -shift)
    return basis @ small[0, :, :k], unscaled, right[0, :k]


def _relative_error(
    a: np.ndarray[Any, Any],
    u: np.ndarray[Any, Any],
    s: np.ndarray[Any, Any],
    vh: np.ndarray[Any, Any],
) -> float:
    """Frobenius norm of a - u s vh over that of a, by blocks of rows in float64.

    The difference of the squared norms would be cheaper, but it is lost in rounding below the
    square root of the precision.
    """
    top = np.abs(a).max(initial=0.0).astype(np.float64)
    right = (s.astype(np.float64) / (top or 1.0))[:, None] * vh
    total = missed = 0.0
    step = max(1, 2**20 // max(1, a.shape[1]))
    for start in range(0, len(a), step):
        block = a[start : start + step] / (top or 1.0)
        total += float(np.square(block).sum())
        missed += float(np.square(block - u[start : start + step] @ right).sum())
    return float(np.sqrt(missed / total)) if total > 0 else 0.0


def _orthonormal(y: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    m, n = y.shape
    q, r = np.empty((1, m, n), y.dtype), np.empty((1, n, n), y.dtype)
    _core.qr(np.ascontiguousarray(y)[None], q, r, np.zeros(1, np.int32), "ignore")
    return np.asarray(q[0])


def _like(target: Any, source: np.ndarray[Any, Any]) -> Any:
    """``source`` in a form that can be assigned into an array of target's library."""
    if _arrays.library_of(target) == "torch":
        import torch

        return torch.from_numpy(np.ascontiguousarray(source)).to(target.dtype)
    return source
