"""The methods of subspan.kernel_matvec: what they return, how far off, and what they say of it."""

import numpy as np
import pytest
import subspan
from kernel_oracle import matrix
from subspan import kernel_matvec
from subspan.errors import ConvergenceError, DtypeError, InvalidArgumentError, UnsupportedError
from subspan.kernels import ProductInfo, methods

DEFINITE = (
    *("gaussian", "laplacian", "matern32", "matern52", "cauchy", "rational_quadratic"),
    *("exp_dot", "linear", "polynomial"),
)


def off(out, exact):
    """Return the largest relative error of the columns."""
    out, exact = np.asarray(out, float).reshape(len(exact), -1), exact.reshape(len(exact), -1)
    return float((np.linalg.norm(out - exact, axis=0) / np.linalg.norm(exact, axis=0)).max())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("sides", [1, 2])
@pytest.mark.parametrize("kernel", DEFINITE)
def test_nystrom_reports_its_error(kernel, sides, dtype, rng):
    x = rng.normal(size=(600, 2)).astype(dtype)
    y = None if sides == 1 else (rng.normal(size=(300, 2)) + 1).astype(dtype)
    v = rng.normal(size=(600 if y is None else 300, 2)).astype(dtype)
    how = {"kernel": kernel, "bandwidth": 2.0, "alpha": 0.7}
    k = matrix(x, x if y is None else y, **how)
    out, info = kernel_matvec(x, y, v, **how, method="nystrom", rank=24, return_info=True)
    assert out.dtype == dtype
    assert isinstance(info, ProductInfo)
    true = off(out, k @ v)
    assert true <= 1.15 * info.error + 1e-6
    assert info.error <= 1.5 * true + 1e-5
    assert (
        np.linalg.norm(out - k @ v, axis=0).max()
        <= (info.bound + 1e-5 * len(x) * k.max()) * np.linalg.norm(v, axis=0).max()
    )
    assert info.method == "nystrom"
    assert info.rank <= 24
    assert info.samples == 256
    assert "norm2(out - K v) / norm2(K v)" in info.norm
    alone = kernel_matvec(x, y, v[:, 0], **how, method="nystrom", rank=24)
    np.testing.assert_allclose(alone, out[:, 0], rtol=1e-4, atol=1e-4 * np.abs(out).max())


def test_nystrom_takes_landmarks_until_tol_is_met(rng):
    x, v = rng.normal(size=(900, 3)), rng.normal(size=(900, 2))
    exact = matrix(x, x, "matern52") @ v
    ranks = []
    for tol in (0.1, 0.01, 0.001):
        out, info = kernel_matvec(
            x, None, v, kernel="matern52", method="nystrom", tol=tol, return_info=True
        )
        assert info.error <= tol
        assert off(out, exact) <= 1.1 * tol
        ranks.append(info.rank)
    assert ranks[0] < ranks[1] < ranks[2]
    with pytest.raises(ConvergenceError, match=r"got 0\.001 where 40 landmarks reach 0"):
        kernel_matvec(x, None, v, kernel="matern52", method="nystrom", tol=0.001, rank=40)


def test_errors_that_sit_in_few_rows_are_seen(rng):
    """Ten far points that no landmark explains hold nearly all of the error."""
    crowd, far = 0.01 * rng.normal(size=(4000, 1)), 50 + 10 * np.arange(10.0)[:, None]
    x = np.concatenate([crowd, far])
    v = np.concatenate([np.full(4000, 1e-4), np.ones(10)])
    exact = np.concatenate([np.full(4000, 0.4), np.ones(10)])
    out, info = kernel_matvec(x, None, v, method="nystrom", rank=2, seed=3, return_info=True)
    true = off(out, exact)
    assert true > 0.05
    assert 0.9 * true < info.error < 1.5 * true


def test_the_estimate_fails_rarely(rng):
    """True errors above the estimate: two standard errors, so in about 2 of 100 calls."""
    x, v = rng.normal(size=(1500, 3)).astype(np.float32), rng.normal(size=1500).astype(np.float32)
    exact = matrix(x, x, "gaussian") @ v
    failures = 0
    for seed in range(40):
        out, info = kernel_matvec(
            x, None, v, method="nystrom", rank=40, seed=seed, return_info=True
        )
        failures += off(out, exact) > info.error
    assert failures <= 40 * 0.025 + 3 * np.sqrt(40 * 0.025 * 0.975)


def test_auto_is_exact_where_there_is_nothing_to_save(rng):
    x, v = rng.normal(size=(300, 3)), rng.normal(size=300)
    exact = kernel_matvec(x, None, v)
    for how in ({"tol": 0.1}, {}, {"tol": 0.0}, {"tol": 0.1, "cutoff": 1e-9}):
        out, info = kernel_matvec(x, None, v, method="auto", return_info=True, **how)
        np.testing.assert_allclose(out, exact, rtol=1e-6)
        assert (info.method, info.error, info.pairs) == ("exact", 0.0, 90_000)
    batch = rng.normal(size=(2, 50, 3))
    out = kernel_matvec(batch, None, np.ones((2, 50)), method="auto", tol=0.1, kernel="distance")
    assert out.shape == (2, 50)
    for bad in (np.float64(1.0), [1.0]):
        with pytest.raises(DtypeError, match="v must be an array"):
            kernel_matvec(x, None, bad, method="auto", tol=0.1)
    exact, info = kernel_matvec(batch, None, np.ones(50), return_info=True)
    assert exact.shape == (2, 50)
    assert info.method == "exact"


@pytest.mark.parametrize(
    ("kernel", "bandwidth", "tol", "d", "wanted"),
    [
        ("gaussian", 8.0, 1e-2, 8, "nystrom"),  # smooth: a few landmarks
        ("gaussian", 0.02, 1e-3, 2, "cutoff"),  # narrow: few pairs, near each other
        ("laplacian", 0.3, 1e-4, 2, "exact"),  # neither
        ("exp_dot", 40.0, 1e-2, 16, "nystrom"),
    ],
)
def test_auto_chooses(kernel, bandwidth, tol, d, wanted, rng, monkeypatch):
    monkeypatch.setattr(methods, "_SMALL", 0.0)  # it would be exact at this size
    x = rng.normal(size=(7000, d)).astype(np.float32)
    v = rng.uniform(size=7000).astype(np.float32)
    how = {"kernel": kernel, "bandwidth": bandwidth}
    exact = kernel_matvec(x.astype(float), None, v.astype(float), **how)
    out, info = kernel_matvec(x, None, v, method="auto", tol=tol, return_info=True, **how)
    assert info.method == wanted
    assert info.error <= tol
    assert off(out, exact) <= tol


def test_sums_of_rows_where_there_is_no_v(rng):
    x, y = rng.normal(size=(200, 2)), rng.normal(size=(90, 2))
    for how in ({"method": "nystrom", "rank": 20}, {"method": "sparse", "tol": 0.1}):
        for other in (None, y):
            ones = np.ones(200 if other is None else 90)
            out = kernel_matvec(x, other, **how)
            np.testing.assert_array_equal(out, kernel_matvec(x, other, ones, **how))
    out = kernel_matvec(x, None, method="auto", tol=0.1)
    np.testing.assert_allclose(out, matrix(x, x, "gaussian").sum(1), rtol=1e-12)
    pattern = tuple(np.array(part) for part in ([0, 200], [0, 200], [0, 1], [0]))
    for how in ({"method": "nystrom", "rank": 2}, {"method": "auto", "tol": 0.1}):
        with pytest.raises(InvalidArgumentError, match="ranges must be None unless the product is"):
            kernel_matvec(x, None, ranges=pattern, **how)


def test_gradients_only_of_the_exact_product(rng):
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(rng.normal(size=(50, 2))).requires_grad_()
    v = torch.ones(50, dtype=torch.float64)
    kernel_matvec(x, None, v, method="auto", tol=0.1).sum().backward()
    assert x.grad.shape == (50, 2)
    for method in ("nystrom", "rff", "sparse"):
        with pytest.raises(UnsupportedError, match=r"\[kernel_matvec\] x must not require a grad"):
            kernel_matvec(x, None, v, method=method, tol=0.1)
    out = kernel_matvec(x.detach(), None, v, method="nystrom", rank=10)
    assert isinstance(out, torch.Tensor)
    plain = kernel_matvec(x.detach().numpy(), None, v.numpy(), method="nystrom", rank=10)
    np.testing.assert_array_equal(out.numpy(), plain)


X, V = np.arange(12.0).reshape(6, 2), np.ones(6)


@pytest.mark.parametrize(
    ("how", "error", "text"),
    [
        ({"method": "fast"}, InvalidArgumentError, "method must be one of 'exact', 'sparse', 'nys"),
        ({"tol": 0.1}, InvalidArgumentError, 'tol must be None for method="exact", got 0.1'),
        ({"rank": 3}, InvalidArgumentError, "rank must be None for method='exact', got 3"),
        ({"method": "auto", "rank": 3}, InvalidArgumentError, "rank must be None for method='auto"),
        ({"method": "nystrom"}, InvalidArgumentError, "tol must be given .* and no rank either"),
        ({"method": "rff"}, InvalidArgumentError, "tol must be given for method='rff'"),
        ({"method": "sparse"}, InvalidArgumentError, "tol must be given for method='sparse', got"),
        ({"method": "nystrom", "rank": 0}, InvalidArgumentError, r"rank must be in 1\.\.6, got 0"),
        ({"method": "nystrom", "rank": 7}, InvalidArgumentError, r"rank must be in 1\.\.6, got 7"),
        ({"method": "nystrom", "rank": 1.5}, DtypeError, "rank must be an integer"),
        ({"method": "nystrom", "tol": -1}, InvalidArgumentError, r"tol must be in \[0"),
        ({"method": "nystrom", "tol": np.nan}, InvalidArgumentError, r"tol must be in \[0"),
        ({"method": "nystrom", "tol": "x"}, DtypeError, "tol must be a number"),
        ({"method": "nystrom", "rank": 2, "seed": -1}, InvalidArgumentError, "seed must be in 0"),
        (
            {"method": "nystrom", "tol": 0.1, "cutoff": 0.1},
            InvalidArgumentError,
            "cutoff must",
        ),
        (
            {"method": "nystrom", "tol": 0.1, "kernel": "softmax"},
            InvalidArgumentError,
            "must be one",
        ),
        ({"method": "sparse", "tol": 0.1, "kernel": "linear"}, InvalidArgumentError, "kernel must"),
        ({"method": "rff", "tol": 0.1, "kernel": "linear"}, InvalidArgumentError, "kernel must be"),
        (
            {"method": "rff", "tol": 0.1, "kernel": "gauss"},
            InvalidArgumentError,
            "kernel must",
        ),
        ({"method": "rff", "tol": 0.1, "bandwidth": 0.0}, InvalidArgumentError, "must be > 0, got"),
    ],
)
def test_refusals_of_arguments(how, error, text):
    with pytest.raises(error, match=r"\[kernel_matvec\] .*" + text):
        kernel_matvec(X, None, V, **how)


@pytest.mark.parametrize("method", ["nystrom", "rff", "sparse"])
@pytest.mark.parametrize(
    ("x", "y", "v", "error", "text"),
    [
        (X * np.nan, None, V, InvalidArgumentError, r"x must be finite, got nan at \[0, 0\]"),
        (X, np.where(X == 3, np.inf, X), V, InvalidArgumentError, r"y must be finite, got inf at"),
        (X, None, V * np.inf, InvalidArgumentError, r"v must be finite, got inf at \[0\]"),
        (X, None, V[:5], InvalidArgumentError, r"v must have shape \(6,\) or \(6, e\), got \(5,\)"),
        (X, X[:2], V, InvalidArgumentError, r"v must have shape \(2,\) or \(2, e\), got \(6,\)"),
        (X, X[:, :1], V, InvalidArgumentError, "y must have 2 columns like x, got 1"),
        (X[:0], None, V[:0], InvalidArgumentError, "x must have rows and columns, got shape"),
        (X[None], None, V, InvalidArgumentError, "x must have 2 axes, got 3"),
        (X, None, [1.0] * 6, DtypeError, "v must be an array"),
        (X.astype(int), None, V, DtypeError, "x must be float32 or float64, got int64"),
        (X, X.astype("f4"), V, DtypeError, "y must be float64 like x, got float32"),
    ],
)
def test_refusals_of_arrays(x, y, v, error, text, method):
    with pytest.raises(error, match=r"\[kernel_matvec\] " + text):
        kernel_matvec(x, y, v, method=method, tol=0.1)


def test_the_package_is_there_only_when_asked_for(run_python):
    code = (
        "import sys, numpy as np, subspan\n"
        "subspan.kernel_matvec(np.ones((3, 2)), None, np.ones(3))\n"
        "print('subspan.kernels' in sys.modules)"
    )
    assert run_python(code).stdout.strip() == "False"
    assert subspan.kernel_matvec is kernel_matvec
