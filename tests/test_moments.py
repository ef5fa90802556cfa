"""Moments against two passes in float64: values, layouts, libraries."""

import numpy as np
import pytest
from moments_oracle import EXACT, LIMIT, PRODUCTS, bits, check, error_of, in_chunks, mixed, oracle
from subspan import Moments
from subspan.errors import (
    InvalidArgumentError,
)

# ---- values ------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 2, 3, 7, 15, 16, 17, 31, 33, 48, 63, 65, 100, 129, 300])
@pytest.mark.parametrize(
    ("dtype", "tol"), [(np.float64, EXACT), (np.float32, PRODUCTS), (np.float16, LIMIT)]
)
def test_widths(d, dtype, tol, rng):
    x = mixed(701, d, rng, offset=3.0).astype(dtype)
    moments = Moments().update(x)
    check(moments, x, tol=tol)
    assert (moments.n_features, moments.weight_sum, moments.weight_sq_sum) == (d, 701.0, 701.0)
    np.testing.assert_allclose(
        moments.covariance(), np.cov(x.T.astype(np.float64)).reshape(d, d), atol=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 255, 256, 257, 511, 513, 1025, 20000, 70001])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_heights(n, dtype, rng):
    x = mixed(n, 6, rng, offset=-2.0).astype(dtype)
    check(Moments().update(x), x, tol=PRODUCTS if dtype == np.float32 else EXACT)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("sizes", [(1,), (7, 1, 64), (256,), (300, 5), (5000,)])
def test_any_chunking(dtype, sizes, rng):
    x = mixed(1203, 19, rng, offset=10.0).astype(dtype)
    check(in_chunks(x, sizes), x, tol=PRODUCTS if dtype == np.float32 else EXACT)


def test_float64_products_of_float32_rows(rng):
    x = mixed(3000, 40, rng, offset=50.0).astype(np.float32)
    check(Moments(precision="float64").update(x), x, tol=EXACT)
    check(in_chunks(x, (100, 999), precision="float64"), x, tol=EXACT)


@pytest.mark.parametrize("ratio", [1e3, 1e4, 1e5])
def test_far_from_the_origin(ratio, rng):
    """Mean over standard deviation up to 1e5, in float32: nothing is lost beyond the input's."""
    x = (rng.standard_normal((20000, 24)) + ratio).astype(np.float32)
    check(Moments().update(x), x, tol=PRODUCTS)
    check(in_chunks(x, (17, 4000)), x, tol=PRODUCTS)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_drifting_mean(dtype, rng):
    """The mean moves by 1000 standard deviations along the rows, and jumps once."""
    n = 30000
    x = rng.standard_normal((n, 9)) + np.linspace(0, 1000, n)[:, None] * rng.uniform(-1, 1, 9)
    x[n // 2 :] += 500
    x = x.astype(dtype)
    tol = PRODUCTS if dtype == np.float32 else EXACT
    check(Moments().update(x), x, tol=tol)
    check(in_chunks(x, (1000,)), x, tol=tol)
    # What is left when the drift is taken out by hand must be there, too.
    parts = [Moments().update(part) for part in np.split(x, 300)]
    for part, m in zip(np.split(x, 300), parts, strict=True):
        check(m, part, tol=tol)


@pytest.mark.parametrize("scale", [1e30, 1e18, 1e-18, 1e-30])
def test_huge_and_tiny_float32(scale, rng):
    x = ((mixed(1500, 8, rng) + 1.0) * scale).astype(np.float32)
    check(Moments().update(x), x, tol=PRODUCTS)


@pytest.mark.parametrize("scale", [1e140, 1e-140])
def test_huge_and_tiny_float64(scale, rng):
    x = (mixed(1500, 8, rng) + 1.0) * scale
    check(Moments().update(x), x)


@pytest.mark.parametrize("small", [1e-10, 1e-19, 1e-22, 1e-30])
def test_columns_of_very_different_size(small, rng):
    """The bound is per entry: a tiny column beside large ones keeps its digits."""
    x = rng.standard_normal((2000, 3))
    x[:, 1] *= small
    x = x.astype(np.float32)
    check(Moments().update(x), x, tol=PRODUCTS)


def test_constant_columns(rng):
    x = rng.standard_normal((900, 4)).astype(np.float32)
    x[:, 1], x[:, 3] = 1e6 + 1 / 3, 0.0
    moments = in_chunks(x, (250,))
    for column in (1, 3):
        assert moments.mean[column] == x[0, column]
        np.testing.assert_array_equal(moments.m2[column], 0.0)
        np.testing.assert_array_equal(moments.m2[:, column], 0.0)
    check(moments, x, tol=PRODUCTS)
    same = Moments().update(np.full((1000, 3), np.float32(1 / 3)))
    np.testing.assert_array_equal(same.m2, 0.0)
    np.testing.assert_array_equal(same.mean, np.float32(1 / 3))


def test_an_outlier_among_many(rng):
    x = rng.standard_normal((5000, 5)).astype(np.float32)
    x[4321, 2] = 3e5
    check(Moments().update(x), x, tol=PRODUCTS)


def test_no_rows_and_one_row():
    empty = Moments()
    assert (empty.count, empty.n_features, empty.weight_sum) == (0, 0, 0.0)
    assert empty.mean.shape == (0,)
    assert empty.m2.shape == (0, 0)
    none = Moments().update(np.zeros((0, 3)))
    assert (none.count, none.n_features) == (0, 3)
    for what in (none.covariance, none.second_moment, empty.second_moment):
        with pytest.raises(InvalidArgumentError, match="must weigh more than ddof"):
            what()
    one = Moments().update(np.array([[1.0, 2.0, 3.0]]))
    np.testing.assert_array_equal(one.mean, [1, 2, 3])
    np.testing.assert_array_equal(one.m2, 0)
    np.testing.assert_array_equal(one.covariance(ddof=0), 0)
    with pytest.raises(InvalidArgumentError, match=r"ddof \(1\) .* total of 1 in 1 rows"):
        one.covariance()
    np.testing.assert_array_equal(one.second_moment(), np.outer([1, 2, 3], [1, 2, 3]))
    assert none.update(np.ones((2, 3))).count == 2
    before = bits(one)
    one.update(np.zeros((0, 3)))
    assert bits(one) == before


def test_second_moment(rng):
    x = mixed(500, 5, rng, offset=4.0)
    np.testing.assert_allclose(Moments().update(x).second_moment(), x.T @ x / 500, rtol=1e-13)


# ---- layouts and libraries ---------------------------------------------------------------------


def test_layouts(rng):
    x = mixed(600, 21, rng).astype(np.float32)
    wanted = Moments().update(x)
    frozen = x.copy()
    frozen.flags.writeable = False
    every = np.zeros((1200, 43), np.float32)
    every[::2, 1::2] = x
    views = (
        np.asfortranarray(x),
        frozen,
        every[::2, 1::2],
        x[::-1].copy()[::-1],
        x[:, ::-1].copy()[:, ::-1],
        np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(np.float32).reshape(x.shape),
    )
    for view in views:
        np.testing.assert_array_equal(view, x)
        assert bits(Moments().update(view)) == bits(wanted)
    row = np.broadcast_to(x[:1], x.shape)
    np.testing.assert_array_equal(Moments().update(row).m2, 0.0)


def test_memory_maps(tmp_path, rng):
    x = mixed(600, 21, rng).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    assert bits(Moments().update(np.load(tmp_path / "x.npy", mmap_mode="r"))) == bits(
        Moments().update(x)
    )


def test_libraries(library, rng):
    for dtype in (np.float32, np.float64):
        x, y = mixed(300, 5, rng).astype(dtype), mixed(300, 2, rng).astype(dtype)
        w = rng.uniform(0, 2, 300)
        got = Moments().update(library.put(x), library.put(w), y=library.put(y))
        assert bits(got) == bits(Moments().update(x, w, y=y))


def test_bfloat16(rng):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    torch = pytest.importorskip("torch")
    x = mixed(600, 17, rng).astype(ml_dtypes.bfloat16)
    t = torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
    moments = Moments().update(x)
    check(moments, x, tol=LIMIT)
    assert bits(Moments().update(t)) == bits(moments)
    assert bits(Moments().update(x.astype(np.float32))) == bits(moments)
    half = torch.from_numpy(x.astype(np.float16))
    assert bits(Moments().update(half)) == bits(Moments().update(x.astype(np.float16)))


def test_dtypes_may_change_between_updates(rng):
    x = mixed(300, 4, rng)
    moments = Moments().update(x[:100]).update(x[100:200].astype(np.float32))
    moments.update(x[200:].astype(np.float16))
    mean, m2 = oracle(x)
    np.testing.assert_allclose(moments.mean, mean, atol=1e-3)
    assert error_of(moments.m2, m2) < 1e-3


def test_float32_rows_after_means_beyond_their_range():
    moments = Moments().update(np.full((5, 2), 1e100)).update(np.ones((5, 2), np.float32))
    np.testing.assert_allclose(moments.mean, 5e99, rtol=1e-15)
    np.testing.assert_allclose(moments.m2, 2.5e200, rtol=1e-14)
