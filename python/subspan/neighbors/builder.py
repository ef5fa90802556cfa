"""Nearest rows of a set that arrives in blocks, or lies in several places."""

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from subspan import KNN, _arrays, _checks, knn
from subspan.errors import InvalidArgumentError

__all__ = ["KnnBuilder"]


class KnnBuilder:
    """The k nearest rows of blocks, as one `subspan.knn` on all of them would find them.

    Bit for bit, whatever the blocks and their order: the distance of a pair depends on the pair
    alone, and ties go to the smaller id.

    Parameters
    ----------
    x : array (q, d)
        Rows whose neighbours are sought, as in `subspan.knn`. Kept by reference.
    k : int
        At least 1.
    metric : {"euclidean", "sqeuclidean", "inner_product", "cosine"}
    exclude_self : bool
        The row of id i is no neighbour of row i: for blocks of x itself.

    Raises
    ------
    InvalidArgumentError
        k is below 1 or the metric is unknown.
    DtypeError
        x is no array, or k no integer.

    Notes
    -----
    Memory: 16 k bytes for each row of x; a block is not kept.

    Examples
    --------
    >>> import numpy as np, subspan
    >>> from subspan.neighbors import KnnBuilder
    >>> x, y = np.array([[0.0], [9.0]]), np.arange(10.0)[:, None]
    >>> builder = KnnBuilder(x, 2).add_block(y[:7]).add_block(y[7:])
    >>> builder.result().indices
    array([[0, 1],
           [9, 8]])
    >>> there = KnnBuilder(x, 2).add_block(y[:5], ids=np.arange(5))
    >>> here = KnnBuilder(x, 2).add_block(y[5:], ids=np.arange(5, 10))
    >>> bool((here.merge(there).result().indices == builder.result().indices).all())
    True
    """

    def __init__(
        self, x: Any, k: int, metric: str = "euclidean", *, exclude_self: bool = False
    ) -> None:
        function = "KnnBuilder"
        _arrays.require_array(function, "x", x)
        _checks.ndim(function, "x", x, 2)
        self._x = x
        self._k = _checks.integer(function, "k", k, low=1)
        self._metric = metric
        # Roots of different squares may be equal; the order is that of the squares.
        self._searched = "sqeuclidean" if metric == "euclidean" else metric
        self._exclude_self = bool(exclude_self)
        self._count = 0
        self._numbered = False
        self._best = self._search(x[:0], np.zeros(0, np.int64))

    def add_block(self, y: Any, ids: Any = None) -> Self:
        """Search a block of rows.

        Parameters
        ----------
        y : array (n, d)
            Of the library and dtype of x.
        ids : array of int64 (n,), optional
            What the rows are called in the result: at least 0, each id once in all blocks. None:
            they are numbered from where the blocks before ended.

        Returns
        -------
        self

        Raises
        ------
        InvalidArgumentError
            Shapes do not fit, or an id is negative or there twice.
        DtypeError
            An argument is no array, or y of another library or dtype than x.
        """
        function = "KnnBuilder.add_block"
        _arrays.require_array(function, "y", y)
        _checks.ndim(function, "y", y, 2)
        n = int(y.shape[0])
        if ids is None:
            names = np.arange(self._count, self._count + n, dtype=np.int64)
        else:
            names = _names(function, ids, n)
            order = np.argsort(names)
            if not np.array_equal(order, np.arange(n)):
                # In the order of the ids, so that the search breaks ties as the whole would.
                names = names[order]
                y = y[_arrays.from_numpy(y, order)]
            if (np.diff(names) == 0).any():
                raise InvalidArgumentError(f"[{function}] ids must be distinct, got one twice")
        found = self._search(y, names)
        self._best = _nearer(self._best, found)
        self._count += n
        self._numbered |= ids is None and n > 0
        return self

    def merge(self, other: "KnnBuilder") -> Self:
        """Add what another builder has found for the same x.

        Parameters
        ----------
        other : KnnBuilder
            Of the same x, k, metric and exclude_self, with blocks of other ids; left as it is.

        Returns
        -------
        self

        Raises
        ------
        InvalidArgumentError
            The builders differ in one of these, or both have numbered rows on their own.
        """
        function = "KnnBuilder.merge"
        if not isinstance(other, KnnBuilder) or self._asked() != other._asked():
            raise InvalidArgumentError(
                f"[{function}] other must be a KnnBuilder of the same x, k, metric and "
                f"exclude_self, got {other!r} for {self!r}"
            )
        if self._numbered and other._numbered:
            raise InvalidArgumentError(
                f"[{function}] other must have ids of its own, got two builders that numbered "
                "their rows from 0. Pass ids to add_block"
            )
        self._best = _nearer(self._best, other._best)
        self._count += other._count
        self._numbered |= other._numbered
        return self

    def result(self) -> KNN:
        """Return the nearest rows of all blocks so far.

        Returns
        -------
        KNN (distances, indices)
            As from `subspan.knn`; indices are ids. More blocks may follow.
        """
        distances, indices = self._best
        if self._exclude_self:
            distances, indices = _without_self(distances, indices)
        if self._metric == "euclidean":
            distances = np.sqrt(distances)
        elif self._metric == "inner_product":
            distances = -distances
        if _arrays.dtype_name(self._x) != "float64":
            with np.errstate(over="ignore"):
                distances = distances.astype(np.float32)
        return KNN(
            _arrays.from_numpy(self._x, distances.copy()),
            _arrays.from_numpy(self._x, indices.copy()),
        )

    def __repr__(self) -> str:
        """Return what was asked for, and how many rows have been searched."""
        q, d = (int(extent) for extent in self._x.shape)
        return (
            f"KnnBuilder(x of shape ({q}, {d}), k={self._k}, metric={self._metric!r}, "
            f"exclude_self={self._exclude_self}; {self._count} rows searched)"
        )

    def _asked(self) -> tuple[Any, ...]:
        return (
            *tuple(self._x.shape),
            _arrays.dtype_name(self._x),
            self._k,
            self._metric,
            self._exclude_self,
        )

    def _search(self, y: Any, names: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Return distances, the smaller the nearer, and ids; one more if a row may be itself."""
        found = knn(
            self._x,
            y,
            k=self._k + self._exclude_self,
            metric=self._searched,
            dtype="float64",
        )
        distances, indices = map(_arrays.to_numpy, found)
        if self._metric == "inner_product":
            distances = -distances
        names = np.append(names, -1)  # where index -1 leads
        return distances, names[indices]


def _names(function: str, ids: Any, n: int) -> NDArray[np.int64]:
    _arrays.require_array(function, "ids", ids)
    name, shape = _arrays.dtype_name(ids), tuple(int(extent) for extent in ids.shape)
    if name != "int64" or shape != (n,):
        raise InvalidArgumentError(
            f"[{function}] ids must be int64 of shape ({n},), got {name} of shape {shape}"
        )
    names = _arrays.to_numpy(ids)
    if n and names.min() < 0:
        raise InvalidArgumentError(f"[{function}] ids must be >= 0, got {names.min()}")
    return names


def _nearer(
    one: tuple[NDArray[Any], NDArray[np.int64]], two: tuple[NDArray[Any], NDArray[np.int64]]
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the nearest of two results, as many as each has."""
    distances, indices = (np.concatenate(both, axis=1) for both in zip(one, two, strict=True))
    chosen = np.lexsort((indices, distances), axis=1)[:, : one[0].shape[1]]
    return np.take_along_axis(distances, chosen, axis=1), np.take_along_axis(
        indices, chosen, axis=1
    )


def _without_self(
    distances: NDArray[Any], indices: NDArray[np.int64]
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return one column less: without the row itself, or else without the last."""
    q, width = indices.shape
    kept = indices != np.arange(q)[:, None]
    kept[kept.all(axis=1), -1] = False
    return distances[kept].reshape(q, width - 1), indices[kept].reshape(q, width - 1)
