"""subspan.kernels.random_features: unbiased, of the promised variance, and what is refused."""

import numpy as np
import pytest
from kernel_oracle import matrix
from subspan import kernel_matvec
from subspan.errors import ConvergenceError, DtypeError, InvalidArgumentError
from subspan.kernels import random_features

FEATURED = (
    *("gaussian", "laplacian", "matern32", "matern52", "cauchy", "rational_quadratic"),
    "exp_dot",
)


def options(kernel):
    return {"kernel": kernel, "bandwidth": np.array([1.0, 2.0, 1.5]), "alpha": 0.6}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kernel", FEATURED)
def test_they_are_unbiased(kernel, dtype, rng):
    x = (0.7 * rng.normal(size=(12, 3))).astype(dtype)
    k = matrix(x, x, **options(kernel))
    draws = []
    for seed in range(150):
        phi = random_features(x, rank=64, seed=seed, **options(kernel))
        assert phi.dtype == dtype
        assert phi.shape == (12, 64)
        draws.append(phi.astype(float) @ phi.T.astype(float))
    draws = np.array(draws)
    error = draws.std(0) / np.sqrt(len(draws))
    assert (np.abs(draws.mean(0) - k) <= 4.5 * error + 1e-5).all()
    if kernel != "exp_dot":
        assert draws.std(0).max() < 1.1 / np.sqrt(64)  # the root of 1 / rank, and ones on the diag.
        np.testing.assert_allclose(draws[0].diagonal(), 1.0, rtol=1e-5)
    else:
        assert (phi > 0).all()


def test_orthogonal_directions_lower_the_variance(rng):
    """Against independent normal ones, of the Gaussian: the same mean, less spread."""
    x = rng.normal(size=(2, 16)) / 4
    k = matrix(x, x, "gaussian")[0, 1]
    ours, plain = [], []
    for seed in range(250):
        a, b = random_features(x, rank=32, seed=seed)
        ours.append(a @ b - k)
        w = rng.normal(size=(16, 16))
        plain.append(np.cos(w @ (x[0] - x[1])).mean() - k)
    assert np.std(ours) < 0.75 * np.std(plain)


@pytest.mark.parametrize("kernel", FEATURED)
@pytest.mark.parametrize("sides", [1, 2])
def test_products_report_their_error(kernel, sides, rng):
    x = 0.6 * rng.normal(size=(700, 3)) + 1.0
    y = None if sides == 1 else x[:400] + 0.3
    v = rng.uniform(size=(700 if y is None else 400, 2))
    exact = matrix(x, x if y is None else y, kernel, bandwidth=2.0) @ v
    for rank in (64, 1024):
        out, info = kernel_matvec(
            x, y, v, kernel=kernel, bandwidth=2.0, method="rff", rank=rank, return_info=True
        )
        true = (np.linalg.norm(out - exact, axis=0) / np.linalg.norm(exact, axis=0)).max()
        assert true <= 1.1 * info.error
        assert info.error <= 1.6 * true
        assert (info.method, info.rank, info.samples) == ("rff", rank, 256)
        assert np.isnan(info.bound)


def test_tol_takes_features_until_it_is_met(rng):
    x, v = rng.normal(size=(600, 2)), rng.uniform(size=600)
    exact = matrix(x, x, "gaussian") @ v
    ranks = []
    for tol in (0.2, 0.05, 0.02):
        out, info = kernel_matvec(x, None, v, method="rff", tol=tol, return_info=True)
        assert info.error <= tol
        assert np.linalg.norm(out - exact) <= 1.1 * tol * np.linalg.norm(exact)
        ranks.append(info.rank)
    assert ranks[0] <= ranks[1] < ranks[2]
    text = r"tol must be one that method='rff' can meet, got 1e-05 where 512 random features reach"
    with pytest.raises(ConvergenceError, match=text):
        kernel_matvec(x, None, v, method="rff", tol=1e-5)
    with pytest.raises(ConvergenceError, match="where 32 random features reach 0"):
        kernel_matvec(x, None, v, method="rff", tol=0.001, rank=32)
    with pytest.raises(ConvergenceError, match="got 0 where"):
        kernel_matvec(x, None, v, method="rff", tol=0.0)


def test_an_offset_costs_nothing(rng):
    x, v = rng.normal(size=(300, 3)).astype(np.float32), np.ones(300, np.float32)
    here = kernel_matvec(x, None, v, method="rff", rank=512)
    there = kernel_matvec(x + np.float32(1000), None, v, method="rff", rank=512)
    np.testing.assert_allclose(there, here, rtol=2e-3)  # the coordinates themselves lose 6e-5


def test_torch(rng):
    torch = pytest.importorskip("torch")
    x = rng.normal(size=(40, 3)).astype(np.float32)
    phi = random_features(torch.from_numpy(x), rank=10)
    assert isinstance(phi, torch.Tensor)
    np.testing.assert_array_equal(phi.numpy(), random_features(x, rank=10))
    assert not np.array_equal(phi.numpy(), random_features(x, rank=10, seed=1))


X = np.ones((4, 2))


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: random_features(X, rank=7), InvalidArgumentError, "rank must be even for 'gaus"),
        (lambda: random_features(X, rank=0), InvalidArgumentError, "rank must be >= 1, got 0"),
        (lambda: random_features(X, kernel="linear"), InvalidArgumentError, "kernel must be one"),
        (lambda: random_features(X, bandwidth=-1.0), InvalidArgumentError, "bandwidth must be > 0"),
        (lambda: random_features(X, seed=1 << 64), InvalidArgumentError, "seed must be in 0"),
        (lambda: random_features(X * np.inf), InvalidArgumentError, "x must be finite, got inf"),
        (lambda: random_features([[1.0]]), DtypeError, "x must be an array"),
        (
            lambda: kernel_matvec(X, None, X[:, 0], method="rff", rank=5),
            InvalidArgumentError,
            r"\[kernel_matvec\] rank must be even",
        ),
        (
            lambda: kernel_matvec(40 * X, None, X[:, 0], method="rff", rank=50, kernel="exp_dot"),
            InvalidArgumentError,
            "finite kernel values",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:.*(overflow|invalid)")
def test_refusals(call, error, text):
    with pytest.raises(error, match=text):
        call()
