"""Products of kernel matrices and vectors, without the matrices."""

from __future__ import annotations

from typing import Any

from subspan import _arrays, _checks
from subspan._ops import _gradients, _kernel_gradients
from subspan._ops._kernel_arguments import (
    on_device,
    operands,
    ranges_of,
    tracked_width,
    widths_of,
)
from subspan.errors import InvalidArgumentError, UnsupportedError

__all__ = ["kernel_matvec"]

_NAME = "kernel_matvec"
_DECREASING = (
    *("gaussian", "laplacian", "matern12", "matern32", "matern52", "cauchy"),
    "rational_quadratic",
)
_KERNELS = (
    *_DECREASING,
    *("exp_dot", "softmax", "linear", "polynomial", "distance", "sqdistance"),
)


def kernel_matvec(
    x: Any,
    y: Any,
    v: Any = None,
    *,
    kernel: str = "gaussian",
    bandwidth: Any = 1.0,
    alpha: float = 1.0,
    degree: int = 3,
    offset: float = 1.0,
    cutoff: float = 0.0,
    ranges: Any = None,
    method: str = "exact",
    tol: float | None = None,
    rank: int | None = None,
    seed: int = 0,
    return_info: bool = False,
) -> Any:
    r"""Return the product of a kernel matrix with vectors, without forming the matrix.

    .. math:: \mathrm{out}_i = \sum_j k(x_i, y_j)\, v_j

    With :math:`D` the Euclidean length of ``(x_i - y_j) / bandwidth`` and :math:`P` the sum of
    ``x_i * y_j / bandwidth``, k is

    ====================== ==========================================================
    "gaussian"             exp(-D²/2)
    "laplacian"            exp(-D), also called "matern12"
    "matern32"             (1 + t) exp(-t) with t = √3 D
    "matern52"             (1 + t + t²/3) exp(-t) with t = √5 D
    "cauchy"               1 / (1 + D²)
    "rational_quadratic"   (1 + D² / (2 alpha))^-alpha
    "exp_dot"              exp(P)
    "softmax"              exp(P) over its sum over all j: attention
    "linear", "polynomial" P, (P + offset)^degree
    "distance"             D, and D² as "sqdistance"
    ====================== ==========================================================

    Parameters
    ----------
    x : array (..., n, d)
        float32 or float64 of numpy, torch, cupy (CUDA) or another library with DLPack (CPU); any
        strides.
    y : array (..., m, d) or None
        None: x itself. Leading axes of all arrays broadcast.
    v : array (m,), (..., m) or (..., m, e), or None
        One or several right-hand sides. With one axis, or one fewer than x and y, v is vectors.
        None: ones, so that the result is the sums of the rows of the matrix.
    kernel : str
        One of the names above.
    bandwidth : float or array (d,)
        > 0; inf leaves a coordinate out. Of "exp_dot" and "softmax" the temperature.
    alpha : float
        Of "rational_quadratic", > 0.
    degree, offset : int >= 1, float
        Of "polynomial".
    cutoff : float
        In [0, 1), of kernels that decrease with D: pairs with k below may be left out, so that
        where the bandwidth is small beside the spread most are. The error of ``out_i`` grows by at
        most ``cutoff * sum(abs(v))``. Gradients are those of all pairs.
    ranges : tuple of four integer arrays or None
        Pairs that count, as ``(rows, columns, offsets, tiles)``: tile t of rows is
        ``x[rows[t] : rows[t + 1]]``, and it meets the tiles ``tiles[offsets[t] : offsets[t + 1]]``
        of columns, in ascending order, of which tile s is ``y[columns[s] : columns[s + 1]]``. All
        other k count as 0. Not together with a cutoff or another method.
    method : {"exact", "nystrom", "rff", "sparse", "auto"}
        The others approximate, of points (n, d) and (m, d) without gradients, and measure by how
        much: from landmarks (`subspan.kernels.nystrom`; positive definite kernels), from random
        features (those that decrease with D, and "exp_dot"), from the large entries and a sample of
        the others (`subspan.kernels.sparsify`; those that decrease), or by what should be the
        quickest for tol. "sparse" and "auto" are exact where that is no slower.
    tol : float, optional
        Of the other methods: ``norm2(out - K v) <= tol * norm2(K v)`` of each right-hand side.
    rank : int, optional
        Landmarks or random features (an even number of these, but for "exp_dot"); with tol, at most
        so many. None, with tol: 1024 landmarks, 65536 features.
    seed : int
        0 to 2^64 - 1, of what the other methods draw.
    return_info : bool
        Return a `subspan.kernels.ProductInfo` besides.

    Returns
    -------
    array (..., n) or (..., n, e), with return_info a tuple of it and ProductInfo
        In the library and dtype of x. For torch tensors it is differentiable once in x, y, v and
        bandwidth, without the matrix as well; at D = 0, where "laplacian" and "distance" have no
        derivative, it counts as 0.

    Raises
    ------
    InvalidArgumentError
        Shapes do not fit; a bandwidth is not positive; an unknown name; y without rows for
        "softmax"; ranges that are no pattern; sums that overflow though all arguments are finite
        (of "exp_dot", say); NaN or infinity where the method is not exact; a rank or tol that does
        not suit the method.
    ConvergenceError
        The method cannot meet tol; the message names the error that it reaches.
    DtypeError
        An argument is no array, of another library or dtype than x, or not float32 or float64.
    UnsupportedError
        Arrays on a CUDA device with ranges or a method that approximates, or of neither torch nor
        cupy; or there is no CUDA library.

    Notes
    -----
    2 n m (d + e) flops and n m values of k, but 2 (n + m) d e for "linear"; where y is x, or None,
    and v has at most three columns, half of both. Memory: 8 n e bytes and some 16 MiB of packed
    points. Coordinates are taken from the mean of y in float64 before they are rounded, so a common
    offset costs no accuracy. Distances come from differences where d <= 8 or where two points are
    near each other; equal points have distance 0. Values are made in the dtype of x (2 ulp of the
    power of two), summed in it over 128 points and in float64 beyond. The error of a sum is a few
    ulp times the sum of ``|k v|`` times (1 + the exponent). Values below 2^-125 (float64: 2^-1021)
    count as 0.

    A result depends neither on the threads nor on the batch, nor, where y is not x and without a
    cutoff, on other rows of x. NaN or infinity in a row of x makes that row NaN, in y or v all
    rows.

    On a CUDA device nothing waits: sums that overflow are infinite, and no error. A cutoff leaves
    nothing out there, and a set and itself cost what two sets do. "linear" is the product of the
    array's own library. Bits differ from the CPU's, and depend on the number of columns of v.

    References
    ----------
    B. Charlier et al.: Kernel operations on the GPU, with autodiff, without memory overflows,
    JMLR 22 (2021), 74.

    Examples
    --------
    >>> import numpy as np, subspan
    >>> x, y = np.array([[0.0], [1.0]]), np.array([[0.0], [2.0], [3.0]])
    >>> subspan.kernel_matvec(x, y, np.array([1.0, 10.0, 100.0]), kernel="distance")
    array([320., 211.])
    >>> subspan.kernel_matvec(x, None, np.ones(2), bandwidth=np.inf)
    array([2., 2.])
    """
    _checks.choice(_NAME, "kernel", kernel, _KERNELS)
    if method != "exact" or return_info or tol is not None or rank is not None:
        from subspan.kernels.methods import Kernel, Request, product  # made of exact products

        if method != "exact" and _arrays.library_of(x) and on_device(_NAME, x):
            raise UnsupportedError(
                f"[{_NAME}] method must be 'exact' for arrays on a CUDA device, got {method!r}. "
                "Copy them to the host for the others"
            )
        if ranges is not None:
            raise InvalidArgumentError(
                f"[{_NAME}] ranges must be None unless the product is exact, without tol, rank and "
                f"return_info, got a pattern with method={method!r}"
            )
        asked = Request(
            Kernel(kernel, bandwidth, alpha, degree, offset), method, tol, rank, seed, cutoff
        )
        return product(x, y, v, asked, return_info=return_info)
    cutoff = _checks.real(_NAME, "cutoff", cutoff, low=0.0, high=1.0)
    if cutoff > 0 and (kernel not in _DECREASING or cutoff == 1):
        raise InvalidArgumentError(
            f"[{_NAME}] cutoff must be in [0, 1), and 0 unless the kernel decreases with the "
            f"distance, got {cutoff} for {kernel!r}"
        )
    how = _kernel_gradients.Kernel(
        "laplacian" if kernel == "matern12" else kernel,
        _checks.real(_NAME, "alpha", alpha, high=1e30),
        _checks.integer(_NAME, "degree", degree, low=1, high=1 << 30),
        _checks.real(_NAME, "offset", offset, low=-1e300, high=1e300),
        cutoff,
    )
    if how.alpha <= 0:
        raise InvalidArgumentError(f"[{_NAME}] alpha must be > 0, got {how.alpha}")
    how = how._replace(ranges=ranges_of(_NAME, ranges))
    if how.ranges is not None and cutoff > 0:
        raise InvalidArgumentError(f"[{_NAME}] cutoff must be 0 with ranges, got {cutoff}")
    points = operands(_NAME, x, y, v)
    widths = widths_of(_NAME, bandwidth, int(points.x.shape[-1]))
    tracked = tracked_width(_NAME, bandwidth, x)
    if tracked is not None or any(map(_gradients.wanted, points[:3])):
        out = _kernel_gradients.product(points[:3], tracked, widths, how)
    else:
        out, _ = _kernel_gradients.multiply(points.x, points.y, points.v, widths, how)
    out = out.reshape((*points.lead, *out.shape[1:]))
    return _arrays.deliver(x, out[..., 0] if points.vectors else out)
