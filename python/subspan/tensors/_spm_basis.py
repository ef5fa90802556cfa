"""Symmetric tensors as vectors: an orthonormal basis with one coordinate per unique entry.

The coordinate of an entry is its value times the root of how often it occurs, so that lengths and
inner products are those of the full tensors, at 1/h! of their size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from subspan import _multisets

__all__ = ["Array", "SymmetricBasis", "flatten", "flatten_full", "join"]

Array = npt.NDArray[Any]


class SymmetricBasis:
    """Coordinates of symmetric tensors of order h, dimension d. Columns are tensors or points."""

    def __init__(self, d: int, h: int) -> None:
        self.d, self.h = d, h
        self.size = _multisets.count(d, h)
        self.roots = np.sqrt(_multisets.multiplicities(d, h))
        self._tables: dict[int, npt.NDArray[np.int64]] = {}

    def powers(self, x: Array) -> Array:
        """Coordinates (size, s) of x^(h) for points (d, s)."""
        found: Array = _monomials(x, self.h)
        found *= _like(self.roots, found)
        return found

    def contract(self, p: Array, x: Array, keep: int) -> Array:
        """Contract each tensor (size, s) with its point (d, s) until `keep` axes are left.

        Returns plain unique entries (C(d + keep - 1, keep), s).
        """
        if keep == self.h:
            return self._entries(p)
        return self.contraction(p, keep)(x)

    def contraction(self, p: Array, keep: int = 1) -> Callable[[Array], Array]:
        """Return `contract` for many points in turn, keep < h."""
        rest = self.h - keep
        entries = self._entries(p)[self._table(keep)]
        weights = _like(_multisets.multiplicities(self.d, rest), p)
        return lambda x: np.einsum("kbs,bs->ks", entries, _monomials(x, rest) * weights)

    def halves(self, v: Array) -> Array:
        """Arrange tensors (size, r) for products with x^(h-1): (C(d + h - 2, h - 1), r d)."""
        entries = v / self.roots[:, None]
        entries = entries.T[:, self._table(1).T].transpose(1, 0, 2)  # (rest, r, d)
        entries = entries * _multisets.multiplicities(self.d, self.h - 1)[:, None, None]
        return entries.reshape(len(entries), -1)

    def lower_powers(self, x: Array) -> Array:
        """Plain monomials of degree h - 1, which `halves` are multiplied with."""
        return _monomials(x, self.h - 1)

    def _entries(self, p: Array) -> Array:
        found: Array = p / _like(self.roots, p)
        return found

    def _table(self, keep: int) -> npt.NDArray[np.int64]:
        if keep not in self._tables:
            self._tables[keep] = join(self.d, keep, self.h - keep)
        return self._tables[keep]


def join(d: int, p: int, q: int) -> npt.NDArray[np.int64]:
    """Where the union of the i-th multiset of p elements and the j-th of q stands, as (i, j)."""
    left, right = _multisets.indices(d, p), _multisets.indices(d, q)
    table = np.empty((len(left), len(right)), np.int64)
    step = max(1, 1_000_000 // (len(right) * (p + q)))
    for first in range(0, len(left), step):
        some = left[first : first + step]
        shape = (len(some), len(right))
        both = np.concatenate(
            [
                np.broadcast_to(some[:, None], (*shape, p)),
                np.broadcast_to(right, (*shape, q)),
            ],
            axis=-1,
        )
        both.sort(axis=-1)
        table[first : first + step] = _multisets.positions(both, d)
    return table


def flatten(packed: Array, d: int, order: int) -> Array:
    """Flattening C(d + h - 1, h) x C(d + order - h - 1, order - h) of unique entries."""
    h = (order + 1) // 2
    return _scaled(packed[join(d, h, order - h)], d, order)


def flatten_full(tensor: npt.NDArray[Any], order: int) -> Array:
    """Flattening of a full symmetric tensor."""
    d, h = tensor.shape[0], (order + 1) // 2
    rows, columns = _multisets.places(d, h), _multisets.places(d, order - h)
    entries = tensor.reshape(d**h, -1)[np.ix_(rows, columns)]
    return _scaled(entries.astype(np.float64, copy=False), d, order)


def _scaled(matrix: Array, d: int, order: int) -> Array:
    h = (order + 1) // 2
    matrix *= np.sqrt(_multisets.multiplicities(d, h))[:, None]
    matrix *= np.sqrt(_multisets.multiplicities(d, order - h))
    return matrix


def _like(weights: Array, a: Array) -> Array:
    """Weights of rows, in the dtype of a matrix."""
    return weights.astype(a.dtype, copy=False)[:, None]


def _monomials(x: Array, degree: int) -> Array:
    """All monomials (count, s) of a degree of points (d, s), in lexicographic order."""
    if degree == 0:
        return np.ones((1, x.shape[1]))
    table = _multisets.indices(len(x), degree)
    found: Array = x[table[:, 0]]
    for k in range(1, degree):
        found *= x[table[:, k]]
    return found
