"""Flag manifolds: nested subspaces of given dimensions, their chordal distance and averages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import subspan
from subspan import _checks
from subspan.errors import InvalidArgumentError
from subspan.subspaces import _iterate, _pairs, _work
from subspan.subspaces._iterate import Record
from subspan.subspaces._work import Floats
from subspan.subspaces.means import check_weights
from subspan.subspaces.spaces import Given, orthonormal, read, read_pair

__all__ = ["FlagAverage", "chordal_flag_mean", "chordal_flag_median", "flag_distance"]


class FlagAverage(NamedTuple):
    """Result of :func:`chordal_flag_mean` and :func:`chordal_flag_median`.

    Attributes
    ----------
    frame : array, shape (..., n, n_k)
        Orthonormal; its leading n_j columns span the j-th subspace.
    cost : array, shape (...)
        Weighted mean of the squared chordal distances to it; of the distances for the median.
    record : Record
        How the iteration from the best start went; its residual is the last relative gain.
    """

    frame: Any
    cost: Any
    record: Record


def flag_distance(a: Any, b: Any, dims: Sequence[int], *, pairs: str = "broadcast") -> Any:
    r"""Chordal distance of flags.

    .. math:: d^2 = \sum_j \left(m_j - \|A_j^T B_j\|_F^2\right)

    where A_j are the m_j columns that the j-th subspace adds to the one before.

    Parameters
    ----------
    a, b : array (..., n, n_k)
        Columns whose leading n_j span the j-th subspace; orthonormal or not, independent.
    dims : sequence of int
        Dimensions ``n_1 < ... < n_k`` of the nested subspaces.
    pairs : {"broadcast", "all"}
        As for `principal_angles`.

    Returns
    -------
    array (...)
        In a's library; float64 for float64, else float32.

    Raises
    ------
    InvalidArgumentError
        ``dims`` do not ascend or do not end at the number of columns; dependent columns; as
        `principal_angles`.
    DtypeError, UnsupportedError
        As `principal_angles`.

    Notes
    -----
    One product of frames for each pair and, for near ones, a residual, in float64; right for tiny
    distances too.

    References
    ----------
    N. Mankovich, T. Birdal, "Chordal averaging on flag manifolds and its applications", ICCV 2023.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.subspaces import flag_distance
    >>> a = np.eye(3)[:, :2]                       # a line in a plane
    >>> float(flag_distance(a, a[:, ::-1], [1, 2]))  # the other axis in the same plane
    1.4142135623730951
    """
    function = "flag_distance"
    first, second = read_pair(function, a, b, wide=True)
    kind = _flag_type(function, dims, int(first.x.shape[-1]))
    _flag_type(function, dims, int(second.x.shape[-1]))
    sa, sb = (_frames(function, name, x) for name, x in (("a", first), ("b", second)))
    sa, sb = _pairs.spread(function, sa, sb, pairs)
    products = _pairs.cross(sa.q, sb.q) * _work.like(sa.q, kind.same)
    square = _squares(products, kind)
    # |B - A A^T B|^2 block by block is the same, without the cancellation of near flags.
    flat = square.reshape(-1)
    near = np.flatnonzero(flat < 0.5)
    for part, _, qa, qb in _pairs.gather(near, sa, sb, square.shape):
        rest = qb - qa @ _work.take(products.reshape(-1, kind.size, kind.size), part)
        flat[part] = _work.host((rest * rest).sum(axis=(-2, -1)))
    dtype = max(first.dtype, second.dtype)
    return _work.give(first.source, np.sqrt(square), dtype)


def chordal_flag_mean(
    frames: Any,
    dims: Sequence[int],
    *,
    weights: Any = None,
    starts: int = 3,
    tol: float | None = None,
    max_iter: int = 500,
    errors: str = "raise",
) -> FlagAverage:
    r"""Flag with the least weighted mean of squared chordal distances to given flags.

    .. math:: \arg\max_Y \sum_j \mathrm{tr}(Y_j^T P_j Y_j), \qquad P_j = \sum_i w_i A_{ij} A_{ij}^T

    by steps ``Y <- polar([P_1 Y_1, ..., P_k Y_k])``. The objective is convex in Y, so none of
    them lowers it.

    Parameters
    ----------
    frames : array (..., N, n, n_k)
        N flags: columns whose leading n_j span the j-th subspace; orthonormal or not, independent.
        Further leading axes are groups.
    dims : sequence of int
        Dimensions ``n_1 < ... < n_k`` of the nested subspaces; one of them: `flag_mean`.
    weights : array_like (N,) or (..., N), optional
        At least 0, scaled to a sum of 1. Equal by default.
    starts : int
        Starts of which the best result is returned: block by block, flag means of what is left;
        then the first given flags.
    tol : float, optional
        Relative gain of a step at which to stop; 1e-12, for float32 1e-8.
    max_iter : int
        Most steps.
    errors : {"raise", "info"}
        Where the best start misses ``tol``: `ConvergenceError`, or ``record.converged`` says so.

    Returns
    -------
    FlagAverage (frame, cost, record)
        In the library of the frames; float64 for float64, else float32.

    Raises
    ------
    InvalidArgumentError
        As `flag_distance`; no flags, bad weights.
    DtypeError, UnsupportedError
        As `principal_angles`.
    ConvergenceError
        A group missed ``tol`` within ``max_iter`` steps from its best start.

    Notes
    -----
    ``4 N n n_k^2`` flops for a step, start and group, in float64. The problem has local maxima
    where there are several blocks, hence the starts.

    References
    ----------
    N. Mankovich, T. Birdal, "Chordal averaging on flag manifolds and its applications", ICCV 2023
    (the problem; there solved by Riemannian trust regions).

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.subspaces import chordal_flag_mean
    >>> flags = np.stack([np.eye(3)[:, :2]] * 3)
    >>> float(chordal_flag_mean(flags, [1, 2]).cost.round(12))
    0.0
    """
    return _average(
        "chordal_flag_mean",
        frames,
        dims,
        weights=weights,
        starts=starts,
        tol=tol,
        max_iter=max_iter,
        errors=errors,
    )


def chordal_flag_median(
    frames: Any,
    dims: Sequence[int],
    *,
    weights: Any = None,
    eps: float = 1e-6,
    starts: int = 3,
    tol: float | None = None,
    max_iter: int = 500,
    errors: str = "raise",
) -> FlagAverage:
    """Flag with the least weighted mean of chordal distances to given flags.

    Steps of `chordal_flag_mean` with weights ``w_i / max(d_i, eps)`` renewed in each; the cost
    does not grow.

    Parameters
    ----------
    frames, dims, weights, starts, tol, max_iter, errors
        As for `chordal_flag_mean`.
    eps : float, > 0
        Distance below which a flag counts no more than at this distance.

    Returns
    -------
    FlagAverage (frame, cost, record)
        As `chordal_flag_mean`.

    Raises
    ------
    InvalidArgumentError, DtypeError, UnsupportedError, ConvergenceError
        As `chordal_flag_mean`.

    References
    ----------
    As `chordal_flag_mean`.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.subspaces import chordal_flag_median
    >>> flags = np.stack([np.eye(3)[:, :2], np.eye(3)[:, :2], np.eye(3)[:, ::-1][:, :2]])
    >>> abs(chordal_flag_median(flags, [1, 2]).frame).round(3).tolist()
    [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]
    """
    floor = _checks.real("chordal_flag_median", "eps", eps, low=np.finfo(np.float64).tiny, high=1.0)
    return _average(
        "chordal_flag_median",
        frames,
        dims,
        weights=weights,
        starts=starts,
        tol=tol,
        max_iter=max_iter,
        errors=errors,
        floor=floor,
    )


class _Kind(NamedTuple):
    """Blocks of a flag: of each column the number of its block, and the size of all."""

    block: NDArray[np.int64]
    size: int

    @property
    def same(self) -> Floats:
        """1 where two columns are of one block."""
        result: Floats = (self.block[:, None] == self.block).astype(np.float64)
        return result


def _flag_type(function: str, dims: Sequence[int], columns: int) -> _Kind:
    ends = [_checks.integer(function, "dims", n, low=1) for n in dims]
    if not ends or np.any(np.diff(ends) <= 0) or ends[-1] != columns:
        raise InvalidArgumentError(
            f"[{function}] dims must ascend and end at the number of columns, {columns}, got {ends}"
        )
    return _Kind(np.searchsorted(ends, np.arange(columns), side="right"), columns)


def _frames(function: str, name: str, given: Given) -> Any:
    spaces = orthonormal(function, name, given)
    if np.any(spaces.dims < spaces.p) or spaces.p < given.x.shape[-1]:
        raise InvalidArgumentError(
            f"[{function}] {name} must have independent columns, got rank "
            f"{int(spaces.dims.min())} of {given.x.shape[-1]}"
        )
    return spaces


def _squares(products: Any, kind: _Kind) -> Floats:
    """Squared distances from products that are zero across blocks."""
    inner = _work.host((products * products).sum(axis=(-2, -1)))
    result: Floats = np.maximum(kind.size - inner, 0.0)
    return result


def _average(
    function: str,
    frames: Any,
    dims: Sequence[int],
    *,
    weights: Any,
    starts: int,
    tol: float | None,
    max_iter: int,
    errors: str,
    floor: float | None = None,
) -> FlagAverage:
    given = read(function, "frames", frames, wide=True)
    _checks.ndim(function, "frames", given.x, 3, or_more=True)
    kind = _flag_type(function, dims, int(given.x.shape[-1]))
    if given.x.shape[-3] == 0:
        raise InvalidArgumentError(
            f"[{function}] frames must be at least one, got shape {tuple(given.x.shape)}"
        )
    spaces = _frames(function, "frames", given)
    w = check_weights(function, weights, spaces.lead)
    limit = _iterate.tolerance(function, tol, given.dtype, {"float64": 1e-12, "float32": 1e-8})
    steps = _checks.integer(function, "max_iter", max_iter, low=0)
    count = min(_checks.integer(function, "starts", starts, low=1), spaces.lead[-1] + 1)
    lead, (items_of_group, n, p) = spaces.lead[:-1], spaces.q.shape[-3:]
    items = spaces.q.reshape(-1, items_of_group, n, p)
    fixed = w.reshape(-1, items_of_group)
    groups = len(fixed)
    first = _block_by_block(items, fixed, kind)[:, None]
    # Every start of a group is a problem of its own: problem s of group g is g * count + s.
    y = _work.concatenate([first, items[:, : count - 1]], 1).reshape(-1, n, p)
    before, cost = np.full(len(y), np.nan), np.zeros(len(y))
    same = _work.like(items, kind.same)

    def step(at: NDArray[np.int64], number: int) -> Floats:
        here, mine, share = _work.take(y, at), _work.take(items, at // count), fixed[at // count]
        products = _pairs.cross(mine, here[:, None]) * same
        square = _squares(products, kind)
        if floor is not None:
            d = np.sqrt(np.maximum(square, floor**2))
            cost[at], share = np.sum(share * d, axis=-1), share / d
        else:
            cost[at] = np.sum(share * square, axis=-1)
        # Relative to the size of the objective, as the cost itself may be 0.
        gain = np.abs(before[at] - cost[at]) / kind.size
        before[at] = cost[at]
        go = np.flatnonzero(~(gain <= limit))
        if number < steps and go.size:
            pull = (mine @ (products * _work.like(products, share[..., None, None]))).sum(axis=1)
            u, _, vh = _work.svd(_work.take(pull, go))
            _work.put(y, at[go], u @ vh)
        return gain

    record = _iterate.run(
        function, len(y), step, steps=steps, limit=limit, lead=(groups, count), errors="info"
    )
    costs = cost.reshape(groups, count)
    # Of results that are equal to the tolerance the one of the first start.
    slack = kind.size * max(limit, 1e-15)
    best = np.argmax(costs <= costs.min(axis=-1, keepdims=True) + slack, axis=-1)
    record = Record(*(field[np.arange(groups), best].reshape(lead) for field in record))
    _iterate.check(function, record, steps=steps, limit=limit, errors=errors)
    chosen = best + count * np.arange(groups)
    give, source = _work.give, given.source
    return FlagAverage(
        give(source, _work.take(y, chosen).reshape(*lead, n, p), given.dtype),
        give(source, cost[chosen].reshape(lead), given.dtype),
        record,
    )


def _block_by_block(items: Any, weights: Floats, kind: _Kind) -> Any:
    """For each block in turn the flag mean of what the blocks before have left of it."""
    roots = _work.like(items, np.sqrt(weights)[..., None, None])
    found: Any = None
    for block in range(int(kind.block[-1]) + 1):
        columns = np.flatnonzero(kind.block == block)
        part = items[..., int(columns[0]) : int(columns[-1]) + 1] * roots
        groups, _, n, m = part.shape
        side = _work.permute(part, [0, 2, 1, 3]).reshape(groups, n, -1)
        if found is not None:
            side = side - found @ (_work.swap(found) @ side)
        u = _work.svd(side).u[..., :m]
        found = u if found is None else _work.concatenate([found, u], -1)
    # Blocks that leave nothing to the next one make the columns dependent.
    return subspan.qr(found, nonfinite="ignore").q
