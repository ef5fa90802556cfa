"""Orthonormal bases of the column spaces of layers: one for each layer, whatever it meets."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from subspan import Moments, eigh, svd
from subspan.similarity._layers import Floats

__all__ = ["Basis", "Cut", "bases", "leading_scores", "rank_cut", "share_cut"]

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


def bases(xs: Sequence[Floats], cuts: Sequence[Cut]) -> list[Basis]:
    """Return orthonormal bases of the leading left singular spaces of centred rows (N, d).

    The eigenvectors of X^T X give one at the price of one product, but the product squares the
    singular values. Where its rounding could touch what is kept, float32 rows are multiplied in
    float64, and where that is not enough the rows themselves are decomposed. Layers of one width
    share a call, and with it the threads.
    """
    found: dict[int, Basis] = {}
    tall: dict[int, list[int]] = {}
    for place, x in enumerate(xs):
        n, d = x.shape
        if not x.any():
            found[place] = Basis(x[:, :0], np.zeros(0))
        elif n > d:
            tall.setdefault(d, []).append(place)
    for places in tall.values():
        for wide in (False, True):
            left = [k for k in places if k not in found and (wide or xs[k].dtype == np.float32)]
            found |= _from_products(xs, cuts, left, wide=wide)
    return [
        found[place] if place in found else _from_rows(x, cut)
        for place, (x, cut) in enumerate(zip(xs, cuts, strict=True))
    ]


def leading_scores(x: Floats, share: float) -> Floats:
    """Return the principal scores (N, r) that hold a share of the sum of squared variances."""
    [found] = bases([x], [share_cut(share, 0.0, power=2.0)])
    scores: Floats = found.q * found.s.astype(x.dtype)
    return scores


def _from_products(
    xs: Sequence[Floats], cuts: Sequence[Cut], places: Sequence[int], *, wide: bool
) -> dict[int, Basis]:
    """Return the bases by way of X^T X, without those where its rounding would show."""
    if not places:
        return {}
    products = [
        Moments(precision="float64").update(xs[k]).m2 if wide else xs[k].T @ xs[k] for k in places
    ]
    pairs = eigh(np.stack(products))
    eps = float(np.finfo(pairs.values.dtype).eps)
    out = {}
    for k, ascending, v in zip(places, pairs.values, pairs.vectors, strict=True):
        squares = np.maximum(ascending[::-1].astype(np.float64), 0.0)
        noise = _NOISE * eps * squares[0]
        kept = cuts[k](np.where(squares < noise, 0.0, squares))
        if kept != cuts[k](np.maximum(squares, noise)) or squares[kept - 1] < noise:
            continue
        s = np.sqrt(squares[:kept])
        q = xs[k] @ (v[:, ::-1][:, :kept] / s).astype(xs[k].dtype)
        if squares[0] > _LOOSE * squares[kept - 1] or wide:
            q = _orthonormalised(q)
        out[k] = Basis(q, s)
    return out


def _from_rows(x: Floats, cut: Cut) -> Basis:
    whole = svd(x)
    values = whole.s.astype(np.float64)
    kept = cut(np.square(values))
    return Basis(np.ascontiguousarray(whole.u[:, :kept]), values[:kept])


def _orthonormalised(q: Floats) -> Floats:
    """Return nearly orthonormal columns orthonormalised: one Cholesky QR, which suffices then."""
    factor = np.linalg.cholesky(q.T @ q)
    out: Floats = q @ np.linalg.inv(factor).T
    return out
