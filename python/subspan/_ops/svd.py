"""Singular value decomposition of one or many matrices."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from subspan import _arrays, _checks, _core
from subspan._ops import _centring, _gradients, _randomized
from subspan._ops._batch import Batch, reshaped
from subspan.errors import InvalidArgumentError, UnsupportedError

__all__ = ["SVD", "SVDInfo", "svd", "svdvals"]


class SVD(NamedTuple):
    """``a = u @ diag(s) @ vh``, exactly or as far as the rank allows."""

    u: Any
    """(..., m, k) orthonormal columns."""
    s: Any
    """(..., k) singular values, descending."""
    vh: Any
    """(..., k, n) orthonormal rows."""


class SVDInfo(NamedTuple):
    """An `SVD`, the status of each matrix and its error, as ``errors="info"`` returns them."""

    u: Any
    s: Any
    vh: Any
    info: npt.NDArray[np.int32]
    """(...) 0 if fine, -1 for NaN or infinity in the matrix, n > 0 if n values did not converge."""
    error: npt.NDArray[np.float64]
    """(...) relative error |A - U diag(s) V^H|_F / |A|_F: what the rank leaves out if the factors
    are exact, measured if they are randomized. NaN where A has NaN or infinity."""


def svd(
    a: Any,
    *,
    k: int | None = None,
    method: str = "auto",
    tol: float | None = None,
    center: Any = False,
    seed: int = 0,
    nonfinite: str = "raise",
    errors: str = "raise",
    gap_eps: float = 0.0,
    subspace: bool = False,
) -> SVD | SVDInfo:
    r"""Thin singular value decomposition, batched over the leading axes.

    .. math:: A = U \,\mathrm{diag}(s)\, V^H

    Parameters
    ----------
    a : array (..., m, n)
        float32 or float64 of numpy, torch, cupy or another library with DLPack (CUDA: torch and
        cupy); any strides.
    k : int, optional
        Leading singular triplets to return, 1..min(m, n). All by default.
    method : {"auto", "exact", "randomized"}
        ``"exact"``: the thin SVD, then cut at k. ``"randomized"``: Halko, Martinsson and Tropp's
        range finder with oversampling and subspace iteration until the captured energy settles; for
        k well below min(m, n) and decaying spectra. ``"auto"``: exact.
    tol : float, optional
        Largest relative error :math:`\|A - A_k\|_F / \|A\|_F`, in [0, 1]. Without k, the rank is
        the smallest that keeps it (for a batch, the largest of the ranks of its matrices); the
        randomized method finds it by blocks of columns until the rest is small enough, refuses a
        tol below 256 eps, and its rank may be a few larger. With k, a `UserWarning` says when the
        randomized factors miss tol.
    center : bool or array (n,) or (..., n)
        Decompose :math:`A - 1 c^T` in place of A: True, with c the mean of the rows of each matrix,
        worked out in float64; an array, with this c, of float32 or float64 in a's library. Exact:
        of a centred copy, with gradients through c. Randomized: no copy, blocks of rows are centred
        where they are multiplied.
    seed : int
        Of the random test matrix; the same seed gives the same bits with any number of our threads.
        The products are numpy's, whose BLAS may round otherwise when its own threads change. Unused
        by ``"exact"``.
    nonfinite : {"raise", "propagate", "ignore"}
        NaN or infinity in ``a``: an error that names the first matrix; NaN for that matrix and
        right results for the others; or no check (the caller vouches for finite input).
    errors : {"raise", "info"}
        Matrices that do not converge: `ConvergenceError`, or a status in ``info``.
    gap_eps : float
        Of the gradient of a torch tensor, in [0, 1]. The gradient of the vectors has denominators
        x = s_j - s_i, s_j + s_i and s_i; with gap_eps, 1 / x becomes
        x / (x² + gap_eps s_1²), which is bounded where values come close. 0: exact.
    subspace : bool
        Of the gradient. Values that differ by at most sqrt(eps) s_1 are one cluster, and what the
        loss may depend on are the spans of clusters: their inner terms are 0, and a loss that
        depends on the basis inside one raises `InvalidArgumentError` from ``backward``.

    Returns
    -------
    SVD (u, s, vh), or SVDInfo (u, s, vh, info, error) with ``errors="info"``
        In a's library, dtype and device. Signs are those of the algorithm; use `PCA` for fixed
        ones. On a CUDA device ``info`` and ``error`` are arrays there. Differentiable, also twice,
        for a torch tensor that requires a gradient.

    Raises
    ------
    InvalidArgumentError
        Wrong number of axes, k, tol, method, policy, shape of center or gap_eps; NaN or infinity.
    DtypeError
        Not an array; not float32 or float64; center of another library or device than a.
    UnsupportedError
        ``method="randomized"`` for a torch tensor that requires a gradient or for a CUDA array; a
        CUDA array of a library other than torch and cupy, or where there is no CUDA library or
        device.
    OutOfMemoryError, DeviceError
        Scratch could not be allocated; the CUDA device or its driver failed.
    ConvergenceError
        The iteration gave up on a matrix (finite input: not seen in practice).

    Notes
    -----
    Exact: O(m n min(m, n)) flops per matrix. CPU: up to min(m, n) = 128 own kernels on
    many matrices at once, LAPACK's gesdd above, the batch spread over our threads; normwise
    backward stable. A matrix's bits do not depend on the others nor on the number of threads, but
    where min(m, n) >= 512 and there are fewer matrices than threads: LAPACK itself then runs on
    all of them and the last bits may differ. CUDA: Jacobi rotations; the call waits for the device
    unless ``errors="info"`` and ``nonfinite`` is not ``"raise"``; beyond min(m, n) = 160 or
    m n min(m, n) = 512**3 the last bits may depend on the size of the batch. Randomized:
    (2 q + 2) products with k + p columns, q <= 10; with tol alone six products with as many columns
    as the rank, rounded up to blocks of 32. The error is the energy that the values lack, which is
    free, or where this is lost in rounding (below a relative error of 100 sqrt(eps)) the norm of
    the residual in float64, one more product with k columns.

    The gradient of ``s`` alone is :math:`U \,\mathrm{diag}(\dot s)\, V^T`, safe whatever the
    values. That of the vectors exists where the values are distinct and, for m != n, positive;
    elsewhere it is not finite unless ``gap_eps`` or ``subspace`` is set. It costs a few products of
    the size of the factors.

    References
    ----------
    N. Halko, P.-G. Martinsson, J. A. Tropp: Finding structure with randomness. SIAM Review 53
    (2011) 217-288, algorithms 4.4 and 5.1. W. Yu, Y. Gu, Y. Li: Efficient randomized algorithms for
    the fixed-precision low-rank matrix approximation. SIAM Journal on Matrix Analysis and
    Applications 39 (2018) 1339-1359, algorithm 2 (randQB_EI). Gradients: J. Townsend:
    Differentiating the singular value decomposition (2016); Z.-Q. Wan, S.-X. Zhang: Automatic
    differentiation for complex valued SVD (2019), `arXiv:1909.02659
    <https://arxiv.org/abs/1909.02659>`_; with gap_eps, H.-J. Liao, J.-G. Liu, L. Wang, T. Xiang:
    Differentiable programming tensor networks. Physical Review X 9 (2019) 031041.

    Examples
    --------
    >>> import numpy as np, subspan
    >>> a = np.random.default_rng(0).standard_normal((5, 8, 3))
    >>> u, s, vh = subspan.svd(a)
    >>> np.allclose(u * s[:, None, :] @ vh, a)
    True
    """
    how = _checks.choice("svd", "method", method, ("auto", "exact", "randomized"))
    share = None if tol is None else _checks.real("svd", "tol", tol, low=0.0, high=1.0)
    number = _checks.integer("svd", "seed", seed, low=0, high=2**64 - 1)
    rule = _gradients.svd_rule(_gradients.Gaps("svd", gap_eps, subspace))
    source = _gradients.detached(a)
    batch = Batch("svd", source, nonfinite=nonfinite, errors=errors)
    if k is not None:
        k = _checks.integer("svd", "k", k, low=1, high=max(batch.k, 1))
    center = _centring.checked(batch, center)
    if how == "randomized":
        _check_randomized(a, center, k, share)
    result: tuple[Any, ...]
    error: Any = None
    if how == "randomized" and batch.k > 0 and batch.size > 0:
        result, error = _randomized.svd(batch, k, tol=share, seed=number, center=center)
    else:
        if center is not False:
            a = _centring.subtracted(a, center)
            batch.rows = reshaped(_gradients.detached(a), batch.rows.shape)
        result = _gradients.differentiable(a, rule, lambda: _exact(batch))
        rank = k if k is not None else _rank_for(batch, result[1], share)
        if not batch.raising:
            error = _discarded(_gradients.detached(result[1]), rank)
        if rank is not None and rank < batch.k:
            u, s, vh = result
            result = (u[..., :rank], s[..., :rank], vh[..., :rank, :])
    u, s, vh = (batch.deliver(out) for out in result)
    if batch.raising:
        return SVD(u, s, vh)
    if _arrays.device_of(error) == "cpu":
        error = _arrays.to_numpy(error).astype(np.float64)
    return SVDInfo(u, s, vh, batch.status(), error.reshape(batch.lead))


def _check_randomized(a: Any, center: Any, k: int | None, tol: float | None) -> None:
    if k is None and tol is None:
        raise InvalidArgumentError(
            "[svd] k or tol must be given with method='randomized', got None for both"
        )
    if _arrays.device_of(a) != "cpu":
        raise UnsupportedError(
            "[svd] method must be 'exact' for an array on a CUDA device, got 'randomized'"
        )
    if any(_gradients.detached(x) is not x for x in (a, center)):
        raise UnsupportedError(
            "[svd] method must be 'exact' for a tensor that requires a gradient, got 'randomized'. "
            "Pass a.detach(), or call inside torch.no_grad()"
        )


def svdvals(a: Any, *, nonfinite: str = "raise") -> Any:
    """Singular values alone, batched over the leading axes, descending.

    Parameters
    ----------
    a : array (..., m, n)
        As for `svd`.
    nonfinite : {"raise", "propagate", "ignore"}
        As for `svd`.

    Returns
    -------
    array (..., min(m, n))
        In a's library, dtype and device. Differentiable for a torch tensor that requires a
        gradient, for which the vectors are worked out too: that of s_i is :math:`u_i v_i^T`, a
        subgradient where values are equal or 0.

    Raises
    ------
    InvalidArgumentError, DtypeError, UnsupportedError, ConvergenceError
        As `svd`.

    Examples
    --------
    >>> import numpy as np, subspan
    >>> subspan.svdvals(np.diag([3.0, 4.0]))
    array([4., 3.])
    """
    source = _gradients.detached(a)
    batch = Batch("svdvals", source, nonfinite=nonfinite)
    if source is not a:
        rule = _gradients.svd_rule(_gradients.Gaps("svdvals", 0.0, False))
        return batch.deliver(_gradients.differentiable(a, rule, lambda: _exact(batch))[1])
    s = batch.empty(batch.k)
    _solve(batch, s, None, None)
    return batch.deliver(s)


def _exact(batch: Batch) -> tuple[Any, Any, Any]:
    u, s = batch.empty(batch.m, batch.k), batch.empty(batch.k)
    vh = batch.empty(batch.k, batch.n)
    _solve(batch, s, u, vh)
    return u, s, vh


def _solve(batch: Batch, s: Any, u: Any, vh: Any) -> None:
    policies = (batch.nonfinite, batch.raising, batch.function, batch.stream)
    _core.svd(batch.rows, s, u, vh, batch.info, *policies)


def _rank_for(batch: Batch, s: Any, tol: float | None) -> int | None:
    """Smallest rank whose relative Frobenius error is at most tol in every finite matrix."""
    if tol is None or batch.size == 0 or batch.k == 0:
        return None
    values = _arrays.to_numpy(s).astype(np.float64)
    values = values[np.isfinite(values).all(axis=1)]
    scale = values.max(axis=1, initial=0.0, keepdims=True)
    power = np.square(np.divide(values, scale, out=np.zeros_like(values), where=scale > 0))
    tail = np.cumsum(power[:, ::-1], axis=1)[:, ::-1]  # tail[:, r]: energy from r on
    kept = tail > tol**2 * tail[:, :1]
    return max(1, int(kept.sum(axis=1).max(initial=0)))


def _discarded(s: Any, rank: int | None) -> Any:
    """Relative Frobenius error of the leading values alone, of each matrix.

    By operators that numpy, torch and cupy share, so that nobody has to wait for a device.
    """
    power = (s / (s[:, :1] + (s[:, :1] == 0))) ** 2
    whole = power.sum(-1)
    rest = power[:, rank:].sum(-1) if rank is not None else 0 * whole
    return (rest / (whole + (whole == 0))) ** 0.5
