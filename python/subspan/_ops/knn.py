"""Nearest rows: the k nearest, or all within a radius, by distances that are proved."""

from __future__ import annotations

from typing import Any, NamedTuple

from subspan import _arrays, _checks, _core
from subspan._ops import _neighbors

__all__ = ["KNN", "Radius", "knn", "knn_both", "radius_neighbors"]


class KNN(NamedTuple):
    """Row i of x is ``distances[i, j]`` away from row ``indices[i, j]`` of y, nearest first."""

    distances: Any
    """(q, k) float32, of float64 rows float64; inf (-inf for inner products) where index is -1."""
    indices: Any
    """(q, k) int64, -1 where there are no more neighbours."""


class Radius(NamedTuple):
    """Row i of x has the neighbours from ``offsets[i]`` to ``offsets[i + 1] - 1``."""

    distances: Any
    """(nnz,) float32, of float64 rows float64."""
    indices: Any
    """(nnz,) int64."""
    offsets: Any
    """(q + 1,) int64, from 0 to nnz."""

    def to_scipy(self, n: int) -> Any:
        """Return a scipy CSR array (q, n) of the distances; zeros are stored.

        Parameters
        ----------
        n : int
            Rows of y; more than the largest index.

        Returns
        -------
        scipy.sparse.csr_array
            Every row nearest first, so that its indices are in no order.
        """
        from scipy.sparse import csr_array

        distances, indices, offsets = map(_arrays.to_numpy, self)
        least = int(indices.max()) + 1 if indices.size else 0
        n = _checks.integer("to_scipy", "n", n, low=least)
        return csr_array((distances, indices, offsets), shape=(len(offsets) - 1, n))


def knn(
    x: Any,
    y: Any = None,
    *,
    k: int,
    metric: str = "euclidean",
    exclude_self: bool | None = None,
    mask: Any = None,
    ids: Any = None,
    precision: str = "exact",
    dtype: str | None = None,
) -> KNN:
    """Return the k nearest rows of y for every row of x, in an order without ties.

    ======================= ===========================================
    metric                  distance of the rows a and b
    ======================= ===========================================
    ``"euclidean"``         ``|a - b|``
    ``"sqeuclidean"``       ``|a - b|^2``
    ``"inner_product"``     ``<a, b>``; the largest is the nearest
    ``"cosine"``            ``1 - <a, b> / (|a| |b|)``; 1 if one is zero
    ======================= ===========================================

    The order: the smaller distance first, as computed in float64 from the rows as they are; of
    equal distances the smaller index. So the result is one and the same for any number of threads,
    any other rows of x and any layout, and equal rows of y come by index.

    Parameters
    ----------
    x : array (q, d)
        float16, bfloat16, float32, float64, int8 or uint8 of numpy, torch or another library with
        DLPack (CPU); any strides, read-only too.
    y : array (n, d), optional
        Of the library and dtype of x; fewer than 2^32 rows. None: x itself.
    k : int
        At least 1. Where there are fewer neighbours, index -1 and distance inf (-inf for
        inner products) fill up.
    metric : {"euclidean", "sqeuclidean", "inner_product", "cosine"}
    exclude_self : bool, optional
        Row i is no neighbour of row i; its duplicates are. None: where y is None. True is for
        that case only.
    mask : array of bool (n,) or (q, n), optional
        True where a row of y may be a neighbour: of any row of x, or of row i.
    ids : array of int64 (m,), optional
        The rows of y that may be neighbours, in any order; together with mask, those that both
        allow.
    precision : {"exact", "certified", "fast"}
        "exact": the k nearest by the distances in float64, proved for every row or searched again.
        "certified": the same result, after a first pass by products in bfloat16 where the CPU
        multiplies those.
        "fast": of the nearest by products in float32, without the proof; the distances and their
        order are in float64 all the same.
    dtype : {"float32", "float64"}, optional
        Of the distances, which are computed in float64. None: float64 for rows of float64, float32
        for others. In float32, squares beyond 3e38 are inf; indices and order are not affected.

    Returns
    -------
    KNN (distances, indices)
        Both (q, k), in x's library.

    Raises
    ------
    InvalidArgumentError
        Shapes do not fit, k is below 1, an id is out of range, exclude_self=True comes with a y,
        or a name is unknown.
    DtypeError
        An argument is no array or of a dtype that is not served, or y of another library than x.
    UnsupportedError
        x is on a CUDA device, or requires a gradient: there is none.

    Notes
    -----
    Rows of y with NaN or infinity are never neighbours, and a row of x with one has none. With
    d = 0 all distances are 0 (cosine: 1).

    2 q n d flops in float32 (float64 for float64 and for integers with d > 257), and k distances in
    float64 for each row; nothing of size q n is stored. Memory: 16 MiB of packed y, a strip of
    packed rows, and up to 64 MiB of candidates; a mask of ids takes n bytes, of ids and a (q, n)
    mask q n. Up to 32 queries take about as long as one read of y, which is not packed for them.

    The rows are shifted by the mean of a sample of y, so a common offset does no harm. Where
    products would still cancel (far clusters, near-duplicates), tiles of differences take their
    place. More than k candidates are kept and measured again in float64, and a bound on the errors
    of rounding shows that nothing else can be as near. Rows for which it does not show it are
    searched again with more candidates, by differences and in float64, and what is then left by
    its definition.

    Selecting within tiles of a matrix product: Johnson, Douze, Jegou, "Billion-scale similarity
    search with GPUs", `arXiv:1702.08734 <https://arxiv.org/abs/1702.08734>`_. Bounds on rounding:
    Higham, "Accuracy and Stability of Numerical Algorithms", 2002, section 3.1.

    Examples
    --------
    >>> import numpy as np, subspan
    >>> y = np.array([[0.0, 0.0], [3.0, 4.0], [3.0, 4.0], [0.0, 1.0]])
    >>> distances, indices = subspan.knn(np.array([[0.0, 0.0]]), y, k=3)
    >>> distances
    array([[0., 1., 5.]])
    >>> indices
    array([[0, 3, 1]])
    >>> subspan.knn(y, k=1).indices.tolist()  # of the rows, without themselves
    [[3], [2], [1], [0]]
    >>> subspan.knn(y, k=2, ids=np.array([0, 3])).indices.tolist()  # fewer than k
    [[3, -1], [3, 0], [3, 0], [0, -1]]
    """
    function = "knn"
    rows, others, same = _neighbors.rows(function, x, y)
    k = _checks.integer(function, "k", k, low=1)
    _checks.choice(function, "metric", metric, _neighbors.METRICS)
    _checks.choice(function, "precision", precision, ("exact", "certified", "fast"))
    wanted = _neighbors.distance_dtype(function, x, dtype)
    without_self = _neighbors.exclusion(function, exclude_self, same)
    q, n = int(rows.shape[0]), int(others.shape[0])
    allowed = _neighbors.allowed(function, mask, ids, q, n)
    distances = _arrays.empty_like_on(x, (q, k), "float64")
    indices = _arrays.empty_like_on(x, (q, k), "int64")
    _core.knn(
        rows,
        others,
        allowed,
        distances,
        indices,
        metric,
        without_self,
        precision,
        _arrays.stream_of(x),
    )
    return KNN(
        _arrays.deliver(x, _neighbors.rounded(distances, wanted)),
        _arrays.deliver(x, indices),
    )


def knn_both(
    x: Any, y: Any, *, k: int, metric: str = "euclidean", dtype: str | None = None
) -> tuple[KNN, KNN]:
    """Return ``knn(x, y)`` and ``knn(y, x)`` from the same products.

    Parameters
    ----------
    x : array (q, d)
    y : array (n, d)
    k : int
    metric : {"euclidean", "sqeuclidean", "inner_product", "cosine"}
    dtype : {"float32", "float64"}, optional
        All as in `knn`.

    Returns
    -------
    tuple of KNN (distances, indices)
        For x (q, k), and for y (n, k), bit for bit what two calls of `knn` give.

    Raises
    ------
    InvalidArgumentError
        Shapes do not fit, k is below 1, or a name is unknown.
    DtypeError
        An argument is no array or of a dtype that is not served, or y of another library than x.
    UnsupportedError
        x is on a CUDA device, or requires a gradient: there is none.

    Notes
    -----
    2 q n d flops, half of those of two searches, where x and y have 4096 rows and more (and the
    metric is not "inner_product"); candidates of all rows in memory, up to 1 GiB. Otherwise this
    makes two searches.

    Examples
    --------
    >>> import numpy as np, subspan
    >>> x, y = np.array([[0.0], [4.0]]), np.array([[1.0], [3.0], [9.0]])
    >>> forth, back = subspan.knn_both(x, y, k=1)
    >>> forth.indices.tolist(), back.indices.tolist()
    ([[0], [1]], [[0], [1], [1]])
    """
    function = "knn_both"
    _arrays.require_array(function, "y", y)
    rows, others, _ = _neighbors.rows(function, x, y)
    k = _checks.integer(function, "k", k, low=1)
    _checks.choice(function, "metric", metric, _neighbors.METRICS)
    wanted = _neighbors.distance_dtype(function, x, dtype)
    results = [
        KNN(*(_arrays.empty_like_on(x, (count, k), name) for name in ("float64", "int64")))
        for count in (int(rows.shape[0]), int(others.shape[0]))
    ]
    forth, back = results
    _core.knn_both(rows, others, *forth, *back, metric, _arrays.stream_of(x))
    forth, back = (
        KNN(
            _arrays.deliver(x, _neighbors.rounded(distances, wanted)),
            _arrays.deliver(x, indices),
        )
        for distances, indices in results
    )
    return forth, back


def radius_neighbors(
    x: Any,
    y: Any = None,
    *,
    radius: float,
    metric: str = "euclidean",
    exclude_self: bool | None = None,
    mask: Any = None,
    ids: Any = None,
    dtype: str | None = None,
) -> Radius:
    """Return all rows of y within a radius of every row of x, nearest first.

    A neighbour has ``distance <= radius``, of inner products ``>= radius``. Distances, their order
    and what is never a neighbour are those of `knn`; the result depends on nothing else.

    Parameters
    ----------
    x : array (q, d)
        As in `knn`.
    y : array (n, d), optional
        None: x itself.
    radius : float
        In the unit of the metric: squared for "sqeuclidean". It is compared with the distances in
        float64.
    metric : {"euclidean", "sqeuclidean", "inner_product", "cosine"}
    exclude_self : bool, optional
    mask : array of bool (n,) or (q, n), optional
    ids : array of int64 (m,), optional
    dtype : {"float32", "float64"}, optional
        These as in `knn`.

    Returns
    -------
    Radius (distances, indices, offsets)
        In x's library; the neighbours of row i are those from ``offsets[i]`` to
        ``offsets[i + 1] - 1``.

    Raises
    ------
    InvalidArgumentError
        Shapes do not fit, radius is NaN, an id is out of range, exclude_self=True comes with a y,
        or a name is unknown.
    DtypeError
        An argument is no array or of a dtype that is not served, y of another library than x, or
        radius no number.
    UnsupportedError
        x is on a CUDA device, or requires a gradient: there is none.

    Notes
    -----
    As `knn`: 2 q n d flops, and one distance in float64 for every pair that the products do not
    show to be farther; 16 bytes for each of them besides.

    Examples
    --------
    >>> import numpy as np, subspan
    >>> y = np.array([[0.0], [1.0], [3.0], [1.0]])
    >>> near = subspan.radius_neighbors(y, radius=1.0)
    >>> near.indices
    array([1, 3, 3, 0, 1, 0])
    >>> near.offsets
    array([0, 2, 4, 4, 6])
    >>> near.distances
    array([1., 1., 0., 1., 0., 1.])
    """
    function = "radius_neighbors"
    rows, others, same = _neighbors.rows(function, x, y)
    radius = _checks.real(function, "radius", radius)
    _checks.choice(function, "metric", metric, _neighbors.METRICS)
    wanted = _neighbors.distance_dtype(function, x, dtype)
    without_self = _neighbors.exclusion(function, exclude_self, same)
    q, n = int(rows.shape[0]), int(others.shape[0])
    allowed = _neighbors.allowed(function, mask, ids, q, n)
    offsets = _arrays.empty_like_on(x, (q + 1,), "int64")
    made: list[Any] = []

    def allocate(count: int) -> tuple[Any, Any]:
        made.extend(_arrays.empty_like_on(x, (count,), name) for name in ("float64", "int64"))
        return made[0], made[1]

    _core.radius_neighbors(
        rows,
        others,
        allowed,
        radius,
        offsets,
        allocate,
        metric,
        without_self,
        _arrays.stream_of(x),
    )
    distances, indices = made
    outputs = (_neighbors.rounded(distances, wanted), indices, offsets)
    return Radius(*(_arrays.deliver(x, out) for out in outputs))
