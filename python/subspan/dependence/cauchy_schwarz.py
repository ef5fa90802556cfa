"""Cauchy-Schwarz divergences and mutual information, by kernel density estimates."""

from typing import Any, NamedTuple

from subspan import _checks
from subspan.dependence._log_sums import log, log_mean, row_sums, scaled
from subspan.dependence._samples import constant, delivered, read_arrays
from subspan.dependence.bandwidths import width_of
from subspan.errors import DtypeError, InvalidArgumentError

__all__ = ["conditional_cs_divergence", "cs_divergence", "cs_mutual_information"]


def cs_divergence(x: Any, y: Any, *, bandwidth: Any = "median") -> Any:
    r"""Return the Cauchy-Schwarz divergence of two samples.

    .. math:: D = \log \overline{k(x, x)} + \log \overline{k(y, y)} - 2 \log \overline{k(x, y)},
        \quad k(a, b) = \exp(-|a - b|^2 / 2 \mathrm{bandwidth}^2)

    with means over all pairs: minus the logarithm of the squared cosine of their density estimates.

    Parameters
    ----------
    x : array (n, d) or (n,)
        float32 or float64 of numpy, torch or another library with DLPack (CPU).
    y : array (m, d) or (m,)
        Of the library and dtype of x.
    bandwidth : float or str
        > 0, or the name of a rule (`kernel_bandwidth`) for both samples together; a constant to
        gradients.

    Returns
    -------
    float
        >= 0 but for rounding; of torch tensors a tensor of no axes, float64 and differentiable.

    Raises
    ------
    InvalidArgumentError
        Numbers of columns differ, a sample has no row, NaN or infinity, a bandwidth that is not
        positive.
    DtypeError
        An argument is no array, y is of another library or dtype than x, or not float32 or float64.
    UnsupportedError
        An array is on a CUDA device.

    Notes
    -----
    (n² + m² + n m) d multiplications and as many exponentials; memory grows with n and m alone.
    Samples so far apart that all of k(x, y) underflows keep their divergence: its logarithm is then
    `subspan.kernel_logsumexp`, in float64.

    References
    ----------
    J. C. Principe: Information Theoretic Learning, 2010, chapter 2; S. Yu et al.: Cauchy-Schwarz
    divergence information bottleneck for regression, ICLR 2024.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.dependence import cs_divergence
    >>> x = np.array([0.0, 2.0])
    >>> round(cs_divergence(x, x + 3.0, bandwidth=1.0), 6)
    2.568186
    """
    function = "cs_divergence"
    x, y = read_arrays(function, least=1, paired=False, x=x, y=y)
    if x.shape[1] != y.shape[1]:
        raise InvalidArgumentError(
            f"[{function}] y must have {x.shape[1]} columns like x, got {y.shape[1]}"
        )
    width = width_of(function, "bandwidth", bandwidth, x, y)
    a, b = x / width, y / width
    return delivered(log_mean(a, a) + log_mean(b, b) - 2 * log_mean(a, b), x)


def cs_mutual_information(
    x: Any, y: Any, *, bandwidth: Any = "median", normalized: bool = False
) -> Any:
    r"""Return the Cauchy-Schwarz quadratic mutual information of two paired samples.

    .. math:: I = \log \frac{1}{n^2} \sum_{ij} K_{ij} L_{ij}
        + \log \frac{1}{n^4} \sum_{ij} K_{ij} \sum_{ij} L_{ij}
        - 2 \log \frac{1}{n^3} \sum_i \Bigl(\sum_j K_{ij}\Bigr) \Bigl(\sum_j L_{ij}\Bigr)

    with Gaussian matrices K of x and L of y: the divergence of the joint density and the product of
    the marginal ones.

    Parameters
    ----------
    x : array (n, p) or (n,)
        float32 or float64 of numpy, torch or another library with DLPack (CPU).
    y : array (n, q) or (n,)
        Of the library and dtype of x.
    bandwidth : float, str, or a tuple of two
        > 0, or the name of a rule (`kernel_bandwidth`); a tuple: of x and of y. A constant to
        gradients.
    normalized : bool
        I(x, y) / sqrt(I(x, x) I(y, y)), the regulariser of the information bottleneck; 0 where x or
        y is constant.

    Returns
    -------
    float
        In nats; of torch tensors a tensor of no axes, float64 and differentiable.

    Raises
    ------
    InvalidArgumentError
        Numbers of rows differ, fewer than 2 rows, NaN or infinity, a bandwidth that is not
        positive.
    DtypeError, UnsupportedError
        As `cs_divergence`.

    Notes
    -----
    K times L is a Gaussian of the columns of both: three passes of n² pairs, normalized five;
    memory grows with n alone.

    References
    ----------
    S. Yu et al.: Cauchy-Schwarz divergence information bottleneck for regression, ICLR 2024,
    section 3; `bandwidth="cs_ib"` is the rule of their code, which takes logarithms to base 2.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.dependence import cs_mutual_information
    >>> x = np.linspace(-2, 2, 50)
    >>> bool(cs_mutual_information(x, np.abs(x)) > cs_mutual_information(x, np.cos(900 * x)))
    True
    >>> round(cs_mutual_information(x, -x, normalized=True), 12)
    1.0
    """
    function = "cs_mutual_information"
    if not isinstance(normalized, bool):
        raise DtypeError(f"[{function}] normalized must be a bool, got {type(normalized).__name__}")
    x, y = read_arrays(function, least=2, x=x, y=y)
    widths = _two(function, bandwidth)
    a, b = (
        _Side.of(rows / width_of(function, "bandwidth", width, rows))
        for rows, width in zip((x, y), widths, strict=True)
    )
    value = _information(a, b)
    if not normalized:
        return delivered(value, x)
    own = _information(a, a), _information(b, b)
    if min(float(constant(one)) for one in own) <= 0:
        return delivered(0.0 * value, x)
    return delivered(value / (own[0] * own[1]) ** 0.5, x)


def conditional_cs_divergence(
    x: Any,
    y: Any,
    y_hat: Any,
    *,
    bandwidth: Any = "median",
    denominator: str = "squared_sum",
) -> Any:
    r"""Return the Cauchy-Schwarz divergence of y given x and y_hat given the same x.

    .. math:: D = \log S(y, y) + \log S(\hat y, \hat y) - 2 \log S(\hat y, y), \quad
        S(a, b) = \sum_j \frac{\sum_i K_{ji}\, L(a_j, b_i)}{N_j}

    with the Gaussian matrix K of x, Gaussians L and :math:`N_j = (\sum_i K_{ji})^2`: as a loss of
    predictions it compares whole conditional distributions.

    Parameters
    ----------
    x : array (n, p) or (n,)
        float32 or float64 of numpy, torch or another library with DLPack (CPU).
    y : array (n, q) or (n,)
        Of the library and dtype of x.
    y_hat : array (n, q) or (n,)
        Predictions.
    bandwidth : float, str, or a tuple of two
        > 0, or the name of a rule (`kernel_bandwidth`); a tuple: of x, and of y and y_hat, to which
        rules see y. A constant to gradients.
    denominator : {"squared_sum", "sum_of_squares"}
        N: the square of the sum of a row of K, which estimates the squared density of x; or the sum
        of the squares, which the code of the information bottleneck takes.

    Returns
    -------
    float
        In nats; of torch tensors a tensor of no axes, float64 and differentiable. 0 where y_hat is
        y. Not negative in the limit of many rows, but not symmetric in them.

    Raises
    ------
    InvalidArgumentError
        Numbers of rows, or of columns of y and y_hat, differ; fewer than 2 rows, NaN or infinity,
        an unknown name, a bandwidth that is not positive.
    DtypeError, UnsupportedError
        As `cs_divergence`.

    Notes
    -----
    Four passes of n² pairs; memory grows with n alone. Predictions so far off that all of
    L(y_hat, y) underflows keep their divergence and its gradient (as in `cs_divergence`).

    References
    ----------
    S. Yu et al.: The conditional Cauchy-Schwarz divergence with applications to time-series data
    and sequential decision making, arXiv 2301.08970; for one x: Yu et al., ICLR 2024, section 3.
    The squared sum is what the mean of p(x, y) / p(x)^2 over the sample gives.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.dependence import conditional_cs_divergence
    >>> x = np.linspace(-1, 1, 50)
    >>> y = x**2
    >>> near, far = (conditional_cs_divergence(x, y, y + shift) for shift in (0.1, 0.3))
    >>> bool(0 < near < far)
    True
    """
    function = "conditional_cs_divergence"
    _checks.choice(function, "denominator", denominator, ("squared_sum", "sum_of_squares"))
    x, y, y_hat = read_arrays(function, least=2, x=x, y=y, y_hat=y_hat)
    if y.shape[1] != y_hat.shape[1]:
        raise InvalidArgumentError(
            f"[{function}] y_hat must have {y.shape[1]} columns like y, got {y_hat.shape[1]}"
        )
    first, second = _two(function, bandwidth)
    width_x = width_of(function, "bandwidth", first, x)
    width_y = width_of(function, "bandwidth", second, y)
    a = x / width_x
    if denominator == "squared_sum":
        sums = row_sums(a, a)
        weights = 1 / (sums * sums)
    else:
        wider = a * 2**0.5
        weights = 1 / row_sums(wider, wider)
    both, other = scaled((a, 1.0), (y, width_y)), scaled((a, 1.0), (y_hat, width_y))
    terms = (log_mean(*sides, weights) for sides in ((both, both), (other, other), (other, both)))
    of_y, of_other, across = terms
    return delivered(of_y + of_other - 2 * across, x)


class _Side(NamedTuple):
    """A sample over its bandwidth, and the means of the rows of its matrix."""

    rows: Any
    means: Any

    @classmethod
    def of(cls, rows: Any) -> "_Side":
        return cls(rows, row_sums(rows, rows) / int(rows.shape[0]))


def _information(a: _Side, b: _Side) -> Any:
    both = scaled((a.rows, 1.0), (b.rows, 1.0))
    return (
        log_mean(both, both)
        + log(a.means.mean())
        + log(b.means.mean())
        - 2 * log((a.means * b.means).mean())
    )


def _two(function: str, bandwidth: Any) -> tuple[Any, Any]:
    if not isinstance(bandwidth, tuple):
        return bandwidth, bandwidth
    if len(bandwidth) != 2:
        raise InvalidArgumentError(
            f"[{function}] bandwidth must be one, or a tuple of two, got {len(bandwidth)}"
        )
    return bandwidth[0], bandwidth[1]
