"""The rule that names massive activations: visible, explicit, the same for every report."""

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from subspan.errors import DtypeError, InvalidArgumentError

FirstToken = Literal["auto", "keep", "outlier", "drop"]

_FIRST_TOKEN_TEXT = {
    "auto": "The first token of each window is judged by its norm like every other token.",
    "keep": "The first token of each window is never counted as an outlier.",
    "outlier": "The first token of each window is always counted as an outlier.",
    "drop": "The first token of each window is left out altogether.",
}


class TokenClasses(NamedTuple):
    """Three boolean masks of shape (n_tokens,); exactly one of them is true for each token."""

    ordinary: npt.NDArray[np.bool_]
    outlier: npt.NDArray[np.bool_]
    dropped: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class OutlierRule:
    """Tell outlier tokens (massive activations, attention sinks) from ordinary ones by their norm.

    A token with activation ``x`` is an outlier at a site when ``|x| > factor * median``, where
    ``median`` is a reference norm of that site. The rule holds no state: a streaming caller takes
    `reference` from the first batch of each site, stores it, and passes it to `classify` for
    every batch, so that a run that was stopped and resumed makes the same decisions.

    Parameters
    ----------
    factor : float, default 5.0
        How many times the median norm a token must exceed. Greater than 1.
    first_token : {"auto", "keep", "outlier", "drop"}, default "auto"
        What to do with the first token of each window, which many language models use as an
        attention sink: judge it by its norm, never call it an outlier, always call it one,
        or leave it out of all results.

    Notes
    -----
    Cost: one pass over the norms. A few tokens whose norms exceed the others by orders of
    magnitude are described by Sun, Chen, Kolter and Liu, "Massive Activations in Large Language
    Models" (2024), and the role of the first token by Xiao et al., "Efficient Streaming Language
    Models with Attention Sinks" (2023). The factor 5 is this library's own choice.

    Examples
    --------
    >>> rule = OutlierRule()
    >>> rule.split([1.0, 1.2, 90.0, 0.9]).tolist()
    [False, False, True, False]
    >>> OutlierRule(first_token="keep").split([90.0, 1.2, 1.0, 0.9], [1, 0, 0, 0]).any()
    np.False_

    """

    factor: float = 5.0
    first_token: FirstToken = "auto"

    def __post_init__(self) -> None:
        """Check both fields."""
        factor = self.factor
        if isinstance(factor, bool) or not isinstance(factor, int | float | np.number):
            raise DtypeError(f"[OutlierRule] factor must be a number, got {type(factor).__name__}")
        if not (math.isfinite(factor) and factor > 1):
            raise InvalidArgumentError(
                f"[OutlierRule] factor must be finite and greater than 1, got {factor}"
            )
        if self.first_token not in get_args(FirstToken):
            raise InvalidArgumentError(
                "[OutlierRule] first_token must be 'auto', 'keep', 'outlier' or 'drop', "
                f"got {self.first_token!r}"
            )

    def describe(self) -> str:
        """Return the rule in plain words, to be printed with every result that used it."""
        return (
            f"A token is an outlier at a site when its norm exceeds {self.factor:g} times the "
            f"median token norm there. {_FIRST_TOKEN_TEXT[self.first_token]}"
        )

    def reference(
        self, norms: npt.ArrayLike, first_in_window: npt.ArrayLike | None = None
    ) -> float:
        """Return the median norm that `classify` should compare with.

        Parameters
        ----------
        norms : array_like of shape (n_tokens,)
            Token norms at one site, usually of its first batch. Finite and not negative.
        first_in_window : array_like of bool, shape (n_tokens,), optional
            True for the first token of each window. Under the choices "outlier" and "drop"
            these tokens take no part in the median, unless there are no others.

        Returns
        -------
        float
            The median; when more than half of the norms are zero, the median of those that are
            not; 0.0 when all are zero (then no norm is an outlier) or when there are none.

        """
        values, first = self._checked(norms, first_in_window, "reference")
        if self.first_token in ("outlier", "drop") and not first.all():
            values = values[~first]
        if not values.size:
            return 0.0
        median = float(np.median(values))
        if median == 0.0 and values.any():
            median = float(np.median(values[values > 0]))
        return median

    def threshold(self, median: float) -> float:
        """Return the norm above which a token is an outlier: ``factor * median``.

        A median of zero (a site that is silent) gives infinity: nothing stands out there.
        """
        if not (math.isfinite(median) and median >= 0):
            raise InvalidArgumentError(
                f"[OutlierRule.threshold] median must be finite and not negative, got {median}"
            )
        return self.factor * median if median > 0 else math.inf

    def classify(
        self,
        norms: npt.ArrayLike,
        first_in_window: npt.ArrayLike | None = None,
        median: float | None = None,
    ) -> TokenClasses:
        """Sort tokens into ordinary, outlier and dropped ones.

        Parameters
        ----------
        norms : array_like of shape (n_tokens,)
            Token norms at one site.
        first_in_window : array_like of bool, shape (n_tokens,), optional
            True for the first token of each window; needed unless ``first_token`` is "auto".
        median : float, optional
            The reference norm of this site; by default that of these very norms.

        Returns
        -------
        TokenClasses
            Boolean masks ``ordinary``, ``outlier`` and ``dropped``.

        """
        values, first = self._checked(norms, first_in_window, "classify")
        if median is None:
            median = self.reference(values, first)
        outlier = values > self.threshold(median)
        dropped = np.zeros_like(first)
        if self.first_token == "keep":
            outlier &= ~first
        elif self.first_token == "outlier":
            outlier |= first
        elif self.first_token == "drop":
            outlier &= ~first
            dropped = first
        return TokenClasses(~(outlier | dropped), outlier, dropped)

    def split(
        self,
        norms: npt.ArrayLike,
        first_in_window: npt.ArrayLike | None = None,
        median: float | None = None,
    ) -> npt.NDArray[np.bool_]:
        """Return the boolean outlier mask alone; arguments as in `classify`."""
        return self.classify(norms, first_in_window, median).outlier

    def _checked(
        self, norms: Any, first_in_window: Any, function: str
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        values = np.asarray(norms, dtype=np.float64)
        if values.ndim != 1:
            raise InvalidArgumentError(
                f"[OutlierRule.{function}] norms must be 1-D, got shape {values.shape}"
            )
        bad = ~np.isfinite(values) | (values < 0)
        if bad.any():
            raise InvalidArgumentError(
                f"[OutlierRule.{function}] norms must be finite and not negative, got "
                f"{int(bad.sum())} others, first at index {int(bad.argmax())}. Activations that "
                "overflow in float16 need a wider dtype."
            )
        if first_in_window is None:
            if self.first_token != "auto":
                raise InvalidArgumentError(
                    f"[OutlierRule.{function}] first_in_window must be given when first_token is "
                    f"{self.first_token!r}, got None. Without window bookkeeping use 'auto'."
                )
            return values, np.zeros(values.shape, dtype=np.bool_)
        first = np.asarray(first_in_window).astype(np.bool_)
        if first.shape != values.shape:
            raise InvalidArgumentError(
                f"[OutlierRule.{function}] first_in_window must have the shape of norms "
                f"{values.shape}, got {first.shape}"
            )
        return values, first
