"""Means of subspaces: of Karcher, and of flags, with a median that outliers do not move."""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from subspan import _checks
from subspan.errors import InvalidArgumentError
from subspan.subspaces import _iterate, _pairs, _work
from subspan.subspaces._iterate import Record
from subspan.subspaces._work import Floats
from subspan.subspaces.geometry import moved, tangents
from subspan.subspaces.spaces import Spaces, orthonormal, read, uniform

__all__ = [
    "FlagMean",
    "FlagMedian",
    "KarcherMean",
    "flag_mean",
    "flag_median",
    "karcher_mean",
]


class KarcherMean(NamedTuple):
    """Result of :func:`karcher_mean`; fields but ``basis`` have the leading shape of the groups.

    Attributes
    ----------
    basis : array, shape (..., n, p)
        Orthonormal basis of the mean.
    dispersion : array
        Weighted mean of the squared geodesic distances to it.
    unique : array of bool
        Whether all subspaces lie within pi/4 of it, so that there is no other mean.
    record : Record
        How the iteration went; its residual is the norm of the mean tangent.
    """

    basis: Any
    dispersion: Any
    unique: Any
    record: Record


class FlagMean(NamedTuple):
    """Result of :func:`flag_mean`.

    Attributes
    ----------
    basis : array, shape (..., n, r)
        The leading j columns span the best subspace of dimension j, for every j: a flag.
    shares : array, shape (..., r)
        Descending, in [0, 1]: weighted mean of ``cos^2`` between a column and the subspaces.
    """

    basis: Any
    shares: Any


class FlagMedian(NamedTuple):
    """Result of :func:`flag_median`.

    Attributes
    ----------
    basis : array, shape (..., n, r)
        Orthonormal basis of the median.
    weights : array, shape (..., N)
        Final weights, which sum to 1; small for outliers.
    record : Record
        How the iteration went; its residual is the relative change of the sum of distances.
    """

    basis: Any
    weights: Any
    record: Record


def karcher_mean(
    subspaces: Any,
    *,
    weights: Any = None,
    tol: float | None = None,
    max_iter: int = 100,
    errors: str = "raise",
) -> KarcherMean:
    r"""Mean of subspaces of one dimension, in geodesic distance.

    .. math:: \arg\min_M \sum_i w_i \, d(M, A_i)^2, \qquad \sum_i w_i \log_M(A_i) = 0

    by steps ``M <- exp_M(sum w_i log_M(A_i))`` from the flag mean.

    Parameters
    ----------
    subspaces : array (..., N, n, p), list of arrays (n, p), or Subspaces
        N subspaces to average; further leading axes are groups, each with a mean of its own.
    weights : array_like (N,) or (..., N), optional
        At least 0, scaled to a sum of 1. Equal by default.
    tol : float, optional
        Norm of the mean tangent at which to stop; 1e-8, for float32 1e-4.
    max_iter : int
        Most steps.
    errors : {"raise", "info"}
        Where ``tol`` is missed: `ConvergenceError`, or ``record.converged`` says so.

    Returns
    -------
    KarcherMean (basis, dispersion, unique, record)
        In the library of the subspaces; float64 for float64, else float32.

    Raises
    ------
    InvalidArgumentError
        Several dimensions, no subspaces, bad weights; as `principal_angles`.
    DtypeError, UnsupportedError
        As `principal_angles`.
    ConvergenceError
        A group missed ``tol`` within ``max_iter`` steps.

    Notes
    -----
    O(N n p^2) for each step and group, in float64; a group that has converged is left alone, so
    its result does not depend on the others. Where subspaces are farther apart than pi/4 from
    their mean there may be several; the one near the flag mean is found.

    References
    ----------
    B. Afsari, "Riemannian L^p center of mass: existence, uniqueness, and convexity", Proc. AMS
    139, 2011 (uniqueness).

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.subspaces import karcher_mean
    >>> lines = np.array([[[1.0], [0.0]], [[np.cos(0.4)], [np.sin(0.4)]]])
    >>> mean = karcher_mean(lines)
    >>> abs(mean.basis[:, 0]).round(6).tolist() == [round(np.cos(0.2), 6), round(np.sin(0.2), 6)]
    True
    >>> bool(mean.record.converged), float(np.sqrt(mean.dispersion).round(6))
    (True, 0.2)
    """
    function = "karcher_mean"
    given, spaces, w = _items(function, subspaces, weights)
    (spaces,) = uniform(function, ("subspaces", spaces))
    limit = _iterate.tolerance(function, tol, given.dtype, {"float64": 1e-8, "float32": 1e-4})
    steps = _checks.integer(function, "max_iter", max_iter, low=0)
    lead, (_, n, p) = spaces.lead[:-1], spaces.q.shape[-3:]
    items = spaces.q.reshape(prod(lead), *spaces.q.shape[-3:])
    w = w.reshape(-1, w.shape[-1])
    mean, _ = _flag(items, w, p)
    theta = np.zeros((len(w), w.shape[-1], p))

    def step(at: NDArray[np.int64], number: int) -> Floats:
        """Residuals of the groups ``at``; moves them if another look follows."""
        here = _work.take(mean, at)
        found = _pairs.principal(here[:, None], _work.take(items, at))
        theta[at] = found.theta
        pull = (tangents(found) * _work.like(here, w[at][:, :, None, None])).sum(axis=1)
        residual = np.sqrt(_work.host((pull * pull).sum(axis=(-2, -1))))
        go = np.flatnonzero(residual > limit)
        if number < steps and go.size:
            ends = moved(_work.take(here, go), _work.take(pull, go), np.array(1.0))
            _work.put(mean, at[go], ends)
        return residual

    record = _iterate.run(
        function, len(w), step, steps=steps, limit=limit, lead=lead, errors=errors
    )
    far = np.sum(np.square(theta), axis=-1)
    dispersion, unique = np.sum(w * far, axis=-1), np.max(far, axis=-1) < (np.pi / 4) ** 2
    give, source = _work.give, given.source
    return KarcherMean(
        give(source, mean.reshape(*lead, n, p), given.dtype),
        give(source, dispersion.reshape(lead), given.dtype),
        give(source, unique.reshape(lead)),
        record,
    )


def flag_mean(subspaces: Any, r: int | None = None, *, weights: Any = None) -> FlagMean:
    r"""Mean of subspaces of any dimensions, in chordal distance, by one SVD.

    .. math:: \arg\max_M \sum_i w_i \|A_i^T M\|_F^2

    over orthonormal M: the r leading left singular vectors of :math:`[\sqrt{w_1} A_1, \dots,
    \sqrt{w_N} A_N]`.

    Parameters
    ----------
    subspaces : array (..., N, n, p), list of arrays (n, p_i), or Subspaces
        N subspaces to average; further leading axes are groups.
    r : int, optional
        Dimension of the mean, up to ``min(n, N p)``; the largest of the dimensions by default.
    weights : array_like (N,) or (..., N), optional
        At least 0, scaled to a sum of 1. Equal by default.

    Returns
    -------
    FlagMean (basis, shares)
        In the library of the subspaces; float64 for float64, else float32.

    Raises
    ------
    InvalidArgumentError
        ``r`` out of range, no subspaces, bad weights; as `principal_angles`.
    DtypeError, UnsupportedError
        As `principal_angles`.

    Notes
    -----
    The SVD of n x (N p), in float64.

    References
    ----------
    B. Draper, M. Kirby, J. Marks, T. Marrinan, C. Peterson, "A flag representation for finite
    collections of subspaces of mixed dimensions", Linear Algebra and its Applications 451, 2014.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.subspaces import flag_mean
    >>> line, plane = np.eye(3)[:, :1], np.eye(3)[:, :2]
    >>> flag_mean([line, plane], r=2).shares.round(6).tolist()
    [1.0, 0.5]
    """
    function = "flag_mean"
    given, spaces, w = _items(function, subspaces, weights)
    rank = _rank(function, spaces, r)
    basis, shares = _flag(spaces.q, w, rank)
    source, dtype = given.source, given.dtype
    return FlagMean(_work.give(source, basis, dtype), _work.give(source, shares, dtype))


def flag_median(
    subspaces: Any,
    r: int | None = None,
    *,
    weights: Any = None,
    eps: float = 1e-6,
    tol: float | None = None,
    max_iter: int = 500,
    errors: str = "raise",
) -> FlagMedian:
    r"""Median of subspaces of any dimensions, in chordal distance.

    .. math:: \arg\min_M \sum_i w_i \left(\min(r, p_i) - \|A_i^T M\|_F^2\right)^{1/2}

    by flag means with weights ``w_i / max(d_i, eps)``, where the d_i are the distances of the step
    before. The sum does not grow.

    Parameters
    ----------
    subspaces : array (..., N, n, p), list of arrays (n, p_i), or Subspaces
        N subspaces; further leading axes are groups.
    r : int, optional
        Dimension of the median; the largest of the dimensions by default.
    weights : array_like (N,) or (..., N), optional
        At least 0, scaled to a sum of 1. Equal by default.
    eps : float, > 0
        Distance below which a subspace counts no more than at this distance.
    tol : float, optional
        Relative change of the sum of distances at which to stop; 1e-6.
    max_iter : int
        Most steps.
    errors : {"raise", "info"}
        Where ``tol`` is missed: `ConvergenceError`, or ``record.converged`` says so.

    Returns
    -------
    FlagMedian (basis, weights, record)
        In the library of the subspaces; float64 for float64, else float32.

    Raises
    ------
    InvalidArgumentError
        ``r`` or ``eps`` out of range, no subspaces, bad weights; as `principal_angles`.
    DtypeError, UnsupportedError
        As `principal_angles`.
    ConvergenceError
        A group missed ``tol`` within ``max_iter`` steps.

    Notes
    -----
    An SVD of n x (N p) for each step, in float64. A few steps are enough, but where the median is
    one of the given subspaces: hundreds are usual then.

    References
    ----------
    N. Mankovich, E. King, C. Peterson, M. Kirby, "The flag median and FlagIRLS", CVPR 2022,
    arXiv:2203.04437.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.subspaces import flag_median
    >>> same, outlier = np.eye(3)[:, :1], np.eye(3)[:, 1:2]
    >>> abs(flag_median([same, same, outlier]).basis).round(4).tolist()
    [[1.0], [0.0], [0.0]]
    """
    function = "flag_median"
    given, spaces, w = _items(function, subspaces, weights)
    rank = _rank(function, spaces, r)
    floor = _checks.real(function, "eps", eps, low=np.finfo(np.float64).tiny, high=1.0)
    limit = _iterate.tolerance(function, tol, given.dtype, {"float64": 1e-6, "float32": 1e-6})
    steps = _checks.integer(function, "max_iter", max_iter, low=0)
    lead, count = spaces.lead[:-1], spaces.lead[-1]
    items = spaces.q.reshape(prod(lead), *spaces.q.shape[-3:])
    fixed = w.reshape(-1, count)
    most = np.minimum(spaces.dims, rank).reshape(-1, count)
    weighted = fixed.copy()
    median, _ = _flag(items, weighted, rank)
    before = np.full(len(fixed), np.nan)

    def step(at: NDArray[np.int64], number: int) -> Floats:
        here, mine = _work.take(median, at), _work.take(items, at)
        inner = _pairs.cross(here[:, None], mine)
        square = most[at] - _work.host((inner * inner).sum(axis=(-2, -1)))
        d = np.sqrt(np.maximum(square, floor**2))
        total = np.sum(fixed[at] * d, axis=-1)
        change = np.abs(before[at] - total) / total
        before[at] = total
        weighted[at] = _scaled(fixed[at] / d)
        go = np.flatnonzero(~(change <= limit))
        if number < steps and go.size:
            basis, _ = _flag(_work.take(mine, go), weighted[at[go]], rank)
            _work.put(median, at[go], basis)
        result: Floats = change
        return result

    record = _iterate.run(
        function, len(fixed), step, steps=steps, limit=limit, lead=lead, errors=errors
    )
    give, source = _work.give, given.source
    return FlagMedian(
        give(source, median.reshape(*lead, *median.shape[-2:]), given.dtype),
        give(source, weighted.reshape(*lead, count), given.dtype),
        record,
    )


def _items(function: str, subspaces: Any, weights: Any) -> tuple[Any, Spaces, Floats]:
    given = read(function, "subspaces", subspaces, wide=True)
    _checks.ndim(function, "subspaces", given.x, 3, or_more=True)
    if given.x.shape[-3] == 0:
        raise InvalidArgumentError(
            f"[{function}] subspaces must be at least one, got shape {tuple(given.x.shape)}"
        )
    spaces = orthonormal(function, "subspaces", given)
    return given, spaces, check_weights(function, weights, spaces.lead)


def check_weights(function: str, weights: Any, lead: tuple[int, ...]) -> Floats:
    """Weights (..., N) that sum to 1."""
    if weights is None:
        return np.full(lead, 1.0 / lead[-1])
    w = np.asarray(_work.host(weights) if hasattr(weights, "shape") else weights, np.float64)
    if w.shape not in {lead, lead[-1:]}:
        raise InvalidArgumentError(
            f"[{function}] weights must have shape {lead[-1:]} or {lead}, got {w.shape}"
        )
    if not (np.isfinite(w).all() and np.all(w >= 0) and np.all(w.sum(axis=-1) > 0)):
        raise InvalidArgumentError(
            f"[{function}] weights must be finite, >= 0 and not all 0, got {w.min()} to {w.max()}"
        )
    return np.broadcast_to(_scaled(w), lead).copy()


def _scaled(w: Floats) -> Floats:
    result: Floats = w / np.sum(w, axis=-1, keepdims=True)
    return result


def _rank(function: str, spaces: Spaces, r: int | None) -> int:
    most = min(int(spaces.q.shape[-2]), spaces.lead[-1] * spaces.p)
    if r is None:
        return int(spaces.dims.max(initial=0))
    return _checks.integer(function, "r", r, low=0, high=most)


def _flag(items: Any, weights: Floats, rank: int) -> tuple[Any, Any]:
    """Leading left singular vectors of weighted bases side by side, and squared values."""
    side = _work.permute(
        items * _work.like(items, np.sqrt(weights)[..., None, None]),
        [*range(items.ndim - 3), items.ndim - 2, items.ndim - 3, items.ndim - 1],
    )
    u, s, _ = _work.svd(side.reshape(*side.shape[:-2], -1))
    return u[..., :rank], s[..., :rank] ** 2
