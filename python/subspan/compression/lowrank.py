"""Low-rank factors of weights: plain, scaled by activations, whitened, weighted by the loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from subspan import _checks
from subspan.compression._decompose import Pairs, decompose, leading
from subspan.compression._inputs import (
    Floats,
    grams_of,
    like,
    matrices_of,
    means_of,
    scales_of,
    square_root,
)
from subspan.compression.factors import Factors
from subspan.compression.storage import useful_rank
from subspan.errors import InvalidArgumentError

__all__ = ["activation_svd", "fisher_svd", "truncated_svd", "whitened_svd"]

_CHUNK = 1 << 26  # bytes of weights in float64 that are worked on at a time


def truncated_svd(weight: Any, *, names: Sequence[str] | None = None) -> Factors:
    r"""Factors of least error of the weights themselves.

    .. math:: \min_{\mathrm{rank} W' \le r} \|W - W'\|_F^2 = \sum_{i > r} \sigma_i^2(W)

    Parameters
    ----------
    weight : array (..., m, n)
        float16, bfloat16, float32 or float64 of numpy, torch (CPU) or another library with DLPack;
        worked on in float64.
    names : sequence of str, optional
        What to call the matrices in errors.

    Returns
    -------
    Factors
        All ranks at once: ``cut`` them.

    Raises
    ------
    InvalidArgumentError, DtypeError
        Not two axes or more, empty, NaN or infinity (named), not a float array.

    Notes
    -----
    Batched: one `eigh` of order min(m, n) and three products a matrix, in float64. Errors are the
    norms of what the basis in hand leaves out, so they hold whatever the rounding of the basis.

    References
    ----------
    C. Eckart, G. Young: The approximation of one matrix by another of lower rank. Psychometrika 1
    (1936) 211-218.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.compression import truncated_svd
    >>> found = truncated_svd(np.diag([3.0, 2.0, 1.0, 1.0, 1.0]))
    >>> found.tails.round(6)  # squared errors of rank 0, 1, ...
    array([16.,  7.,  3.,  2.,  1.,  0.])
    >>> found.cut(rank=2).to_dense().round(6).diagonal()
    array([3., 2., 0., 0., 0.])
    """
    return _factors("truncated_svd", "svd", weight, None, names)


def activation_svd(
    weight: Any, scale: Any, *, alpha: float = 0.5, names: Sequence[str] | None = None
) -> Factors:
    r"""Factors of least error after the columns are scaled by the size of their inputs (ASVD).

    .. math:: \min \|(W - W') \,\mathrm{diag}(d)\|_F, \qquad d_j = (\mathrm{mean}_t |x_{tj}|)^\alpha

    Parameters
    ----------
    weight : array (..., m, n)
        As `truncated_svd`.
    scale : array (n,) or (..., n)
        Mean absolute inputs; below 1e-6 of the largest they are lifted to that.
    alpha : float in [0, 2]
        0 is `truncated_svd`.
    names : sequence of str, optional
        As `truncated_svd`.

    Returns
    -------
    Factors
        Their errors are in the scaled norm; ``Factors.errors(gram)`` gives those of the outputs.

    Raises
    ------
    InvalidArgumentError, DtypeError
        As `truncated_svd`; a scale that is negative or does not fit.

    References
    ----------
    Z. Yuan et al.: ASVD, `arXiv:2312.05821 <https://arxiv.org/abs/2312.05821>`_.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.compression import activation_svd
    >>> found = activation_svd(np.diag([3.0, 2.0, 1.0]), np.array([1.0, 9.0, 1.0]), alpha=1.0)
    >>> found.cut(rank=1).to_dense().round(6).diagonal()  # the second input is loud
    array([0., 2., 0.])
    """
    alpha = _checks.real("activation_svd", "alpha", alpha, low=0.0, high=2.0)
    stack, lead = matrices_of("activation_svd", weight, names)
    d = scales_of("activation_svd", scale, lead, stack.shape[-1], names, name="scale") ** alpha
    return _factors("activation_svd", "asvd", weight, d[..., None, :], names)


def whitened_svd(
    weight: Any,
    gram: Any,
    *,
    outputs: Any = None,
    affine: bool = False,
    ridge: float = 0.0,
    rank: int | None = None,
    precision: str = "float64",
    names: Sequence[str] | None = None,
) -> Factors:
    r"""Factors of least error of the outputs, given the second moments of the inputs.

    .. math:: \min_{\mathrm{rank} W' \le r} \mathrm{tr}(W - W') G (W - W')^T
              = \sum_{i > r} \sigma_i^2(W S), \qquad G = S S^T, \quad W' = U_r U_r^T W

    U are the leading eigenvectors of :math:`W G W^T`, so that nothing is inverted and G may be
    singular (fewer tokens than columns). With output weights H = L L^T, such as second moments of
    the gradient of the loss with respect to the outputs, it is the error
    :math:`\mathrm{tr}\, H (W - W') G (W - W')^T`, and :math:`W' = L^{-T} U_r U_r^T L^T W`.

    Parameters
    ----------
    weight : array (..., m, n)
        As `truncated_svd`.
    gram : array (n, n) or (..., n, n), Moments, or one Moments a matrix
        Second moments of the inputs, not centred; of Moments, per row.
    outputs : array (m, m) or (..., m, m), Moments, or one Moments a matrix, optional
        H. This one is inverted: 1e-4 of its mean diagonal is added.
    affine : bool
        Take the moments about the mean, which needs Moments, and let a bias make up for what the
        mean loses: never worse on the rows that the moments are of.
    ridge : float >= 0
        Choose the basis for :math:`G + \rho\, \mathrm{mean}(\mathrm{diag}\, G) I`, which counts
        directions that the calibration did not see; errors are still those of G.
    rank : int, optional
        The largest that will be cut: no more pairs are returned, but the errors of all ranks are.
    precision : {"float64", "auto"}
        "auto" multiplies weights of float32 and less in float32, measures in float64 what that
        changed, and takes float64 for a matrix whose error at ``rank`` it may have changed by more
        than 1e-3 of itself. Without ``rank`` it is the largest that saves bytes. Always float64:
        float64 weights, output weights, and a ridge.
    names : sequence of str, optional
        As `truncated_svd`.

    Returns
    -------
    Factors
        With the errors of all ranks; with "auto" they are right to 1e-3 of themselves up to
        ``rank``, else to rounding.

    Raises
    ------
    InvalidArgumentError, DtypeError
        As `truncated_svd`; NaN or infinity in a Gram matrix (named); one that does not fit; affine
        without Moments.

    Notes
    -----
    float64: a Cholesky decomposition of each Gram matrix (of eigenvectors where it is singular),
    one `eigh` of order min(m, n) and four products a matrix. "auto": 2 m n (m + n + r) flops and
    `eigh` where m <= n, without the Cholesky decomposition, whose root is for n < m alone.

    References
    ----------
    X. Wang et al.: SVD-LLM, `arXiv:2403.07378 <https://arxiv.org/abs/2403.07378>`_ (whitening);
    the form without inverse: `arXiv:2507.07580 <https://arxiv.org/abs/2507.07580>`_ (COALA).

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.compression import truncated_svd, whitened_svd
    >>> rng = np.random.default_rng(0)
    >>> weight = rng.normal(size=(6, 8))
    >>> x = rng.normal(size=(100, 8)) * 2.0 ** -np.arange(8)
    >>> best, plain = whitened_svd(weight, x.T @ x), truncated_svd(weight)
    >>> bool(best.cut(rank=3).error < np.sqrt(plain.errors(x.T @ x)[3]))
    True
    """
    function = "whitened_svd"
    how = _checks.choice(function, "precision", precision, ("float64", "auto"))
    single = how == "auto" and outputs is None and ridge == 0
    stack, lead = matrices_of(function, weight, names, single=single)
    m, n = stack.shape[1:]
    ridge = _checks.real(function, "ridge", ridge, low=0.0)
    limit = max(1, useful_rank(m, n)) if how == "auto" else min(m, n)
    if rank is not None:
        limit = _checks.integer(function, "rank", rank, low=1, high=min(m, n))
    grams = grams_of(function, gram, lead, n, names, centred=affine)
    shift = means_of(gram) if affine else None
    if stack.dtype == np.float32:
        return _gathered(
            "whitened", weight, stack, lead, rank=limit, mean=shift,
            work=lambda w, here: _led(w, _part(grams, here), limit),
        )  # fmt: skip
    rows = None
    if outputs is not None:
        rows = square_root(damped(grams_of(function, outputs, lead, m, names, name="outputs")))
    basis = None if ridge == 0 else square_root(damped(grams, ridge))
    method = "whitened" if outputs is None else "two-sided"
    root = square_root(grams)
    return _gathered(
        method, weight, stack, lead, rank=limit, mean=shift,
        work=lambda w, here: decompose(w, *(_part(x, here) for x in (root, basis, rows))),
    )  # fmt: skip


def fisher_svd(
    weight: Any, importance: Any, *, axis: int = 0, names: Sequence[str] | None = None
) -> Factors:
    r"""Factors of least error weighted by what the loss feels (FWSVD).

    .. math:: \min \|\mathrm{diag}(i) (W - W')\|_F

    Parameters
    ----------
    weight : array (..., m, n)
        As `truncated_svd`.
    importance : array (m,) or (..., m); (n,) or (..., n) with axis=1
        Weights >= 0 of the rows: roots of the sums over each row of the Fisher information
        (mean squared gradients); below 1e-6 of the largest they are lifted to that.
    axis : {0, 1}
        0: importance of outputs. 1: of inputs, for weights that are stored transposed.
    names : sequence of str, optional
        As `truncated_svd`.

    Returns
    -------
    Factors
        Their errors are in the weighted norm.

    Raises
    ------
    InvalidArgumentError, DtypeError
        As `truncated_svd`; importance that is negative or does not fit; another axis.

    References
    ----------
    Y.-C. Hsu et al.: Language model compression with weighted low-rank factorization, ICLR 2022,
    `arXiv:2207.00112 <https://arxiv.org/abs/2207.00112>`_, equations 4 to 7.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.compression import fisher_svd
    >>> found = fisher_svd(np.diag([3.0, 2.0, 1.0]), np.array([0.1, 1.0, 0.1]))
    >>> found.cut(rank=1).to_dense().round(6).diagonal()
    array([0., 2., 0.])
    """
    if axis not in {0, 1}:
        raise InvalidArgumentError(f"[fisher_svd] axis must be 0 or 1, got {axis!r}")
    stack, lead = matrices_of("fisher_svd", weight, names)
    extent = stack.shape[1 + axis]
    i = scales_of("fisher_svd", importance, lead, extent, names, name="importance")[..., None, :]
    if axis == 1:
        return _factors("fisher_svd", "fwsvd", weight, i, names)
    return _factors("fisher_svd", "fwsvd", weight, None, names, rows=i)


def damped(gram: Floats, share: float = 1e-4) -> Floats:
    """Return ``gram + share * mean(diag) * I``; the identity where all is zero."""
    n = gram.shape[-1]
    mean = np.trace(gram, axis1=-2, axis2=-1) / n
    return gram + np.where(mean > 0, share * mean, 1.0)[:, None, None] * np.eye(n)


def _factors(
    function: str,
    method: str,
    weight: Any,
    columns: Floats | None,
    names: Sequence[str] | None,
    *,
    rows: Floats | None = None,
) -> Factors:
    """Decompose ``rows W columns``, both diagonal and given as one row each."""
    stack, lead = matrices_of(function, weight, names)
    return _gathered(
        method, weight, stack, lead,
        work=lambda w, here: decompose(w, _part(columns, here), None, _part(rows, here)),
    )  # fmt: skip


def _gathered(
    method: str,
    weight: Any,
    stack: Any,
    lead: tuple[int, ...],
    *,
    work: Callable[[Any, slice], Pairs],
    rank: int | None = None,
    mean: Floats | None = None,
) -> Factors:
    """Decompose a stack part by part."""
    b, m, n = stack.shape
    r = min(m, n) if rank is None else rank
    left, right = np.empty((b, m, r), stack.dtype), np.empty((b, r, n), stack.dtype)
    values = np.empty((b, min(m, n)))
    step = max(2, _CHUNK // (8 * m * n))
    for start in range(0, b, step):
        here = slice(start, start + step)
        found = work(stack[here], here)
        left[here], right[here] = found.left[..., :r], found.right[..., :r, :]
        values[here] = found.values
    offset = within = None
    if mean is not None:
        offset = (stack @ mean[..., None])[..., 0].reshape(*lead, -1)
        within = (right @ mean[..., None])[..., 0].reshape(*lead, r)
    return Factors(
        method=method,
        weight=weight,
        left=like(weight, left.reshape(*lead, -1, r)),
        right=like(weight, right.reshape(*lead, r, -1)),
        values=values.reshape(*lead, -1),
        offset=offset,
        within=within,
    )


def _led(w: Any, grams: Floats, rank: int) -> Pairs:
    """Return pairs by float32 where it serves, by float64 elsewhere."""
    found, good = leading(w, grams, rank)
    for i in np.flatnonzero(~good):
        root = square_root(grams if len(grams) == 1 else grams[i : i + 1])
        exact = decompose(w[i : i + 1].astype(np.float64), root)
        found.left[i], found.right[i] = exact.left[0, :, :rank], exact.right[0, :rank]
        found.values[i] = exact.values[0]
    return found


def _part(x: Floats | None, here: slice) -> Any:
    return x if x is None or len(x) == 1 else x[here]
