"""Eigenpairs of symmetric tensors by the shifted power method."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from subspan import _arrays, _checks, _core, _multisets
from subspan.errors import DtypeError, InvalidArgumentError

__all__ = ["TensorPower", "tensor_power"]

_NAME = "tensor_power"


class TensorPower(NamedTuple):
    """Distinct eigenpairs, by descending value, and what became of each run.

    p is the greatest number of pairs of a tensor in the batch; places past ``pairs`` are NaN in
    ``values``, ``vectors`` and ``residuals``, and 0 in ``kinds`` and ``counts``.
    """

    values: Any
    """(..., p) eigenvalues."""
    vectors: Any
    """(..., p, d) unit eigenvectors. In odd orders the value is >= 0; in even ones the first entry
    at least half as large as the largest is positive."""
    residuals: Any
    """(..., p) length of A x^(m-1) - value x."""
    kinds: npt.NDArray[np.int32]
    """(..., p) 1 for a strict local maximum of A x^m on the sphere, -1 for a strict local minimum,
    0 for neither (a saddle, or flat in some direction)."""
    counts: npt.NDArray[np.int32]
    """(..., p) how many runs ended at the pair."""
    pairs: npt.NDArray[np.int32]
    """(...) how many pairs the tensor has."""
    iterations: npt.NDArray[np.int32]
    """(..., runs) steps of each run."""
    pair_of: npt.NDArray[np.int32]
    """(..., runs) the pair that each run ended at, -1 if it did not converge."""
    info: npt.NDArray[np.int32]
    """(...) 0 if all runs converged, otherwise how many did not; -1 for NaN or infinity."""


def tensor_power(
    a: Any,
    starts: Any = None,
    *,
    order: int | None = None,
    packed: bool = False,
    which: str = "max",
    shift: str | float = "adaptive",
    n_starts: int = 32,
    seed: int = 0,
    tol: float | None = None,
    merge: float | None = None,
    max_iter: int = 5000,
    nonfinite: str = "raise",
    errors: str = "info",
) -> TensorPower:
    r"""Eigenpairs of symmetric tensors by the power method from many starts.

    .. math:: A x^{m-1} = \lambda x, \quad \|x\| = 1, \qquad
        x \leftarrow \frac{A x^{m-1} + \alpha x}{\|A x^{m-1} + \alpha x\|}

    Parameters
    ----------
    a : array (..., d, ..., d), or (..., C(d + m - 1, m)) with ``packed=True``
        Symmetric tensors of order m in 3..6; float32 or float64 of numpy, torch or another library
        with DLPack, on the CPU. Packed: the entries of sorted indices in lexicographic order, as
        `subspan.tensors.symmetric_pack` makes them.
    starts : array (..., s, d) or (s, d), optional
        Where runs begin, of any length but zero; (s, d): the same for all tensors. Default:
        ``n_starts`` directions, uniform on the sphere, from ``seed``; the same for all tensors.
    order : int, optional
        m; None: the number of axes of ``a``, which is then one tensor.
    which : {"max", "min", "both"}
        Runs climb A x^m on the sphere, or descend, or each start does both. For odd orders minima
        are the maxima with the opposite sign.
    shift : "adaptive" or float >= 0
        α. Adaptive: the least that the curvature at x may need for a step up. Fixed: 0 is the
        plain higher-order power method, which need not converge; from ``(m - 1) max |A x^(m-2)|``
        on it always does, if slowly.
    tol : float, optional
        A run has converged when its residual is below ``tol |A|``; default 64 times the precision.
    merge : float, optional
        Vectors closer than this, and values closer than this times ``|A|``, are one pair; default
        the cube root of the precision.
    max_iter : int
        Steps of a run at most.
    nonfinite : {"raise", "propagate", "ignore"}
        NaN or infinity: an error that names the first tensor, or no pairs and ``info`` -1.
    errors : {"info", "raise"}
        Runs out of steps: in the record only, or ConvergenceError.

    Returns
    -------
    TensorPower (values, vectors, residuals, kinds, counts, pairs, iterations, pair_of, info)
        The first three in a's library and dtype; a zero tensor has no pairs.

    Raises
    ------
    InvalidArgumentError
        A tensor that is not symmetric or not a cube, a wrong option, a zero start; order 2, which
        is `eigh`; NaN or infinity.
    DtypeError
        Not an array; not float32 or float64.
    UnsupportedError
        An array on a CUDA device.
    ConvergenceError
        With ``errors="raise"``.

    Notes
    -----
    A step is one product of C(d+1, 2) x C(d+m-3, m-2) coefficients with the monomials of x, for as
    many starts at once as a SIMD register has lanes; where tensors are small and many, each lane
    has a tensor of its own. Near the end, steps are Newton's on the sphere, which converge
    quadratically; only to maxima (minima) of the climb (descent). The adaptive shift bounds the
    eigenvalues of the Hessian on the tangent space by their mean and variance, and grows where a
    step went down after all. Results of a tensor have the same bits in any batch and for any number
    of threads.

    References
    ----------
    T. G. Kolda, J. R. Mayo: Shifted power method for computing tensor eigenpairs, SIAM J. Matrix
    Anal. Appl. 32 (2011); An adaptive shifted power method for computing generalized tensor
    eigenpairs, ibid. 35 (2014). H. Wolkowicz, G. P. H. Styan: Bounds for eigenvalues using traces,
    Linear Algebra Appl. 29 (1980), theorem 2.1.

    Examples
    --------
    >>> import numpy as np, subspan
    >>> a = np.zeros((3, 3, 3, 3))
    >>> a[0, 0, 0, 0], a[1, 1, 1, 1], a[2, 2, 2, 2] = 3.0, 2.0, 1.0
    >>> found = subspan.tensor_power(a)
    >>> found.values.round(12)
    array([3., 2., 1.])
    >>> found.vectors.round(12) + 0
    array([[1., 0., 0.],
           [0., 1., 0.],
           [0., 0., 1.]])
    """
    tensors = _multisets.floats(_NAME, "a", a)
    which = _checks.choice(_NAME, "which", which, ("max", "min", "both"))
    nonfinite = _checks.choice(_NAME, "nonfinite", nonfinite, ("raise", "propagate", "ignore"))
    raising = _checks.choice(_NAME, "errors", errors, ("info", "raise")) == "raise"
    fixed = None if shift == "adaptive" else _checks.real(_NAME, "shift", shift, low=0)
    tol = 0.0 if tol is None else _checks.real(_NAME, "tol", tol, low=1e-300, high=1)
    merge = 0.0 if merge is None else _checks.real(_NAME, "merge", merge, low=1e-300, high=1)
    max_iter = _checks.integer(_NAME, "max_iter", max_iter, low=1, high=1_000_000)
    rows, lead, d, order = _unique(tensors, order, packed)
    dtype = rows.dtype
    if starts is None:
        n_starts = _checks.integer(_NAME, "n_starts", n_starts, low=1)
        seed = _checks.integer(_NAME, "seed", seed, low=0)
        starts = np.random.default_rng(seed).standard_normal((n_starts, d)).astype(dtype)
    begin = _spread(starts, lead, d, dtype)

    batch, runs = len(rows), begin.shape[1] * (2 if which == "both" else 1)
    values, residuals = (np.empty((batch, runs), dtype) for _ in range(2))
    vectors = np.empty((batch, runs, d), dtype)
    kinds, counts, iterations, pair_of = (np.empty((batch, runs), np.int32) for _ in range(4))
    pairs, info = (np.zeros(batch, np.int32) for _ in range(2))
    _core.tensor_power(
        rows, begin, order, (values, vectors, residuals, kinds, counts, pairs),
        (iterations, pair_of, info), fixed, which, tol, merge, max_iter, nonfinite, raising,
    )  # fmt: skip
    most = int(pairs.max(initial=0))

    def shaped(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return x.reshape((*lead, *x.shape[1:]))

    def trimmed(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return shaped(np.ascontiguousarray(x[:, :most]))

    return TensorPower(
        _arrays.from_numpy(a, trimmed(values)),
        _arrays.from_numpy(a, trimmed(vectors)),
        _arrays.from_numpy(a, trimmed(residuals)),
        *(trimmed(kinds), trimmed(counts)),
        *(shaped(x) for x in (pairs, iterations, pair_of, info)),
    )


def _unique(
    a: npt.NDArray[Any], order: int | None, packed: bool
) -> tuple[npt.NDArray[Any], tuple[int, ...], int, int]:
    """Return unique entries (batch, n), leading axes, dimension and order."""
    low, high = _multisets.ORDERS
    if order is None and packed:
        raise InvalidArgumentError(f"[{_NAME}] order must be given for packed tensors, got None")
    order = _checks.integer(_NAME, "order", a.ndim if order is None else order)
    if not low <= order <= high:
        remedy = "For order 2 use eigh" if order == 2 else "Pass order= if leading axes are a batch"
        raise InvalidArgumentError(
            f"[{_NAME}] order must be in {low}..{high}, got {order}. {remedy}"
        )
    if packed:
        _checks.ndim(_NAME, "a", a, 1, or_more=True)
        d, lead = _multisets.dimension(_NAME, "a", a.shape[-1], order), a.shape[:-1]
        unique = a
    else:
        d, _ = _multisets.cube(_NAME, "a", a.shape, order)
        lead = a.shape[: a.ndim - order]
        if a.size:
            _multisets.require_symmetric(_NAME, "a", a, order)
        unique = _multisets.pack(a, order)
    return unique.reshape(int(np.prod(lead)), _multisets.count(d, order)), lead, d, order


def _spread(starts: Any, lead: tuple[int, ...], d: int, dtype: Any) -> npt.NDArray[Any]:
    """Return starts (batch, s, d); those that all tensors share are a view without copies."""
    rows = _multisets.floats(_NAME, "starts", starts)
    if rows.dtype != dtype:
        raise DtypeError(
            f"[{_NAME}] starts must be of a's dtype ({dtype}), got {rows.dtype}. Convert them"
        )
    shape = rows.shape
    if len(shape) < 2 or shape[-1] != d or shape[-2] == 0 or shape[:-2] not in {(), lead}:
        raise InvalidArgumentError(
            f"[{_NAME}] starts must be (s, {d}) or ({', '.join(map(str, (*lead, 's', d)))}) with "
            f"s >= 1, got {shape}"
        )
    batch = int(np.prod(lead))
    if len(shape) == 2:
        return np.broadcast_to(rows, (batch, *shape))
    return rows.reshape(batch, *shape[-2:])
