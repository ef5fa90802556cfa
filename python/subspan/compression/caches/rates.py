"""How many dimensions every head of a cache gets: predicted from moments, or found by trying."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heappush
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subspan import _checks
from subspan.compression.allocation import Options, allocate
from subspan.errors import DtypeError, InvalidArgumentError

__all__ = ["allocate_rates", "search_rates"]

Ranks = NDArray[np.int64]


def allocate_rates(errors: Any, budget: int, *, step: int = 1, least: int = 1) -> Ranks:
    """Choose a rank for every head so that the sum of known errors is small within a budget.

    Parameters
    ----------
    errors : array (..., d + 1)
        Error of each head at every rank from 0 on. They must be comparable between heads, such as
        predicted losses.
    budget : int
        Numbers a token for all heads.
    step, least : int
        Ranks are multiples of ``step`` from ``least`` (rounded up to one) on, or d.

    Returns
    -------
    ndarray (...) of int64
        By `allocate`.

    Raises
    ------
    InvalidArgumentError
        The budget does not pay for the least ranks; errors that are not finite.

    Examples
    --------
    >>> from subspan.compression import allocate_rates
    >>> allocate_rates([[9.0, 1.0, 0.0], [4.0, 3.0, 2.0]], 3)
    array([2, 1])
    """
    curves = np.asarray(errors, np.float64)
    if curves.ndim < 2 or curves.shape[-1] < 2:
        raise InvalidArgumentError(
            "[allocate_rates] errors must be (heads, d + 1), one for each rank from 0 on, got "
            f"shape {curves.shape}"
        )
    d = curves.shape[-1] - 1
    step = _checks.integer("allocate_rates", "step", step, low=1, high=d)
    least = _checks.integer("allocate_rates", "least", least, low=1, high=d)
    ranks = np.union1d(np.arange(step * -(-least // step), d, step), [d]).astype(np.int64)
    rows = np.minimum.accumulate(curves.reshape(-1, d + 1), axis=1)
    found = allocate([Options(ranks, ranks, row[ranks]) for row in rows], budget)
    return found.sizes.reshape(curves.shape[:-1])


def search_rates(
    loss: Callable[[Ranks], float],
    start: Any,
    budgets: int | Sequence[int],
    *,
    step: int = 1,
    least: int = 1,
    progress: Callable[[int, int], object] | None = None,
) -> list[Ranks]:
    """Take dimensions from the head that misses them least, again and again, by the true loss.

    Parameters
    ----------
    loss : callable
        Of ranks shaped as ``start``: what is to stay small.
    start : array of int
        Ranks to begin with, of every head of keys and values.
    budgets : int or sequence of int
        Numbers a token for all heads. Smaller budgets go on from larger ones.
    step, least : int
        How many dimensions are taken at once, and where a head is left alone.
    progress : callable, optional
        Called as ``progress(done, total)`` in steps.

    Returns
    -------
    list of ndarray of int64
        Ranks for each budget, in the order of ``budgets``.

    Raises
    ------
    InvalidArgumentError
        A budget below the least ranks, a start that is smaller than these.
    DtypeError
        Ranks that are no integers.

    Notes
    -----
    One loss for every head at first, then one or few for every step: what a head would cost is
    measured again only when it is its turn. For losses that are a sum of convex functions of the
    single ranks this is the best choice; else it is greedy.

    References
    ----------
    The greedy search of rates is that of MatryoshkaKV, `arXiv:2410.14731
    <https://arxiv.org/abs/2410.14731>`_; measuring again in turn is M. Minoux, Accelerated greedy
    algorithms for maximizing submodular set functions, 1978.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.compression import search_rates
    >>> weight = np.array([9.0, 1.0])
    >>> search_rates(lambda ranks: float(weight @ (4 - ranks) ** 2), [4, 4], [6, 5])
    [array([4, 2]), array([4, 1])]
    """
    function = "search_rates"
    asked = np.asarray(start)
    if asked.dtype.kind not in "iu":
        raise DtypeError(f"[{function}] start must be integers, got {asked.dtype}")
    ranks = asked.astype(np.int64)
    step = _checks.integer(function, "step", step, low=1)
    least = _checks.integer(function, "least", least, low=1)
    wanted = [budgets] if isinstance(budgets, int | np.integer) else list(budgets)
    if not ranks.size or ranks.min() < least:
        raise InvalidArgumentError(
            f"[{function}] start must be ranks of at least least={least}, got {asked.tolist()}"
        )
    floor = int((ranks - (ranks - least) // step * step).sum())
    if not wanted or min(wanted) < floor:
        raise InvalidArgumentError(
            f"[{function}] budgets must pay for the least ranks, {floor} numbers a token, got "
            f"{wanted}. Keep more, or lower least"
        )
    found: dict[int, Ranks] = {}
    total = max(0, -(-(int(ranks.sum()) - min(wanted)) // step))
    search = _Search(loss, ranks, step, least)
    for budget in sorted(wanted, reverse=True):
        while int(search.ranks.sum()) > budget:
            search.shrink()
            if progress is not None:
                progress(min(search.steps, total), total)
        found[budget] = search.ranks.copy()
    return [found[budget] for budget in wanted]


class _Search:
    """Ranks on their way down, and what each head would cost next."""

    def __init__(self, loss: Callable[[Ranks], float], ranks: Ranks, step: int, least: int) -> None:
        self.loss, self.ranks, self.step, self.least = loss, ranks.copy(), step, least
        self.steps = 0
        self.now = 0.0
        self.queue: list[tuple[float, int, int, float]] = []  # rise, head, measured at step, loss

    def shrink(self) -> None:
        """Take one step from the head whose loss rises least."""
        if not self.steps:
            self.now = self._measured(self.ranks)
            able = np.flatnonzero(self.ranks.ravel() - self.step >= self.least)
            self.queue = [self._priced(int(head)) for head in able]
            heapify(self.queue)
        while True:
            _, head, stamp, value = heappop(self.queue)
            if stamp == self.steps:
                break
            heappush(self.queue, self._priced(head))
        self.ranks.ravel()[head] -= self.step
        self.now = value
        self.steps += 1
        if self.ranks.ravel()[head] - self.step >= self.least:
            heappush(self.queue, self._priced(head))

    def _priced(self, head: int) -> tuple[float, int, int, float]:
        trial = self.ranks.copy()
        trial.ravel()[head] -= self.step
        value = self._measured(trial)
        return value - self.now, head, self.steps, value

    def _measured(self, ranks: Ranks) -> float:
        value = float(self.loss(ranks))
        return value if np.isfinite(value) else float("inf")
