"""Multiplicative updates of nonnegative RESCAL, for several runs at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from subspan.tensors._reading import Array

__all__ = ["Runs", "factorize", "refit"]

_TINY = 1e-16
_REFITS = 300


class Runs(NamedTuple):
    a: Array
    r: Array
    errors: NDArray[np.float64]
    converged: NDArray[np.bool_]


def factorize(
    x: Array,
    starts: list[tuple[Array, Array]],
    limit: float,
    steps: int,
    progress: Callable[[int, NDArray[np.float64]], object] | None = None,
) -> Runs:
    """Multiplicative updates of all starts, for x (runs or 1, m, n, n)."""
    a, r = (np.stack(parts) for parts in zip(*starts, strict=True))
    runs, m, n = len(a), x.shape[1], x.shape[2]
    flat = x.reshape(len(x), m * n, n)
    size2 = np.broadcast_to(np.square(flat, dtype=np.float64).sum(axis=(1, 2)), (runs,))
    active = np.ones(runs, bool)
    record: list[NDArray[np.float64]] = []
    last = np.full(runs, np.inf)
    xa = np.matmul(flat, a)  # of the present a: the errors of a step make that of the next
    for number in range(steps):
        at = np.flatnonzero(active)
        if at.size == 0:
            break
        data = flat if len(flat) == 1 else flat[at]
        before = a[at]
        mine, theirs = _update(data, xa[at], before, r[at], m)
        error, products = _errors(data, size2[at], mine, theirs, m)
        for _ in range(30):
            worse = np.flatnonzero(error > last[at] * (1 + 1e-12))
            if worse.size == 0:
                break
            mine[worse] = np.sqrt(mine[worse] * before[worse])
            part = data if len(data) == 1 else data[worse]
            error[worse], products[worse] = _errors(
                part, size2[at][worse], mine[worse], theirs[worse], m
            )
        a[at], r[at], xa[at] = mine, theirs, products
        row = np.full(runs, np.nan)
        row[at] = error
        record.append(row)
        active[at] = ~(last[at] - error < limit)
        last[at] = error
        if progress is not None:
            progress(number, row)
    errors = np.stack(record) if record else np.full((1, runs), np.nan)
    return Runs(a, r, errors, ~active)


def _update(flat: Array, xa: Array, a: Array, r: Array, m: int) -> tuple[Array, Array]:
    runs, n, k = a.shape
    gram = np.matmul(a.swapaxes(-1, -2), a)[:, None]
    xa = xa.reshape(runs, m, n, k)
    inner = np.matmul(a.swapaxes(-1, -2)[:, None], xa)
    r = r * (inner / (gram @ r @ gram + _TINY))
    rt = r.swapaxes(-1, -2)
    ar = np.matmul(a[:, None], r).reshape(runs, m * n, k)
    above = np.matmul(xa, rt).sum(axis=1) + np.matmul(flat.swapaxes(-1, -2), ar)
    below = np.matmul(a, (r @ gram @ rt + rt @ gram @ r).sum(axis=1))
    return a * (above / (below + _TINY)), r


def _errors(
    flat: Array, size2: Array, a: Array, r: Array, m: int
) -> tuple[NDArray[np.float64], Array]:
    """Relative errors, and the products of x with a (runs, m n, k) that they come from."""
    runs, n, k = a.shape
    xa = np.matmul(flat, a)
    inner = np.matmul(a.swapaxes(-1, -2)[:, None], xa.reshape(runs, m, n, k))
    gram = np.matmul(a.swapaxes(-1, -2), a)[:, None]
    model = gram @ r @ gram
    squared = size2 + np.sum((model - 2 * inner) * r, axis=(1, 2, 3), dtype=np.float64)
    return np.sqrt(np.maximum(squared, 0) / np.where(size2 > 0, size2, 1)), xa


def refit(x: Array, a: Array) -> tuple[Array, float]:
    """Relations that fit given groups best, and the relative error."""
    gram = a.T @ a
    inner = a.T @ x @ a
    r = inner.copy()
    for _ in range(_REFITS):
        r *= inner / (gram @ r @ gram + _TINY)
    rest = x - a @ r @ a.T
    size = np.linalg.norm(x)
    return r, float(np.linalg.norm(rest) / size) if size > 0 else 0.0
