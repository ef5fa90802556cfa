"""Estimators that keep points: what they take in fit, and what they are asked about."""

from typing import Any

import numpy as np

from subspan import _arrays
from subspan._estimator import Estimator, check_names, not_fitted
from subspan._rows import as_rows, check_finite, column_names
from subspan.errors import InvalidArgumentError

__all__ = ["PointsEstimator"]


class PointsEstimator(Estimator):
    """Points of fit, and points to be compared with them."""

    kernel: str
    bandwidth: Any
    alpha: float
    X_fit_: Any

    def __sklearn_is_fitted__(self) -> bool:
        """Return whether there are points."""
        return "X_fit_" in vars(self)

    def _taken(self, X: Any, function: str) -> Any:
        """Return the points of fit, checked, as float32 or float64."""
        rows = _wide_enough(as_rows(X, function))
        check_finite(rows, function)
        vars(self).pop("feature_names_in_", None)
        if (names := column_names(X)) is not None:
            self.feature_names_in_ = names
        self.n_features_in_ = int(rows.shape[1])
        return rows

    def _asked(self, X: Any, method: str) -> Any:
        """Return points like those of fit."""
        function = f"{type(self).__name__}.{method}"
        if not self.__sklearn_is_fitted__():
            raise not_fitted(self, method)
        rows = _wide_enough(as_rows(X, function))
        check_finite(rows, function)
        if rows.shape[1] != self.n_features_in_:
            raise InvalidArgumentError(
                f"[{function}] X must have as many columns as in fit: X has {rows.shape[1]} "
                f"features, but {type(self).__name__} is expecting {self.n_features_in_} features "
                "as input"
            )
        check_names(self, column_names(X), function)
        _arrays.require_same(function, fitted=self.X_fit_, X=rows)
        return rows


def _wide_enough(rows: Any) -> Any:
    if _arrays.dtype_name(rows) in {"float32", "float64"}:
        return rows
    return rows.float() if _arrays.library_of(rows) == "torch" else rows.astype(np.float32)
