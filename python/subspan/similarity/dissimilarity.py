"""Representational similarity analysis: correlation of the distances between samples."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from subspan import _checks
from subspan.errors import InvalidArgumentError
from subspan.similarity._layers import Floats, Layer, Sides, read_pair
from subspan.similarity._progress import Steps

__all__ = ["rsa"]

Float64 = NDArray[np.float64]
_RDMS = ("correlation", "euclidean")
_METHODS = ("spearman", "pearson", "cosine")
# Entries of a block of distances.
_BLOCK = 1 << 20
# Terms that are summed in the dtype of the rows before float64 takes over.
_RUN = 1 << 14


def rsa(x: Any, y: Any, *, rdm: str = "correlation", method: str = "spearman") -> float:
    r"""Correlation of the dissimilarities of samples in one set of features with those in another.

    .. math:: \mathrm{RSA} = \operatorname{corr}\bigl(D^x_{ij},\, D^y_{ij}\bigr)_{i < j}

    Parameters
    ----------
    x : array (N, d)
        float16, bfloat16, float32 or float64, N >= 3; row i of x and of y is the same sample (in
        neuroscience: condition).
    y : array (N, e)
    rdm : {"correlation", "euclidean"}
        Dissimilarity of rows i and j: 1 minus their Pearson correlation over the columns, or the
        squared Euclidean distance.
    method : {"spearman", "pearson", "cosine"}
        How dissimilarities are compared: by ranks (equal ones share the mean rank), linearly, or
        without taking out their mean.

    Returns
    -------
    float
        -1 to 1; with ``"cosine"`` 0 to 1. NaN if all dissimilarities of one side are equal.

    Raises
    ------
    InvalidArgumentError
        Shapes, options; NaN or infinity (named); a row that is constant over the columns, which
        has no correlation with others.
    DtypeError
        Not an array; not floating point.

    Notes
    -----
    N^2 d flops and, for ranks, a sort of N^2 / 2 numbers for each layer. Memory: these numbers for
    each layer, in the dtype of the rows: this is for some thousands of samples at most.

    References
    ----------
    N. Kriegeskorte, M. Mur, P. Bandettini: Representational similarity analysis. Frontiers in
    Systems Neuroscience 2 (2008).

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.similarity import rsa
    >>> x = np.random.default_rng(0).normal(size=(50, 8))
    >>> round(rsa(x, 2 * x + 1), 6)
    1.0
    """
    sides = read_pair("rsa", x, y)
    return float(prepare("rsa", sides, Steps(), rdm=rdm, method=method).matrix(Steps())[0, 0])


class Dissimilarities:
    """RSA of all pairs: the dissimilarities i < j of each layer as one vector of norm 1."""

    def __init__(self, sides: Sides, left: Floats, right: Floats) -> None:
        self.ranks = None
        self._sides, self._left, self._right = sides, left, right

    def matrix(self, steps: Steps) -> Float64:  # noqa: ARG002
        """Return RSA (L1, L2)."""
        return self._bounded(_products(self._left, self._right, None, self._sides.n))

    def permuted(self, order: NDArray[np.int64]) -> Float64:
        """Return RSA with the samples of the second side in another order."""
        value = self._bounded(_products(self._left, self._right, order, self._sides.n))
        # Of a set with itself one order of each pair is drawn, and stands for both.
        return np.triu(value) + np.triu(value, 1).T if self._sides.symmetric else value

    def _bounded(self, value: Float64) -> Float64:
        varies = [np.any(side != 0, axis=1) for side in (self._left, self._right)]
        value[~np.logical_and.outer(*varies)] = np.nan
        return np.clip(value, -1.0, 1.0)


def _products(left: Floats, right: Floats, order: NDArray[np.int64] | None, n: int) -> Float64:
    """Return inner products (L1, L2), the samples of the right side in another order."""
    out = np.zeros((len(left), len(right)))
    if order is None:
        for start in range(0, left.shape[1], _RUN):
            run = slice(start, start + _RUN)
            out += left[:, run] @ right[:, run].T
        return out
    step = max(1, _BLOCK // n)
    for start in range(0, n - 1, step):
        stop = min(start + step, n - 1)
        i = np.repeat(np.arange(start, stop), n - 1 - np.arange(start, stop))
        j = np.concatenate([np.arange(row + 1, n) for row in range(start, stop)])
        a, b = order[i], order[j]
        place = _place(np.minimum(a, b), np.maximum(a, b), n)
        out += left[:, _place(start, start + 1, n) :][:, : len(i)] @ right[:, place].T
    return out


def _place(i: Any, j: Any, n: int) -> Any:
    """Return where the dissimilarity of samples i < j is."""
    return i * n - i * (i + 1) // 2 + j - i - 1


def prepare(
    function: str,
    sides: Sides,
    steps: Steps,
    *,
    rdm: str = "correlation",
    method: str = "spearman",
) -> Dissimilarities:
    """Return the dissimilarities of each layer, ranked or centred, of norm 1."""
    _checks.choice(function, "rdm", rdm, _RDMS)
    _checks.choice(function, "method", method, _METHODS)
    n = sides.n
    if n < 3:
        raise InvalidArgumentError(f"[{function}] layers must have at least 3 rows, got {n}")
    count = len(sides.x) if sides.symmetric else len(sides.x) + len(sides.y)
    stack = np.empty((count, n * (n - 1) // 2), sides.x[0].rows.dtype)
    free = iter(stack)

    def fill(layer: Layer) -> None:
        out = next(free)
        rows = _patterns(function, layer) if rdm == "correlation" else layer.rows
        _dissimilarities(rows, rdm, out)
        if method == "spearman":
            out[:] = _ranks(out) / len(out)
        if method != "cosine":
            out -= out.mean(dtype=np.float64)
        length = float(np.sqrt(np.einsum("i,i->", out, out, dtype=np.float64)))
        if length > 0:
            out /= length

    sides.each(fill, steps)
    left = stack[: len(sides.x)]
    return Dissimilarities(sides, left, left if sides.symmetric else stack[len(sides.x) :])


def _patterns(function: str, layer: Layer) -> Floats:
    """Return the rows as they came in, centred over the columns, of norm 1."""
    rows: Floats = np.asarray(layer.source, layer.rows.dtype)
    still = rows.max(axis=1) == rows.min(axis=1)
    if still.any():
        raise InvalidArgumentError(
            f"[{function}] {layer.name} must have rows that vary over the columns, "
            f"got a constant row {int(np.argmax(still))}. Drop it, or use rdm='euclidean'"
        )
    rows = rows - rows.mean(axis=1, keepdims=True, dtype=np.float64).astype(rows.dtype)
    rows /= np.abs(rows).max(axis=1, keepdims=True)
    rows /= np.sqrt(np.einsum("ij,ij->i", rows, rows))[:, None]
    return rows


def _dissimilarities(rows: Floats, rdm: str, out: Floats) -> None:
    """Write the dissimilarities of rows i < j, by blocks of rows."""
    n = len(rows)
    squares = np.einsum("ij,ij->i", rows, rows)
    step = max(1, _BLOCK // n)
    place = 0
    for start in range(0, n - 1, step):
        block = rows[start : start + step] @ rows[start + 1 :].T
        for k in range(min(step, n - 1 - start)):
            i, values = start + k, block[k, k:]
            part = out[place : place + len(values)]
            if rdm == "correlation":
                np.subtract(1.0, values, out=part)
            else:
                np.subtract(squares[i] + squares[i + 1 :], 2.0 * values, out=part)
            place += len(values)
    np.maximum(out, 0.0, out=out)


def _ranks(values: Floats) -> Float64:
    """Return ranks from 0, equal values sharing their mean."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.concatenate([[0], np.flatnonzero(ordered[1:] != ordered[:-1]) + 1])
    ends = np.append(starts[1:], len(values))
    ranks = np.empty(len(values))
    ranks[order] = np.repeat(0.5 * (starts + ends - 1), ends - starts)
    return ranks
