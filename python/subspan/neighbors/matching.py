"""Matching of two sets of descriptors: nearest both ways, and clearly nearer than the next."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from subspan import KNN, _arrays, _checks, knn, knn_both
from subspan.errors import DtypeError, InvalidArgumentError

__all__ = ["Match", "match"]


class Match(NamedTuple):
    """Row ``a_indices[i]`` of a belongs to row ``b_indices[i]`` of b."""

    a_indices: Any
    """(m,) int64, ascending."""
    b_indices: Any
    """(m,) int64."""
    distances: Any
    """(m,) float32, of float64 descriptors float64."""


def match(
    a: Any,
    b: Any,
    *,
    ratio: float | None = None,
    max_distance: float | None = None,
    mutual: bool = True,
    metric: str = "euclidean",
) -> Match:
    """Return pairs of descriptors that are each other's nearest, and what passes the tests.

    Row i of a and row j of b match if j is the nearest of i and (``mutual``) i the nearest of j,
    ties going to the lower index on both sides. So ``match(a, b)`` and ``match(b, a)`` hold the
    same pairs.

    Parameters
    ----------
    a : array (n, d)
        Descriptors, as in `subspan.knn`.
    b : array (m, d)
        Of the library and dtype of a.
    ratio : float, optional
        In (0, 1]: the nearest must be nearer than ratio times the second nearest, seen from a, and
        from b as well if ``mutual``. Duplicates are as near as each other: none of them matches.
        Where there is no second, the test is passed.
    max_distance : float, optional
        Pairs that are farther do not match.
    mutual : bool
        False: every row of a has its nearest, tests aside; rows of b may be there many times.
    metric : {"euclidean", "sqeuclidean", "cosine"}
        The ratio is one of these distances: of squares, take it squared.

    Returns
    -------
    Match (a_indices, b_indices, distances)
        In a's library.

    Raises
    ------
    InvalidArgumentError
        Shapes do not fit, or an argument is out of its range.
    DtypeError
        An argument is no array, or b is of another library or dtype than a.
    UnsupportedError
        An array is on a CUDA device, or requires a gradient.

    Notes
    -----
    2 n m d flops: where both have 4096 rows and more the same products serve a and b
    (`subspan.knn_both`), otherwise ``mutual`` takes twice as many. Nothing of size n m is stored.

    The ratio test: Lowe, "Distinctive image features from scale-invariant keypoints", IJCV 60,
    2004, section 7.1 (ratio 0.8, one way).

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.neighbors import match
    >>> a = np.array([[0.0, 0.0], [5.0, 5.0], [9.0, 0.0]])
    >>> b = np.array([[9.0, 1.0], [0.0, 0.5], [0.0, 0.7]])
    >>> match(a, b)
    Match(a_indices=array([0, 2]), b_indices=array([1, 0]), distances=array([0.5, 1. ]))
    >>> match(a, b, ratio=0.7).a_indices  # two rows of b are about as near to row 0
    array([2])
    """
    function = "match"
    _checks.choice(function, "metric", metric, ("euclidean", "sqeuclidean", "cosine"))
    _check(function, a, b)
    if ratio is not None:
        ratio = _checks.real(function, "ratio", ratio, low=np.nextafter(0.0, 1.0), high=1.0)
    if max_distance is not None:
        max_distance = _checks.real(function, "max_distance", max_distance, low=0.0)
    how: dict[str, Any] = {
        "k": 1 if ratio is None else 2,
        "metric": metric,
        "dtype": "float64",
    }
    found = knn_both(a, b, **how) if mutual else (knn(a, b, **how),)
    forth, *back = (KNN(*map(_arrays.to_numpy, each)) for each in found)
    rows = np.flatnonzero(_distinct(forth, ratio))
    columns = forth.indices[rows, 0]
    for other in back:
        agreed = _distinct(other, ratio)[columns] & (other.indices[columns, 0] == rows)
        rows, columns = rows[agreed], columns[agreed]
    distances = forth.distances[rows, 0]
    if max_distance is not None:
        near = distances <= max_distance
        rows, columns, distances = rows[near], columns[near], distances[near]
    if _arrays.dtype_name(a) != "float64":
        with np.errstate(over="ignore"):
            distances = distances.astype(np.float32)
    return Match(*(_arrays.from_numpy(a, out) for out in (rows, columns, distances)))


def _check(function: str, a: Any, b: Any) -> None:
    """Name a and b where the search would call them x and y."""
    _arrays.require_same(function, a=a, b=b)
    for name, x in (("a", a), ("b", b)):
        _checks.ndim(function, name, x, 2)
        _arrays.exportable(function, name, x)
    if (wanted := _arrays.dtype_name(a)) != (came := _arrays.dtype_name(b)):
        raise DtypeError(f"[{function}] b must be {wanted} like a, got {came}. Convert it first")
    if (d := int(a.shape[1])) != (width := int(b.shape[1])):
        raise InvalidArgumentError(f"[{function}] b must have d = {d} columns like a, got {width}")


def _distinct(found: KNN, ratio: float | None) -> NDArray[np.bool_]:
    """Return whether there is a nearest row, and it passes the ratio test."""
    there: NDArray[np.bool_] = found.indices[:, 0] >= 0
    if ratio is not None:
        there &= found.distances[:, 0] < ratio * found.distances[:, 1]
    return there
