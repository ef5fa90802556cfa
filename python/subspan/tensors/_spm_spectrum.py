"""The leading eigenvalues or singular values of a flattening, as many as count."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from subspan.tensors._spm_basis import Array

__all__ = ["Spectrum", "spectrum_of"]

SKETCHED = 400  # rows from which a basis of the range is tried before all eigenvalues


class Spectrum(NamedTuple):
    """Values by descending magnitude with their vectors, left (n, k), right (m, k) or None."""

    values: Array
    left: Array
    right: Array | None
    cutoff: float  # what counts towards the rank lies above it
    floor: float  # and what is not rounding above this


def spectrum_of(matrix: Array, rank: int | None, ranksel: float, *, even: bool) -> Spectrum:
    """Eigenvalues of a symmetric flattening, or singular values of that of an odd order."""
    if not even:
        left, values, right = np.linalg.svd(matrix, full_matrices=False)
        return _judged(values, left, right.T, ranksel, len(matrix))
    n = len(matrix)
    most = n // 2 if rank is None else min(rank + 8, n // 2)
    found = _of_range(matrix, most) if n >= SKETCHED else None
    values, vectors = found or np.linalg.eigh(matrix)
    place = np.argsort(-np.abs(values), kind="stable")
    return _judged(values[place], vectors[:, place], None, ranksel, n)


def _judged(values: Array, left: Array, right: Array | None, ranksel: float, n: int) -> Spectrum:
    sizes = np.abs(values)
    total = float(sizes.sum())
    cutoff = ranksel * float(np.square(values).sum()) / total if total else 0.0
    floor = float(sizes.max(initial=0)) * n * float(np.finfo(np.float64).eps)
    return Spectrum(values, left, right, max(cutoff, floor), floor)


def _of_range(matrix: Array, most: int) -> tuple[Array, Array] | None:
    """All eigenpairs but zeros, if the matrix has no more than about `most` that are not."""
    basis = _range(matrix, most)
    if basis is None:
        return None
    half = matrix @ basis
    core = basis.T @ half
    # What half leaves out: |matrix|^2 - |matrix basis|^2, up to rounding.
    size2 = float(np.linalg.norm(matrix)) ** 2
    if size2 - float(np.linalg.norm(half)) ** 2 > 1e-13 * size2:
        return None
    values, vectors = np.linalg.eigh((core + core.T) / 2)
    return values, basis @ vectors


def _range(matrix: Array, most: int) -> Array | None:
    """Orthonormal basis of the range, unless it has more than about `most` dimensions.

    Random combinations of columns, some at a time, until they bring fewer new directions than
    there are of them: then no more are left (Halko, Martinsson, Tropp, SIAM Review 53, 2011,
    section 4.4).
    """
    rng = np.random.default_rng(0)
    n = len(matrix)
    width = min(max(n // 12, 32), 256)
    size = float(np.linalg.norm(matrix))
    least = n * float(np.finfo(np.float64).eps) * size
    basis = np.empty((n, 0))
    while basis.shape[1] < most:
        some = matrix @ rng.standard_normal((n, width))
        some -= basis @ (basis.T @ some)
        q, r = np.linalg.qr(some)
        sizes = np.abs(np.diagonal(r))
        new = sizes > least
        q = q[:, new]
        if sizes[new].min(initial=np.inf) < 1e-2 * size:  # rounding has turned it to the basis
            q = np.linalg.qr(q - basis @ (basis.T @ q))[0]
        basis = np.hstack([basis, q])
        if not new.all():
            return basis
    return None
