"""Pairs of well conditioned bases, by their Gram matrices: one pass, nothing of their size.

With ``A^T A = V L V^T`` and W = V L^-1/2, the columns of ``A W`` are orthonormal, and the cosines
are the singular values of ``W_A^T (A^T B) W_B``. Where one is above sqrt(1/2), a second pass forms
the residual, whose singular values are the sines. This loses a factor of the condition number of
the Gram matrices, so it stands only where that is small; other pairs take the way over QR.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import subspan
from subspan import _arrays
from subspan.subspaces import _work
from subspan.subspaces._work import Floats
from subspan.subspaces.spaces import Given

__all__ = ["Screened", "screen"]

# Largest condition number of a Gram matrix: of a basis, its root. Errors were up to 22 units of
# rounding there, 4 to 18 over orthonormal bases; ten times that at a condition number of 1000.
_CONDITION = 30.0
# Bases of a block: 2 MiB of float64, so that three products read them from cache.
_BLOCK = 1 << 18
# Products of fewer multiplications are done by BLAS on one thread: ours may share them out.
_ONE_THREAD = 1 << 18


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
    gram_a, gram_b, c = _products(first.flat(), second.flat())
    wa, good_a = _whitener(gram_a)
    wb, good_b = _whitener(gram_b)
    places = np.flatnonzero(good_a & good_b)
    if places.size == 0:
        return None
    if places.size < len(good_a):
        wa, c, wb = (_work.take(x, places) for x in (wa, c, wb))
    c = _work.swap(wa) @ c @ wb
    cosines = np.minimum(_work.host(subspan.svdvals(c, nonfinite="ignore")), 1.0)
    angles = np.arccos(cosines)
    near = np.square(cosines) > 0.5
    rows = np.flatnonzero(near.any(axis=-1))
    a, b = first.flat(), second.flat()
    if p < q:
        a, b, wa, wb, c = b, a, wb, wa, _work.swap(c)
    step = max(1, _BLOCK // (n * (p + q)))
    for part in np.split(rows, range(step, rows.size, step)) if rows.size else ():
        qa, qb = (_work.take(x, places[part]) @ _work.take(w, part) for x, w in ((a, wa), (b, wb)))
        rest = qb - qa @ _work.take(c, part)
        rest = rest - qa @ (_work.swap(qa) @ rest)  # what rounding has left along A
        sines = _work.host(subspan.svdvals(rest, nonfinite="ignore"))[:, ::-1]
        small = np.arcsin(np.minimum(sines, 1.0))
        angles[part] = np.where(near[part], small, angles[part])
    theta, decided = np.full((len(good_a), min(p, q)), np.nan), good_a & good_b
    theta[places] = np.maximum.accumulate(angles, axis=-1)
    return Screened(theta, decided)


def _whitener(gram: Any) -> tuple[Any, NDArray[np.bool_]]:
    """``V L^-1/2``, and where the matrix is finite and well conditioned; zeros elsewhere."""
    values, vectors = subspan.eigh(gram, nonfinite="propagate", errors="info")[:2]
    spectrum = _work.host(values)
    with np.errstate(invalid="ignore"):
        good = spectrum[:, -1] < _CONDITION * spectrum[:, 0]
    # Squares of tiny entries lose their digits to underflow.
    limits = np.finfo(_arrays.dtype_name(gram))
    good &= np.isfinite(spectrum).all(axis=-1) & (spectrum[:, 0] > limits.tiny / limits.eps**2)
    roots = np.sqrt(np.where(good[:, None], spectrum, 1.0))
    return vectors * _work.like(vectors, good[:, None, None] / roots[:, None, :]), good


def _products(a: Any, b: Any) -> tuple[Any, Any, Any]:
    """``A^T A``, ``B^T B`` and ``A^T B`` of every pair."""
    (count, n, p), q = a.shape, int(b.shape[-1])
    if not isinstance(a, np.ndarray):
        return _work.swap(a) @ a, _work.swap(b) @ b, _work.swap(a) @ b
    out = [np.empty((count, *shape), a.dtype) for shape in ((p, p), (q, q), (p, q))]
    step = max(1, _BLOCK // (n * (p + q)))

    def work(start: int) -> None:
        part = slice(start, start + step)
        x, y = a[part], b[part]
        for z, gram in ((x, out[0][part]), (y, out[1][part])):
            # By halves, as numpy hands the whole to a symmetric product, several times slower here.
            h = z.shape[-1] // 2
            np.matmul(_work.swap(z[..., :h]), z, out=gram[:, :h])
            np.matmul(_work.swap(z[..., h:]), z, out=gram[:, h:])
        np.matmul(_work.swap(x), y, out=out[2][part])

    starts = range(0, count, step)
    threads = min(subspan.get_num_threads(), len(starts))
    # NaN and overflow are seen, and named, later.
    with np.errstate(all="ignore"):
        if threads > 1 and n * p * q <= _ONE_THREAD:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(work, starts))
        else:
            for start in starts:
                work(start)
    return out[0], out[1], out[2]
