"""Concepts: labels or values of rows, and the joint moments of rows and concept."""

from collections.abc import Iterator
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from subspan import Moments, eigh
from subspan._arrays import library_of, to_numpy
from subspan._rows import float64_block, row_blocks
from subspan._spectral import EPS
from subspan.errors import DtypeError, InvalidArgumentError

Floats = NDArray[np.float64]
KINDS = ("auto", "labels", "values")


class Target(NamedTuple):
    """The concept of some rows: labels or values, the other is None."""

    labels: NDArray[Any] | None = None  # (n,)
    values: Floats | None = None  # (n, k)


class Sample(NamedTuple):
    """Rows, their concept, their weights (None: ones), and domains where they matter."""

    rows: Any
    target: Target
    weights: Any
    domains: NDArray[Any] | None = None

    def blocks(self) -> Iterator["Sample"]:
        """Yield the rows block by block, in float64 of numpy."""
        weights = None if self.weights is None else float64_block(self.weights)
        for start, stop in row_blocks(self.rows):
            part = self._replace(weights=weights).take(slice(start, stop))
            yield part._replace(rows=float64_block(part.rows))

    def take(self, which: Any) -> "Sample":
        """Return some of the rows."""

        def taken(part: Any) -> Any:
            return None if part is None else part[which]

        target = Target(*map(taken, self.target))
        return Sample(self.rows[which], target, taken(self.weights), taken(self.domains))


def read_target(y: Any, n: int, function: str, kind: str) -> Target:
    """Return ``y`` as labels or as values of n rows."""
    if y is None:
        raise InvalidArgumentError(
            f"[{function}] y must be the concept of every row: it requires y to be passed, but the "
            "target y is None"
        )
    array = _array("y", y, n, function)
    if kind == "auto":
        kind = "labels" if array.ndim == 1 and array.dtype.kind != "f" else "values"
    if kind == "labels":
        return Target(labels=_labels("y", array, function))
    return Target(values=_values(array, function))


def read_labels(name: str, y: Any, n: int, function: str) -> NDArray[Any]:
    """Return ``y`` as labels of n rows."""
    return _labels(name, _array(name, y, n, function), function)


def _array(name: str, y: Any, n: int, function: str) -> NDArray[Any]:
    if hasattr(y, "tocsr"):
        raise DtypeError(f"[{function}] {name} must be a dense array, got a sparse one")
    array = np.asarray(to_numpy(y) if library_of(y) else y)
    if array.ndim not in {1, 2} or array.shape[0] != n or 0 in array.shape[1:]:
        raise InvalidArgumentError(
            f"[{function}] {name} must have shape ({n},) or ({n}, k), one entry per row of X, got "
            f"{array.shape}"
        )
    return array


def _labels(name: str, array: NDArray[Any], function: str) -> NDArray[Any]:
    if array.ndim != 1:
        raise InvalidArgumentError(
            f"[{function}] {name} must have one axis to be labels, got shape {array.shape}. "
            "Several concepts at once are values"
        )
    if array.dtype.kind == "O":
        kinds = {type(label) for label in array.tolist()}
        if len(kinds) > 1 or not kinds <= {str, int, bool}:
            raise DtypeError(
                f"[{function}] {name} must have labels of one type, integers or strings, got "
                f"{', '.join(sorted(kind.__name__ for kind in kinds))}. Unknown label type: name "
                "what is missing, or drop such rows"
            )
        array = np.asarray(array.tolist())
    if array.dtype.kind not in "biufUS":
        raise DtypeError(f"[{function}] {name} must be integers or strings, got {array.dtype}")
    if array.dtype.kind == "f":
        _check_rows(np.asarray(np.isfinite(array)), function)
    return array


def _values(array: NDArray[Any], function: str) -> Floats:
    if array.dtype.kind not in "biuf":
        raise DtypeError(f"[{function}] y must be real numbers to be values, got {array.dtype}")
    values = array.astype(np.float64).reshape(len(array), -1)
    _check_rows(np.asarray(np.isfinite(values).all(axis=1)), function)
    return values


def _check_rows(finite: NDArray[np.bool_], function: str) -> None:
    if not finite.all():
        raise InvalidArgumentError(
            f"[{function}] y must be finite, got NaN or infinity (inf) in row "
            f"{int(np.argmin(finite))}"
        )


class Regression(NamedTuple):
    """What the least-squares fit of a concept on rows is made of, from weighted sums."""

    mean: Floats  # (d,)
    covariance: Floats  # (d, d)
    target_mean: Floats  # (k,)
    cross: Floats  # (d, k)
    target_variance: float  # summed over the concept's columns


class Concept:
    """Moments of rows jointly with those of their concept; exact for any parts, mergeable."""

    def __init__(self) -> None:
        self.rows = Moments(precision="float64")
        self.target: Moments | None = None  # of values; those of labels are counts of groups

    @classmethod
    def of_groups(cls, moments: Moments) -> Self:
        """Return the concept that the groups of a state are, sharing the state."""
        self = cls()
        self.rows = moments
        return self

    def update(self, sample: Sample) -> Self:
        """Add rows, which are float64 of numpy."""
        x, (labels, values), weights, _ = sample
        if labels is not None:
            self.rows.update(x, weights, groups=labels)
        else:
            self.rows.update(x, weights, y=values)
            self.target = (self.target or Moments(precision="float64")).update(values, weights)
        return self

    def merge(self, other: "Concept") -> Self:
        """Add the rows of another state, which is left as it is."""
        self.rows.merge(other.rows)
        if other.target is not None:
            self.target = (self.target or Moments(precision="float64")).merge(other.target)
        return self

    def check_kind(self, target: Target, function: str) -> None:
        """Raise unless ``target`` is of the kind that was seen before."""
        if self.rows.count == 0:
            return
        if self.target is not None:
            had = f"values of {self.target.n_features} columns"
        else:
            had = _kind_of(self.rows.group_labels)
        if target.values is not None:
            came = f"values of {target.values.shape[1]} columns"
        else:
            came = _kind_of(target.labels)
        if had != came:
            raise InvalidArgumentError(f"[{function}] y must be {had} as before, got {came}")

    @property
    def classes(self) -> NDArray[Any] | None:
        """Labels in ascending order, None for values."""
        return None if self.target is not None else np.sort(self.rows.group_labels)

    def root(self, function: str) -> Floats:
        """Return H (d, q) with ``H H^T = C Z^+ C^T``, C = Cov(x, z) and Z = Cov(z).

        Its columns span those of C, and do not depend on the scale of z: the singular values of
        Cov(x)^-1/2 H are the canonical correlations of x and z. z is one-hot for labels, where H is
        the root of the scatter between the classes.
        """
        if self.target is not None:
            return self.rows.cross_covariance() @ self._whitener(function)
        apart = self.gains(function)
        order = np.argsort(self.rows.group_labels)
        size = np.sqrt(self.rows.group_weights[order] / self.rows.denominator())
        # The sum of the one-hot columns is constant, so one direction holds nothing but rounding:
        # the Householder reflection of `size` to the last axis leaves it in the last column.
        axis = size / np.linalg.norm(size)
        axis[-1] += 1.0
        root = (apart * size[:, None]).T
        root -= np.outer(root @ axis, axis / axis[-1])
        return root[:, :-1]

    def noise(self, smallest: float) -> float:
        """Return up to where a correlation is rounding; ``smallest``: deviation of a direction."""
        spread = float(np.sqrt(np.trace(self.rows.covariance()) + self.rows.mean @ self.rows.mean))
        return self.rows.n_features * EPS * spread / smallest

    def gains(self, function: str) -> Floats:
        """Return Z^+ C^T (k, d): how the mean of x goes with each class or unit of a column."""
        if self.target is not None:
            return self._whitener(function) @ self.root(function).T
        if len(self.rows.group_labels) < 2:
            raise InvalidArgumentError(f"[{function}] y must have at least 2 classes, got 1 class")
        order = np.argsort(self.rows.group_labels)
        return self.rows.group_means[order] - self.rows.mean

    def _whitener(self, function: str) -> Floats:
        """Return T (k, q) with T T^T = Z^+, free of the scale of the columns."""
        assert self.target is not None
        covariance = self.target.covariance()
        deviation = np.sqrt(np.diag(covariance))
        # A constant column has the variance that rounding of its mean leaves.
        varies = deviation > 4.0 * EPS * np.abs(self.target.mean)
        if not varies.any():
            raise InvalidArgumentError(f"[{function}] y must vary, got rows that are all equal")
        scale = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=varies)
        values, vectors = eigh(covariance * scale * scale[:, None])[:2]
        kept = values > len(values) * EPS * values[-1]
        result: Floats = scale[:, None] * vectors[:, kept] / np.sqrt(values[kept])
        return result

    def regression(self, classes: NDArray[Any] | None) -> Regression:
        """Return the sums of a fit; ``classes`` are the columns of one-hot labels."""
        covariance = self.rows.covariance(ddof=0)
        if self.target is not None:
            target_mean, cross = self.target.mean, self.rows.cross_covariance(ddof=0)
            variance = float(np.trace(self.target.covariance(ddof=0)))
        else:
            assert classes is not None
            place = np.searchsorted(classes, self.rows.group_labels)
            target_mean, cross = np.zeros(len(classes)), np.zeros((len(covariance), len(classes)))
            target_mean[place] = self.rows.group_weights / self.rows.weight_sum
            cross[:, place] = (self.rows.group_means - self.rows.mean).T * target_mean[place]
            variance = float(np.sum(target_mean * (1.0 - target_mean)))
        return Regression(self.rows.mean, covariance, target_mean, cross, variance)


def _kind_of(labels: Any) -> str:
    return "labels that are strings" if labels.dtype.kind in "US" else "labels that are numbers"
