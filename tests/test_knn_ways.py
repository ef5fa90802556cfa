"""Other ways than panels of y: few queries in place, and both searches of two sets at once."""

import numpy as np
import pytest
from matrices import same_bits
from neighbor_oracle import (
    FAMILIES,
    FLOATS,
    INTEGERS,
    METRICS,
    agrees,
    families,
    random_rows,
    search,
)
from subspan import _core, knn, knn_both
from subspan.errors import DtypeError, InvalidArgumentError, UnsupportedError

IN_PLACE = ("euclidean", "sqeuclidean", "inner_product")
MOST = 32  # queries

# ---- few queries -------------------------------------------------------------------------------


def panels(x, y, k, metric):
    """Search y packed: with so many more queries that it pays."""
    more = np.concatenate([x, np.repeat(y[:1], MOST, axis=0)])
    found, counts = search(more, y, k, metric)
    assert counts["in_place_rows"] == 0
    return tuple(part[: len(x)] for part in found)


@pytest.mark.parametrize("metric", IN_PLACE)
@pytest.mark.parametrize("dtype", FLOATS + INTEGERS)
@pytest.mark.parametrize("d", [8, 15, 16, 17, 100, 128])
def test_few_queries_find_what_many_do(dtype, metric, d, threads, rng):
    y = random_rows((1003, d), dtype, rng)
    for q in (1, 2, 3, 4, 5, MOST):
        x = random_rows((q, d), dtype, rng)
        threads(1 + q % 3)
        found, counts = search(x, y, 10, metric)
        assert counts["in_place_rows"] == q
        same_bits(*zip(found, panels(x, y, 10, metric), strict=True))
    agrees(x[:3], y, 10, metric)


@pytest.mark.parametrize("metric", IN_PLACE)
@pytest.mark.parametrize("name", FAMILIES)
def test_few_queries_of_rows_that_hurt(name, metric, rng):
    rows = families(rng, 3001)[name].astype(np.float32)
    for x in (rows[-7:], rows[:5] + np.float32(0.5), np.zeros((1, 24), np.float32)):
        found, _ = search(x, rows, 12, metric)
        same_bits(*zip(found, panels(x, rows, 12, metric), strict=True))
        agrees(x, rows, 12, metric)


@pytest.mark.parametrize("metric", IN_PLACE)
@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-20, 1e17, 1e19, 1e25, 1e30, 1e38])
def test_few_huge_and_tiny_queries(metric, scale, rng):
    rows = (scale * rng.uniform(-1, 1, (800, 20))).astype(np.float32)
    agrees(rows[:3], rows, 9, metric)
    ones = rng.standard_normal((800, 20)).astype(np.float32)
    agrees(rows[:3], ones, 9, metric)
    agrees(ones[:3], rows, 9, metric)


def test_a_sum_that_overflows_both_ways_is_not_lost(rng):
    """Products of 1e39 and -1e39: their sum in float32 is NaN, in float64 the greatest of all."""
    y = rng.standard_normal((800, 32)).astype(np.float32)
    x = np.full((1, 32), 1e20, np.float32)
    y[77, ::2], y[77, 1::2] = 1.01e19, -1e19
    found, counts = search(x, y, 3, "inner_product")
    assert counts["in_place_rows"] == 0
    assert found.indices[0, 0] == 77
    agrees(x, y, 3, "inner_product")


@pytest.mark.parametrize("metric", IN_PLACE)
@pytest.mark.parametrize(("mine", "theirs"), [(1.0, 1.0), (1e20, 1e-23), (1e-23, 1e18)])
def test_few_queries_of_rows_that_float32_confuses(metric, mine, theirs, rng):
    """Scores a rounding apart, of squares that float32 may not hold: no proof may be found."""
    y = (theirs * (1 + 1e-6 * rng.standard_normal((3000, 24)))).astype(np.float32)
    agrees((mine * rng.uniform(1, 2, (16, 24))).astype(np.float32), y, 10, metric)


@pytest.mark.parametrize("metric", IN_PLACE)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_few_queries_and_rows_that_are_not_finite(metric, bad, rng):
    x, y = (rng.standard_normal((n, 24)).astype(np.float32) for n in (3, 900))
    x[1, 5] = y[::3, 23] = bad
    agrees(x, y, 11, metric)
    y[20:, 0] = bad  # fewer than k are left
    agrees(x, y, 25, metric)


def test_ties_of_few_queries(rng):
    """Small integers need no proof; equal rows have none, and are searched on."""
    binary = (rng.random((2000, 40)) < 0.5).astype(np.float32)
    for metric in ("sqeuclidean", "inner_product"):
        found, counts = search(binary[:4], binary, 10, metric)
        assert counts["in_place_rows"] == 4
        same_bits(*zip(found, panels(binary[:4], binary, 10, metric), strict=True))
        agrees(binary[:4], binary, 10, metric, exactly=True)
    same = np.repeat(rng.standard_normal((2, 40)).astype(np.float32), 1000, axis=0)
    far = rng.standard_normal((3, 40)).astype(np.float32)
    found, counts = search(far, same, 10)
    assert (counts["in_place_rows"], counts["scanned_rows"]) == (0, 3)
    assert search(same[:3], same, 10)[1]["in_place_rows"] == 3  # at distance zero
    agrees(far, same, 10)


def test_an_offset_costs_inner_products_their_proof_only(rng):
    x, y = (rng.standard_normal((n, 64)).astype(np.float32) for n in (2, 2000))
    y += 30_000
    assert search(x + 30_000, y, 10, "euclidean")[1]["in_place_rows"] == 2
    x -= x.mean(axis=1, keepdims=True)
    found, counts = search(x, y, 10, "inner_product")
    assert (counts["in_place_rows"], counts["scanned_rows"]) == (0, 0)
    same_bits(*zip(found, panels(x, y, 10, "inner_product"), strict=True))


def test_what_is_searched_in_place(rng):
    x, y = (rng.standard_normal((n, 32)).astype(np.float32) for n in (MOST, 2000))

    def rows(*given, **how):
        return search(*given, **how)[1]["in_place_rows"]

    assert rows(x, y, 10) == rows(x, y, 10, precision="fast") == MOST
    assert rows(x.astype(float), y.astype(float), 10) == MOST
    assert rows(np.concatenate([x, x[:1]]), y, 10) == 0
    assert rows(x, y, 10, "cosine") == 0
    assert rows(x, np.asfortranarray(y), 10) == 0
    assert rows(x, y, 60) == 0  # so many candidates among 2000
    assert rows(x[:, :7], y[:, :7], 10) == 0


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_layouts_of_few_queries(dtype, rng):
    x, y = (random_rows((n, 48), dtype, rng) for n in (3, 1500))
    wanted = knn(x, y, k=6)
    wide = np.zeros((1500, 60), dtype)
    wide[:, 7:55] = y
    for x_view, y_view in (
        (np.asfortranarray(x), wide[:, 7:55]),
        (x[::-1].copy()[::-1], y[::-1].copy()[::-1]),
    ):
        same_bits(*zip(knn(x_view, y_view, k=6), wanted, strict=True))
    ids = rng.permutation(1500)[:700]
    mask = np.isin(np.arange(1500), ids)
    for n in (1, 3):
        by_ids = knn(x[:n], y, k=6, ids=ids)
        same_bits(*zip(knn(x[:n], y, k=6, mask=mask), by_ids, strict=True))
        same_bits(
            *zip(knn(x[:n], y, k=6, mask=np.tile(mask, (n, 1))), by_ids, strict=True),
        )
        agrees(x[:n], y, 6, ids=ids)


# ---- both searches at once ---------------------------------------------------------------------


def both(x, y, k, metric="euclidean"):
    """Call the core; returns both results, as one, and the counters."""
    out = [
        array
        for rows in (x, y)
        for array in (np.empty((len(rows), k)), np.empty((len(rows), k), np.int64))
    ]
    return out, _core.knn_both(x, y, *out, metric)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("name", FAMILIES)
def test_one_pass_finds_what_two_searches_do(name, metric, threads, rng):
    x = families(rng, 4100, 8)[name].astype(np.float32)
    y = np.concatenate([families(rng, 4600, 8)[name].astype(np.float32), x[:77]])
    wanted = [*search(x, y, 3, metric)[0], *search(y, x, 3, metric)[0]]
    for n in (1, 3):
        threads(n)
        found, counts = both(x, y, 3, metric)
        assert counts["symmetric"]
        same_bits(*zip(found, wanted, strict=True))


@pytest.mark.parametrize("dtype", FLOATS + INTEGERS)
def test_one_pass_of_every_dtype(dtype, rng):
    x, y = (random_rows((n, 9), dtype, rng) for n in (4097, 4099))
    found, counts = both(x, y[:, ::-1], 2, "sqeuclidean")
    assert counts["symmetric"]
    wanted = [
        *search(x, y[:, ::-1], 2, "sqeuclidean")[0],
        *search(y[:, ::-1], x, 2, "sqeuclidean")[0],
    ]
    same_bits(*zip(found, wanted, strict=True))


@pytest.mark.parametrize(
    ("q", "n", "d"), [(50, 900, 7), (0, 5, 3), (5, 0, 3), (0, 0, 3), (4, 5, 0)]
)
@pytest.mark.parametrize("metric", METRICS)
def test_both_of_few_rows_are_two_searches(metric, q, n, d, rng):
    x, y = (rng.standard_normal((rows, d)).astype(np.float32) for rows in (q, n))
    forth, back = knn_both(x, y, k=4, metric=metric)
    same_bits(*zip(forth, knn(x, y, k=4, metric=metric), strict=True))
    same_bits(*zip(back, knn(y, x, k=4, metric=metric), strict=True))
    wide, _ = knn_both(x, y, k=4, metric=metric, dtype="float64")
    assert wide.distances.dtype == np.float64


def test_both_of_torch(rng):
    torch = pytest.importorskip("torch")
    x, y = (rng.standard_normal((n, 6)).astype(np.float32) for n in (20, 30))
    forth, back = knn_both(torch.from_numpy(x), torch.from_numpy(y), k=2)
    for found, wanted in ((forth, knn(x, y, k=2)), (back, knn(y, x, k=2))):
        assert all(isinstance(part, torch.Tensor) for part in found)
        same_bits(*((a.numpy(), b) for a, b in zip(found, wanted, strict=True)))


X = np.ones((4, 3), np.float32)


@pytest.mark.parametrize(
    ("change", "kind", "text"),
    [
        ({"k": 0}, InvalidArgumentError, "k must be >= 1, got 0"),
        ({"y": None}, DtypeError, "y must be an array"),
        ({"y": X[:, :2]}, InvalidArgumentError, "y must have d = 3 columns like x, got 2"),
        ({"y": X[0]}, InvalidArgumentError, "y must have 2 axes, got 1"),
        ({"y": X.astype(float)}, DtypeError, "y must be float32 like x, got float64"),
        ({"metric": "l1"}, InvalidArgumentError, "metric must be one of"),
        ({"dtype": "float16"}, InvalidArgumentError, "dtype must be one of"),
    ],
)
def test_refusals_of_both(change, kind, text):
    with pytest.raises(kind, match=rf"\[knn_both\] {text}"):
        knn_both(X, **{"y": X, "k": 1, **change})


def test_refusals_of_the_core_for_both():
    good = [
        np.zeros((4, 2)),
        np.zeros((4, 2), np.int64),
        np.zeros((5, 2)),
        np.zeros((5, 2), np.int64),
    ]
    y = np.ones((5, 3), np.float32)
    for at, name in enumerate(("distances", "indices", "back_distances", "back_indices")):
        bad = list(good)
        bad[at] = bad[at][:3]
        with pytest.raises(InvalidArgumentError, match=rf"\[knn_both\] {name} must be C-ordered"):
            _core.knn_both(X, y, *bad, "euclidean")
    with pytest.raises(InvalidArgumentError, match=r"\[knn_both\] metric must be one of"):
        _core.knn_both(X, y, *good, "")


def test_both_refuses_cuda_arrays():
    from test_interop import CUDA, Producer

    x = Producer(X, device=CUDA)
    with pytest.raises(UnsupportedError, match=r"\[knn_both\] has no CUDA kernel yet"):
        knn_both(x, x, k=1)
