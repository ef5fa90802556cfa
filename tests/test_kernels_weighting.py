"""Weightings and magnitudes: closed forms, dense references, the ways, duplicates, refusals."""

import numpy as np
import pytest
from subspan.errors import ConvergenceError, DtypeError, InvalidArgumentError, UnsupportedError
from subspan.kernels import magnitude, weighting_vector

WAYS = ("cholesky", "cg", "neighbors")


def similarity(x, scale=1.0):
    return np.exp(-scale * np.sqrt(np.square(x[:, None] - x).sum(-1)))


@pytest.mark.parametrize("method", WAYS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_closed_forms(method, dtype):
    """Two points: 2 / (1 + e^-d). n at equal distances: n / (1 + (n - 1) e^-d)."""
    for gap in (0.01, 1.0, 30.0):
        x = np.array([0.0, gap], dtype)
        wanted = 2 / (1 + np.exp(-0.7 * float(x[1])))
        assert np.isclose(magnitude(x, scale=0.7, method=method), wanted, rtol=1e-10)
    for n in (1, 3, 20):
        x = np.eye(n, dtype=dtype)
        wanted = n / (1 + (n - 1) * np.exp(-(2**0.5)))
        assert np.isclose(magnitude(x, method=method), wanted, rtol=1e-7)
        weights = weighting_vector(x, method=method)
        assert weights.dtype == np.float64
        np.testing.assert_allclose(weights, wanted / n, rtol=1e-7)


def test_a_line_has_a_closed_form(rng):
    """Inner points have the mean of tanh of half their gaps, ends half of 1 + tanh."""
    x = np.arange(50.0) + rng.uniform(-0.3, 0.3, 50)
    halves = np.tanh(np.diff(x) / 2)
    wanted = np.r_[1 + halves[0], halves[:-1] + halves[1:], 1 + halves[-1]] / 2
    np.testing.assert_allclose(weighting_vector(x), wanted, rtol=1e-9)
    # All that a point sees of a line are those beside it.
    near = weighting_vector(x, method="neighbors", n_neighbors=6)
    np.testing.assert_allclose(near, wanted, rtol=1e-9)


@pytest.mark.parametrize("scale", [0.3, 1.0, 5.0])
@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_the_dense_solution(scale, ridge, rng):
    x = rng.standard_normal((100, 3)) + 100
    matrix = similarity(x, scale) + ridge * np.eye(100)
    wanted = np.linalg.solve(matrix, np.ones(100))
    for method, limit in (("cholesky", 1e-10), ("cg", 1e-6), ("auto", 1e-10)):
        weights = weighting_vector(x, scale=scale, ridge=ridge, method=method)
        np.testing.assert_allclose(weights, wanted, atol=limit * np.abs(wanted).max())
    every = weighting_vector(x, scale=scale, ridge=ridge, method="neighbors", n_neighbors=100)
    np.testing.assert_allclose(every, wanted, atol=1e-10 * np.abs(wanted).max())
    own = [1.0 if j == 0 else 0.0 for j in range(32)]
    order = np.argsort(np.square(x - x[7]).sum(1))[:32]
    local = np.linalg.solve(matrix[np.ix_(order, order)], np.ones(32))
    near = weighting_vector(x, scale=scale, ridge=ridge, method="neighbors")
    assert np.isclose(near[7], local @ own, rtol=1e-9)


def test_limits(rng):
    x = rng.standard_normal((60, 2))
    np.testing.assert_allclose(weighting_vector(x, scale=1e6), 1, rtol=1e-12)
    assert abs(magnitude(x, scale=1e-5) - 1) < 1e-3
    values = [magnitude(x, scale=scale) for scale in (0.01, 0.1, 1.0, 10.0, 100.0)]
    assert (np.diff(values) > 0).all()
    assert 1 < values[0] < values[-1] < 60


def test_boundaries_count_more():
    grid = np.stack(np.meshgrid(np.arange(15.0), np.arange(15.0)), -1).reshape(-1, 2)
    weights = weighting_vector(grid / 3).reshape(15, 15)
    assert weights[0, 0] > weights[0, 7] > weights[7, 7] > 0


@pytest.mark.parametrize("method", WAYS)
def test_duplicates_share(method, rng):
    x = rng.standard_normal((40, 2))
    single = weighting_vector(x, method=method, n_neighbors=40)
    again = np.r_[x, x[:5], x[:5], x[3:4]]
    weights = weighting_vector(again, method=method, n_neighbors=40)
    assert np.isclose(weights.sum(), single.sum(), rtol=1e-9)
    np.testing.assert_allclose(weights[:3], single[:3] / 3, rtol=1e-6)
    np.testing.assert_allclose(weights[[3, 43, 48, 50]], single[3] / 4, rtol=1e-6)
    assert np.isclose(magnitude(np.ones((7, 3)), method=method), 1)


def test_libraries(library, rng):
    x = rng.standard_normal((20, 2))
    weights = weighting_vector(library.put(x))
    assert library.owns(weights)
    np.testing.assert_array_equal(library.get(weights), weighting_vector(x))
    assert magnitude(library.put(x)) == magnitude(x)


X = np.arange(8.0).reshape(4, 2)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"x": X[:0]}, InvalidArgumentError, "x must have rows and columns"),
        ({"x": X[None]}, InvalidArgumentError, "x must have 2 axes"),
        ({"x": X * np.nan}, InvalidArgumentError, "finite, got nan at [0, 0]"),
        ({"x": X.astype(int)}, DtypeError, "float32 or float64"),
        ({"x": [1.0]}, DtypeError, "must be an array"),
        ({"scale": 0.0}, InvalidArgumentError, "scale must be > 0"),
        ({"scale": np.nan}, InvalidArgumentError, "scale must be"),
        ({"method": "qr"}, InvalidArgumentError, "method must be one of"),
        ({"ridge": -1.0}, InvalidArgumentError, "ridge must be"),
        ({"n_neighbors": 0}, InvalidArgumentError, "n_neighbors must be >= 1"),
        ({"tol": 0.0}, InvalidArgumentError, "tol must be"),
        ({"max_iter": 0}, InvalidArgumentError, "max_iter must be"),
    ],
)
def test_refusals(change, error, text):
    for function in (weighting_vector, magnitude):
        with pytest.raises(error, match=rf"^\[{function.__name__}\] ") as raised:
            function(**({"x": X} | change))
        assert text in str(raised.value)


def test_what_cannot_be_solved_is_said(rng):
    x = rng.standard_normal((200, 1)) * 1e-18
    with pytest.raises(InvalidArgumentError, match="positive definite in float64"):
        weighting_vector(x)
    x = rng.standard_normal((200, 3))
    with pytest.raises(ConvergenceError, match="tol must be a residual that can be met"):
        weighting_vector(x, scale=0.01, method="cg", max_iter=3)
    with pytest.raises(InvalidArgumentError, match="options must be those"):
        magnitude(x, kernel="gaussian")


def test_gradients_are_not_lost_in_silence():
    torch = pytest.importorskip("torch")
    with pytest.raises(UnsupportedError, match="must not require a gradient"):
        weighting_vector(torch.ones(5, 2, requires_grad=True))
