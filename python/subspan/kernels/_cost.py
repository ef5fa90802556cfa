"""What products would take: nanoseconds of one core, as `bench/kernel_methods.py` measures them.

Only ratios count: they choose a method, and a choice may not depend on how busy a machine is.
"""

from typing import NamedTuple

import numpy as np

from subspan.kernels._kernel import Array, Floats, Kernel, generator

__all__ = ["Pilot", "Plan", "Size"]

_STREAM = 1 << 35
_SAMPLE = 512

# Of a pair, of one more coordinate, of one more right-hand side; float64 takes so many times as
# long, one side for both so much of the time.
_PAIR, _COORDINATE, _SIDE, _DOUBLE, _SAME = 0.14, 0.02, 0.02, 2.2, 0.6
# Of a pair in a search, of one more coordinate; and of a pair that is found, by right-hand side.
_SEARCHED, _SEARCHED_COORDINATE, _FOUND, _STORED = 0.12, 0.027, 120.0, 0.1
# Of an entry of a factor, and of a multiplication.
_ENTRY, _FLOP = 20.0, 0.03


class Size(NamedTuple):
    """Points on both sides, coordinates, right-hand sides, float64 or not; one side for both."""

    n: int
    m: int
    d: int
    e: int
    double: bool
    same: bool = False

    def exact(self) -> float:
        """Cost of the exact product, which makes half of a symmetric matrix for few sides."""
        each = _PAIR + _COORDINATE * self.d + _SIDE * self.e
        halved = _SAME if self.same and self.e <= 3 else 1.0
        return self.n * self.m * each * self._factor * halved

    def search(self, pairs: float) -> float:
        """Cost of finding pairs and of multiplying them."""
        each = _SEARCHED + _SEARCHED_COORDINATE * self.d
        return self.n * self.m * each * self._factor + pairs * (_FOUND + _STORED * self.e)

    def low_rank(self, rank: int) -> float:
        """Cost of a factorisation of a matrix of n points, in float64, and of a product with it."""
        entries = (
            self._replace(m=rank, e=32, double=True, same=False).exact() + self.n * rank * _ENTRY
        )
        return entries + self.n * rank * (rank + 2 * self.e) * _FLOP

    def boxed(self, share: float) -> float:
        """Cost of the exact product with a cut-off that leaves so many pairs: boxes hold more."""
        return float(self._replace(same=False).exact() * min(1.0, share * 2.3**self.d))

    @property
    def _factor(self) -> float:
        return _DOUBLE if self.double else 1.0


class Plan(NamedTuple):
    """A threshold for the large entries, and what a product takes with it."""

    threshold: float
    samples: int
    cost: float


class Pilot:
    """What a sample of rows and columns shows of K(x, y) v."""

    def __init__(self, kernel: Kernel, x: Array, y: Array, v: Array, seed: int) -> None:
        rng = generator(seed, _STREAM)
        rows = rng.choice(len(x), min(len(x), _SAMPLE), replace=False)
        columns = rng.choice(len(y), min(len(y), _SAMPLE), replace=False)
        self.x, self.y, self.v = x[rows], y[columns], v[columns]
        double = x.dtype == np.float64
        self.size = Size(len(x), len(y), x.shape[1], v.shape[1], double, y is x)
        self.block = kernel.block(self.x, self.y)
        some = kernel.multiply(self.x, y, v).astype(np.float64)
        self.sizes: Floats = np.sqrt((some**2).mean(0) * len(x))  # of the columns of K v
        self.weights = np.abs(v.astype(np.float64))

    def cutoff(self, tol: float) -> float:
        """Return the cut-off whose bound on the error is two thirds of tol."""
        sums = self.weights.sum(0) * np.sqrt(self.size.n)
        with np.errstate(divide="ignore", invalid="ignore"):
            each = np.where(sums > 0, tol * self.sizes / (1.5 * sums), 0.5)
        return float(min(each.min(), 0.5))

    def share(self, value: float) -> float:
        """Return the share of entries that are at least as large."""
        return float((self.block >= value).mean())

    def plan(self, tol: float) -> Plan:
        """Return the cheapest threshold for the large entries; none costs less than infinity."""
        n, m, *_ = self.size
        t = int(np.ceil(np.sqrt(m)))
        best = Plan(0.5, m, np.inf)
        if t >= m or not (self.sizes > 0).all():
            return best
        rest = -np.partition(-self.weights, t, axis=0)[t:]  # the columns that are not taken whole
        log = np.log(4e4)
        for threshold in 10.0 ** np.arange(-1, -9, -0.5):
            small = self.block[self.block < threshold].astype(np.float64)
            mean_square = (small**2).sum() / self.block.size
            power = m * n * mean_square * (rest**2).sum(0)
            sums = np.where(self.block < threshold, self.block, 0).mean(0, dtype=np.float64)
            longest = m * np.sqrt(threshold * n * sums.max()) * rest[0]
            wanted = tol * self.sizes / (1 + tol)
            # Samples at which Bernstein's bound, a sqrt(1/s) + b / s, is small enough.
            a, b = np.sqrt(2 * power * log), 2.2 * longest * log + 4 * longest * log / 3
            root = (a + np.sqrt(a**2 + 4 * b * wanted)) / (2 * wanted)
            samples = int(max(64.0, 2.0 * float((root**2).max())))
            if samples < m // 2:
                pairs = n * m * self.share(threshold)
                drawn = self.size._replace(m=samples, e=64, same=False)
                cost = self.size.search(pairs) + self.size._replace(e=1).exact()
                cost += self.size._replace(m=t, same=False).exact()
                cost += drawn.exact() + drawn.search(0)
                if cost < best.cost:
                    best = Plan(float(threshold), samples, cost)
        return best
