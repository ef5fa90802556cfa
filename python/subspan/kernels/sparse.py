"""Kernel matrices as their large entries and a sampled rest."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subspan import _arrays, _checks, radius_neighbors, sparse_decode
from subspan.errors import ConvergenceError
from subspan.kernels._error import ProductInfo
from subspan.kernels._kernel import DECREASING, Array, Floats, Kernel, generator, points, sides

__all__ = ["SparseFactor", "sparsify"]

_COLUMNS = 64  # samples of a tile
_STREAM = 1 << 34

NORM = "norm2(out - K v) / norm2(K v), by an empirical Bernstein bound that fails with at most 1%"
_FAILURE = 0.01


@dataclass(frozen=True, eq=False)
class SparseFactor:
    r"""The large entries of a kernel matrix, :math:`K = C + R` with :math:`0 \le R < \tau`.

    Parameters
    ----------
    values : ndarray (pairs,)
        Entries of C, row after row.
    indices : ndarray (pairs,) of int64
        Their columns.
    offsets : ndarray (n + 1,) of int64
        Where rows begin.
    threshold : float
        What no entry that is left out exceeds.
    shape : tuple of int
        Rows and columns of K.

    Notes
    -----
    ``factor @ v`` is the product with C alone, at 2 pairs flops for each right-hand side: exact in
    every row up to ``threshold * sum(abs(v))``. `product` adds R, from samples of its columns.
    """

    values: Array
    indices: NDArray[np.int64]
    offsets: NDArray[np.int64]
    threshold: float
    shape: tuple[int, int]
    _x: Array
    _y: Array
    _scaled: tuple[Array, Array]
    _sums: Floats  # of the columns of R, from above
    _radius: float
    _kernel: Kernel

    @property
    def pairs(self) -> int:
        """Number of stored entries."""
        return len(self.values)

    def __matmul__(self, v: Any) -> Any:
        """Return C v for vectors (m,) or (m, e), in their library."""
        values, vectors = sides("SparseFactor", "v", v, self.shape[1], self._x.dtype)
        out = self._stored(values)
        return _arrays.from_numpy(v, out[:, 0] if vectors else out)

    def product(self, v: Any, *, tol: float, seed: int = 0, return_info: bool = False) -> Any:
        r"""Return K v to a relative error, which the columns that are drawn for it show.

        The columns of the :math:`\sqrt m` largest entries of v are taken whole. Of the other
        columns of R some are drawn, twice as many again and again, until a bound on the error of
        their mean is small enough.

        Parameters
        ----------
        v : array (m,) or (m, e)
        tol : float
            ``norm2(out - K v) <= tol * norm2(K v)`` of every right-hand side, but for one call in
            a hundred.
        seed : int
            0 to 2^64 - 1.
        return_info : bool

        Returns
        -------
        array (n,) or (n, e), and `ProductInfo` with return_info
            In the library and dtype of v.

        Raises
        ------
        ConvergenceError
            Half of all columns are not enough; the message names the error that is met. The exact
            product is quicker then.

        Notes
        -----
        n s (d + 64) flops for s columns. The bounds are Bernstein's for vectors (of Pinelis), with
        the mean square bounded by Maurer's and Pontil's from the sample itself, and 1% shared
        among all looks at it; drawing without replacement only helps.
        """
        function = "SparseFactor.product"
        values, vectors = sides(function, "v", v, self.shape[1], self._x.dtype)
        tol = _checks.real(function, "tol", tol, low=0.0)
        _checks.integer(function, "seed", seed, low=0, high=(1 << 64) - 1)
        out, error, samples, made = self._sampled(values, tol, seed)
        if error > tol:
            raise ConvergenceError(
                f"[{function}] tol must be one that half of the columns can meet, got {tol:g} "
                f"where they reach {error:.3g}. Lower the threshold, or use the exact product"
            )
        delivered = _arrays.from_numpy(v, (out[:, 0] if vectors else out).astype(values.dtype))
        if not return_info:
            return delivered
        return delivered, ProductInfo("sparse", error, NORM, float("nan"), 0, made, samples)

    def _stored(self, v: Array) -> Array:
        out: Array = sparse_decode(
            self.values, self.indices, np.ascontiguousarray(v), offsets=self.offsets
        )
        return out

    def _sampled(self, v: Array, tol: float, seed: int) -> tuple[Floats, float, int, int]:
        """Return K v, its error, columns that were drawn and entries that were made."""
        n, m = self.shape
        norms = np.sqrt((v.astype(np.float64) ** 2).sum(0))
        heaviest = np.argsort(-(np.abs(v) / np.where(norms > 0, norms, 1)).max(1), kind="stable")
        whole, light = np.split(heaviest, [int(np.ceil(np.sqrt(m)))])
        rest = v.copy()
        rest[whole] = 0
        base = self._stored(rest).astype(np.float64)
        base += self._kernel.multiply(self._x, self._y[whole], v[whole])
        made = self.pairs + n * len(whole)
        if not len(light):
            return base, 0.0, 0, made
        light = generator(seed, _STREAM).permutation(light)
        # No column of R, squared, sums to more than its own sum times its largest entry.
        lengths = np.sqrt(self.threshold * self._sums)
        longest = (np.abs(rest) * lengths[:, None]).max(0) * len(light)
        sums = np.zeros(base.shape)
        squares = np.zeros((0, v.shape[1]))
        wanted, looks = _COLUMNS, 0
        while True:
            while len(squares) < min(wanted, len(light)):
                drawn = light[len(squares) : min(len(squares) + _COLUMNS, wanted, len(light))]
                tile = self._light(drawn)
                sums += tile @ v[drawn]
                scales = (len(light) * v[drawn].astype(np.float64)) ** 2
                own = np.einsum("ij,ij->j", tile, tile, dtype=np.float64)
                squares = np.concatenate([squares, scales * own[:, None]])
            samples, looks = len(squares), looks + 1
            out = base + sums * (len(light) / samples)
            off = np.zeros(v.shape[1])
            if samples < len(light):
                off = _bernstein(squares, longest, _FAILURE / (looks * (looks + 1)) / v.shape[1])
            size = np.sqrt((out**2).sum(0))
            with np.errstate(divide="ignore", invalid="ignore"):  # K v is at least size - off
                ratio = np.where(off > 0, off / np.maximum(size - off, 0), 0.0)
            error = float(ratio.max(initial=0.0))
            if error <= tol or 2 * samples > len(light):
                return out, error, samples, made + n * samples
            wanted = 2 * samples

    def _light(self, drawn: NDArray[np.int64]) -> Array:
        """Return columns of R: those of K without what is in C."""
        tile = self._kernel.block(self._x, self._y[drawn])
        x, y = self._scaled
        near = radius_neighbors(x, y[drawn], radius=self._radius)
        tile[np.repeat(np.arange(len(tile)), np.diff(near.offsets)), near.indices] = 0
        return tile


def _bernstein(squares: Floats, longest: Floats, failure: float) -> Floats:
    """Bound the error of the mean of vectors whose lengths squared and longest length are given."""
    count, log = len(squares), np.log(4 / failure)
    top = longest**2
    mean, variance = squares.mean(0), squares.var(0, ddof=1)
    slack = np.sqrt(2 * variance * log / count) + 7 * top * log / (3 * (count - 1))
    power = np.minimum(mean + slack, top)
    return np.asarray(np.sqrt(2 * power * log / count) + 4 * longest * log / (3 * count))


def sparsify(
    x: Any,
    y: Any = None,
    *,
    kernel: str = "gaussian",
    bandwidth: Any = 1.0,
    alpha: float = 1.0,
    threshold: float = 1e-3,
) -> SparseFactor:
    """Return the entries of a kernel matrix that are not small, for many products with it.

    Parameters
    ----------
    x : array (n, d)
        float32 or float64 of numpy, torch or another library with DLPack (CPU); finite.
    y : array (m, d), optional
        None: x itself.
    kernel, bandwidth, alpha
        As in `subspan.kernel_matvec`; of the kernels that decrease with the distance.
    threshold : float
        In (0, 1): entries at least as large are stored.

    Returns
    -------
    SparseFactor

    Raises
    ------
    InvalidArgumentError
        Shapes do not fit, NaN or infinity, a name is unknown, threshold is out of range.
    DtypeError
        An argument is no array, or not float32 or float64.
    UnsupportedError
        An array is on a CUDA device, or requires a gradient.

    Notes
    -----
    The search of `subspan.radius_neighbors`, 2 n m d flops, and the sums of the columns, so that
    one product alone takes longer than the exact one; 0.1 microseconds and 24 bytes for each pair.

    References
    ----------
    The split into large entries and a sampled rest: P. Indyk, M. Kapralov, K. Sheth, T. Wagner:
    Improved algorithms for kernel matrix-vector multiplication under sparsity assumptions, ICLR
    2025, `arXiv:2507.23539 <https://arxiv.org/abs/2507.23539>`_, who find large entries by hashing,
    in less than quadratic time. The bounds: I. Pinelis: Optimum bounds for the distributions of
    martingales in Banach spaces, Annals of Probability 22 (1994); A. Maurer, M. Pontil: Empirical
    Bernstein bounds and sample-variance penalization (2009), `arXiv:0907.3740
    <https://arxiv.org/abs/0907.3740>`_.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.kernels import sparsify
    >>> x = np.array([[0.0], [0.1], [5.0]])
    >>> factor = sparsify(x, threshold=0.01)
    >>> factor.pairs
    5
    >>> (factor @ np.ones(3)).round(3)
    array([1.995, 1.995, 1.   ])
    """
    function = "sparsify"
    rows = points(function, x=x, y=y)
    how = Kernel(kernel, bandwidth, alpha)
    how.check(function, rows[0].shape[1], DECREASING)
    threshold = _checks.real(function, "threshold", threshold, low=1e-30, high=1 - 1e-6)
    first, last = rows[0], rows[-1]
    centre = last.mean(0, dtype=np.float64)
    scaled = how.scaled(first, centre), how.scaled(last, centre)
    radius = how.radius(threshold)
    near = radius_neighbors(*scaled, radius=radius, dtype="float64")
    values = how.profile(near.distances).astype(first.dtype)
    sums = how.multiply(last, None if y is None else first, np.ones(len(first), first.dtype))
    rounding = 1 + 64 * float(np.finfo(first.dtype).eps)
    rest = rounding * sums - np.bincount(near.indices, values, len(last))
    return SparseFactor(
        values=values,
        indices=near.indices,
        offsets=near.offsets,
        threshold=threshold,
        shape=(len(first), len(last)),
        _x=first,
        _y=last,
        _scaled=scaled,
        _sums=np.maximum(rest, 0.0),
        _radius=radius,
        _kernel=how,
    )
