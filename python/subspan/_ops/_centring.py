"""Centring for svd: what ``center`` may be, and two ways to subtract it.

Far from the origin ``a @ x - mean @ x`` would subtract two large numbers, so both ways subtract
before they multiply: `subtracted` makes a centred copy, `Matrix` one block of rows at a time.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from subspan import _arrays
from subspan._ops._batch import Batch
from subspan.errors import DtypeError, InvalidArgumentError

__all__ = ["Matrix", "checked", "subtracted"]

_BLOCK = 1 << 18  # elements of a block of rows: stays in the caches


def checked(batch: Batch, center: Any) -> Any:
    """``center`` itself if it is a bool or a vector for every matrix, or one for all of them."""
    if isinstance(center, bool):
        return center
    if not _arrays.library_of(center):
        raise DtypeError(
            f"[{batch.function}] center must be True, False or an array (..., n), "
            f"got {type(center).__name__}"
        )
    _arrays.require_same(batch.function, a=batch.source, center=center)
    if (name := _arrays.dtype_name(center)) not in {"float32", "float64"}:
        raise DtypeError(
            f"[{batch.function}] center must be float32 or float64, got {name}. Convert it first"
        )
    allowed = {(batch.n,), (*batch.lead, batch.n)}
    if (shape := tuple(map(int, center.shape))) not in allowed:
        wanted = " or ".join(map(str, sorted(allowed, key=len)))
        raise InvalidArgumentError(
            f"[{batch.function}] center must have shape {wanted}, got {shape}"
        )
    if _arrays.device_of(center) == "cpu" and not np.isfinite(_arrays.to_numpy(center)).all():
        raise InvalidArgumentError(f"[{batch.function}] center must be finite, got NaN or infinity")
    return center


def subtracted(a: Any, center: Any) -> Any:
    """Return ``a`` less its centre: a copy, by its own library's operations, with gradients.

    Libraries other than numpy, torch and cupy get a numpy array.
    """
    library = _arrays.library_of(a)
    if library not in {"torch", "cupy"}:
        library, a = "numpy", _arrays.to_numpy(a)
        center = center if center is True else _arrays.to_numpy(center)
    if a.shape[-2] == 0:
        return a
    wide = sys.modules[library].float64
    with np.errstate(over="ignore", invalid="ignore"):  # NaN and infinity are the policy's
        if center is True:
            center = a.mean(axis=-2, keepdims=True, dtype=wide)
        else:
            center = _cast(center, wide)[..., None, :]
        high = _cast(center, a.dtype)
        return (a - high) - _cast(center - high, a.dtype)


def _cast(x: Any, dtype: Any) -> Any:
    return x.to(dtype) if hasattr(x, "to") else x.astype(dtype)


class Matrix:
    """A matrix [m, n] less its centre, times a power of two, as its products see it.

    The power of two keeps the products of huge or tiny entries in range; it is 1 for others.
    """

    def __init__(self, a: npt.NDArray[Any], center: bool | npt.NDArray[np.float64]) -> None:
        self.rows = a
        self.shape: tuple[int, int] = a.shape[0], a.shape[1]
        self.dtype = a.dtype
        given = None if isinstance(center, bool) else center
        top = max(_largest(a), 0.0 if given is None else _largest(given))
        exponent = int(np.frexp(top)[1])
        self.shift = -exponent if abs(exponent) > np.finfo(a.dtype).maxexp // 4 else 0
        self.step = max(1, _BLOCK // max(1, a.shape[1]))
        # What is subtracted is the sum of two vectors of a's dtype: the difference to the first is
        # exact where it is small, and the second has the digits that the first lost.
        self.center: list[npt.NDArray[Any]] = []
        if center is True:
            total = sum(block.sum(axis=0, dtype=np.float64) for _, block in self.blocks())
            self._subtract(np.asarray(total) / len(a))
        elif given is not None:
            self._subtract(np.ldexp(given, self.shift))
        self.energy = sum(energy(block) for _, block in self.blocks())

    def _subtract(self, center: npt.NDArray[np.float64]) -> None:
        high = center.astype(self.dtype)
        low = (center - high).astype(self.dtype)
        self.center = [part for part in (high, low) if part.any()]

    def blocks(self) -> Iterator[tuple[slice, npt.NDArray[Any]]]:
        """Blocks of rows and where they are; each block may be overwritten by the next."""
        m, n = self.shape
        scratch = np.empty((min(self.step, m), n), self.dtype)
        for start in range(0, m, self.step):
            rows = slice(start, min(start + self.step, m))
            block = self.rows[rows]
            if self.shift:
                block = np.ldexp(block, self.shift, out=scratch[: len(block)])
            for part in self.center:
                block = np.subtract(block, part, out=scratch[: len(block)])
            yield rows, block

    def times(self, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the matrix times x [n, l]."""
        if not self.shift and not self.center:
            return np.asarray(self.rows @ x)
        out = np.empty((self.shape[0], x.shape[1]), self.dtype)
        for rows, block in self.blocks():
            np.matmul(block, x, out=out[rows])
        return out

    def from_left(self, q: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return q^T times the matrix, for q [m, l]."""
        if not self.shift and not self.center:
            return np.asarray(q.T @ self.rows)
        out = np.zeros((q.shape[1], self.shape[1]), self.dtype)
        for rows, block in self.blocks():
            out += q[rows].T @ block
        return out

    def distance(self, u: npt.NDArray[Any], s: npt.NDArray[Any], vh: npt.NDArray[Any]) -> float:
        """Return the squared Frobenius norm of the matrix less u diag(s) vh, in float64."""
        right = s.astype(np.float64)[:, None] * vh
        return float(sum(energy(block - u[rows] @ right) for rows, block in self.blocks()))


def energy(x: npt.NDArray[Any]) -> float:
    """Squared Frobenius norm, in float64."""
    return float(np.square(x, dtype=np.float64).sum())


def _largest(x: npt.NDArray[Any]) -> float:
    """Largest magnitude, without a copy."""
    return max(float(x.max(initial=0.0)), -float(x.min(initial=0.0)))
