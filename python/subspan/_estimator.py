"""The scikit-learn protocol that every estimator shares.

scikit-learn is never imported here before it has been imported by the caller; the protocol
(parameters, tags, cloning, output containers) is met by duck typing.
"""

import importlib
import inspect
import sys
import warnings
from abc import ABC, abstractmethod
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from subspan._arrays import deliver, library_of
from subspan.errors import InvalidArgumentError, SubspanError


class NotFittedError(SubspanError, ValueError, AttributeError):
    """An estimator was used before fit; stands in where scikit-learn's class is not loaded."""


class Estimator:
    """Parameters, representation and tags of a scikit-learn estimator."""

    feature_names_in_: NDArray[np.object_]
    n_features_in_: int

    def get_params(self, deep: bool = True) -> dict[str, Any]:  # noqa: ARG002 (no nested ones)
        """Return the parameters of the constructor by name.

        Parameters
        ----------
        deep : bool
            Taken for scikit-learn's sake; there are no nested estimators.

        Returns
        -------
        dict
            Names and values.
        """
        return {name: getattr(self, name) for name in _parameters(type(self))}

    def set_params(self, **params: Any) -> Self:
        """Set parameters of the constructor by name.

        Parameters
        ----------
        **params
            Names and values; checked in fit.

        Returns
        -------
        self

        Raises
        ------
        InvalidArgumentError
            If a name is not a parameter.
        """
        known = _parameters(type(self))
        for name, value in params.items():
            if name not in known:
                raise InvalidArgumentError(
                    f"[{type(self).__name__}.set_params] parameter must be one of "
                    f"{', '.join(known)}, got {name!r}"
                )
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        """Return the constructor call with the parameters that differ from their defaults."""
        shown = [
            f"{name}={value!r}"
            for name, default in _parameters(type(self)).items()
            if (value := getattr(self, name)) is not default and repr(value) != repr(default)
        ]
        return f"{type(self).__name__}({', '.join(shown)})"

    def __sklearn_tags__(self) -> Any:
        """Return scikit-learn's description of this estimator; called by scikit-learn only."""
        from sklearn.utils import Tags, TargetTags

        return Tags(estimator_type=None, target_tags=TargetTags(required=False))


class Transformer(Estimator, ABC):
    """And the output containers of a transformer."""

    def __sklearn_tags__(self) -> Any:
        """Return scikit-learn's description of this estimator; called by scikit-learn only."""
        from sklearn.utils import TransformerTags

        tags = super().__sklearn_tags__()
        tags.transformer_tags = TransformerTags(preserves_dtype=["float64", "float32"])
        return tags

    def set_output(
        self, *, transform: Literal["default", "pandas", "polars"] | None = None
    ) -> Self:
        """Choose the container that transform returns.

        Parameters
        ----------
        transform : {"default", "pandas", "polars"} or None
            "default" returns an array of the library of the input; None changes nothing.

        Returns
        -------
        self

        Raises
        ------
        InvalidArgumentError
            If the name is none of these.
        """
        if transform not in ("default", "pandas", "polars", None):
            raise InvalidArgumentError(
                f'[{type(self).__name__}.set_output] transform must be "default", "pandas", '
                f'"polars" or None, got {transform!r}'
            )
        if transform is not None:
            # The name under which scikit-learn's clone looks for it.
            self._sklearn_output_config = {"transform": transform}
        return self

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:
        """Return the names of the columns of transform, the class name and a number each.

        Parameters
        ----------
        input_features : array_like of str or None
            Names of the columns of the input; only checked against those of fit.

        Returns
        -------
        ndarray of object (str), shape (k,)

        Raises
        ------
        InvalidArgumentError
            If the names do not fit the data of fit.
        """
        size = self._output_width()
        where = f"[{type(self).__name__}.get_feature_names_out]"
        if input_features is not None:
            names = np.asarray(input_features, dtype=object)
            if len(names) != self.n_features_in_:
                raise InvalidArgumentError(
                    f"{where} input_features should have length equal to n_features_in_ "
                    f"({self.n_features_in_}), got {len(names)}"
                )
            fitted = vars(self).get("feature_names_in_")
            if fitted is not None and not np.array_equal(fitted, names):
                raise InvalidArgumentError(
                    f"{where} input_features is not equal to feature_names_in_"
                )
        stem = type(self).__name__.lower()
        return np.array([f"{stem}{i}" for i in range(size)], dtype=object)

    @abstractmethod
    def _output_width(self) -> int:
        """Return the number of columns of transform."""

    def _wrap(self, values: Any, source: Any) -> Any:
        """Put the result of transform into the chosen container."""
        sklearn = sys.modules.get("sklearn")
        default = sklearn.get_config()["transform_output"] if sklearn else "default"
        config: dict[str, str] = vars(self).get("_sklearn_output_config", {})
        container = config.get("transform", default)
        if container == "default" or library_of(values) != "numpy":
            return deliver(source, values)
        names = self.get_feature_names_out()
        frames: Any = importlib.import_module(container)
        if container == "pandas":
            return frames.DataFrame(values, columns=names, index=getattr(source, "index", None))
        return frames.DataFrame(values, schema=list(names), orient="row")


def _parameters(cls: type) -> dict[str, Any]:
    """Return the parameters of the constructor with their defaults, sorted by name."""
    found = inspect.signature(cls).parameters
    return {name: found[name].default for name in sorted(found)}


def check_names(estimator: Estimator, names: NDArray[np.object_] | None, function: str) -> None:
    fitted = vars(estimator).get("feature_names_in_")
    if fitted is None and names is None:
        return
    if fitted is None or names is None:
        state = ("with", "without") if names is None else ("without", "with")
        warnings.warn(
            f"[{function}] {type(estimator).__name__} was fitted on columns {state[0]} names and "
            f"got columns {state[1]}",
            UserWarning,
            stacklevel=4,
        )
    elif not np.array_equal(fitted, names):
        pairs = zip(fitted, names, strict=True)
        place, (want, got) = next((i, p) for i, p in enumerate(pairs) if p[0] != p[1])
        raise InvalidArgumentError(
            f"[{function}] X must have the columns of fit in their order, got {got!r} instead of "
            f"{want!r} as column {place}"
        )


def not_fitted(
    estimator: Estimator, wanted: str, came: str = "an estimator without data"
) -> Exception:
    """Return the exception for use before fit: scikit-learn's own class if it is loaded."""
    first = "fit or partial_fit" if hasattr(estimator, "partial_fit") else "fit"
    text = (
        f"[{type(estimator).__name__}] {wanted} must come after fit, got {came}. Call {first} first"
    )
    theirs = sys.modules.get("sklearn.exceptions")
    error: Exception = theirs.NotFittedError(text) if theirs else NotFittedError(text)
    return error
