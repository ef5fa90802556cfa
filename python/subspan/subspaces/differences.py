"""Difference subspaces: what changes between subspaces, and how the change itself changes."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

import subspan
from subspan import _checks
from subspan.subspaces import _groups, _pairs, _work
from subspan.subspaces._work import Floats
from subspan.subspaces.spaces import Given, Spaces, Subspaces, orthonormal, read, read_pair

__all__ = [
    "DifferenceSubspace",
    "SeriesMagnitudes",
    "difference_magnitudes",
    "difference_subspace",
    "second_difference_subspace",
]


class DifferenceSubspace(NamedTuple):
    """Result of :func:`difference_subspace` and :func:`second_difference_subspace`.

    Attributes
    ----------
    difference : Subspaces
        D, its columns in descending order of the angles they belong to.
    mean : Subspaces
        M, the principal component subspace, orthogonal to D: halfway between the two. Its columns
        are in ascending order of angles.
    magnitude : array, shape (...)
        Sum of squared lengths of the difference vectors.
    """

    difference: Subspaces
    mean: Subspaces
    magnitude: Any


class SeriesMagnitudes(NamedTuple):
    """Result of :func:`difference_magnitudes`.

    Attributes
    ----------
    first : array, shape (..., T - s)
        Of each subspace and the one s places on: how fast the series moves.
    second : array, shape (..., T - 2 s)
        Of each subspace and the mean of those s places before and after: how far it bends.
    """

    first: Any
    second: Any


def difference_subspace(
    a: Any,
    b: Any,
    *,
    residual: str = "drop",
    squared: bool = True,
    tol: float | None = None,
    pairs: str = "broadcast",
) -> DifferenceSubspace:
    r"""Difference subspace of two subspaces, and the mean subspace between them.

    .. math:: D = \mathrm{span}\{x_i - y_i : \theta_i > tol\}, \quad M = \mathrm{span}\{x_i + y_i\},
              \quad \mathrm{Mag} = \sum_i \|x_i - y_i\|^2 = 2 \sum_i (1 - \cos\theta_i)

    of principal vectors x and y: eigenvectors of the sum of the projectors, for eigenvalues
    :math:`1 \mp \cos\theta_i`.

    Parameters
    ----------
    a, b : array (..., n, p), list of arrays (n, p_i), or Subspaces
        As for `principal_angles`.
    residual : {"drop", "difference"}
        Where dimensions differ: directions of the larger subspace that are orthogonal to the
        smaller have no partner. They are left out, or lead D. The magnitude is of pairs alone.
    squared : bool
        Whether magnitudes are sums of squares, or their roots.
    tol : float, optional
        Angle up to which a pair counts as shared, and has no part in D; ``10 sqrt(eps)`` of a's
        dtype by default.
    pairs : {"broadcast", "all"}
        As for `principal_angles`.

    Returns
    -------
    DifferenceSubspace (difference, mean, magnitude)
        In a's library; float64 for float64, else float32.

    Raises
    ------
    InvalidArgumentError
        ``residual`` or ``tol`` out of range; as `principal_angles`.
    DtypeError, UnsupportedError
        As `principal_angles`.

    Notes
    -----
    O(n p q) for each pair, in float64; no eigenvectors of n x n. A direction of D is right to
    rounding over its angle.

    References
    ----------
    K. Fukui, A. Maki, "Difference subspace and its generalization for subspace-based methods",
    IEEE TPAMI 37, 2015. K. Fukui et al., arXiv:2409.08563 (series).

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.subspaces import difference_subspace
    >>> a, b = np.eye(3)[:, [0, 1]], np.eye(3)[:, [0, 2]]
    >>> found = difference_subspace(a, b)
    >>> int(found.difference.dims), int(found.mean.dims), float(found.magnitude.round(12))
    (1, 2, 2.0)
    >>> abs(found.difference.basis[:, 0]).round(4).tolist()
    [0.0, 0.7071, 0.7071]
    """
    function = "difference_subspace"
    first, second = read_pair(function, a, b, wide=True)
    sa = orthonormal(function, "a", first, signed=False)
    sb = orthonormal(function, "b", second, signed=False)
    sa, sb = _pairs.spread(function, sa, sb, pairs)
    unit = max(first.unit, second.unit)
    small = _small_angle(function, tol, unit)
    keep = _checks.choice(function, "residual", residual, ("drop", "difference")) == "difference"
    return _deliver(first, second, _difference(function, sa, sb, small, keep), squared)


def second_difference_subspace(
    a: Any, b: Any, c: Any, *, squared: bool = True, tol: float | None = None
) -> DifferenceSubspace:
    """Second-order difference subspace of three subspaces: how ``b`` leaves the way from a to c.

    The difference subspace of ``b`` and the mean subspace of ``a`` and ``c``, as a second
    difference is that of a point and the mean of its neighbours. Its magnitude is 0 for three
    points equally spaced on a geodesic.

    Parameters
    ----------
    a, b, c : array (..., n, p), list of arrays (n, p_i), or Subspaces
        Leading axes broadcast.
    squared, tol
        As for `difference_subspace`.

    Returns
    -------
    DifferenceSubspace (difference, mean, magnitude)
        As `difference_subspace`.

    Raises
    ------
    InvalidArgumentError, DtypeError, UnsupportedError
        As `difference_subspace`.

    Notes
    -----
    Two difference subspaces. `difference_magnitudes` gives the magnitudes along a series.

    References
    ----------
    K. Fukui et al., arXiv:2409.08563.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.subspaces import geodesic, second_difference_subspace
    >>> start, end = np.eye(4)[:, :2], np.eye(4)[:, 1:3]
    >>> a, b, c = geodesic(start, end, [0.0, 0.3, 0.6])
    >>> float(second_difference_subspace(a, b, c).magnitude.round(12))
    0.0
    """
    function = "second_difference_subspace"
    first, third = read_pair(function, a, c, wide=True)
    _, second = read_pair(function, a, b, wide=True)
    sa, sb, sc = (
        orthonormal(function, name, given, signed=False)
        for name, given in (("a", first), ("b", second), ("c", third))
    )
    small = _small_angle(function, tol, max(given.unit for given in (first, second, third)))
    middle = _difference(function, sa, sc, small, keep=False).mean
    return _deliver(first, second, _difference(function, sb, middle, small, keep=False), squared)


def difference_magnitudes(
    series: Any, *, stride: int = 1, squared: bool = True
) -> SeriesMagnitudes:
    r"""Magnitudes of first and second differences along a series of subspaces.

    .. math:: \mathrm{first}_t = \mathrm{Mag}(S_t, S_{t+s}), \qquad
              \mathrm{second}_t = \mathrm{Mag}(S_{t+s}, M(S_t, S_{t+2s}))

    Parameters
    ----------
    series : array (..., T, n, p), list of arrays (n, p_i), or Subspaces
        T subspaces in order; further leading axes are series of their own.
    stride : int
        s, at least 1.
    squared : bool
        As for `difference_subspace`.

    Returns
    -------
    SeriesMagnitudes (first, second)
        In the library of the series; float64 for float64, else float32. Without elements where the
        series is too short.

    Raises
    ------
    InvalidArgumentError
        ``stride`` below 1; as `principal_angles`.
    DtypeError, UnsupportedError
        As `principal_angles`.

    Notes
    -----
    Each subspace is orthonormalised once; three products for each place.

    References
    ----------
    K. Fukui et al., arXiv:2409.08563.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.subspaces import difference_magnitudes, geodesic
    >>> series = geodesic(np.eye(4)[:, :1], np.eye(4)[:, 1:2], np.linspace(0, 1, 5))
    >>> first, second = difference_magnitudes(series)
    >>> first.round(6).tolist(), second.round(12).tolist()
    ([0.152241, 0.152241, 0.152241, 0.152241], [0.0, 0.0, 0.0])
    """
    function = "difference_magnitudes"
    given = read(function, "series", series, wide=True)
    _checks.ndim(function, "series", given.x, 3, or_more=True)
    step = _checks.integer(function, "stride", stride, low=1)
    spaces = orthonormal(function, "series", given, signed=False)

    def cut(start: int, stop: int) -> Spaces:
        stop = max(start, stop)
        return Spaces(spaces.q[..., start:stop, :, :], spaces.dims[..., start:stop])

    count = spaces.lead[-1]
    early, late = cut(0, count - 2 * step), cut(2 * step, count)
    middle = _difference(function, early, late, 0.0, keep=False).mean
    thetas = (
        _pairs.angles(cut(0, count - step), cut(step, count)),
        _pairs.angles(cut(step, count - step), middle),
    )
    return SeriesMagnitudes(
        *(_work.give(given.source, _magnitude(t, squared), given.dtype) for t in thetas)
    )


class _Found(NamedTuple):
    difference: Spaces
    mean: Spaces
    theta: Floats


def _difference(function: str, a: Spaces, b: Spaces, small: float, keep: bool) -> _Found:
    lead = _pairs.joint_lead(function, a, b)
    n, k = int(a.q.shape[-2]), min(a.p, b.p)
    theta = np.full((*lead, k), np.nan)
    d = _work.zeros(a.q, (*lead, n, max(a.p, b.p) if keep else k))
    m = _work.zeros(a.q, (*lead, n, k))
    for group in _groups.of_one_dimension(a, b, lead):
        found = _pairs.principal(group.a, group.b)
        group.put(theta, found.theta)
        group.put(m, (found.x + found.y) * _pairs.row(m, 0.5 / np.cos(found.theta / 2)))
        apart = _apart(found)
        if keep:
            apart = _work.concatenate([_unpaired(group.a, group.b, found), apart], -1)
        group.put(d, apart)
    shared = np.broadcast_to(np.minimum(a.dims, b.dims), lead)
    extra = np.abs(a.dims - b.dims) if keep else 0
    dims = np.count_nonzero(theta > small, axis=-1) + np.broadcast_to(extra, lead)
    d *= _work.like(d, (np.arange(d.shape[-1]) < dims[..., None])[..., None, :])
    return _Found(Spaces(d, dims), Spaces(m, shared.copy()), theta)


def _apart(found: _pairs.Principal) -> Any:
    """Directions of ``x - y``, those of the largest angles first."""
    x, rest = found.x, found.lift
    apart = x * _pairs.row(x, 2 * np.square(np.sin(found.theta / 2))) - rest
    # Small angles leave directions that are less exact: they give way to the others.
    return subspan.qr(_work.swap(_work.flip(_work.swap(apart))), nonfinite="ignore").q


def _unpaired(a: Any, b: Any, found: _pairs.Principal) -> Any:
    """Orthonormal directions of the larger subspace that are orthogonal to the smaller."""
    larger, partners = (a, found.x) if a.shape[-1] > b.shape[-1] else (b, found.y)
    p, k = int(larger.shape[-1]), int(partners.shape[-1])
    inner = _pairs.cross(larger, partners)
    unit = _work.stretch(_work.like(inner, np.eye(p)), (*inner.shape[:-2], p, p))
    return larger @ subspan.qr(_work.concatenate([inner, unit], -1)).q[..., k:]


def _magnitude(theta: Floats, squared: bool) -> Floats:
    lengths = 4 * np.square(np.sin(np.where(np.isnan(theta), 0.0, theta) / 2))
    total = np.asarray(np.sum(lengths, axis=-1))
    return total if squared else np.sqrt(total)


def _small_angle(function: str, tol: float | None, unit: float) -> float:
    if tol is None:
        return 10 * math.sqrt(unit)
    return _checks.real(function, "tol", tol, low=0.0, high=np.pi / 2)


def _deliver(given: Given, other: Given, found: _Found, squared: bool) -> DifferenceSubspace:
    source, dtype = given.source, max(given.dtype, other.dtype)
    difference, mean = (
        Subspaces(_work.give(source, x.q, dtype), _work.give(source, x.dims))
        for x in (found.difference, found.mean)
    )
    return DifferenceSubspace(
        difference, mean, _work.give(source, _magnitude(found.theta, squared), dtype)
    )
