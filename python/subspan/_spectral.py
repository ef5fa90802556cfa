"""From a covariance to principal axes: order, signs, and what counts as rounding."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from subspan._ops.moments import Moments, principal_axes

Floats = NDArray[np.float64]

EPS = float(np.finfo(np.float64).eps)
# What float32 products in blocks with float64 sums leave of an eigenvalue, relative to the
# largest: 4 units of rounding of float32.
_COARSE = 4.0 * float(np.finfo(np.float32).eps)


class Axes(NamedTuple):
    """Principal axes of a covariance, by descending variance."""

    components: Floats  # (k, d), orthonormal rows
    variances: Floats  # (k,), >= 0
    total: float  # variance in all directions
    floor: float  # variances up to here are rounding


def eigen_axes(moments: Moments, *, coarse: bool, k: int | None = None) -> Axes:
    """Return the k leading eigenvectors and eigenvalues of a state's covariance, all by default.

    ``coarse`` says that the products behind the state may be of float32. Eigenvalues within
    rounding of 0 (d eps of the largest) become 0, on both sides; far below, the state is no
    covariance.
    """
    d = moments.n_features
    # Rounding seen in practice stays below d eps; what is refused is no rounding by any account.
    limit = d * (float(np.finfo(np.float32).eps) if coarse else 100.0 * EPS)
    components, variances = principal_axes(moments, k or d, negative_tolerance=limit)
    top = float(variances[0])
    null = variances <= d * EPS * top
    if null.any():
        if len(variances) < d:  # the axes of the null space are chosen among all of it
            every = eigen_axes(moments, coarse=coarse)
            return every._replace(components=every.components[:k], variances=every.variances[:k])
        variances = np.where(null, 0.0, variances)
        components = np.concatenate([components[~null], _canonical_basis(components[null])])
        components = largest_positive(components)
    total = float(np.trace(moments.m2)) / moments.denominator()
    floor = max(d * EPS, _COARSE if coarse else 0.0) * top
    return Axes(components, variances, total, floor)


def _canonical_basis(basis: Floats) -> Floats:
    """Return an orthonormal basis of the span of the rows that depends on the span alone.

    The eigenvectors of diag(d, .., 1) compressed to the span: without it, the axes of a space
    without variance would be whatever rounding makes of them.
    """
    if len(basis) == 0:
        return basis
    d = basis.shape[1]
    compressed = (basis * np.linspace(1.0, 1.0 / d, d)) @ basis.T
    rotation: Floats = np.linalg.eigh(compressed)[1][:, ::-1]
    return rotation.T @ basis


def largest_positive(components: Floats) -> Floats:
    """Flip rows so that the entry of largest magnitude is positive, the first one on ties."""
    place = np.argmax(np.abs(components), axis=1)
    signs = np.where(np.take_along_axis(components, place[:, None], axis=1) < 0, -1.0, 1.0)
    return components * signs


def inverse_or_zero(values: Floats, floor: float) -> Floats:
    """Return 1 / values, and 0 where a value does not exceed ``floor``."""
    return np.divide(1.0, values, out=np.zeros_like(values), where=values > floor)
