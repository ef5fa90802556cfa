"""knn of data that hurt: cancellation, ties, scales, NaN; no neighbour may be wrong."""

import numpy as np
import pytest
from neighbor_oracle import (
    FLOATS,
    INTEGERS,
    METRICS,
    agrees,
    check,
    distances_of,
    random_rows,
    restricted,
    search,
)
from subspan import knn


@pytest.mark.parametrize("offset", [0, 100, 1000])
def test_an_offset_does_no_harm(offset, rng):
    x = (rng.standard_normal((4000, 64)) + offset).astype(np.float32)
    distances = restricted(distances_of(x[:800], x, "euclidean"))
    got = knn(x[:800], x, k=10)
    check(knn(x[:800], x, k=10, dtype="float64"), distances, "euclidean", (1e-13, 0))
    wanted = np.argsort(distances, axis=1, kind="stable")[:, :10]
    np.testing.assert_array_equal(got.indices, wanted)
    exact = np.take_along_axis(distances, wanted, axis=1)
    np.testing.assert_allclose(got.distances, exact, rtol=1e-5)
    np.testing.assert_array_equal(got.distances[:, 0], 0)


@pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean"])
def test_far_clusters(metric, rng):
    x = rng.standard_normal((3000, 64))
    x[::2] += 1000
    x[1::2] -= 1000
    x = x.astype(np.float32)
    agrees(x, None, 10, metric, exclude=True)
    assert search(x, x, 10, metric, exclude=True)[1]["difference_tiles"] > 0


def test_near_duplicates(rng):
    """Unit vectors 1e-2 apart, and pairs 1e-4 apart, keep their digits."""
    x = rng.standard_normal((500, 100))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    step = rng.standard_normal((500, 100))
    step /= np.linalg.norm(step, axis=1, keepdims=True)
    for size in (1e-2, 1e-4):
        both = np.concatenate([x, x + size * step]).astype(np.float32)
        result = agrees(both, None, 3, "sqeuclidean", exclude=True)
        np.testing.assert_array_equal(result.indices[:500, 0], np.arange(500, 1000))
        np.testing.assert_allclose(result.distances[:, 0], size**2, rtol=1e-2)


def test_identical_rows_come_by_index(rng):
    row = rng.standard_normal(64).astype(np.float32)
    x = np.broadcast_to(row, (3000, 64))
    for k in (5, 120, 1000):
        distances, indices = knn(x[:600], x, k=k)
        np.testing.assert_array_equal(indices, np.broadcast_to(np.arange(k), (600, k)))
        assert not distances.any()
        np.testing.assert_array_equal(
            knn(x[:600], x, k=k, metric="cosine").indices, np.broadcast_to(np.arange(k), (600, k))
        )


@pytest.mark.parametrize("metric", METRICS)
def test_repeated_rows_come_by_index(metric, rng):
    """60 copies of 50 rows: the nearest are tied within a distance that is not an integer."""
    base = rng.standard_normal((50, 24)).astype(np.float32)
    x = base[rng.permutation(3000) % 50]
    result = agrees(x, None, 10, metric, exclude=True)
    if metric in ("euclidean", "sqeuclidean"):
        assert not result.distances.any()
    y = x[:2000]
    agrees(rng.standard_normal((200, 24)).astype(np.float32), y, 100, metric)


def test_rows_at_one_distance_are_searched_again_and_at_last_scanned(rng):
    """Rows a permutation apart: all as far from a constant row, and no bound tells them apart."""
    row = rng.standard_normal(48).astype(np.float32)
    row[:16] = np.abs(row[:16]) + 0.5
    y = np.stack([np.concatenate([rng.permutation(row[:16]), row[16:]]) for _ in range(2000)])
    x = np.concatenate([np.full((5, 48), 0.1, np.float32), y[:20]])
    result, counts = search(x, y, 10, "sqeuclidean")
    assert counts["repeated_rows"] > 0
    assert counts["scanned_rows"] >= 5
    check(result, distances_of(x, y, "sqeuclidean"), "sqeuclidean", (1e-13, 0))


def test_zeros_have_one_sign(rng):
    """However a row was searched: here every other way is given up."""
    row = rng.standard_normal(9).astype(np.float32)
    x = np.concatenate([np.broadcast_to(row, (300, 9)), row + rng.standard_normal((200, 9))])
    for metric in ("sqeuclidean", "euclidean", "cosine"):
        result, _ = search(x.astype(np.float32), x.astype(np.float32), 400, metric)
        assert not np.signbit(result.distances).any()
    both = np.concatenate([x.astype(np.float32)[:300], -x.astype(np.float32)[:5]])
    both[:, 1:] = 0
    both[::2] = both[::2, ::-1]
    assert not np.signbit(search(both, both, 20, "cosine")[0].distances).any()


def test_rows_in_doubt_are_searched_again(rng):
    """A row whose next candidates lie within the error of products, but not of differences."""
    y = rng.standard_normal((3000, 96)).astype(np.float32)
    x = y[:300] * np.float32(0.5)
    shell = y / np.linalg.norm(y, axis=1, keepdims=True)
    shell = (shell * (1 + 1e-6 * rng.standard_normal((3000, 1)))).astype(np.float32)
    x = np.concatenate([x, np.zeros((40, 96), np.float32)])
    result, counts = search(x, shell, 10)
    assert counts["repeated_rows"] > 0
    check(result, distances_of(x, shell, "euclidean"), "euclidean", (1e-13, 0))


@pytest.mark.parametrize("metric", METRICS)
def test_queries_in_the_middle_of_a_sphere(metric, rng):
    """All rows of y are unit vectors and x is near the origin: every distance is nearly 1."""
    y = rng.standard_normal((4000, 32))
    y /= np.linalg.norm(y, axis=1, keepdims=True)
    x = 1e-5 * rng.standard_normal((60, 32))
    agrees(x.astype(np.float32), y.astype(np.float32), 20, metric)


@pytest.mark.parametrize("metric", ["sqeuclidean", "inner_product"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_binary_and_one_hot_rows(metric, dtype, rng):
    binary = (rng.random((1500, 80)) < 0.3).astype(dtype)
    hot = np.eye(40, dtype=dtype)[rng.integers(0, 40, 1500)]
    for x in (binary, hot, 2 * binary - 1):
        for k in (1, 10, 100):
            agrees(x[:300], x, k, metric, exactly=True)
        agrees(x[:500], None, 10, metric, exactly=True, exclude=True)


def test_euclidean_ties_are_those_of_the_squares(rng):
    x = rng.integers(0, 3, (800, 30)).astype(np.float32)
    result = knn(x, k=20, dtype="float64")
    squared = knn(x, k=20, metric="sqeuclidean", dtype="float64")
    np.testing.assert_array_equal(result.indices, squared.indices)
    np.testing.assert_array_equal(result.distances, np.sqrt(squared.distances))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-18, 1e17, 1e19, 1e25, 1e30, 1e38])
def test_huge_and_tiny_float32(metric, scale, rng):
    x = rng.uniform(-1, 1, (400, 17)).astype(np.float32) * np.float32(scale)
    y = rng.uniform(-1, 1, (700, 17)).astype(np.float32) * np.float32(scale)
    agrees(x, y, 10, metric)
    agrees(y, None, 10, metric, exclude=True)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("scale", [1e-150, 1e-100, 1e100, 1e150])
def test_huge_and_tiny_float64(metric, scale, rng):
    y = rng.uniform(-1, 1, (700, 17)) * scale
    agrees(y, None, 10, metric, exclude=True)


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")  # of numpy
def test_squares_that_overflow_float64(rng):
    """A distance that float64 cannot hold is none; one that it can is right, whatever the norms."""
    y = 1e200 * (1 + np.arange(50.0))[:, None] * np.ones((1, 4))
    y[30:] = y[:20] + 1e140 * rng.standard_normal((20, 1))
    agrees(y, None, 3, "sqeuclidean", exclude=True)
    copies = y[rng.integers(0, 3, 100)]
    result = agrees(copies, None, 20, "sqeuclidean", exclude=True)
    assert not result.distances.any()


def test_mixed_scales(rng):
    """Rows of 30 orders of magnitude together."""
    scales = 10.0 ** rng.uniform(-15, 15, (900, 1))
    x = (rng.standard_normal((900, 20)) * scales).astype(np.float32)
    for metric in METRICS:
        agrees(x, None, 10, metric, exclude=True)


def test_float32_distances_may_overflow(rng):
    x = (1e25 * rng.standard_normal((60, 5))).astype(np.float32)
    result = knn(x, k=4, metric="sqeuclidean")
    wide = knn(x, k=4, metric="sqeuclidean", dtype="float64")
    assert np.isinf(result.distances).all()
    assert np.isfinite(wide.distances).all()
    np.testing.assert_array_equal(result.indices, wide.indices)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite(metric, dtype, bad, rng):
    x = rng.standard_normal((150, 20)).astype(dtype)
    y = rng.standard_normal((400, 20)).astype(dtype)
    y[::3, 7] = bad
    x[5::11, 19] = bad
    for k in (1, 20, 300):
        result = agrees(x, y, k, metric)
        assert (result.indices[5::11] == -1).all()
        assert not np.isin(result.indices, np.arange(0, 400, 3)).any()
    agrees(y, None, 20, metric, exclude=True)
    y[:] = bad
    result = agrees(x, y, 2, metric)
    assert (result.indices == -1).all()


@pytest.mark.parametrize("dtype", FLOATS + INTEGERS)
def test_zero_rows_under_cosine(dtype, rng):
    x = random_rows((120, 6), dtype, rng)
    y = random_rows((500, 6), dtype, rng)
    x[::5] = 0
    y[1::9] = 0
    for k in (1, 10, 60, 400, 505):
        result = agrees(x, y, k, "cosine")
        np.testing.assert_array_equal(result.indices[0, : min(k, 500)], np.arange(min(k, 500)))
        assert (result.distances[0, : min(k, 500)] == 1).all()
    agrees(y, None, 30, "cosine", exclude=True)
    mask = rng.random((120, 500)) < 0.1
    agrees(x, y, 30, "cosine", mask=mask)
    agrees(x, y, 30, "cosine", mask=mask[0])


def test_cosine_far_from_the_origin(rng):
    """Directions that nearly agree: 1 - cos is lost in float32."""
    x = (rng.standard_normal((1500, 32)) + 300).astype(np.float32)
    agrees(x, None, 10, "cosine", exclude=True)
