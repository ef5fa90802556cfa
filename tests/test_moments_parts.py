"""Moments of weighted rows, of parts, of groups and of pairs; the same bits every time."""

import numpy as np
import pytest
from moments_oracle import EXACT, PRODUCTS, bits, check, error_of, in_chunks, mixed, oracle
from subspan import Moments
from subspan.errors import (
    DtypeError,
    InvalidArgumentError,
)

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
