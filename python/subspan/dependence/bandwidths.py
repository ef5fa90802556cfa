"""Widths of Gaussians, by rules that have names."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from subspan import _arrays, _checks
from subspan.dependence._samples import read_arrays
from subspan.errors import InvalidArgumentError

__all__ = ["RULES", "kernel_bandwidth", "width_of"]

RULES = ("median", "scott", "silverman", "cs_ib")
# Rows whose distances stand for all.
_SAMPLE = 1024


def kernel_bandwidth(x: Any, rule: str = "median") -> float:
    r"""Return the bandwidth b of kernels of :math:`|x - y| / b` by a rule.

    =========== ==========================================================================
    "median"    median distance of different rows; of the positive ones where that is 0
    "scott"     s n^(-1/(d+4)), s the root of the mean variance of the columns
    "silverman" s (4 / (n (d+2)))^(1/(d+4))
    "cs_ib"     10 times the median squared distance, at least 0.1
    =========== ==========================================================================

    Parameters
    ----------
    x : array (n, d) or (n,)
        float32 or float64.
    rule : str
        One of the names above.

    Returns
    -------
    float
        > 0; 1 where all rows are equal.

    Raises
    ------
    InvalidArgumentError
        An unknown name, fewer than 2 rows, NaN or infinity.
    DtypeError
        x is no array, or not float32 or float64.

    Notes
    -----
    Medians are those of up to 1024 rows that lie evenly in x: 1024^2 d flops.

    "cs_ib" is what the code of the Cauchy-Schwarz information bottleneck takes (`loss_cs.py`): its
    ``distmat`` holds squares, so the bandwidth has another unit than the data. To repeat its
    results.

    References
    ----------
    D. W. Scott: Multivariate Density Estimation, 1992, section 6.3; B. W. Silverman: Density
    Estimation for Statistics and Data Analysis, 1986, equation 4.14.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.dependence import kernel_bandwidth
    >>> round(kernel_bandwidth(np.array([0.0, 1.0, 4.0])), 9)
    3.0
    """
    [rows] = read_arrays("kernel_bandwidth", least=2, x=x)
    return width_of("kernel_bandwidth", "rule", rule, rows)


def width_of(function: str, name: str, bandwidth: Any, *samples: Any) -> float:
    """Return a bandwidth that was given as a number, or by a rule for all samples together."""
    if not isinstance(bandwidth, str):
        width = _checks.real(function, name, bandwidth)
        if width <= 0:
            raise InvalidArgumentError(
                f"[{function}] {name} must be > 0 or one of {', '.join(map(repr, RULES))}, got "
                f"{width}"
            )
        return width
    _checks.choice(function, name, bandwidth, RULES)
    rows = np.concatenate([_arrays.to_numpy(sample) for sample in samples])
    return _by_rule(bandwidth, rows.astype(np.float64))


def _by_rule(rule: str, rows: NDArray[np.float64]) -> float:
    n, d = rows.shape
    if d == 0 or not np.ptp(rows, axis=0).any():
        return 0.1 if rule == "cs_ib" else 1.0
    if rule in {"scott", "silverman"}:
        factor = 1.0 if rule == "scott" else 4.0 / (d + 2)
        return float(np.sqrt(rows.var(axis=0).mean()) * (factor / n) ** (1.0 / (d + 4)))
    squares = _squared_distances(rows)
    middle = float(np.median(squares))
    if rule == "cs_ib":
        return 10.0 * max(middle if middle > 0 else float(squares.mean()), 1e-2)
    if middle == 0:
        positive = squares[squares > 0]
        middle = float(np.median(positive)) if positive.size else 1.0
    return float(np.sqrt(middle))


def _squared_distances(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return those of all pairs of a sample."""
    n = len(rows)
    if n > _SAMPLE:
        rows = rows[np.linspace(0, n - 1, _SAMPLE).astype(np.int64)]
    rows = rows - rows.mean(axis=0)
    norms = np.einsum("ij,ij->i", rows, rows)
    squares = norms[:, None] + norms - 2.0 * rows @ rows.T
    # What is left of the rounding of equal rows is none.
    squares[squares < 1e-14 * (norms[:, None] + norms)] = 0.0
    above: NDArray[np.float64] = squares[np.triu_indices(len(rows), 1)]
    return above
