"""What erasers share: learning from rows and a concept, in parts; maps of low rank."""

from abc import abstractmethod
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from subspan import Moments
from subspan._affine import low_rank_residual
from subspan._checks import choice
from subspan._moments_estimator import Fitted, MomentsEstimator, check_count
from subspan._rows import check_finite
from subspan.erasure._concept import KINDS, Concept, Sample, Target, read_target

Floats = NDArray[np.float64]


class ConceptEstimator(MomentsEstimator):
    """A transformer that learns from the moments of rows and of a concept, and keeps the shape."""

    concept: str
    mean_: Fitted[NDArray[Any]] = Fitted()
    n_samples_: Fitted[int] = Fitted()
    _concept: Concept

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Learn from rows and their concept, forgetting what was learnt before.

        Parameters
        ----------
        X : array_like, shape (n, d)
            Rows of a numpy, torch or cupy array (f16, bf16, f32, f64; integers and lists become
            float64), or of a data frame. Memory-mapped arrays are read in blocks. Finite; n >= 2.
        y : array_like, shape (n,) or (n, k)
            The concept: labels or values, see the parameter ``concept``. Must vary.
        sample_weight : array_like of float, shape (n,), or None
            Frequency weights >= 0: weight 2 means that the row occurs twice. Their sum must
            exceed 1.

        Returns
        -------
        self

        Raises
        ------
        InvalidArgumentError
            If a parameter, a shape or a value is out of its range, or ``y`` does not vary.
        DtypeError
            If ``X`` is sparse or not made of numbers, or ``y`` is of mixed types.
        """
        return self._refit(X, self._take(X, y, sample_weight, "fit"))

    def update(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Add rows to what was learnt; exact, whatever the order and the sizes of the parts.

        The state is updated at once, the attributes are worked out when one of them is asked
        for. Classes may appear in any part.

        Parameters
        ----------
        X : array_like, shape (n, d)
            Rows, as in fit; one row is enough here.
        y : array_like, shape (n,) or (n, k)
            The concept, of the kind that it was before.
        sample_weight : array_like of float, shape (n,), or None
            Frequency weights, as in fit.

        Returns
        -------
        self

        Raises
        ------
        InvalidArgumentError
            If a parameter, a shape or a value is out of its range; the state is then unchanged.
        DtypeError
            If ``X`` is sparse or not made of numbers, or ``y`` is of mixed types.
        """
        return self._extend(X, self._take(X, y, sample_weight, "update"))

    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Do what `update` does, under the name that scikit-learn gives it."""
        return self.update(X, y, sample_weight)

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:
        """Return the names of the columns of transform, which are those of the input.

        Parameters
        ----------
        input_features : array_like of str or None
            Names of the columns of the input; only checked against those of fit.

        Returns
        -------
        ndarray of object (str), shape (d,)

        Raises
        ------
        InvalidArgumentError
            If the names do not fit the data of fit.
        """
        default = super().get_feature_names_out(input_features)
        if input_features is not None:
            return np.asarray(input_features, dtype=object)
        fitted = vars(self).get("feature_names_in_")
        plain = np.array([f"x{i}" for i in range(len(default))], dtype=object)
        return plain if fitted is None else np.asarray(fitted)

    def __sklearn_tags__(self) -> Any:
        """Return scikit-learn's description of this estimator; called by scikit-learn only."""
        tags = super().__sklearn_tags__()
        tags.target_tags.required = tags.target_tags.multi_output = True
        return tags

    def _output_width(self) -> int:
        self._finish("get_feature_names_out")
        return self.n_features_in_

    def _check_params(self, n_features: int, n_samples: int | None) -> None:  # noqa: ARG002
        choice(type(self).__name__, "concept", self.concept, KINDS)

    def _products(self) -> str:
        return "float64"

    def _take(self, X: Any, y: Any, sample_weight: Any, method: str) -> Sample:
        """Return rows, concept and weights, all checked, so that nothing fails half way."""
        first = method == "fit" or "n_features_in_" not in vars(self)
        rows, weights = self._intake(X, sample_weight, method, first=first)
        self._check_params(int(rows.shape[1]), int(rows.shape[0]) if method == "fit" else None)
        function = f"{type(self).__name__}.{method}"
        target = self._target(y, int(rows.shape[0]), function)
        if not first:
            self._known().check_kind(target, function)
        check_finite(rows, function)
        return Sample(rows, target, weights)

    def _target(self, y: Any, n: int, function: str) -> Target:
        return read_target(y, n, function, self.concept)

    def _refit(self, source: Any, sample: Sample) -> Self:
        """Learn from ``sample``, read from ``source``, alone."""
        check_count(self, sample.rows.shape[0])
        self._restart()
        try:
            self._remember(source, sample.rows)
            self._add(sample)
            self._finish("moments_")
        except BaseException:
            self._restart()  # rather unfitted than half fitted
            raise
        return self

    def _extend(self, source: Any, sample: Sample) -> Self:
        """Learn from ``sample``, read from ``source``, too."""
        self._add(sample)
        if "n_features_in_" not in vars(self):
            self._remember(source, sample.rows)
        self._widen(sample.rows)
        self._forget()
        return self

    def _known(self) -> Concept:
        """Return the state; one from elsewhere has its concept in its groups."""
        if "_concept" not in vars(self):
            self._concept = Concept.of_groups(self._state("update"))
        return self._concept

    def _add(self, sample: Sample) -> None:
        concept = Concept() if "moments_" not in vars(self) else self._known()
        for part in sample.blocks():
            concept.update(part)
        self._keep(concept)

    def _keep(self, concept: Concept) -> None:
        self._concept = concept
        vars(self)["moments_"] = concept.rows

    def _restart(self) -> None:
        super()._restart()
        vars(self).pop("_concept", None)


class Projector(NamedTuple):
    """``x - patterns^T filters (x - mean)``; filters patterns^T is the identity."""

    filters: Floats  # (q, d)
    patterns: Floats  # (q, d)
    mean: Floats  # (d,)


class LinearEraser(ConceptEstimator):
    """An eraser whose map is the identity less an oblique or orthogonal projector."""

    filters_: Fitted[NDArray[Any]] = Fitted()
    patterns_: Fitted[NDArray[Any]] = Fitted()
    classes_: Fitted[NDArray[Any]] = Fitted()
    rank_: Fitted[int] = Fitted()
    _projector: Fitted[Projector] = Fitted()

    @property
    def projection_(self) -> NDArray[Any]:
        """The map of ``x - mean_`` as a matrix (d, d), applied from the left."""
        projector = self._projector
        whole = np.eye(projector.filters.shape[1]) - projector.patterns.T @ projector.filters
        return whole.astype(self._dtype)

    def transform(self, X: Any) -> Any:
        """Return rows without the concept.

        Parameters
        ----------
        X : array_like, shape (n, d)
            Rows; n >= 1.

        Returns
        -------
        array of the library, device and dtype of ``X``, shape (n, d)
            A data frame where ``set_output`` asks for one. Differentiable for a torch tensor that
            requires a gradient.

        Raises
        ------
        InvalidArgumentError
            If the columns are not those of fit, or a value is not finite.
        """
        rows = self._rows(X, "transform")
        filters, patterns, mean = self._projector
        function = f"{type(self).__name__}.transform"
        return self._wrap(low_rank_residual(rows, mean, filters.T, patterns, function=function), X)

    @abstractmethod
    def _project(self, concept: Concept, function: str) -> tuple[Floats, Floats, dict[str, Any]]:
        """Return filters (q, d), patterns (q, d) and further attributes."""

    def _solve(self, moments: Moments) -> dict[str, Any]:
        concept = self._known()
        filters, patterns, further = self._project(concept, f"{type(self).__name__}.fit")
        mean, classes = np.array(moments.mean), concept.classes
        return {
            "filters_": filters,
            "patterns_": patterns,
            "rank_": len(filters),
            "mean_": mean,
            "n_samples_": moments.count,
            **({} if classes is None else {"classes_": classes}),
            **further,
            "_projector": Projector(filters, patterns, mean),
        }
