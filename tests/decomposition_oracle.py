"""Slow, obvious references for tensors, in float64."""

from functools import reduce

import numpy as np

LETTERS = "abcdefgh"


def outer(factors, weights=None):
    """Sum of outer products of columns."""
    letters = LETTERS[: len(factors)]
    weights = np.ones(factors[0].shape[1]) if weights is None else weights
    return np.einsum(
        f"z,{','.join(f'{one}z' for one in letters)}->{letters}", weights, *factors, optimize=True
    )


def mttkrp(x, factors, mode):
    """By one sum over all indices."""
    letters = LETTERS[: len(factors)]
    others = [(c, a) for n, (c, a) in enumerate(zip(letters, factors, strict=True)) if n != mode]
    given = ",".join([letters, *(f"{c}z" for c, _ in others)])
    arrays = [np.asarray(a, np.float64) for a in (x, *(a for _, a in others))]
    return np.einsum(f"{given}->{letters[mode]}z", *arrays, optimize=True)


def als_errors(x, factors, sweeps):
    """Relative errors after each sweep of plain alternating least squares, from residuals."""
    factors = [a.copy() for a in factors]
    found = []
    for _ in range(sweeps):
        for n in range(x.ndim):
            others = [a for m, a in enumerate(factors) if m != n]
            gram = reduce(np.multiply, [a.T @ a for a in others])
            factors[n] = np.linalg.solve(gram, mttkrp(x, factors, n).T).T
        found.append(np.linalg.norm(x - outer(factors)) / np.linalg.norm(x))
    return np.array(found)


def planted(rng, shape, rank, dtype=np.float64):
    return [rng.standard_normal((extent, rank)).astype(dtype) for extent in shape]
