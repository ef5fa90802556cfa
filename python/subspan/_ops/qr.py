"""QR decomposition of one or many matrices."""

from __future__ import annotations

from typing import Any, NamedTuple

from subspan import _core
from subspan._ops import _gradients
from subspan._ops._batch import Batch

__all__ = ["QR", "qr"]


class QR(NamedTuple):
    """``a = q @ r``."""

    q: Any
    """(..., m, k) orthonormal columns, k = min(m, n)."""
    r: Any
    """(..., k, n) upper triangular (trapezoidal for m < n)."""


def qr(a: Any, *, nonfinite: str = "raise") -> QR:
    """Thin QR decomposition by Householder reflections, batched over the leading axes.

    Parameters
    ----------
    a : array (..., m, n)
        float32 or float64 of numpy, torch, cupy or another library with DLPack (CUDA: torch and
        cupy); any strides.
    nonfinite : {"raise", "propagate", "ignore"}
        NaN or infinity in ``a``: an error that names the first matrix; NaN for that matrix and
        right results for the others; or no check.

    Returns
    -------
    QR (q, r)
        In a's library, dtype and device. The signs of r's diagonal are not fixed. Differentiable,
        also twice, for a torch tensor that requires a gradient.

    Raises
    ------
    InvalidArgumentError, DtypeError, UnsupportedError
        As `svd`.

    Notes
    -----
    O(m n min(m, n)) per matrix. q is orthonormal to rounding whatever the rank of ``a``. CUDA: own
    kernels, and as `svd`. CPU: own kernels on many matrices at once up to min(m, n) = 128,
    LAPACK's geqrf and orgqr above, the batch spread over our threads; bits depend on neither the
    batch nor the threads, but for the last ones where min(m, n) >= 512 and there are fewer matrices
    than threads.

    The gradient exists where the first min(m, n) columns are independent, and is not finite
    elsewhere. It costs a triangular solve and a few products.

    References
    ----------
    S. F. Walter, L. Lehmann: Algorithmic differentiation of linear algebra functions with
    application in optimum experimental design (2010), `arXiv:1001.1654
    <https://arxiv.org/abs/1001.1654>`_. Wide matrices: D. A. O. Roberts, L. R. Roberts: QR and LQ
    decomposition matrix backpropagation algorithms for square, wide, and deep matrices (2020),
    `arXiv:2009.10071 <https://arxiv.org/abs/2009.10071>`_.

    Examples
    --------
    >>> import numpy as np, subspan
    >>> a = np.random.default_rng(0).standard_normal((4, 6, 3))
    >>> q, r = subspan.qr(a)
    >>> np.allclose(q @ r, a)
    True
    """
    batch = Batch("qr", _gradients.detached(a), nonfinite=nonfinite)
    q, r = _gradients.differentiable(a, _gradients.qr_rule, lambda: _solve(batch))
    return QR(batch.deliver(q), batch.deliver(r))


def _solve(batch: Batch) -> tuple[Any, Any]:
    q, r = batch.empty(batch.m, batch.k), batch.empty(batch.k, batch.n)
    _core.qr(batch.rows, q, r, batch.info, batch.nonfinite, True, batch.stream)
    return q, r
