"""The end of the subspace power method: weights, order, signs; and the bound of the rank."""

from __future__ import annotations

import numpy as np

from subspan import _multisets
from subspan.tensors._spm_basis import Array, SymmetricBasis

__all__ = ["arranged", "best_weights", "rank_bound"]


def best_weights(
    a: Array, matrix: Array, bases: tuple[SymmetricBasis, SymmetricBasis]
) -> tuple[Array, float]:
    """Least-squares weights of unit columns a, and the relative error of what they make.

    The normal equations have the Gram matrix of the components, (a^T a)^m entry by entry.
    """
    high, low = bases
    left, right = high.powers(a), low.powers(a)
    gram = (a.T @ a) ** (high.h + low.h)
    side = np.einsum("nr,nr->r", matrix @ right, left)
    try:
        weights = np.linalg.solve(gram, side)
    except np.linalg.LinAlgError:  # components that depend on each other
        weights = np.linalg.lstsq(gram, side, rcond=None)[0]
    rest = (left * weights) @ right.T
    rest -= matrix
    size = float(np.linalg.norm(matrix))
    return weights, float(np.linalg.norm(rest)) / size if size else 0.0


def arranged(a: Array, weights: Array, order: int) -> tuple[Array, Array, Array]:
    """Columns and weights by descending |weight|, signs settled; and where each came from.

    Odd orders: weights are positive. Even orders: the first entry of a column that is at least half
    as large as the largest is positive.
    """
    place = np.argsort(-np.abs(weights), kind="stable")
    a, weights = a[:, place].copy(), weights[place].copy()
    if order % 2:
        turned = weights < 0
        weights[turned] *= -1
    else:
        first = np.argmax(np.abs(a) >= np.abs(a).max(axis=0, initial=0) / 2, axis=0)
        turned = a[first, np.arange(a.shape[1])] < 0
    a[:, turned] *= -1
    return a, weights, place


def rank_bound(d: int, order: int) -> int:
    """Greatest rank that the method is sure to decompose: see `subspan.tensors.spm`."""
    h = (order + 1) // 2
    size, low = _multisets.count(d, h), _multisets.count(d, order - h)
    spare = size - d
    # The dimension above, where the h^(d-1) points that a subspace meets are the components.
    if h ** (d - 1) <= spare + 1:
        spare += 1
    return max(min(spare, low), 1)
