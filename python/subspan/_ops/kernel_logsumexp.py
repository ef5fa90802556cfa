"""Logarithms of sums of kernels, which do not underflow."""

from __future__ import annotations

from typing import Any

from subspan import _arrays, _checks
from subspan._ops import _gradients, _kernel_log_gradients
from subspan._ops._kernel_arguments import operands, ranges_of, tracked_width, widths_of
from subspan._ops._kernel_gradients import Kernel
from subspan.errors import InvalidArgumentError

__all__ = ["kernel_logsumexp"]

_NAME = "kernel_logsumexp"
_KERNELS = (
    *("gaussian", "laplacian", "matern12", "matern32", "matern52", "cauchy"),
    *("rational_quadratic", "exp_dot"),
)


def kernel_logsumexp(
    x: Any,
    y: Any,
    v: Any = None,
    *,
    kernel: str = "gaussian",
    bandwidth: Any = 1.0,
    alpha: float = 1.0,
    ranges: Any = None,
) -> Any:
    r"""Return the logarithm of a kernel matrix times weights, also where all its terms underflow.

    .. math:: \mathrm{out}_i = \log \sum_j k(x_i, y_j)\, v_j

    Log densities, divergences and losses of neighbours are differences of such logarithms. The
    logarithm of k is a function of the distance or the product that neither under- nor overflows;
    the greatest of a row is taken away before there are powers.

    Parameters
    ----------
    x : array (..., n, d)
        float32 or float64 of numpy, torch, cupy (CUDA) or another library with DLPack (CPU); any
        strides.
    y : array (..., m, d) or None
        None: x itself. Leading axes of all arrays broadcast.
    v : array (m,), (..., m) or (..., m, e), or None
        Weights >= 0; where one is 0 its point does not count. None: ones. With one axis, or one
        fewer than x and y, v is vectors.
    kernel : str
        "gaussian", "laplacian", "matern12", "matern32", "matern52", "cauchy",
        "rational_quadratic" or "exp_dot", as `kernel_matvec` has them.
    bandwidth : float or array (d,)
        > 0; inf leaves a coordinate out. Of "exp_dot" the temperature.
    alpha : float
        Of "rational_quadratic", > 0.
    ranges : tuple of four integer arrays or None
        Pairs that count, as in `kernel_matvec`.

    Returns
    -------
    array (..., n) or (..., n, e)
        In the library and dtype of x; -inf where nothing counts. For torch tensors it is
        differentiable once in x, y, v and bandwidth, without the matrix as well.

    Raises
    ------
    InvalidArgumentError
        Shapes do not fit; a weight is negative; a bandwidth is not positive; an unknown name;
        ranges that are no pattern.
    DtypeError
        An argument is no array, of another library or dtype than x, or not float32 or float64.
    UnsupportedError
        Arrays on a CUDA device with ranges, or of neither torch nor cupy; or there is no CUDA
        library.

    Notes
    -----
    For each of the e columns of v 2 n m d flops and n m logarithms and powers; memory as
    `kernel_matvec`. An exponent s is known to s ulp, so the error of a result is a few ulp of
    ``1 + abs(out)``. NaN in a row of x makes that row NaN, in y or v all rows.

    On a CUDA device nothing waits: a negative weight makes its column NaN, and no error.

    References
    ----------
    P. Blanchard, D. J. Higham, N. J. Higham: Accurately computing the log-sum-exp and softmax
    functions, IMA Journal of Numerical Analysis 41 (2021), 2311-2330: the greatest is taken away.

    Examples
    --------
    >>> import numpy as np, subspan
    >>> far = subspan.kernel_logsumexp(np.zeros((1, 2)), np.array([[300.0, 400.0]]))
    >>> far  # -500^2 / 2, where exp gives 0
    array([-125000.])
    """
    _checks.choice(_NAME, "kernel", kernel, _KERNELS)
    how = Kernel(
        "laplacian" if kernel == "matern12" else kernel,
        _checks.real(_NAME, "alpha", alpha, high=1e30),
        ranges=ranges_of(_NAME, ranges),
    )
    if how.alpha <= 0:
        raise InvalidArgumentError(f"[{_NAME}] alpha must be > 0, got {how.alpha}")
    points = operands(_NAME, x, y, v)
    widths = widths_of(_NAME, bandwidth, int(points.x.shape[-1]))
    tracked = tracked_width(_NAME, bandwidth, x)
    if tracked is not None or any(map(_gradients.wanted, points[:3])):
        out = _kernel_log_gradients.logsumexp(points[:3], tracked, widths, how)
    else:
        out, _ = _kernel_log_gradients.logs(points.x, points.y, points.v, widths, how)
    out = out.reshape((*points.lead, *out.shape[1:]))
    return _arrays.deliver(x, out[..., 0] if points.vectors else out)
