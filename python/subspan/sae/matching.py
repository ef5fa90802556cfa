"""Which latent of one dictionary is which of another: the best one-to-one matching, proved."""

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from subspan import _arrays, _checks, knn, topk_encode
from subspan._rows import float64_block
from subspan.errors import InvalidArgumentError, UnsupportedError

__all__ = ["Matching", "PairwiseMCC", "match_dictionaries", "mean_max_cosine", "pw_mcc"]

_EXACT = 1e-12  # differences of cosines that count as none
_PAIRS = 1 << 10  # whose cosines are made at a time: their rows stay in the cache

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Matching(NamedTuple):
    """Row ``a_indices[i]`` of a belongs to row ``b_indices[i]`` of b."""

    a_indices: Any
    """(m,) int64, ascending; m rows, as many as the smaller dictionary has."""
    b_indices: Any
    """(m,) int64."""
    cosines: Any
    """(m,) float64."""
    value: float
    """The MCC, mean of the cosines or of their absolute values."""
    bound: float
    """No one-to-one matching has a larger value."""
    rounds: int
    """How often all pairs were looked at."""

    @property
    def gap(self) -> float:
        """How much better a matching could be at most."""
        return max(self.bound - self.value, 0.0)

    @property
    def exact(self) -> bool:
        """Whether it is proved that there is no better matching, to 1e-12."""
        return self.gap <= _EXACT


class PairwiseMCC(NamedTuple):
    """Mean of the MCC of all pairs of dictionaries."""

    value: float
    bound: float
    matchings: tuple[Matching, ...]
    """Of the pairs (0, 1), (0, 2), ..., (1, 2), ..."""


def match_dictionaries(
    a: Any,
    b: Any,
    *,
    signed: bool = False,
    candidates: int = 32,
    max_rounds: int = 20,
) -> Matching:
    """Return the one-to-one matching of rows with the largest sum of cosines, and its proof.

    ``value = max over matchings of sum |cos(a_i, b_j)| / min(n_a, n_b)``, the MCC.

    Rows are matched among the nearest pairs only, which is fast; then prices v of the rows of b
    from that matching give, for all pairs, the bound
    ``sum_i max_j (|cos(a_i, b_j)| - v_j) + sum_j v_j`` on any matching. Pairs that could still
    improve it join the candidates, until there are none.

    Parameters
    ----------
    a : array (n_a, d)
        Rows of numpy, torch or cupy, of any float dtype and any length: decoder rows. A row of
        zeros has the cosine 0 with every other.
    b : array (n_b, d)
    signed : bool
        False: by the absolute value of the cosine, as the paper defines it. True: by the cosine,
        as its code computes it.
    candidates : int
        Nearest rows of the larger dictionary that each row of the smaller one starts with.
    max_rounds : int
        Looks at all pairs, at least 2; when they are used up, ``exact`` is False and ``bound``
        says how far off the matching may be.

    Returns
    -------
    Matching (a_indices, b_indices, cosines, value, bound, rounds)

    Raises
    ------
    InvalidArgumentError
        Shapes do not fit, a dictionary has no rows, NaN or infinity, or an argument is out of its
        range.
    DtypeError
        An argument is no array.
    UnsupportedError
        scipy is not installed.

    Notes
    -----
    Each round costs 2 n_a n_b d flops in float32 (twice that unsigned) and a sparse assignment of
    about ``candidates`` pairs per row; usually there are 4 to 6. Products within the rounding error
    of what would change the proof are made again in float64. Memory: of both dictionaries in
    float32 and float64 and of the candidates, nothing of size n_a n_b. Where several matchings are
    best, it is one of them.

    MCC and PW-MCC: Song et al. 2025, `arXiv:2505.20254 <https://arxiv.org/abs/2505.20254>`_. The
    bound is linear programming duality; sparse assignment: Jonker, Volgenant 1987, in scipy.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.sae.matching import match_dictionaries
    >>> found = match_dictionaries(np.eye(2), np.array([[0.1, 1.0], [1.0, 0.2]]))
    >>> found.b_indices, round(found.value, 3), found.exact
    (array([1, 0]), 0.988, True)
    """
    function = "match_dictionaries"
    candidates = _checks.integer(function, "candidates", candidates, low=1)
    max_rounds = _checks.integer(function, "max_rounds", max_rounds, low=2)
    ours, theirs = (_directions(function, name, x) for name, x in (("a", a), ("b", b)))
    if ours.shape[1] != theirs.shape[1]:
        raise InvalidArgumentError(
            f"[{function}] b must have d = {ours.shape[1]} columns like a, got {theirs.shape[1]}"
        )
    swapped = len(ours) > len(theirs)
    small, large = (theirs, ours) if swapped else (ours, theirs)
    columns, bound, rounds = _solve(small, large, signed, candidates, max_rounds)
    rows = np.arange(len(small))
    cosines = np.einsum("ij,ij->i", small, large[columns])
    if swapped:
        order = np.argsort(columns)
        rows, columns, cosines = columns[order], rows[order], cosines[order]
    value = float((cosines if signed else np.abs(cosines)).mean())
    indices = _arrays.from_numpy(a, rows), _arrays.from_numpy(a, columns)
    return Matching(*indices, _arrays.from_numpy(a, cosines), value, max(bound, value), rounds)


def pw_mcc(dictionaries: Sequence[Any], **options: Any) -> PairwiseMCC:
    """Return the mean of the MCC over all pairs of dictionaries, of runs with different seeds.

    Parameters
    ----------
    dictionaries : sequence of array (n, d)
        At least two.
    **options
        As in `match_dictionaries`.

    Returns
    -------
    PairwiseMCC (value, bound, matchings)

    Raises
    ------
    InvalidArgumentError
        There are fewer than two, or as in `match_dictionaries`.
    DtypeError
        As in `match_dictionaries`.
    UnsupportedError
        scipy is not installed.

    Notes
    -----
    Song et al. 2025, `arXiv:2505.20254 <https://arxiv.org/abs/2505.20254>`_.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.sae.matching import pw_mcc
    >>> w = np.random.default_rng(0).normal(size=(20, 8))
    >>> round(pw_mcc([w, -2 * w[::-1], w]).value, 6)
    1.0
    """
    if len(dictionaries) < 2:
        raise InvalidArgumentError(
            f"[pw_mcc] dictionaries must be two or more, got {len(dictionaries)}"
        )
    pairs = tuple(match_dictionaries(a, b, **options) for a, b in combinations(dictionaries, 2))
    value = sum(pair.value for pair in pairs) / len(pairs)
    bound = sum(pair.bound for pair in pairs) / len(pairs)
    return PairwiseMCC(value, bound, pairs)


def mean_max_cosine(a: Any, b: Any = None) -> float:
    """Return the mean over rows of a of the largest cosine with a row of b, or another one of a.

    ``mean_i max_j cos(a_i, b_j)``

    Parameters
    ----------
    a : array (n, d)
        Decoder rows, as in `subspan.knn`.
    b : array (m, d), optional
        None: a, without each row itself.

    Returns
    -------
    float
        NaN if a is alone and has one row.

    Raises
    ------
    InvalidArgumentError
        Shapes do not fit, or a has no rows.
    DtypeError
        An argument is no array.

    Notes
    -----
    As `subspan.knn`: 2 n m d flops, nothing of size n m. Rows of zeros have the cosine 0 with all
    others. How alike latents of one dictionary are: Korznikov et al. 2025, `arXiv:2509.22033
    <https://arxiv.org/abs/2509.22033>`_.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.sae.matching import mean_max_cosine
    >>> mean_max_cosine(np.eye(3)), mean_max_cosine(np.ones((2, 3)))
    (0.0, 1.0)
    """
    _arrays.require_same("mean_max_cosine", a=a, b=b)
    if not len(a):
        raise InvalidArgumentError("[mean_max_cosine] a must have rows, got none")
    nearest = _arrays.to_numpy(knn(a, b, k=1, metric="cosine", dtype="float64").distances)
    return float("nan") if np.isinf(nearest).any() else 1 - float(nearest.mean())


# ---- assignment --------------------------------------------------------------------------------


def _directions(function: str, name: str, x: Any) -> Floats:
    """Return the rows at unit length."""
    _arrays.require_array(function, name, x)
    _checks.ndim(function, name, x, 2)
    rows = float64_block(x)
    if not rows.size or not np.isfinite(rows).all():
        raise InvalidArgumentError(
            f"[{function}] {name} must have rows of finite numbers, got shape {rows.shape}"
            + (" with NaN or infinity" if rows.size else "")
        )
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1.0)


def _solve(
    a: Floats, b: Floats, signed: bool, candidates: int, max_rounds: int
) -> tuple[Ints, float, int]:
    """Return the match of every row of a in the larger b, a bound on the mean, and the rounds."""
    n, m = len(a), len(b)
    look = _Look(a, b, signed)
    start, _, _ = look.price(look.narrow, np.arange(n), np.zeros(m), min(candidates, m))
    # The pairs (i, i) make sure that there is a matching among the candidates.
    pairs = np.union1d(np.arange(n)[:, None] * m + start, np.arange(n) * (m + 1))
    weights = look.weights(pairs)
    everyone = np.arange(n)
    rows, bound, rounds = everyone, float("inf"), 1
    while True:
        best = _assign(pairs, weights, n, m)
        matched = look.weights(everyone * m + best)
        prices = _prices(pairs, weights, best, matched, m)
        content = (matched - prices[best])[rows]
        found, gains = look.gains(rows, prices, content)
        better = gains > content[:, None] + _EXACT
        whole = len(rows) == n
        if whole:
            rounds += 1
            bound = min(bound, float(np.maximum(content, gains.max(axis=1)).sum() + prices.sum()))
        more = _missing((rows[:, None] * m + found)[better], pairs)
        if whole and (not more.size or rounds >= max_rounds):
            return best, bound / n, rounds
        if more.size:
            order = np.argsort(np.concatenate([pairs, more]), kind="stable")
            weights = np.concatenate([weights, look.weights(more)])[order]
            pairs = np.concatenate([pairs, more])[order]
            # Only these rows are looked at until they are content, and then all once more.
            rows = rows[better.any(axis=1)]
        else:
            rows = everyone


class _Look:
    """Looks at all pairs: products in float32, and float64 where these leave a doubt."""

    def __init__(self, a: Floats, b: Floats, signed: bool) -> None:
        self.wide = a, b
        self.narrow = a.astype(np.float32), b.astype(np.float32)
        self.signed = signed
        # Of a product of unit rows in float32, in whatever order its terms are added.
        self.error = (a.shape[1] + 8) * 2.0**-24

    def gains(self, rows: Ints, prices: Floats, content: Floats) -> tuple[Ints, Floats]:
        """Return columns for each of the rows, and what they gain, in float64.

        Columns that are not there gain no more than the row is content with.
        """
        k = min(16, len(prices))
        found, gains, rest = self.price(self.narrow, rows, prices, k)
        error = self.error * (1 + prices.max())
        unsure = rest + error > content
        if unsure.any():
            found[unsure], gains[unsure], _ = self.price(self.wide, rows[unsure], prices, k)
        at, which = np.nonzero(gains > content[:, None] - 2 * error)
        columns = found[at, which]
        gains[at, which] = self.weights(rows[at] * len(prices) + columns) - prices[columns]
        return found, gains

    def price(
        self, arrays: tuple[NDArray[Any], NDArray[Any]], rows: Ints, prices: Floats, k: int
    ) -> tuple[Ints, Floats, Floats]:
        """Return the best k columns of each row at these prices, their gains, and of all others."""
        a, b = arrays
        a = a if len(rows) == len(a) else a[rows]
        bias = -prices.astype(a.dtype)
        codes = [
            topk_encode(x, b.T, bias, k=k, activation="identity", precision="certified")
            for x in ([a] if self.signed else [a, -a])
        ]
        found = np.concatenate([code.indices for code in codes], axis=1)
        gains = np.concatenate([code.values for code in codes], axis=1).astype(np.float64)
        rest = np.max([code.values[:, -1] for code in codes], axis=0).astype(np.float64)
        return found, gains, rest if k < len(b) else np.full(len(a), -np.inf)

    def weights(self, pairs: Ints) -> Floats:
        """Return the cosines of pairs, or their absolute values."""
        a, b = self.wide
        out = np.empty(len(pairs))
        for start in range(0, len(pairs), _PAIRS):
            rows, columns = np.divmod(pairs[start : start + _PAIRS], len(b))
            out[start : start + _PAIRS] = np.einsum("ij,ij->i", a[rows], b[columns])
        return out if self.signed else np.abs(out)


def _missing(more: Ints, pairs: Ints) -> Ints:
    """Return those that are not among the pairs, which ascend; each once, ascending."""
    more = np.sort(more)
    places = np.minimum(np.searchsorted(pairs, more), len(pairs) - 1)
    missing: Ints = more[(pairs[places] != more) & (np.diff(more, prepend=-1) > 0)]
    return missing


def _assign(pairs: Ints, weights: Floats, n: int, m: int) -> Ints:
    """Return the column of every row in the best matching among the pairs."""
    sparse, assign = _scipy()
    # The solver takes the smallest sum, and a weight of zero for no pair; cosines are at most 1.
    costs = sparse.csr_array((3.0 - weights, np.divmod(pairs, m)), shape=(n, m))
    rows, columns = assign(costs)
    best = np.empty(n, np.int64)
    best[rows] = columns
    return best


def _prices(pairs: Ints, weights: Floats, best: Ints, matched: Floats, m: int) -> Floats:
    """Return the smallest prices >= 0 at which every row of a likes its match best.

    They are longest paths: row i takes column j for a price of what it gains over its own match
    and of that match's price. By Bellman and Ford, all columns at once.
    """
    rows, columns = np.divmod(pairs, m)
    order = np.argsort(columns, kind="stable")
    rows, columns = rows[order], columns[order]
    gain, source = weights[order] - matched[rows], best[rows]
    starts = np.flatnonzero(np.diff(columns, prepend=-1))
    targets = columns[starts]
    prices = np.zeros(m)
    for _ in range(len(best)):
        raised = np.maximum.reduceat(prices[source] + gain, starts)
        # Rounding must not let prices creep along a cycle of equal matchings for ever.
        rises = raised > prices[targets] + 1e-15
        if not rises.any():
            break
        prices[targets[rises]] = raised[rises]
    return prices


def _scipy() -> tuple[Any, Callable[[Any], tuple[Ints, Ints]]]:
    try:
        from scipy import sparse
        from scipy.sparse.csgraph import min_weight_full_bipartite_matching
    except ImportError as error:
        raise UnsupportedError(
            f"[match_dictionaries] needs the package 'scipy', got an import error ({error}). "
            "Install it with: pip install scipy"
        ) from error
    return sparse, min_weight_full_bipartite_matching
