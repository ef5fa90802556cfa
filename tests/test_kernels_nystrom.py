"""subspan.kernels.nystrom: against dense matrices, the best rank, and scikit-learn's features."""

import numpy as np
import pytest
from kernel_oracle import matrix
from subspan.errors import (
    ConvergenceError,
    DtypeError,
    InvalidArgumentError,
    UnsupportedError,
)
from subspan.kernels import nystrom

DEFINITE = (
    *("gaussian", "laplacian", "matern12", "matern32", "matern52", "cauchy"),
    *("rational_quadratic", "exp_dot", "linear", "polynomial"),
)


def product(factor):
    return factor.left.astype(float) @ factor.right.T.astype(float)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kernel", DEFINITE)
def test_the_residual_is_what_it_says(kernel, dtype, rng):
    x = (rng.normal(size=(230, 4)) + 3).astype(dtype)
    width = 5.0 if kernel in {"exp_dot", "polynomial"} else np.array([1.0, 2.0, 1.5, 3.0])
    k = matrix(x, x, kernel, bandwidth=width, alpha=0.7)
    factor = nystrom(x, kernel=kernel, bandwidth=width, alpha=0.7, rank=60)
    left = k - product(factor)
    eps = 500 * np.finfo(dtype).eps * np.diag(k).max()
    np.testing.assert_allclose(factor.trace, np.trace(k), rtol=1e-5)
    np.testing.assert_allclose(factor.residual, np.diag(left), atol=eps)
    assert np.linalg.eigvalsh(left)[0] > -eps * len(x) ** 0.5  # semidefinite
    low, high = {"linear": (4, 4), "polynomial": (35, 37)}.get(kernel, (60, 60))
    assert low <= factor.rank <= high  # of rounding, a column or two
    np.testing.assert_array_equal(factor.landmarks, x[factor.pivots])
    assert len(set(factor.pivots.tolist())) == factor.rank
    # By the definition, with these landmarks.
    z = factor.landmarks
    of_x, of_z = (matrix(a, z, kernel, bandwidth=width, alpha=0.7) for a in (x, z))
    np.testing.assert_allclose(factor.root @ factor.root.T, of_z, rtol=1e-4, atol=eps)
    defined = of_x @ np.linalg.lstsq(of_z, of_x.T, rcond=1e-12)[0]
    np.testing.assert_allclose(product(factor), defined, atol=50 * eps)


@pytest.mark.parametrize("kernel", ["gaussian", "laplacian", "exp_dot"])
def test_two_sides(kernel, rng):
    x, y = rng.normal(size=(150, 3)), rng.normal(size=(90, 3)) + 0.5
    k = matrix(x, y, kernel, bandwidth=1.5)
    factor = nystrom(x, y, kernel=kernel, bandwidth=1.5, rank=40)
    assert factor.shape == (150, 90)
    left = k - product(factor)
    assert np.linalg.norm(left, 2) <= factor.bound
    corner = np.sqrt(np.outer(factor.residual[:150], factor.residual[150:]))
    assert (np.abs(left) <= corner + 1e-12).all()
    np.testing.assert_array_equal(factor.landmarks, np.concatenate([x, y])[factor.pivots])
    v = rng.normal(size=(90, 2))
    np.testing.assert_allclose(factor @ v, product(factor) @ v, atol=1e-12)
    np.testing.assert_allclose(factor @ v[:, 0], product(factor) @ v[:, 0], atol=1e-12)
    np.testing.assert_allclose(factor.features(x), factor.left, atol=1e-9)
    np.testing.assert_allclose(factor.features(y), factor.right, atol=1e-9)


def test_it_is_near_the_best_rank_and_never_better(rng):
    x = rng.normal(size=(300, 2))
    values = np.linalg.eigvalsh(matrix(x, x, "gaussian"))[::-1]
    for rank in (5, 10, 20, 40):
        best = values[rank:].sum()
        came = [nystrom(x, rank=rank, seed=s).trace_residual for s in range(10)]
        assert min(came) >= best * (1 - 1e-9)
        assert np.mean(came) <= 10 * best  # of as many points in order, 100 to 10^6 times as much


def test_pivots_are_those_of_one_draw_at_a_time():
    """The probabilities of the first two pivots, against the definition: many draws of a seed."""
    x = np.array([[0.0], [0.1], [1.0], [5.0]])
    k = matrix(x, x, "gaussian")
    wanted = np.zeros((4, 4))
    for first in range(4):
        left = np.diag(k) - k[:, first] ** 2
        wanted[first] = left / left.sum() / 4
    came = np.zeros((4, 4))
    for seed in range(1200):
        first, second = nystrom(x, rank=2, seed=seed).pivots
        came[first, second] += 1 / 1200
    assert np.abs(came - wanted).max() < 4 * np.sqrt(0.1 * 0.9 / 1200)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_tol_is_met_or_refused_by_name(dtype, rng):
    x = rng.normal(size=(400, 3)).astype(dtype)
    ranks = []
    for tol in (0.3, 0.03, 0.003):
        factor = nystrom(x, bandwidth=2.0, tol=tol)
        assert factor.trace_residual <= tol * factor.trace
        ranks.append(factor.rank)
    assert ranks[0] < ranks[1] < ranks[2] < 200
    with pytest.raises(
        ConvergenceError, match=r"\[nystrom\] tol must .* 10 landmarks .* got 0.001"
    ):
        nystrom(x, bandwidth=2.0, tol=1e-3, rank=10)
    with pytest.raises(ConvergenceError, match=r"got 0\.001 where they reach 0\.75\. Raise"):
        nystrom(x, kernel="laplacian", bandwidth=0.01, tol=1e-3, rank=100)


def test_nothing_but_rounding_ends_it(rng):
    few = rng.normal(size=(3, 2))
    x = np.repeat(few, 40, axis=0)
    factor = nystrom(x, rank=50)
    assert factor.rank == 3
    np.testing.assert_allclose(product(factor), matrix(x, x, "gaussian"), atol=1e-13)
    nothing = nystrom(np.zeros((5, 2)), kernel="linear", tol=0.1)
    assert (nothing.rank, nothing.trace) == (0, 0.0)
    np.testing.assert_array_equal(nothing @ np.ones(5), np.zeros(5))
    flat = nystrom(x, bandwidth=np.inf)
    np.testing.assert_allclose(product(flat), 1.0)


def test_features_are_those_of_sklearn(rng):
    approximation = pytest.importorskip("sklearn.kernel_approximation")
    x, new = rng.normal(size=(200, 3)), rng.normal(size=(30, 3))
    factor = nystrom(x, bandwidth=0.9, rank=40)
    theirs = approximation.Nystroem(kernel="rbf", gamma=1 / (2 * 0.81), n_components=40)
    theirs.fit(factor.landmarks)  # all of these are its basis, in some order
    ours, reference = factor.features(new), theirs.transform(new)
    np.testing.assert_allclose(ours @ ours.T, reference @ reference.T, atol=1e-8)
    np.testing.assert_allclose(ours @ factor.left.T, reference @ theirs.transform(x).T, atol=1e-8)


def test_seeds_and_libraries(rng):
    torch = pytest.importorskip("torch")
    x = rng.normal(size=(120, 3)).astype(np.float32)
    first, again, other = (nystrom(x, rank=30, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(first.left, again.left)
    assert set(first.pivots.tolist()) != set(other.pivots.tolist())
    tensor = nystrom(torch.from_numpy(x), rank=30, seed=1)
    v = torch.ones(120)
    assert isinstance(tensor @ v, torch.Tensor)
    assert (tensor @ v).dtype == torch.float32
    np.testing.assert_array_equal((tensor @ v).numpy(), first @ np.ones(120, np.float32))
    assert isinstance(tensor.features(torch.from_numpy(x)), torch.Tensor)
    np.testing.assert_array_equal(nystrom(x[::-1, ::-1], rank=5).landmarks.shape, (5, 3))


X = np.arange(12.0).reshape(6, 2)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: nystrom(X, rank=0), InvalidArgumentError, r"rank must be in 1\.\.6, got 0"),
        (lambda: nystrom(X, X, rank=13), InvalidArgumentError, r"rank must be in 1\.\.12, got 13"),
        (lambda: nystrom(X, rank=2.0), DtypeError, "rank must be an integer"),
        (lambda: nystrom(X, tol=-1.0), InvalidArgumentError, r"tol must be in \[0"),
        (lambda: nystrom(X, seed=-1), InvalidArgumentError, "seed must be in 0"),
        (lambda: nystrom(X, kernel="softmax"), InvalidArgumentError, "kernel must be one of 'gau"),
        (lambda: nystrom(X, kernel="distance"), InvalidArgumentError, "kernel must be one of"),
        (
            lambda: nystrom(X, kernel="polynomial", offset=-1.0),
            InvalidArgumentError,
            r"\[nystrom\] offset must be in \[0",
        ),
        (lambda: nystrom(X, bandwidth=0.0), InvalidArgumentError, "bandwidth must be > 0, got 0"),
        (lambda: nystrom(X, bandwidth=np.ones(3)), InvalidArgumentError, "bandwidth must be a num"),
        (lambda: nystrom(X[0]), InvalidArgumentError, "x must have 2 axes, got 1"),
        (lambda: nystrom(X[:0]), InvalidArgumentError, r"x must have rows and columns, got shape"),
        (lambda: nystrom(X, X[:, :1]), InvalidArgumentError, "y must have 2 columns like x, got 1"),
        (lambda: nystrom(X * np.nan), InvalidArgumentError, r"x must be finite, got nan at \[0, 0"),
        (lambda: nystrom(X, X / 0), InvalidArgumentError, r"y must be finite, got nan at \[0, 0\]"),
        (lambda: nystrom([1.0]), DtypeError, "x must be an array"),
        (lambda: nystrom(X.astype(int)), DtypeError, "x must be float32 or float64, got int64"),
        (lambda: nystrom(X, X.astype("f4")), DtypeError, "y must be float64 like x, got float32"),
        (
            lambda: nystrom(100 * X, kernel="exp_dot"),
            InvalidArgumentError,
            r"finite k\(x, x\), got one that overflows",
        ),
        (
            lambda: nystrom(X, rank=2) @ np.ones(5),
            InvalidArgumentError,
            r"v must have shape \(6,\) or \(6, e\), got \(5,\)",
        ),
        (lambda: nystrom(X, rank=2) @ np.full(6, np.inf), InvalidArgumentError, "v must be finite"),
        (
            lambda: nystrom(X, rank=2).features(X[:, :1]),
            InvalidArgumentError,
            r"features\] x must have 2 columns like the landmarks, got 1",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:.*(divide|invalid|overflow)")
def test_refusals(call, error, text):
    with pytest.raises(error, match=text):
        call()


def test_no_gradients():
    torch = pytest.importorskip("torch")
    with pytest.raises(UnsupportedError, match="x must not require a gradient"):
        nystrom(torch.ones(4, 2, requires_grad=True))
