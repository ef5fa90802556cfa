"""Rows that name most of the dictionary are summed as a product: same values, same rules."""

import numpy as np
import pytest
from decode_oracle import FLOATS, close, dense, encoder_gradients, gradients, near, problem
from matrices import same_bits
from subspan import _core, sparse_decode


def full(rng, rows, k, n, d, dtype="float32"):
    """A problem whose rows name k different features each, in no order."""
    values, _, w, b = problem(rng, rows=rows, k=k, n=n, d=d, dtype=dtype)
    indices = np.argsort(rng.random((rows, n)), axis=1)[:, :k].astype(np.int64)
    return values, indices, w, b


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("rows", [8, 9, 31, 32, 33, 70])
@pytest.mark.parametrize("d", [1, 15, 33, 130, 1100])
def test_values(dtype, rows, d, rng):
    for n, k in ((16, 8), (40, 40), (2500, 1300) if d < 200 else (50, 30)):
        values, indices, w, b = full(rng, rows, k, n, d, dtype)
        close(sparse_decode(values, indices, w, b), (values, indices), w, b, dtype)
        close(sparse_decode(values, indices, w), (values, indices), w, None, dtype)


def test_they_are_sums_in_ascending_order_of_the_feature(rng):
    """What tells the product from gathered sums: the order of the pairs does not show."""
    values, indices, w, b = full(rng, 40, 60, 100, 33)
    order = np.argsort(indices, axis=1)
    ascending = (np.take_along_axis(a, order, axis=1) for a in (values, indices))
    same_bits((sparse_decode(values, indices, w, b), sparse_decode(*ascending, w, b)))
    few, some = values[:, :20], indices[:, :20]
    turned = sparse_decode(few[:, ::-1], some[:, ::-1], w, b)
    assert (sparse_decode(few, some, w, b) != turned).any()


def test_duplicates_add(rng):
    values, indices, w, b = problem(rng, rows=40, k=64, n=20, d=17)
    close(sparse_decode(values, indices, w, b), (values, indices), w, b, "float32")


def test_rows_nobody_names_do_not_count(rng):
    """Infinities and NaN of the dictionary reach the rows that name them, and no others."""
    values, indices, w, b = full(rng, 64, 70, 100, 40)
    w[7, 3], w[50, 39] = np.inf, np.nan
    got = sparse_decode(values, indices, w, b)
    for t in range(64):
        with np.errstate(invalid="ignore"):
            wanted = values[t].astype(np.float64) @ w[indices[t]].astype(np.float64) + b
        np.testing.assert_array_equal(np.isfinite(got[t]), np.isfinite(wanted))
        near(got[t][np.isfinite(wanted)], wanted[np.isfinite(wanted)], "float32", scale=10)
    assert 0 < np.isfinite(got[:, 3]).sum() < 64


@pytest.mark.parametrize("dtype", FLOATS)
def test_layouts_and_threads_give_the_same_bits(dtype, threads, rng):
    values, indices, w, b = full(rng, 200, 300, 500, 150, dtype)
    wanted = sparse_decode(values, indices, w, b)
    wide = np.zeros((500, 300), dtype)
    wide[:, ::2] = w
    for count in (1, 2, 3):
        threads(count)
        same_bits((sparse_decode(values, indices, w, b), wanted))
        same_bits((sparse_decode(values, indices, np.asfortranarray(w), b), wanted))
        same_bits((sparse_decode(values, indices, wide[:, ::2], b), wanted))


def test_rows_of_all_lengths(threads, rng):
    """Blocks of 32 rows are decided upon one by one, and a row for itself is gathered."""
    lengths = np.concatenate(
        [rng.integers(0, 10, 40), rng.integers(80, 101, 50), rng.integers(0, 101, 60), [100]]
    )
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    indices = np.concatenate([rng.permutation(100)[:count] for count in lengths])
    values = rng.standard_normal(len(indices)).astype(np.float32)
    _, _, w, b = problem(rng, n=100, d=70)
    got = sparse_decode(values, indices, w, b, offsets=offsets)
    close(got, (values, indices, offsets), w, b, "float32")
    threads(3)
    same_bits((sparse_decode(values, indices, w, b, offsets=offsets), got))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("turned", [False, True])
def test_gradients_of_an_encoder_whose_latents_fire_often(dtype, turned, rng):
    """The gradient of w_enc sums rows of x less b_pre, by columns or by rows."""
    rows, n, d = 90, 100, 67
    dz = rng.standard_normal((rows, 60)).astype(dtype)
    indices = np.argsort(rng.random((rows, n)), axis=1)[:, :60].astype(np.int64)
    x = rng.standard_normal((rows, d)).astype(dtype)
    b_pre = rng.standard_normal(d).astype(dtype)
    w = rng.standard_normal((n, d)).astype(dtype).T
    w_enc = w if turned else np.ascontiguousarray(w)
    of_w, _, of_x, _ = encoder_gradients(dz, indices, x, b_pre, w_enc)
    f = np.zeros((rows, n))
    np.put_along_axis(f, indices, dz.astype(np.float64), axis=1)
    near(of_w, (x - b_pre).astype(np.float64).T @ f, dtype, scale=8)
    near(of_x, f @ w_enc.T.astype(np.float64), dtype, scale=8)


@pytest.mark.parametrize("dtype", FLOATS)
def test_gradients_of_a_decoder_whose_features_are_named_often(dtype, rng):
    """What is summed as a product has the same bits with and without the products of values."""
    values, indices, w, _ = full(rng, 80, 70, 100, 40, dtype)
    gradient = rng.standard_normal((80, 40)).astype(dtype)
    of_values, of_w, of_b = gradients(values, indices, w, gradient)
    f, g = dense(values, indices, 100), gradient.astype(np.float64)
    near(of_w, f.T @ g, dtype, scale=8)
    wanted = np.take_along_axis(g @ w.T.astype(np.float64), indices, axis=1)
    near(of_values, wanted.ravel(), dtype, scale=8)
    near(of_b, g.sum(0), dtype, scale=8)
    alone = np.empty_like(of_w)
    code = (values.ravel(), indices.ravel(), None, 80)
    _core.sparse_decode_backward(*code, w, gradient, None, alone, None)
    same_bits((alone, of_w))
