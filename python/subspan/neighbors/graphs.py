"""Graphs of nearest neighbours as scipy CSR arrays."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from subspan import _arrays, _checks, knn

__all__ = ["csr_of", "knn_graph"]


def knn_graph(
    x: Any,
    k: int,
    *,
    kind: str = "directed",
    metric: str = "euclidean",
    mode: str = "distance",
    precision: str = "exact",
) -> Any:
    """Return the graph whose edges lead from every row to its k nearest other rows.

    Parameters
    ----------
    x : array (n, d)
        As in `subspan.knn`.
    k : int
        At least 1; where there are fewer other rows, all of them.
    kind : {"directed", "union", "mutual"}
        Edges i to j where j is one of i's neighbours; where this or the reverse holds; where both
        do. The last two are symmetric.
    metric : {"euclidean", "sqeuclidean", "inner_product", "cosine"}
    mode : {"distance", "connectivity"}
        Weights of the edges: distances (similarities for inner products), or 1. Distances of zero
        are stored.
    precision : {"exact", "certified", "fast"}
        As in `subspan.knn`.

    Returns
    -------
    scipy.sparse.csr_array, shape (n, n)
        Columns ascend within a row; float32, of float64 rows float64.

    Raises
    ------
    InvalidArgumentError
        k is below 1 or a name is unknown.
    DtypeError
        x is no array or of a dtype that is not served.
    UnsupportedError
        x is on a CUDA device, or requires a gradient.

    Notes
    -----
    The search, 2 n^2 d flops, and a sort of the edges. scipy's own ``maximum`` of the graph and its
    transpose would drop edges of length zero.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.neighbors import knn_graph
    >>> x = np.array([[0.0], [1.0], [3.0]])
    >>> knn_graph(x, 1).toarray()
    array([[0., 1., 0.],
           [1., 0., 0.],
           [0., 2., 0.]])
    >>> knn_graph(x, 1, kind="union", mode="connectivity").toarray()
    array([[0., 1., 0.],
           [1., 0., 1.],
           [0., 1., 0.]])
    """
    function = "knn_graph"
    _checks.choice(function, "kind", kind, ("directed", "union", "mutual"))
    _checks.choice(function, "mode", mode, ("distance", "connectivity"))
    distances, indices = map(_arrays.to_numpy, knn(x, k=k, metric=metric, precision=precision))
    n = len(indices)
    there = indices >= 0
    rows = np.repeat(np.arange(n), there.sum(axis=1))
    edges = (rows, indices[there], distances[there])
    if kind != "directed":
        edges = _both_ways(*edges, once=kind == "union")
    rows, columns, weights = edges
    order = np.lexsort((columns, rows))
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=n))])
    return csr_of(
        weights[order] if mode == "distance" else None, columns[order], offsets.astype(np.int64), n
    )


def csr_of(
    weights: NDArray[Any] | None,
    columns: NDArray[np.int64],
    offsets: NDArray[np.int64],
    width: int,
) -> Any:
    """Return a scipy CSR array; without weights, of ones."""
    from scipy.sparse import csr_array

    if weights is None:
        weights = np.ones(len(columns))
    return csr_array((weights, columns, offsets), shape=(len(offsets) - 1, width))


def _both_ways(
    rows: NDArray[np.int64], columns: NDArray[np.int64], weights: NDArray[Any], *, once: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[Any]]:
    """Return the edges that are there in one direction (`once`) or in both, in both directions.

    The distance of a pair has the same bits from either side, so that either will do.
    """
    from_to = np.concatenate([rows, columns]), np.concatenate([columns, rows])
    order = np.lexsort((from_to[1], from_to[0]))
    source, target = (end[order] for end in from_to)
    weight = np.concatenate([weights, weights])[order]
    again = np.zeros(len(order), dtype=bool)
    again[1:] = (source[1:] == source[:-1]) & (target[1:] == target[:-1])
    kept = ~again if once else again
    return source[kept], target[kept], weight[kept]
