"""Kernel density estimation, by scikit-learn's protocol."""

from math import inf, lgamma, log, pi
from typing import Any, Self

import numpy as np

from subspan import _arrays, _checks, kernel_logsumexp
from subspan._rows import as_weights
from subspan.errors import InvalidArgumentError, UnsupportedError
from subspan.kernels._kernel import DECREASING, Array, Floats, Kernel, generator
from subspan.kernels._points_estimator import PointsEstimator
from subspan.kernels.solving import positive

__all__ = ["KernelDensity"]

_RULES = ("scott", "silverman")
_STREAM = 1 << 36


class KernelDensity(PointsEstimator):
    r"""The density of points, as a mean of kernels.

    .. math:: p(x) = \frac 1 {c\, \prod_k b_k} \sum_j w_j\, k(x, x_j)

    with weights that sum to 1, the bandwidth b of every coordinate, and the integral c of the
    kernel with a bandwidth of 1.

    Parameters
    ----------
    bandwidth : float, array (d,), or {"scott", "silverman"}
        > 0. The rules are :math:`n^{-1/(d+4)}` and :math:`(n (d+2) / 4)^{-1/(d+4)}` times the
        standard deviation of every column (scikit-learn's rules leave that out); for weights, n is
        ``sum(w)**2 / sum(w**2)``.
    kernel : str
        One of those of `subspan.kernel_matvec` that decrease with the distance and have an
        integral: "cauchy" has one in one dimension, "rational_quadratic" where 2 alpha > d.
    alpha : float
        Of "rational_quadratic".

    Attributes
    ----------
    bandwidth_ : ndarray (d,)
        That of every coordinate.
    X_fit_ : array (n, d)
        Points of fit.
    n_features_in_ : int
        Columns of fit.
    feature_names_in_ : ndarray of object, shape (d,)
        Column names, where fit got a data frame.

    Notes
    -----
    One `subspan.kernel_logsumexp` of q x n for q points, so that far points keep their density.

    References
    ----------
    D. W. Scott: Multivariate density estimation, Wiley 1992, chapter 6. B. W. Silverman: Density
    estimation, Chapman and Hall 1986, section 4.3.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.kernels import KernelDensity
    >>> density = KernelDensity().fit(np.array([[0.0], [2.0]]))
    >>> density.score_samples(np.array([[1.0], [100.0]])).round(3).tolist()
    [-1.419, -4803.612]
    """

    bandwidth_: Floats
    _weights: Floats

    def __init__(
        self, bandwidth: Any = 1.0, *, kernel: str = "gaussian", alpha: float = 1.0
    ) -> None:
        self.bandwidth = bandwidth
        self.kernel = kernel
        self.alpha = alpha

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:  # noqa: ARG002
        """Keep points and find the bandwidth.

        Parameters
        ----------
        X : array_like, shape (n, d)
            Floating-point rows of numpy or torch; integers, lists and data frames become float64.
            Finite.
        y : None
            Taken for scikit-learn's sake.
        sample_weight : array_like of float, shape (n,), or None
            Weights >= 0.

        Returns
        -------
        self

        Raises
        ------
        InvalidArgumentError
            If a parameter, a shape or a value is out of its range, the kernel has no integral, or a
            rule finds a column without variance.
        DtypeError
            If X is sparse or not made of numbers.
        """
        function = "KernelDensity.fit"
        _checks.choice(function, "kernel", self.kernel, DECREASING)
        positive(function, "alpha", self.alpha)
        rows = self._taken(X, function)
        given = as_weights(rows, sample_weight, function)
        n, d = (int(extent) for extent in rows.shape)
        weights = np.ones(n) if given is None else _arrays.to_numpy(given).astype(np.float64)
        weights = weights / weights.sum()
        if _log_integral(self.kernel, float(self.alpha), d) == inf:
            raise InvalidArgumentError(
                f"[{function}] kernel must have an integral over {d} coordinates, got "
                f"{self.kernel!r}, whose tails are too heavy. Use another one"
            )
        if isinstance(self.bandwidth, str):
            widths = self._by_rule(_arrays.to_numpy(rows), weights, function)
        else:
            Kernel(self.kernel, self.bandwidth, self.alpha).check(function, d, DECREASING)
            widths = Kernel(bandwidth=self.bandwidth).widths(d)
            if not np.isfinite(widths).all():
                raise InvalidArgumentError(f"[{function}] bandwidth must be finite, got {inf}")
        self.bandwidth_, self._weights, self.X_fit_ = widths, weights, rows
        return self

    def score_samples(self, X: Any) -> Any:
        """Return the logarithm of the density at points.

        Parameters
        ----------
        X : array_like, shape (q, d)

        Returns
        -------
        array of float64 (q,), of the library of X

        Raises
        ------
        InvalidArgumentError
            If the columns are not those of fit, or a value is not finite.
        """
        rows = self._asked(X, "score_samples")
        x, fitted = _arrays.to_numpy(rows), _arrays.to_numpy(self.X_fit_)
        dtype = np.result_type(x, fitted)
        x, fitted = x.astype(dtype, copy=False), fitted.astype(dtype, copy=False)
        out = kernel_logsumexp(
            x,
            fitted,
            self._weights.astype(dtype),
            kernel=self.kernel,
            bandwidth=self.bandwidth_,
            alpha=float(self.alpha),
        ).astype(np.float64)
        out -= _log_integral(self.kernel, float(self.alpha), x.shape[1])
        out -= np.log(self.bandwidth_).sum()
        return _arrays.from_numpy(rows, out)

    def score(self, X: Any, y: Any = None) -> float:  # noqa: ARG002 (scikit-learn's signature)
        """Return the logarithm of the density of all points together: the sum of `score_samples`.

        Parameters
        ----------
        X : array_like, shape (q, d)
        y : None
            Taken for scikit-learn's sake.

        Returns
        -------
        float
        """
        return float(self.score_samples(X).sum())

    def sample(self, n_samples: int = 1, seed: int = 0) -> Any:
        """Return points drawn from the density, of the Gaussian kernel.

        Parameters
        ----------
        n_samples : int
            At least 1.
        seed : int
            0 to 2^64 - 1.

        Returns
        -------
        array (n_samples, d) of the library and dtype of the points of fit

        Raises
        ------
        UnsupportedError
            If the kernel is not "gaussian".
        """
        function = "KernelDensity.sample"
        self._asked(self.X_fit_[:1] if self.__sklearn_is_fitted__() else None, "sample")
        count = _checks.integer(function, "n_samples", n_samples, low=1)
        _checks.integer(function, "seed", seed, low=0, high=(1 << 64) - 1)
        if self.kernel != "gaussian":
            raise UnsupportedError(
                f'[{function}] kernel must be "gaussian" to draw from, got {self.kernel!r}'
            )
        rng = generator(seed, _STREAM)
        fitted = _arrays.to_numpy(self.X_fit_)
        chosen = rng.choice(len(fitted), count, p=self._weights)
        noise = rng.standard_normal((count, fitted.shape[1])) * self.bandwidth_
        return _arrays.from_numpy(self.X_fit_, (fitted[chosen] + noise).astype(fitted.dtype))

    def __sklearn_tags__(self) -> Any:
        """Return scikit-learn's description of this estimator; called by scikit-learn only."""
        tags = super().__sklearn_tags__()
        tags.estimator_type = "density_estimator"
        return tags

    def _by_rule(self, rows: Array, weights: Floats, function: str) -> Floats:
        _checks.choice(function, "bandwidth", self.bandwidth, _RULES)
        d = rows.shape[1]
        count = 1 / float((weights**2).sum())
        if self.bandwidth == "silverman":
            count *= (d + 2) / 4
        centred = rows - weights @ rows
        variances = weights @ centred**2
        rounding = 1e-14 * np.abs(rows).max(0)
        if count <= 1 or not (variances > rounding**2).all():
            raise InvalidArgumentError(
                f"[{function}] bandwidth must be a number where a column has no variance, got "
                f"{self.bandwidth!r} (n_samples = {len(rows)})"
            )
        kept = float((weights**2).sum())
        return np.asarray(np.sqrt(variances / (1 - kept)) * count ** (-1 / (d + 4)))


def _log_integral(kernel: str, alpha: float, d: int) -> float:
    """Return the logarithm of the integral of k over d coordinates; inf where it has none."""
    if kernel == "gaussian":
        return d / 2 * log(2 * pi)
    if kernel == "cauchy":
        return log(pi) if d == 1 else inf
    if kernel == "rational_quadratic":
        if 2 * alpha <= d:
            return inf
        return d / 2 * log(2 * pi * alpha) + lgamma(alpha - d / 2) - lgamma(alpha)
    # Polynomials of t times exp(-t): each power is a gamma function, times the sphere's area.
    sphere = log(2) + d / 2 * log(pi) - lgamma(d / 2)
    scale, powers = {
        "matern32": (3.0, (1.0, 1.0)),
        "matern52": (5.0, (1.0, 1.0, 1 / 3)),
    }.get(kernel, (1.0, (1.0,)))
    factor, rising = 0.0, 1.0
    for power, weight in enumerate(powers):
        factor += weight * rising
        rising *= d + power
    return sphere - d / 2 * log(scale) + lgamma(d) + log(factor)
