"""Tucker decompositions: bases of all modes, and the tensor in their coordinates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import subspan
from subspan import _checks
from subspan.errors import ConvergenceError, InvalidArgumentError
from subspan.tensors._reading import Array, finite, give, tensor
from subspan.tensors.tucker_tensor import TuckerTensor
from subspan.tensors.unfolding import product, products

__all__ = ["TuckerResult", "tucker"]

_NAME = "tucker"
_METHODS = ("sthosvd", "hosvd", "hooi", "randomized")
_OVERSAMPLING, _POWERS = 8, 2


class TuckerResult(NamedTuple):
    r"""Result of :func:`tucker`.

    Attributes
    ----------
    tensor : TuckerTensor
    error : float
        :math:`\|X - \hat X\| / \|X\|`, from the norms of X and of the core.
    discarded : array (N,)
        Sum of the squared singular values that each mode discarded, relative to
        :math:`\|X\|^2`; for HOOI and the randomized method what they started from, or would have.
    bound : float
        Root of their sum: for ``"hosvd"`` the error is at most this, for ``"sthosvd"`` it is this.
    errors : array (iterations,)
        Of HOOI, after each; empty for the others.
    converged : bool
    """

    tensor: TuckerTensor
    error: float
    discarded: NDArray[np.float64]
    bound: float
    errors: NDArray[np.float64]
    converged: bool


def tucker(
    x: Any,
    rank: int | Sequence[int] | None = None,
    *,
    tol: float | None = None,
    energy: float | None = None,
    method: str = "sthosvd",
    change: float = 1e-6,
    max_iter: int = 50,
    seed: int = 0,
    errors: str = "info",
    progress: Callable[[int, float], object] | None = None,
) -> TuckerResult:
    r"""Compress a tensor to bases of its modes and a core (Tucker, HOSVD, ST-HOSVD, HOOI).

    .. math:: \min \| X - G \times_0 U_0 \times_1 U_1 \dots \|, \qquad U_n^T U_n = I

    Parameters
    ----------
    x : array (I_0, ..., I_{N-1})
        float32 or float64, N >= 2.
    rank : int or sequence of N
        Columns of the bases; one number for all modes (at most their extents).
    tol : float
        In place of rank: largest relative error, in (0, 1); each mode may add tol^2 / N to its
        square.
    energy : float
        In place of rank: least share of the squared norm that is kept, in (0, 1).
    method : {"sthosvd", "hosvd", "hooi", "randomized"}
        ``"sthosvd"``: mode by mode, each from what the ones before have left, the mode that shrinks
        most first. ``"hosvd"``: each from x. ``"hooi"``: alternating, from ST-HOSVD.
        ``"randomized"``: as ST-HOSVD, with bases from a range finder of 8 more columns and two
        power steps; needs a rank.
    change : float
        HOOI stops when the error changes by less.
    max_iter : int
        Most iterations of HOOI.
    seed : int
        Of the randomized method.
    errors : {"info", "raise"}
        Where HOOI does not stop in time: ``converged`` says so, or `ConvergenceError`.
    progress : callable, optional
        Called as ``progress(iteration, error)`` by HOOI.

    Returns
    -------
    TuckerResult (tensor, error, discarded, bound, errors, converged)
        Arrays of ``tensor`` in x's library and dtype.

    Raises
    ------
    InvalidArgumentError
        Not one of rank, tol and energy; one out of range; NaN or infinity; an empty mode.
    DtypeError, UnsupportedError
        Not a float array on the CPU.
    ConvergenceError
        HOOI, with ``errors="raise"``.

    Notes
    -----
    The error of ST-HOSVD and HOSVD is at most sqrt(N) times the least possible. Bases are
    eigenvectors of Gram matrices, which know squared singular values to rounding times the largest;
    where tol is below the root of that (float32: 2e-3, float64: 1e-7), singular vectors of the
    triangular factor of the unfolding. A mode that is longer than the product of the others takes
    the singular vectors of its unfolding. Products are numpy's: the last bits may depend on its
    threads.

    References
    ----------
    L. De Lathauwer, B. De Moor, J. Vandewalle: A multilinear singular value decomposition, SIAM J.
    Matrix Anal. Appl. 21 (2000), property 10.
    N. Vannieuwenhoven, R. Vandebril, K. Meerbergen: A new truncation strategy for the higher-order
    singular value decomposition, SIAM J. Sci. Comput. 34 (2012), theorem 6.5.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.tensors import tucker
    >>> x = np.random.default_rng(0).standard_normal((6, 7, 8))
    >>> result = tucker(x, (3, 4, 5))
    >>> result.tensor.rank, abs(result.error - result.bound) < 1e-12
    ((3, 4, 5), True)
    """
    array = tensor(_NAME, x, least=2)
    flat = array.reshape(-1).astype(np.float64, copy=False)
    size2 = float(np.dot(flat, flat))
    if not np.isfinite(size2):  # a sum that is finite has finite terms
        finite(_NAME, "x", array)
    _checks.choice(_NAME, "method", method, _METHODS)
    ranks, share = _wanted(array, rank, tol, energy, method)
    unit = float(np.finfo(array.dtype).eps)
    if method == "randomized":
        assert ranks is not None
        rng = np.random.default_rng(_checks.integer(_NAME, "seed", seed, low=0))
        core, factors, lost = _randomized(array, ranks, rng)
    else:
        careful = share is not None and share < 40 * unit
        how = _Cut(ranks, None if share is None else share * size2, careful)
        core, factors, lost = (_hosvd if method == "hosvd" else _sthosvd)(array, how)
    record: list[float] = []
    converged = True
    if method == "hooi":
        limit = _checks.real(_NAME, "change", change, low=0.0)
        steps = _checks.integer(_NAME, "max_iter", max_iter, low=0)
        core, factors, record, converged = _hooi(
            array, core, factors, size2, limit=limit, steps=steps, progress=progress
        )
        if not converged and _checks.choice(_NAME, "errors", errors, ("info", "raise")) == "raise":
            raise ConvergenceError(
                f"[{_NAME}] the error must change by less than {limit:.3g}, got "
                f"{record[-1] if record else _error(core, size2):.6g} still falling after {steps} "
                'iterations. Raise max_iter or change, or take errors="info"'
            )
    discarded = np.array(lost) / size2 if size2 > 0 else np.zeros(array.ndim)
    core, factors = _signed(core, factors)
    return TuckerResult(
        TuckerTensor(give(x, core), tuple(give(x, a) for a in factors)),
        _error(core, size2),
        discarded,
        float(np.sqrt(discarded.sum())),
        np.array(record),
        converged,
    )


class _Cut(NamedTuple):
    """How many columns a mode keeps: so many, or so that at most ``share`` is discarded."""

    ranks: tuple[int, ...] | None
    share: float | None
    careful: bool


def _wanted(
    x: Array, rank: Any, tol: float | None, energy: float | None, method: str
) -> tuple[tuple[int, ...] | None, float | None]:
    """Ranks, or the share of the squared norm that a mode may discard."""
    given = [
        name for name, v in (("rank", rank), ("tol", tol), ("energy", energy)) if v is not None
    ]
    if len(given) != 1:
        raise InvalidArgumentError(
            f"[{_NAME}] rank, tol or energy must be given, one of them, got {given or 'none'}"
        )
    if rank is None and method == "randomized":
        raise InvalidArgumentError(
            f"[{_NAME}] rank must be given for method 'randomized', got {given[0]}"
        )
    if rank is not None:
        if isinstance(rank, (list, tuple)):
            if len(rank) != x.ndim:
                raise InvalidArgumentError(
                    f"[{_NAME}] rank must be one number, or one for each of the {x.ndim} modes, "
                    f"got {len(rank)}"
                )
            return tuple(
                _checks.integer(_NAME, f"rank[{n}]", r, low=1, high=x.shape[n])
                for n, r in enumerate(rank)
            ), None
        one = _checks.integer(_NAME, "rank", rank, low=1, high=max(x.shape))
        return tuple(min(one, extent) for extent in x.shape), None
    if tol is not None:
        share = _checks.real(_NAME, "tol", tol, low=0.0, high=1.0) ** 2
    else:
        assert energy is not None
        share = 1 - _checks.real(_NAME, "energy", energy, low=0.0, high=1.0)
    return None, share / x.ndim


def _sthosvd(x: Array, how: _Cut) -> tuple[Array, list[Array], list[float]]:
    factors: list[Array] = [np.empty((0, 0))] * x.ndim
    lost = [0.0] * x.ndim
    core = x
    for n in _shrinking(x.shape, how.ranks):
        factors[n], lost[n] = _leading(core, n, how)
        core = product(core, factors[n].T, n)
    return core, factors, lost


def _hosvd(x: Array, how: _Cut) -> tuple[Array, list[Array], list[float]]:
    found = [_leading(x, n, how) for n in range(x.ndim)]
    factors = [vectors for vectors, _ in found]
    core = products(x, {n: a.T for n, a in enumerate(factors)})
    return core, factors, [lost for _, lost in found]


def _shrinking(shape: tuple[int, ...], ranks: tuple[int, ...] | None) -> list[int]:
    """Modes in the order of ST-HOSVD; without ranks the shortest first, of small matrices."""
    if ranks is None:
        return sorted(range(len(shape)), key=lambda n: shape[n])
    return sorted(range(len(shape)), key=lambda n: ranks[n] / shape[n])


def _leading(x: Array, n: int, how: _Cut) -> tuple[Array, float]:
    """Leading left singular vectors of an unfolding, and the sum of squares they leave out."""
    extent, others = x.shape[n], x.size // x.shape[n]
    if how.careful or others < extent:
        rows = np.moveaxis(x, n, -1).reshape(others, extent)
        if others > extent:
            rows = subspan.qr(rows).r
        _, s, vectors = subspan.svd(rows)[:3]
        vectors, squares = vectors.T, np.square(s, dtype=np.float64)
    else:
        values, vectors = subspan.eigh(gram_of(x, n))[:2]
        vectors = vectors[:, ::-1]
        squares = np.maximum(values[::-1].astype(np.float64), 0)
    tail = np.append(np.cumsum(squares[::-1])[::-1], 0.0)  # tail[r]: from r on
    if how.ranks is not None:
        keep = how.ranks[n]
    else:
        assert how.share is not None
        keep = max(1, int(np.argmax(tail <= how.share)))
    if keep > vectors.shape[1]:  # more columns than the unfolding has: any that complete the basis
        whole, _ = np.linalg.qr(np.concatenate([vectors, np.eye(extent, dtype=x.dtype)], axis=1))
        vectors = np.concatenate([vectors, whole[:, vectors.shape[1] : keep]], axis=1)
    lost = float(tail[keep]) if keep < len(tail) else 0.0
    return np.ascontiguousarray(vectors[:, :keep]), lost


def gram_of(x: Array, n: int) -> Array:
    """X_(n) X_(n)^T, from slices; from an unfolding where the products of slices would be more."""
    before, extent, after = prod(x.shape[:n]), x.shape[n], prod(x.shape[n + 1 :])
    if before == 1:  # the unfolding as it lies, of which BLAS makes one triangle
        rows = x.reshape(extent, after)
        whole: Array = rows @ rows.T
        return whole
    if after == 1:
        return np.asarray(subspan.gram(x.reshape(before, extent)))
    if extent > 4 * after:
        return np.asarray(subspan.gram(np.moveaxis(x, n, -1).reshape(-1, extent)))
    slices = x.reshape(before, extent, after).swapaxes(-1, -2)
    out: Array = subspan.gram(slices).sum(axis=0)
    return out


def _randomized(
    x: Array, ranks: tuple[int, ...], rng: np.random.Generator
) -> tuple[Array, list[Array], list[float]]:
    factors: list[Array] = [np.empty((0, 0))] * x.ndim
    lost = [0.0] * x.ndim
    core = x
    for n in _shrinking(x.shape, ranks):
        size = float(np.square(core, dtype=np.float64).sum())
        rows = np.moveaxis(core, n, 0).reshape(core.shape[n], -1)
        width = min(ranks[n] + _OVERSAMPLING, *rows.shape)
        y = rows @ rng.standard_normal((rows.shape[1], width)).astype(x.dtype)
        for _ in range(_POWERS):
            q = subspan.qr(y).q
            y = rows @ (rows.T @ q)
        q = subspan.qr(y).q
        wide = _Cut(tuple(min(r, width) if m == n else r for m, r in enumerate(ranks)), None, False)
        inner, _ = _leading(product(core, q.T, n), n, wide)
        factors[n] = q @ inner
        if factors[n].shape[1] < ranks[n]:  # the unfolding has fewer columns
            factors[n], _ = _leading(core, n, _Cut(ranks, None, False))
        core = product(core, factors[n].T, n)
        lost[n] = max(size - float(np.square(core, dtype=np.float64).sum()), 0.0)
    return core, factors, lost


def _hooi(
    x: Array,
    core: Array,
    factors: list[Array],
    size2: float,
    *,
    limit: float,
    steps: int,
    progress: Callable[[int, float], object] | None,
) -> tuple[Array, list[Array], list[float], bool]:
    how = _Cut(core.shape, None, False)
    record: list[float] = []
    last = _error(core, size2)
    for number in range(steps):
        for n in range(x.ndim):
            others = {m: a.T for m, a in enumerate(factors) if m != n}
            part = products(x, others)
            factors[n], _ = _leading(part, n, how)
            core = product(part, factors[n].T, n)
        now = _error(core, size2)
        record.append(now)
        if progress is not None:
            progress(number, now)
        if abs(last - now) < limit:
            return core, factors, record, True
        last = now
    return core, factors, record, False


def _error(core: Array, size2: float) -> float:
    if size2 == 0:
        return 0.0
    kept = float(np.square(core, dtype=np.float64).sum())
    return float(np.sqrt(max(size2 - kept, 0.0) / size2))


def _signed(core: Array, factors: list[Array]) -> tuple[Array, list[Array]]:
    """Columns whose entry of largest magnitude is positive."""
    out = []
    for n, a in enumerate(factors):
        top = a[np.abs(a).argmax(axis=0), np.arange(a.shape[1])]
        signs = np.where(top < 0, -1, 1).astype(a.dtype)
        out.append(a * signs)
        core = core * signs.reshape([-1 if m == n else 1 for m in range(core.ndim)])
    return core, out
