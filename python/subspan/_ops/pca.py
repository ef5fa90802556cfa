"""Principal component analysis from mergeable moments, as a scikit-learn estimator."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from subspan._affine import centred_product
from subspan._checks import choice
from subspan._moments_estimator import Fitted, MomentsEstimator, check_count
from subspan._ops.moments import Moments
from subspan._rows import check_finite, column_blocks, float64_block, row_blocks
from subspan._spectral import EPS, Axes, eigen_axes, inverse_or_zero, largest_positive
from subspan.errors import InvalidArgumentError

__all__ = ["PCA"]

Floats = NDArray[np.float64]

# From this width on the n x n route pays for fewer rows than columns: below it, the d x d state is
# at most 2 MiB, solved in well under a second, and stays useful for partial_fit and merging.
_WIDE = 512


class _Model(NamedTuple):
    """The float64 solution behind the public attributes."""

    components: Floats  # (k, d)
    variances: Floats  # (k,)
    mean: Floats  # (d,)
    noise: float
    floor: float  # variances up to here are rounding


class PCA(MomentsEstimator):
    """Principal components of rows, exact for any number of parts, weighted and mergeable.

    With the weighted mean ``mu`` and ``C = sum_i w_i (x_i - mu)(x_i - mu)^T / (W - 1)``, ``W`` the
    sum of the weights (n without), the components are the eigenvectors of ``C`` by descending
    eigenvalue, the scores of a row are ``V (x - mu)``. The attributes mean what they mean in
    scikit-learn.

    Parameters
    ----------
    n_components : int, float or None
        int: number of components, 1 to min(n, d). float in (0, 1): the fewest components whose
        share of the variance exceeds it. None: min(n, d).
    whiten : bool
        Divide the scores by their standard deviation. Directions without variance (below
        ``d eps`` of the largest) give 0.
    precision : {"auto", "float64"}
        Products of ``Moments``: "auto" multiplies float32 and half-precision rows in float32 with
        float64 sums (variances right to 1e-6 of the largest), "float64" keeps small variances too.
        Whitening, which divides by them, always uses "float64". A state given to ``from_moments``
        is taken as it is: made with "auto", it may hold float32 products, and directions below
        5e-7 of the largest variance count as having none.
    solver : {"auto", "covariance", "gram"}
        "covariance" solves the d x d covariance and keeps the state ``moments_``. "gram" solves the
        n x n Gram matrix of the centred rows, without a state. "auto": "gram" in fit for fewer
        rows than columns and at least 512 columns. ``partial_fit`` always uses the covariance.

    Attributes
    ----------
    components_ : ndarray, shape (k, d)
        Orthonormal rows; the entry of largest magnitude of each is positive, the first on ties.
    explained_variance_, explained_variance_ratio_, singular_values_ : ndarray, shape (k,)
        Eigenvalues, their share of the trace, and ``sqrt((W - 1) eigenvalue)``.
    mean_ : ndarray, shape (d,)
        Weighted mean of the rows.
    noise_variance_ : float
        Mean of the left-out eigenvalues among the first min(n, d); 0 if none is left out.
    n_components_, n_samples_, n_features_in_ : int
        k, n (rows of positive weight) and d.
    feature_names_in_ : ndarray of object, shape (d,)
        Column names, where fit got a data frame.
    moments_ : Moments
        The mergeable state; absent after the n x n route.

    Notes
    -----
    Fit costs n d^2 flops (a symmetric product) and about 10 d^3 for the eigenvectors, in d^2
    float64 of memory; by the Gram route n^2 d and 10 n^3, in n^2 + d k. The rows are read in
    blocks and never copied as a whole. Attributes are numpy arrays, float64 for float64 rows
    and float32 below; transform computes from float64 masters and returns arrays of the library,
    device and dtype of its input.

    Eigenvalues are differences of sums: those below ``d eps`` of the largest (eps of the products)
    are rounding. They are clipped to 0, and anything more negative raises.

    References
    ----------
    T. F. Chan, G. H. Golub, R. J. LeVeque, "Algorithms for computing the sample variance", The
    American Statistician 37, 1983 (merging). M. E. Tipping, C. M. Bishop, "Probabilistic principal
    component analysis", JRSS B 61, 1999 (noise variance, likelihood).

    Examples
    --------
    >>> import numpy as np
    >>> from subspan import PCA
    >>> x = np.random.default_rng(0).normal(size=(1000, 3)) * [5.0, 2.0, 0.1] + 100.0
    >>> pca = PCA(n_components=0.99).fit(x)
    >>> pca.n_components_, pca.transform(x).shape
    (2, (1000, 2))
    >>> halves = PCA(2).partial_fit(x[:500]).partial_fit(x[500:])
    >>> bool(np.allclose(halves.components_, pca.components_))
    True
    """

    components_: Fitted[NDArray[Any]] = Fitted()
    explained_variance_: Fitted[NDArray[Any]] = Fitted()
    explained_variance_ratio_: Fitted[NDArray[Any]] = Fitted()
    singular_values_: Fitted[NDArray[Any]] = Fitted()
    mean_: Fitted[NDArray[Any]] = Fitted()
    noise_variance_: Fitted[float] = Fitted()
    n_components_: Fitted[int] = Fitted()
    n_samples_: Fitted[int] = Fitted()
    _model: Fitted[_Model] = Fitted()

    def __init__(
        self,
        n_components: int | float | None = None,
        *,
        whiten: bool = False,
        precision: str = "auto",
        solver: str = "auto",
    ) -> None:
        self.n_components = n_components
        self.whiten = whiten
        self.precision = precision
        self.solver = solver

    def transform(self, X: Any) -> Any:
        """Return the scores of rows, ``V (x - mu)``, whitened if asked for.

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

        Notes
        -----
        Each block of rows is centred before it is multiplied, so float32 rows far from the origin
        keep their digits. 2 n d k flops; memory of one block beside the result.
        """
        rows = self._rows(X, "transform")
        model = self._model
        matrix = model.components.T
        if self.whiten:
            matrix = matrix * inverse_or_zero(np.sqrt(model.variances), model.floor**0.5)
        return self._wrap(centred_product(rows, model.mean, matrix, function="PCA.transform"), X)

    def inverse_transform(self, X: Any) -> Any:
        """Map scores back to rows: ``V^T z + mu``, undoing the whitening if there is any.

        Parameters
        ----------
        X : array_like, shape (n, k)
            Scores.

        Returns
        -------
        array of the library, device and dtype of ``X``, shape (n, d)

        Raises
        ------
        InvalidArgumentError
            If there are not k columns, or a value is not finite.
        """
        self._finish("inverse_transform")
        model = self._model
        rows = self._rows(X, "inverse_transform", width=len(model.variances))
        matrix = model.components
        if self.whiten:
            matrix = np.sqrt(model.variances)[:, None] * matrix
        return centred_product(rows, None, matrix, model.mean, function="PCA.inverse_transform")

    def get_covariance(self) -> NDArray[Any]:
        """Return the covariance of the model: ``V^T (L - s2) V + s2 I``, s2 the noise variance.

        Returns
        -------
        ndarray, shape (d, d)
            Equal to the sample covariance where no component was left out.
        """
        model = self._model
        return self._assemble(np.maximum(model.variances - model.noise, 0.0), model.noise)

    def get_precision(self) -> NDArray[Any]:
        """Return the inverse of ``get_covariance()``.

        Returns
        -------
        ndarray, shape (d, d)

        Raises
        ------
        InvalidArgumentError
            If the model has directions without variance.
        """
        model = self._density("get_precision")
        noise = 1.0 / model.noise if model.noise > 0 else 0.0
        return self._assemble(1.0 / model.variances - noise, noise)

    def score_samples(self, X: Any) -> Floats:
        """Return the log-likelihood of rows under the probabilistic model.

        ``-(d log 2 pi + log det C + (x - mu)^T C^-1 (x - mu)) / 2`` with ``C = get_covariance()``,
        worked out from the scores and the residual, so that no d x d matrix is formed.

        Parameters
        ----------
        X : array_like, shape (n, d)
            Rows.

        Returns
        -------
        ndarray of float64, shape (n,)
            Natural logarithms of densities; numpy for any library.

        Raises
        ------
        InvalidArgumentError
            If the model has directions without variance: its density is not defined.
        """
        rows = self._rows(X, "score_samples")
        model = self._density("score_samples")
        k, d = model.components.shape
        log_det = np.sum(np.log(model.variances)) + (
            (d - k) * np.log(model.noise) if model.noise > 0 else 0.0
        )
        out = np.empty(rows.shape[0])
        for start, stop in row_blocks(rows):
            x = float64_block(rows[start:stop]) - model.mean
            z = x @ model.components.T
            distance = np.square(z) @ (1.0 / model.variances)
            if model.noise > 0:
                distance += np.sum(np.square(x - z @ model.components), axis=1) / model.noise
            out[start:stop] = -0.5 * (d * np.log(2.0 * np.pi) + log_det + distance)
        return out

    def score(self, X: Any, y: Any = None) -> float:  # noqa: ARG002 (scikit-learn's signature)
        """Return the mean of :meth:`score_samples`.

        Parameters
        ----------
        X : array_like, shape (n, d)
            Rows.
        y : None
            Taken for scikit-learn's sake.

        Returns
        -------
        float
        """
        return float(np.mean(self.score_samples(X)))

    def _assemble(self, along: Floats, elsewhere: float) -> NDArray[Any]:
        components = self._model.components
        matrix: Floats = (components.T * along) @ components
        matrix.flat[:: len(matrix) + 1] += elsewhere
        return matrix.astype(self._dtype, copy=False)

    def _density(self, method: str) -> _Model:
        model = self._model
        k, d = model.components.shape
        if model.variances[-1] <= model.floor or (k < d and model.noise <= model.floor):
            raise InvalidArgumentError(
                f"[PCA.{method}] the model must have variance in every direction, got directions "
                "without. Keep fewer components than the rank of the data"
            )
        return model

    def _output_width(self) -> int:
        return self.n_components_

    def _check_params(self, n_features: int, n_samples: int | None) -> None:
        self._check_precision()
        most = n_features if n_samples is None else min(n_samples, n_features)
        k = self.n_components
        is_int = isinstance(k, (int, np.integer)) and not isinstance(k, bool)
        is_share = isinstance(k, (float, np.floating)) and 0 < k < 1
        if k is not None and not is_share and not (is_int and 1 <= k <= most):
            raise InvalidArgumentError(
                f"[PCA] n_components must be an int in 1..{most} (min of rows and columns), "
                f"a float in (0, 1) or None, got {k!r}"
            )
        if not isinstance(self.whiten, (bool, np.bool_)):
            raise InvalidArgumentError(f"[PCA] whiten must be a bool, got {self.whiten!r}")
        choice("PCA", "solver", self.solver, ("auto", "covariance", "gram"))

    def _products(self) -> str:
        return "float64" if self.whiten else self.precision

    def _absent(self, name: str) -> str:
        return (
            f"PCA has no {name} after the n x n route, which keeps no state to go on from. "
            'Fit with solver="covariance" or use partial_fit from the start'
        )

    def _learn(self, rows: Any, weights: Any) -> None:
        n, d = rows.shape
        if self.solver == "gram" or (self.solver == "auto" and n < d and d >= _WIDE):
            w = np.ones(n) if weights is None else float64_block(weights)
            if not w.all():  # rows of weight 0 do not count, whatever they hold
                rows, w = rows[np.flatnonzero(w).tolist()], w[w > 0]
            check_finite(rows, "PCA.fit")
            self._publish(self._solve_gram(rows, w))
        else:
            super()._learn(rows, weights)

    def _solve(self, moments: Moments) -> dict[str, Any]:
        asked = self.n_components
        k = int(asked) if isinstance(asked, (int, np.integer)) else None
        axes = eigen_axes(moments, coarse=self._coarse(moments), k=k)
        # Integer weights stand for repeated rows, so they count for min(n, d) as those would.
        n = max(moments.count, int(moments.weight_sum))
        return self._attributes(axes, moments.mean, moments.count, n, moments.weight_sum)

    def _solve_gram(self, rows: Any, w: Floats) -> dict[str, Any]:
        """Solve by the Gram matrix of the centred, weighted rows, in float64 by column blocks."""
        n, d = rows.shape
        root = np.sqrt(w)[:, None]
        total = float(w.sum())
        check_count(self, n)
        self._check_weight_sum(total)
        mean = np.empty(d)
        gram = np.zeros((n, n))
        columns = list(column_blocks(rows))
        for start, stop in columns:
            block = float64_block(rows[:, start:stop])
            mean[start:stop] = w @ block / total
            block = (block - mean[start:stop]) * root
            gram += block @ block.T
        values, vectors = np.linalg.eigh(gram)
        values, vectors = values[::-1], vectors[:, ::-1]
        floor = max(n, d) * EPS * float(values[0])
        values = np.where(values > floor, values, 0.0)
        k = self._choose(values, min(n, d))
        # More components than rows of positive weight: the others have no variance.
        values = np.pad(values, (0, max(0, k - n)))
        used = min(k, int(np.count_nonzero(values)))
        basis = np.zeros((d, k))
        for start, stop in columns:
            block = (float64_block(rows[:, start:stop]) - mean[start:stop]) * root
            basis[start:stop, :used] = block.T @ vectors[:, :used]
        # A column has norm sigma, and rounding of the size of the largest one; the QR takes the
        # part along the columns before it away, and completes the basis where sigma is 0.
        q, r = np.linalg.qr(basis)
        components = (q * np.where(np.diag(r) < 0, -1.0, 1.0)).T
        variances = values[: max(k, min(n, d))] / (total - 1.0)
        axes = Axes(
            largest_positive(components),
            variances,
            float(np.sum(variances)),
            floor / (total - 1.0),
        )
        return self._attributes(axes, mean, n, n, total)

    def _choose(self, variances: Floats, most: int) -> int:
        """Return the number of components that the parameter asks for."""
        if self.n_components is None:
            return most
        if isinstance(self.n_components, (int, np.integer)):
            return int(self.n_components)
        total = np.sum(variances)  # of all of them: a share is asked for
        if total == 0:
            return 1
        held = np.cumsum(variances) / total
        return min(most, int(np.searchsorted(held, self.n_components, side="right")) + 1)

    def _attributes(
        self, axes: Axes, mean: Floats, count: int, n: int, weight_sum: float
    ) -> dict[str, Any]:
        most = min(n, mean.size)
        k = self._choose(axes.variances, most)
        variances = axes.variances[:k].copy()
        components = np.ascontiguousarray(axes.components[:k])
        rest = axes.total - float(np.sum(variances))
        noise = max(rest, 0.0) / (most - k) if k < most else 0.0
        return {
            "components_": components,
            "explained_variance_": variances,
            "explained_variance_ratio_": (
                variances / axes.total if axes.total > 0 else np.zeros(k)
            ),
            "singular_values_": np.sqrt(variances * (weight_sum - 1.0)),
            "mean_": mean.copy(),
            "noise_variance_": noise,
            "n_components_": k,
            "n_samples_": count,
            "_model": _Model(components, variances, mean, noise, axes.floor),
        }
