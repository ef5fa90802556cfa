"""Solution of one or many triangular systems."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from subspan import _arrays, _checks, _core
from subspan._ops import _gradients
from subspan._ops._batch import Batch, broadcast, reshaped
from subspan.errors import InvalidArgumentError

__all__ = ["SolveTriangularInfo", "solve_triangular"]

_NAME = "solve_triangular"


class SolveTriangularInfo(NamedTuple):
    """Solutions and the status of each matrix, as ``errors="info"`` returns them."""

    x: Any
    """(..., n, k) or (..., n), NaN where info is not 0."""
    info: npt.NDArray[np.int32]
    """(...) 0 if fine, -1 for NaN or infinity in a or b, j > 0 if element j of the diagonal (from
    1) is zero."""


def solve_triangular(
    a: Any,
    b: Any,
    *,
    lower: bool = True,
    transposed: bool = False,
    unit_diagonal: bool = False,
    nonfinite: str = "raise",
    errors: str = "raise",
) -> Any:
    r"""Solutions of triangular systems by substitution, batched over the leading axes.

    .. math:: A X = B \quad\text{or}\quad A^T X = B

    Parameters
    ----------
    a : array (..., n, n)
        float32 or float64 of numpy, torch or another library with DLPack; any strides. The other
        triangle is not read.
    b : array (..., n, k) or (..., n)
        Right-hand sides, of a's library, dtype and device. Vectors if b has one axis, or one axis
        fewer than a; else the columns of matrices. Leading axes broadcast with those of a.
    lower : bool
        Which triangle of a counts.
    transposed : bool
        Solve with the transpose of that triangle.
    unit_diagonal : bool
        Take the diagonal of a for ones, without reading it.
    nonfinite : {"raise", "propagate", "ignore"}
        NaN or infinity in the triangle or in b: an error that names the first matrix; NaN for that
        matrix and right results for the others; or no check.
    errors : {"raise", "info"}
        Zeros on a diagonal: an error that names the first matrix and the element (from 1), or a
        status in ``info`` and NaN for the solutions.

    Returns
    -------
    array (..., n, k) or (..., n), or SolveTriangularInfo (x, info) with ``errors="info"``
        In a's library, dtype and device, with the broadcast leading axes.

    Raises
    ------
    InvalidArgumentError
        Shapes that do not fit, a wrong policy; NaN or infinity; a zero on a diagonal.
    DtypeError
        Not arrays of one library, dtype and device; not float32 or float64.
    UnsupportedError
        Arrays on a CUDA device.

    Notes
    -----
    n² k flops per system. Up to n = 64 and k = 64 several systems at once, one in each SIMD lane,
    where there are enough; else and up to 256 one by one with the lanes along the rows of x, to the
    same bits; above, BLAS trsm. The batch is spread over our threads. A solution depends neither on
    the others nor on the number of threads, but for the last bits where min(n, k) >= 512 and there
    are fewer matrices than threads. It may overflow where the exact one does. Tensors that require
    a gradient have one, which for ``a`` is zero where it is not read.

    References
    ----------
    N. J. Higham: Accuracy and Stability of Numerical Algorithms, 2nd ed., SIAM 2002, chapter 8.

    Examples
    --------
    >>> import numpy as np, subspan
    >>> subspan.solve_triangular(np.array([[2.0, 0.0], [1.0, 4.0]]), np.array([2.0, 9.0]))
    array([1., 2.])
    """
    of_a, of_b, vectors = _operands(a, b)
    batch = Batch(_NAME, _gradients.detached(of_a), nonfinite=nonfinite, errors=errors)
    right = Batch(_NAME, _gradients.detached(of_b), nonfinite=nonfinite, errors=errors, name="b")
    how = (bool(lower), bool(transposed), bool(unit_diagonal))
    x = _gradients.solved(of_a, of_b, how, lambda: _solve(batch, right, how))
    result = _arrays.deliver(a, x[..., 0] if vectors else x)
    return result if batch.raising else SolveTriangularInfo(result, batch.status())


def _solve(batch: Batch, right: Batch, how: tuple[bool, bool, bool]) -> Any:
    x = batch.empty(right.m, right.n)
    policies = (batch.nonfinite, batch.raising, batch.stream)
    _core.solve_triangular(batch.rows, right.rows, x, batch.info, *how, *policies)
    return x.reshape((*batch.lead, right.m, right.n))


def _operands(a: Any, b: Any) -> tuple[Any, Any, bool]:
    """Return a (..., n, n) and b (..., n, k) of the same leading axes, and if b was vectors."""
    _arrays.require_same(_NAME, a=a, b=b)
    _checks.ndim(_NAME, "a", a, 2, or_more=True)
    _checks.ndim(_NAME, "b", b, 1, or_more=True)
    a, b = (
        x if _gradients.wanted(x) else _arrays.exportable(_NAME, name, x)
        for name, x in (("a", a), ("b", b))
    )
    of_a, of_b = (tuple(int(extent) for extent in x.shape) for x in (a, b))
    if of_a[-2] != of_a[-1]:
        raise InvalidArgumentError(
            f"[{_NAME}] a must be square in its last two axes, got {of_a[-2]} x {of_a[-1]}"
        )
    vectors = len(of_b) in {1, len(of_a) - 1}
    matrices = (*of_b, 1) if vectors else of_b
    try:
        lead = np.broadcast_shapes(of_a[:-2], matrices[:-2])
    except ValueError:
        lead = None
    if lead is None or matrices[-2] != of_a[-1]:
        wanted = "(..., n)" if vectors else "(..., n, k)"
        raise InvalidArgumentError(
            f"[{_NAME}] b must be {wanted} with n = {of_a[-1]} and leading axes that broadcast "
            f"with {of_a[:-2]}, got shape {of_b}. With one axis, or one fewer than a, b is vectors"
        )
    b = reshaped(b, matrices)
    return broadcast(a, lead + of_a[-2:]), broadcast(b, lead + matrices[-2:]), vectors
