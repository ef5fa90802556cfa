"""How much of a kernel matrix its largest entries hold."""

from typing import Any, NamedTuple

import numpy as np

from subspan import _checks, knn
from subspan.errors import InvalidArgumentError
from subspan.kernels._kernel import DECREASING, Array, Floats, Kernel, points

__all__ = ["KernelMass", "kernel_mass"]


class KernelMass(NamedTuple):
    """Sums of the entries of K(x, y), with n rows."""

    mass: float
    """Sum of all entries over n."""
    head: float
    """Sum of the n largest entries."""
    ratio: float
    """Sum of all other entries over head."""


def kernel_mass(
    x: Any,
    y: Any = None,
    *,
    kernel: str = "gaussian",
    bandwidth: Any = 1.0,
    alpha: float = 1.0,
) -> KernelMass:
    r"""Return the mean row sum of a kernel matrix, and what its n largest entries leave of it.

    .. math:: \mathrm{mass} = \frac 1 n \sum_{ij} K_{ij}, \qquad
        \mathrm{ratio} = \frac{\sum_{ij} K_{ij} - \mathrm{head}}{\mathrm{head}}

    Where both stay bounded as n grows, products with the matrix can be made from its large entries
    and a sample of the others.

    Parameters
    ----------
    x : array (n, d)
        float32 or float64 of numpy, torch or another library with DLPack (CPU); finite.
    y : array (m, d), optional
        None: x itself; the n largest entries of a kernel that decreases are then its diagonal.
    kernel, bandwidth, alpha
        As in `subspan.kernel_matvec`; of the kernels that decrease with the distance, and
        "exp_dot".

    Returns
    -------
    KernelMass (mass, head, ratio)

    Raises
    ------
    InvalidArgumentError
        Shapes do not fit, NaN or infinity, a name is unknown, sums overflow.
    DtypeError
        An argument is no array, or not float32 or float64.
    UnsupportedError
        An array is on a CUDA device, or requires a gradient.

    Notes
    -----
    Exact, from one product and a search for the 8 nearest of every row, 4 n m d flops; rows whose
    8th could still be among the n largest entries are searched again, for twice as many. Nothing of
    size n m is there.

    References
    ----------
    Assumption A of P. Indyk, M. Kapralov, K. Sheth, T. Wagner: Improved algorithms for kernel
    matrix-vector multiplication under sparsity assumptions, ICLR 2025, `arXiv:2507.23539
    <https://arxiv.org/abs/2507.23539>`_.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.kernels import kernel_mass
    >>> queries, keys = np.array([[0.0], [9.0]]), np.array([[0.0], [0.0], [9.0]])
    >>> kernel_mass(queries, keys, kernel="cauchy").mass.__round__(3)
    1.518
    """
    function = "kernel_mass"
    _checks.choice(function, "kernel", kernel, (*DECREASING, "exp_dot"))
    rows = points(function, x=x, y=y)
    first, last = rows[0], rows[-1]
    how = Kernel(kernel, bandwidth, alpha)
    how.check(function, first.shape[1], (*DECREASING, "exp_dot"))
    total = how.multiply(first, None if y is None else last, np.ones(len(last), first.dtype))
    whole = float(total.sum(dtype=np.float64))
    if kernel == "exp_dot":
        scaled = (first / how.widths(first.shape[1])).astype(first.dtype), last
        best = np.exp(_largest(*scaled, "inner_product"))
    else:
        centre = last.mean(0, dtype=np.float64)
        scaled = how.scaled(first, centre), how.scaled(last, centre)
        best = how.profile(-_largest(*scaled, "euclidean"))
    head = float(best.sum())
    if not np.isfinite(whole + head):
        raise InvalidArgumentError(
            f"[{function}] x must give sums that do not overflow, got one that does, of "
            f"{kernel!r}. Raise bandwidth"
        )
    ratio = max(whole - head, 0.0) / head if head > 0 else float("nan")
    return KernelMass(whole / len(first), head, ratio)


def _largest(x: Array, y: Array, metric: str) -> Floats:
    """Return the n largest of all inner products, or of all distances times -1."""
    sign = 1.0 if metric == "inner_product" else -1.0
    n, m = len(x), len(y)
    k = min(m, 8)
    open_rows = np.arange(n)
    closed = np.empty(0)
    while True:
        found = sign * np.asarray(
            knn(x[open_rows], y, k=k, metric=metric, dtype="float64").distances
        )
        values = np.concatenate([closed, found.ravel()])
        count = min(n, n * m)
        values = -np.partition(-values, count - 1)[:count]
        # Only a row whose last is better than the worst that is kept may have more.
        more = found[:, -1] > values.min()
        if k == m or not more.any():
            return values
        closed = np.concatenate([closed, found[~more].ravel()])
        open_rows = open_rows[more]
        k = min(m, 2 * k)
