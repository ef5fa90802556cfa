"""Eigendecomposition of one or many symmetric matrices."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from subspan import _core
from subspan._ops import _gradients
from subspan._ops._batch import Batch

__all__ = ["Eigh", "EighInfo", "eigh", "eigvalsh"]


class Eigh(NamedTuple):
    """``a = vectors @ diag(values) @ vectors.T``."""

    values: Any
    """(..., n) ascending."""
    vectors: Any
    """(..., n, n) column j belongs to value j."""


class EighInfo(NamedTuple):
    """An `Eigh` and the status of each matrix, as ``errors="info"`` returns it."""

    values: Any
    vectors: Any
    info: npt.NDArray[np.int32]
    """(...) 0 if fine, -1 for NaN or infinity in the matrix, n > 0 if n values did not converge."""


def eigh(
    a: Any,
    *,
    nonfinite: str = "raise",
    errors: str = "raise",
    gap_eps: float = 0.0,
    subspace: bool = False,
) -> Eigh | EighInfo:
    r"""Eigenvalues and eigenvectors of real symmetric matrices, batched over the leading axes.

    .. math:: A = V \,\mathrm{diag}(\lambda)\, V^T

    Parameters
    ----------
    a : array (..., n, n)
        float32 or float64 of numpy, torch, cupy or another library with DLPack (CUDA: torch and
        cupy); any strides.
        Only the lower triangle is read.
    nonfinite : {"raise", "propagate", "ignore"}
        NaN or infinity in the lower triangle: an error that names the first matrix; NaN for that
        matrix and right results for the others; or no check.
    errors : {"raise", "info"}
        Matrices that do not converge: `ConvergenceError`, or a status in ``info``.
    gap_eps : float
        Of the gradient of a torch tensor, in [0, 1]. The gradient of the vectors has denominators
        x = l_j - l_i; with gap_eps, 1 / x becomes x / (x² + gap_eps max|l|²). 0: exact.
    subspace : bool
        Of the gradient. Values that differ by at most sqrt(eps) max|l| are one cluster, and what
        the loss may depend on are the spans of clusters: their inner terms are 0, and a loss that
        depends on the basis inside one raises `InvalidArgumentError` from ``backward``.

    Returns
    -------
    Eigh (values, vectors), or EighInfo (values, vectors, info) with ``errors="info"``
        Ascending, in a's library, dtype and device. Signs of vectors are the
        algorithm's. Differentiable, also twice, for a torch tensor that requires a gradient.

    Raises
    ------
    InvalidArgumentError, DtypeError, UnsupportedError, ConvergenceError
        As `svd`; also for matrices that are not square.

    Notes
    -----
    CUDA: Jacobi rotations, and as `svd`. CPU: O(n³) per matrix, own kernels on many at once
    up to n = 128, LAPACK's syevd above, the batch spread over our threads; normwise backward
    stable. Bits depend on neither the batch nor the threads, but for the last ones where n >= 512
    and there are fewer matrices than threads.

    The gradient is that of a function of symmetric matrices, and symmetric, although one triangle
    is read. That of ``values`` alone is :math:`V \,\mathrm{diag}(\dot\lambda)\, V^T`, safe whatever
    the values; that of ``vectors`` exists where values are distinct, and elsewhere is not finite
    unless ``gap_eps`` or ``subspace`` is set.

    Examples
    --------
    >>> import numpy as np, subspan
    >>> values, vectors = subspan.eigh(np.array([[2.0, 1.0], [1.0, 2.0]]))
    >>> values
    array([1., 3.])
    """
    rule = _gradients.eigh_rule(_gradients.Gaps("eigh", gap_eps, subspace))
    batch = Batch("eigh", _gradients.detached(a), nonfinite=nonfinite, errors=errors)
    batch.require_square()
    values, vectors = _gradients.differentiable(a, rule, lambda: _both(batch))
    result = Eigh(batch.deliver(values), batch.deliver(vectors))
    return result if batch.raising else EighInfo(*result, batch.status())


def eigvalsh(a: Any, *, nonfinite: str = "raise") -> Any:
    """Eigenvalues alone of real symmetric matrices, ascending; arguments as for `eigh`.

    Returns
    -------
    array (..., n)
        In a's library, dtype and device. Differentiable for a torch tensor that requires a
        gradient, for which the vectors are worked out too: that of l_i is :math:`v_i v_i^T`, a
        subgradient where values are equal.

    Raises
    ------
    InvalidArgumentError, DtypeError, UnsupportedError, ConvergenceError
        As `eigh`.

    Examples
    --------
    >>> import numpy as np, subspan
    >>> subspan.eigvalsh(np.diag([3.0, 1.0]))
    array([1., 3.])
    """
    source = _gradients.detached(a)
    batch = Batch("eigvalsh", source, nonfinite=nonfinite)
    batch.require_square()
    if source is not a:
        rule = _gradients.eigh_rule(_gradients.Gaps("eigvalsh", 0.0, False))
        return batch.deliver(_gradients.differentiable(a, rule, lambda: _both(batch))[0])
    values = batch.empty(batch.n)
    _solve(batch, values, None)
    return batch.deliver(values)


def _both(batch: Batch) -> tuple[Any, Any]:
    values, vectors = batch.empty(batch.n), batch.empty(batch.n, batch.n)
    _solve(batch, values, vectors)
    return values, vectors


def _solve(batch: Batch, values: Any, vectors: Any) -> None:
    policies = (batch.nonfinite, batch.raising, batch.function, batch.stream)
    _core.eigh(batch.rows, values, vectors, batch.info, *policies)
