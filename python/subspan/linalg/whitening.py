"""Whitening: maps that give rows the identity as covariance."""

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from subspan import Moments
from subspan._affine import centred_product
from subspan._checks import choice
from subspan._moments_estimator import Fitted, MomentsEstimator
from subspan._spectral import Axes, eigen_axes
from subspan.errors import InvalidArgumentError

__all__ = ["Whitening"]

Floats = NDArray[np.float64]
Kind = Literal["pca", "zca", "cholesky"]

_DEFAULT_EPS = {"pca": 0.0, "zca": 1e-6, "cholesky": 0.0}


class _Maps(NamedTuple):
    """The float64 solution behind the public attributes."""

    whiten: Floats  # (k, d)
    unwhiten: Floats  # (d, k)
    mean: Floats  # (d,)


class Whitening(MomentsEstimator):
    """Affine map ``y = W (x - mu)`` after which the rows have the identity as covariance.

    With the covariance ``C``, shrunk to ``S = (1 - rho) C + rho tr(C)/d I``, its eigenvalues ``L``,
    its eigenvectors ``V`` (as columns), and ``e = eps_rel * mean(L)``:

    ========== ================================== ===========================================
    kind       W                                  property
    ========== ================================== ===========================================
    "pca"      ``(L + e)^-1/2 V^T``               sorted by variance, may drop directions
    "zca"      ``V (L + e)^-1/2 V^T``             symmetric; closest to x in mean square
    "cholesky" ``G^-1`` with ``G G^T = S + e I``  lower triangular: y_i uses x_1 .. x_i
    ========== ================================== ===========================================

    Parameters
    ----------
    kind : {"pca", "zca", "cholesky"}
        The map.
    n_components : int or None
        Leading directions to keep for "pca" (k rows of W) and "zca" (W of rank k), 1 to d;
        None keeps all that have variance. Must be None for "cholesky".
    eps_rel : float, >= 0, or None
        Added to all eigenvalues, as a part of their mean. None: 0 for "pca" and "cholesky", 1e-6
        for "zca". Directions whose eigenvalue after shrinkage and addition is below ``d eps`` of
        the largest are left out.
    shrinkage : float in [0, 1], "oas" or None
        rho; "oas" is the oracle approximating shrinkage, which needs nothing but the moments.
        None is 0.
    precision : {"float64", "auto"}
        Products of ``Moments``. Whitening divides by small variances, so the default multiplies in
        float64; "auto" is faster on float32 rows and leaves out directions below 5e-7 of the
        largest variance, which it cannot tell from rounding.

    Attributes
    ----------
    whitening_ : ndarray, shape (k, d)
        W; k = d for "zca" and "cholesky".
    unwhitening_ : ndarray, shape (d, k)
        Its pseudo-inverse (inverse, where nothing was left out).
    mean_ : ndarray, shape (d,)
        Weighted mean of the rows.
    eigenvalues_ : ndarray, shape (d,)
        Eigenvalues of the shrunk covariance, descending, without e.
    eps_ : float
        e.
    shrinkage_ : float
        rho.
    rank_ : int
        Number of directions kept.
    n_samples_, n_features_in_ : int
        Rows of positive weight, and columns.
    moments_ : Moments
        The mergeable state.

    Notes
    -----
    Fit costs what ``PCA`` costs. Attributes are numpy arrays, float64 for float64 rows and float32
    below; the maps are applied from float64 masters, to rows centred block by block, in the
    library, on the device and in the dtype of the rows. Do not whiten with fewer rows than columns
    without shrinkage: the estimated covariance is singular, and its small eigenvalues are far too
    small.

    References
    ----------
    A. Kessy, A. Lewin, K. Strimmer, "Optimal whitening and decorrelation", The American
    Statistician 72, 2018 (the family of maps). Y. Chen, A. Wiesel, Y. C. Eldar, A. O. Hero,
    "Shrinkage algorithms for MMSE covariance estimation", IEEE Trans. Signal Processing 58, 2010,
    equation 23 (OAS).

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.linalg import Whitening
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(500, 3)) @ rng.normal(size=(3, 3)) + 7.0
    >>> white = Whitening("zca", eps_rel=0.0).fit(x)
    >>> bool(np.allclose(np.cov(white.transform(x).T), np.eye(3)))
    True
    >>> bool(np.allclose(white.inverse_transform(white.transform(x)), x))
    True
    """

    whitening_: Fitted[NDArray[Any]] = Fitted()
    unwhitening_: Fitted[NDArray[Any]] = Fitted()
    mean_: Fitted[NDArray[Any]] = Fitted()
    eigenvalues_: Fitted[NDArray[Any]] = Fitted()
    eps_: Fitted[float] = Fitted()
    shrinkage_: Fitted[float] = Fitted()
    rank_: Fitted[int] = Fitted()
    n_samples_: Fitted[int] = Fitted()
    _maps: Fitted[_Maps] = Fitted()

    def __init__(
        self,
        kind: Kind = "pca",
        *,
        n_components: int | None = None,
        eps_rel: float | None = None,
        shrinkage: float | Literal["oas"] | None = None,
        precision: str = "float64",
    ) -> None:
        self.kind = kind
        self.n_components = n_components
        self.eps_rel = eps_rel
        self.shrinkage = shrinkage
        self.precision = precision

    def transform(self, X: Any) -> Any:
        """Return whitened rows, ``W (x - mu)``.

        Parameters
        ----------
        X : array_like, shape (n, d)
            Rows; n >= 1.

        Returns
        -------
        array of the library, device and dtype of ``X``, shape (n, k)
            A data frame where ``set_output`` asks for one. Differentiable for a torch tensor that
            requires a gradient.

        Raises
        ------
        InvalidArgumentError
            If the columns are not those of fit, or a value is not finite.
        """
        rows = self._rows(X, "transform")
        maps = self._maps
        y = centred_product(rows, maps.mean, maps.whiten.T, function="Whitening.transform")
        return self._wrap(y, X)

    def inverse_transform(self, X: Any) -> Any:
        """Map whitened rows back: ``W^+ y + mu``; exact where no direction was left out.

        Parameters
        ----------
        X : array_like, shape (n, k)
            Whitened rows.

        Returns
        -------
        array of the library, device and dtype of ``X``, shape (n, d)

        Raises
        ------
        InvalidArgumentError
            If there are not k columns, or a value is not finite.
        """
        self._finish("inverse_transform")
        maps = self._maps
        rows = self._rows(X, "inverse_transform", width=maps.whiten.shape[0])
        return centred_product(
            rows, None, maps.unwhiten.T, maps.mean, function="Whitening.inverse_transform"
        )

    def _output_width(self) -> int:
        return int(self._maps.whiten.shape[0])

    def _check_params(self, n_features: int, n_samples: int | None) -> None:  # noqa: ARG002
        self._check_precision()
        choice("Whitening", "kind", self.kind, _DEFAULT_EPS)
        k = self.n_components
        if k is not None and self.kind == "cholesky":
            raise InvalidArgumentError(
                f'[Whitening] n_components must be None for kind="cholesky", got {k!r}. '
                'Use kind="pca" to drop directions'
            )
        is_int = isinstance(k, (int, np.integer)) and not isinstance(k, bool)
        if k is not None and not (is_int and 1 <= k <= n_features):
            raise InvalidArgumentError(
                f"[Whitening] n_components must be an int in 1..{n_features} (columns) or None, "
                f"got {k!r}"
            )
        if not (self.eps_rel is None or (_is_real(self.eps_rel) and 0 <= self.eps_rel < np.inf)):
            raise InvalidArgumentError(
                f"[Whitening] eps_rel must be a finite float >= 0 or None, got {self.eps_rel!r}"
            )
        rho = self.shrinkage
        if not (rho is None or rho == "oas" or (_is_real(rho) and 0 <= float(rho) <= 1)):
            raise InvalidArgumentError(
                f'[Whitening] shrinkage must be a float in [0, 1], "oas" or None, got {rho!r}. '
                "Ledoit-Wolf shrinkage needs fourth moments, which the state does not hold"
            )

    def _solve(self, moments: Moments) -> dict[str, Any]:
        axes = eigen_axes(moments, coarse=self._coarse(moments))
        mean_variance = float(np.mean(axes.variances))
        if mean_variance == 0.0:
            raise InvalidArgumentError(
                "[Whitening.fit] X must have variance, got rows that are all equal"
            )
        if self.shrinkage == "oas":
            rho = _oas(axes.variances, moments.weight_sum)
        else:
            rho = float(self.shrinkage or 0.0)
        eps_rel = _DEFAULT_EPS[self.kind] if self.eps_rel is None else float(self.eps_rel)
        e = eps_rel * mean_variance
        shrunk = (1.0 - rho) * axes.variances + rho * mean_variance
        if self.kind == "cholesky":
            whiten, unwhiten, rank = _triangular(moments, rho, e, mean_variance, axes)
        else:
            whiten, unwhiten, rank = self._spectral(axes, shrunk + e)
        mean = np.array(moments.mean)
        return {
            "whitening_": whiten,
            "unwhitening_": unwhiten,
            "mean_": mean,
            "eigenvalues_": shrunk,
            "eps_": e,
            "shrinkage_": rho,
            "rank_": rank,
            "n_samples_": moments.count,
            "_maps": _Maps(whiten, unwhiten, mean),
        }

    def _spectral(self, axes: Axes, variances: Floats) -> tuple[Floats, Floats, int]:
        kept = int(np.count_nonzero(variances > axes.floor))
        kept = kept if self.n_components is None else min(kept, int(self.n_components))
        deviation = np.sqrt(variances[:kept])
        v = axes.components[:kept]
        whiten, unwhiten = v / deviation[:, None], v.T * deviation
        if self.kind == "zca":
            return v.T @ whiten, unwhiten @ v, kept
        return whiten, unwhiten, kept


def _triangular(
    moments: Moments, rho: float, e: float, mean_variance: float, axes: Axes
) -> tuple[Floats, Floats, int]:
    """Return the inverse Cholesky factor and the factor of the regularised covariance."""
    lowest = (1.0 - rho) * float(axes.variances[-1]) + rho * mean_variance + e
    if lowest <= axes.floor:
        raise InvalidArgumentError(
            "[Whitening.fit] the covariance must have full rank for a Cholesky factor, got "
            f"smallest eigenvalue {lowest:.3g} beside {axes.variances[0]:.3g}. Use "
            'kind="pca", which drops such directions, or eps_rel=1e-6, or shrinkage="oas"'
        )
    matrix = (1.0 - rho) * moments.covariance()
    d = len(matrix)
    matrix.flat[:: d + 1] += rho * mean_variance + e
    factor = np.asarray(np.linalg.cholesky(matrix), dtype=np.float64)
    inverse = np.asarray(np.linalg.solve(factor, np.eye(d)), dtype=np.float64)
    return np.tril(inverse), factor, d


def _oas(variances: Floats, n: float) -> float:
    """Return the oracle approximating shrinkage from the eigenvalues of the covariance."""
    d = len(variances)
    square, trace = float(np.sum(np.square(variances))), float(np.sum(variances))
    top = (1.0 - 2.0 / d) * square + trace**2
    bottom = (n + 1.0 - 2.0 / d) * (square - trace**2 / d)
    return 1.0 if top >= bottom else top / bottom


def _is_real(value: Any) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
