"""Pairs of columns and rows of stacks of weights, best first, in float64 or led by float32."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

import subspan
from subspan.compression._inputs import Floats, square_root

__all__ = ["Pairs", "decompose", "leading"]

_SURE = 1e-5  # of the largest: above, squared values have all the digits that are promised
_SHARE = 2e-3  # of a squared error: what float32 may change
_PROBES = 3  # random vectors that measure what float32 changed
_ROWS = 128  # of float32 that are turned into float64 at a time
_LEAST, _MOST = 1e-18, 1e18  # squared norms between which float32 neither underflows nor overflows


class Pairs(NamedTuple):
    """``W ~ left @ right``, the best of every rank in front."""

    left: Any
    """(b, m, r)"""
    right: Any
    """(b, r, n)"""
    values: Floats
    """(b, min(m, n)) what each pair holds in the norm of the method, also of pairs left out."""


def decompose(
    w: Floats, columns: Floats | None, basis: Floats | None = None, rows: Floats | None = None
) -> Pairs:
    """Return all pairs of the decomposition of ``rows^T W columns``, in float64.

    ``columns`` and ``rows`` are square roots (b or 1, n, n), or one row each if diagonal;
    ``basis`` stands for ``columns`` where directions are chosen.
    """
    weighted = w if rows is None else _applied(_turned(rows), w)
    chosen = columns if basis is None else basis
    if w.shape[1] <= w.shape[2]:
        target = weighted if chosen is None else _product(weighted, chosen)
        squares, u = _axes(target @ _turned(target))
        right = _turned(u) @ weighted
        values = np.sqrt(np.maximum(squares, 0.0))
        sure = squares > _SURE * squares[:, :1]
    else:
        inner = _turned(weighted) @ weighted
        both = inner if chosen is None else _applied(_turned(chosen), _product(inner, chosen))
        _, axes = _axes(both)
        if chosen is not None:
            axes = _applied(chosen, axes)
        image = weighted @ axes
        values = np.linalg.norm(image, axis=-2)
        sure = values > _SURE * values[:, :1]
        size = np.where(values > 0, values, 1.0)
        u, right = image / size[:, None], _turned(axes) @ inner / size[..., None]
        for i in np.flatnonzero(~sure.all(axis=-1)):
            # QR in the order of falling values keeps all leading spans, divides by none of them,
            # and fills up where rank is missing.
            u[i] = subspan.qr(image[i]).q
            right[i] = u[i].T @ weighted[i]
    for i in np.flatnonzero((basis is not None) | ~sure.all(axis=-1)):
        # small values have lost digits in the squares
        held = right[i] if columns is None else _product(right[i], _one(columns, int(i)))
        values[i] = np.linalg.norm(held, axis=-1)
    if rows is None:
        return Pairs(u, right, values)
    if rows.shape[-2] == 1:
        left = u / _turned(rows)
    else:
        full = np.broadcast_to(rows, (len(u), *rows.shape[1:]))
        left = subspan.solve_triangular(full, u, transposed=True)
    size = np.linalg.norm(left, axis=-2, keepdims=True)  # columns of length one, as without weights
    return Pairs(left / size, right * _turned(size), values)


def leading(w: Any, grams: Floats, rank: int) -> tuple[Pairs, Any]:
    """Return the first ``rank`` pairs for weights in float32, and for which matrices they hold.

    Products and eigenvectors are in float32. Random vectors of signs go through the matrix whose
    eigenvectors were taken, and in float64 through its factors: by how much they part is, in root
    mean square, the Frobenius norm of all that the products changed. Pairs hold where that and the
    rounding of eigenvectors stay below a 500th of the squared error at ``rank``, the smallest.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # such matrices do not hold
        return _leading(w, grams, rank)


def _leading(w: Any, grams: Floats, rank: int) -> tuple[Pairs, Any]:
    m, n = w.shape[1:]
    top = np.diagonal(grams, axis1=-2, axis2=-1).max(axis=-1)
    scale = np.exp2(-np.frexp(top)[1])[:, None, None]  # float32 has a smaller range
    if m <= n:
        inner = (grams * scale).astype(np.float32)
        square = (w @ inner) @ _turned(w)
    else:
        exact = square_root(grams * scale)
        root = exact.astype(np.float32)
        inner = _turned(w) @ w
        square = _turned(root) @ (inner @ root)
    found: Any = subspan.eigh(square, nonfinite="propagate", errors="info")
    squares = np.maximum(found.values[:, ::-1].astype(np.float64), 0.0)
    u = np.ascontiguousarray(found.vectors[..., : -rank - 1 : -1])
    signs: Any = np.random.default_rng(0).integers(0, 2, (square.shape[-1], _PROBES)) * 2.0 - 1.0
    changed = np.empty(len(w))
    for i, one in enumerate(w):
        if m <= n:
            through = _one(grams, i) @ _across(one, signs, turned=True)
            through = _across(one, through) * _one(scale, i)
        else:
            through = _across(one, _across(one, _one(exact, i) @ signs), turned=True)
            through = _one(exact, i).T @ through
        changed[i] = np.linalg.norm(_across(square[i], signs) - through) / np.sqrt(_PROBES)
    changed += 4 * np.finfo(np.float32).eps * squares[:, 0]
    good = (found.info == 0) & (squares[:, 0] > _LEAST) & (squares[:, 0] < _MOST)
    good &= changed <= _SHARE * squares[:, rank:].sum(axis=-1)
    if m <= n:
        left, right = u, _turned(u) @ w
    else:
        axes = root @ u
        size = np.sqrt(np.where(squares[:, :rank] > 0, squares[:, :rank], 1.0)).astype(np.float32)
        left = w @ axes / size[:, None]
        right = _turned(axes) @ inner / size[..., None]
    return Pairs(left, right, np.sqrt(squares / scale[..., 0])), good


def _across(a: Any, x: Floats, *, turned: bool = False) -> Floats:
    """Return ``a @ x`` or ``a.T @ x`` in float64 for float32 ``a``, by blocks that fit a cache."""
    out = np.zeros((a.shape[1], x.shape[1])) if turned else np.empty((len(a), x.shape[1]))
    for start in range(0, len(a), _ROWS):
        block = a[start : start + _ROWS].astype(np.float64)
        if turned:
            out += block.T @ x[start : start + _ROWS]
        else:
            out[start : start + _ROWS] = block @ x
    return out


def _axes(gram: Floats) -> tuple[Floats, Floats]:
    """Return eigenvalues, falling, and their vectors."""
    found = subspan.eigh(gram)
    return found.values[..., ::-1].copy(), np.ascontiguousarray(found.vectors[..., ::-1])


def _turned(a: Any) -> Any:
    return a.swapaxes(-1, -2)


def _product(a: Floats, s: Floats) -> Floats:
    """Return ``a @ s``; a single row s stands for a diagonal."""
    return a * s if s.shape[-2] == 1 else a @ s


def _applied(s: Floats, a: Floats) -> Floats:
    """Return ``s @ a``; a single row or column s stands for a diagonal."""
    return (s if s.shape[-1] == 1 else _turned(s)) * a if 1 in s.shape[-2:] else s @ a


def _one(x: Any, i: int) -> Any:
    return x[0] if len(x) == 1 else x[i]
