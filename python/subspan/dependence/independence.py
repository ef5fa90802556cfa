"""Permutation tests of independence."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from subspan import _arrays, _checks
from subspan.dependence import distances, kernels
from subspan.dependence._pair_sums import PairSums, centred, pair_sums, permuted_products
from subspan.errors import InvalidArgumentError

__all__ = ["IndependenceTest", "independence_test"]

_OPTIONS: dict[str, dict[str, Any]] = {
    "distance": {"exponent": 1.0, "affine_invariant": False},
    "hsic": {"kernel": "gaussian", "bandwidth": "median"},
}
# Sums in float64 in another order differ by so much of their terms.
_SAME = 1e-14


class IndependenceTest(NamedTuple):
    """What `independence_test` returns."""

    statistic: float
    """Of the samples as they are."""
    p_value: float
    """Share of all orders, that of the samples among them, with a statistic at least as large."""
    null: NDArray[np.float64]
    """(n_permutations,) statistics with the rows of y permuted."""


def independence_test(
    x: Any,
    y: Any,
    *,
    measure: str = "distance",
    n_permutations: int = 199,
    seed: int = 0,
    **options: Any,
) -> IndependenceTest:
    r"""Test whether two paired samples are independent, by permuting the rows of y.

    .. math:: p = \frac{1 + \#\{r : T(x, \pi_r y) \ge T(x, y)\}}{1 + R}

    Under independence p <= a has the probability a at most, whatever the distributions.

    Parameters
    ----------
    x, y : array (n, p) and (n, q), or (n,)
        As in `distance_correlation`.
    measure : {"distance", "hsic"}
        T: the distance correlation, with the options ``exponent`` and ``affine_invariant``; or
        `hsic`, with ``kernel`` and ``bandwidth``.
    n_permutations : int
        R >= 1. The least p is 1 / (1 + R).
    seed : int
        >= 0, of the permutations.
    **options
        Of the measure.

    Returns
    -------
    IndependenceTest (statistic, p_value, null)

    Raises
    ------
    InvalidArgumentError, DtypeError, UnsupportedError
        As the measure; an option that it does not have; n_permutations or seed out of range; a
        tensor that requires a gradient.

    Notes
    -----
    Sums of rows, and all that belongs to one side, are worked out once. A permutation costs the sum
    of products alone, for which up to 16 permutations share the values of the side with more
    columns; for single columns and plain distances n log n steps.

    Rows that depend on each other (tokens of one text) are not exchangeable: then p is too small.

    References
    ----------
    Szekely, Rizzo, Bakirov 2007, section 4 (see `distance_covariance`); the count with the sample
    itself: B. Phipson, G. K. Smyth: Permutation p-values should never be zero, SAGMB 9 (2010).

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.dependence import independence_test
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(60, 2))
    >>> float(independence_test(x, np.square(x), n_permutations=99).p_value)
    0.01
    >>> bool(independence_test(x, rng.normal(size=60), n_permutations=99).p_value > 0.05)
    True
    """
    function = "independence_test"
    _checks.choice(function, "measure", measure, tuple(_OPTIONS))
    repeats = _checks.integer(function, "n_permutations", n_permutations, low=1)
    generator = np.random.default_rng(_checks.integer(function, "seed", seed, low=0))
    known = _OPTIONS[measure]
    if unknown := sorted(set(options) - set(known)):
        raise InvalidArgumentError(
            f"[{function}] options must be among {', '.join(known)} for {measure!r}, got "
            f"{', '.join(unknown)}"
        )
    how: dict[str, Any] = {**known, **options, "unbiased": False}
    for name, array in (("x", x), ("y", y)):
        _arrays.exportable(function, name, array)
    sides: Any = (distances if measure == "distance" else kernels).prepare(function, x, y, **how)
    if measure == "distance" and sides.constant:
        return IndependenceTest(0.0, 1.0, np.zeros(repeats))
    sums = pair_sums(sides.x, sides.y, sides.kernels)
    # A distance correlation grows with the covariance, whose divisor no permutation changes.
    size = sides.size(sums) if measure == "distance" else 1.0
    if size == 0:
        return IndependenceTest(0.0, 1.0, np.zeros(repeats))

    def measured(of: PairSums) -> float:
        return float(centred(of, (0.0, 0.0), unbiased=False)) / size

    n = len(sides.x)
    orders = np.stack([generator.permutation(n) for _ in range(repeats)])
    # To permute one side is to permute the other back; the narrow one is cheaper.
    turn = sides.x.shape[1] < sides.y.shape[1]
    if turn:
        orders = np.argsort(orders, axis=1)
    rows, others = (sides.y, sides.x) if turn else (sides.x, sides.y)
    ends = sides.kernels[::-1] if turn else sides.kernels
    left, right = (sums.right, sums.left) if turn else (sums.left, sums.right)
    null = np.array(
        [
            measured(PairSums(product, left, right[order]))
            for order, product in permuted_products(rows, others, ends, orders)
        ]
    )
    found = measured(sums)
    # The same sum in another order is as large.
    mean = float(sums.left.mean() * sums.right.mean()) / n**2 / size
    same = (_SAME + float(np.finfo(rows.dtype).eps) / n) * mean
    p_value = (1 + int(np.count_nonzero(null >= found - same))) / (1 + repeats)
    if measure == "distance":
        return IndependenceTest(float(sides.root(found)), p_value, np.sqrt(np.clip(null, 0.0, 1.0)))
    return IndependenceTest(found, p_value, null)
