"""Neighbours by brute force in float64: what `knn` and `radius_neighbors` are held against."""

import numpy as np
from subspan import KNN, _core, knn

METRICS = ("euclidean", "sqeuclidean", "inner_product", "cosine")
FLOATS = ("float16", "float32", "float64")
INTEGERS = ("int8", "uint8")


def distances_of(x, y, metric):
    """All distances (q, n) in float64; of inner products the negative; inf: no neighbours."""
    a, b = (rows.astype(np.float64) for rows in (x, y))
    bad_x, bad_y = (~np.isfinite(rows).all(axis=1) for rows in (a, b))
    a[bad_x], b[bad_y] = 0, 0
    if metric == "inner_product":
        out = -(a @ b.T)
    elif metric == "cosine":
        norms = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1)
        ratio = np.divide(a @ b.T, norms, out=np.zeros_like(norms), where=norms > 0)
        out = np.maximum(1 - ratio, 0)
    else:
        out = np.stack([np.square(b - row).sum(axis=1) for row in a] or [np.zeros(len(b))])
        out = out[: len(a)]
        if metric == "euclidean":
            out = np.sqrt(out)
    out[bad_x] = np.inf
    out[:, bad_y] = np.inf
    return out


def restricted(distances, *, mask=None, ids=None, exclude_self=False):
    """Distances with inf where a pair does not count."""
    out = distances.copy()
    n = out.shape[1]
    if mask is not None:
        out[~np.broadcast_to(mask, out.shape)] = np.inf
    if ids is not None:
        out[:, np.setdiff1d(np.arange(n), ids)] = np.inf
    if exclude_self:
        np.fill_diagonal(out, np.inf)
    return out


def nearest(distances, k):
    """Distances and indices of the k nearest by a stable sort, padded."""
    indices = np.argsort(distances, axis=1, kind="stable")[:, :k]
    values = np.take_along_axis(distances, indices, axis=1)
    missing = ((0, 0), (0, k - indices.shape[1]))
    values = np.pad(values, missing, constant_values=np.inf)
    indices = np.pad(indices, missing, constant_values=-1)
    return values, np.where(np.isinf(values), -1, indices)


def slack_of(x, y, metric):
    """How far apart two right computations of a distance in float64 may be: relative, absolute."""
    if metric in ("euclidean", "sqeuclidean"):
        return 1e-13, 0.0
    if metric == "cosine":
        return 0.0, 1e-13
    norms = [np.linalg.norm(rows.astype(np.float64), axis=1) for rows in (x, y)]
    largest = [norm[np.isfinite(norm)].max(initial=0) for norm in norms]
    return 0.0, 1e-13 * largest[0] * largest[1]


def check(result, distances, metric, slack):
    """Hold a result with distances in float64 against all distances, `restricted`.

    Where rounding leaves the order of two rows open, either may be first; what `nearest` says of
    the distances must hold all the same.
    """
    rtol, atol = slack
    got = -result.distances if metric == "inner_product" else result.distances
    values, indices = nearest(distances, got.shape[1])
    assert got.dtype == np.float64
    assert result.indices.dtype == np.int64
    there = indices >= 0
    np.testing.assert_array_equal(result.indices >= 0, there)
    assert (got[~there] == np.inf).all()
    np.testing.assert_allclose(got[there], values[there], rtol=rtol, atol=atol)
    if distances.shape[1]:
        own = np.take_along_axis(distances, np.maximum(result.indices, 0), axis=1)
        np.testing.assert_allclose(own[there], got[there], rtol=rtol, atol=atol)
    before, after = got[:, :-1], got[:, 1:]
    by_index = result.indices[:, :-1] < result.indices[:, 1:]
    # Squares that differ may have one root: their order is that of the squares.
    ascending = (before < after) | ((before == after) & (by_index | (metric == "euclidean")))
    assert (ascending | ~there[:, 1:]).all()
    assert all(len({*row}) == len(row) for row in (r[r >= 0] for r in result.indices))


def check_exactly(result, distances, metric):
    """Hold a result against distances that float64 holds without rounding: all ties are known."""
    values, indices = nearest(distances, result.indices.shape[1])
    np.testing.assert_array_equal(result.indices, indices)
    signed = -result.distances if metric == "inner_product" else result.distances
    np.testing.assert_array_equal(signed, values)


def random_rows(shape, dtype, rng):
    if np.dtype(dtype).kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)


def agrees(x, y, k, metric="euclidean", *, exactly=False, mask=None, ids=None, exclude=False):
    """`knn` gives what brute force does; with y = None, of x itself."""
    to = x if y is None else y
    distances = restricted(distances_of(x, to, metric), mask=mask, ids=ids, exclude_self=exclude)
    how = {"k": k, "metric": metric, "mask": mask, "ids": ids, "dtype": "float64"}
    result = knn(x, y, **how, exclude_self=exclude if y is None else None)
    if exactly:
        check_exactly(result, distances, metric)
    else:
        check(result, distances, metric, slack_of(x, to, metric))
    return result


def search(x, y, k, metric="euclidean", *, exclude=False, precision="exact"):
    """Call the core; returns the result and the counters by name."""
    distances = np.empty((len(x), k))
    indices = np.empty((len(x), k), np.int64)
    counts = _core.knn(x, y, None, distances, indices, metric, exclude, precision)
    return KNN(distances, indices), counts


def families(rng, n, d=24):
    """Rows of many kinds, by name."""
    normal = rng.standard_normal((n, d))
    unit = normal / np.linalg.norm(normal, axis=1, keepdims=True)
    return {
        "normal": normal,
        "offset": normal + 1000,
        "clusters": normal + 1000 * rng.choice([-1, 1], (n, 1)),
        "duplicates": normal[rng.integers(0, 40, n)],
        "near duplicates": normal[rng.integers(0, 40, n)] + 1e-4 * rng.standard_normal((n, d)),
        "shell": unit * (1 + 1e-6 * rng.standard_normal((n, 1))),
        "low rank": rng.standard_normal((n, 2)) @ rng.standard_normal((2, d)),
        "scales": normal * 10.0 ** rng.uniform(-12, 12, (n, 1)),
        "binary": (normal > 0.5).astype(float),
        "not finite": np.where(rng.random((n, d)) < 0.01, np.nan, normal),
        "zeros": normal * (rng.random((n, 1)) < 0.7),
    }


FAMILIES = tuple(families(np.random.default_rng(0), 40))
