"""Regularised systems of kernel matrices."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from subspan import _arrays, _checks, cholesky, gram, solve_triangular
from subspan.errors import ConvergenceError, InvalidArgumentError
from subspan.kernels._conjugate import ConjugateGradients
from subspan.kernels._kernel import DEFINITE, Array, Floats, Kernel, points, sides
from subspan.kernels.nystrom import PivotedCholesky

__all__ = ["Progress", "SolveInfo", "solve"]

Progress = Callable[[str, int, int], None]
"""Called as ``progress(stage, done, total)``: "landmarks", then "iterations" (at most total)."""

_DENSE = 3000  # points up to which the matrix is made and decomposed
_STORED = 1 << 26  # numbers of the preconditioner, where nobody says how many


@dataclass(frozen=True, eq=False)
class SolveInfo:
    """How a system was solved.

    Parameters
    ----------
    method : {"cholesky", "cg"}
    iterations : int
        Products with the matrix that "cg" took, but for those that check.
    residuals : ndarray (e,)
        ``norm2(y - (K + regularization I) alpha) / norm2(y)`` of every right-hand side, made anew
        at the end.
    history : ndarray (iterations,)
        The largest of them after each iteration, as the recurrence has it.
    rank : int
        Landmarks of the preconditioner.
    """

    method: str
    iterations: int
    residuals: Floats
    history: Floats
    rank: int


def solve(
    x: Any,
    y: Any,
    *,
    regularization: float,
    kernel: str = "gaussian",
    bandwidth: Any = 1.0,
    alpha: float = 1.0,
    degree: int = 3,
    offset: float = 1.0,
    method: str = "auto",
    tol: float = 1e-6,
    max_iterations: int = 1000,
    rank: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    return_info: bool = False,
) -> Any:
    r"""Solve a regularised system of a kernel matrix, without the matrix where it is large.

    .. math:: (K(x, x) + \lambda I)\, \alpha = y

    Parameters
    ----------
    x : array (n, d)
        float32 or float64 of numpy, torch or another library with DLPack (CPU); finite.
    y : array (n,) or (n, e)
        One or several right-hand sides, of the library of x.
    regularization : float
        :math:`\lambda > 0`.
    kernel, bandwidth, alpha, degree, offset
        As in `subspan.kernel_matvec`; of the kernels that are positive definite (offset >= 0).
    method : {"auto", "cholesky", "cg"}
        Decompose the matrix, which takes 8 n^2 bytes, or conjugate gradients; "auto": up to 3000
        points the former.
    tol : float
        Largest norm of the residual of a right-hand side over its own.
    max_iterations : int
        Of "cg".
    rank : int, optional
        Landmarks of the preconditioner, 0 for none. None: 10 sqrt(n), fewer where they would take
        more than 512 MB, or leave a trace of K below the regularization.
    seed : int
        0 to 2^64 - 1, for the landmarks.
    progress : callable, optional
        Called as ``progress(stage, done, total)``: "landmarks", "iterations".
    return_info : bool
        Return a `SolveInfo` besides.

    Returns
    -------
    array (n,) or (n, e), with return_info a tuple of it and SolveInfo
        In the library and dtype of y.

    Raises
    ------
    ConvergenceError
        tol is not met; the message names the residual that is.
    InvalidArgumentError
        Shapes do not fit, NaN or infinity, a name is unknown, regularization is not positive, or
        another number is out of its range.
    DtypeError
        An argument is no array, or not float32 or float64.
    UnsupportedError
        An array is on a CUDA device, or requires a gradient.

    Notes
    -----
    In float64 throughout. "cg": an exact product with K for each iteration and all right-hand
    sides; memory 8 n (rank + 5 e) bytes. The preconditioner is :math:`(F F^T + \lambda I)^{-1}`
    with the factor of randomly pivoted Cholesky: where the eigenvalues of K beyond the rank sum to
    less than the regularization, a few iterations do, whatever n.

    References
    ----------
    M. Diaz, E. N. Epperly, Z. Frangella, J. A. Tropp, R. J. Webber: Robust, randomized
    preconditioning for kernel ridge regression (2023), `arXiv:2304.12465
    <https://arxiv.org/abs/2304.12465>`_.

    Examples
    --------
    >>> import numpy as np, subspan
    >>> from subspan.kernels import solve
    >>> x = np.linspace(0, 1, 200)[:, None]
    >>> y = np.sin(9 * x[:, 0])
    >>> a, info = solve(x, y, regularization=0.1, bandwidth=0.1, method="cg", return_info=True)
    >>> residual = y - subspan.kernel_matvec(x, None, a, bandwidth=0.1) - 0.1 * a
    >>> bool(np.linalg.norm(residual) <= 1e-6 * np.linalg.norm(y)), info.iterations < 10
    (True, True)
    """
    function = "solve"
    (rows,) = points(function, x=x)
    _arrays.require_same(function, x=x, y=y)
    wide = rows.astype(np.float64)
    values, vectors = sides(function, "y", y, len(rows), np.dtype(np.float64))
    how = Kernel(kernel, bandwidth, alpha, degree, offset)
    how.check(function, rows.shape[1], DEFINITE)
    _checks.choice(function, "method", method, ("auto", "cholesky", "cg"))
    tol = _checks.real(function, "tol", tol, low=0.0)
    strength = positive(function, "regularization", regularization)
    most = _checks.integer(function, "max_iterations", max_iterations, low=1)
    if rank is not None:
        _checks.integer(function, "rank", rank, low=0, high=len(rows))
    _checks.integer(function, "seed", seed, low=0, high=(1 << 64) - 1)
    tell = progress or _silent
    system = _System(how, wide, strength)
    if method == "cholesky" or (method == "auto" and len(rows) <= _DENSE):
        out, info = _direct(system, values, tol)
    else:
        conditioner = _Preconditioner(system, rank, seed, tell)
        tell("iterations", 0, most)
        descent = ConjugateGradients(
            system.multiply,
            conditioner.apply,
            tol,
            most,
            lambda done: tell("iterations", done, most),
        )
        out, residuals = descent.solve(values)
        history = np.array(descent.history)
        info = SolveInfo("cg", len(history), residuals, history, conditioner.rank)
    achieved = float(info.residuals.max(initial=0.0))
    if not achieved <= tol:
        advice = "Raise tol or regularization"
        if info.method == "cg":
            advice += ", max_iterations or rank"
        raise ConvergenceError(
            f"[{function}] tol must be a residual that can be met, got {tol:g} where "
            f"{info.method!r} reaches {achieved:.3g} after {info.iterations} iterations. {advice}"
        )
    out = out.astype(_arrays.dtype_name(y))
    delivered = _arrays.from_numpy(y, out[:, 0] if vectors else out)
    return (delivered, info) if return_info else delivered


def positive(function: str, name: str, value: Any) -> float:
    """Return a finite number above 0."""
    number = _checks.real(function, name, value, high=1e300)
    if number <= 0:
        raise InvalidArgumentError(f"[{function}] {name} must be > 0, got {number}")
    return number


def _silent(stage: str, done: int, total: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True, eq=False)
class _System:
    """K + strength I of float64 points."""

    kernel: Kernel
    x: Array
    strength: float

    def multiply(self, v: Floats) -> Floats:
        out: Floats = self.kernel.multiply(self.x, None, v)
        return out + self.strength * v


def _direct(system: _System, b: Floats, tol: float) -> tuple[Floats, SolveInfo]:
    matrix = system.kernel.block(system.x, system.x)
    matrix[np.diag_indices(len(matrix))] += system.strength
    root, status = cholesky(matrix, errors="info")
    if int(status):
        raise InvalidArgumentError(
            f"[solve] regularization must be large enough for a definite matrix, got "
            f"{system.strength:g} beside rounding. Raise it"
        )

    def inverse(r: Floats) -> Floats:
        out: Floats = solve_triangular(root, solve_triangular(root, r), transposed=True)
        return out

    sizes = np.linalg.norm(b, axis=0)
    sizes = np.where(sizes > 0, sizes, 1.0)
    out = inverse(b)
    for steps in range(4):  # of refinement, where the matrix is close to singular
        residual = b - system.multiply(out)
        norms = np.linalg.norm(residual, axis=0) / sizes
        if steps == 3 or (norms <= tol).all():
            break
        out += inverse(residual)
    return out, SolveInfo("cholesky", 0, norms, np.empty(0), 0)


class _Preconditioner:
    """The inverse of F F^T + strength I, by Woodbury's formula."""

    def __init__(self, system: _System, rank: int | None, seed: int, tell: Progress) -> None:
        n = len(system.x)
        self.strength = system.strength
        most = min(n, int(10 * np.sqrt(n)), max(1, _STORED // n)) if rank is None else rank
        growth = PivotedCholesky(system.x, system.kernel, seed)
        tell("landmarks", 0, most)
        while growth.rank < most and not growth.exhausted:
            # The condition is at most 1 + trace / strength: a few iterations from here.
            if rank is None and growth.residual.sum() <= system.strength:
                break
            growth.grow(min(most, growth.rank + 32))
            tell("landmarks", growth.rank, most)
        self.factor, self.rank = growth.factor, growth.rank
        if self.rank:
            inner = gram(self.factor.T)
            inner[np.diag_indices(self.rank)] += self.strength
            self.root = cholesky(inner)

    def apply(self, r: Floats) -> Floats:
        if not self.rank:
            return r / self.strength
        inner = solve_triangular(self.root, self.factor @ r)
        inner = solve_triangular(self.root, inner, transposed=True)
        return np.asarray((r - self.factor.T @ inner) / self.strength)
