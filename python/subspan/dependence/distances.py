"""Distance covariance and correlation: 0 if and only if two samples are independent."""

from typing import Any, NamedTuple

import numpy as np

from subspan import _arrays, _checks, svd
from subspan.dependence._pair_sums import Kernel, PairSums, centred, own_sums, pair_sums
from subspan.dependence._samples import (
    constant,
    delivered,
    in_units,
    is_torch,
    read,
    root,
    wide,
)
from subspan.errors import DtypeError, InvalidArgumentError

__all__ = ["Distances", "distance_correlation", "distance_covariance", "prepare"]


def distance_covariance(
    x: Any,
    y: Any,
    *,
    exponent: float = 1.0,
    unbiased: bool = False,
    affine_invariant: bool = False,
) -> Any:
    r"""Return the distance covariance of two paired samples.

    .. math:: V^2 = \frac{1}{n^2} \sum_{ij} A_{ij} B_{ij}, \quad
        A_{ij} = a_{ij} - \bar a_{i\cdot} - \bar a_{\cdot j} + \bar a_{\cdot\cdot}, \quad
        a_{ij} = |x_i - x_j|^{\mathrm{exponent}}

    and B likewise of y. In the limit of many rows it is 0 if and only if x and y are independent
    (exponent below 2; with 2 it sees linear dependence alone).

    Parameters
    ----------
    x : array (n, p) or (n,)
        float32 or float64 of numpy, torch or another library with DLPack (CPU).
    y : array (n, q) or (n,)
        Of the library and dtype of x.
    exponent : float
        In (0, 2].
    unbiased : bool
        The U-statistic, which estimates V² without bias, and may be negative. Not its root.
    affine_invariant : bool
        Distances by the inverse covariance of each side, which no invertible map changes.
        Directions without variance are left out.

    Returns
    -------
    float
        V, of the unbiased form V². 0 where x or y is constant. Where x or y is a tensor that
        requires a gradient, a tensor of no axes, differentiable once, tile by tile as well.

    Raises
    ------
    InvalidArgumentError
        Numbers of rows differ, fewer than 2 rows (unbiased: 4), NaN or infinity, exponent out of
        range.
    DtypeError
        An argument is no array, y is of another library or dtype than x, or not float32 or float64.
    UnsupportedError
        An array is on a CUDA device.

    Notes
    -----
    p = q = 1 with exponent 1: n log n steps. Else n² (p + q) multiplications and 2 n² roots, tile
    by tile; memory grows with n alone. Distances of float32 samples are made in float32 (from
    centred rows) and added up in float64: V² is right to about 1e-7 of the product of mean
    distances.

    References
    ----------
    G. J. Szekely, M. L. Rizzo, N. K. Bakirov: Measuring and testing dependence by correlation of
    distances, Annals of Statistics 35 (2007), definitions 2 and 3; unbiased: Szekely, Rizzo:
    Partial distance correlation, Annals of Statistics 42 (2014), section 3.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.dependence import distance_covariance
    >>> x = np.array([0.0, 1.0, 2.0, 3.0])
    >>> round(distance_covariance(x, x**2), 6)
    1.561249
    """
    sides = prepare(
        "distance_covariance",
        x,
        y,
        exponent=exponent,
        unbiased=unbiased,
        affine_invariant=affine_invariant,
    )
    return delivered(sides.scaled(sides.root(sides.covariance(sides.sums()))), sides.x, sides.y)


def distance_correlation(
    x: Any,
    y: Any,
    *,
    exponent: float = 1.0,
    unbiased: bool = False,
    affine_invariant: bool = False,
) -> Any:
    r"""Return the distance correlation of two paired samples.

    .. math:: R = \left( \frac{V^2(x, y)}{\sqrt{V^2(x, x)\, V^2(y, y)}} \right)^{1/2}

    Parameters
    ----------
    x, y : array (n, p) and (n, q), or (n,)
        As in `distance_covariance`.
    exponent : float
        In (0, 2].
    unbiased : bool
        The ratio of U-statistics, an estimate of R², at most 1, and around 0 for independent
        samples of any dimension, where R itself tends to 1 as the dimensions grow. Not its root.
    affine_invariant : bool
        Distances by the inverse covariance of each side.

    Returns
    -------
    float
        R in [0, 1], of the unbiased form R². 0 where x or y is constant. With gradients as
        `distance_covariance`.

    Raises
    ------
    InvalidArgumentError, DtypeError, UnsupportedError
        As `distance_covariance`.

    Notes
    -----
    Costs what `distance_covariance` does: with exponent 1 the sums of squared distances are known
    from the variances. Other exponents need two passes more.

    References
    ----------
    As `distance_covariance`; unbiased: G. J. Szekely, M. L. Rizzo: The distance correlation t-test
    of independence in high dimension, Journal of Multivariate Analysis 117 (2013).

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.dependence import distance_correlation
    >>> x = np.linspace(-1, 1, 101)
    >>> round(abs(float(np.corrcoef(x, x**2)[0, 1])), 6), round(distance_correlation(x, x**2), 3)
    (0.0, 0.492)
    """
    sides = prepare(
        "distance_correlation",
        x,
        y,
        exponent=exponent,
        unbiased=unbiased,
        affine_invariant=affine_invariant,
    )
    sums = sides.sums()
    size = sides.size(sums)
    ratio = sides.covariance(sums) / size if float(constant(size)) > 0 else 0.0
    # Rounding can pass 1, by which a line correlates with itself.
    above = max(float(constant(ratio)) - 1.0, 0.0)
    return delivered(sides.root(ratio - above), sides.x, sides.y)


class Distances(NamedTuple):
    """Two samples in units of their own, and how their distances are taken."""

    x: Any
    y: Any
    kernel: Kernel
    exponent: float
    unbiased: bool
    scales: tuple[float, float]
    """What distances are to be multiplied by; 0 where a side is constant."""

    @property
    def kernels(self) -> tuple[Kernel, Kernel]:
        """That of both sides."""
        return self.kernel, self.kernel

    @property
    def constant(self) -> bool:
        """Whether all rows of a side are equal."""
        return min(self.scales) == 0

    def scaled(self, value: Any) -> Any:
        """Return V, of the unbiased form V², in the units of the samples."""
        power = self.exponent if self.unbiased else self.exponent / 2
        for scale in self.scales:
            with np.errstate(over="ignore"):
                value = value * float(np.power(scale, power))
        return value

    def sums(self) -> PairSums:
        """Return the sums over pairs."""
        if self.constant:
            nothing = np.zeros(len(self.x))
            return PairSums(0.0, nothing, nothing)
        return pair_sums(self.x, self.y, self.kernels)

    def covariance(self, sums: PairSums) -> Any:
        """Return V² in units."""
        return centred(sums, (0.0, 0.0), unbiased=self.unbiased)

    def size(self, sums: PairSums) -> Any:
        """Return sqrt(V²(x, x) V²(y, y)) in units; 0 where there is nothing to divide by."""
        if self.constant:
            return 0.0
        own = (self._own(self.x, sums.left), self._own(self.y, sums.right))
        if min(float(constant(square)) for square in own) <= 0:
            return 0.0
        return own[0] ** 0.5 * own[1] ** 0.5

    def root(self, square: Any) -> Any:
        """Return V of V², or R of R²; of the unbiased form what it is."""
        return square if self.unbiased else root(square)

    def _own(self, rows: Any, sums: Any) -> Any:
        if self.exponent == 1:
            # |x_i - x_j|^2 adds up to 2 n sum |x_i - mean|^2.
            apart = wide(rows) - wide(rows).mean(0)
            return self.covariance(PairSums(2.0 * len(rows) * (apart * apart).sum(), sums, sums))
        return self.covariance(own_sums(rows, self.kernel))


def prepare(
    function: str,
    x: Any,
    y: Any,
    *,
    exponent: float,
    unbiased: bool,
    affine_invariant: bool = False,
) -> Distances:
    """Return checked samples."""
    power = _checks.real(function, "exponent", exponent, high=2.0)
    if power <= 0:
        raise InvalidArgumentError(f"[{function}] exponent must be in (0, 2], got {power}")
    for name, flag in (("unbiased", unbiased), ("affine_invariant", affine_invariant)):
        if not isinstance(flag, bool):
            raise DtypeError(f"[{function}] {name} must be a bool, got {type(flag).__name__}")
    rows = read(function, least=4 if unbiased else 2, x=x, y=y)
    if affine_invariant:
        rows = [_whitened(side) for side in rows]
    left, right = (in_units(side) for side in rows)
    kernel = Kernel("sqdistance") if power == 2 else Kernel("distance", alpha=power)
    scales = left.scale, right.scale
    return Distances(left.rows, right.rows, kernel, power, unbiased, scales)


def _whitened(rows: Any) -> Any:
    """Return rows whose Euclidean distances are those by the inverse covariance, (n, rank)."""
    unit = wide(in_units(rows).rows)
    found = svd(unit - unit.mean(0))
    values = _arrays.to_numpy(found.s)
    noise = max(rows.shape) * float(np.finfo(_arrays.dtype_name(rows)).eps)
    rank = int(np.count_nonzero(values > noise * values.max(initial=0.0)))
    white = found.u[:, :rank] * (len(rows) - 1) ** 0.5
    return white.to(rows.dtype) if is_torch(rows) else white.astype(rows.dtype)
