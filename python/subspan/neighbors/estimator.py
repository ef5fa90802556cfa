"""The neighbours of fitted rows, by scikit-learn's protocol."""

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from subspan import _arrays, _checks, knn, radius_neighbors
from subspan._estimator import Estimator, check_names, not_fitted
from subspan._rows import as_rows, check_finite, column_names
from subspan.errors import InvalidArgumentError
from subspan.neighbors.graphs import csr_of

__all__ = ["NearestNeighbors"]

METRICS = ("euclidean", "sqeuclidean", "inner_product", "cosine")
MODES = ("connectivity", "distance")


class NearestNeighbors(Estimator):
    """Nearest rows with the methods of ``sklearn.neighbors.NearestNeighbors``.

    The search is that of `subspan.knn`: exact, ties by the smaller index, one result for any number
    of threads.

    Parameters
    ----------
    n_neighbors : int
        How many, where a call does not say.
    radius : float
        How far, where a call does not say.
    metric : {"euclidean", "sqeuclidean", "inner_product", "cosine"}
    precision : {"exact", "certified", "fast"}
        As in `subspan.knn`.

    Attributes
    ----------
    n_samples_fit_, n_features_in_ : int
        Rows and columns of fit.
    feature_names_in_ : ndarray of object, shape (d,)
        Column names, where fit got a data frame.

    Notes
    -----
    What the methods that search take:

    X : array_like, shape (q, d), optional
        None: the fitted rows, none of which is its own neighbour.
    n_neighbors : int, optional
        None: that of the constructor. At most the number of rows that there are.
    radius : float, optional
        None: that of the constructor. A distance at the radius counts; of inner products those
        that are at least as large.
    return_distance : bool
        False: indices alone.
    mode : {"connectivity", "distance"}
        Weight 1, or the distance.
    sort_results : bool
        Taken for scikit-learn's sake: neighbours are always nearest first.

    Fit keeps a reference to the rows (a copy where they are no floating-point array) and builds no
    tree: a query costs 2 n d flops.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.neighbors import NearestNeighbors
    >>> nearest = NearestNeighbors(n_neighbors=2).fit(np.array([[0.0], [1.0], [3.0]]))
    >>> distances, indices = nearest.kneighbors(np.array([[0.9]]))
    >>> indices
    array([[1, 0]])
    >>> nearest.kneighbors(n_neighbors=1, return_distance=False).tolist()
    [[1], [0], [1]]
    """

    n_samples_fit_: int
    _fitted_rows: Any

    def __init__(
        self,
        n_neighbors: int = 5,
        *,
        radius: float = 1.0,
        metric: str = "euclidean",
        precision: str = "exact",
    ) -> None:
        self.n_neighbors = n_neighbors
        self.radius = radius
        self.metric = metric
        self.precision = precision

    def fit(self, X: Any, y: Any = None) -> Self:  # noqa: ARG002 (scikit-learn's signature)
        """Keep rows to be searched.

        Parameters
        ----------
        X : array_like, shape (n, d)
            Floating-point rows of numpy or torch; integers, lists and data frames become float64.
            Finite; n >= 1, d >= 1.
        y : None
            Taken for scikit-learn's sake.

        Returns
        -------
        self

        Raises
        ------
        InvalidArgumentError
            If a parameter, a shape or a value is out of its range.
        DtypeError
            If X is sparse or not made of numbers.
        """
        function = "NearestNeighbors.fit"
        _checks.integer(function, "n_neighbors", self.n_neighbors, low=1)
        _checks.real(function, "radius", self.radius)
        _checks.choice(function, "metric", self.metric, METRICS)
        _checks.choice(function, "precision", self.precision, ("exact", "certified", "fast"))
        rows = as_rows(X, function)
        check_finite(rows, function)
        vars(self).pop("feature_names_in_", None)
        if (names := column_names(X)) is not None:
            self.feature_names_in_ = names
        self._fitted_rows = rows
        self.n_samples_fit_, self.n_features_in_ = (int(extent) for extent in rows.shape)
        return self

    def kneighbors(
        self, X: Any = None, n_neighbors: int | None = None, return_distance: bool = True
    ) -> Any:
        """Return the nearest fitted rows of rows; the parameters are those of the class.

        Returns
        -------
        distances, indices : arrays of the library of the rows, shape (q, n_neighbors)
            Nearest first; float32 (of float64 rows float64), and int64.

        Raises
        ------
        InvalidArgumentError
            If there are not so many rows, or the columns are not those of fit, or a value is not
            finite.
        """
        function = "NearestNeighbors.kneighbors"
        x, y = self._pair(X, function)
        others = self.n_samples_fit_ - (X is None)
        wanted = self.n_neighbors if n_neighbors is None else n_neighbors
        k = _checks.integer(function, "n_neighbors", wanted, low=1)
        if k > others:
            raise InvalidArgumentError(
                f"[{function}] n_neighbors must be in 1..{others}, the rows that may be "
                f"neighbours, got {k} (n_samples_fit = {self.n_samples_fit_})"
            )
        found = knn(x, y, k=k, metric=self.metric, precision=self.precision)
        return tuple(found) if return_distance else found.indices

    def radius_neighbors(
        self,
        X: Any = None,
        radius: float | None = None,
        return_distance: bool = True,
        sort_results: bool = True,  # noqa: ARG002 (scikit-learn's signature)
    ) -> Any:
        """Return the fitted rows within a radius of rows; the parameters are those of the class.

        Returns
        -------
        distances, indices : ndarrays of object, shape (q,)
            An ndarray for every row, nearest first.
        """
        found = self._within(X, radius, "NearestNeighbors.radius_neighbors")
        distances, indices, offsets = map(_arrays.to_numpy, found)
        parts = [_pieces(each, offsets) for each in (distances, indices)]
        return tuple(parts) if return_distance else parts[1]

    def kneighbors_graph(
        self, X: Any = None, n_neighbors: int | None = None, mode: str = "connectivity"
    ) -> Any:
        """Return the graph to the nearest fitted rows; the parameters are those of the class.

        Returns
        -------
        scipy.sparse.csr_array, shape (q, n)
            Distances of zero are stored.
        """
        _checks.choice("NearestNeighbors.kneighbors_graph", "mode", mode, MODES)
        found = self.kneighbors(X, n_neighbors)
        distances, indices = map(_arrays.to_numpy, found)
        offsets = np.arange(len(indices) + 1, dtype=np.int64) * indices.shape[1]
        weights = distances.ravel() if mode == "distance" else None
        return csr_of(weights, indices.ravel(), offsets, self.n_samples_fit_)

    def radius_neighbors_graph(
        self,
        X: Any = None,
        radius: float | None = None,
        mode: str = "connectivity",
        sort_results: bool = True,  # noqa: ARG002 (scikit-learn's signature)
    ) -> Any:
        """Return the graph to fitted rows within a radius; the parameters are those of the class.

        Returns
        -------
        scipy.sparse.csr_array, shape (q, n)
            Distances of zero are stored.
        """
        function = "NearestNeighbors.radius_neighbors_graph"
        _checks.choice(function, "mode", mode, MODES)
        found = self._within(X, radius, function)
        distances, indices, offsets = map(_arrays.to_numpy, found)
        weights = distances if mode == "distance" else None
        return csr_of(weights, indices, offsets, self.n_samples_fit_)

    def __sklearn_is_fitted__(self) -> bool:
        """Return whether rows have been kept."""
        return "_fitted_rows" in vars(self)

    def _within(self, X: Any, radius: float | None, function: str) -> Any:
        x, y = self._pair(X, function)
        limit = self.radius if radius is None else radius
        return radius_neighbors(x, y, radius=limit, metric=self.metric)

    def _pair(self, X: Any, function: str) -> tuple[Any, Any]:
        """Return queries and fitted rows in one dtype; the fitted rows and None for X = None."""
        if "_fitted_rows" not in vars(self):
            raise not_fitted(self, function.rpartition(".")[2])
        fitted = self._fitted_rows
        if X is None:
            return fitted, None
        x = as_rows(X, function)
        check_finite(x, function)
        if x.shape[1] != self.n_features_in_:
            raise InvalidArgumentError(
                f"[{function}] X must have as many columns as in fit: X has {x.shape[1]} features, "
                f"but NearestNeighbors is expecting {self.n_features_in_} features as input"
            )
        check_names(self, column_names(X), function)
        _arrays.require_same(function, fitted=fitted, X=x)
        if _arrays.dtype_name(x) != _arrays.dtype_name(fitted):
            return _to_float64(x), _to_float64(fitted)
        return x, fitted


def _to_float64(x: Any) -> Any:
    return x.double() if _arrays.library_of(x) == "torch" else x.astype(np.float64)


def _pieces(values: NDArray[Any], offsets: NDArray[np.int64]) -> NDArray[np.object_]:
    """Return the parts of an array between offsets as elements of an array."""
    out = np.empty(len(offsets) - 1, dtype=object)
    for row in range(len(out)):
        out[row] = values[offsets[row] : offsets[row + 1]]
    return out
