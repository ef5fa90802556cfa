"""Canonical correlations of two sets of features, and the measures made of them."""

import warnings
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from subspan import _arrays, _checks, svd, svdvals
from subspan.similarity._bases import bases, rank_cut, share_cut
from subspan.similarity._layers import Floats, Layer, Sides, read_pair
from subspan.similarity._pairs import nuclear_norms
from subspan.similarity._progress import Steps

__all__ = ["Correlations", "cca", "pwcca", "svcca"]

Float64 = NDArray[np.float64]
Kind = Literal["cca", "svcca", "pwcca"]


class Correlations(NamedTuple):
    """Canonical correlations and their average; k is the smaller of the two ranks."""

    value: float
    """``weights @ correlations``."""
    correlations: Any
    """(k,) descending, 0 to 1."""
    weights: Any
    """(k,) that sum to 1, equal for `cca` and `svcca`."""
    mean_square: float
    """Mean of the squared correlations, the share of one space that the other explains."""
    rank_x: int
    """Dimensions of x that were compared."""
    rank_y: int


def cca(x: Any, y: Any, *, rtol: float | None = None) -> Correlations:
    r"""Canonical correlation analysis: correlations of the best matching combinations of columns.

    .. math:: \rho_i = \sigma_i(Q_x^T Q_y), \qquad \mathrm{value} = \frac1k \sum_{i=1}^k \rho_i

    with orthonormal bases Q of the centred columns of x and y: cosines of principal angles between
    the two spaces of columns.

    Parameters
    ----------
    x : array (N, d)
        float16, bfloat16, float32 or float64; row i of x and of y is the same sample.
    y : array (N, e)
    rtol : float, optional
        Directions whose singular value is below this part of the largest do not count, after every
        column has been scaled to the same length. By default max(N, d) eps of the dtype that came
        in; eps for half precision, whose roundings are independent.

    Returns
    -------
    Correlations
        Arrays float64 in x's library. ``rank_x`` and ``rank_y`` tell how many directions there
        were; NaN and no correlations where one is 0.

    Raises
    ------
    InvalidArgumentError
        Shapes, options; NaN or infinity (named).
    DtypeError
        Not an array; not floating point.

    Warns
    -----
    UserWarning
        The ranks sum to more than N - 1: that many correlations are 1 whatever the features. Use
        more samples or `svcca`.

    Notes
    -----
    Invariant to any invertible linear map of either side. 2 N d^2 flops for each basis, in float32
    if the columns allow, otherwise in float64; 2 N r^2 and an SVD of r x r for the pair.

    References
    ----------
    H. Hotelling: Relations between two sets of variates. Biometrika 28 (1936). Å. Björck, G. H.
    Golub: Numerical methods for computing angles between linear subspaces. Mathematics of
    Computation 27 (1973).

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.similarity import cca
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(500, 4))
    >>> y = np.concatenate([x[:, :2] @ rng.normal(size=(2, 2)), rng.normal(size=(500, 1))], axis=1)
    >>> np.round(cca(x, y).correlations, 1)
    array([1., 1., 0.])
    """
    return _one("cca", x, y, rtol=rtol)


def svcca(x: Any, y: Any, *, share: float = 0.99, rtol: float | None = None) -> Correlations:
    """Canonical correlations of the principal directions that hold most of the variance.

    Each side is cut to the fewest principal components that hold ``share`` of its variance, then
    compared as by `cca`; the value is the mean correlation.

    Parameters
    ----------
    x : array (N, d)
        As for `cca`.
    y : array (N, e)
    share : float in (0, 1]
        Of the variance of each side.
    rtol : float, optional
        As for `cca`, of the columns as they are.

    Returns
    -------
    Correlations
        As `cca`.

    Raises
    ------
    InvalidArgumentError, DtypeError
        As `cca`.

    Notes
    -----
    Invariant to rotation and scale of either side; not to invertible maps, which change the
    principal components.

    References
    ----------
    M. Raghu, J. Gilmer, J. Yosinski, J. Sohl-Dickstein: SVCCA: singular vector canonical
    correlation analysis for deep learning dynamics and interpretability. NeurIPS 2017.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.similarity import svcca
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(500, 6)) * [9, 9, 9, 0.1, 0.1, 0.1]
    >>> y = x + 0.1 * rng.normal(size=(500, 6))
    >>> found = svcca(x, y)
    >>> found.rank_x, round(found.value, 2)
    (3, 1.0)
    """
    return _one("svcca", x, y, share=share, rtol=rtol)


def pwcca(x: Any, y: Any, *, rtol: float | None = None) -> Correlations:
    r"""Canonical correlations, weighted by how much of the features they account for.

    .. math:: \mathrm{value} = \sum_i \alpha_i \rho_i, \qquad
              \alpha_i \propto \sum_j |\langle h_i, x_j \rangle|

    with the canonical variates :math:`h_i` (N,), orthonormal, and the centred columns
    :math:`x_j`, of the side of smaller rank; of x where the ranks are equal.

    Parameters
    ----------
    x : array (N, d)
        As for `cca`.
    y : array (N, e)
    rtol : float, optional
        As for `cca`.

    Returns
    -------
    Correlations
        As `cca`; ``weights`` are the alpha.

    Raises
    ------
    InvalidArgumentError, DtypeError
        As `cca`.

    Notes
    -----
    Not symmetric where the ranks are equal. Invariant to scale of either side, and to invertible
    maps of the side whose columns do not weigh. Where correlations coincide, the variates are
    any basis of their space, and the split of weights among them is open; the value is not.

    References
    ----------
    A. Morcos, M. Raghu, S. Bengio: Insights on representational similarity in neural networks with
    canonical correlation. NeurIPS 2018, equations 2 and 3.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.similarity import cca, pwcca
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(500, 4)) * [10, 1, 1, 1]
    >>> y = np.concatenate([x[:, :1], rng.normal(size=(500, 3))], axis=1)
    >>> pwcca(x, y).value > cca(x, y).value + 0.3
    True
    """
    return _one("pwcca", x, y, rtol=rtol)


def _one(kind: Kind, x: Any, y: Any, **options: Any) -> Correlations:
    made = prepare(kind, read_pair(kind, x, y), Steps(), kind=kind, **options)
    found = made.pair()
    arrays = (_arrays.from_numpy(x, a) for a in (found.correlations, found.weights))
    correlations, weights = arrays
    return found._replace(correlations=correlations, weights=weights)


class _Space(NamedTuple):
    """The column space of a layer."""

    q: Floats
    """(N, r) orthonormal."""
    loads: Floats
    """(r, d) products of q with the centred columns, for the weights of `pwcca`; else empty."""


class Spaces:
    """Canonical correlations of all pairs, from one basis for each layer."""

    def __init__(self, sides: Sides, spaces: tuple[list[_Space], list[_Space]], kind: Kind) -> None:
        self._sides, self._spaces, self._kind = sides, spaces, kind
        self.ranks = tuple(np.array([a.q.shape[1] for a in side]) for side in spaces)

    def pair(self) -> Correlations:
        """Return all about the first pair."""
        a, b = self._spaces[0][0], self._spaces[1][0]
        k = min(a.q.shape[1], b.q.shape[1])
        ranks = int(a.q.shape[1]), int(b.q.shape[1])
        if k == 0:
            return Correlations(np.nan, np.zeros(0), np.zeros(0), np.nan, *ranks)
        if self._kind == "pwcca":
            rho, weights = _weighted(a, b, b.q)
        else:
            rho, weights = _unit(svdvals(a.q.T @ b.q)), np.full(k, 1.0 / k)
        return Correlations(
            float(weights @ rho), rho, weights, float(np.square(rho).mean()), *ranks
        )

    def matrix(self, steps: Steps) -> Float64:
        """Return values (L1, L2)."""
        return self._values([a.q for a in self._spaces[1]], steps, same=False)

    def permuted(self, order: NDArray[np.int64]) -> Float64:
        """Return values with the samples of the second side in another order."""
        return self._values([a.q[order] for a in self._spaces[1]], Steps(), same=True)

    def _values(self, right: list[Floats], steps: Steps, *, same: bool) -> Float64:
        left, other = self._spaces
        weighted = self._kind == "pwcca"
        pairs = self._sides.pairs(ordered=weighted, same=same)
        ranks = {(i, j): min(left[i].q.shape[1], right[j].shape[1]) for i, j in pairs}
        pairs = [pair for pair in pairs if ranks[pair]]
        advance = steps.stage("pairs", len(pairs))
        values: list[tuple[tuple[int, int], float]] = []
        if weighted:
            for i, j in pairs:
                rho, weights = _weighted(left[i], other[j], right[j])
                values.append(((i, j), float(weights @ rho)))
                advance(1)
        else:
            for batch, norms in nuclear_norms([a.q for a in left], right, pairs):
                k = np.array([ranks[pair] for pair in batch])
                values += zip(batch, np.minimum(norms / k, 1.0), strict=True)
                advance(len(batch))
        return self._sides.matrix(values, same=np.where(self.ranks[0] > 0, 1.0, np.nan))


def _unit(rho: Floats) -> Float64:
    return np.clip(rho.astype(np.float64), 0.0, 1.0)


def _weighted(a: _Space, b: _Space, q: Floats) -> tuple[Float64, Float64]:
    """Return correlations and weights; ``q`` is the basis of b, its samples in any order."""
    found = svd(a.q.T @ q)
    # Loads of the variates of the smaller side, (k, d); a's order of samples is that of its loads.
    loads = found.u.T @ a.loads if a.q.shape[1] <= q.shape[1] else found.vh @ b.loads
    weights = np.abs(loads).sum(axis=1, dtype=np.float64)
    return _unit(found.s), weights / weights.sum()


def prepare(
    function: str,
    sides: Sides,
    steps: Steps,
    *,
    kind: Kind,
    share: float = 0.99,
    rtol: float | None = None,
) -> Spaces:
    """Return a basis for each layer."""
    part = _checks.real(function, "share", share, low=0.0, high=1.0)
    least = None if rtol is None else _checks.real(function, "rtol", rtol, low=0.0, high=1.0)

    def spaces(layers: list[Layer]) -> list[_Space]:
        floors = [layer.rtol if least is None else least for layer in layers]
        if kind == "svcca":
            cuts = [share_cut(part, floor) for floor in floors]
            found = bases([layer.rows for layer in layers], cuts)
        else:
            cuts = [rank_cut(floor) for floor in floors]
            found = bases([_standardised(layer.rows) for layer in layers], cuts)
        return [
            _Space(a.q, a.q.T @ layer.rows if kind == "pwcca" else layer.rows[:0])
            for a, layer in zip(found, layers, strict=True)
        ]

    made = Spaces(sides, sides.some(spaces, steps), kind)
    _warn_of_few(function, sides, made.ranks)
    return made


def _standardised(rows: Floats) -> Floats:
    """Return columns of equal length: what a unit is counted in must not decide the rank."""
    length = np.sqrt(np.einsum("ij,ij->j", rows, rows))
    out: Floats = rows / np.where(length > 0, length, 1.0).astype(rows.dtype)
    return out


def _warn_of_few(function: str, sides: Sides, ranks: tuple[NDArray[np.int64], ...]) -> None:
    """Warn where spaces must meet because there are too few samples."""
    most = [int(side.max()) for side in ranks]
    surplus = sum(most) - (sides.n - 1)
    if surplus > 0:
        warnings.warn(
            f"[{function}] {sides.n} samples are few for spaces of {most[0]} and {most[1]} "
            f"dimensions: {surplus} correlations are 1 whatever the features. Take more samples, "
            "or fewer directions by svcca",
            UserWarning,
            stacklevel=4,
        )
