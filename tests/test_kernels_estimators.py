"""KernelRidge and KernelDensity: against scikit-learn, dense sums, integrals, and its checks."""

import pickle

import numpy as np
import pytest
from kernel_oracle import matrix
from subspan.errors import ConvergenceError, DtypeError, InvalidArgumentError, UnsupportedError
from subspan.kernels import KernelDensity, KernelRidge, nystrom

DECREASING = ("gaussian", "laplacian", "matern12", "matern32", "matern52", "cauchy")


@pytest.mark.filterwarnings("ignore")  # of the checks themselves, which plant odd estimators
@pytest.mark.parametrize(
    "estimator",
    [
        KernelRidge(),
        KernelRidge(method="nystrom", kernel="laplacian"),
        KernelDensity(),
        KernelDensity("scott", kernel="matern32"),
    ],
    ids=repr,
)
def test_check_estimator(estimator):
    checks = pytest.importorskip("sklearn.utils.estimator_checks")
    results = checks.check_estimator(estimator, on_skip=None, on_fail="raise")
    assert len(results) > 40
    assert not [r["check_name"] for r in results if r["status"] not in ("passed", "skipped")]


# ---- KernelRidge -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"bandwidth": 0.7}, {"kernel": "rbf", "gamma": 1 / (2 * 0.49)}),
        (
            {"kernel": "polynomial", "degree": 2, "offset": 0.5, "bandwidth": 2.0},
            {"kernel": "poly", "degree": 2, "coef0": 0.5, "gamma": 0.5},
        ),
        ({"kernel": "linear"}, {"kernel": "linear"}),
    ],
)
def test_ridge_is_that_of_sklearn(ours, theirs, rng):
    reference = pytest.importorskip("sklearn.kernel_ridge").KernelRidge
    x, q = rng.normal(size=(200, 3)), rng.normal(size=(40, 3))
    for y in (rng.normal(size=200), rng.normal(size=(200, 2))):
        a = KernelRidge(0.3, tol=1e-10, **ours).fit(x, y)
        b = reference(alpha=0.3, **theirs).fit(x, y)
        np.testing.assert_allclose(a.predict(q), b.predict(q), rtol=1e-7, atol=1e-8)
        np.testing.assert_allclose(a.dual_coef_, b.dual_coef_, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(a.score(x, y), b.score(x, y), rtol=1e-9)
        assert a.solve_info_.residuals.max() <= 1e-10


@pytest.mark.parametrize("kernel", ["gaussian", "matern52", "exp_dot"])
def test_nystrom_solves_the_problem_of_its_landmarks(kernel, rng):
    """Least squares of sums over landmarks, by the definition; all points are the exact one."""
    x, q = rng.normal(size=(150, 2)), rng.normal(size=(30, 2))
    y = np.sin(2 * x[:, 0]) + 0.1 * rng.normal(size=150)
    how = {"kernel": kernel, "bandwidth": 1.5}
    model = KernelRidge(0.2, method="nystrom", rank=15, **how).fit(x, y)
    z = nystrom(x, rank=15, **how).landmarks
    np.testing.assert_array_equal(model.X_fit_, z)
    of_x, of_z = matrix(x, z, **how), matrix(z, z, **how)
    coefficients = np.linalg.lstsq(of_x.T @ of_x + 0.2 * of_z, of_x.T @ y, rcond=1e-14)[0]
    np.testing.assert_allclose(model.predict(q), matrix(q, z, **how) @ coefficients, atol=1e-5)
    exact = KernelRidge(0.2, kernel="laplacian").fit(x, y)
    whole = KernelRidge(0.2, kernel="laplacian", method="nystrom").fit(x, y)
    np.testing.assert_allclose(whole.predict(q), exact.predict(q), atol=1e-6)
    assert whole.trace_residual_ < 1e-9 < model.trace_residual_


def test_ridge_of_other_libraries_and_dtypes(rng):
    torch = pytest.importorskip("torch")
    x, y = rng.normal(size=(80, 2)), rng.normal(size=80)
    wanted = KernelRidge().fit(x, y).predict(x)
    for method in ("exact", "nystrom"):
        model = KernelRidge(method=method).fit(torch.from_numpy(x), torch.from_numpy(y))
        out = model.predict(torch.from_numpy(x))
        assert isinstance(out, torch.Tensor)
        assert isinstance(model.dual_coef_, torch.Tensor)
        np.testing.assert_allclose(out.numpy(), wanted, atol=1e-5)
        np.testing.assert_allclose(model.score(torch.from_numpy(x), torch.from_numpy(y)), 1, atol=1)
    narrow = KernelRidge().fit(x.astype(np.float32), y)
    assert narrow.predict(x.astype(np.float32)).dtype == np.float32
    np.testing.assert_allclose(narrow.predict(x), wanted, atol=1e-5)
    half = KernelRidge().fit(x.astype(np.float16), y.tolist())
    np.testing.assert_allclose(half.predict(x.astype(np.float16)), wanted, atol=0.05)
    again = pickle.loads(pickle.dumps(KernelRidge().fit(x, y)))
    np.testing.assert_array_equal(again.predict(x), wanted)
    constant = KernelRidge(1e-6, kernel="linear").fit(x, 0 * y)
    assert constant.score(x, 0 * y) == 1.0
    assert constant.score(x, 0 * y + 1) == 0.0


X, Y = np.arange(12.0).reshape(6, 2), np.ones(6)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: KernelRidge(0.0).fit(X, Y), InvalidArgumentError, r"fit\] regularization must be"),
        (
            lambda: KernelRidge(method="svd").fit(X, Y),
            InvalidArgumentError,
            r"fit\] method must",
        ),
        (
            lambda: KernelRidge(kernel="rbf").fit(X, Y),
            InvalidArgumentError,
            "kernel must be one of",
        ),
        (
            lambda: KernelRidge(kernel="rbf", method="nystrom").fit(X, Y),
            InvalidArgumentError,
            r"fit\] kernel must be one of",
        ),
        (
            lambda: KernelRidge(method="nystrom", rank=7).fit(X, Y),
            InvalidArgumentError,
            r"rank must be in 1\.\.6, got 7",
        ),
        (lambda: KernelRidge().fit(X, None), InvalidArgumentError, "requires y to be passed"),
        (lambda: KernelRidge().fit(X, Y[:5]), InvalidArgumentError, r"y must have shape \(6,\) or"),
        (
            lambda: KernelRidge().fit(X, Y / 0),
            InvalidArgumentError,
            "finite, .* in row 0",
        ),
        (lambda: KernelRidge().fit(X, ["a"] * 6), DtypeError, "y must be made of numbers"),
        (lambda: KernelRidge().fit(X * np.nan, Y), InvalidArgumentError, "X must be finite"),
        (
            lambda: KernelRidge().fit(X, Y).predict(X[:, :1]),
            InvalidArgumentError,
            "1 feat",
        ),
        (lambda: KernelRidge().predict(X), ValueError, "predict must come after fit"),
        (
            lambda: KernelRidge(tol=0.0, bandwidth=9.0).fit(X, Y),
            ConvergenceError,
            "tol must be a residual",
        ),
        (lambda: KernelDensity(0.0).fit(X), InvalidArgumentError, "bandwidth must be > 0, got 0"),
        (lambda: KernelDensity(np.inf).fit(X), InvalidArgumentError, "bandwidth must be finite"),
        (
            lambda: KernelDensity("rule").fit(X),
            InvalidArgumentError,
            "bandwidth must be one",
        ),
        (lambda: KernelDensity("scott").fit(Y[:, None]), InvalidArgumentError, "has no variance"),
        (lambda: KernelDensity(kernel="linear").fit(X), InvalidArgumentError, "kernel must be one"),
        (lambda: KernelDensity(kernel="cauchy").fit(X), InvalidArgumentError, "over 2 coordinates"),
        (
            lambda: KernelDensity(kernel="rational_quadratic").fit(X),
            InvalidArgumentError,
            "whose tails are too heavy",
        ),
        (lambda: KernelDensity(alpha=0.0).fit(X), InvalidArgumentError, "alpha must be > 0"),
        (lambda: KernelDensity().fit(X, None, -Y), InvalidArgumentError, "sample_weight must be"),
        (lambda: KernelDensity().score_samples(X), ValueError, "score_samples must come after fit"),
        (lambda: KernelDensity().sample(), ValueError, "sample must come after fit"),
        (lambda: KernelDensity().fit(X).sample(0), InvalidArgumentError, "n_samples must be >= 1"),
        (
            lambda: KernelDensity(kernel="laplacian").fit(X).sample(),
            UnsupportedError,
            'kernel must be "gaussian" to draw from',
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:.*divide")
def test_refusals(call, error, text):
    with pytest.raises(error, match=text):
        call()


# ---- KernelDensity ---------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("names", [("gaussian", "gaussian"), ("laplacian", "exponential")])
def test_density_is_that_of_sklearn(names, weighted, rng):
    reference = pytest.importorskip("sklearn.neighbors").KernelDensity
    x, q = rng.normal(size=(300, 3)), rng.normal(size=(50, 3))
    weights = rng.uniform(size=300) if weighted else None
    ours, theirs = names
    a = KernelDensity(0.4, kernel=ours).fit(x, sample_weight=weights)
    b = reference(bandwidth=0.4, kernel=theirs).fit(x, sample_weight=weights)
    np.testing.assert_allclose(a.score_samples(q), b.score_samples(q), rtol=1e-9)
    np.testing.assert_allclose(a.score(q), b.score(q), rtol=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kernel", DECREASING[:-1])
def test_density_near_and_far(kernel, dtype, rng):
    """By the logarithms of dense kernels, in a range of 10^5 bandwidths."""
    x = (rng.normal(size=(60, 2)) + 50).astype(dtype)
    directions = rng.normal(size=(40, 2))
    q = (50 + directions * np.logspace(-2, 4, 40)[:, None]).astype(dtype)
    widths, weights = np.array([0.5, 2.0]), rng.uniform(size=60)
    weights[3] = 0
    model = KernelDensity(widths, kernel=kernel).fit(x, sample_weight=weights)
    d = np.sqrt((((q[:, None].astype(float) - x) / widths) ** 2).sum(2))
    t3, t5 = np.sqrt(3) * d, np.sqrt(5) * d
    log_k, integral = {
        "gaussian": (-(d**2) / 2, 2 * np.pi),
        "laplacian": (-d, 2 * np.pi),
        "matern12": (-d, 2 * np.pi),
        "matern32": (np.log1p(t3) - t3, 2 * np.pi),
        "matern52": (np.log1p(t5 + t5**2 / 3) - t5, 2 * np.pi),
    }[kernel]
    top = log_k.max(1, keepdims=True)
    wanted = top[:, 0] + np.log(np.exp(log_k - top) @ (weights / weights.sum()))
    wanted -= np.log(integral * widths.prod())
    got = model.score_samples(q)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, wanted, rtol=1e-5 if dtype == np.float32 else 1e-9, atol=1e-5)
    assert got.min() < -300


@pytest.mark.parametrize("kernel", [*DECREASING, "rational_quadratic"])
@pytest.mark.parametrize("d", [1, 2])
def test_densities_integrate_to_one(kernel, d, rng):
    if (kernel, d) == ("cauchy", 2):
        pytest.skip("has no integral")
    x = rng.normal(size=(7, d))
    model = KernelDensity(0.8, kernel=kernel, alpha=3.0).fit(x)
    # Of a plane, in rings; of a line, by the tangent, which reaches to infinity.
    steps = (np.arange(4000) + 0.5) / 4000
    if d == 1:
        angles = np.pi * (steps - 0.5)
        places, areas = np.tan(angles)[:, None], np.pi / np.cos(angles) ** 2 / 4000
    else:
        radii = 40 * steps[::10]
        turns = 2 * np.pi * np.arange(60) / 60
        places = np.stack(
            [np.outer(radii, np.cos(turns)).ravel(), np.outer(radii, np.sin(turns)).ravel()], 1
        )
        areas = np.repeat(radii * 0.1 * 2 * np.pi / 60, 60)
    assert abs((np.exp(model.score_samples(places)) * areas).sum() - 1) < 0.01


def test_bandwidths_by_rule(rng):
    scipy = pytest.importorskip("scipy.stats")
    x = rng.normal(size=(400, 2)) * [3.0, 0.2]
    weights = rng.uniform(size=400)
    for rule in ("scott", "silverman"):
        for w in (None, weights):
            theirs = scipy.gaussian_kde(x.T, bw_method=rule, weights=w)
            ours = KernelDensity(rule).fit(x, sample_weight=w).bandwidth_
            np.testing.assert_allclose(ours, np.sqrt(np.diag(theirs.covariance)), rtol=1e-9)


def test_samples_have_the_moments_of_the_density():
    torch = pytest.importorskip("torch")
    x = np.array([[0.0, 5.0], [4.0, 5.0]])
    model = KernelDensity(0.5).fit(x, sample_weight=[3.0, 1.0])
    drawn = model.sample(20_000, seed=1)
    assert drawn.shape == (20_000, 2)
    assert np.abs(drawn.mean(0) - [1.0, 5.0]).max() < 0.06
    assert np.abs(drawn.var(0) - [3.25, 0.25]).max() < 0.12
    np.testing.assert_array_equal(model.sample(5, seed=2), model.sample(5, seed=2))
    assert not np.array_equal(model.sample(5), model.sample(5, seed=2))
    tensor = KernelDensity().fit(torch.from_numpy(x.astype(np.float32)))
    assert tensor.sample(3).dtype == torch.float32
    assert isinstance(tensor.score_samples(torch.from_numpy(x)), torch.Tensor)
