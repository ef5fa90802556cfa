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
NEAR = 3e-2  # steps as short as this, and f >= GOOD, are Newton's to end
REST = 1e-5  # steps as short as this end a climb: in float32 they hardly become shorter
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
        kept = _independent(to_u)
        reflect = _reflection(to_u[:, kept])
        if self.u is None or low is None:
            self.c = reflect(reflect(self.c).T)
            self.v = reflect(self.v)
            return kept
        reflect_v = _reflection(self.c.T @ (self.u.T @ low[:, kept]))
        self.c = reflect(reflect_v(self.c).T).T
        self.v, self.u = reflect_v(self.v), reflect(self.u)
        return kept


def _independent(q: Array) -> Array:
    """Columns of q that are no combination of those before them."""
    r = np.linalg.qr(q / np.linalg.norm(q, axis=0), mode="r")
    return np.flatnonzero(np.abs(np.diagonal(r)) > 1e-7)


def _reflection(q: Array) -> Callable[[Array], Array]:
    """X -> x Z with orthonormal columns Z that complete those of q, by Householder reflections."""
    packed, tau = np.linalg.qr(q, mode="raw")  # LAPACK's layout, transposed
    k = len(tau)
    y = np.tril(packed.T, -1)
    np.fill_diagonal(y, 1.0)
    t = np.zeros((k, k))  # 1 - y t y^T is their product
    products = y.T @ y
    for j in range(k):
        t[:j, j] = -tau[j] * (t[:j, :j] @ products[:j, j])
        t[j, j] = tau[j]
    right = t @ y[k:].T
    return lambda x: x[:, k:] - (x @ y) @ right


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
        floor = 1e-2 / np.sqrt(d)
        x = np.empty((d, 0), np.float32)
        age, drawn = np.empty(0, np.int64), np.empty(0, np.int64)
        wait = np.empty(0)  # Newton's method may be tried from steps shorter than this
        while self.left.rank:
            width = min(options.block, self.left.rank)
            x, age, drawn, wait = x[:, :width], age[:width], drawn[:width], wait[:width]
            if (more := width - x.shape[1]) > 0:
                again, self._again = self._again[:more], self._again[more:]
                fresh = more - len(again)
                x = np.column_stack([x, *(one.x for one in again), _directions(rng, d, fresh)])
                age = np.concatenate([age, [one.age for one in again], np.zeros(fresh)])
                wait = np.concatenate([wait, [one.step / 10 for one in again], [NEAR] * fresh])
                drawn = np.concatenate([drawn, np.zeros(more)])
            y, f = self.step(x)
            new = self.shifted(x, y, f)
            x -= new
            step = np.sqrt(np.einsum("ds,ds->s", x, x))
            x = new
            age += 1
            self.steps += width
            lost = (f < floor) & (drawn < MOST_RESTARTS) & (age == 1)
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

    def step(self, x: Array) -> tuple[Array, Array]:
        """Return y, the projection of x^(h) contracted with x^(h-1), and f = y x."""
        c = subspan.gram(self._v, self.basis.powers(x))
        f = np.minimum(np.einsum("rs,rs->s", c, c), 1.0)
        return self.basis.contract(subspan.gram(self._v.T, c), x, 1), f

    def shifted(self, x: Array, y: Array, f: Array) -> Array:
        """Return (y + shift x) / |.|."""
        h = self.basis.h
        shift = np.ones_like(f)
        if self.options.adaptive:
            shift = np.where(f > 2 / 3, np.sqrt(2 * f * (1 - f)), 1 - f / 2)
        new: Array = y + shift * float(np.sqrt((h - 1) / h)) * x
        new /= np.sqrt(np.einsum("ds,ds->s", new, new))
        return new

    def harvest(self) -> None:
        """Take components out once there are enough candidates."""
        left, options = self.left, self.options
        if len(self._ready) >= min(max(left.rank // 4, 1), options.block):
            some, self._ready = self._ready, []
            self.take(self.ended(some))
        patience = options.n_starts * max(min(options.block, left.rank), 16)
        if len(self._poor) >= patience and left.rank:
            # No start reaches what is wanted, as with noise: the best, and those nearly as good.
            least = 1 - 2 * (1 - max(one.f for one in self._poor))
            chosen = [one for one in self._poor if one.f >= least]
            self.rejected -= len(chosen)
            self.take(chosen)

    def ended(self, some: list[Candidate]) -> list[Candidate]:
        """Components among candidates, by Newton's method; the others wait for their turn."""
        x = np.column_stack([one.x for one in some]).astype(np.float64)
        ends, near = self.newton(x)
        near &= ~(np.abs(self.found.T @ ends) > ONE).any(axis=0)
        x = np.where(near, ends, x / np.sqrt(np.einsum("ds,ds->s", x, x)))
        chosen: list[Candidate] = []
        for one, end, f, close in zip(some, x.T, self.newton.form(x), near, strict=True):
            last = one._replace(x=end, f=float(f), rested=bool(close) or one.rested)
            if last.rested or last.age >= self.options.max_iter:
                (chosen if last.f >= self.wanted else self._poor).append(last)
            else:
                self._again.append(one)
        return chosen

    def take(self, some: list[Candidate]) -> None:
        """Take components out of what is left."""
        if not some:
            return
        self.rejected += len(self._poor)
        self._poor = []  # of what was left before
        x = np.column_stack([one.x for one in some])
        places = distinct(x)[: self.left.rank]
        x = x[:, places]
        low = None if self.left.u is None else self.lower.powers(x)
        kept = self.left.remove(self.basis.powers(x), low)
        self._v = self.left.v.astype(np.float32)
        self.found = np.column_stack([self.found, x[:, kept]])
        self.iterations += [some[i].age for i in places[kept]]
        self.converged += [some[i].rested for i in places[kept]]


def distinct(x: Array) -> npt.NDArray[np.int64]:
    """Return the first of each set of columns that are one line."""
    close = np.abs(x.T @ x) > ONE
    return np.flatnonzero(~np.tril(close, -1).any(axis=1))


def _directions(rng: np.random.Generator, d: int, count: int) -> Array:
    x = rng.standard_normal((count, d)).T
    return np.ascontiguousarray(x / np.sqrt(np.einsum("ds,ds->s", x, x)), np.float32)
