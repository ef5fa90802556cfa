"""Moments of samples as flattenings, with the part of Gaussian noise taken out."""

from __future__ import annotations

from math import factorial
from typing import Any

import numpy as np
import numpy.typing as npt

from subspan import _multisets
from subspan.tensors._spm_basis import Array, SymmetricBasis, flatten, join

__all__ = ["moment_matrix"]

_ELEMENTS = 1 << 22  # of the monomials of a block of samples


def moment_matrix(x: npt.NDArray[Any], order: int, variance: float) -> Array:
    """Flattening of the mean of x^(order) over rows, less what noise of this variance adds.

    The mean of the Hermite tensors: sum over k of (-v)^k m! / (k! (m - 2k)! 2^k) times the
    symmetric part of M_(m-2k) (x) I^(k), M_p the moment of order p.
    """
    if variance == 0:
        return _flattening(x, order)
    d = x.shape[1]
    total = np.zeros(_multisets.count(d, order))
    for k in range(order // 2 + 1):
        low = order - 2 * k
        # As polynomials: tensors multiply like their forms, and I is |x|^2.
        form = _entries(x, low) * _multisets.multiplicities(d, low)
        for p in range(low, order, 2):
            form = _times_square(form, d, p)
        scale = factorial(order) / (factorial(k) * factorial(low) * 2.0**k)
        total += scale * (-variance) ** k * form
    return flatten(total / _multisets.multiplicities(d, order), d, order)


def _flattening(x: npt.NDArray[Any], order: int) -> Array:
    d = x.shape[1]
    high, low = SymmetricBasis(d, (order + 1) // 2), SymmetricBasis(d, order // 2)
    total = np.zeros((high.size, low.size))
    step = max(1, _ELEMENTS // (high.size + low.size))
    for first in range(0, len(x), step):
        points = np.ascontiguousarray(x[first : first + step].T, np.float64)
        left = high.powers(points)
        total += left @ (left if low.h == high.h else low.powers(points)).T
    return total / len(x)


def _entries(x: npt.NDArray[Any], order: int) -> Array:
    """Return the unique entries of the moment of an order from 0 on."""
    if order == 0:
        return np.ones(1)
    if order == 1:
        mean: Array = x.mean(axis=0, dtype=np.float64)
        return mean
    d, high = x.shape[1], (order + 1) // 2
    table = _multisets.indices(d, order)
    i = _multisets.positions(table[:, :high], d)
    j = _multisets.positions(table[:, high:], d)
    roots = [np.sqrt(_multisets.multiplicities(d, h)) for h in (high, order - high)]
    found: Array = _flattening(x, order)[i, j] / (roots[0][i] * roots[1][j])
    return found


def _times_square(form: Array, d: int, order: int) -> Array:
    """Coefficients of a form of this order times |x|^2."""
    squares = np.flatnonzero(np.diff(_multisets.indices(d, 2), axis=1)[:, 0] == 0)
    places = join(d, order, 2)[:, squares] if order else squares[None, :]
    values = np.broadcast_to(form[:, None], places.shape)
    return np.bincount(places.ravel(), values.ravel(), _multisets.count(d, order + 2))
