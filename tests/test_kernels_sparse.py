"""subspan.kernels.sparsify, kernel_mass: large entries, sampled rests, and how often they err."""

import numpy as np
import pytest
from kernel_oracle import matrix
from subspan import kernel_matvec
from subspan.errors import ConvergenceError, DtypeError, InvalidArgumentError
from subspan.kernels import kernel_mass, methods, sparsify

DECREASING = (
    *("gaussian", "laplacian", "matern12", "matern32", "matern52", "cauchy"),
    "rational_quadratic",
)


def clusters(rng, n=600, d=8):
    """Points of a matrix with few large entries: its rows sum to about ten."""
    return rng.normal(size=(n // 10, d)).repeat(10, axis=0) + 0.02 * rng.normal(size=(n, d))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kernel", DECREASING)
@pytest.mark.parametrize("sides", [1, 2])
def test_the_large_entries_are_there(kernel, sides, dtype, rng):
    x = (rng.normal(size=(80, 3)) + 100).astype(dtype)
    y = None if sides == 1 else x[:50] + dtype(0.5)
    how = {"kernel": kernel, "bandwidth": np.array([1.0, 0.5, 2.0]), "alpha": 0.8}
    k = matrix(x, x if y is None else y, **how)
    for threshold in (0.3, 0.05):
        factor = sparsify(x, y, threshold=threshold, **how)
        dense = np.zeros(k.shape)
        rows = np.repeat(np.arange(80), np.diff(factor.offsets))
        dense[rows, factor.indices] = factor.values
        eps = 3e-4 if dtype == np.float32 else 1e-9  # of the coordinates, which lie far away
        near = np.abs(k / threshold - 1) < eps
        np.testing.assert_array_equal((dense > 0) | near, (k >= threshold) | near)
        np.testing.assert_allclose(dense[dense > 0], k[dense > 0], rtol=eps)
        assert factor.pairs == len(rows) == (dense > 0).sum()
        v = rng.normal(size=(k.shape[1], 3)).astype(dtype)
        np.testing.assert_allclose(
            factor @ v, dense @ v, atol=1e-4 if dtype == np.float32 else 1e-12
        )
        np.testing.assert_allclose((factor @ v)[:, 0], factor @ v[:, 0], rtol=1e-5, atol=1e-6)


def test_the_rest_is_sampled_and_rarely_missed(rng):
    """The bound fails with at most 1 of 100 seeds; it is a bound, so in fact with none."""
    x = clusters(rng, 200)
    k = matrix(x, x, "cauchy", bandwidth=0.3)
    factor = sparsify(x, kernel="cauchy", bandwidth=0.3, threshold=0.01)
    v = rng.uniform(size=(200, 2))
    exact = k @ v
    outs, failures, beyond = [], 0, 0
    for seed in range(200):
        out, info = factor.product(v, tol=0.4, seed=seed, return_info=True)
        true = (np.linalg.norm(out - exact, axis=0) / np.linalg.norm(exact, axis=0)).max()
        failures += true > 0.4
        beyond += true > info.error
        outs.append(out)
        assert info.error <= 0.4
        assert info.method == "sparse"
        assert info.samples < 186
    allowed = 200 * 0.01 + 3 * np.sqrt(200 * 0.01 * 0.99)
    assert failures <= allowed
    assert beyond <= allowed
    # What is left out is 9% of the product, and the samples are unbiased.
    stored = np.linalg.norm(factor @ v - exact) / np.linalg.norm(exact)
    assert stored > 0.05
    spread = np.std(outs, axis=0) / np.sqrt(200)
    assert (np.abs(np.mean(outs, axis=0) - exact) < 4.5 * spread + 1e-12).all()
    assert spread.max() > 1e-5


def test_what_half_of_the_columns_cannot_meet(rng):
    x = rng.normal(size=(400, 2))
    factor = sparsify(x, threshold=0.5)
    with pytest.raises(ConvergenceError, match=r"product\] tol must .* got 1e-06 where they reach"):
        factor.product(np.ones(400), tol=1e-6)
    few = sparsify(x[:1], threshold=0.5)
    out, info = few.product(np.ones(1), tol=0.0, return_info=True)
    assert (out.tolist(), info.error) == ([1.0], 0.0)


def test_the_method_is_exact_where_that_is_no_slower(rng):
    x, v = clusters(rng), rng.normal(size=600)
    out, info = kernel_matvec(x, None, v, bandwidth=0.6, method="sparse", tol=0.1, return_info=True)
    assert info.method == "exact"
    np.testing.assert_allclose(out, kernel_matvec(x, None, v, bandwidth=0.6), rtol=1e-9)
    out = kernel_matvec(x, None, np.zeros(600), bandwidth=0.6, method="sparse", tol=0.1)
    np.testing.assert_array_equal(out, 0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_method_samples_where_it_is_quicker(dtype, rng, monkeypatch):
    """Searches for nothing, so that it pays here already."""
    monkeypatch.setattr(methods._cost, "_SEARCHED", 0.0)
    monkeypatch.setattr(methods._cost, "_SEARCHED_COORDINATE", 0.0)
    monkeypatch.setattr(methods._cost, "_FOUND", 0.0)
    x = clusters(rng, 2000, 16).astype(dtype)
    v = rng.normal(size=(2000, 64)).astype(dtype)
    exact = kernel_matvec(x.astype(float), None, v.astype(float), bandwidth=0.6)
    out, info = kernel_matvec(x, None, v, bandwidth=0.6, method="sparse", tol=0.1, return_info=True)
    true = (np.linalg.norm(out - exact, axis=0) / np.linalg.norm(exact, axis=0)).max()
    assert info.method == "sparse"
    assert out.dtype == dtype
    assert true <= info.error <= 0.1
    assert info.samples > 0


@pytest.mark.parametrize("kernel", ["gaussian", "laplacian", "cauchy", "exp_dot"])
@pytest.mark.parametrize("shape", [(90, 90), (40, 130), (130, 3), (1, 1)])
def test_mass(kernel, shape, rng):
    x, y = (rng.normal(size=(n, 3)) for n in shape)
    x[: shape[0] // 2] = x[0]  # many rows with the same largest entries
    y[: shape[1] // 3] = x[0]
    for other in (y, None):
        k = matrix(x, x if other is None else other, kernel, bandwidth=0.7)
        largest = np.sort(k.ravel())[::-1][: len(x)].sum()
        came = kernel_mass(x, other, kernel=kernel, bandwidth=0.7)
        np.testing.assert_allclose(came.mass, k.sum() / len(x), rtol=1e-9)
        np.testing.assert_allclose(came.head, largest, rtol=1e-9)
        np.testing.assert_allclose(came.ratio, k.sum() / largest - 1, atol=1e-9)


def test_mass_of_one_row_that_holds_all(rng):
    """All of the largest entries lie in one row, so that its neighbours are asked for again."""
    x = np.concatenate([np.zeros((1, 2)), 100 + rng.normal(size=(199, 2))])
    y = 0.1 * rng.normal(size=(500, 2))
    k = matrix(x, y, "gaussian")
    came = kernel_mass(x.astype(np.float32), y.astype(np.float32))
    np.testing.assert_allclose(came.head, np.sort(k[0])[::-1][:200].sum(), rtol=1e-5)
    assert came.ratio > 1.4


X = np.arange(12.0).reshape(6, 2)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: sparsify(X, threshold=0.0), InvalidArgumentError, "threshold must be in"),
        (lambda: sparsify(X, threshold=1.0), InvalidArgumentError, "threshold must be in"),
        (lambda: sparsify(X, threshold="x"), DtypeError, "threshold must be a number"),
        (lambda: sparsify(X, kernel="exp_dot"), InvalidArgumentError, "kernel must be one of"),
        (lambda: sparsify(X, X[:, :1]), InvalidArgumentError, "y must have 2 columns"),
        (lambda: sparsify(X / 0), InvalidArgumentError, "x must be finite"),
        (lambda: sparsify(X).product(np.ones(6), tol=-1.0), InvalidArgumentError, "tol must be in"),
        (lambda: sparsify(X).product(np.ones(5), tol=0.1), InvalidArgumentError, r"\(6,\) or \(6"),
        (lambda: sparsify(X) @ np.ones((6, 1, 1)), InvalidArgumentError, "v must have shape"),
        (lambda: kernel_mass(X, kernel="linear"), InvalidArgumentError, "kernel must be one of"),
        (lambda: kernel_mass(X, bandwidth=-1.0), InvalidArgumentError, "bandwidth must be > 0"),
        (lambda: kernel_mass(X, X[:0]), InvalidArgumentError, "y must have rows and columns"),
        (lambda: kernel_mass(X[0]), InvalidArgumentError, "x must have 2 axes"),
        (lambda: kernel_mass(30 * X, kernel="exp_dot"), InvalidArgumentError, "overflow"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*(divide|invalid)")
def test_refusals(call, error, text):
    with pytest.raises(error, match=text):
        call()
