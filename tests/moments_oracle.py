"""Moments against numpy's two-pass formula in float64, in every way that rows may come.

Errors are relative to sqrt(m2_ii m2_jj). EXACT holds for float64 products. float32 products are
summed over at most 256 rows, so their error is below 256 * 2^-24 = 1.5e-5 whatever the number of
rows and the mean (LIMIT); rounding goes both ways, which leaves less than PRODUCTS. Values on a
coarse grid, as half precision gives them, may round one way only and come near the limit.
"""

import itertools

import numpy as np
from subspan import Moments

EXACT, PRODUCTS, LIMIT = 1e-13, 1e-6, 256 * 2.0**-24


def oracle(x, w=None):
    """Mean and m2 in two passes."""
    x = np.asarray(x).astype(np.float64)
    w = np.ones(len(x)) if w is None else np.asarray(w, np.float64)
    x, w = x[w > 0], w[w > 0]
    mean = w @ x / w.sum()
    centred = x - mean
    mean = mean + w @ centred / w.sum()  # the second pass, for the mean's last digits
    centred = x - mean
    return mean, (centred * w[:, None]).T @ centred


def error_of(m2, wanted):
    size = np.sqrt(np.diag(wanted))
    size = np.where(size > 0, size, 1.0)
    return float(np.abs((m2 - wanted) / np.outer(size, size)).max())


def check(moments, x, w=None, tol=EXACT):
    mean, m2 = oracle(x, w)
    live = slice(None) if w is None else np.asarray(w) > 0
    spread = np.sqrt(np.diag(m2) / max(moments.weight_sum, 1e-300))
    x = np.asarray(x).astype(np.float64)[live]
    size = np.abs(x).max(axis=0)
    assert (np.abs(moments.mean - mean) <= tol * spread + 4e-16 * size).all()
    assert error_of(moments.m2, m2) <= tol
    np.testing.assert_array_equal(moments.m2, moments.m2.T)
    assert moments.count == len(x)


def bits(moments):
    return {name: (a.dtype.str, a.shape, a.tobytes()) for name, a in moments.state_dict().items()}


def in_chunks(x, sizes, w=None, **options):
    moments = Moments(**options)
    start = 0
    for size in itertools.cycle(sizes):
        if start >= len(x):
            break
        part = slice(start, start + size)
        moments.update(x[part], None if w is None else w[part])
        start += size
    return moments


def mixed(n, d, rng, offset=0.0):
    """Correlated columns of standard deviations from 1 to 0.05."""
    q = np.linalg.qr(rng.standard_normal((d, d)))[0]
    return (rng.standard_normal((n, d)) * np.geomspace(1, 0.05, d)) @ q + offset
