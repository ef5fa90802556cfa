"""The Hilbert-Schmidt independence criterion."""

from typing import Any, NamedTuple

from subspan import _checks
from subspan.dependence._pair_sums import Kernel, centred, pair_sums
from subspan.dependence._samples import delivered, read
from subspan.dependence.bandwidths import width_of
from subspan.errors import DtypeError, InvalidArgumentError

__all__ = ["HSICSides", "hsic", "prepare"]

_KERNELS = ("gaussian", "laplacian", "matern32", "matern52", "cauchy", "rational_quadratic")


def hsic(
    x: Any,
    y: Any,
    *,
    kernel: str = "gaussian",
    bandwidth: Any = "median",
    unbiased: bool = False,
) -> Any:
    r"""Return the Hilbert-Schmidt independence criterion of two paired samples.

    .. math:: \mathrm{HSIC} = \frac{1}{n^2} \mathrm{tr}\, K H L H, \quad H = I - \tfrac{1}{n} 1 1^T

    with the kernel matrices K of x and L of y. In the limit 0 if and only if they are independent.

    Parameters
    ----------
    x : array (n, p) or (n,)
        float32 or float64 of numpy, torch or another library with DLPack (CPU).
    y : array (n, q) or (n,)
        Of the library and dtype of x.
    kernel : {"gaussian", "laplacian", "matern32", "matern52", "cauchy", "rational_quadratic"}
        As in `subspan.kernel_matvec`, for both sides.
    bandwidth : float, str, or a tuple of two
        > 0, or the name of a rule (`kernel_bandwidth`); a tuple: of x and of y.
    unbiased : bool
        The U-statistic of Song et al., which may be negative.

    Returns
    -------
    float
        Where x or y is a tensor that requires a gradient, a tensor of no axes, differentiable once;
        bandwidths are constants to it.

    Raises
    ------
    InvalidArgumentError
        Numbers of rows differ, fewer than 2 rows (unbiased: 4), NaN or infinity, an unknown name, a
        bandwidth that is not positive.
    DtypeError
        An argument is no array, y is of another library or dtype than x, or not float32 or float64.
    UnsupportedError
        An array is on a CUDA device.

    Notes
    -----
    n² (p + q) multiplications and 2 n² values of kernels; memory grows with n alone. Some authors
    divide by (n - 1)². Normalised, and for many layers at once: `subspan.similarity.cka`.

    References
    ----------
    A. Gretton et al.: Measuring statistical dependence with Hilbert-Schmidt norms, ALT 2005; L.
    Song et al.: Feature selection via dependence maximization, JMLR 13 (2012), equation 5.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.dependence import hsic
    >>> x = np.linspace(-1, 1, 101)
    >>> round(hsic(x, x**2), 5), round(hsic(x, np.cos(40 * x)), 5)
    (0.03225, 2e-05)
    """
    sides = prepare("hsic", x, y, kernel=kernel, bandwidth=bandwidth, unbiased=unbiased)
    sums = pair_sums(sides.x, sides.y, sides.kernels)
    return delivered(centred(sums, (1.0, 1.0), unbiased=unbiased), sides.x, sides.y)


class HSICSides(NamedTuple):
    """Two samples and their kernels."""

    x: Any
    y: Any
    kernels: tuple[Kernel, Kernel]


def prepare(
    function: str, x: Any, y: Any, *, kernel: str, bandwidth: Any, unbiased: bool
) -> HSICSides:
    """Return checked samples, with bandwidths that are numbers."""
    _checks.choice(function, "kernel", kernel, _KERNELS)
    if not isinstance(unbiased, bool):
        raise DtypeError(f"[{function}] unbiased must be a bool, got {type(unbiased).__name__}")
    rows = read(function, least=4 if unbiased else 2, x=x, y=y)
    given = bandwidth if isinstance(bandwidth, tuple) else (bandwidth, bandwidth)
    if len(given) != 2:
        raise InvalidArgumentError(
            f"[{function}] bandwidth must be one, or a tuple of two, got {len(given)}"
        )
    first, second = (
        Kernel(kernel, width_of(function, "bandwidth", width, side), diagonal=1.0)
        for width, side in zip(given, rows, strict=True)
    )
    return HSICSides(rows[0], rows[1], (first, second))
