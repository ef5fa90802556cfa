"""knn: against brute force in float64; masks, and what a result does not depend on."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from matrices import same_bits
from neighbor_oracle import (
    FAMILIES,
    FLOATS,
    INTEGERS,
    METRICS,
    agrees,
    check,
    distances_of,
    families,
    random_rows,
    restricted,
    search,
    slack_of,
)
from subspan import KNN, knn

SIZES = (1, 2, 15, 16, 17, 31, 33, 63, 65, 127, 129, 1000)
COUNTS = (1, 2, 9, 10, 16, 99, 100, 128)
LEVELS = ("baseline", "v3", "v4")

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


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", FAMILIES)
def test_all_ways_of_searching_find_the_same(name, metric, threads, rng):
    """By symmetry or not (8192 rows), by bfloat16 first or not, with any number of threads."""
    x = families(rng, 8200)[name].astype(np.float32)
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
            how = dict(k=11, metric=metric, dtype="float64")
            for part in (*subspan.knn(x, **how), *subspan.knn(x[:5], x, **how)):
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
x = rng.standard_normal((700, 33)).astype(np.float32)
x[350:] += 500
x[::6] = x[:1]
for metric in oracle.METRICS:
    oracle.agrees(x[-3:], x, 10, metric)
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
