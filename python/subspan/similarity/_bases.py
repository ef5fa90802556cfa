"""Orthonormal bases of the column spaces of layers: one for each layer, whatever it meets."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from subspan import Moments, eigh, svd
from subspan.similarity._layers import Floats

__all__ = ["Basis", "Cut", "basis", "leading_scores", "rank_cut", "share_cut"]

Cut = Callable[[NDArray[np.float64]], int]
"""How many directions to keep of these squared singular values, descending."""

# Squared singular values below this many eps of the largest are noise of the product X^T X.
_NOISE = 1e3
# Departure from orthonormality, in eps, above which a basis is orthonormalised once more.
_LOOSE = 100.0


class Basis(NamedTuple):
    """``q * s``: the leading principal scores of a layer."""

    q: Floats
    """(N, r) orthonormal columns."""
    s: NDArray[np.float64]
    """(r,) singular values, descending."""


def rank_cut(rtol: float) -> Cut:
    """Keep singular values above ``rtol`` of the largest."""
    return lambda squares: int(np.count_nonzero(squares > rtol**2 * squares[0]))


def share_cut(share: float, rtol: float, power: float = 1.0) -> Cut:
    """Keep the fewest that hold a share of ``sum squares**power``, if above ``rtol``."""

    def cut(squares: NDArray[np.float64]) -> int:
        mass = np.cumsum(squares**power)
        enough = int(np.searchsorted(mass, share * mass[-1] * (1.0 - 1e-12))) + 1
        return min(enough, rank_cut(rtol)(squares))

    return cut


def basis(x: Floats, cut: Cut) -> Basis:
    """Return an orthonormal basis of the leading left singular space of centred rows (N, d).

    The eigenvectors of X^T X give it at the price of one product, but the product squares the
    singular values. Where its rounding could touch what is kept, float32 rows are multiplied in
    float64, and where that is not enough the rows themselves are decomposed.
    """
    n, d = x.shape
    if not x.any():
        return Basis(x[:, :0], np.zeros(0))
    if n > d:
        for wide in (False, True) if x.dtype == np.float32 else (True,):
            found = _from_products(x, cut, wide=wide)
            if found is not None:
                return found
    whole = svd(x)
    values = whole.s.astype(np.float64)
    kept = cut(np.square(values))
    return Basis(np.ascontiguousarray(whole.u[:, :kept]), values[:kept])


def leading_scores(x: Floats, share: float) -> Floats:
    """Return the principal scores (N, r) that hold a share of the sum of squared variances."""
    found = basis(x, share_cut(share, 0.0, power=2.0))
    scores: Floats = found.q * found.s.astype(x.dtype)
    return scores


def _from_products(x: Floats, cut: Cut, *, wide: bool) -> Basis | None:
    """Return the basis by way of X^T X, None where its rounding would show."""
    product = Moments(precision="float64").update(x).m2 if wide else x.T @ x
    found = eigh(product)
    eps = float(np.finfo(product.dtype).eps)
    squares = np.maximum(found.values[::-1].astype(np.float64), 0.0)
    noise = _NOISE * eps * squares[0]
    kept = cut(np.where(squares < noise, 0.0, squares))
    if kept != cut(np.maximum(squares, noise)) or squares[kept - 1] < noise:
        return None
    s = np.sqrt(squares[:kept])
    q = x @ (found.vectors[:, ::-1][:, :kept] / s).astype(x.dtype)
    if squares[0] > _LOOSE * squares[kept - 1] or wide:
        q = _orthonormalised(q)
    return Basis(q, s)


def _orthonormalised(q: Floats) -> Floats:
    """Return nearly orthonormal columns orthonormalised: one Cholesky QR, which suffices then."""
    factor = np.linalg.cholesky(q.T @ q)
    out: Floats = q @ np.linalg.inv(factor).T
    return out
