"""Orthogonal matching pursuit of many signals at once, from products alone."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import subspan

__all__ = ["Codes", "damped_root", "pursue"]

_SCRATCH = 1 << 23  # bytes of projected atoms at a time, which are read once a step: from a cache
_SPENT = 1e-10  # an atom with less than this of its squared length left adds nothing


class Codes(NamedTuple):
    """``signals ~ values at indices of atoms``."""

    values: Any
    """(m, s)"""
    indices: NDArray[np.int64]
    """(m, s) distinct in each row."""
    errors: Any
    """(m,) squared residuals."""


def pursue(signals: Any, atoms: Any, sparsity: int) -> Codes:
    """Code rows of ``signals`` (m, n) by ``sparsity`` rows of ``atoms`` (k, n) of length one.

    Greedy: the atom with the largest correlation with the residual, then least squares on all
    atoms so far. Kept are correlations of all atoms with the directions that the chosen ones add;
    from these, the next direction and all correlations follow by products, without residuals.
    """
    m, k = len(signals), len(atoms)
    gram, scores = atoms @ atoms.T, signals @ atoms.T
    values = np.zeros((m, sparsity), signals.dtype)
    indices = np.zeros((m, sparsity), np.int64)
    errors = np.square(signals).sum(axis=1)
    step = max(1, _SCRATCH // (sparsity * k * signals.dtype.itemsize))
    for start in range(0, m, step):
        here = slice(start, start + step)
        values[here], indices[here], fitted = _block(gram, scores[here].copy(), sparsity)
        errors[here] -= fitted
    return Codes(values, indices, np.maximum(errors, 0.0))


def _block(gram: Any, scores: Any, sparsity: int) -> tuple[Any, Any, Any]:
    count, k = scores.shape
    rows = np.arange(count)
    seen = np.empty((count, sparsity, k), scores.dtype)  # all atoms in the new directions
    factor = np.zeros((count, sparsity, sparsity), scores.dtype)
    along = np.zeros((count, sparsity), scores.dtype)
    chosen = np.zeros((count, sparsity), np.int64)
    used = np.zeros((count, k), bool)
    for j in range(sparsity):
        size = np.abs(scores)
        size[used] = -1.0
        pick = size.argmax(axis=1)
        known = seen[rows, :j, pick]
        left = 1.0 - np.square(known).sum(axis=1)
        fresh = left > _SPENT
        length = np.sqrt(np.where(fresh, left, 1.0))
        scale = fresh / length
        new = gram[pick] - (known[:, None, :] @ seen[:, :j])[:, 0]
        new *= scale[:, None]
        seen[:, j] = new
        factor[:, j, :j], factor[:, j, j] = known, length
        along[:, j] = scores[rows, pick] * scale
        scores -= along[:, j, None] * new
        used[rows, pick] = True
        chosen[:, j] = pick
    values = subspan.solve_triangular(factor, along, transposed=True)
    return values, chosen, np.square(along).sum(axis=1)


def damped_root(grams: Any) -> Any:
    """Return Cholesky factors of positive semidefinite matrices, with a ridge of rounding's size.

    Where that is not enough, of the identity times the largest entry.
    """
    n, eps = grams.shape[-1], np.finfo(grams.dtype).eps
    top = np.abs(grams).max(axis=(-2, -1), keepdims=True)
    ridge = np.where(top > 0, 4 * n * eps * top, 1.0).astype(grams.dtype)
    eye = np.eye(n, dtype=grams.dtype)
    found = subspan.cholesky(grams + ridge * eye, errors="info")
    bad = np.flatnonzero(found.info)
    if not len(bad):
        return found.factor
    root = np.array(found.factor)
    root[bad] = np.sqrt(n * top[bad]) * eye
    return root
