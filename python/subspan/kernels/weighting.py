"""Weighting vectors and magnitudes: which points of a set count, and for how many they do."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from subspan import _arrays, _checks, cholesky, knn, solve_triangular
from subspan.errors import ConvergenceError, InvalidArgumentError
from subspan.kernels._conjugate import ConjugateGradients
from subspan.kernels._kernel import Floats, Kernel, points

__all__ = ["magnitude", "weighting_vector"]

_METHODS = ("auto", "cholesky", "cg", "neighbors")
# Rows up to which "auto" factors the matrix.
_DENSE = 4000
# Elements of a batch of small matrices.
_BATCH = 1 << 22


def weighting_vector(
    x: Any,
    *,
    scale: float = 1.0,
    method: str = "auto",
    ridge: float = 0.0,
    n_neighbors: int = 32,
    tol: float = 1e-8,
    max_iter: int = 1000,
) -> Any:
    r"""Return the weighting of a set of points: the w that solves Z w = 1.

    .. math:: Z_{ij} = \exp(-\mathrm{scale}\, |x_i - x_j|)

    Points inside a cloud have small or negative weights, those at its boundary, and outliers, large
    ones. Z is positive definite, so w minimises w^T Z w / 2 - 1^T w.

    Parameters
    ----------
    x : array (n, d) or (n,)
        float32 or float64 of numpy, torch or another library with DLPack (CPU).
    scale : float
        > 0, one over the unit of length: w tends to 1 as it grows.
    method : {"auto", "cholesky", "cg", "neighbors"}
        "cholesky": n² memory. "cg": conjugate gradients over products with Z, memory n.
        "neighbors": every point among its nearest neighbours alone, an approximation in n times
        n_neighbors³ steps and one search. "auto": cholesky up to 4000 points, then cg.
    ridge : float
        >= 0, added to the diagonal of Z.
    n_neighbors : int
        >= 1, the point among them, of "neighbors".
    tol, max_iter : float, int
        Of "cg": the norm of 1 - Z w over that of 1, and the most steps.

    Returns
    -------
    array (n,)
        float64, in the library of x. Equal points share the weight of one: the sum is as if they
        were merged.

    Raises
    ------
    InvalidArgumentError
        No point, NaN or infinity, an unknown name, an option out of range; points so near each
        other that Z is not positive definite in float64.
    ConvergenceError
        "cg" did not reach tol.
    DtypeError
        x is no array, or not float32 or float64.
    UnsupportedError
        x is on a CUDA device, or requires a gradient.

    Notes
    -----
    Cholesky: n³ / 3 multiplications. A step of cg: n² d multiplications and n² exponentials. All in
    float64. With "neighbors" the weight of i is the i-th entry of the solution for its neighbours:
    right as far as ``exp(-scale |x_i - x_j|)`` is small beyond them.

    References
    ----------
    T. Leinster: The magnitude of metric spaces, Documenta Mathematica 18 (2013); E. Bunch, J.
    Kline, D. Dickinson, S. Bhat, G. Fung: Weighting vectors for machine learning, arXiv 2106.00827.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.kernels import weighting_vector
    >>> weighting_vector(np.array([0.0, 1.0, 2.0])).round(4)  # the middle counts less
    array([0.7311, 0.4621, 0.7311])
    """
    function = "weighting_vector"
    return _arrays.from_numpy(
        x,
        _weights(
            function,
            x,
            scale=scale,
            method=method,
            ridge=ridge,
            n_neighbors=n_neighbors,
            tol=tol,
            max_iter=max_iter,
        ),
    )


def magnitude(x: Any, *, scale: float = 1.0, **options: Any) -> float:
    r"""Return the magnitude of a set of points, the sum of its weighting: how many they count for.

    .. math:: |X| = \sum_i w_i, \quad Z w = 1, \quad Z_{ij} = \exp(-\mathrm{scale}\, |x_i - x_j|)

    Parameters
    ----------
    x : array (n, d) or (n,)
        As in `weighting_vector`.
    scale : float
        > 0: from 1 where it is small to the number of different points where it is large.
    **options
        Of `weighting_vector`.

    Returns
    -------
    float

    Raises
    ------
    InvalidArgumentError, ConvergenceError, DtypeError, UnsupportedError
        As `weighting_vector`.

    Notes
    -----
    Costs what `weighting_vector` costs. Two points at distance D have 2 / (1 + exp(-scale D)).

    References
    ----------
    As `weighting_vector`.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.kernels import magnitude
    >>> x = np.array([0.0, 0.001, 5.0, 5.001])
    >>> [round(magnitude(x, scale=scale), 2) for scale in (1e-4, 1.0, 1e5)]
    [1.0, 1.99, 4.0]
    """
    unknown = set(options) - {"method", "ridge", "n_neighbors", "tol", "max_iter"}
    if unknown:
        raise InvalidArgumentError(
            "[magnitude] options must be those of weighting_vector, got "
            f"{', '.join(sorted(unknown))}"
        )
    return float(_weights("magnitude", x, scale=scale, **options).sum())


def _weights(
    function: str,
    x: Any,
    *,
    scale: float,
    method: str = "auto",
    ridge: float = 0.0,
    n_neighbors: int = 32,
    tol: float = 1e-8,
    max_iter: int = 1000,
) -> Floats:
    _checks.choice(function, "method", method, _METHODS)
    unit = _checks.real(function, "scale", scale, high=1e300)
    if unit <= 0:
        raise InvalidArgumentError(f"[{function}] scale must be > 0, got {unit}")
    ridge = _checks.real(function, "ridge", ridge, low=0.0, high=1e300)
    k = _checks.integer(function, "n_neighbors", n_neighbors, low=1)
    tol = _checks.real(function, "tol", tol, low=1e-15, high=1.0)
    steps = _checks.integer(function, "max_iter", max_iter, low=1)
    _arrays.require_array(function, "x", x)
    (rows,) = points(function, x=x if len(x.shape) != 1 else x[:, None])
    distinct, places, counts = np.unique(
        rows.astype(np.float64), axis=0, return_inverse=True, return_counts=True
    )
    system = _System(Kernel("laplacian", 1.0 / unit), distinct - distinct.mean(axis=0), ridge)
    if method == "auto":
        method = "cholesky" if len(distinct) <= _DENSE else "cg"
    if method == "cholesky":
        weights = system.by_factor(function)
    elif method == "cg":
        weights = system.by_gradients(function, tol, steps)
    else:
        weights = system.by_neighbors(function, min(k, len(distinct)))
    return np.asarray((weights / counts)[places.reshape(-1)])


@dataclass(frozen=True, eq=False)
class _System:
    """Z + ridge I of different points."""

    kernel: Kernel
    points: Floats
    ridge: float

    def by_factor(self, function: str) -> Floats:
        """Decompose the matrix."""
        matrix = self.kernel.block(self.points, self.points)
        matrix[np.diag_indices(len(matrix))] += self.ridge
        return _solved(function, matrix)

    def by_gradients(self, function: str, tol: float, steps: int) -> Floats:
        """Take products with it alone."""

        def multiply(v: Floats) -> Floats:
            return np.asarray(self.kernel.multiply(self.points, None, v) + self.ridge * v)

        descent = ConjugateGradients(multiply, _same, tol, steps, _silent)
        weights, left = descent.solve(np.ones((len(self.points), 1)))
        if left[0] > tol:
            raise ConvergenceError(
                f"[{function}] tol must be a residual that can be met, got {tol:g} where cg "
                f"reaches {left[0]:.3g} after {len(descent.history)} steps. Raise max_iter, scale, "
                "tol or ridge"
            )
        return np.asarray(weights[:, 0])

    def by_neighbors(self, function: str, k: int) -> Floats:
        """Solve for the nearest neighbours of every point, itself among them, and keep its own."""
        n, d = self.points.shape
        near = knn(self.points, self.points, k=k).indices
        out = np.empty(n)
        step = max(1, _BATCH // (k * max(k, d)))
        for start in range(0, n, step):
            own = near[start : start + step]
            groups = self.points[own]
            matrices = self.kernel.multiply(groups - groups[:, :1], None, np.eye(k)[None])
            solved = _solved(function, np.asarray(matrices) + self.ridge * np.eye(k))
            rows = np.arange(start, start + len(own))
            out[rows] = (solved * (own == rows[:, None])).sum(axis=1)
        return out


def _same(residual: Floats) -> Floats:
    return residual


def _silent(_: int) -> None:
    """Tell nobody."""


def _solved(function: str, matrices: Floats) -> Floats:
    """Return the solutions of Z w = 1 of positive definite matrices (..., n, n)."""
    factor, info = cholesky(matrices, errors="info")
    if info.any():
        raise InvalidArgumentError(
            f"[{function}] x must have points so far apart that Z is positive definite in float64, "
            f"got nearer ones (leading minor {int(info.max())}). Take a larger scale or ridge=1e-10"
        )
    half = solve_triangular(factor, np.ones((*matrices.shape[:-1], 1)))
    return np.asarray(solve_triangular(factor, half, transposed=True)[..., 0])
