"""Randomized truncated SVD over the exact primitives: of a given rank, or to a given error.

Both grow an orthonormal basis q of the leading range block by block, with core = q^T a, and take
the SVD of the core: one block for a given rank (Halko, Martinsson, Tropp 2011), blocks until the
rest is small for a given error (randQB_EI of Yu, Gu, Li 2018).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from subspan import _arrays, _core
from subspan._ops._batch import Batch
from subspan._ops._centring import Matrix, energy
from subspan.errors import InvalidArgumentError

__all__ = ["svd"]

_MIN_ROUNDS, _MAX_ROUNDS = 2, 10
_SETTLED = 1e-3  # relative growth of the captured energy below which iteration stops
_BLOCK = 32  # columns by which a basis grows towards a tolerance
_LOST = 1e4  # in eps of the energy: below it, differences of energies keep less than three digits
_ROUNDING = 128  # in eps: relative error of the factors by rounding alone
_ORTHOGONAL = 64  # in eps: largest inner product of new columns and old ones

Array = npt.NDArray[Any]


def svd(
    batch: Batch, k: int | None, *, tol: float | None, seed: int, center: Any
) -> tuple[tuple[Any, Any, Any], npt.NDArray[np.float64] | None]:
    """Factors of every matrix and, if anybody wants to know, their relative errors.

    Without k the rank is the smallest that keeps tol in every matrix.
    """
    dtype = np.dtype(_arrays.dtype_name(batch.source))
    least = float(2 * _ROUNDING * np.finfo(dtype).eps)
    if k is None and tol is not None and tol < least:
        raise InvalidArgumentError(
            f"[svd] tol must be at least {least:.2g} for {dtype} with method='randomized' and no "
            f"k, got {tol:g}. Use method='exact'"
        )
    ranges: Iterable[_Range | None] = _ranges(batch, seed, center)
    if k is not None:
        rank = k
    else:
        assert tol is not None
        ranges = list(ranges)  # the rank is that of all matrices, so all bases are kept
        rank = max((found.rank_for(tol) for found in ranges if found is not None), default=1)
    u, s, vh = batch.empty(batch.m, rank), batch.empty(rank), batch.empty(rank, batch.n)
    errors = np.full(batch.size, np.nan) if tol is not None or not batch.raising else None
    for b, found in enumerate(ranges):
        if found is None:
            batch.info[b] = -1
            parts = [np.full(shape, np.nan, dtype) for shape in ((1, 1), (1,), (1, 1))]
        else:
            # For a given rank one block, with columns to spare.
            found.widen(rank, rank + max(10, rank // 2) if k is not None else 0)
            parts = found.factors(rank)
            if errors is not None:
                errors[b] = found.error(*parts)
            with np.errstate(over="ignore"):  # a norm may be beyond the range of the entries
                parts[1] = np.ldexp(parts[1], -found.a.shift)
        for target, source in zip((u, s, vh), parts, strict=True):
            target[b] = _like(target, source)
    missed = 0.0 if errors is None else float(np.fmax.reduce(errors, initial=0.0))
    if tol is not None and missed > tol:
        warnings.warn(
            f"[svd] the randomized factors of rank {rank} have a relative error of {missed:.3g}, "
            f"more than tol={tol:g}: {'' if k is None else 'raise k, or '}use method='exact'",
            UserWarning,
            stacklevel=3,
        )
    return (u, s, vh), errors


def _ranges(batch: Batch, seed: int, center: Any) -> Iterable[_Range | None]:
    """Return an empty range for every matrix, None for those that are not finite."""
    centers = None
    if not isinstance(center, bool):
        values = _arrays.to_numpy(center).astype(np.float64)
        centers = np.broadcast_to(values, (*batch.lead, batch.n)).reshape(batch.size, batch.n)
    for b in range(batch.size):
        a = _arrays.to_numpy(batch.rows[b, ...])
        if batch.nonfinite == "ignore" or np.isfinite(a).all():
            yield _Range(Matrix(a, center if centers is None else centers[b]), seed)
        elif batch.nonfinite == "propagate":
            yield None
        else:
            raise InvalidArgumentError(
                f"[svd] a must be finite, got NaN or infinity in matrix {b} of {batch.size}. "
                'Pass nonfinite="propagate" to get NaN for it and results for the others'
            )


class _Range:
    """Orthonormal basis [m, w] of the leading range of a, and core = basis^T a."""

    def __init__(self, a: Matrix, seed: int) -> None:
        self.a, self.seed = a, seed
        self.most = min(a.shape)
        self.basis = np.empty((a.shape[0], 0), a.dtype)
        self.core = np.empty((0, a.shape[1]), a.dtype)
        self.blocks = 0
        self._solved: list[Array] | None = None

    @property
    def width(self) -> int:
        return int(self.basis.shape[1])

    def widen(self, least: int, wanted: int = 0) -> None:
        """Grow to ``least`` columns or more: to ``wanted``, if given, by one block."""
        while self.width < least:
            self._grow(wanted or _BLOCK, _MAX_ROUNDS if wanted else _MIN_ROUNDS)

    def rank_for(self, tol: float) -> int:
        """Grow until the rest is within tol, and return the smallest rank that keeps tol."""
        # The last digits of energies and factors take their share of the tolerance.
        share = (1 - 10 / _LOST) * tol**2 - (_ROUNDING * np.finfo(self.a.dtype).eps) ** 2
        allowed = share * self.a.energy
        self.widen(1)
        while (rest := self._rest()) > allowed:
            self._grow(_BLOCK, _MIN_ROUNDS)
        tail = np.cumsum(np.square(self._solve()[1], dtype=np.float64)[::-1])[::-1]
        return max(1, int(np.count_nonzero(tail + rest > allowed)))

    def factors(self, rank: int) -> list[Array]:
        """Return the leading ``rank`` triplets; the values are those of the scaled matrix."""
        small, values, right = self._solve()
        return [self.basis @ small[:, :rank], values[:rank], right[:rank]]

    def error(self, u: Array, s: Array, vh: Array) -> float:
        """Return the relative Frobenius error of factors.

        The energy that they lack is free, but lost in rounding if it is small; then the residual.
        """
        if self.a.energy == 0:
            return 0.0
        lacking = self.a.energy - energy(s)
        if lacking <= self._lost():
            lacking = self.a.distance(u, s, vh)
        return float(np.sqrt(lacking / self.a.energy))

    def _lost(self) -> float:
        return float(_LOST * np.finfo(self.a.dtype).eps * self.a.energy)

    def _rest(self) -> float:
        """Squared norm of what the basis has not captured; by probes where energies cannot tell.

        For r normal probes w, E |R w|^2 = |R|^2, and the mean is below |R|^2 / 4 with a probability
        of at most (e^{3/4} / 4)^{r/2} (Chernoff; the worst R has rank 1): 4e-5 for r = 32.
        """
        if self.width == self.most:
            return 0.0
        rest = self.a.energy - energy(self.core)
        if rest > self._lost() or self.a.energy == 0:
            return rest
        probes = self._sketch(_BLOCK)
        return 4 * energy(probes - self.basis @ (self.basis.T @ probes)) / _BLOCK

    def _sketch(self, width: int) -> Array:
        """Return a times new normal columns."""
        n = self.a.shape[1]
        test = np.empty(n * width, self.a.dtype)
        _core.fill_normal(test, self.seed, self.blocks)
        self.blocks += 1
        return self.a.times(test.reshape(n, width))

    def _grow(self, width: int, rounds: int) -> None:
        """Add the range of a sketch, improved by subspace iteration until it settles."""
        sketch, captured = self._sketch(min(width, self.most - self.width)), 0.0
        for done in range(rounds + 1):
            block = self._orthonormal(sketch)
            core = self.a.from_left(block)
            before, captured = captured, energy(core)
            settled = done >= _MIN_ROUNDS and captured - before <= _SETTLED * captured
            if done == rounds or settled:
                break
            sketch = self.a.times(_qr(core.T))
        self.basis = np.concatenate([self.basis, block], axis=1)
        self.core = np.concatenate([self.core, core])
        self._solved = None

    def _orthonormal(self, y: Array) -> Array:
        """Orthonormal columns for the range of y, orthogonal to the basis."""
        if self.width == 0:
            return _qr(y)
        for _ in range(2):
            y = _qr(y - self.basis @ (self.basis.T @ y))
        if np.abs(self.basis.T @ y).max() <= _ORTHOGONAL * np.finfo(y.dtype).eps:
            return y
        # Nothing new in y, say of a zero matrix: reflectors find directions all the same.
        return _qr(np.concatenate([self.basis, y], axis=1))[:, self.width :]

    def _solve(self) -> list[Array]:
        """Return the SVD of the core."""
        if self._solved is None:
            (w, n), dtype = self.core.shape, self.a.dtype
            s, u, vh = (np.empty((1, *shape), dtype) for shape in ((w,), (w, w), (w, n)))
            _core.svd(self.core[None], s, u, vh, np.zeros(1, np.int32), "ignore", True)
            self._solved = [u[0], s[0], vh[0]]
        return self._solved


def _qr(y: Array) -> Array:
    m, n = y.shape
    q, r = np.empty((1, m, n), y.dtype), np.empty((1, n, n), y.dtype)
    _core.qr(np.ascontiguousarray(y)[None], q, r, np.zeros(1, np.int32), "ignore")
    return np.asarray(q[0])


def _like(target: Any, source: Array) -> Any:
    """``source`` in a form that can be assigned into an array of target's library."""
    if _arrays.library_of(target) == "torch":
        import torch

        return torch.from_numpy(np.ascontiguousarray(source)).to(target.dtype)
    return source
