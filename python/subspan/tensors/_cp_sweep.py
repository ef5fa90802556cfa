"""One sweep of alternating least squares over all modes, for several starts at once.

Columns of factors have length 1 between updates, and weights (starts, R) carry the sizes: then the
Hadamard products of Gram matrices have unit diagonals, whatever the data's scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

import subspan
from subspan.tensors._cp_symmetric import shared_step
from subspan.tensors._reading import Array

__all__ = ["Model", "Rules", "inner_and_norm", "sweep", "unit"]

_HALS_PASSES = 5
_FADING = 1e-6


@dataclass(frozen=True)
class Rules:
    """What holds for every sweep of a decomposition."""

    shape: tuple[int, ...]
    nonnegative: frozenset[int]
    groups: tuple[tuple[int, ...], ...]
    """Modes that share a factor; modes of a group are not in another."""
    ridge: float
    split: int
    """First mode of the second half of the dimension tree; 0 without one."""

    @property
    def free(self) -> list[int]:
        """Modes with a factor of their own."""
        shared = {n for group in self.groups for n in group}
        return [n for n in range(len(self.shape)) if n not in shared]


@dataclass
class Model:
    """Weights (starts, R) and factors (starts, I_n, R) with unit columns, or columns of zeros.

    And the Gram matrices (starts, R, R) of the factors. Arrays are replaced, not changed, except by
    `put`.
    """

    weights: Array
    factors: list[Array]
    grams: list[NDArray[np.float64]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.grams:
            self.grams = [_gram(a) for a in self.factors]

    def next(self) -> Model:
        """Return a model that a sweep may begin with."""
        return Model(self.weights, list(self.factors), list(self.grams))

    def take(self, places: NDArray[np.int64]) -> Model:
        """Return copies of some starts."""
        factors, grams = ([a[places] for a in each] for each in (self.factors, self.grams))
        return Model(self.weights[places], factors, grams)

    def put(self, places: NDArray[np.int64], other: Model) -> None:
        """Set some starts."""
        self.weights[places] = other.weights
        for mine, theirs in zip(
            self.factors + self.grams, other.factors + other.grams, strict=True
        ):
            mine[places] = theirs


def tree_split(shape: tuple[int, ...]) -> int:
    """Where to cut the modes in two halves of which each costs one product with the tensor.

    0 where N products cost less: the sums that follow take about 24 times as long for an element
    as a product.
    """
    order = len(shape)

    def small(s: int) -> int:
        halves = (shape[:s], shape[s:])
        return sum(len(half) * prod(half) for half in halves if len(half) > 1)

    best = min(range(1, order), key=small)
    return best if (order - 2) * prod(shape) > 24 * small(best) else 0


class _Products:
    """MTTKRPs of the modes in turn, with the factors as they are when each is asked for."""

    def __init__(self, x: Array, rules: Rules) -> None:
        self.x, self.rules = x, rules
        self.half: tuple[range, Any] = (range(0), None)

    def of(self, factors: list[Array], n: int) -> Any:
        """Return the product of mode n, (starts, I_n, R)."""
        split, order = self.rules.split, len(factors)
        if split == 0:
            return subspan.mttkrp(self.x, factors, n)
        modes = range(split) if n < split else range(split, order)
        if n == modes.start:
            self.half = modes, subspan.mttkrp(self.x, factors, tuple(modes))
        return contracted(self.half[1], [factors[m] for m in modes], n - modes.start)


def contracted(partial: Array, factors: Sequence[Array], keep: int) -> Array:
    """Sum (starts, J_0, ..., R) over all modes but one, each column with its own weights."""
    axes = list(range(len(factors) + 2))  # starts, modes, columns
    for m in reversed(range(len(factors))):
        if m != keep:
            left = [a for a in axes if a != m + 1]
            partial = np.einsum(partial, axes, factors[m], [0, m + 1, axes[-1]], left)
            axes = left
    return partial


def sweep(x: Array, model: Model, rules: Rules) -> NDArray[np.float64]:
    """Update all factors; return <x, model> and |model|^2 of each start."""
    grams = model.grams
    for group in rules.groups:
        shared_step(x, model, group, rules.ridge)
    if not rules.free:  # the weights are the only free part
        m = subspan.mttkrp(x, model.factors, 0).astype(np.float64)
        b = (m * model.factors[0]).sum(axis=1)
        model.weights = solve(_hadamard(grams), b[:, None, :], rules.ridge)[:, 0]
        model.weights = model.weights.astype(x.dtype)
        return _stacked((b * model.weights).sum(axis=1), model.weights, grams)
    products = _Products(x, rules)
    for n in rules.free:
        m = products.of(model.factors, n)
        others = _hadamard(grams, but=n)
        if n in rules.nonnegative:
            new = _hals(m, others, model.factors[n] * model.weights[:, None, :])
        else:
            new = solve(others, m, rules.ridge)
        model.factors[n], model.weights = unit(new.astype(x.dtype, copy=False))
        grams[n] = _gram(model.factors[n])
    return _stacked(_inner(m, model.factors[n], model.weights), model.weights, grams)


def inner_and_norm(x: Array, model: Model) -> NDArray[np.float64]:
    """Return <x, model> and |model|^2 of each start."""
    m = subspan.mttkrp(x, model.factors, len(model.factors) - 1)
    inner = _inner(m, model.factors[-1], model.weights)
    return _stacked(inner, model.weights, model.grams)


def unit(factor: Array) -> tuple[Array, Array]:
    """Return unit columns and their lengths; zeros stay."""
    sizes = np.sqrt(np.einsum("sir,sir->sr", factor, factor))
    return factor / np.where(sizes > 0, sizes, 1)[:, None, :], sizes


def solve(gram: NDArray[np.float64], right: Array, ridge: float) -> NDArray[np.float64]:
    """Rows (starts, I, R) of right gram^-1, by Cholesky; by eigenvalues where it fails."""
    r = gram.shape[-1]
    raised = gram.copy()
    raised[:, np.arange(r), np.arange(r)] += ridge * np.trace(gram, axis1=-2, axis2=-1)[:, None] / r
    lower, info = subspan.cholesky(raised, nonfinite="propagate", errors="info")
    failed = np.flatnonzero(info)
    lower[failed] = np.eye(r)
    # The inverse of a triangle is as good as substitution, and serves all rows as they lie.
    inverse = subspan.solve_triangular(lower, np.eye(r)[None], nonfinite="ignore")
    out: NDArray[np.float64] = right @ inverse.swapaxes(-1, -2) @ inverse
    for s in failed:
        out[s] = right[s] @ np.linalg.pinv(gram[s], hermitian=True)
    return out


def _hals(m: Array, gram: NDArray[np.float64], a: Array) -> Array:
    """Columns one by one, each the best that is nowhere negative; one that would vanish fades."""
    m, a = m.astype(np.float64), np.maximum(a, 0).astype(np.float64)
    for _ in range(_HALS_PASSES):
        for r in range(a.shape[-1]):
            scale = gram[:, r, r]
            step = m[:, :, r] - np.einsum("sir,sr->si", a, gram[:, :, r])
            safe = np.where(scale > 0, scale, 1)[:, None]
            new = np.maximum(a[:, :, r] + step / safe, 0)
            alive = (scale > 0) & new.any(axis=1)
            a[:, :, r] = np.where(alive[:, None], new, _FADING * a[:, :, r])
    return a


def _gram(a: Array) -> NDArray[np.float64]:
    result: NDArray[np.float64] = subspan.gram(a.astype(np.float64, copy=False))
    return result


def _hadamard(grams: Sequence[Array], but: int = -1) -> NDArray[np.float64]:
    out = np.ones_like(grams[0])
    for n, g in enumerate(grams):
        if n != but:
            out *= g
    return out


def _inner(m: Array, factor: Array, weights: Array) -> Array:
    total: Array = (np.multiply(m, factor, dtype=np.float64).sum(axis=1) * weights).sum(axis=1)
    return total


def _stacked(inner: Array, weights: Array, grams: Sequence[Array]) -> NDArray[np.float64]:
    w = weights.astype(np.float64)
    return np.stack([inner, np.einsum("sr,srq,sq->s", w, _hadamard(grams), w)], axis=1)
