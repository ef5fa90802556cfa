"""What a subspace is here: an orthonormal basis and a dimension, batched over leading axes."""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import subspan
from subspan import _arrays, _checks
from subspan.errors import DtypeError, InvalidArgumentError
from subspan.subspaces import _work

__all__ = ["Subspaces", "span"]

Ints = NDArray[np.int64]


class Subspaces(NamedTuple):
    """Subspaces of R^n, possibly of several dimensions; every function of this package takes them.

    Attributes
    ----------
    basis : array, shape (..., n, p)
        Orthonormal columns; from column ``dims`` on they are zero.
    dims : array of int64, shape (...)
        Dimension of each, at most p.
    """

    basis: Any
    dims: Any


class Spaces(NamedTuple):
    """`Subspaces` under work: a basis as `_work` has it, and dimensions on the host."""

    q: Any
    dims: Ints

    @property
    def lead(self) -> tuple[int, ...]:
        return self.dims.shape

    @property
    def p(self) -> int:
        return int(self.q.shape[-1])

    def flat(self) -> Any:
        """Bases on one leading axis."""
        return self.q.reshape(prod(self.lead), *self.q.shape[-2:])


def span(a: Any, *, dims: Any = None, rtol: float | None = None) -> Subspaces:
    """Orthonormal bases of the column spaces of ``a``, and their dimensions.

    Singular values up to ``rtol`` times the largest count as zero. Where all columns are
    independent, the basis is the Q of ``a = Q R`` with a positive diagonal of R: the leading j
    columns span what the leading j columns of ``a`` span, and an orthonormal ``a`` stays as it is.

    Parameters
    ----------
    a : array (..., n, p), or list of arrays (n, p_i)
        Spanning columns; float16, bfloat16, float32 or float64 of numpy, torch or cupy. A list
        becomes one batch axis, its matrices padded with zeros.
    dims : array of int, shape (...), optional
        Leading columns that count, where ``a`` is padded. All by default.
    rtol : float in [0, 1), optional
        ``max(n, p)`` times the rounding unit of the dtype of ``a`` by default.

    Returns
    -------
    Subspaces (basis, dims)
        In a's library and on its device; half precision comes back as float32. The basis has
        ``min(n, p)`` columns.

    Raises
    ------
    InvalidArgumentError
        Wrong shape, NaN or infinity (the message names the matrix), ``dims`` or ``rtol`` out of
        range.
    DtypeError
        Not an array of a supported dtype.
    UnsupportedError
        A torch tensor that requires a gradient.

    Notes
    -----
    One QR decomposition of ``4 n p^2`` flops for each matrix. The rank is certain where the
    determinant of R bounds its smallest singular value away from zero; only other matrices take an
    SVD of R.

    References
    ----------
    The bound: Y. Yu, D. Gu, "A note on a lower bound for the smallest singular value", Linear
    Algebra and its Applications 253, 1997.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.subspaces import span
    >>> a = np.array([[1.0, 2.0], [1.0, 2.0], [0.0, 0.0]])
    >>> basis, dims = span(a)
    >>> int(dims), abs(basis[:, 0]).round(4).tolist()
    (1, [0.7071, 0.7071, 0.0])
    """
    given = read("span", "a", a, dims=dims)
    spaces = orthonormal("span", "a", given, rtol=rtol)
    source = given.source
    return Subspaces(_work.give(source, spaces.q), _work.give(source, spaces.dims))


class Given(NamedTuple):
    """An argument as it came: bases to work on, and what is needed to answer in kind."""

    x: Any
    dims: Ints
    unit: float
    source: Any
    orthonormal: bool

    def flat(self) -> Any:
        """Matrices on one leading axis."""
        return self.x.reshape(prod(self.dims.shape), *self.x.shape[-2:])

    @property
    def dtype(self) -> str:
        """Dtype of results."""
        return "float64" if self.unit < 2.0**-50 else "float32"


def read(function: str, name: str, a: Any, *, dims: Any = None, wide: bool = False) -> Given:
    """Read an argument: an array, a list of matrices, or `Subspaces`."""
    if isinstance(a, Subspaces):
        x = _work.lift(function, name, a.basis, wide=wide)
        unit = _work.unit_of(function, name, a.basis)
        return Given(x, _dims(function, name, a.dims, x), unit, a.basis, orthonormal=True)
    if isinstance(a, (list, tuple)):
        return _padded(function, name, a, dims, wide=wide)
    x = _work.lift(function, name, a, wide=wide)
    unit = _work.unit_of(function, name, a)
    return Given(x, _dims(function, name, dims, x), unit, a, orthonormal=False)


def _padded(function: str, name: str, a: Any, dims: Any, *, wide: bool) -> Given:
    if not a:
        raise InvalidArgumentError(f"[{function}] {name} must have a matrix, got an empty list")
    if dims is not None:
        raise InvalidArgumentError(
            f"[{function}] dims must be None for a list, got {type(dims).__name__}. The matrices "
            "of a list have their own numbers of columns"
        )
    for i, matrix in enumerate(a):
        _arrays.require_same(function, **{f"{name}[0]": a[0], f"{name}[{i}]": matrix})
        _checks.ndim(function, f"{name}[{i}]", matrix, 2)
        if matrix.shape[0] != a[0].shape[0]:
            raise InvalidArgumentError(
                f"[{function}] {name}[{i}] must have {a[0].shape[0]} rows as {name}[0], got "
                f"{matrix.shape[0]}"
            )
    units = [_work.unit_of(function, f"{name}[{i}]", matrix) for i, matrix in enumerate(a)]
    parts = [_work.lift(function, f"{name}[{i}]", matrix, wide=wide) for i, matrix in enumerate(a)]
    counts = np.array([part.shape[1] for part in parts], dtype=np.int64)
    widest = parts[int(np.argmin(units))]  # the smallest unit has the widest dtype
    x = _work.zeros(widest, (len(parts), int(widest.shape[0]), int(counts.max())))
    for i, part in enumerate(parts):
        x[i, :, : counts[i]] = part
    # The coarsest of them decides about rank.
    return Given(x, counts, max(units), a[int(np.argmin(units))], orthonormal=False)


def _dims(function: str, name: str, dims: Any, x: Any) -> Ints:
    lead, p = tuple(int(e) for e in x.shape[:-2]), int(x.shape[-1])
    if dims is None:
        return np.full(lead, p, dtype=np.int64)
    counts = np.asarray(_arrays.to_numpy(dims))
    if counts.dtype.kind not in "iu":
        raise DtypeError(f"[{function}] dims of {name} must be integers, got {counts.dtype}")
    if counts.shape != lead or np.any((counts < 0) | (counts > p)):
        raise InvalidArgumentError(
            f"[{function}] dims of {name} must have shape {lead} and values in 0..{p}, got shape "
            f"{counts.shape} and values {counts.min(initial=0)} to {counts.max(initial=0)}"
        )
    return counts.astype(np.int64)


def read_pair(function: str, a: Any, b: Any, *, wide: bool = False) -> tuple[Given, Given]:
    """Read two arguments of one library, device and ambient space; in the wider of two dtypes."""
    first = read(function, "a", a, wide=wide)
    if b is a:  # told apart by nobody, and orthonormalised once
        return first, first
    second = read(function, "b", b, wide=wide)
    _arrays.require_same(function, a=first.source, b=second.source)
    if second.x.shape[-2] != first.x.shape[-2]:
        raise InvalidArgumentError(
            f"[{function}] b must have {first.x.shape[-2]} rows as a, got {second.x.shape[-2]}. "
            "Both must lie in one ambient space"
        )
    if first.x.dtype != second.x.dtype:
        first, second = (given._replace(x=_work.widen(given.x)) for given in (first, second))
    return first, second


def orthonormal(
    function: str, name: str, given: Given, *, rtol: float | None = None, signed: bool = True
) -> Spaces:
    """Bases of the rank of what was given; without ``signed``, R may have any diagonal."""
    if given.orthonormal:
        lead = given.dims.shape
        sums = _work.host(given.x.sum(axis=-2)).reshape(prod(lead), 1, int(given.x.shape[-1]))
        _refuse_nonfinite(function, name, sums, lead)
        return Spaces(given.x, given.dims)
    x, dims = given.x, given.dims
    n, p = int(x.shape[-2]), int(x.shape[-1])
    if rtol is None:
        rtol = min(max(n, p) * given.unit, 0.5)
    else:
        rtol = _checks.real(function, "rtol", rtol, low=0.0, high=1.0 - 2.0**-52)
    columns = np.arange(p)
    if np.any(dims < p):  # what padding holds does not count
        x = x * _work.like(x, (columns < dims[..., None])[..., None, :])
    batch = prod(dims.shape)
    q, r = subspan.qr(x.reshape(batch, n, p), nonfinite="propagate")
    small = _work.host(r)
    _refuse_nonfinite(function, name, small, dims.shape)
    flat = dims.reshape(batch).copy()
    certain = _full_rank(small, flat, rtol)
    unsure = np.flatnonzero(~certain)
    if unsure.size:
        u, s, _ = _work.svd(_work.take(r, unsure))
        values = _work.host(s)
        flat[unsure] = np.count_nonzero(values > rtol * values[:, :1], axis=-1)
        turned = _work.take(q, unsure) @ u
    if signed:
        q = upright(q, small)
    if unsure.size:
        _work.put(q, unsure, turned)
    k = min(n, p)
    if np.any(flat < k):
        q *= _work.like(q, (columns[:k] < flat[:, None])[:, None, :])
    return Spaces(q.reshape(*dims.shape, n, k), flat.reshape(dims.shape))


def upright(q: Any, r: Any) -> Any:
    """Return the Q that belongs to an R with positive diagonal; ``r`` is on the host."""
    signs = np.where(np.diagonal(r, axis1=-2, axis2=-1) < 0, -1.0, 1.0)
    return q * _work.like(q, signs[..., None, :]) if np.any(signs < 0) else q


def _refuse_nonfinite(function: str, name: str, small: Any, lead: tuple[int, ...]) -> None:
    bad = ~np.isfinite(small).all(axis=(-2, -1))
    if bad.any():
        place = tuple(int(i) for i in np.unravel_index(int(np.argmax(bad)), lead)) if lead else ()
        raise InvalidArgumentError(
            f"[{function}] {name} must be finite, got NaN or infinity in matrix "
            f"{list(place) if place else 0}. Drop or impute such rows first"
        )


def _full_rank(r: Any, dims: Ints, rtol: float) -> Any:
    """Whether the leading columns of each triangle are surely independent.

    ``s_min >= |det| ((m - 1) / |R|_F^2)^((m - 1) / 2)`` for m x m, and ``s_max <= |R|_F``.
    """
    batch, k, p = r.shape
    if k < p:
        return np.zeros(batch, dtype=bool)
    scale = np.max(np.abs(r), axis=(-2, -1), initial=0.0)
    some = scale > 0
    unit = r / np.where(some, scale, 1.0)[:, None, None]
    square = np.einsum("bij,bij->b", unit, unit)
    inside = np.arange(p) < dims[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        entries = np.log(np.abs(np.diagonal(unit, axis1=-2, axis2=-1)))
        volume = np.sum(np.where(inside, entries, 0.0), axis=-1)
        rest = np.where(dims > 1, (dims - 1) / 2 * np.log((dims - 1) / square), 0.0)
        certain = volume + rest > np.log(rtol) + np.log(square) / 2
    return (certain & some) | (dims == 0)


def uniform(function: str, *named: tuple[str, Spaces]) -> tuple[Spaces, ...]:
    """Spaces cut to their one common dimension; refused where there are several."""
    found = sorted({int(k) for _, spaces in named for k in np.unique(spaces.dims)})
    if len(found) > 1:
        raise InvalidArgumentError(
            f"[{function}] {' and '.join(name for name, _ in named)} must have one dimension, got "
            f"dimensions {', '.join(map(str, found))} (dependent columns lower it, see span)"
        )
    k = found[0] if found else min(spaces.p for _, spaces in named)
    return tuple(Spaces(spaces.q[..., :k], spaces.dims) for _, spaces in named)
