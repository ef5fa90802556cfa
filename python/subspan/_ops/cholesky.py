"""Cholesky decomposition of one or many symmetric positive definite matrices."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from subspan import _core
from subspan._ops import _gradients
from subspan._ops._batch import Batch

__all__ = ["CholeskyInfo", "cholesky"]


class CholeskyInfo(NamedTuple):
    """A factor and the status of each matrix, as ``errors="info"`` returns them."""

    factor: Any
    """(..., n, n), NaN where info is not 0."""
    info: npt.NDArray[np.int32]
    """(...) 0 if fine, -1 for NaN or infinity in the matrix, j > 0 if its leading minor of order j
    is not positive."""


def cholesky(a: Any, *, nonfinite: str = "raise", errors: str = "raise") -> Any:
    r"""Cholesky factors of symmetric positive definite matrices, batched over the leading axes.

    .. math:: A = L L^T

    Parameters
    ----------
    a : array (..., n, n)
        float32 or float64 of numpy, torch or another library with DLPack; any strides. Only the
        lower triangle is read.
    nonfinite : {"raise", "propagate", "ignore"}
        NaN or infinity in the lower triangle: an error that names the first matrix; NaN for that
        matrix and right results for the others; or no check.
    errors : {"raise", "info"}
        Matrices that are not positive definite: an error that names the first and the order of its
        leading minor that is not positive, or a status in ``info`` and NaN for their factors.

    Returns
    -------
    array (..., n, n), or CholeskyInfo (factor, info) with ``errors="info"``
        Lower triangular with a positive diagonal and zeros above it, in a's library, dtype and
        device.

    Raises
    ------
    InvalidArgumentError
        Not square, a wrong policy; NaN or infinity; not positive definite.
    DtypeError
        Not an array; not float32 or float64.
    UnsupportedError
        An array on a CUDA device.

    Notes
    -----
    n³ / 3 flops per matrix. Up to n = 64 several matrices at once, one in each SIMD lane, where
    there are enough; else and up to n = 511 one by one with the lanes along its rows, to the same
    bits; above, LAPACK potrf. The batch is spread over our threads. Rows and columns are scaled by
    powers of two that bring the diagonal into [1, 4) and undone exactly, so that nothing overflows
    or underflows on the way. A matrix's result depends neither on the others nor on the number of
    threads, but for the last bits where n >= 512 and there are fewer matrices than threads. Tensors
    that require a gradient have one, that of the symmetric matrix.

    References
    ----------
    N. J. Higham: Accuracy and Stability of Numerical Algorithms, 2nd ed., SIAM 2002, chapter 10.
    I. Murray: Differentiation of the Cholesky decomposition (2016), `arXiv:1602.07527
    <https://arxiv.org/abs/1602.07527>`_, section 4.1.

    Examples
    --------
    >>> import numpy as np, subspan
    >>> subspan.cholesky(np.array([[4.0, 2.0], [2.0, 10.0]]))
    array([[2., 0.],
           [1., 3.]])
    """
    batch = Batch("cholesky", _gradients.detached(a), nonfinite=nonfinite, errors=errors)
    batch.require_square()
    (out,) = _gradients.differentiable(a, _gradients.cholesky_rule, lambda: (_solve(batch),))
    factor = batch.deliver(out)
    return factor if batch.raising else CholeskyInfo(factor, batch.status())


def _solve(batch: Batch) -> Any:
    out = batch.empty(batch.n, batch.n)
    _core.cholesky(batch.rows, out, batch.info, batch.nonfinite, batch.raising, batch.stream)
    return out
