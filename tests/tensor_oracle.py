"""Slow, plain references for symmetric tensors, and tensors with known components."""

from itertools import combinations_with_replacement, permutations

import numpy as np

LETTERS = "ijklmn"


def power_sum(a, weights, order):
    """Sum of weights[r] a[:, r]^(order), in full."""
    out = LETTERS[:order]
    inputs = ",".join(f"{c}r" for c in out)
    return np.einsum(f"r,{inputs}->{out}", weights, *[a] * order, optimize=True)


def symmetric_normal(d, order, rng):
    """Gaussian entries, averaged over all permutations one by one."""
    a = rng.standard_normal((d,) * order)
    axes = list(permutations(range(order)))
    return exactly_symmetric(sum(a.transpose(p) for p in axes) / len(axes))


def exactly_symmetric(a):
    """Each entry by that of its sorted index."""
    out = np.empty_like(a)
    for index in np.ndindex(a.shape):
        out[index] = a[tuple(sorted(index))]
    return out


def packed(a):
    """Entries of sorted indices in lexicographic order."""
    places = combinations_with_replacement(range(a.shape[0]), a.ndim)
    return np.array([a[index] for index in places])


def contracted(a, x, times):
    for _ in range(times):
        a = a @ x
    return a


def residual(a, value, x):
    return np.linalg.norm(contracted(a, x, a.ndim - 1) - value * x)


def kind(a, value, x):
    """1, -1 or 0 by the curvature of a x^m on the sphere at an eigenvector."""
    d = len(x)
    tangent = np.linalg.svd(x[None, :])[2][1:]
    hessian = (a.ndim - 1) * contracted(a, x, a.ndim - 2) - value * np.eye(d)
    curvatures = np.linalg.eigvalsh(tangent @ hessian @ tangent.T)
    return int((curvatures < 0).all()) - int((curvatures > 0).all() and d > 1)


def unit_columns(d, r, rng):
    a = rng.standard_normal((d, r))
    return a / np.linalg.norm(a, axis=0)


def matched(a, b):
    """1 - |cos| of the best one-to-one assignment of columns, the worst of them."""
    from scipy.optimize import linear_sum_assignment

    cosines = np.abs(a.T @ b)
    rows, columns = linear_sum_assignment(-cosines)
    assert len(rows) == a.shape[1] == b.shape[1]
    return 1 - cosines[rows, columns].min()
