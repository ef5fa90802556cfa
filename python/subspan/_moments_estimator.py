"""Estimators whose fit is a function of the moments of the rows: PCA, whitening."""

from abc import abstractmethod
from typing import Any, Generic, Self, TypeVar, overload

import numpy as np

from subspan._arrays import dtype_name, library_of
from subspan._checks import choice
from subspan._estimator import Estimator, Transformer, check_names, not_fitted
from subspan._ops.moments import Moments
from subspan._rows import as_rows, as_weights, column_names
from subspan.errors import DtypeError, InvalidArgumentError

T = TypeVar("T")


class Fitted(Generic[T]):
    """A fitted attribute: absent before fit, worked out on first use after partial_fit.

    It is a non-data descriptor: once the value lies in the instance, this is out of the way.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        """Learn the name of the attribute."""
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: "MomentsEstimator", owner: type) -> T: ...
    def __get__(self, instance: "MomentsEstimator | None", owner: type) -> Self | T:
        """Return the value, working it out first if rows came in since."""
        if instance is None:
            return self
        instance._finish(self._name)
        try:
            value: T = vars(instance)[self._name]
        except KeyError:
            raise AttributeError(instance._absent(self._name)) from None
        return value


class MomentsEstimator(Transformer):
    """A transformer whose fit is a function of the moments of the rows alone."""

    precision: str
    moments_: Fitted[Moments] = Fitted()
    _dtype: np.dtype[Any]  # of the attributes
    _float64_rows: bool  # known to have been all float64; unknown for a state from elsewhere

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:  # noqa: ARG002
        """Learn from rows, forgetting what was learnt before.

        Parameters
        ----------
        X : array_like, shape (n, d)
            Rows of a numpy, torch or cupy array (f16, bf16, f32, f64; integers and lists become
            float64), or of a data frame. Memory-mapped arrays are read in blocks. Finite;
            n >= 2, d >= 1.
        y : None
            Taken for scikit-learn's sake.
        sample_weight : array_like of float, shape (n,), or None
            Frequency weights >= 0: weight 2 means that the row occurs twice. Their sum must
            exceed 1. Rows of weight 0 are left out.

        Returns
        -------
        self

        Raises
        ------
        InvalidArgumentError
            If a parameter, a shape or a value is out of its range.
        DtypeError
            If ``X`` is sparse or not made of numbers, or weights are of another library.
        """
        rows, weights = self._intake(X, sample_weight, "fit", first=True)
        check_count(self, rows.shape[0])
        self._check_params(rows.shape[1], rows.shape[0])
        self._restart()
        try:
            self._remember(X, rows)
            self._learn(rows, weights)
            self._finish("moments_")
        except BaseException:
            self._restart()  # rather unfitted than half fitted
            raise
        return self

    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:  # noqa: ARG002
        """Add rows to what was learnt; exact, whatever the order and the sizes of the parts.

        The state is updated at once, the attributes are worked out when one of them is asked
        for, so that many small parts cost no more than one large one.

        Parameters
        ----------
        X : array_like, shape (n, d)
            Rows, as in fit; one row is enough here.
        y : None
            Taken for scikit-learn's sake.
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
            If ``X`` is sparse or not made of numbers, or weights are of another library.
        """
        first = "n_features_in_" not in vars(self)
        rows, weights = self._intake(X, sample_weight, "partial_fit", first=first)
        self._check_params(rows.shape[1], None)
        state = Moments(precision=self._products()) if first else self._state("partial_fit")
        state.update(rows, weights)
        if first:
            self._remember(X, rows)
        self._widen(rows)
        self._forget()
        vars(self)["moments_"] = state
        return self

    @classmethod
    def from_moments(cls, moments: Moments, *args: Any, **params: Any) -> Self:
        """Return an estimator fitted on a state of moments, merged from anywhere.

        Parameters
        ----------
        moments : Moments
            State of at least two rows; copied, so that ``partial_fit`` leaves it alone.
        *args, **params
            Parameters of the constructor.

        Returns
        -------
        fitted estimator
            Its attributes are float64.

        Raises
        ------
        InvalidArgumentError
            If the state has fewer than two rows, or a parameter is out of its range.
        """
        estimator = cls(*args, **params)
        if not isinstance(moments, Moments):
            raise DtypeError(
                f"[{cls.__name__}.from_moments] moments must be a subspan.Moments, "
                f"got {type(moments).__name__}"
            )
        check_count(estimator, moments.count, "from_moments", "moments")
        estimator._check_params(moments.n_features, moments.count)
        estimator.n_features_in_ = moments.n_features
        estimator._dtype = np.dtype(np.float64)
        vars(estimator)["moments_"] = moments.copy()
        estimator._finish("moments_")
        return estimator

    def fit_transform(self, X: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """Fit on rows and return them transformed: ``fit(X).transform(X)``.

        Parameters
        ----------
        X : array_like, shape (n, d)
            Rows, as in fit.
        y : None
            Taken for scikit-learn's sake.
        sample_weight : array_like of float, shape (n,), or None
            Frequency weights, as in fit.

        Returns
        -------
        array of the library, device and dtype of ``X``, shape (n, k)
        """
        return self.fit(X, y, sample_weight).transform(X)

    @abstractmethod
    def transform(self, X: Any) -> Any:
        """Map rows; defined by the estimators."""

    # What an estimator fills in.

    @abstractmethod
    def _check_params(self, n_features: int, n_samples: int | None) -> None:
        """Raise unless the parameters suit the data (``n_samples`` None: more may follow)."""

    @abstractmethod
    def _solve(self, moments: Moments) -> dict[str, Any]:
        """Return the fitted attributes by name."""

    # Shared steps.

    def _check_precision(self) -> None:
        choice(type(self).__name__, "precision", self.precision, ("auto", "float64"))

    def _learn(self, rows: Any, weights: Any) -> None:
        vars(self)["moments_"] = Moments(precision=self._products()).update(rows, weights)

    def _products(self) -> str:
        """Return the precision that the state is asked for."""
        return self.precision

    def _coarse(self, moments: Moments) -> bool:
        """Return whether products of float32 may be in the state."""
        return moments.precision == "auto" and not vars(self).get("_float64_rows", False)

    def _state(self, method: str) -> Moments:
        state: Moments | None = vars(self).get("moments_")
        if state is None:
            raise InvalidArgumentError(
                f"[{type(self).__name__}.{method}] {self._absent('moments_')}"
            )
        return state

    def _absent(self, name: str) -> str:
        return f"{type(self).__name__} has no {name}"

    def _finish(self, wanted: str) -> None:
        """Work out the attributes that are missing; ``wanted`` is the one asked for."""
        if "n_features_in_" not in vars(self):
            raise not_fitted(self, wanted)
        if "_solution" in vars(self):
            return
        state = self._state("fit")
        if state.count < 2:
            raise not_fitted(self, wanted, f"n_samples = {state.count}, at least 2 are needed")
        self._check_weight_sum(state.weight_sum)
        self._publish(self._solve(state))

    def _check_weight_sum(self, total: float) -> None:
        if total <= 1:
            raise InvalidArgumentError(
                f"[{type(self).__name__}.fit] sample_weight must sum to more than 1, got "
                f"{total:.6g}. They are frequencies: scale them to sum to the number of rows"
            )

    def _publish(self, attributes: dict[str, Any]) -> None:
        """Store attributes; arrays of floats in the family of the input's dtype."""
        for name, value in attributes.items():
            floats = isinstance(value, np.ndarray) and value.dtype.kind == "f"
            narrow = floats and not name.startswith("_")
            vars(self)[name] = value.astype(self._dtype, copy=False) if narrow else value
        self._solution = tuple(attributes)

    def _forget(self) -> None:
        for name in (*vars(self).get("_solution", ()), "_solution"):
            vars(self).pop(name, None)

    def _restart(self) -> None:
        self._forget()
        for name in ("moments_", "n_features_in_", "feature_names_in_", "_dtype", "_float64_rows"):
            vars(self).pop(name, None)

    def _remember(self, source: Any, rows: Any) -> None:
        self.n_features_in_ = int(rows.shape[1])
        self._dtype = _family(rows)
        self._float64_rows = self._dtype == np.float64
        names = column_names(source)
        if names is not None:
            self.feature_names_in_ = names

    def _widen(self, rows: Any) -> None:
        """Take account of the dtype of further rows."""
        family = _family(rows)
        self._dtype = np.result_type(self._dtype, family)
        self._float64_rows = vars(self).get("_float64_rows", False) and family == np.float64

    def _intake(self, X: Any, sample_weight: Any, method: str, *, first: bool) -> tuple[Any, Any]:
        """Return rows and weights ready for ``Moments.update``."""
        rows = self._rows(X, method, fresh=first)
        if library_of(rows) == "torch":
            rows = rows.detach()  # what is learnt from rows has no gradient
        return rows, as_weights(rows, sample_weight, f"{type(self).__name__}.{method}")

    def _rows(self, X: Any, method: str, *, fresh: bool = False, width: int | None = None) -> Any:
        """Return ``X`` as a two-dimensional floating-point array of its library."""
        function = f"{type(self).__name__}.{method}"
        if not fresh:
            self._finish_if_unfitted(method)
        rows = as_rows(X, function)
        if not fresh:
            expected = self.n_features_in_ if width is None else width
            if rows.shape[1] != expected:
                raise InvalidArgumentError(
                    f"[{function}] X must have as many columns as in fit: X has {rows.shape[1]} "
                    f"features, but {type(self).__name__} is expecting {expected} features as "
                    "input"
                )
            if width is None:
                check_names(self, column_names(X), function)
        return rows

    def _finish_if_unfitted(self, method: str) -> None:
        if "n_features_in_" not in vars(self):
            raise not_fitted(self, method)

    def __sklearn_is_fitted__(self) -> bool:
        """Return whether rows have been seen."""
        return "n_features_in_" in vars(self)


def _family(rows: Any) -> np.dtype[Any]:
    return np.dtype(np.float64 if dtype_name(rows) == "float64" else np.float32)


def check_count(estimator: Estimator, count: int, method: str = "fit", argument: str = "X") -> None:
    """Raise unless there are the two rows that a variance needs."""
    if count < 2:
        raise InvalidArgumentError(
            f"[{type(estimator).__name__}.{method}] {argument} must have at least 2 rows, got "
            f"n_samples = {count}: the variance of one row is undefined"
        )
