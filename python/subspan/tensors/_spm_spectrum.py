"""The leading eigenvalues or singular values of a flattening, as many as count."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from subspan.tensors._spm_basis import Array

__all__ = ["Spectrum", "spectrum_of"]

SKETCHED = 1000  # rows from which a sketch is tried before all eigenvalues are worked out


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
    width = n // 4 if rank is None else rank + 8
    found = _sketched(matrix, width) if n >= SKETCHED and width <= n // 2 else None
    values, vectors = found or np.linalg.eigh(matrix)
    place = np.argsort(-np.abs(values), kind="stable")
    return _judged(values[place], vectors[:, place], None, ranksel, n)


def _judged(values: Array, left: Array, right: Array | None, ranksel: float, n: int) -> Spectrum:
    sizes = np.abs(values)
    total = float(sizes.sum())
    cutoff = ranksel * float(np.square(values).sum()) / total if total else 0.0
    floor = float(sizes.max(initial=0)) * n * float(np.finfo(np.float64).eps)
    return Spectrum(values, left, right, max(cutoff, floor), floor)


def _sketched(matrix: Array, width: int) -> tuple[Array, Array] | None:
    """All eigenpairs but zeros, if the matrix has no more than `width` that are not.

    A random sketch of the range is exact for such matrices (Halko, Martinsson, Tropp, SIAM Review
    53, 2011); that nothing is left beside it proves that this is one.
    """
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(matrix @ rng.standard_normal((len(matrix), width)))[0]
    basis = np.linalg.qr(matrix @ basis)[0]
    half = matrix @ basis
    core = basis.T @ half
    rest = np.linalg.norm(half - basis @ core)
    size = np.linalg.norm(matrix)
    # What half leaves out altogether: |matrix|^2 - |matrix basis|^2, up to rounding.
    beside = size**2 - np.linalg.norm(half) ** 2
    if rest > 1e-14 * size * np.sqrt(width) or beside > 1e-13 * size**2:
        return None
    values, vectors = np.linalg.eigh((core + core.T) / 2)
    return values, basis @ vectors
