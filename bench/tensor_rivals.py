"""The subspace power method as it was published: one start at a time, numpy products.

Kileel and Pereira, arXiv:1912.04007, algorithms 1 and 2, in the symmetric basis: eigenvectors of a
small flattening, expanded to d^h rows; one start after the other to a step of 1e-14; one component
taken out by a reflection at a time. Products with one vector are bound by memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from subspan import _multisets

Array = np.ndarray[Any, Any]
GOOD, STEPS, TRIES, LIMIT = 1e-2, 5000, 3, 1e-14


def published_spm(t: Array, seed: int = 0) -> tuple[Array, Array]:
    """Weights and unit columns of a full symmetric tensor of order 3 to 6."""
    order, d = t.ndim, t.shape[0]
    h = (order + 1) // 2
    low = order - h
    roots = [np.sqrt(_multisets.multiplicities(d, k)) for k in (h, low)]
    rows, columns = _multisets.places(d, h), _multisets.places(d, low)
    matrix = t.reshape(d**h, d**low)[np.ix_(rows, columns)] * roots[0][:, None] * roots[1]
    u = None
    if order % 2 == 0:
        values, v = np.linalg.eigh(matrix)
    else:
        v, values, right = np.linalg.svd(matrix, full_matrices=False)
        u = expanded(right.T, d, low)
    kept = np.abs(values) > 1e-4 * np.square(values).sum() / np.abs(values).sum()
    c = np.diag(1 / values[kept])
    v = expanded(v[:, kept], d, h)
    u = None if u is None else np.ascontiguousarray(u[:, kept])
    rng = np.random.default_rng(seed)
    found, weights = [], []
    for _ in range(len(c)):
        x = best_start(v, d, h, rng)
        alpha_v = v.T @ power(x, h)
        alpha_u = alpha_v if u is None else u.T @ power(x, low)
        q_u = c @ alpha_v
        q_v = q_u if u is None else c.T @ alpha_u
        found.append(x)
        weights.append(1 / (alpha_u @ q_u))
        # In place, as a product of one column and one row: what is left shrinks by a view.
        right, left = reflector(q_v), reflector(q_u)
        c = (c - np.outer(c @ right, 2 * right))[:, :-1]
        c = (c - np.outer(left, 2 * (left @ c)))[:-1]
        v -= np.outer(v @ right, 2 * right)
        v = v[:, :-1]
        if u is not None:
            u -= np.outer(u @ left, 2 * left)
            u = u[:, :-1]
    return np.array(weights), np.column_stack(found)


def best_start(v: Array, d: int, h: int, rng: np.random.Generator) -> Array:
    """The end of the first start with f near 1, or of the best of three."""
    # Rows (i2..ih, i1), so that a product with x^(h-1) reads v once, in order.
    wide = np.ascontiguousarray(v).reshape(d ** (h - 1), -1)
    best, most = np.zeros(d), -1.0
    for _ in range(TRIES):
        x, f = one_start(wide, d, h, rng)
        if f > most:
            best, most = x, f
        if 1 - most < GOOD:
            break
    return best


def one_start(wide: Array, d: int, h: int, rng: np.random.Generator) -> tuple[Array, float]:
    scale = np.sqrt((h - 1) / h)
    x = rng.standard_normal(d)
    x /= np.linalg.norm(x)
    f = 0.0
    for _ in range(STEPS):
        w = (power(x, h - 1) @ wide).reshape(d, -1)
        y = w @ (x @ w)
        f = min(float(y @ x), 1.0)
        if f < 1e-2 / np.sqrt(d):
            x = rng.standard_normal(d)
            x /= np.linalg.norm(x)
            continue
        shift = np.sqrt(2 * f * (1 - f)) if f > 2 / 3 else 1 - f / 2
        new = y + shift * scale * x
        new /= np.linalg.norm(new)
        step = np.linalg.norm(new - x)
        x = new
        if step < LIMIT:
            break
    return x, f


def reflector(q: Array) -> Array:
    """Unit w such that (1 - 2 w w^T) q is along the last axis."""
    w = q.copy()
    w[-1] += np.copysign(np.linalg.norm(q), q[-1])
    return w / np.linalg.norm(w)


def expanded(v: Array, d: int, h: int) -> Array:
    """Rows of unique entries, in an orthonormal basis, as rows of the full tensor."""
    index = np.sort(np.indices((d,) * h).reshape(h, -1).T, axis=1)
    plain = v / np.sqrt(_multisets.multiplicities(d, h))[:, None]
    return plain[_multisets.positions(index, d)]


def power(x: Array, k: int) -> Array:
    out = x
    for _ in range(k - 1):
        out = np.outer(out, x).ravel()
    return out


def batched_sshopm(a: Array, starts: Array, steps: int = 300) -> tuple[Array, Array]:
    """SS-HOPM of many tensors (b, d, d, d, d) from many starts (s, d) at once, in numpy.

    The shift is the adaptive one of Kolda and Mayo (2014), from numpy's batched eigvalsh.
    """
    b, d = len(a), a.shape[1]
    x = np.broadcast_to(starts / np.linalg.norm(starts, axis=1, keepdims=True), (b, *starts.shape))
    flat = a.reshape(b, d * d, d * d)
    size = np.linalg.norm(flat, axis=(1, 2))[:, None]
    value = np.zeros(x.shape[:2])
    for _ in range(steps):
        pairs = (x[..., :, None] * x[..., None, :]).reshape(b, -1, d * d)
        hessian = (pairs @ flat).reshape(*x.shape[:2], d, d)
        y = (hessian @ x[..., None])[..., 0]
        value = (x * y).sum(axis=-1)
        residual = np.linalg.norm(y - value[..., None] * x, axis=-1)
        if (residual <= 1e-13 * size).all():
            break
        least = np.linalg.eigvalsh(hessian)[..., 0]
        shift = np.maximum(0, 1e-6 - 3 * least)
        x = y + shift[..., None] * x
        x = x / np.linalg.norm(x, axis=-1, keepdims=True)
    return value, x
