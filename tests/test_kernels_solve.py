"""subspan.kernels.solve: against dense systems in float64, and what it says where it fails."""

import numpy as np
import pytest
from kernel_oracle import matrix
from subspan.errors import ConvergenceError, DtypeError, InvalidArgumentError, UnsupportedError
from subspan.kernels import SolveInfo, solve

DEFINITE = (
    *("gaussian", "laplacian", "matern32", "matern52", "cauchy", "rational_quadratic"),
    *("exp_dot", "linear", "polynomial"),
)


def residual(k, strength, a, y):
    left = y - k @ a - strength * a
    return float((np.linalg.norm(left, axis=0) / np.linalg.norm(y, axis=0)).max())


@pytest.mark.parametrize("method", ["cholesky", "cg"])
@pytest.mark.parametrize("kernel", DEFINITE)
def test_systems(kernel, method, rng):
    x, y = rng.normal(size=(250, 3)), rng.normal(size=(250, 2))
    how = {"kernel": kernel, "bandwidth": 2.0, "alpha": 0.7}
    k = matrix(x, x, **how)
    for strength in (3.0, 0.05):
        a, info = solve(
            x, y, regularization=strength, method=method, tol=1e-8, return_info=True, **how
        )
        assert isinstance(info, SolveInfo)
        assert info.method == method
        assert residual(k, strength, a, y) <= 1.01e-8
        np.testing.assert_allclose(info.residuals.max(), residual(k, strength, a, y), atol=1e-11)
        wanted = np.linalg.solve(k + strength * np.eye(250), y)
        bound = 2e-8 * np.linalg.norm(y, axis=0).max() / strength
        assert np.abs(a - wanted).max() <= bound
        assert len(info.history) == info.iterations
        alone = solve(x, y[:, 1], regularization=strength, method=method, tol=1e-8, **how)
        assert np.abs(alone - wanted[:, 1]).max() <= bound


def test_the_preconditioner_pays(rng):
    x, y = rng.normal(size=(400, 2)), rng.normal(size=400)
    iterations = {}
    for rank in (0, 50, None):
        _, info = solve(x, y, regularization=1e-3, method="cg", rank=rank, return_info=True)
        iterations[rank] = info.iterations
        assert info.rank == (rank if rank is not None else info.rank)
        assert info.history[-1] < 1e-6
    assert iterations[50] < iterations[0] / 3
    assert iterations[None] < 20
    # A preconditioner stops where the rest no longer matters beside the regularization.
    _, info = solve(x, y, regularization=100.0, method="cg", return_info=True)
    assert info.rank == 32


def test_right_hand_sides_that_are_solved_leave(rng):
    x = rng.normal(size=(120, 2))
    y = np.stack([rng.normal(size=120), np.zeros(120), np.full(120, 1e-30)], axis=1)
    a = solve(x, y, regularization=0.5, method="cg")
    np.testing.assert_array_equal(a[:, 1], 0)
    k = matrix(x, x, "gaussian")
    assert residual(k, 0.5, a[:, [0, 2]], y[:, [0, 2]]) <= 1e-6


def test_the_method_by_size(rng):
    x, y = rng.normal(size=(60, 2)), rng.normal(size=60)
    assert solve(x, y, regularization=1.0, return_info=True)[1].method == "cholesky"
    x, y = rng.normal(size=(3001, 2)), rng.normal(size=3001)
    _, info = solve(x, y, regularization=100.0, tol=0.1, return_info=True)
    assert info.method == "cg"
    assert info.residuals[0] <= 0.1


def test_progress_and_seeds(rng):
    x, y = rng.normal(size=(200, 3)), rng.normal(size=200)
    calls = []
    how = {"regularization": 0.1, "method": "cg", "rank": 100}
    first, info = solve(x, y, **how, progress=lambda *call: calls.append(call), return_info=True)
    assert calls[:3] == [("landmarks", 0, 100), ("landmarks", 32, 100), ("landmarks", 64, 100)]
    iterations = [call[1:] for call in calls if call[0] == "iterations"]
    assert iterations == [(i, 1000) for i in range(info.iterations + 1)]
    np.testing.assert_array_equal(solve(x, y, **how), first)
    assert not np.array_equal(solve(x, y, **how, seed=1), first)


def test_libraries_and_dtypes(rng):
    torch = pytest.importorskip("torch")
    x = rng.normal(size=(90, 2)).astype(np.float32)
    y = rng.normal(size=90).astype(np.float32)
    plain = solve(x, y, regularization=0.3)
    assert plain.dtype == np.float32
    tensor = solve(torch.from_numpy(x), torch.from_numpy(y), regularization=0.3)
    assert isinstance(tensor, torch.Tensor)
    np.testing.assert_array_equal(tensor.numpy(), plain)
    wide = solve(x, y.astype(float), regularization=0.3)
    assert wide.dtype == np.float64
    np.testing.assert_allclose(plain, wide, rtol=1e-6)
    with pytest.raises(UnsupportedError, match="x must not require a gradient"):
        solve(torch.ones(4, 2, requires_grad=True), torch.ones(4), regularization=1.0)
    with pytest.raises(DtypeError, match=r"y must be of the library .* of x"):
        solve(x, torch.from_numpy(y), regularization=0.3)


def test_what_cannot_be_met_names_what_is(rng):
    x, y = rng.normal(size=(300, 2)), rng.normal(size=300)
    with pytest.raises(
        ConvergenceError, match=r"\[solve\] tol must .* 1e-09 where 'cg' reaches .* 3 it"
    ):
        solve(x, y, regularization=1e-4, method="cg", rank=5, max_iterations=3, tol=1e-9)
    with pytest.raises(ConvergenceError, match="got 0 where 'cg' reaches"):
        solve(x, y, regularization=0.1, method="cg", tol=0.0)
    with pytest.raises(ConvergenceError, match="got 1e-18 where 'cholesky' reaches"):
        solve(x, y, regularization=0.1, tol=1e-18)
    with pytest.raises(InvalidArgumentError, match="regularization must be large enough"):
        solve(np.ones((200, 2)), y[:200], regularization=1e-30)


X, Y = np.arange(12.0).reshape(6, 2), np.ones(6)


@pytest.mark.parametrize(
    ("how", "error", "text"),
    [
        ({"regularization": 0.0}, InvalidArgumentError, "regularization must be > 0, got 0"),
        ({"regularization": -1.0}, InvalidArgumentError, "regularization must be > 0, got -1"),
        ({"regularization": np.nan}, InvalidArgumentError, "regularization must be in"),
        ({"regularization": np.inf}, InvalidArgumentError, "regularization must be in"),
        ({"regularization": "x"}, DtypeError, "regularization must be a number"),
        ({"method": "lu"}, InvalidArgumentError, "method must be one of 'auto', 'cholesky', 'cg'"),
        ({"kernel": "softmax"}, InvalidArgumentError, "kernel must be one of"),
        ({"kernel": "polynomial", "offset": -1.0}, InvalidArgumentError, "offset must be in"),
        ({"tol": -1.0}, InvalidArgumentError, "tol must be in"),
        ({"max_iterations": 0}, InvalidArgumentError, "max_iterations must be >= 1, got 0"),
        ({"rank": 7}, InvalidArgumentError, r"rank must be in 0\.\.6, got 7"),
        ({"seed": -1}, InvalidArgumentError, "seed must be in"),
        ({"x": X * np.nan}, InvalidArgumentError, "x must be finite, got nan"),
        ({"y": Y * np.inf}, InvalidArgumentError, "y must be finite, got inf"),
        ({"y": Y[:5]}, InvalidArgumentError, r"y must have shape \(6,\) or \(6, e\), got \(5,\)"),
        ({"x": X[0]}, InvalidArgumentError, "x must have 2 axes"),
        ({"x": X.astype(int)}, DtypeError, "x must be float32 or float64, got int64"),
        ({"y": Y.astype(int)}, DtypeError, "y must be float32 or float64, got int64"),
    ],
)
def test_refusals(how, error, text):
    given = {"x": X, "y": Y, "regularization": 1.0, **how}
    with pytest.raises(error, match=r"\[solve\] " + text):
        solve(given.pop("x"), given.pop("y"), **given)
