"""Low-rank factors of weights: plain, scaled by activations, whitened, weighted by the loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

import subspan
from subspan import _checks
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
from subspan.errors import InvalidArgumentError

__all__ = ["activation_svd", "fisher_svd", "truncated_svd", "whitened_svd"]

_SURE = 1e-5  # of the largest: above, squared values have all the digits that are promised
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
    names : sequence of str, optional
        As `truncated_svd`.

    Returns
    -------
    Factors
        With the errors of all ranks.

    Raises
    ------
    InvalidArgumentError, DtypeError
        As `truncated_svd`; NaN or infinity in a Gram matrix (named); one that does not fit; affine
        without Moments.

    Notes
    -----
    A Cholesky decomposition of each Gram matrix (of eigenvectors where it is singular), one `eigh`
    of order min(m, n) and four products a matrix, all in float64.

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
    stack, lead = matrices_of(function, weight, names)
    m, n = stack.shape[1:]
    ridge = _checks.real(function, "ridge", ridge, low=0.0)
    grams = grams_of(function, gram, lead, n, names, centred=affine)
    shift = means_of(gram) if affine else None
    rows = None
    if outputs is not None:
        rows = square_root(damped(grams_of(function, outputs, lead, m, names, name="outputs")))
    basis = None if ridge == 0 else square_root(damped(grams, ridge))
    method = "whitened" if outputs is None else "two-sided"
    root = square_root(grams)
    return _factors(function, method, weight, root, names, basis=basis, rows=rows, mean=shift)


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
    basis: Floats | None = None,
    rows: Floats | None = None,
    mean: Floats | None = None,
) -> Factors:
    """Decompose ``rows^T W columns``; both are square roots, or one row each if diagonal.

    ``basis`` stands for ``columns`` where directions are chosen; errors are always of ``columns``.
    """
    stack, lead = matrices_of(function, weight, names)
    parts = []
    step = max(2, _CHUNK // (8 * stack[0].size))
    for start in range(0, len(stack), step):
        here = slice(start, start + step)
        chosen = (_part(x, here) for x in (columns, basis, rows))
        parts.append(decompose(stack[here], *chosen))
    left, right, values = (np.concatenate(part) for part in zip(*parts, strict=True))
    p = left.shape[-1]
    offset = within = None
    if mean is not None:
        offset = (stack @ mean[..., None])[..., 0].reshape(*lead, -1)
        within = (right @ mean[..., None])[..., 0].reshape(*lead, p)
    return Factors(
        method=method,
        weight=weight,
        left=like(weight, left.reshape(*lead, -1, p)),
        right=like(weight, right.reshape(*lead, p, -1)),
        values=values.reshape(*lead, p),
        offset=offset,
        within=within,
    )


def decompose(
    w: Floats, columns: Floats | None, basis: Floats | None, rows: Floats | None
) -> tuple[Floats, Floats, Floats]:
    """Return left (b, m, p), right (b, p, n) and the norms (b, p) of what each pair holds.

    The pairs are ordered so that the first r are best for every r; p = min(m, n).
    """
    weighted = w if rows is None else _applied(_turned(rows), w)
    chosen = columns if basis is None else basis
    if w.shape[1] <= w.shape[2]:
        target = weighted if chosen is None else _product(weighted, chosen)
        squares, u = _axes(target @ _turned(target))
        right = _turned(u) @ weighted
        values = np.sqrt(np.maximum(squares, 0.0))
        sure = squares > _SURE * squares[:, :1]
    else:
        inner = _turned(weighted) @ weighted
        both = inner if chosen is None else _applied(_turned(chosen), _product(inner, chosen))
        _, axes = _axes(both)
        if chosen is not None:
            axes = _applied(chosen, axes)
        image = weighted @ axes
        values = np.linalg.norm(image, axis=-2)
        sure = values > _SURE * values[:, :1]
        size = np.where(values > 0, values, 1.0)
        u, right = image / size[:, None], _turned(axes) @ inner / size[..., None]
        for i in np.flatnonzero(~sure.all(axis=-1)):
            # QR in the order of falling values keeps all leading spans, divides by none of them,
            # and fills up where rank is missing.
            u[i] = subspan.qr(image[i]).q
            right[i] = u[i].T @ weighted[i]
    for i in np.flatnonzero((basis is not None) | ~sure.all(axis=-1)):
        # small values have lost digits in the squares
        held = right[i] if columns is None else _product(right[i], _one(columns, int(i)))
        values[i] = np.linalg.norm(held, axis=-1)
    if rows is None:
        return u, right, values
    if rows.shape[-2] == 1:
        left = u / _turned(rows)
    else:
        full = np.broadcast_to(rows, (len(u), *rows.shape[1:]))
        left = subspan.solve_triangular(full, u, transposed=True)
    size = np.linalg.norm(left, axis=-2, keepdims=True)  # columns of length one, as without weights
    return left / size, right * _turned(size), values


def _axes(gram: Floats) -> tuple[Floats, Floats]:
    """Return eigenvalues, falling, and their vectors."""
    found = subspan.eigh(gram)
    return found.values[..., ::-1].copy(), np.ascontiguousarray(found.vectors[..., ::-1])


def _turned(a: Floats) -> Floats:
    return a.swapaxes(-1, -2)


def _product(a: Floats, s: Floats) -> Floats:
    """Return ``a @ s``; a single row s stands for a diagonal."""
    return a * s if s.shape[-2] == 1 else a @ s


def _applied(s: Floats, a: Floats) -> Floats:
    """Return ``s @ a``; a single row or column s stands for a diagonal."""
    return (s if s.shape[-1] == 1 else _turned(s)) * a if 1 in s.shape[-2:] else s @ a


def _one(x: Floats, i: int) -> Floats:
    found: Floats = x[0] if len(x) == 1 else x[i]
    return found


def _part(x: Floats | None, here: slice) -> Floats | None:
    return x if x is None or len(x) == 1 else x[here]
