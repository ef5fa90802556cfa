"""Low-rank factors under a weight for every single element, by alternating least squares."""

from __future__ import annotations

from typing import Any

import numpy as np

from subspan import _arrays, _checks
from subspan.compression._inputs import Floats, like, matrices_of
from subspan.compression.lowrank import fisher_svd, truncated_svd
from subspan.compression.matrices import LowRank
from subspan.errors import InvalidArgumentError

__all__ = ["elementwise_svd"]

_RIDGE = 1e-8  # of the mean diagonal of each small system: rows without weight are solvable too


def elementwise_svd(
    weight: Any, importance: Any, rank: int, *, iterations: int = 10, tolerance: float = 1e-6
) -> LowRank:
    r"""Factors of small error weighted element by element, such as by the Fisher information.

    .. math:: \min_{A, B} \sum_{ij} I_{ij} (W - A B)_{ij}^2

    There is no closed form, and there are local minima. From two starts, `fisher_svd` with the sums
    of the rows and the matrix with its elements shrunk by their weights, A and B are solved for in
    turn; the better end counts. It is never worse than `fisher_svd`.

    Parameters
    ----------
    weight : array (m, n)
        float16, bfloat16, float32 or float64 of numpy, torch (CPU) or another library with DLPack.
    importance : array (m, n)
        Weights >= 0, such as mean squared gradients.
    rank : int
        From 1 to min(m, n).
    iterations : int
        Rounds of both factors, at most.
    tolerance : float
        A round that gains less than this part of the error is the last.

    Returns
    -------
    LowRank
        ``error`` and ``total`` in the weighted norm.

    Raises
    ------
    InvalidArgumentError, DtypeError
        Shapes that do not fit, NaN or infinity, negative weights, a rank out of range.

    Notes
    -----
    A round is m + n systems of order r, :math:`m n r^2` multiplications for their matrices: for
    ranks of hundreds much more than a decomposition.

    References
    ----------
    N. Srebro, T. Jaakkola: Weighted low-rank approximations, ICML 2003 (the problem); FWSVD,
    `arXiv:2207.00112 <https://arxiv.org/abs/2207.00112>`_, weights it by the Fisher information.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.compression import elementwise_svd
    >>> rng = np.random.default_rng(0)
    >>> weight = np.outer(rng.normal(size=6), rng.normal(size=5))
    >>> seen = np.ones((6, 5))
    >>> weight[2, 3], seen[2, 3] = 99.0, 0.0  # an element that does not count
    >>> bool(elementwise_svd(weight, seen, 1, iterations=100).error < 1e-3)
    True
    """
    function = "elementwise_svd"
    _arrays.require_array(function, "weight", weight)
    _checks.ndim(function, "weight", weight, 2)
    (w,), _ = matrices_of(function, weight, None)
    m, n = w.shape
    rank = _checks.integer(function, "rank", rank, low=1, high=min(m, n))
    iterations = _checks.integer(function, "iterations", iterations, low=0)
    tolerance = _checks.real(function, "tolerance", tolerance, low=0.0)
    importances = _weights(function, importance, (m, n))
    share = importances / max(float(importances.max()), np.finfo(np.float64).tiny)
    starts = (fisher_svd(w, np.sqrt(importances.sum(axis=1))), truncated_svd(share * w))
    runs = [
        _alternated(w, importances, one.left[:, :rank], one.right[:rank], iterations, tolerance)
        for one in starts
    ]
    error, a, b = min(runs, key=lambda run: run[0])
    total = float(np.sqrt((importances * w**2).sum()))
    return LowRank(error, total, "", like(weight, a), like(weight, b))


def _alternated(  # noqa: PLR0917
    w: Floats, importance: Floats, a: Floats, b: Floats, iterations: int, tolerance: float
) -> tuple[float, Floats, Floats]:
    """Return the error and the factors that a start leads to, never worse than it."""
    best = (_error(w, importance, a, b), a, b)
    for _ in range(iterations):
        a = _solved(w, importance, b)
        b = _solved(w.T, importance.T, a.T).T
        error = _error(w, importance, a, b)
        gained = best[0] - error
        if gained > 0:
            best = (error, a, b)
        if gained <= tolerance * best[0]:
            break
    return best


def _weights(function: str, importance: Any, shape: tuple[int, int]) -> Floats:
    _arrays.require_array(function, "importance", importance)
    x = np.asarray(_arrays.to_numpy(importance), np.float64)
    if x.shape != shape or not np.isfinite(x).all() or (x < 0).any():
        wrong = "shape" if x.shape != shape else "NaN, infinity or a negative weight in shape"
        raise InvalidArgumentError(
            f"[{function}] importance must be {shape} of finite numbers >= 0, got {wrong} {x.shape}"
        )
    return x


def _solved(w: Floats, importance: Floats, b: Floats) -> Floats:
    """Return the rows a of A that minimise ``sum_j I_ij (W_ij - a_i B_j)^2``."""
    r = len(b)
    found = np.empty((len(w), r))
    step = max(1, (1 << 24) // (8 * r * max(r, w.shape[1])))
    for start in range(0, len(w), step):
        rows = slice(start, start + step)
        scaled = importance[rows, None, :] * b
        grams = scaled @ b.T
        size = np.trace(grams, axis1=-2, axis2=-1) / r
        grams += np.where(size > 0, _RIDGE * size, 1.0)[:, None, None] * np.eye(r)
        found[rows] = np.linalg.solve(grams, scaled @ w[rows, :, None])[..., 0]
    return found


def _error(w: Floats, importance: Floats, a: Floats, b: Floats) -> float:
    return float(np.sqrt((importance * (w - a @ b) ** 2).sum()))
