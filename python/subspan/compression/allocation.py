"""One budget for many matrices: which rank (or size) each of them gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from subspan import _checks
from subspan.compression.storage import dense_storage, low_rank_storage
from subspan.errors import InvalidArgumentError

__all__ = ["Allocation", "Options", "allocate", "rank_options"]


class Options(NamedTuple):
    """What may be done with one matrix, in the order of rising cost."""

    sizes: NDArray[np.int64]
    """Rank, or another size; 0 for keeping it dense."""
    costs: NDArray[np.int64]
    """Bytes."""
    errors: NDArray[np.float64]
    """What is lost; adds up over the matrices."""


@dataclass(frozen=True)
class Allocation:
    """One option for each matrix, within the budget."""

    chosen: NDArray[np.int64]
    """Place of the option in the list of each matrix."""
    sizes: NDArray[np.int64]
    """Its size, 0 for dense."""
    cost: int
    error: float
    bound: float
    """No choice within the budget has an error below this."""


def rank_options(
    errors: Any, m: int, n: int, *, bits: int = 16, bias: int = 0, least: float = 0.0,
    multiple: int = 1,
) -> Options:  # fmt: skip
    """Return the ranks that save bytes, and keeping it dense, which loses nothing.

    Parameters
    ----------
    errors : array (p + 1,)
        Error of each rank from 0 on, as `Factors.errors` or ``Factors.tails`` of one matrix.
    m, n : int
        Shape of the matrix.
    bits, bias : int
        As `low_rank_storage`.
    least : float in [0, 1]
        No option below this kept ratio.
    multiple : int
        Ranks are multiples of this.

    Returns
    -------
    Options
        Rank 0 is not among them, as 0 means dense.
    """
    curve = np.asarray(errors, np.float64)
    dense = dense_storage(m, n, bits=bits).n_bytes
    if curve.ndim != 1 or not 2 <= len(curve) <= min(m, n) + 1 or not np.isfinite(curve).all():
        raise InvalidArgumentError(
            "[rank_options] errors must be finite numbers, one for each rank from 0 to at most "
            f"{min(m, n)}, got shape {curve.shape}"
        )
    ranks = np.arange(multiple, len(curve), multiple)
    costs = np.array(
        [low_rank_storage(m, n, int(r), bits=bits, bias=bias).n_bytes for r in ranks], np.int64
    )
    good = (costs < dense) & (costs >= least * dense)
    return Options(
        np.append(ranks[good], 0),
        np.append(costs[good], dense),
        np.append(curve[ranks[good]], 0.0),
    )


def allocate(options: Sequence[Options], budget: int) -> Allocation:
    r"""Choose an option for each matrix so that the sum of errors is small within a budget.

    .. math:: \min \sum_l e_l(o_l) \quad\text{s.t.}\quad \sum_l c_l(o_l) \le B

    Steps along the lower convex hull of each matrix's options are taken in the order of error saved
    per byte, which solves the relaxed problem; what is left of the budget buys whichever single
    options still fit, best first. Exact where the budget ends at a step.

    Parameters
    ----------
    options : sequence of Options
        Of each matrix, by rising cost. Errors must be comparable: relative ones, or losses.
    budget : int
        Bytes for all of them.

    Returns
    -------
    Allocation
        With ``bound``, the error of the relaxed problem.

    Raises
    ------
    InvalidArgumentError
        No options, costs that do not rise, errors that are not finite, or a budget below the
        cheapest options, named.

    Notes
    -----
    O(options log options). The relaxed optimum and the choice differ by one step at most.

    References
    ----------
    H. Kellerer, U. Pferschy, D. Pisinger: Knapsack Problems, Springer 2004, section 11.2.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.compression import Options, allocate
    >>> steep = Options(np.array([1, 2]), np.array([10, 20]), np.array([8.0, 0.0]))
    >>> flat = Options(np.array([1, 2]), np.array([10, 20]), np.array([2.0, 1.0]))
    >>> allocate([steep, flat], 30).sizes
    array([2, 1])
    """
    if not options:
        raise InvalidArgumentError("[allocate] options must have a matrix at least, got none")
    for index, one in enumerate(options):
        costs, errors = np.asarray(one.costs), np.asarray(one.errors)
        if not len(costs) or len(costs) != len(errors) or (np.diff(costs) <= 0).any():
            raise InvalidArgumentError(
                f"[allocate] options of matrix {index} must have rising costs and an error each, "
                f"got {len(costs)} costs and {len(errors)} errors"
            )
        if not np.isfinite(errors).all():
            raise InvalidArgumentError(
                f"[allocate] errors of matrix {index} must be finite, got NaN or infinity"
            )
    budget = _checks.integer("allocate", "budget", budget, low=0)
    chosen = np.zeros(len(options), np.int64)
    left = budget - sum(int(one.costs[0]) for one in options)
    if left < 0:
        raise InvalidArgumentError(
            f"[allocate] budget must pay for the cheapest option of each matrix, {budget - left} "
            f"bytes, got {budget}. Keep more, or allow smaller options"
        )
    steps = sorted(
        (-gain, layer, option)
        for layer, one in enumerate(options)
        for gain, option in _hull(np.asarray(one.costs), np.asarray(one.errors, np.float64))
    )
    bound = sum(float(one.errors[0]) for one in options)
    for slope, layer, option in steps:
        extra = int(options[layer].costs[option] - options[layer].costs[chosen[layer]])
        if extra > left:
            bound += slope * left
            _fill(options, chosen, left)
            break
        bound += slope * extra
        left -= extra
        chosen[layer] = option
    cost = sum(int(one.costs[i]) for one, i in zip(options, chosen, strict=True))
    error = sum(float(one.errors[i]) for one, i in zip(options, chosen, strict=True))
    sizes = np.array([one.sizes[i] for one, i in zip(options, chosen, strict=True)], np.int64)
    return Allocation(chosen, sizes, cost, error, min(bound, error))


def _hull(costs: NDArray[np.int64], errors: NDArray[np.float64]) -> list[tuple[float, int]]:
    """Return (error saved per byte, option) along the lower convex hull, falling."""
    corners = [0]
    for option in range(1, len(costs)):
        if errors[option] >= errors[corners[-1]]:
            continue
        while len(corners) > 1 and _slope(costs, errors, corners[-1], option) >= _slope(
            costs, errors, corners[-2], corners[-1]
        ):
            corners.pop()
        corners.append(option)
    return [(_slope(costs, errors, a, b), b) for a, b in pairwise(corners)]


def _slope(costs: NDArray[np.int64], errors: NDArray[np.float64], a: int, b: int) -> float:
    return float((errors[a] - errors[b]) / (costs[b] - costs[a]))


def _fill(options: Sequence[Options], chosen: NDArray[np.int64], left: int) -> None:
    """Spend what the hull left: the option with the largest gain that fits, again and again."""
    while True:
        best = (0.0, 0, 0, 0)
        for layer, one in enumerate(options):
            now = int(chosen[layer])
            fits = np.flatnonzero(one.costs <= one.costs[now] + left)
            gains = float(one.errors[now]) - np.asarray(one.errors)[fits]
            if len(fits) and gains.max() > best[0]:
                option = int(fits[gains.argmax()])
                extra = int(one.costs[option] - one.costs[now])
                best = (float(gains.max()), layer, option, extra)
        if best[0] <= 0:
            return
        chosen[best[1]] = best[2]
        left -= best[3]
