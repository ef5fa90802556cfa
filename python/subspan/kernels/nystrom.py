"""Low-rank factors of kernel matrices by randomly pivoted Cholesky."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from subspan import _arrays, _checks, solve_triangular
from subspan.errors import ConvergenceError, InvalidArgumentError
from subspan.kernels._kernel import DEFINITE, Array, Floats, Kernel, generator, points, sides

__all__ = ["NystromFactor", "PivotedCholesky", "nystrom"]

_PROPOSALS = 128  # pivots that are drawn at a time, at most
_STORED = 1 << 24  # entries of the columns of a block, at most
_TILE = 4096
_ROUNDING = 1024 * 2.0**-52  # of k(x, x): residuals below are the rounding of what was subtracted


class PivotedCholesky:
    """A factor that grows, in float64: rows of `factor` [rank, n] are the columns of F.

    Of kernel values in float32 little would be left: a column is divided by the root of its pivot,
    and with it the rounding of what was subtracted.

    Pivots are drawn with probabilities proportional to the diagonal of the residual, as many at a
    time as are worth a matrix product; then each is kept with the probability that the residual
    after those before it still gives it, which makes the pivots those of one draw at a time.
    """

    def __init__(self, rows: Array, kernel: Kernel, seed: int) -> None:
        self.rows, self.kernel = rows.astype(np.float64), kernel
        self.residual = kernel.diagonal(self.rows)
        self.trace = float(self.residual.sum())
        if not np.isfinite(self.trace):
            raise InvalidArgumentError(
                "[nystrom] x must have a finite k(x, x), got one that overflows. Raise bandwidth"
            )
        self.floor = _ROUNDING * self.residual
        self.pivots = np.empty(0, np.int64)
        self._stored: Floats = np.empty((0, len(rows)))
        self._rng = generator(seed, 0)

    @property
    def rank(self) -> int:
        """Number of columns."""
        return len(self.pivots)

    @property
    def factor(self) -> Floats:
        """The transpose of F, [rank, n]."""
        return self._stored[: self.rank]

    @property
    def exhausted(self) -> bool:
        """Whether nothing but rounding is left."""
        return not (self.residual > self.floor).any()

    def grow(self, rank: int) -> Self:
        """Add columns until there are so many, or nothing but rounding is left."""
        self._reserve(rank)
        while self.rank < rank and not self.exhausted:
            self._add(rank - self.rank)
        return self

    def shrink(self, threshold: float, rank: int) -> Self:
        """Add columns until the trace of the residual is so small, or there are so many."""
        while self.residual.sum() > threshold and self.rank < rank and not self.exhausted:
            self._reserve(min(rank, max(32, 2 * self.rank)))
            self._add(rank - self.rank)
        return self

    def _reserve(self, rank: int) -> None:
        if rank > len(self._stored):
            wider: Floats = np.empty((rank, len(self.rows)))
            wider[: self.rank] = self.factor
            self._stored = wider

    def _add(self, most: int) -> None:
        n = len(self.rows)
        count = min(max(32, self.rank // 2), _PROPOSALS, max(8, _STORED // n))
        weights = np.where(self.residual > self.floor, self.residual, 0.0)
        drawn = self._rng.choice(n, count, p=weights / weights.sum())
        chances = self._rng.random(count)
        of_drawn = self.factor[:, drawn]
        block = self.kernel.block(self.rows[drawn], self.rows[drawn]) - of_drawn.T @ of_drawn
        kept, root = _accepted(block, chances, self.floor[drawn])
        room = min(most, len(self._stored) - self.rank)
        chosen, root = drawn[kept[:room]], root[:room, :room]
        landmarks, left = self.rows[chosen], self.factor[:, chosen].T @ self.factor
        for start in range(0, n, _TILE):  # of columns, as both sides of it are then near
            tile = slice(start, start + _TILE)
            left[:, tile] = self.kernel.block(self.rows[tile], landmarks).T - left[:, tile]
        added = solve_triangular(root, left)
        self._stored[self.rank : self.rank + len(chosen)] = added
        self.residual = np.maximum(self.residual - np.einsum("ij,ij->j", added, added), 0.0)
        self.residual[chosen] = 0.0
        self.pivots = np.concatenate([self.pivots, chosen])


def _accepted(block: Floats, chances: Floats, floor: Floats) -> tuple[list[int], Floats]:
    """Return which of the drawn pivots are kept, and the Cholesky factor of the residual there."""
    left, first = block.copy(), np.diag(block).copy()
    kept: list[int] = []
    columns: list[Floats] = []
    for i in range(len(left)):
        pivot = float(left[i, i])
        if pivot > floor[i] and chances[i] * first[i] < pivot:
            kept.append(i)
            columns.append(left[:, i] / np.sqrt(pivot))
            left -= np.outer(columns[-1], columns[-1])
    return kept, np.tril(np.array(columns).T[kept])


@dataclass(frozen=True, eq=False)
class NystromFactor:
    r"""A kernel matrix as the product of two thin factors: :math:`K(x, y) \approx F_x F_y^T`.

    Parameters
    ----------
    left : ndarray (n, r)
        :math:`F_x = K(x, z) L^{-T}` with the landmarks z and :math:`L L^T = K(z, z)`.
    right : ndarray (m, r)
        The same of y; where there is no y, left itself.
    landmarks : ndarray (r, d)
        Points of x and y.
    pivots : ndarray (r,) of int64
        Their places among the rows of x, and behind them those of y.
    residual : ndarray (n,) or (n + m,) of float64
        What the approximation leaves of k of every point with itself, >= 0.
    trace : float
        Sum of k of every point with itself.
    root : ndarray (r, r) of float64
        Cholesky factor L of the kernel matrix of the landmarks.

    Notes
    -----
    ``factor @ v`` multiplies, at 2 (n + m) r flops for each right-hand side. K less the factors is
    positive semidefinite over all points, so no entry of it exceeds the root of
    ``residual[i] * residual[j]``.
    """

    left: Array
    right: Array
    landmarks: Array
    pivots: Array
    residual: Floats
    trace: float
    root: Floats
    _kernel: Kernel

    @property
    def rank(self) -> int:
        """Number of landmarks."""
        return int(self.left.shape[1])

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the matrix."""
        return len(self.left), len(self.right)

    @property
    def trace_residual(self) -> float:
        """Trace norm of the kernel matrix of all points less its approximation."""
        return float(self.residual.sum())

    @property
    def bound(self) -> float:
        """Bound on the largest singular value of K(x, y) less the factors."""
        if self.right is self.left:
            return self.trace_residual
        n = len(self.left)
        return float(np.sqrt(self.residual[:n].sum() * self.residual[n:].sum()))

    def __matmul__(self, v: Any) -> Any:
        """Return the product with vectors (m,) or (m, e), in their library."""
        values, vectors = sides("NystromFactor", "v", v, len(self.right), self.left.dtype)
        out = self.left @ (self.right.T @ values)
        return _arrays.from_numpy(v, out[:, 0] if vectors else out)

    def features(self, x: Any) -> Any:
        """Return the rows of the factor of other points (n, d), in their library: (n, r)."""
        (rows,) = points("NystromFactor.features", x=x)
        if rows.shape[1] != self.landmarks.shape[1]:
            raise InvalidArgumentError(
                f"[NystromFactor.features] x must have {self.landmarks.shape[1]} columns like the "
                f"landmarks, got {rows.shape[1]}"
            )
        wide = self._kernel.block(rows.astype(np.float64), self.landmarks.astype(np.float64))
        out = solve_triangular(self.root, wide.T).T
        return _arrays.from_numpy(x, out.astype(rows.dtype, order="C"))


def nystrom(
    x: Any,
    y: Any = None,
    *,
    kernel: str = "gaussian",
    bandwidth: Any = 1.0,
    alpha: float = 1.0,
    degree: int = 3,
    offset: float = 1.0,
    rank: int | None = None,
    tol: float | None = None,
    seed: int = 0,
) -> NystromFactor:
    r"""Return a low-rank factorisation of a kernel matrix, for many products with it.

    .. math:: K(x, y) \approx K(x, z)\, K(z, z)^{-1} K(z, y)

    with landmarks z that randomly pivoted Cholesky chooses among the points of x and y.

    Parameters
    ----------
    x : array (n, d)
        float32 or float64 of numpy, torch or another library with DLPack (CPU); finite.
    y : array (m, d), optional
        None: x itself.
    kernel, bandwidth, alpha, degree, offset
        As in `subspan.kernel_matvec`; of the kernels that are positive definite (offset >= 0).
    rank : int, optional
        Landmarks, 1 to the number of points; with tol, at most so many. None: min(points, 1024).
        Fewer are taken where nothing but rounding is left to explain.
    tol : float, optional
        Largest trace of what is left, as a part of the trace of the matrix of all points.
    seed : int
        0 to 2^64 - 1.

    Returns
    -------
    NystromFactor

    Raises
    ------
    InvalidArgumentError
        Shapes do not fit, NaN or infinity, a name is unknown, rank or tol out of range.
    ConvergenceError
        tol is not met with rank landmarks; the message names what is.
    DtypeError
        An argument is no array, or not float32 or float64.
    UnsupportedError
        An array is on a CUDA device, or requires a gradient.

    Notes
    -----
    2 N r (d + r) flops in float64 for N points, and up to 12 N r bytes. The expected trace of what
    is left is near that of the best approximation of slightly lower rank. It is known but for 2e-13
    of the diagonal, and the rounding of the factors to the dtype of x.

    References
    ----------
    Y. Chen, E. N. Epperly, J. A. Tropp, R. J. Webber: Randomly pivoted Cholesky: practical
    approximation of a kernel matrix with few entry evaluations (2022), `arXiv:2207.06503
    <https://arxiv.org/abs/2207.06503>`_. Many pivots at a time: E. N. Epperly, J. A. Tropp,
    R. J. Webber: Embrace rejection (2024), `arXiv:2410.03969 <https://arxiv.org/abs/2410.03969>`_.

    Examples
    --------
    >>> import numpy as np, subspan
    >>> from subspan.kernels import nystrom
    >>> x = np.linspace(0, 1, 500)[:, None]
    >>> factor = nystrom(x, bandwidth=0.3, tol=1e-9)
    >>> factor.rank < 20
    True
    >>> v = np.ones(500)
    >>> bool(abs(factor @ v - subspan.kernel_matvec(x, None, v, bandwidth=0.3)).max() < 1e-6)
    True
    """
    function = "nystrom"
    rows = points(function, x=x, y=y)
    how = Kernel(kernel, bandwidth, alpha, degree, offset)
    how.check(function, rows[0].shape[1], DEFINITE)
    total = sum(map(len, rows))
    most = min(total, 1024)
    if rank is not None:
        most = _checks.integer(function, "rank", rank, low=1, high=total)
    _checks.integer(function, "seed", seed, low=0, high=(1 << 64) - 1)
    growth = PivotedCholesky(np.concatenate(rows), how, seed)
    if tol is None:
        growth.grow(most)
    else:
        tol = _checks.real(function, "tol", tol, low=0.0)
        growth.shrink(tol * growth.trace, most)
        achieved = float(growth.residual.sum()) / max(growth.trace, 1e-300)
        if achieved > tol:
            raise ConvergenceError(
                f"[{function}] tol must be one that {growth.rank} landmarks can meet, got {tol:g} "
                f"where they reach {achieved:.3g}. Raise rank or tol"
            )
    n, dtype = len(rows[0]), rows[0].dtype
    left = growth.factor[:, :n].T.astype(dtype, order="C")
    right = growth.factor[:, n:].T.astype(dtype, order="C") if y is not None else left
    return NystromFactor(
        left=left,
        right=right,
        landmarks=growth.rows[growth.pivots].astype(dtype),
        pivots=growth.pivots,
        residual=growth.residual,
        trace=growth.trace,
        root=np.tril(growth.factor[:, growth.pivots].T),
        _kernel=how,
    )
