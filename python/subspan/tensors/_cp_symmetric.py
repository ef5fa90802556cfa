"""The step of a factor that several modes share: a direction of descent, and the best way along it.

For x symmetric in the c modes of a group, the least squares solution for one of them, with the
others held, minus the factor is a direction in which the error falls. Along it the squared error is
a polynomial of degree 2c, which c + 1 inner products with x and some Gram matrices determine.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

import subspan
from subspan.errors import InvalidArgumentError
from subspan.tensors import _cp_sweep
from subspan.tensors._reading import Array

__all__ = ["asymmetry", "require_symmetric", "shared_step"]

_FAR = 2.0  # longest step, in steps to the least squares solution


def asymmetry(x: Array, group: tuple[int, ...]) -> float:
    """Largest relative change of x when two modes of a group are swapped."""
    size = float(np.linalg.norm(x))
    if size == 0:
        return 0.0
    return max(float(np.linalg.norm(x - x.swapaxes(a, b))) / size for a, b in pairwise(group))


def require_symmetric(function: str, x: Array, group: tuple[int, ...]) -> None:
    """Raise unless the modes of a group can be swapped."""
    sizes = [x.shape[n] for n in group]
    if len(set(sizes)) > 1:
        raise InvalidArgumentError(
            f"[{function}] symmetric must name modes of one extent, got {group} of extents {sizes}"
        )
    off = asymmetry(x, group)
    if off > 1e4 * float(np.finfo(x.dtype).eps):
        raise InvalidArgumentError(
            f"[{function}] x must be symmetric in the modes {group}, got a relative asymmetry of "
            f"{off:.3g}. Average it over the orders of these modes first"
        )


def shared_step(
    x: Array,
    model: _cp_sweep.Model,
    group: tuple[int, ...],
    ridge: float,
) -> None:
    """Move the shared factor of every start; columns keep length 1, weights the size."""
    weights, factors, grams = model.weights.copy(), model.factors, model.grams
    n, copies = group[0], len(group)
    others = np.ones_like(grams[n])
    for m, g in enumerate(grams):
        if m not in group:
            others *= g
    w = weights.astype(np.float64)
    base = factors[n].astype(np.float64)
    target = _cp_sweep.solve(
        others * grams[n] ** (copies - 1), subspan.mttkrp(x, factors, n), ridge
    )
    scale = np.where(w != 0, w, 1)[:, None, :]
    step = np.where(w[:, None, :] != 0, target / scale - base, 0)
    if not np.isfinite(step).all():
        return
    nodes = np.linspace(0, _FAR, copies + 1)
    inner = np.stack([_inner(x, w, factors, group, base + t * step) for t in nodes], axis=1)
    cross = np.matmul(base.swapaxes(-1, -2), step)
    parts = (grams[n], cross + cross.swapaxes(-1, -2), subspan.gram(step))
    both = others * w[:, :, None] * w[:, None, :]
    moved = factors[n].copy()
    for s in range(len(w)):
        t = _lowest(nodes, inner[s], tuple(p[s] for p in parts), both[s], copies)
        new, sizes = _cp_sweep.unit((base[s] + t * step[s])[None])
        weights[s] = w[s] * sizes[0] ** copies
        moved[s] = new[0]
    model.weights = weights
    fresh = subspan.gram(moved.astype(np.float64))
    for m in group:
        factors[m], grams[m] = moved, fresh


def _inner(x: Array, w: Array, factors: list[Array], group: tuple[int, ...], shared: Any) -> Any:
    """<x, model> of every start with another shared factor."""
    shared = shared.astype(x.dtype)
    moved = [shared if n in group else a for n, a in enumerate(factors)]
    m = subspan.mttkrp(x, moved, group[0]).astype(np.float64)
    return np.einsum("sir,sir,sr->s", m, shared.astype(np.float64), w)


def _lowest(
    nodes: Array, inner: Array, parts: tuple[Array, ...], both: Array, copies: int
) -> float:
    """Where in [0, _FAR] the squared error is least."""
    product = np.polynomial.Polynomial(np.linalg.solve(np.vander(nodes, increasing=True), inner))

    def error(t: float) -> float:
        gram = parts[0] + t * parts[1] + t * t * parts[2]
        return float((both * gram**copies).sum() - 2 * product(t))

    places = np.cos(np.pi * np.arange(2 * copies + 1) / (2 * copies)) + 1  # of Chebyshev, in 0..2
    curve = np.polynomial.Polynomial.fit(places, [error(t) for t in places], 2 * copies)
    roots = curve.deriv().roots()
    real = roots.real[(np.abs(roots.imag) < 1e-6) & (roots.real > 0) & (roots.real < _FAR)]
    return float(min([0.0, 1.0, _FAR, *real.tolist()], key=error))
