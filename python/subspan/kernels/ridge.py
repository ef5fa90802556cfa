"""Kernel ridge regression without the kernel matrix, by scikit-learn's protocol."""

from typing import Any, Self

import numpy as np

from subspan import _arrays, _checks, cholesky, gram, solve_triangular
from subspan.errors import DtypeError, InvalidArgumentError
from subspan.kernels._kernel import DEFINITE, Array, Floats, Kernel
from subspan.kernels._points_estimator import PointsEstimator
from subspan.kernels.nystrom import nystrom
from subspan.kernels.solving import Progress, SolveInfo, positive, solve

__all__ = ["KernelRidge"]


class KernelRidge(PointsEstimator):
    r"""Ridge regression in the space of a kernel.

    .. math:: f(x) = \sum_j k(x, x_j)\, \alpha_j, \qquad (K + \lambda I)\, \alpha = y

    Parameters
    ----------
    regularization : float
        :math:`\lambda > 0`; scikit-learn calls it alpha. There is no intercept.
    kernel, bandwidth, alpha, degree, offset
        As in `subspan.kernel_matvec`; of the kernels that are positive definite (offset >= 0).
        scikit-learn's gamma of "rbf" is ``1 / (2 * bandwidth**2)``.
    method : {"exact", "nystrom"}
        "exact" solves by `solve`, in memory that grows with the number of points. "nystrom" takes
        only functions that are sums over landmarks, chosen by randomly pivoted Cholesky: the
        problem that Falkon solves.
    rank : int or None
        Landmarks: of the preconditioner, or of "nystrom" (None: 1024, or all points).
    tol : float
        Relative residual of "exact".
    max_iterations : int
        Of "exact".
    seed : int
        0 to 2^64 - 1.
    progress : callable or None
        As in `solve`.

    Attributes
    ----------
    X_fit_ : array (n, d), or (r, d)
        Points of fit, or landmarks.
    dual_coef_ : array of float64 (n,) or (n, e), with r for n
        :math:`\alpha`.
    solve_info_ : SolveInfo
        How "exact" was solved.
    trace_residual_ : float
        Of "nystrom": the trace that the landmarks leave of the kernel matrix.
    n_features_in_ : int
        Columns of fit.
    feature_names_in_ : ndarray of object, shape (d,)
        Column names, where fit got a data frame.

    Notes
    -----
    "exact" as `solve`. "nystrom" takes n r (d + 2 r) flops and 8 n r bytes: with the factor F of
    the landmarks, :math:`(F^T F + \lambda I)\, w = F^T y`. A prediction is one product with the
    points that are kept. All in float64.

    References
    ----------
    A. Rudi, L. Carratino, L. Rosasco: FALKON: an optimal large scale kernel method (2017),
    `arXiv:1705.10958 <https://arxiv.org/abs/1705.10958>`_.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.kernels import KernelRidge
    >>> x = np.linspace(0, 6, 300)[:, None]
    >>> model = KernelRidge(1e-4, method="nystrom", rank=20).fit(x, np.sin(x[:, 0]))
    >>> bool(abs(model.predict(np.array([[1.0], [2.0]])) - np.sin([1.0, 2.0])).max() < 1e-3)
    True
    """

    dual_coef_: Any
    solve_info_: SolveInfo
    trace_residual_: float

    def __init__(
        self,
        regularization: float = 1.0,
        *,
        kernel: str = "gaussian",
        bandwidth: Any = 1.0,
        alpha: float = 1.0,
        degree: int = 3,
        offset: float = 1.0,
        method: str = "exact",
        rank: int | None = None,
        tol: float = 1e-6,
        max_iterations: int = 1000,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> None:
        self.regularization = regularization
        self.kernel = kernel
        self.bandwidth = bandwidth
        self.alpha = alpha
        self.degree = degree
        self.offset = offset
        self.method = method
        self.rank = rank
        self.tol = tol
        self.max_iterations = max_iterations
        self.seed = seed
        self.progress = progress

    def fit(self, X: Any, y: Any) -> Self:
        """Learn from points and their values.

        Parameters
        ----------
        X : array_like, shape (n, d)
            Floating-point rows of numpy or torch; integers, lists and data frames become float64.
            Finite.
        y : array_like, shape (n,) or (n, e)
            Finite; of torch where X is.

        Returns
        -------
        self

        Raises
        ------
        InvalidArgumentError
            If a parameter, a shape or a value is out of its range.
        DtypeError
            If X is sparse or not made of numbers.
        ConvergenceError
            If "exact" does not reach tol.
        """
        function = "KernelRidge.fit"
        _checks.choice(function, "method", self.method, ("exact", "nystrom"))
        strength = positive(function, "regularization", self.regularization)
        rows = self._taken(X, function)
        values = _values(y, rows, function)
        fit = self._solve_all if self.method == "exact" else self._solve_some
        fit(rows, values, strength)
        return self

    def predict(self, X: Any) -> Any:
        """Return the values of the function at points.

        Parameters
        ----------
        X : array_like, shape (q, d)

        Returns
        -------
        array (q,) or (q, e) of the library of X
            float32 for such X, else float64.

        Raises
        ------
        InvalidArgumentError
            If the columns are not those of fit, or a value is not finite.
        """
        rows = self._asked(X, "predict")
        arrays = (rows, self.X_fit_, self.dual_coef_)
        x, fitted, coefficients = (_arrays.to_numpy(a).astype(np.float64) for a in arrays)
        out = self._kernel().multiply(x, fitted, coefficients)
        return _arrays.from_numpy(rows, out.astype(_arrays.dtype_name(rows)))

    def score(self, X: Any, y: Any) -> float:
        r"""Return :math:`R^2` of the predictions, averaged over the columns of y.

        Parameters
        ----------
        X : array_like, shape (q, d)
        y : array_like, shape (q,) or (q, e)

        Returns
        -------
        float
            At most 1; 0 for the constant that fits best. A column without variance counts as 1 if
            it is met exactly, else as 0.
        """
        rows = self._asked(X, "score")
        wanted = _arrays.to_numpy(_values(y, rows, "KernelRidge.score")).astype(np.float64)
        came = _arrays.to_numpy(self.predict(rows)).astype(np.float64)
        missed = ((wanted - came) ** 2).sum(0)
        spread = ((wanted - wanted.mean(0)) ** 2).sum(0)
        constant = np.where(missed > 0, 0.0, 1.0)
        return float(np.where(spread > 0, 1 - missed / np.maximum(spread, 1e-300), constant).mean())

    def __sklearn_tags__(self) -> Any:
        """Return scikit-learn's description of this estimator; called by scikit-learn only."""
        from sklearn.utils import RegressorTags, TargetTags

        tags = super().__sklearn_tags__()
        tags.estimator_type = "regressor"
        tags.regressor_tags = RegressorTags()
        tags.target_tags = TargetTags(required=True, multi_output=True)
        return tags

    def _kernel(self) -> Kernel:
        return Kernel(self.kernel, self.bandwidth, self.alpha, self.degree, self.offset)

    def _solve_all(self, rows: Any, values: Any, strength: float) -> None:
        self.dual_coef_, self.solve_info_ = solve(
            rows,
            values,
            regularization=strength,
            kernel=self.kernel,
            bandwidth=self.bandwidth,
            alpha=self.alpha,
            degree=self.degree,
            offset=self.offset,
            tol=self.tol,
            max_iterations=self.max_iterations,
            rank=self.rank,
            seed=self.seed,
            progress=self.progress,
            return_info=True,
        )
        self.X_fit_ = rows

    def _solve_some(self, rows: Any, values: Any, strength: float) -> None:
        points = _arrays.to_numpy(rows).astype(np.float64)
        right = _arrays.to_numpy(values)
        self._kernel().check("KernelRidge.fit", points.shape[1], DEFINITE)
        factor = nystrom(
            points,
            kernel=self.kernel,
            bandwidth=self.bandwidth,
            alpha=self.alpha,
            degree=self.degree,
            offset=self.offset,
            rank=self.rank,
            seed=self.seed,
        )
        inner = gram(factor.left)
        inner[np.diag_indices(len(inner))] += strength
        root = cholesky(inner)
        sides = solve_triangular(root, factor.left.T @ right)
        weights = solve_triangular(root, sides, transposed=True)
        coefficients = solve_triangular(factor.root, weights, transposed=True)
        self.dual_coef_ = _arrays.from_numpy(rows, coefficients)
        self.X_fit_ = rows[_arrays.from_numpy(rows, factor.pivots)]
        self.trace_residual_ = factor.trace_residual


def _values(y: Any, rows: Any, function: str) -> Any:
    """Return targets of rows as float64, in the library of the rows."""
    if y is None:
        raise InvalidArgumentError(
            f"[{function}] y must be the values of the rows: KernelRidge requires y to be passed, "
            "but the target y is None"
        )
    values: Array = np.asarray(_arrays.to_numpy(y))
    if np.iscomplexobj(values):
        raise InvalidArgumentError(f"[{function}] y must be real: Complex data not supported")
    try:
        wide: Floats = values.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise DtypeError(f"[{function}] y must be made of numbers: {error}") from error
    n = int(rows.shape[0])
    if wide.ndim not in {1, 2} or len(wide) != n:
        raise InvalidArgumentError(
            f"[{function}] y must have shape ({n},) or ({n}, e), one value per row of X, got "
            f"{wide.shape}: inconsistent numbers of samples"
        )
    if not np.isfinite(wide).all():
        raise InvalidArgumentError(
            f"[{function}] y must be finite, got NaN or infinity (inf) in row "
            f"{int(np.argmin(np.isfinite(wide).reshape(n, -1).all(1)))}"
        )
    return _arrays.from_numpy(rows, wide)
