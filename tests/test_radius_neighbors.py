"""radius_neighbors: against brute force in float64; the border, ties, NaN, masks, refusals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from matrices import same_bits
from neighbor_oracle import METRICS, distances_of, restricted, slack_of
from subspan import Radius, _core, knn, radius_neighbors
from subspan.errors import DtypeError, InvalidArgumentError, UnsupportedError

SIZES = (1, 2, 15, 17, 33, 65, 129, 500)
DTYPES = ("float16", "float32", "float64", "int8", "uint8")
LEVELS = ("baseline", "v3", "v4")


def random_rows(shape, dtype, rng):
    if np.dtype(dtype).kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    return rng.integers(-20 if dtype == "int8" else 0, 20, shape).astype(dtype)


def within(distances, radius):
    """Distances, indices and offsets of all within a radius; distances `restricted`."""
    rows = []
    for row in distances:
        found = np.flatnonzero((row <= radius) & np.isfinite(row))
        rows.append(found[np.argsort(row[found], kind="stable")])
    indices = np.concatenate([*rows, np.zeros(0, np.int64)])
    counts = [len(row) for row in rows]
    values = distances[np.repeat(np.arange(len(rows)), counts), indices]
    return values, indices, np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def agrees(x, y, radius, metric="euclidean", *, exactly=False, exclude=False, **how):
    """`radius_neighbors` gives what brute force does; radius None: a quarter of all pairs."""
    to = x if y is None else y
    distances = restricted(distances_of(x, to, metric), exclude_self=exclude, **how)
    sign = -1 if metric == "inner_product" else 1
    if radius is None:
        finite = np.sort(distances[np.isfinite(distances)])
        finite = finite[len(finite) // 4 :][:20]
        # In the middle of a gap, so that rounding decides nothing.
        gap = np.argmax(np.diff(finite)) if len(finite) > 1 else None
        radius = sign * (np.inf if gap is None else finite[gap : gap + 2].mean())
    got = radius_neighbors(
        x,
        y,
        radius=radius,
        metric=metric,
        exclude_self=exclude if y is None else None,
        dtype="float64",
        **how,
    )
    values, indices, offsets = within(distances, sign * radius)
    rtol, atol = (0, 0) if exactly else slack_of(x, to, metric)
    np.testing.assert_array_equal(got.offsets, offsets)
    np.testing.assert_allclose(sign * got.distances, values, rtol=rtol, atol=atol)
    row = np.repeat(np.arange(len(x)), np.diff(offsets))
    np.testing.assert_allclose(distances[row, got.indices], values, rtol=rtol, atol=atol)
    if exactly:
        np.testing.assert_array_equal(got.indices, indices)
    assert len({*zip(row, got.indices, strict=True)}) == len(row)
    assert (got.distances.dtype, got.indices.dtype) == (np.float64, np.int64)
    return got


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("d", SIZES)
def test_sizes_around_tiles_and_vectors(d, metric, rng):
    for i, n in enumerate(SIZES):
        x = rng.standard_normal((SIZES[(5 * i + 3) % len(SIZES)], d)).astype(np.float32)
        agrees(x, rng.standard_normal((n, d)).astype(np.float32), None, metric)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [3, 64, 300])
def test_dtypes(dtype, metric, d, rng):
    x, y = random_rows((90, d), dtype, rng), random_rows((400, d), dtype, rng)
    if metric in ("sqeuclidean", "inner_product") and dtype.endswith("int8"):
        agrees(x, y, float(np.median(distances_of(x, y, "sqeuclidean"))), metric, exactly=True)
    agrees(x, y, None, metric)
    agrees(y, None, None, metric, exclude=True)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_rows(data):
    """Small integers as floats: the border of the radius is met exactly, and often."""
    dtype = data.draw(st.sampled_from(DTYPES))
    d = data.draw(st.integers(0, 20))
    shapes = [(data.draw(st.integers(0, 40)), d) for _ in range(2)]
    x, y = (data.draw(hnp.arrays(dtype, shape, elements=st.integers(0, 3))) for shape in shapes)
    metric = data.draw(st.sampled_from(["sqeuclidean", "inner_product", "euclidean"]))
    mask = data.draw(st.none() | hnp.arrays(bool, (len(x), len(y))))
    agrees(x, y, data.draw(st.integers(0, 30)), metric, exactly=True, mask=mask)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_distance_at_the_radius_counts(metric, dtype, rng):
    x = (rng.standard_normal((60, 40)) + 5).astype(dtype)
    y = (rng.standard_normal((300, 40)) + 5).astype(dtype)
    nearest = knn(x, y, k=7, metric=metric, dtype="float64")
    for row in range(0, 60, 7):
        border = nearest.distances[row, -1]
        for radius, count in ((border, 7), (np.nextafter(border, nearest.distances[row, 0]), 6)):
            near = radius_neighbors(x, y, radius=radius, metric=metric, dtype="float64")
            begin, end = near.offsets[row : row + 2]
            assert end - begin == count
            same_bits(
                (near.distances[begin:end], nearest.distances[row, :count]),
                (near.indices[begin:end], nearest.indices[row, :count]),
            )


@pytest.mark.parametrize("metric", METRICS)
def test_all_and_none(metric, rng):
    x = rng.standard_normal((50, 9)).astype(np.float32)
    y = rng.standard_normal((200, 9)).astype(np.float32)
    y[::7] = np.nan
    y[5] = 0
    sign = -1 if metric == "inner_product" else 1
    for radius in (1e3, 1e30, 1e200, np.inf):
        near = agrees(x, y, sign * radius, metric)
        whole = knn(x, y, k=200, metric=metric, dtype="float64")
        there = whole.indices >= 0
        same_bits((near.indices, whole.indices[there]), (near.distances, whole.distances[there]))
    if metric == "inner_product":
        assert agrees(x, y, np.inf, metric).offsets[-1] == 0
        assert agrees(x, y, 1e300, metric).offsets[-1] == 0
    else:
        assert agrees(x, y, 0.0, metric).offsets[-1] == 0


def test_radius_zero_finds_duplicates(rng):
    base = rng.standard_normal((300, 33)).astype(np.float32) + 100
    x = base[rng.permutation(900) % 300]
    near = agrees(x, None, 0.0, exclude=True)
    assert (np.diff(near.offsets) == 2).all()
    assert not near.distances.any()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("offset", [0, 100, 1000])
def test_an_offset_does_no_harm(offset, metric, rng):
    x = (rng.standard_normal((1500, 64)) + offset).astype(np.float32)
    agrees(x[:300], x, None, metric)


def test_far_clusters(rng):
    x = rng.standard_normal((1500, 64))
    x[::2] += 1000
    x[1::2] -= 1000
    near = agrees(x.astype(np.float32), None, 10.5, exclude=True)
    assert near.offsets[-1] > 1000


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e17, 1e25, 1e38])
def test_huge_and_tiny(metric, scale, rng):
    x = rng.uniform(-1, 1, (300, 17)).astype(np.float32) * np.float32(scale)
    agrees(x, None, None, metric, exclude=True)


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")  # of numpy
def test_squares_that_overflow_float64(rng):
    y = 1e200 * (1 + np.arange(50.0))[:, None] * np.ones((1, 4))
    y[30:] = y[:20] + 1e140 * rng.standard_normal((20, 1))
    for radius in (1e139, 1e140, 1e150, np.inf):
        agrees(y, None, radius, exclude=True)


@pytest.mark.parametrize("metric", METRICS)
def test_zero_rows_and_rows_that_are_not_finite(metric, rng):
    x, y = (rng.standard_normal((n, 12)).astype(np.float32) for n in (90, 300))
    x[::5], y[::4] = 0, 0
    x[1::9, 3], y[1::9, 3] = np.nan, np.inf
    mask = rng.random((90, 300)) < 0.5
    for radius in (0.5, 1.0, 1.5):
        for how in ({}, {"mask": mask}, {"mask": mask[0]}, {"ids": np.arange(0, 300, 3)}):
            agrees(x, y, radius, metric, **how)


@pytest.mark.parametrize("metric", METRICS)
def test_masks_and_ids(metric, rng):
    x, y = (rng.standard_normal((n, 8)).astype(np.float32) for n in (140, 500))
    mask = rng.random((140, 500)) < 0.3
    ids = rng.permutation(500)[:60]
    for how in ({"mask": mask}, {"mask": mask[3]}, {"ids": ids}, {"mask": mask, "ids": ids}):
        agrees(x, y, None, metric, **how)
    agrees(x, y, 1.0, metric, ids=ids[:0])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("q", "n", "d"), [(0, 5, 3), (4, 0, 3), (0, 0, 3), (4, 5, 0), (0, 0, 0)])
def test_empty(metric, q, n, d):
    for library in (np.asarray, pytest.importorskip("torch").from_numpy):
        x, y = library(np.ones((q, d), np.float32)), library(np.ones((n, d), np.float32))
        distances, indices, offsets = map(
            np.asarray, radius_neighbors(x, y, radius=0.0, metric=metric)
        )
        count = 0 if d or metric == "cosine" else q * n
        assert len(distances) == len(indices) == offsets[-1] == count
        assert offsets.shape == (q + 1,)
        assert distances.dtype == np.float32


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8"])
def test_bits_do_not_depend_on_threads_or_batches(metric, dtype, threads, rng):
    y = random_rows((2000, 20), dtype, rng)
    x = y[rng.permutation(2000)[:300]]
    radius = float(knn(x[:1], y, k=50, metric=metric).distances[0, -1])
    whole = radius_neighbors(x, y, radius=radius, metric=metric)
    for n in (1, 2, 3):
        threads(n)
        same_bits(*zip(radius_neighbors(x, y, radius=radius, metric=metric), whole, strict=True))
        parts = [
            radius_neighbors(part, y, radius=radius, metric=metric)
            for part in np.split(x, [1, 128, 200])
        ]
        same_bits(
            (np.concatenate([part.distances for part in parts]), whole.distances),
            (np.concatenate([part.indices for part in parts]), whole.indices),
            (np.concatenate([np.diff(part.offsets) for part in parts]), np.diff(whole.offsets)),
        )


REPORT = """
import hashlib
import numpy as np, subspan
rng = np.random.default_rng(5)
digest = hashlib.sha256()
for dtype in ("float16", "float32", "float64", "int8"):
    x = (rng.standard_normal((600, 33)) * 4).astype(dtype)
    x[::6] = x[:1]
    for metric in ("euclidean", "sqeuclidean", "inner_product", "cosine"):
        radius = float(subspan.knn(x, k=60, metric=metric).distances[1, -1])
        for part in subspan.radius_neighbors(x, radius=radius, metric=metric, dtype="float64"):
            digest.update(part.tobytes())
print(subspan.cpu_level(), digest.hexdigest())
"""


def test_levels_with_fused_multiply_add_give_the_same_bits(run_python):
    cpu = run_python("import subspan; print(subspan.cpu_level())", SUBSPAN_CPU_LEVEL=None)
    levels = LEVELS[1 : LEVELS.index(cpu.stdout.strip()) + 1]
    lines = [run_python(REPORT, SUBSPAN_CPU_LEVEL=level).stdout.split() for level in levels]
    assert [line[0] for line in lines] == list(levels)
    assert len({line[1] for line in lines}) <= 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_same_library_out(library, dtype, rng):
    if library.name == "array_api_strict" and dtype == "float16":
        pytest.skip("the standard has no float16")
    x, y = random_rows((30, 8), dtype, rng), random_rows((90, 8), dtype, rng)
    radius = float(np.median(distances_of(x, y, "euclidean")))
    plain = radius_neighbors(x, y, radius=radius)
    result = radius_neighbors(library.put(x), library.put(y), radius=radius)
    assert isinstance(result, Radius)
    assert all(library.owns(part) for part in result)
    same_bits(*((library.get(a), b) for a, b in zip(result, plain, strict=True)))
    whole = result.to_scipy(90)
    assert whole.shape == (30, 90)
    dense = np.where(distances_of(x, y, "euclidean") <= radius, distances_of(x, y, "euclidean"), 0)
    np.testing.assert_allclose(whole.toarray(), dense, rtol=1e-6)


def test_layouts(rng):
    x = rng.standard_normal((60, 40)).astype(np.float32)
    for view in (x.T, x[:, ::-2], x[::-1]):
        plain = radius_neighbors(np.ascontiguousarray(view), radius=6.0)
        same_bits(*zip(radius_neighbors(view, radius=6.0), plain, strict=True))


# ---- refusals ----------------------------------------------------------------------------------

X = np.ones((4, 3), np.float32)


@pytest.mark.parametrize(
    ("x", "change", "kind", "text"),
    [
        (X, {"radius": -1.0}, InvalidArgumentError, r"radius must be a number >= 0, got -1"),
        (X, {"radius": np.nan}, InvalidArgumentError, r"radius must be in \[-inf, inf\], got nan"),
        (X, {"radius": "1"}, DtypeError, r"radius must be a number, got '1'"),
        (X, {"metric": "l2"}, InvalidArgumentError, r"metric must be one of .*, got 'l2'"),
        (X, {"dtype": "int8"}, InvalidArgumentError, r"dtype must be one of 'float32'"),
        (X[0], {}, InvalidArgumentError, r"x must have 2 axes, got 1"),
        (X.astype(np.int16), {}, DtypeError, r"x must be float16, .* got int16\. Convert"),
        (X, {"y": X[:, :2]}, InvalidArgumentError, r"y must have d = 3 columns like x, got 2"),
        (X, {"y": X, "exclude_self": True}, InvalidArgumentError, r"exclude_self must be False"),
        (X, {"mask": np.ones(3, bool)}, InvalidArgumentError, r"mask must have shape"),
        (X, {"ids": np.array([4])}, InvalidArgumentError, r"ids must be in 0\.\.3, got 4"),
    ],
)
def test_refusals(x, change, kind, text):
    with pytest.raises(kind, match=r"\[radius_neighbors\] " + text):
        radius_neighbors(x, **{"radius": 1.0, **change})


@pytest.mark.parametrize(
    ("made", "text"),
    [
        ((np.zeros(16), np.zeros(16, np.int32)), "indices must be int64, got int32"),
        ((np.zeros(16, np.float32), np.zeros(16, np.int64)), "values must be float64, got float32"),
        ((np.zeros(15), np.zeros(16, np.int64)), "allocate must return arrays of 16 elements"),
        ((np.zeros(16),), "allocate must return values and indices, got 1 objects"),
    ],
)
def test_refusals_of_what_is_allocated(made, text):
    arguments = (X, X, None, 1.0, np.zeros(5, np.int64), lambda _: made, "euclidean", False)
    with pytest.raises((InvalidArgumentError, DtypeError), match=r"\[radius_neighbors\] " + text):
        _core.radius_neighbors(*arguments)
    with pytest.raises(InvalidArgumentError, match=r"offsets must be C-ordered, .* shape \(5,\)"):
        _core.radius_neighbors(*arguments[:4], np.zeros(4, np.int64), *arguments[5:])


def test_an_error_of_the_caller_comes_through():
    def fails(count):
        raise MemoryError(f"no room for {count}")

    with pytest.raises(MemoryError, match="no room for 16"):
        _core.radius_neighbors(X, X, None, 1.0, np.zeros(5, np.int64), fails, "euclidean", False)


def test_gradients_and_devices_are_refused():
    from test_interop import CUDA, Producer

    torch = pytest.importorskip("torch")
    with pytest.raises(UnsupportedError, match=r"\[radius_neighbors\] x must not require a grad"):
        radius_neighbors(torch.ones(3, 2, requires_grad=True), radius=1.0)
    with pytest.raises(UnsupportedError, match=r"\[radius_neighbors\] has no CUDA kernel yet"):
        radius_neighbors(Producer(X, device=CUDA), radius=1.0)


def test_more_columns_than_indices():
    near = radius_neighbors(X, radius=0.0)
    assert near.to_scipy(9).shape == (4, 9)
    with pytest.raises(InvalidArgumentError, match=r"\[to_scipy\] n must be >= 4, got 3"):
        near.to_scipy(3)
