"""knn: against brute force in float64; ties, cancellation, NaN, masks, layouts, refusals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from matrices import same_bits
from neighbor_oracle import METRICS, check, check_exactly, distances_of, restricted, slack_of
from subspan import KNN, _core, knn
from subspan.errors import DtypeError, InvalidArgumentError, UnsupportedError

SIZES = (1, 2, 15, 16, 17, 31, 33, 63, 65, 127, 129, 1000)
COUNTS = (1, 2, 9, 10, 16, 99, 100, 128)
FLOATS = ("float16", "float32", "float64")
INTEGERS = ("int8", "uint8")
LEVELS = ("baseline", "v3", "v4")


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


# ---- what is found -----------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("d", SIZES)
def test_sizes_around_tiles_and_vectors(d, metric, rng):
    for i, n in enumerate(SIZES):
        q = SIZES[(5 * i + 3) % len(SIZES)] if d < 1000 or n < 1000 else 33
        x = rng.standard_normal((q, d)).astype(np.float32)
        y = rng.standard_normal((n, d)).astype(np.float32)
        distances = distances_of(x, y, metric)
        slack = slack_of(x, y, metric)
        for k in sorted({*COUNTS, n, n + 3}):
            check(knn(x, y, k=k, metric=metric, dtype="float64"), distances, metric, slack)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", FLOATS + INTEGERS)
@pytest.mark.parametrize("d", [5, 64, 300])
def test_dtypes(dtype, metric, d, rng):
    x = random_rows((70, d), dtype, rng)
    y = random_rows((333, d), dtype, rng)
    for k in (1, 12, 100, 340):
        agrees(x, y, k, metric)
    agrees(y, None, 12, metric, exclude=True)


@pytest.mark.parametrize("metric", ["sqeuclidean", "inner_product"])
@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("d", [64, 257, 258, 300])
def test_integers_at_their_limits_are_exact(dtype, metric, d, rng):
    limits = np.iinfo(dtype)
    ends = np.array([limits.min, limits.min + 1, limits.max - 1, limits.max], dtype)
    x, y = rng.choice(ends, (40, d)), rng.choice(ends, (500, d))
    y[::7] = y[3]
    for k in (1, 20, 500):
        agrees(x, y, k, metric, exactly=True)


@pytest.mark.parametrize("metric", METRICS)
def test_bfloat16(metric, rng):
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(rng.standard_normal((300, 40)).astype(np.float32)).bfloat16()
    result = knn(x, k=9, metric=metric)
    assert result.distances.dtype == torch.float32
    result = KNN(*(part.numpy() for part in knn(x, k=9, metric=metric, dtype="float64")))
    wide = x.float().numpy()
    distances = restricted(distances_of(wide, wide, metric), exclude_self=True)
    check(result, distances, metric, slack_of(wide, wide, metric))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_distances_are_rounded_once(dtype, metric, rng):
    x = rng.standard_normal((90, 20)).astype(dtype)
    usual, wide = knn(x, k=7, metric=metric), knn(x, k=7, metric=metric, dtype="float64")
    narrow = knn(x, k=7, metric=metric, dtype="float32")
    rounded = wide.distances.astype(np.float32)
    same_bits((usual.distances, wide.distances if dtype == "float64" else rounded))
    same_bits((narrow.distances, rounded), (narrow.indices, wide.indices))


@pytest.mark.parametrize("metric", METRICS)
def test_the_fast_way_measures_alike(metric, rng):
    x = rng.standard_normal((500, 30)).astype(np.float32)
    fast = knn(x, k=8, metric=metric, precision="fast")
    same_bits(*zip(fast, knn(x, k=8, metric=metric), strict=True))
    assert search(x, x, 8, metric, precision="fast")[1]["scanned_rows"] == 0


def families(rng):
    """Rows of many kinds, so many that the search of x against itself uses symmetry."""
    n, d = 8200, 24
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


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", families(np.random.default_rng(0)))
def test_all_ways_of_searching_find_the_same(name, metric, threads, rng):
    """By symmetry or not, by bfloat16 first or not, with any number of threads."""
    x = families(rng)[name].astype(np.float32)
    plain, counts = search(x, x.copy(), 12, metric, exclude=True)
    assert not counts["symmetric"]
    distances = restricted(distances_of(x[:100], x, metric), exclude_self=True)
    check(KNN(*(part[:100] for part in plain)), distances, metric, slack_of(x, x, metric))
    for precision, n in (("exact", 1), ("exact", 3), ("certified", 2)):
        threads(n)
        found, counts = search(x, x, 12, metric, exclude=True, precision=precision)
        assert counts["symmetric"] or metric == "inner_product"
        same_bits(*zip(found, plain, strict=True))
    part = [search(x[:300], x, 1, metric, precision=how)[0] for how in ("exact", "certified")]
    same_bits(*zip(*part, strict=True))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_rows(data):
    """Small integers as floats: every distance is exact, and ties abound."""
    dtype = data.draw(st.sampled_from(FLOATS + INTEGERS))
    d = data.draw(st.integers(0, 20))
    shapes = [(data.draw(st.integers(0, 40)), d) for _ in range(2)]
    top = data.draw(st.sampled_from([1, 3, 100]))
    x, y = (data.draw(hnp.arrays(dtype, shape, elements=st.integers(0, top))) for shape in shapes)
    metric = data.draw(st.sampled_from(["sqeuclidean", "inner_product"]))
    mask = data.draw(st.none() | hnp.arrays(bool, (len(x), len(y))))
    agrees(x, y, data.draw(st.integers(1, 50)), metric, exactly=True, mask=mask)


# ---- data that hurt ----------------------------------------------------------------------------


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


# ---- what may be a neighbour -------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
def test_exclude_self_is_by_index(metric, rng):
    x = np.repeat(rng.standard_normal((200, 12)).astype(np.float32), 2, axis=0)
    result = agrees(x, None, 3, metric, exclude=True)
    assert not (result.indices == np.arange(400)[:, None]).any()
    if metric == "euclidean":
        np.testing.assert_array_equal(result.indices[:, 0], np.arange(400) ^ 1)
        same_bits(*zip(knn(x, k=3, dtype="float64"), result, strict=True))
    agrees(x, None, 3, metric, exclude=False)
    same_bits(
        *zip(
            knn(x, k=3, metric=metric, exclude_self=False),
            knn(x, x, k=3, metric=metric),
            strict=True,
        )
    )


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_masks(metric, share, rng):
    x = rng.standard_normal((140, 10)).astype(np.float32)
    y = rng.standard_normal((500, 10)).astype(np.float32)
    pairs = rng.random((140, 500)) < share
    for mask in (pairs, pairs[0], np.asfortranarray(pairs), pairs[:, ::-1], pairs[::-1]):
        for k in (1, 8, 501):
            agrees(x, y, k, metric, mask=mask)
    own = rng.random((500, 500)) < share
    agrees(y, None, 9, metric, mask=own, exclude=True)
    agrees(y, None, 9, metric, mask=own[2], exclude=True)
    agrees(y, None, 9, metric, mask=own, exclude=False)


def test_a_mask_of_bytes_may_be_shared_by_all_rows(rng):
    x = rng.standard_normal((50, 4)).astype(np.float32)
    mask = rng.random(50) < 0.5
    everywhere = np.broadcast_to(mask, (50, 50))
    same_bits(*zip(knn(x, k=3, mask=mask), knn(x, k=3, mask=everywhere), strict=True))


@pytest.mark.parametrize("metric", METRICS)
def test_ids(metric, rng):
    x = rng.standard_normal((60, 10)).astype(np.float32)
    y = rng.standard_normal((400, 10)).astype(np.float32)
    ids = rng.permutation(400)[:37]
    for chosen in (ids, np.concatenate([ids, ids[::-1]]), ids[::2], ids[:0], np.arange(400)):
        agrees(x, y, 9, metric, ids=chosen)
    mask = rng.random((60, 400)) < 0.5
    agrees(x, y, 9, metric, ids=ids, mask=mask[0])
    agrees(x, y, 9, metric, ids=ids, mask=mask)
    agrees(y, None, 9, metric, ids=ids, exclude=True)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("q", "n", "d"), [(0, 5, 3), (4, 0, 3), (0, 0, 3), (4, 5, 0), (0, 0, 0)])
def test_empty(metric, q, n, d):
    for library in (np.asarray, pytest.importorskip("torch").from_numpy):
        x, y = library(np.ones((q, d), np.float32)), library(np.ones((n, d), np.float32))
        distances, indices = (np.asarray(part) for part in knn(x, y, k=3, metric=metric))
        assert distances.shape == indices.shape == (q, 3)
        assert (distances.dtype, indices.dtype) == (np.float32, np.int64)
        if d == 0 and q:
            assert indices.tolist() == [[0, 1, 2]] * q
            assert (distances == (1 if metric == "cosine" else 0)).all()
        elif n == 0:
            assert (indices == -1).all()
            assert (distances == (-np.inf if metric == "inner_product" else np.inf)).all()
    assert knn(np.ones((1, 3)), k=2).indices.tolist() == [[-1, -1]]


# ---- independence ------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8"])
def test_bits_do_not_depend_on_threads_or_batches(metric, dtype, threads, rng):
    y = random_rows((3000, 40), dtype, rng)
    y[::5] = y[:1]
    x = y[rng.permutation(3000)[:700]]
    whole = knn(x, y, k=20, metric=metric, dtype="float64")
    for n in (1, 2, 3):
        threads(n)
        for borders in ([700], [1, 700], [128, 300, 699, 700], list(range(50, 701, 50))):
            parts = [
                knn(part, y, k=20, metric=metric, dtype="float64")
                for part in np.split(x, borders[:-1])
            ]
            for whole_part, part in zip(whole, zip(*parts, strict=True), strict=True):
                same_bits((np.concatenate(part), whole_part))


@pytest.mark.parametrize("metric", METRICS)
def test_the_order_of_y_moves_indices_only(metric, rng):
    x = rng.standard_normal((90, 30)).astype(np.float32)
    y = rng.standard_normal((800, 30)).astype(np.float32)
    order = rng.permutation(800)
    straight, moved = knn(x, y, k=15, metric=metric), knn(x, y[order], k=15, metric=metric)
    same_bits((straight.distances, moved.distances), (straight.indices, order[moved.indices]))


@pytest.mark.parametrize("metric", METRICS)
def test_a_subset_of_y_is_a_mask(metric, rng):
    """What is found is a function of the pair alone, not of what else y holds."""
    x = rng.standard_normal((90, 30)).astype(np.float32)
    y = (100 * rng.standard_normal((800, 30))).astype(np.float32)
    some = np.arange(300, 500)
    part = knn(x, y[some], k=15, metric=metric, dtype="float64")
    listed = knn(x, y, k=15, metric=metric, ids=some, dtype="float64")
    same_bits((part.distances, listed.distances), (some[part.indices], listed.indices))


REPORT = """
import hashlib
import numpy as np, subspan
rng = np.random.default_rng(5)
digest = hashlib.sha256()
for dtype in ("float16", "float32", "float64", "int8", "uint8"):
    for n, d in ((70, 5), (900, 33), (700, 300)):
        x = rng.standard_normal((n, d)) * 40
        x[n // 2:] += 500 if dtype.startswith("float") else 0
        x = (abs(x) if dtype == "uint8" else x).astype(dtype)
        x[::6] = x[:1]
        for metric in ("euclidean", "sqeuclidean", "inner_product", "cosine"):
            for part in subspan.knn(x, k=11, metric=metric, dtype="float64"):
                digest.update(part.tobytes())
print(subspan.cpu_level(), digest.hexdigest())
"""


def test_levels_with_fused_multiply_add_give_the_same_bits(run_python):
    cpu = run_python("import subspan; print(subspan.cpu_level())", SUBSPAN_CPU_LEVEL=None)
    levels = LEVELS[1 : LEVELS.index(cpu.stdout.strip()) + 1]
    lines = [run_python(REPORT, SUBSPAN_CPU_LEVEL=level).stdout.split() for level in levels]
    assert [line[0] for line in lines] == list(levels)
    assert len({line[1] for line in lines}) <= 1


def test_the_baseline_level(run_python):
    """Distances may differ in their last bits there; that they are right may not."""
    code = """
import sys
sys.path.insert(0, {folder!r})
import numpy as np, subspan
import neighbor_oracle as oracle
assert subspan.cpu_level() == "baseline"
rng = np.random.default_rng(3)
x = rng.standard_normal((500, 33)).astype(np.float32)
x[250:] += 500
x[::6] = x[:1]
for metric in oracle.METRICS:
    wanted = oracle.restricted(oracle.distances_of(x, x, metric), exclude_self=True)
    got = subspan.knn(x, k=100, metric=metric, dtype="float64")
    oracle.check(got, wanted, metric, oracle.slack_of(x, x, metric))
"""
    from pathlib import Path

    run_python(code.format(folder=str(Path(__file__).parent)), SUBSPAN_CPU_LEVEL="baseline")


def test_more_pairs_than_32_bits_count():
    """4.9e9 of them: 30 000 rows against 163 333 copies of five places."""
    y = np.array([[0, 0], [0, 9], [5, 5], [9, 0], [9, 9]], np.float32)[np.arange(163_333) % 5]
    x = np.random.default_rng(0).permutation(150_000)[:30_000]
    assert len(x) * len(y) > 2**32
    distances, indices = knn(y[x], y, k=2)
    assert not distances.any()
    np.testing.assert_array_equal(indices, np.stack([x % 5, x % 5 + 5], axis=1))


# ---- layouts and libraries ---------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS + INTEGERS)
@pytest.mark.parametrize("metric", METRICS)
def test_layouts_give_the_same_bits(dtype, metric, rng):
    x = random_rows((130, 37), dtype, rng)
    y = random_rows((300, 37), dtype, rng)
    whole = knn(x, y, k=8, metric=metric)

    def views(a):
        wide = np.zeros((a.shape[0], 2 * a.shape[1] + 1), a.dtype)
        wide[:, 1::2] = a
        frozen = a.copy()
        frozen.flags.writeable = False
        raw = np.frombuffer(b"\0" + a.tobytes(), np.uint8)[1:].view(dtype).reshape(a.shape)
        yield from (wide[:, 1::2], frozen, raw, np.asfortranarray(a))
        yield from (a[:, ::-1].copy()[:, ::-1], a[::-1].copy()[::-1])

    for view, other in zip(views(x), list(views(y))[::-1], strict=True):
        same_bits(*zip(knn(view, other, k=8, metric=metric), whole, strict=True))


def test_rows_are_not_copied(monkeypatch, rng):
    seen = []
    called = _core.knn
    monkeypatch.setattr(
        _core, "knn", lambda x, y, *rest: seen.extend([x, y]) or called(x, y, *rest)
    )
    x = rng.standard_normal((60, 50)).astype(np.float32)
    for view in (x, x[::2, ::-1], x.T, x[:, ::-3]):
        knn(view, k=2)
    assert all(np.shares_memory(part, x) for part in seen)
    assert len(seen) == 8


@pytest.mark.parametrize("dtype", FLOATS + INTEGERS)
def test_same_library_out(library, dtype, rng):
    if library.name == "array_api_strict" and dtype == "float16":
        pytest.skip("the standard has no float16")
    x, y = random_rows((30, 8), dtype, rng), random_rows((90, 8), dtype, rng)
    mask, ids = rng.random((30, 90)) < 0.9, rng.permutation(90)[:60]
    plain = knn(x, y, k=5, mask=mask, ids=ids)
    result = knn(*map(library.put, (x, y)), k=5, mask=library.put(mask), ids=library.put(ids))
    assert isinstance(result, KNN)
    assert all(library.owns(part) for part in result)
    same_bits(*((library.get(a), b) for a, b in zip(result, plain, strict=True)))


def test_views_of_torch(rng):
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(rng.standard_normal((80, 60)).astype(np.float32))
    for view in (x.T, x[:, 1::2], x[5].expand(40, 60)):
        plain = knn(np.ascontiguousarray(view.numpy()), k=3)
        same_bits(*((a.numpy(), b) for a, b in zip(knn(view, k=3), plain, strict=True)))
    needs = x.clone().requires_grad_()
    with pytest.raises(UnsupportedError, match=r"\[knn\] x must not require a gradient"):
        knn(needs, k=1)
    with pytest.raises(UnsupportedError, match=r"\[knn\] y must not require a gradient"):
        knn(x, needs, k=1)
    with torch.no_grad():
        assert knn(needs, k=1).indices.shape == (80, 1)


# ---- refusals ----------------------------------------------------------------------------------

X = np.ones((4, 3), np.float32)


@pytest.mark.parametrize(
    ("x", "change", "kind", "text"),
    [
        (X, {"k": 0}, InvalidArgumentError, r"k must be >= 1, got 0"),
        (X, {"k": 1.0}, DtypeError, r"k must be an integer, got float 1\.0"),
        (X, {"metric": "ip"}, InvalidArgumentError, r"metric must be one of .*, got 'ip'"),
        (X, {"precision": "high"}, InvalidArgumentError, r"precision must be one of 'exact'"),
        (X, {"dtype": "float16"}, InvalidArgumentError, r"dtype must be one of 'float32'"),
        (X[0], {}, InvalidArgumentError, r"x must have 2 axes, got 1 \(shape \(3,\)\)"),
        (X[None], {}, InvalidArgumentError, r"x must have 2 axes, got 3"),
        (X.tolist(), {}, DtypeError, r"x must be an array .*, got list"),
        (X.astype(np.int32), {}, DtypeError, r"x must be float16, .* got int32\. Convert"),
        (X.astype(">f4"), {}, DtypeError, "x must be float16, .*got >f4"),
        (X, {"y": X[:, :2]}, InvalidArgumentError, r"y must have d = 3 columns like x, got 2"),
        (X, {"y": X[0]}, InvalidArgumentError, r"y must have 2 axes, got 1"),
        (X, {"y": X.astype(float)}, DtypeError, r"y must be float32 like x, got float64"),
        (X, {"y": X, "exclude_self": True}, InvalidArgumentError, r"exclude_self must be False"),
        (X, {"exclude_self": 1}, DtypeError, r"exclude_self must be a bool or None, got 1"),
        (X, {"mask": np.ones(4)}, DtypeError, r"mask must be bool, got float64"),
        (
            X,
            {"mask": np.ones(3, bool)},
            InvalidArgumentError,
            r"mask must have shape \(4,\) or \(4, 4\)",
        ),
        (X, {"mask": np.ones((1, 4), bool)}, InvalidArgumentError, r"mask must have shape"),
        (X, {"ids": np.array([0, 4])}, InvalidArgumentError, r"ids must be in 0\.\.3, got 4"),
        (X, {"ids": np.array([-1])}, InvalidArgumentError, r"ids must be in 0\.\.3, got -1"),
        (X, {"ids": np.array([0.0])}, DtypeError, r"ids must be int64, got float64"),
        (X, {"ids": [0, 1]}, DtypeError, r"ids must be an array .*, got list"),
        (X, {"ids": np.array([[0]])}, InvalidArgumentError, r"ids must have 1 axes, got 2"),
        (X[:0], {"ids": np.array([0])}, InvalidArgumentError, r"ids must be empty where y has no"),
    ],
)
def test_refusals(x, change, kind, text):
    with pytest.raises(kind, match=r"\[knn\] " + text):
        knn(x, **{"k": 1, **change})


def test_arrays_of_two_libraries_are_refused():
    torch = pytest.importorskip("torch")
    with pytest.raises(DtypeError, match=r"\[knn\] y must be of the library and on the device of"):
        knn(X, torch.ones(4, 3), k=1)


def core(**change):
    arguments = {
        "x": np.zeros((4, 3), np.float32),
        "y": np.zeros((5, 3), np.float32),
        "mask": None,
        "distances": np.zeros((4, 2)),
        "indices": np.zeros((4, 2), np.int64),
        "metric": "euclidean",
        "exclude_self": False,
        "precision": "exact",
    } | change
    return _core.knn(**arguments)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"distances": np.zeros((5, 2))}, "distances must be C-ordered, on the device of x, and"),
        ({"distances": np.zeros((4, 4))[:, ::2]}, "distances must be C-ordered"),
        ({"distances": np.zeros((4, 2), np.float32)}, "distances must be float64, got float32"),
        ({"distances": np.zeros((4, 3))}, "distances must be C-ordered"),
        ({"indices": np.zeros((4, 2), np.int32)}, "indices must be int64, got int32"),
        ({"indices": np.zeros(8, np.int64)}, "indices must have 2 axes, got 1"),
        ({"mask": np.zeros((2, 5), np.uint8)}, r"mask must have shape \(4, 5\) or \(1, 5\), got"),
        ({"mask": np.zeros((4, 5), bool)}, "mask must be uint8, got bool"),
        ({"exclude_self": True}, "exclude_self must be false unless x and y have the same rows"),
        ({"metric": "ip"}, "metric must be one of"),
        ({"precision": ""}, "precision must be one of"),
        ({"y": np.zeros((5, 3))}, "y must be float32, got float64"),
        ({"x": np.zeros((4, 3), np.int16)}, "x must be float16, .* int8 or uint8, got int16"),
        ({"y": np.broadcast_to(np.float32(0), (2**32, 3))}, r"y must have fewer than 2\^32 rows"),
    ],
)
def test_refusals_of_the_core(change, text):
    with pytest.raises((InvalidArgumentError, DtypeError), match=r"\[knn\] " + text):
        core(**change)


def test_outputs_that_overlap_are_refused():
    memory = np.zeros(100)
    with pytest.raises(InvalidArgumentError, match=r"\[knn\] distances must not overlap an input"):
        core(
            x=memory[:12].reshape(4, 3),
            y=memory[20:35].reshape(5, 3),
            distances=memory[8:16].reshape(4, 2),
        )
    with pytest.raises(InvalidArgumentError, match=r"\[knn\] indices must not overlap an input"):
        core(
            x=memory[:12].reshape(4, 3),
            y=memory[20:35].reshape(5, 3),
            indices=memory[30:38].view(np.int64).reshape(4, 2),
        )


def test_cuda_arrays_are_refused():
    from test_interop import CUDA, Producer

    x = Producer(np.zeros((4, 3), np.float32), device=CUDA)
    with pytest.raises(UnsupportedError, match=r"\[knn\] has no CUDA kernel yet"):
        knn(x, k=1)
