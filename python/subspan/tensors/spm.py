"""The subspace power method: symmetric tensors as sums of powers of vectors."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from subspan import _arrays, _checks, _multisets
from subspan.errors import ConvergenceError, InvalidArgumentError
from subspan.tensors import _spm_finish
from subspan.tensors._spm_basis import Array, SymmetricBasis, flatten, flatten_full
from subspan.tensors._spm_moments import moment_matrix
from subspan.tensors._spm_power import Deflation, Options, Search
from subspan.tensors._spm_spectrum import Spectrum, spectrum_of

__all__ = ["SPM", "SPMInfo", "spm", "spm_from_samples"]


class SPMInfo(NamedTuple):
    """How a decomposition went."""

    rank: int
    """Number of components."""
    error: float
    """``|T - sum of components| / |T|``, Frobenius norms of the full tensors."""
    spectrum: npt.NDArray[np.float64]
    """Eigenvalues (even orders) or singular values (odd ones) of the flattening that were worked
    out, by descending magnitude."""
    cutoff: float
    """Magnitude from which a value of the spectrum counts towards the rank."""
    fits: npt.NDArray[np.float64]
    """(rank,) squared length of the projection of each a^(h) on the subspace, 1 without noise."""
    converged: npt.NDArray[np.bool_]
    """(rank,) whether the power iteration of each component came to rest within max_iter steps."""
    iterations: npt.NDArray[np.int64]
    """(rank,) steps of the start that led to each component."""
    steps: int
    """Power steps of all starts together, those in vain included."""
    restarts: int
    """Starts that were drawn anew because they were nearly orthogonal to all components."""
    rejected: int
    """Starts that ended at maxima that are no components, or not taken for one."""


class SPM(NamedTuple):
    """A sum of powers: T = sum of weights[i] factors[:, i]^(m)."""

    weights: Any
    """(rank,) by descending magnitude; positive for odd orders."""
    factors: Any
    """(d, rank) unit columns; in even orders the first entry at least half as large as the largest
    is positive."""
    info: SPMInfo


def spm(
    t: Any,
    rank: int | None = None,
    *,
    order: int | None = None,
    packed: bool = False,
    ranksel: float = 1e-4,
    n_starts: int = 3,
    block: int = 64,
    tol: float = 1e-14,
    max_iter: int = 5000,
    shift: str = "adaptive",
    seed: int = 0,
    errors: str = "info",
) -> SPM:
    r"""Decompose a symmetric tensor into powers of vectors by the subspace power method.

    .. math:: T = \sum_{i=1}^R \lambda_i\, a_i^{\otimes m}, \quad \|a_i\| = 1

    With h = ceil(m/2), the columns of the flattening of T to C(d+h-1, h) x C(d+m-h-1, m-h) span
    the a_i^(h). On the sphere, f(x) = \|projection of x^(h) on that subspace\|² is 1 at the
    components alone; power iterations climb it from many random starts, Newton's method ends them,
    and what was found is taken out by reflections.

    Parameters
    ----------
    t : array (d, ..., d), or (C(d + m - 1, m),) with ``packed=True`` and ``order``
        Symmetric, of order m in 3..6; float32 or float64 of numpy, torch or another library with
        DLPack, on the CPU. Worked on in float64.
    rank : int, optional
        R. None: the number of eigenvalues D of the flattening with
        \|D_i\| > ranksel mean(D²) / mean \|D\|.
    ranksel : float
        See ``rank``; of the size of the noise over that of the components.
    n_starts : int
        So many times a block of starts may end below the f of components (0.99, or nearer to 1
        where the spectrum shows less noise) before the best of them are taken all the same.
    block : int
        Starts at a time.
    tol : float
        Newton's method ends with steps shorter than this.
    max_iter : int
        Steps of a start at most.
    shift : {"adaptive", "fixed"}
        Of the power iteration, in units of sqrt((h - 1)/h): adaptive none in the first 50 steps of
        a start, then sqrt(2 f (1 - f)) from f = 2/3 on and 1 - f/2 below; fixed 1. With the fixed
        one convergence is proved; without one a start takes a half or a third of the steps.
    errors : {"info", "raise"}
        Starts that ran out of steps: in the record only, or ConvergenceError.

    Returns
    -------
    SPM (weights, factors, info)
        The first two in t's library and dtype. A zero tensor has rank 0.

    Raises
    ------
    InvalidArgumentError
        Not symmetric (the message says by how much), not a cube, NaN or infinity; order 2, which is
        `subspan.eigh`; a rank, given or found, beyond the bound below or that of the flattening.
    DtypeError, UnsupportedError
        Not an array; not float32 or float64; on a CUDA device.
    ConvergenceError
        With ``errors="raise"``.

    Notes
    -----
    Generic components are found, and unique, up to R = C(d+h-1, h) - d, and C(d+m-h-1, m-h) for
    odd m; one more where d = 2, or d = 3 and h = 2. A step of a start takes 4 C(d+h-1, h) R flops,
    all of them in matrix products; the flattening takes 9 C(d+h-1, h)³ where most of its
    eigenvalues count. Components that are equal or opposite are one; their weights add up. Weights
    are those of least squares. Climbs are in float32, Newton's method and what follows in float64.
    Products and decompositions of matrices are numpy's: the last bits may depend on its threads.

    References
    ----------
    J. Kileel, J. M. Pereira: Subspace power method for symmetric tensor decomposition,
    `arXiv:1912.04007 <https://arxiv.org/abs/1912.04007>`_, algorithms 1 and 2.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.tensors import spm
    >>> a = np.random.default_rng(0).standard_normal((6, 9))   # nine vectors of six entries
    >>> t = np.einsum("ir,jr,kr,lr->ijkl", a, a, a, a)
    >>> found = spm(t)
    >>> found.factors.shape, found.info.error < 1e-12
    ((6, 9), True)
    """
    name = "spm"
    asked = _request(
        name, rank, n_starts=n_starts, block=block, tol=tol, max_iter=max_iter, shift=shift,
        ranksel=ranksel, seed=seed, errors=errors,
    )  # fmt: skip
    tensor = _multisets.floats(name, "t", t)
    if packed and order is None:
        raise InvalidArgumentError(f"[{name}] order must be given for packed tensors, got None")
    order = _order(name, tensor.ndim if order is None else order)
    if tensor.ndim != (1 if packed else order):
        raise InvalidArgumentError(
            f"[{name}] t must be one tensor of {1 if packed else order} axes, got shape "
            f"{tensor.shape}. Call {name} for each tensor"
        )
    if not np.isfinite(tensor).all():
        raise InvalidArgumentError(
            f"[{name}] t must be finite, got NaN or infinity. Fill missing entries first"
        )
    if packed:
        d = _multisets.dimension(name, "t", tensor.shape[0], order)
        matrix = flatten(tensor.astype(np.float64, copy=False), d, order)
    else:
        d, _ = _multisets.cube(name, "t", tensor.shape, order)
        _multisets.require_symmetric(name, "t", tensor, order)
        matrix = flatten_full(tensor, order)
    return _decompose(asked, t, matrix, d, order)


def spm_from_samples(
    x: Any,
    order: int,
    rank: int | None = None,
    *,
    noise_variance: float = 0.0,
    ranksel: float = 1e-4,
    n_starts: int = 3,
    block: int = 64,
    tol: float = 1e-14,
    max_iter: int = 5000,
    shift: str = "adaptive",
    seed: int = 0,
    errors: str = "info",
) -> SPM:
    r"""Decompose the moment of order m of samples, which is never formed in full.

    .. math:: T = \frac1n \sum_{j=1}^n x_j^{\otimes m} = \sum_{i=1}^R \lambda_i\, a_i^{\otimes m}

    Parameters
    ----------
    x : array (n, d)
        Samples; float32 or float64 of numpy, torch or another library with DLPack, on the CPU.
        Not centred: the moment is about 0.
    order : int
        m in 3..6.
    noise_variance : float
        v of independent Gaussian noise of covariance v I in the samples, whose part in the moment
        is taken out: T becomes the mean of the Hermite tensors of x, which is the moment of what
        lies below the noise in expectation.
    rank, ranksel, n_starts, block, tol, max_iter, shift, seed, errors
        As in `spm`. A moment of n samples has the rank of its components only up to sampling error:
        give ``rank``, or a ``ranksel`` above it.

    Returns
    -------
    SPM (weights, factors, info)

    Raises
    ------
    InvalidArgumentError, DtypeError, UnsupportedError, ConvergenceError
        As `spm`; no samples.

    Notes
    -----
    The flattening of T is a product of n x C(d+h-1, h) monomials of the samples, made some
    thousand samples at a time: 2 n C(d+h-1, h) C(d+m-h-1, m-h) flops, against n d^m for T.

    References
    ----------
    J. Kileel, J. M. Pereira, arXiv:1912.04007. S. Sherman, T. G. Kolda: Estimating higher-order
    moments using symmetric tensor decomposition, SIAM J. Matrix Anal. Appl. 41 (2020), for moments
    that are not formed.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.tensors import spm_from_samples
    >>> rng = np.random.default_rng(0)
    >>> centres = rng.standard_normal((4, 8))
    >>> x = centres[rng.integers(0, 4, 1000)]                    # a mixture of four points
    >>> found = spm_from_samples(x, 4)
    >>> found.info.rank, found.info.error < 1e-12
    (4, True)
    """
    name = "spm_from_samples"
    asked = _request(
        name, rank, n_starts=n_starts, block=block, tol=tol, max_iter=max_iter, shift=shift,
        ranksel=ranksel, seed=seed, errors=errors,
    )  # fmt: skip
    order = _order(name, order)
    rows = _multisets.floats(name, "x", x)
    _checks.ndim(name, "x", rows, 2)
    if 0 in rows.shape:
        raise InvalidArgumentError(f"[{name}] x must have rows and columns, got {rows.shape}")
    if not np.isfinite(rows).all():
        raise InvalidArgumentError(
            f"[{name}] x must be finite, got NaN or infinity. Leave such rows out"
        )
    variance = _checks.real(name, "noise_variance", noise_variance, low=0)
    matrix = moment_matrix(rows, order, variance)
    return _decompose(asked, x, matrix, rows.shape[1], order)


class _Request(NamedTuple):
    """What is asked for, but the tensor."""

    name: str
    rank: int | None
    ranksel: float
    seed: int
    raising: bool
    options: Options


def _request(
    name: str, rank: int | None, *, n_starts: int, block: int, tol: float, max_iter: int,
    shift: str, ranksel: float, seed: int, errors: str,
) -> _Request:  # fmt: skip
    options = Options(
        _checks.integer(name, "n_starts", n_starts, low=1),
        _checks.integer(name, "block", block, low=1),
        _checks.real(name, "tol", tol, low=1e-300, high=1),
        _checks.integer(name, "max_iter", max_iter, low=1),
        _checks.choice(name, "shift", shift, ("adaptive", "fixed")) == "adaptive",
    )
    return _Request(
        name,
        None if rank is None else _checks.integer(name, "rank", rank),
        _checks.real(name, "ranksel", ranksel, low=0, high=1),
        _checks.integer(name, "seed", seed, low=0),
        _checks.choice(name, "errors", errors, ("info", "raise")) == "raise",
        options,
    )


def _order(name: str, value: Any) -> int:
    low, high = _multisets.ORDERS
    order = _checks.integer(name, "order", value)
    if not low <= order <= high:
        remedy = "For order 2 use eigh" if order == 2 else "Other orders are not served"
        raise InvalidArgumentError(
            f"[{name}] order must be in {low}..{high}, got {order}. {remedy}"
        )
    return order


def _decompose(asked: _Request, source: Any, matrix: Array, d: int, order: int) -> SPM:
    """Decompose a flattening, which is changed; the result in library and dtype of the source."""
    # Powers of entries must neither overflow nor underflow; powers of two change no bit.
    largest = max(matrix.max(initial=0), -matrix.min(initial=0))
    exponent = int(np.frexp(largest)[1])
    for part in (exponent // 2, exponent - exponent // 2):
        matrix *= 2.0**-part
    values = spectrum_of(matrix, asked.rank, asked.ranksel, even=order % 2 == 0)
    rank = _rank(asked, values, d, order)
    high, low = SymmetricBasis(d, (order + 1) // 2), SymmetricBasis(d, order // 2)

    v = np.ascontiguousarray(values.left[:, :rank])
    u = None if values.right is None else np.ascontiguousarray(values.right[:, :rank])
    left = Deflation(v, u, values.values[:rank])
    search = Search(left, (high, low), asked.options, _allowance(values, rank))
    search.run(np.random.default_rng(asked.seed))
    if asked.raising and not all(search.converged):
        raise ConvergenceError(
            f"[{asked.name}] {search.converged.count(False)} of {rank} components did not converge "
            f'in {asked.options.max_iter} steps. Raise max_iter, or pass errors="info"'
        )
    weights, error = _spm_finish.best_weights(search.found, matrix, (high, low))
    a, weights, place = _spm_finish.arranged(search.found, weights, order)
    info = SPMInfo(
        rank=rank,
        error=error,
        spectrum=np.ldexp(values.values, exponent),
        cutoff=float(np.ldexp(values.cutoff, exponent)),
        fits=search.newton.form(a),
        converged=np.array(search.converged, bool)[place],
        iterations=np.array(search.iterations, np.int64)[place],
        steps=search.steps,
        restarts=search.restarts,
        rejected=search.rejected,
    )
    dtype = _arrays.dtype_name(source)
    weights, a = (
        _arrays.from_numpy(source, np.ascontiguousarray(x, dtype))
        for x in (np.ldexp(weights, exponent), a)
    )
    return SPM(weights, a, info)


def _allowance(values: Spectrum, rank: int) -> float:
    """1 - f of components: noise turns the subspace by about its size over the least value."""
    sizes = np.abs(values.values)
    if rank in {0, len(sizes)}:
        return 1e-9
    return 1e-9 + 100 * float(sizes[rank] / sizes[rank - 1]) ** 2


def _rank(asked: _Request, values: Spectrum, d: int, order: int) -> int:
    bound = _spm_finish.rank_bound(d, order)
    unique = f"up to which dimension {d} and order {order} have a unique decomposition"
    rank = asked.rank
    if rank is None:
        rank = int((np.abs(values.values) > values.cutoff).sum())
        if rank > bound:
            raise InvalidArgumentError(
                f"[{asked.name}] the tensor must have rank <= {bound}, {unique}, got a flattening "
                f"of rank {rank}. Raise ranksel above the noise, or pass rank="
            )
        return rank
    numerical = int((np.abs(values.values) > values.floor).sum())
    for high, why in ((bound, unique), (numerical, "the rank of the flattening")):
        if not 1 <= rank <= high:
            raise InvalidArgumentError(
                f"[{asked.name}] rank must be in 1..{high}, {why}, got {rank}. Pass rank=None to "
                "have it found"
            )
    return rank
