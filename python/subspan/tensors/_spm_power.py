"""The power iterations of the subspace power method, many starts at a time, and its deflation."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

import subspan
from subspan.tensors._spm_basis import Array, SymmetricBasis
from subspan.tensors._spm_newton import Newton

__all__ = ["Deflation", "Options", "Search", "distinct"]

GOOD = 0.99  # f, the squared length of x^(h) in the subspace, of what may be a component
ONE = 1 - 1e-8  # |cos| from which two vectors are one component
ALIKE = 1 - 1e-3  # and that of climbs near their ends that go the same way
WIDTH = 4  # starts at a time for each component that is left, up to a block
HARVEST = 0.5  # of these: so many ends are enough for Newton's method and deflation
NEAR = 1e-2  # steps as short as this, and f >= GOOD, are Newton's to end
REST = 1e-5  # steps as short as this end a climb: in float32 they hardly become shorter
FREE = 50  # steps that a start may go without a shift
MOST_RESTARTS = 10  # of a start that begins nearly orthogonal to all components


class Options(NamedTuple):
    """What governs a search."""

    n_starts: int  # times a block, before one with less than the wanted f is taken
    block: int
    tol: float
    max_iter: int
    adaptive: bool


class Deflation:
    """What is left of a tensor: orthonormal V (N, r) and U (M, r), and C = (V^T T U)^-1.

    For even orders U is V. A component a is taken out by reflecting C^T U^T a^(m-h), in the
    coordinates of V, and C V^T a^(h), in those of U, to the first axis, and dropping that.
    """

    def __init__(self, v: Array, u: Array | None, values: Array) -> None:
        self.v, self.u = v, u
        self.c = np.diag(1 / values)

    @property
    def rank(self) -> int:
        """How many components are left."""
        return int(self.v.shape[1])

    def remove(self, high: Array, low: Array | None) -> Array:
        """Take out components, given by a^(h) and a^(m-h); return which were independent."""
        to_u = self.c @ (self.v.T @ high)
        reflect, kept = _reflection(to_u)
        if len(kept) < to_u.shape[1]:
            reflect, _ = _reflection(to_u[:, kept])
        if self.u is None or low is None:
            self.c = reflect(reflect(self.c).T)
            self.v = reflect(self.v)
            return kept
        reflect_v, _ = _reflection(self.c.T @ (self.u.T @ low[:, kept]))
        self.c = reflect(reflect_v(self.c).T).T
        self.v, self.u = reflect_v(self.v), reflect(self.u)
        return kept


def _reflection(q: Array) -> tuple[Callable[[Array], Array], npt.NDArray[np.int64]]:
    """X -> x Z with orthonormal columns Z that complete those of q, by Householder reflections.

    And which columns of q are no combination of those before them; Z is good if all are.
    """
    packed, tau = np.linalg.qr(q / np.linalg.norm(q, axis=0), mode="raw")  # LAPACK's, transposed
    k = len(tau)
    y = np.tril(packed.T, -1)
    np.fill_diagonal(y, 1.0)
    t = np.zeros((k, k))  # 1 - y t y^T is their product
    products = y.T @ y
    for j in range(k):
        t[:j, j] = -tau[j] * (t[:j, :j] @ products[:j, j])
        t[j, j] = tau[j]
    right = t @ y[k:].T
    kept = np.flatnonzero(np.abs(np.diagonal(packed)) > 1e-7)
    return lambda x: x[:, k:] - (x @ y) @ right, kept


class Candidate(NamedTuple):
    """A start that has come close to a maximum."""

    x: Array
    f: float  # where Newton's method ended
    age: int  # steps
    step: float  # length of the last of them
    rested: bool  # whether that was short


class Search:
    """Components of a subspace, many starts at a time.

    Climbs are in float32, as they only have to come near; Newton's method and the deflation are
    in float64.
    """

    def __init__(
        self,
        left: Deflation,
        bases: tuple[SymmetricBasis, SymmetricBasis],
        options: Options,
        allowed: float,
    ) -> None:
        self.left, self.options = left, options
        self.wanted = 1 - min(allowed, 1 - GOOD)  # f of components; below it are other maxima
        self.basis, self.lower = bases
        self.newton = Newton(left.v, self.basis, options.tol)
        self._v = left.v.astype(np.float32)
        self.floor = 1e-2 / np.sqrt(self.basis.d)  # f of starts that are drawn anew
        self.found = np.empty((self.basis.d, 0))  # unit columns
        self.converged: list[bool] = []
        self.iterations: list[int] = []
        self.steps = self.restarts = self.rejected = 0
        self._ready: list[Candidate] = []  # for Newton's method
        self._poor: list[Candidate] = []  # maxima that are no components
        self._again: list[Candidate] = []  # Newton's method did not end near by: more steps

    def run(self, rng: np.random.Generator) -> None:
        """Find as many components as the subspace has dimensions."""
        d, options = self.basis.d, self.options
        x = np.empty((d, 0), np.float32)
        age, drawn = np.empty(0, np.int64), np.empty(0, np.int64)
        wait = np.empty(0)  # Newton's method may be tried from steps shorter than this
        while self.left.rank:
            width = min(options.block, WIDTH * self.left.rank)
            x, age, drawn, wait = x[:, :width], age[:width], drawn[:width], wait[:width]
            if (more := width - x.shape[1]) > 0:
                again, self._again = self._again[:more], self._again[more:]
                fresh = more - len(again)
                x = np.column_stack([x, *(one.x for one in again), _directions(rng, d, fresh)])
                age = np.concatenate([age, [one.age for one in again], np.zeros(fresh)])
                wait = np.concatenate([wait, [one.step / 10 for one in again], [NEAR] * fresh])
                drawn = np.concatenate([drawn, np.zeros(more)])
            new, f = self.climbed(x, age)
            x -= new
            step = np.sqrt(np.einsum("ds,ds->s", x, x))
            x = new
            age += 1
            self.steps += width
            lost = (f < self.floor) & (drawn < MOST_RESTARTS) & (age == 1)
            rested = step < REST
            over = rested | (age >= options.max_iter) | ((f >= GOOD) & (step < wait))
            over &= ~lost
            for i in np.flatnonzero(over):
                self._ready.append(
                    Candidate(x[:, i].copy(), 0.0, int(age[i]), float(step[i]), bool(rested[i]))
                )
            if lost.any():
                x[:, lost] = _directions(rng, d, int(lost.sum()))
                drawn[lost] += 1
                age[lost] = 0
                self.restarts += int(lost.sum())
            if over.any():
                x, age, drawn, wait = x[:, ~over], age[~over], drawn[~over], wait[~over]
                self.harvest()

    def climbed(self, x: Array, age: npt.NDArray[np.int64]) -> tuple[Array, Array]:
        """Return where starts (d, s) of an age go next, and the f of where they are.

        With p the projection of x^(h): (y + shift x) / |.|, y = p x^(h-1). In their first steps,
        and where f is not tiny, starts do without a shift and go that way twice: each time p x^h
        grows, and f with it, by less work than another projection.
        """
        c = subspan.gram(self._v, self.basis.powers(x))
        f = np.minimum(np.einsum("rs,rs->s", c, c), 1.0)
        contract = self.basis.contraction(subspan.gram(self._v.T, c))
        free = (age < FREE) & (f >= self.floor) & self.options.adaptive
        new = _unit(contract(x) + np.where(free, 0, self.shift(f)) * x)
        if free.any():
            new = np.where(free, _unit(contract(new)), new)
        return new, f

    def shift(self, f: Array) -> Array:
        """Return the shift, for which f never falls."""
        h = self.basis.h
        found: Array = np.full_like(f, (h - 1) / h) ** 0.5
        if self.options.adaptive:
            found *= np.where(f > 2 / 3, np.sqrt(2 * f * (1 - f)), 1 - f / 2)
        return found

    def harvest(self) -> None:
        """Take components out once there are enough candidates."""
        left, options = self.left, self.options
        if len(self._ready) >= max(1, int(HARVEST * min(options.block, WIDTH * left.rank))):
            some, self._ready = self._ready, []
            self.take(self.ended(some))
        patience = options.n_starts * max(min(options.block, left.rank), 16)
        if len(self._poor) >= patience and left.rank:
            # No start reaches what is wanted, as with noise: the best, and those nearly as good.
            least = 1 - 2 * (1 - max(one.f for one in self._poor))
            chosen = [one for one in self._poor if one.f >= least]
            taken = self.take(chosen)
            self.rejected -= taken

    def ended(self, some: list[Candidate]) -> list[Candidate]:
        """Components among candidates, by Newton's method; the others wait for their turn."""
        x = np.column_stack([one.x for one in some])
        rested = np.array([one.rested for one in some])
        places = np.union1d(distinct(x, ALIKE), np.flatnonzero(rested))  # those all count
        some, x = [some[i] for i in places], x[:, places].astype(np.float64)
        ends, near, f = self.newton(x)
        near &= ~(np.abs(self.found.T @ ends) > ONE).any(axis=0)
        ends = np.where(near, ends, _unit(x))
        f[~near] = self.newton.form(ends[:, ~near])
        chosen: list[Candidate] = []
        for one, end, height, close in zip(some, ends.T, f, near, strict=True):
            last = one._replace(x=end, f=float(height), rested=bool(close) or one.rested)
            if last.rested or last.age >= self.options.max_iter:
                (chosen if last.f >= self.wanted else self._poor).append(last)
            else:
                self._again.append(one)
        return chosen

    def take(self, some: list[Candidate]) -> int:
        """Take components out of what is left; return how many there were."""
        if not some:
            return 0
        self.rejected += len(self._poor)
        self._poor = []  # of what was left before
        x = np.column_stack([one.x for one in some])
        places = distinct(x, ONE)[: self.left.rank]
        x = x[:, places]
        low = None if self.left.u is None else self.lower.powers(x)
        kept = self.left.remove(self.basis.powers(x), low)
        self._v = self.left.v.astype(np.float32)
        self.found = np.column_stack([self.found, x[:, kept]])
        self.iterations += [some[i].age for i in places[kept]]
        self.converged += [some[i].rested for i in places[kept]]
        return len(kept)


def distinct(x: Array, alike: float) -> npt.NDArray[np.int64]:
    """Return the first of each set of unit columns whose |cos| is above `alike`."""
    close = np.abs(x.T @ x) > alike
    return np.flatnonzero(~np.tril(close, -1).any(axis=1))


def _directions(rng: np.random.Generator, d: int, count: int) -> Array:
    x = rng.standard_normal((count, d)).T
    return np.ascontiguousarray(_unit(x), np.float32)


def _unit(x: Array) -> Array:
    found: Array = x / np.sqrt(np.einsum("ds,ds->s", x, x))
    return found
