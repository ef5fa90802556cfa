"""Moments against numpy's two-pass formula in float64, in every way that rows may come.

Errors are relative to sqrt(m2_ii m2_jj). EXACT holds for float64 products. float32 products are
summed over at most 256 rows, so their error is below 256 * 2^-24 = 1.5e-5 whatever the number of
rows and the mean (LIMIT); rounding goes both ways, which leaves less than PRODUCTS. Values on a
coarse grid, as half precision gives them, may round one way only and come near the limit.
"""

import contextlib
import errno
import itertools
import pickle
import sys
import threading

import numpy as np
import pytest
from matrices import same_bits
from subspan import Moments
from subspan.errors import (
    DtypeError,
    FileFormatError,
    InvalidArgumentError,
    SubspanError,
    UnsupportedError,
)

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


# ---- weights -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_weights(dtype, rng):
    x = mixed(2003, 11, rng, offset=5.0).astype(dtype)
    w = rng.exponential(size=2003) * (rng.random(2003) < 0.7)
    tol = PRODUCTS if dtype == np.float32 else EXACT
    for moments in (Moments().update(x, w), in_chunks(x, (100, 1), w)):
        check(moments, x, w, tol=tol)
        np.testing.assert_allclose(moments.weight_sum, w.sum(), rtol=1e-13)
        np.testing.assert_allclose(moments.weight_sq_sum, (w**2).sum(), rtol=1e-13)
    total = w.sum()
    moments = Moments().update(x, w)
    np.testing.assert_allclose(moments.covariance(), moments.m2 / (total - 1))
    np.testing.assert_allclose(
        moments.covariance(weights="reliability"),
        np.cov(x.T.astype(np.float64), aweights=w),
        rtol=1e-5,
        atol=1e-6,
    )


def test_integer_weights_are_repetition(rng):
    x = mixed(400, 6, rng)
    w = rng.integers(0, 5, 400)
    weighted, repeated = Moments().update(x, w), Moments().update(np.repeat(x, w, axis=0))
    np.testing.assert_allclose(weighted.mean, repeated.mean, rtol=1e-13, atol=1e-15)
    assert error_of(weighted.m2, repeated.m2) <= EXACT
    assert weighted.weight_sum == repeated.weight_sum == repeated.count
    assert weighted.count == (w > 0).sum()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_rows_of_weight_zero_may_hold_anything(bad, rng):
    x = mixed(1000, 6, rng).astype(np.float32)
    y = mixed(1000, 2, rng).astype(np.float32)
    w = np.ones(1000)
    w[::3] = 0
    dirty, dirty_y = x.copy(), y.copy()
    dirty[::3], dirty_y[::3] = bad, -bad
    groups = np.arange(1000) % 4
    got = Moments().update(dirty, w, groups, y=dirty_y)
    assert bits(got) == bits(Moments().update(x, w, groups, y=y))
    check(got, x, w, tol=PRODUCTS)
    nothing = Moments().update(dirty, np.zeros(1000))
    assert (nothing.count, nothing.weight_sum) == (0, 0.0)
    np.testing.assert_array_equal(nothing.m2, 0)


@pytest.mark.parametrize("size", [1e-30, 1e-42, 1e-46, 1e-60, 1e30, 1e60])
def test_the_scale_of_weights_means_nothing(size, rng):
    x = mixed(4000, 3, rng).astype(np.float32)
    moments = Moments().update(x, np.full(4000, size))
    wanted = np.cov(x.T.astype(np.float64), bias=True)
    assert error_of(moments.covariance(ddof=0), wanted) <= PRODUCTS
    np.testing.assert_allclose(moments.weight_sum, 4000 * size, rtol=1e-12)


def test_weights_beyond_float64_are_refused(rng):
    moments = Moments()
    with pytest.raises(InvalidArgumentError, match="weights"):
        moments.update(mixed(10, 3, rng), np.full(10, 1e200))
    assert moments.count == 0


def test_weights_of_other_dtypes(rng):
    x = mixed(50, 3, rng)
    w = rng.integers(0, 3, 50)
    wanted = bits(Moments().update(x, w.astype(np.float64)))
    for kind in (np.float32, np.int8, np.uint64, np.float16):
        assert bits(Moments().update(x, w.astype(kind))) == wanted
    assert bits(Moments().update(x, w > 0)) == bits(Moments().update(x, 1.0 * (w > 0)))
    assert bits(Moments().update(x, np.repeat(w, 2)[::2])) == wanted
    assert bits(Moments().update(x, w[::-1].copy()[::-1])) == wanted


# ---- merging -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "precision", "tol"),
    [
        (np.float64, "auto", 1e-12),
        (np.float32, "float64", 1e-12),
        # Two ways to sum float32 products differ by no more than twice their bound.
        (np.float32, "auto", 2 * PRODUCTS),
    ],
)
def test_merge_trees_equal_one_pass(dtype, precision, tol, rng):
    x = mixed(2500, 13, rng, offset=20.0).astype(dtype)
    w = rng.uniform(0, 2, 2500)
    whole = Moments(precision=precision).update(x, w)
    for _ in range(5):
        cuts = np.sort(rng.integers(0, 2500, 9))
        parts = [
            Moments(precision=precision).update(a, b)
            for a, b in zip(np.split(x, cuts), np.split(w, cuts), strict=True)
        ]
        while len(parts) > 1:
            i, j = rng.choice(len(parts), 2, replace=False)
            parts[i].merge(parts[j])
            parts.pop(j)
        (tree,) = parts
        assert tree.count == whole.count
        np.testing.assert_allclose(tree.weight_sum, whole.weight_sum, rtol=1e-14)
        np.testing.assert_allclose(tree.weight_sq_sum, whole.weight_sq_sum, rtol=1e-14)
        np.testing.assert_allclose(tree.mean, whole.mean, rtol=max(1e-13, tol / 10))
        assert error_of(tree.m2, whole.m2) <= tol


def test_the_empty_state_is_the_identity(rng):
    x, y = mixed(50, 3, rng), mixed(50, 2, rng)
    full = Moments().update(x, y=y, groups=np.arange(50) % 3)
    wanted = bits(full)
    empties = (Moments(), Moments().update(x[:0]), Moments().update(x, np.zeros(50)))
    for empty in empties:
        assert bits(full.copy().merge(empty)) == wanted
        assert bits(empty.copy().merge(full)) == wanted
    plain = Moments().update(x)
    with_kind = Moments().update(x[:0], y=y[:0], groups=[])
    assert bits(plain.copy().merge(with_kind)) == bits(plain)
    again = Moments().update(x[:0], y=y[:0]).update(x)
    assert again.cross_m2 is None
    assert bits(again) == bits(plain)


def test_merge_leaves_the_other_and_takes_itself(rng):
    x = mixed(60, 4, rng)
    a, b = Moments().update(x[:20]), Moments().update(x[20:])
    before = bits(b)
    a.merge(b)
    assert bits(b) == before
    check(a, x)
    twice = Moments().update(x, y=x[:, :2], groups=np.arange(60) % 2)
    twice.merge(twice)
    wanted = Moments().update(np.r_[x, x], y=np.r_[x, x][:, :2], groups=np.arange(120) % 2)
    assert error_of(twice.m2, wanted.m2) <= EXACT
    np.testing.assert_allclose(twice.cross_m2, wanted.cross_m2, rtol=1e-12)
    np.testing.assert_array_equal(twice.group_counts, wanted.group_counts)
    assert twice.count == 120


def test_a_merged_state_is_of_its_own(rng):
    x = mixed(30, 3, rng)
    source = Moments().update(x)
    target = Moments().merge(source)
    before = bits(source)
    target.update(x + 7)
    assert bits(source) == before


def test_merge_refuses(rng):
    x = mixed(10, 3, rng)
    a = Moments().update(x)
    before = bits(a)
    for other, kind, text in (
        (Moments().update(x[:, :2]), InvalidArgumentError, "must have 3 columns, got 2"),
        (Moments().update(x, y=x), InvalidArgumentError, "y must be given always or never"),
        (Moments().update(x, groups=[0] * 10), InvalidArgumentError, "groups must be given"),
        (a.state_dict(), DtypeError, "other must be a Moments, got dict"),
    ):
        with pytest.raises(kind, match=text):
            a.merge(other)
    wide, narrow = Moments().update(x, y=x), Moments().update(x, y=x[:, :2])
    with pytest.raises(InvalidArgumentError, match="y of 3 columns, got 2"):
        wide.merge(narrow)
    assert bits(a) == before


# ---- groups and pairs --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("names", [np.array([7, 3, 5]), np.array(["b", "a", "c"])])
def test_groups(dtype, names, rng):
    x = mixed(900, 130, rng, offset=2.0).astype(dtype)
    labels = names[rng.integers(0, 3, 900)]
    labels[:3] = names
    w = rng.uniform(0, 2, 900)
    moments = Moments()
    for start in range(0, 900, 250):
        part = slice(start, start + 250)
        moments.update(x[part], w[part], labels[part])
    np.testing.assert_array_equal(moments.group_labels, names)  # order of appearance
    np.testing.assert_array_equal(moments.group_counts, [(labels == g).sum() for g in names])
    x64 = x.astype(np.float64)
    means = np.stack([oracle(x64[labels == g], w[labels == g])[0] for g in names])
    np.testing.assert_allclose(moments.group_means, means, rtol=1e-12, atol=1e-13)
    inside = sum(oracle(x64[labels == g], w[labels == g])[1] for g in names)
    mean, m2 = oracle(x64, w)
    tol = 1e-6 if dtype == np.float32 else 1e-12
    assert error_of(moments.within(), inside) <= tol
    assert error_of(moments.between() + inside, m2) <= tol
    np.testing.assert_allclose(moments.mean, mean, rtol=1e-6)


def test_groups_merge_by_label(rng):
    x = mixed(40, 3, rng)
    labels = np.array(["x", "y"] * 10 + ["z", "x"] * 10)
    a = Moments().update(x[:20], groups=labels[:20])
    b = Moments().update(x[20:], groups=labels[20:])
    whole = Moments().update(x, groups=labels)
    a.merge(b)
    np.testing.assert_array_equal(a.group_labels, ["x", "y", "z"])
    np.testing.assert_array_equal(a.group_counts, whole.group_counts)
    np.testing.assert_allclose(a.group_means, whole.group_means, rtol=1e-13)


def test_a_group_without_weight_does_not_exist(rng):
    x = mixed(6, 2, rng)
    moments = Moments().update(x, np.array([1.0, 1, 1, 0, 0, 0]), [0, 1, 0, 2, 2, 1])
    np.testing.assert_array_equal(moments.group_labels, [0, 1])
    assert np.isfinite(moments.between()).all()
    assert np.isfinite(moments.within()).all()
    moments.update(x, np.zeros(6), [9] * 6)
    np.testing.assert_array_equal(moments.group_labels, [0, 1])


@pytest.mark.parametrize(("dtype", "tol"), [(np.float64, EXACT), (np.float32, PRODUCTS)])
@pytest.mark.parametrize(("d", "e"), [(1, 1), (5, 3), (3, 70), (70, 33)])
def test_cross_moments(d, e, dtype, tol, rng):
    both = mixed(1500, d + e, rng, offset=6.0).astype(dtype)
    x, y = both[:, :d], both[:, d:]
    w = rng.uniform(0, 2, 1500)
    mean, m2 = oracle(both, w)
    size = np.sqrt(np.diag(m2))
    halves = [Moments().update(x[s], w[s], y=y[s]) for s in (slice(700), slice(700, None))]
    chunks = Moments().update(x[:3], w[:3], y=y[:3]).update(x[3:], w[3:], y=y[3:])
    for moments in (Moments().update(x, w, y=y), chunks, halves[0].merge(halves[1])):
        error = (moments.cross_m2 - m2[:d, d:]) / np.outer(size[:d], size[d:])
        assert np.abs(error).max() <= tol
        np.testing.assert_allclose(moments.mean_y, mean[d:], rtol=1e-6)
        np.testing.assert_allclose(
            moments.cross_covariance(), moments.cross_m2 / (moments.weight_sum - 1)
        )


def test_pairs_of_themselves_are_the_moments(rng):
    x = mixed(500, 20, rng)
    moments = Moments().update(x, y=x)
    assert error_of(moments.cross_m2, moments.m2) <= EXACT


# ---- determinism -------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(9000, 3), (5000, 40), (1500, 130), (700, 420), (100000, 1)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bits_do_not_depend_on_the_threads(shape, dtype, threads, rng):
    x = rng.standard_normal(shape).astype(dtype)
    w = rng.uniform(0, 2, len(x))
    groups = np.arange(len(x)) % 3
    seen = set()
    for n in (1, 2, 3, 5):
        threads(n)
        moments = Moments().update(x, w, groups, y=x[:, :1]).update(x + 1, w, groups, y=x[:, :1])
        seen.add(str(sorted(bits(moments).items())))
    assert len(seen) == 1


def test_bits_do_not_depend_on_the_run(rng):
    x = rng.standard_normal((3000, 50)).astype(np.float32)
    assert len({str(bits(Moments().update(x))) for _ in range(10)}) == 1


# ---- refusals ----------------------------------------------------------------------------------


def some(rng, **options):
    x = mixed(20, 3, rng)
    return Moments().update(x, np.ones(20), [0, 1] * 10, y=x[:, :2], **options)


def with_bad(rng, row, column, value, n=20, d=3, dtype=np.float64):
    x = rng.standard_normal((n, d)).astype(dtype)
    x[row, column] = value
    return x


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(
    ("value", "word"), [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity")]
)
@pytest.mark.parametrize(("row", "column"), [(0, 0), (9, 2), (299, 1), (257, 0)])
def test_nonfinite_rows_are_named(dtype, value, word, row, column, rng):
    moments = Moments().update(rng.standard_normal((30, 3)))
    before = bits(moments)
    x = with_bad(rng, row, column, value, n=300, dtype=dtype)
    with pytest.raises(
        InvalidArgumentError, match=f"x must be finite, got {word} in row {row}, column {column}"
    ):
        moments.update(x)
    assert bits(moments) == before


def test_the_state_is_untouched_by_every_refusal(rng):
    moments = some(rng)
    before = bits(moments)
    x = mixed(20, 3, rng)
    y, g, w = x[:, :2], [0, 1] * 10, np.ones(20)
    bad_y = y.copy()
    bad_y[4, 1] = np.nan
    negative = w.copy()
    negative[7] = -1
    cases = [
        ({"x": with_bad(rng, 3, 1, np.nan)}, "x must be finite, got NaN in row 3, column 1"),
        ({"x": with_bad(rng, 3, 1, 1e200)}, "squares that float64 can hold"),
        ({"y": bad_y}, "y must be finite, got NaN in row 4, column 1"),
        ({"weights": negative}, "weights must be finite and >= 0, got -1 in row 7"),
        ({"weights": w * np.nan}, "weights must be finite and >= 0"),
        ({"weights": w * np.inf}, "weights must be finite and >= 0"),
        ({"weights": w[:5]}, r"weights must have shape \(20,\), one per row of x, got \(5,\)"),
        ({"weights": np.ones((20, 1))}, "weights must have shape"),
        ({"weights": [1.0] * 20}, "weights must be an array"),
        ({"weights": np.array(["a"] * 20)}, "weights must be real numbers"),
        ({"weights": w * 1j}, "weights must be real numbers, got complex128"),
        ({"groups": g[:5]}, r"groups must have shape \(20,\)"),
        ({"groups": None}, "groups must be given always or never"),
        ({"y": None}, "y must be given always or never"),
        ({"y": x}, "y must have 2 columns as before, got 3"),
        ({"y": y[:4]}, "y must have the rows of x"),
        ({"y": y.astype(np.float32)}, r"y must have the dtype of x \(float64\), got float32"),
        ({"y": y[0]}, "y must have 2 axes, got 1"),
        ({"x": x[:, :2]}, "x must have 3 columns as before, got 2"),
        ({"x": x[0]}, "x must have 2 axes, got 1"),
        ({"x": x[:, :0]}, "x must have at least one column"),
        ({"x": x.tolist()}, "x must be an array"),
        (
            {"x": x.astype(int), "y": y.astype(int)},
            "float16, bfloat16, float32 or float64, got int",
        ),
        ({"x": x.astype(">f8"), "y": y.astype(">f8")}, "must have native byte order"),
        ({"x": np.ma.array(x)}, "must have no mask"),
    ]
    for change, text in cases:
        arguments = {"x": x, "weights": w, "groups": g, "y": y} | change
        with pytest.raises(SubspanError, match=text) as caught:
            moments.update(**arguments)
        assert str(caught.value).startswith("["), text
        assert bits(moments) == before, text
    fresh = Moments()
    for change, text in cases[:2]:
        with pytest.raises(SubspanError, match=text):
            fresh.update(**({"x": x} | change))
        assert bits(fresh) == bits(Moments())
        assert fresh.n_features == 0


def test_torch_tensors_that_cannot_be_read():
    torch = pytest.importorskip("torch")
    for x, text in (
        (torch.eye(3, requires_grad=True), "x must not require a gradient"),
        (torch.eye(3).to_sparse(), "x must be a dense tensor"),
        (torch.empty((3, 3), device="meta"), "x must be a dense tensor"),
    ):
        with pytest.raises(UnsupportedError, match=text):
            Moments().update(x)
    with pytest.raises(UnsupportedError, match="weights must not require a gradient"):
        Moments().update(torch.eye(3), torch.ones(3, requires_grad=True))
    with pytest.raises(DtypeError, match="weights must be of the library and on the device of x"):
        Moments().update(torch.eye(3), np.ones(3))
    with pytest.raises(DtypeError, match="must be float16, bfloat16, float32 or float64"):
        Moments().update(torch.zeros((3, 2), dtype=torch.int32))


def test_missing_parts_say_how_to_get_them(rng):
    moments = Moments().update(mixed(5, 2, rng))
    assert moments.mean_y is None
    assert moments.cross_m2 is None
    with pytest.raises(InvalidArgumentError, match=r"Call update\(x, y=y\)"):
        moments.cross_covariance()
    for name in ("group_labels", "group_counts", "group_weights", "group_means"):
        with pytest.raises(InvalidArgumentError, match=r"Call update\(x, groups=labels\)"):
            getattr(moments, name)
    with pytest.raises(InvalidArgumentError, match=r"Moments.group_means"):
        moments.between()
    with pytest.raises(InvalidArgumentError, match="precision must be one of"):
        Moments(precision="float32")
    with pytest.raises(InvalidArgumentError, match="weights must be one of"):
        moments.covariance(weights="biased")
    assert repr(moments) == "Moments(count=5, n_features=2, precision='auto')"


# ---- storage -----------------------------------------------------------------------------------


def states(rng):
    x = mixed(60, 4, rng)
    return {
        "empty": Moments(),
        "plain": Moments(precision="float64").update(x),
        "full": Moments().update(x, rng.uniform(0, 1, 60), np.arange(60) % 3, y=x[:, :2]),
    }


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("kind", ["empty", "plain", "full"])
def test_save_and_load(suffix, kind, tmp_path, rng):
    if suffix == ".safetensors":
        pytest.importorskip("safetensors")
    moments = states(rng)[kind]
    path = tmp_path / f"state{suffix}"
    moments.save(path)
    loaded = Moments.load(path)
    assert bits(loaded) == bits(moments)
    assert loaded.precision == moments.precision
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    x = mixed(10, 4, rng)
    extra = {"groups": [0] * 10, "y": x[:, :2]} if kind == "full" else {}
    assert bits(loaded.update(x, **extra)) == bits(moments.update(x, **extra))


def test_copies_share_nothing(rng):
    for moments in states(rng).values():
        before = bits(moments)
        for copy in (moments.copy(), pickle.loads(pickle.dumps(moments))):
            assert bits(copy) == before
            copy.merge(copy)
            assert bits(moments) == before
        for array in moments.state_dict().values():
            array[...] = array[..., ::-1] if array.dtype.kind == "U" else 7
        assert bits(moments) == before


def test_string_labels_need_npz(tmp_path, rng):
    pytest.importorskip("safetensors")
    moments = Moments().update(mixed(4, 2, rng), groups=["a", "b", "a", "b"])
    moments.save(tmp_path / "a.npz")
    np.testing.assert_array_equal(Moments.load(tmp_path / "a.npz").group_labels, ["a", "b"])
    with pytest.raises(InvalidArgumentError, match=r"Save as \.npz"):
        moments.save(tmp_path / "a.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_damaged_files(suffix, tmp_path, rng):
    if suffix == ".safetensors":
        pytest.importorskip("safetensors")
    path = tmp_path / f"state{suffix}"
    states(rng)["full"].save(path)
    whole = path.read_bytes()
    for size in {0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 30, len(whole) - 1}:
        path.write_bytes(whole[:size])
        with pytest.raises(FileFormatError, match="must be a whole"):
            Moments.load(path)
    loaded = 0
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[rng.integers(0, len(whole))] ^= 1 << int(rng.integers(0, 8))
        path.write_bytes(damaged)
        with contextlib.suppress(FileFormatError):  # and nothing else comes out
            loaded += Moments.load(path) is not None
    assert loaded < 300


def test_other_files(tmp_path):
    np.save(tmp_path / "a.npy", np.ones(3))
    (tmp_path / "a.npy").rename(tmp_path / "array.npz")
    np.savez(tmp_path / "other.npz", a=np.ones(3))
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps({"count": 1}))
    (tmp_path / "text.safetensors").write_text("no")
    for name in ("array.npz", "other.npz", "pickle.npz"):
        with pytest.raises(FileFormatError, match=r"\[Moments"):
            Moments.load(tmp_path / name)
    if pytest.importorskip("safetensors"):
        with pytest.raises(FileFormatError):
            Moments.load(tmp_path / "text.safetensors")
    with pytest.raises(FileNotFoundError, match="path must be a file"):
        Moments.load(tmp_path / "none.npz")
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(FileNotFoundError, match="path must be a file"):
        Moments.load(tmp_path / "folder.npz")
    for function in (Moments.load, Moments().save):
        with pytest.raises(InvalidArgumentError, match="suffix of path must be one of"):
            function(tmp_path / "a.pt")


def test_states_that_do_not_belong_together(rng):
    good = states(rng)["full"].state_dict()
    for name in good:
        if name in {"cross.cross", "groups.sums"}:
            continue  # without these there is no such part
        with pytest.raises(FileFormatError):
            Moments.from_state_dict({k: v for k, v in good.items() if k != name})
    for name, value in (
        ("m2", np.zeros((3, 3))),
        ("mean", np.zeros(5)),
        ("totals", np.zeros(3)),
        ("count", np.zeros(2)),
        ("version", np.array([99])),
        ("cross.mean_x", np.zeros(9)),
        ("groups.counts", np.zeros(9)),
        ("m2", np.array([["a"]])),
    ):
        with pytest.raises(FileFormatError, match=r"\[Moments\]"):
            Moments.from_state_dict(good | {name: value})


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_disk_full(suffix, tmp_path, monkeypatch, rng):
    path = tmp_path / f"state{suffix}"
    states(rng)["plain"].save(path)
    before = path.read_bytes()

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    if suffix == ".npz":
        monkeypatch.setattr(np, "savez", full)
    else:
        monkeypatch.setattr(pytest.importorskip("safetensors.numpy"), "save_file", full)
    with pytest.raises(OSError, match=r"the disk is full: ") as caught:
        states(rng)["full"].save(path)
    assert isinstance(caught.value, SubspanError)
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_an_interrupted_save_leaves_nothing(tmp_path, monkeypatch, rng):
    def interrupt(file, **_):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", interrupt)
    with pytest.raises(KeyboardInterrupt):
        states(rng)["full"].save(tmp_path / "a.npz")
    assert list(tmp_path.iterdir()) == []


# ---- memory ------------------------------------------------------------------------------------

BOUNDED = """
import resource, sys
import numpy as np, subspan
from subspan import Moments, PCA
path, rows, d = sys.argv[1] if len(sys.argv) > 1 else {path!r}, {rows}, {d}
warm = np.random.default_rng(0).standard_normal((2000, d)).astype(np.float32)
Moments().update(warm); PCA(4).fit(warm)  # threads, BLAS buffers, modules
del warm
def data_size():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmData"))
limit = data_size() + (64 << 20)
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
try:
    bytearray(100 << 20)
except MemoryError:
    pass
else:
    raise SystemExit("the limit does not bind")
x = np.memmap({path!r}, np.float32, "r", shape=(rows, d))
moments = Moments().update(x)
pca = PCA(4).fit(x)
assert moments.count == rows and pca.n_samples_ == rows
print(repr(float(np.trace(moments.covariance()))), repr(float(pca.explained_variance_[0])))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_DATA is Linux's")
def test_a_large_file_passes_through_little_memory(tmp_path, run_python, rng):
    d, block, repeats = 768, 2048, 64  # 402 MB of float32
    rows = rng.standard_normal((block, d)).astype(np.float32)
    path = tmp_path / "rows.bin"
    with path.open("wb") as file:
        for _ in range(repeats):
            rows.tofile(file)
    done = run_python(BOUNDED.format(path=str(path), rows=block * repeats, d=d))
    trace, top = (float(word) for word in done.stdout.split())
    centred = rows.astype(np.float64) - rows.astype(np.float64).mean(axis=0)
    n = block * repeats
    np.testing.assert_allclose(trace, np.square(centred).sum() * repeats / (n - 1), rtol=1e-6)
    wanted = np.linalg.norm(centred, 2) ** 2 * repeats / (n - 1)
    np.testing.assert_allclose(top, wanted, rtol=1e-5)


def test_states_on_several_threads_at_once(rng):
    x = mixed(4000, 30, rng).astype(np.float32)
    wanted = bits(Moments().update(x))
    seen = []
    workers = [
        threading.Thread(target=lambda: seen.append(bits(Moments().update(x)))) for _ in range(6)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert seen == [wanted] * 6
    same_bits((Moments().update(x).mean, Moments().update(x).mean))
