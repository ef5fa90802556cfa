"""The engine of pairs: all products as few large ones, angles, principal vectors."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import subspan
from subspan import _checks
from subspan.errors import InvalidArgumentError
from subspan.subspaces import _work
from subspan.subspaces._screen import screen
from subspan.subspaces._work import Floats
from subspan.subspaces.spaces import Given, Spaces, orthonormal

__all__ = [
    "Principal",
    "angles",
    "cross",
    "gather",
    "joint_lead",
    "measure",
    "principal",
    "row",
    "spread",
]

# Elements of a tile of products and of residuals: 16 MiB of float64.
_TILE = 1 << 21


def spread(function: str, a: Spaces, b: Spaces, pairs: str) -> tuple[Spaces, Spaces]:
    """Leading axes such that broadcasting forms the pairs that were asked for."""
    if _checks.choice(function, "pairs", pairs, ("broadcast", "all")) == "broadcast":
        joint_lead(function, a, b)
        return a, b
    lead = (*a.lead, *(1 for _ in b.lead))
    return Spaces(a.q.reshape(*lead, *a.q.shape[-2:]), a.dims.reshape(lead)), b


def joint_lead(function: str, a: Spaces, b: Spaces) -> tuple[int, ...]:
    """Leading axes of the pairs."""
    try:
        return np.broadcast_shapes(a.lead, b.lead)
    except ValueError:
        raise InvalidArgumentError(
            f"[{function}] a and b must have leading axes that broadcast, got {a.lead} and "
            f'{b.lead}. Where all pairs are wanted, say pairs="all"'
        ) from None


class Measured(NamedTuple):
    """Angles of pairs, and the dimensions of what formed them."""

    theta: Floats
    dims_a: NDArray[np.int64]
    dims_b: NDArray[np.int64]

    gap: NDArray[np.int64]
    """Differences of the dimensions, of shapes that broadcast to that of the pairs."""


def measure(function: str, first: Given, second: Given, pairs: str) -> Measured:
    """Angles of what was given."""
    alone = _checks.choice(function, "pairs", pairs, ("broadcast", "all")) == "broadcast"
    known = screen(first, second) if alone else None
    if known is None:
        return _measure_all(function, first, second, pairs)
    lead, theta = first.dims.shape, known.theta
    dims_a, dims_b = (given.dims.reshape(-1).copy() for given in (first, second))
    rest = np.flatnonzero(~known.decided)
    if rest.size:
        left, right = (
            given._replace(x=_work.take(given.flat(), rest), dims=dims[rest])
            for given, dims in ((first, dims_a), (second, dims_b))
        )
        try:
            found = _measure_all(function, left, right, "broadcast")
        except InvalidArgumentError:  # not finite: to be named by its place among all
            return _measure_all(function, first, second, pairs)
        theta[rest], dims_a[rest], dims_b[rest] = found.theta, found.dims_a, found.dims_b
    gap = np.abs(dims_a - dims_b).reshape(lead)
    shape = (*lead, theta.shape[-1])
    return Measured(theta.reshape(shape), dims_a.reshape(lead), dims_b.reshape(lead), gap)


def _measure_all(function: str, first: Given, second: Given, pairs: str) -> Measured:
    a = orthonormal(function, "a", first, signed=False)
    b = a if second is first else orthonormal(function, "b", second, signed=False)
    left, right = spread(function, a, b, pairs)
    return Measured(angles(left, right), a.dims, b.dims, np.abs(left.dims - right.dims))


def cross(a: Any, b: Any) -> Any:
    """``A^T B`` of bases (..., n, p) and (..., n, q) whose leading axes broadcast.

    Axes that only one side has are joined to its columns, so M x L pairs are one product of
    (M p, n) and (n, L q).
    """
    rank = max(a.ndim, b.ndim) - 2
    a = a.reshape(*(1,) * (rank + 2 - a.ndim), *a.shape)
    b = b.reshape(*(1,) * (rank + 2 - b.ndim), *b.shape)
    (n, p), q = a.shape[-2:], b.shape[-1]
    mine = [i for i in range(rank) if b.shape[i] == 1 and a.shape[i] != 1]
    yours = [i for i in range(rank) if a.shape[i] == 1 and b.shape[i] != 1]
    if not mine and not yours:
        return _work.swap(a) @ b
    both = [i for i in range(rank) if i not in mine and i not in yours]
    size_both, size_mine, size_yours = (
        [int(x.shape[i]) for i in axes] for x, axes in ((a, both), (a, mine), (b, yours))
    )
    left = _work.permute(a, [*both, *yours, rank, *mine, rank + 1])
    right = _work.permute(b, [*both, *mine, rank, *yours, rank + 1])
    left = left.reshape(prod(size_both), n, prod(size_mine) * p)
    right = right.reshape(prod(size_both), n, prod(size_yours) * q)
    product = _work.swap(left) @ right
    product = product.reshape(*size_both, *size_mine, p, *size_yours, q)
    # Where each wanted axis lies in the product.
    at = {axis: place for place, axis in enumerate(both)}
    at |= {axis: len(both) + place for place, axis in enumerate(mine)}
    at |= {axis: len(both) + len(mine) + 1 + place for place, axis in enumerate(yours)}
    order = [at[i] for i in range(rank)]
    return _work.permute(product, [*order, len(both) + len(mine), rank + 1])


def angles(a: Spaces, b: Spaces) -> Floats:
    """Angles of all pairs, ascending, NaN from the smaller dimension on; leading axes broadcast."""
    if a.p < b.p:
        a, b = b, a
    lead = np.broadcast_shapes(a.lead, b.lead)
    if prod(lead) * a.p * b.p > _TILE and max(lead, default=1) > 1:
        axis = int(np.argmax(lead)) - len(lead)
        half = lead[axis] // 2
        halves = (slice(None, half), slice(half, None))
        parts = [angles(_part(a, axis, part), _part(b, axis, part)) for part in halves]
        return np.concatenate(parts, axis=axis - 1)
    count = np.minimum(a.dims, b.dims)[..., None]
    inside = np.arange(b.p) < count
    if b.p == 0 or prod(lead) == 0:
        return np.zeros((*lead, b.p))
    products = cross(a.q, b.q)
    cosines = np.minimum(_work.host(subspan.svdvals(products, nonfinite="ignore")), 1.0)
    theta = np.where(inside, np.arccos(cosines), np.nan)
    near = inside & (np.square(cosines) > 0.5)
    rows = np.flatnonzero(near.any(axis=-1))
    flat, near = theta.reshape(-1, b.p), near.reshape(-1, b.p)
    for part, ib, qa, qb in gather(rows, a, b, lead):
        c = _work.take(products.reshape(-1, a.p, b.p), part)
        sines = _work.host(subspan.svdvals(qb - qa @ c, nonfinite="ignore"))
        # Descending: a one for every dimension that b has more than a, the sines, padding.
        last = b.dims.reshape(-1)[ib][:, None] - 1
        sines = np.take_along_axis(sines, np.maximum(last - np.arange(b.p), 0), axis=-1)
        flat[part] = np.where(near[part], np.arcsin(np.minimum(sines, 1.0)), flat[part])
    result: Floats = np.maximum.accumulate(theta, axis=-1)  # across the seam at pi / 4
    return result


def _part(x: Spaces, axis: int, part: slice) -> Spaces:
    """Slice of a leading axis, counted from the last, unless it is broadcast."""
    if len(x.lead) < -axis or x.lead[axis] == 1:
        return x
    cut: tuple[Any, ...] = (..., part, *(slice(None),) * (-axis - 1))
    return Spaces(x.q[(*cut, slice(None), slice(None))], x.dims[cut])


def gather(
    rows: NDArray[np.int64], a: Spaces, b: Spaces, lead: tuple[int, ...]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], Any, Any]]:
    """Yield pairs by the tile: their numbers, those of the second bases, and the two bases."""
    step = max(1, _TILE // max(1, int(a.q.shape[-2]) * (a.p + b.p)))
    of_a, of_b = (
        np.broadcast_to(np.arange(prod(s.lead)).reshape(s.lead), lead).reshape(-1) for s in (a, b)
    )
    qa, qb = a.flat(), b.flat()
    for start in range(0, rows.size, step):
        part = rows[start : start + step]
        yield part, of_b[part], _work.take(qa, of_a[part]), _work.take(qb, of_b[part])


class Principal(NamedTuple):
    """Principal vectors of bases A and B: ``x = A u`` and ``y = B v`` with ``x^T y = cos``."""

    x: Any
    """(..., n, k) in the span of A, angles ascending."""
    y: Any
    """(..., n, k) in the span of B."""
    lift: Any
    """(..., n, k) ``y - x cos``: orthogonal to A, columns of length sin."""
    u: Any
    """(..., p, k)"""
    theta: Floats
    """(..., k)"""


def principal(a: Any, b: Any) -> Principal:
    """Principal vectors of float64 bases that have all their columns; leading axes broadcast.

    The SVD of ``A^T B`` leaves vectors of small angles undetermined, as their cosines are all 1.
    Within the span of those with ``cos^2 > 1/2`` the residual's SVD decides, as its values, the
    sines, are distinct there.
    """
    c = cross(a, b)
    u, s, vh = _work.svd(c)
    v = _work.swap(vh)
    cosines = np.minimum(_work.host(s), 1.0)
    theta = np.arccos(cosines)
    rest = b @ v - a @ (c @ v)
    near = np.square(cosines) > 0.5
    if near.any():
        theta, turn = _by_sines(rest, near, theta)
        keep = _work.like(c, near[..., None, :].astype(np.float64))
        v = v @ turn
        image = c @ v
        # Of length cos, at least sqrt(1/2) where it is wanted.
        length = ((image * image).sum(axis=-2) ** 0.5)[..., None, :]
        u = keep * image / (length + (1 - keep)) + (1 - keep) * u
        rest = rest @ turn
    return Principal(a @ u, b @ v, rest, u, theta)


def _by_sines(rest: Any, near: NDArray[np.bool_], theta: Floats) -> tuple[Floats, Any]:
    """Angles of the leading, near columns by their sines, and the rotation that separates them."""
    k = near.shape[-1]
    r = subspan.qr(rest, nonfinite="ignore").r
    keep = near[..., None, :].astype(np.float64)
    # Far columns get values above all sines, so that they stay apart from the near ones.
    far = np.where(near, 0.0, 2.0)[..., None] * np.eye(k)
    _, sines, wh = _work.svd(_work.concatenate([r * _work.like(r, keep), _work.like(r, far)], -2))
    ascending = np.minimum(_work.host(sines)[..., ::-1], 1.0)
    turn = _work.swap(_work.flip(wh)) * _work.like(r, keep) + _work.like(r, (1 - keep) * np.eye(k))
    return np.where(near, np.arcsin(ascending), theta), turn


def row(x: Any, factors: Floats) -> Any:
    """Factors of columns, (..., p) of the host, beside bases ``x``."""
    return _work.like(x, factors[..., None, :])
