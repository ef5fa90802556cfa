"""Pairs of well conditioned bases, by their Gram matrices: one pass, nothing of their size.

With ``A^T A = L_A L_A^T`` the columns of ``A L_A^-T`` are orthonormal, and the cosines are the
singular values of ``C = L_A^-1 (A^T B) L_B^-T``. Where one is above sqrt(1/2), a second pass forms
the residual ``B L_B^-T - A L_A^-T C``, whose singular values are the sines. This loses a factor of
the condition number of the Gram matrices, so it stands only where that is small; other pairs take
the way over QR. What is as small as C is worked out on the host.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import subspan
from subspan import _arrays
from subspan.subspaces import _work
from subspan.subspaces._work import Floats
from subspan.subspaces.spaces import Given

__all__ = ["Screened", "screen"]

# Largest reciprocal of the smallest eigenvalue of a Gram matrix scaled to a diagonal of ones, on
# which the error of its Cholesky factor depends. Errors were up to 14 units of rounding there, 3 to
# 13 over orthonormal bases.
_CONDITION = 30.0
# Elements of the bases of a block of residuals: 2 MiB of float64, which stay in cache.
_BLOCK = 1 << 18


class Screened(NamedTuple):
    """Angles of the pairs that were decided."""

    theta: Floats
    """(pairs, q)"""
    decided: NDArray[np.bool_]
    """(pairs)"""


def screen(first: Given, second: Given) -> Screened | None:
    """Decide pairs, element by element of equal leading axes; None where that cannot serve."""
    if first.orthonormal or second.orthonormal or first.dims.shape != second.dims.shape:
        return None
    n, p, q = int(first.x.shape[-2]), int(first.x.shape[-1]), int(second.x.shape[-1])
    padded = np.any(first.dims < p) or np.any(second.dims < q)
    if padded or n < 2 * max(p, q) or min(p, q, first.dims.size) == 0:
        return None
    a, b = first.flat(), second.flat()
    if p < q:
        a, b = b, a
    aa, ab, bb = (_arrays.to_numpy(x) for x in subspan.grams(a, b))
    rtol = n * max(first.unit, second.unit)
    la, good_a = _factor(aa, rtol)
    lb, good_b = _factor(bb, rtol)
    decided = good_a & good_b
    places = np.flatnonzero(decided)
    if places.size == 0:
        return None
    if places.size < decided.size:
        la, ab, lb = la[places], ab[places], lb[places]
    c = _solve(lb, _solve(la, ab).mT).mT
    cosines = np.minimum(_work.host(subspan.svdvals(c, nonfinite="ignore")), 1.0)
    angles = np.arccos(cosines)
    near = np.square(cosines) > 0.5
    rows = np.flatnonzero(near.any(axis=-1))
    if rows.size:
        small = _by_sines(a, b, places[rows], _weights(la[rows], lb[rows], c[rows]))
        joint = np.where(near[rows], small, angles[rows])
        angles[rows] = np.maximum.accumulate(joint, axis=-1)  # across the seam at pi / 4
    theta = np.full((decided.size, min(p, q)), np.nan)
    theta[places] = angles
    return Screened(theta, decided)


def _factor(gram: Any, rtol: float) -> tuple[Any, NDArray[np.bool_]]:
    """Cholesky factors, and where a matrix is finite, well conditioned and surely of full rank."""
    factor, info = subspan.cholesky(gram, nonfinite="propagate", errors="info")
    p = int(gram.shape[-1])
    # (p, count): numpy reduces short last axes slowly.
    sizes, roots = (np.diagonal(x, 0, -2, -1).T.astype(np.float64, "C") for x in (gram, factor))
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        # Of the matrix scaled to a diagonal of ones, by its determinant (Yu and Gu, see span).
        least = np.prod(np.square(roots) / sizes, axis=0) * ((p - 1) / p) ** (p - 1)
        unsure = np.flatnonzero((info == 0) & ~(least * _CONDITION > 1.0))
        if unsure.size:
            scale = 1 / np.sqrt(sizes.T[unsure])
            unit = gram[unsure] * scale[:, :, None] * scale[:, None, :]
            least[unsure] = subspan.eigvalsh(unit, nonfinite="propagate")[:, 0]
        good = (info == 0) & (least * _CONDITION > 1.0)
        smallest = sizes.min(axis=0)
        good &= least * smallest > rtol**2 * sizes.sum(axis=0)
    # Squares of tiny entries lose their digits to underflow.
    limits = np.finfo(gram.dtype)
    return factor, good & (smallest > limits.tiny / limits.eps**2)


def _solve(factor: Any, b: Any, *, transposed: bool = False) -> Any:
    return subspan.solve_triangular(factor, b, transposed=transposed, nonfinite="ignore")


def _weights(la: Any, lb: Any, c: Any) -> tuple[Any, Any]:
    """``L_A^-T C`` and ``L_B^-T``, whose products with A and B have the residual for difference."""
    eye = np.broadcast_to(np.eye(lb.shape[-1], dtype=lb.dtype), lb.shape)
    return _solve(la, c, transposed=True), _solve(lb, eye, transposed=True)


def _by_sines(a: Any, b: Any, places: NDArray[np.int64], weights: tuple[Any, Any]) -> Floats:
    """Angles of the pairs at `places`, right where they are below pi / 4."""
    (n, p), q = a.shape[-2:], int(b.shape[-1])
    sines = np.empty((places.size, q))
    step = max(1, _BLOCK // (int(n) * (int(p) + q)))
    for start in range(0, places.size, step):
        part = slice(start, start + step)
        rest, image = (
            subspan.gram(_work.swap(_rows(x, places[part])), _work.like(x, w[part]))
            for x, w in zip((b, a), reversed(weights), strict=True)
        )
        rest -= image
        sines[part] = _work.host(subspan.svdvals(rest, nonfinite="ignore"))
    return np.arcsin(np.minimum(sines[:, ::-1], 1.0))


def _rows(x: Any, places: NDArray[np.int64]) -> Any:
    """Matrices at ascending places: a view where they lie beside each other."""
    first, last = int(places[0]), int(places[-1])
    return x[first : last + 1] if last - first + 1 == places.size else _work.take(x, places)
