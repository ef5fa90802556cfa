"""tucker: errors against discarded squares, methods against each other, ranks, refusals."""

import numpy as np
import pytest
from matrices import same_bits
from subspan.errors import ConvergenceError, DtypeError, InvalidArgumentError
from subspan.tensors import TuckerTensor, multi_mode_product, tucker, unfold

METHODS = ["sthosvd", "hosvd", "hooi", "randomized"]


def planted(rng, shape, rank, level=0.0, dtype=np.float64):
    core = rng.standard_normal(rank)
    bases = [np.linalg.qr(rng.standard_normal((n, r)))[0] for n, r in zip(shape, rank, strict=True)]
    x = multi_mode_product(core, dict(enumerate(bases)))
    x = x + level * np.linalg.norm(x) / x.size**0.5 * rng.standard_normal(shape)
    return x.astype(dtype), bases


def off(x, result):
    return np.linalg.norm(x - result.tensor.to_dense()) / np.linalg.norm(x)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("method", METHODS)
def test_a_planted_core_is_found(method, dtype, rng):
    x, bases = planted(rng, (12, 11, 10), (3, 2, 4), dtype=dtype)
    result = tucker(x, (3, 2, 4), method=method)
    assert off(x, result) < 100 * np.finfo(dtype).eps
    for a, b in zip(result.tensor.factors, bases, strict=True):
        assert a.dtype == dtype
        np.testing.assert_allclose(np.linalg.norm(a.T @ b), a.shape[1] ** 0.5, rtol=1e-5)
        np.testing.assert_allclose(a.T @ a, np.eye(a.shape[1]), atol=1e-5)
        assert (a[np.abs(a).argmax(axis=0), np.arange(a.shape[1])] > 0).all()


@pytest.mark.parametrize("shape", [(9, 8, 7), (40, 3, 4), (3, 30, 4), (5, 4, 6, 3), (20, 15)])
def test_the_certificate(shape, rng):
    """The error of ST-HOSVD is the sum of discarded squares, that of HOSVD at most."""
    x = rng.standard_normal(shape)
    rank = tuple(max(1, n // 2) for n in shape)
    sequential = tucker(x, rank)
    np.testing.assert_allclose(sequential.error, sequential.bound, rtol=1e-10)
    full = tucker(x, rank, method="hosvd")
    assert full.error <= full.bound + 1e-12
    best = tucker(x, rank, method="hooi")
    assert best.error <= sequential.error + 1e-12
    assert (np.diff(best.errors) <= 1e-12).all()
    for result in (sequential, full, best, tucker(x, rank, method="randomized")):
        np.testing.assert_allclose(off(x, result), result.error, atol=1e-8)
        assert result.tensor.rank == rank
        assert result.error <= len(shape) ** 0.5 * best.error + 1e-12


def test_hosvd_discards_singular_values(rng):
    x = rng.standard_normal((6, 7, 8))
    result = tucker(x, (2, 3, 4), method="hosvd")
    for n, r in enumerate((2, 3, 4)):
        s = np.linalg.svd(unfold(x, n), compute_uv=False)
        np.testing.assert_allclose(result.discarded[n], (s[r:] ** 2).sum() / np.vdot(x, x))


@pytest.mark.parametrize("method", ["sthosvd", "hosvd", "hooi"])
@pytest.mark.parametrize("tol", [0.5, 0.1, 1e-3])
def test_tolerance_and_energy(tol, method, rng):
    x, _ = planted(rng, (12, 11, 10), (3, 2, 4), level=0.05)
    result = tucker(x, tol=tol, method=method)
    assert off(x, result) <= tol
    same = tucker(x, energy=1 - tol**2, method=method)
    np.testing.assert_allclose(same.error, result.error, atol=1e-9)
    if tol == 0.1:
        assert result.tensor.rank == (3, 2, 4)


@pytest.mark.parametrize(("dtype", "tol"), [(np.float64, 1e-10), (np.float32, 1e-5)])
def test_small_values_are_not_lost(dtype, tol, rng):
    """Squared they would be below rounding."""
    cores = np.diag([1.0, 100 * tol])
    bases = [np.linalg.qr(rng.standard_normal((n, 2)))[0] for n in (9, 8)]
    x = (bases[0] @ cores @ bases[1].T)[:, :, None] * np.ones(5)
    result = tucker(x.astype(dtype), tol=tol)
    assert result.tensor.rank == (2, 2, 1)
    assert off(x, result) < tol


def test_ranks(rng):
    x = rng.standard_normal((3, 9, 4))
    assert tucker(x, 5).tensor.rank == (3, 5, 4)
    long = tucker(rng.standard_normal((30, 2, 3)), (20, 2, 3))  # more than its unfolding has
    assert long.tensor.rank == (20, 2, 3)
    a = long.tensor.factors[0]
    np.testing.assert_allclose(a.T @ a, np.eye(20), atol=1e-12)
    assert long.error < 1e-7
    assert tucker(np.zeros((3, 4, 5)), 2).error == 0
    assert tucker(np.ones((1, 4, 5)), tol=0.1).tensor.rank == (1, 1, 1)


def test_hooi_tells_how_it_went(rng):
    x, seen = rng.standard_normal((8, 7, 6)), []
    result = tucker(
        x, 2, method="hooi", change=0, max_iter=4, progress=lambda n, e: seen.append((n, e))
    )
    assert seen == list(enumerate(result.errors))
    assert not result.converged
    with pytest.raises(ConvergenceError, match=r"\[tucker\] the error must change by less than"):
        tucker(x, 2, method="hooi", change=0, max_iter=1, errors="raise")
    assert tucker(x, 2, method="hooi", errors="raise").converged


def test_the_seed_decides(rng):
    x = rng.standard_normal((12, 11, 10))
    one, two = (tucker(x, 3, method="randomized", seed=4).tensor for _ in range(2))
    same_bits((one.core, two.core))


def test_libraries(library, rng):
    x, _ = planted(rng, (6, 5, 4), (2, 2, 2))
    result = tucker(library.put(x), 2)
    assert library.owns(result.tensor.core)
    np.testing.assert_allclose(library.get(result.tensor.to_dense()), x, atol=1e-10)


def test_other_libraries_objects(rng):
    tensorly = pytest.importorskip("tensorly")
    tensor = tucker(rng.standard_normal((6, 5, 4)), 2).tensor
    theirs = tensor.to_tensorly()
    np.testing.assert_allclose(tensorly.tucker_to_tensor(theirs), tensor.to_dense())
    same_bits((TuckerTensor.from_tensorly(theirs).core, tensor.core))


def test_pyttb_objects(rng):
    pytest.importorskip("pyttb")
    tensor = tucker(rng.standard_normal((6, 5, 4)), 2).tensor
    theirs = tensor.to_pyttb()
    np.testing.assert_allclose(theirs.full().data, tensor.to_dense())
    np.testing.assert_allclose(TuckerTensor.from_pyttb(theirs).to_dense(), tensor.to_dense())
    assert TuckerTensor.from_pyttb(theirs).shape == (6, 5, 4)


X = np.ones((3, 4, 5))


@pytest.mark.parametrize(
    ("x", "options", "kind", "text"),
    [
        (X, {}, InvalidArgumentError, "rank, tol or energy must be given, one of them, got none"),
        (X, {"rank": 2, "tol": 0.1}, InvalidArgumentError, "one of them, got .'rank', 'tol'."),
        (X, {"rank": 0}, InvalidArgumentError, "rank must be in 1..5, got 0"),
        (X, {"rank": (2, 5, 2)}, InvalidArgumentError, r"rank\[1\] must be in 1..4, got 5"),
        (X, {"rank": (2, 2)}, InvalidArgumentError, "one for each of the 3 modes, got 2"),
        (X, {"rank": 2.0}, DtypeError, "rank must be an integer"),
        (X, {"tol": 2.0}, InvalidArgumentError, "tol must be in"),
        (X, {"energy": -0.1}, InvalidArgumentError, "energy must be in"),
        (X, {"rank": 2, "method": "svd"}, InvalidArgumentError, "method must be one of"),
        (X, {"tol": 0.1, "method": "randomized"}, InvalidArgumentError, "rank must be given for"),
        (X * np.nan, {"rank": 2}, InvalidArgumentError, "x must be finite, got nan"),
        (np.ones(3), {"rank": 1}, InvalidArgumentError, "2 or more modes, got 1"),
        (np.ones((3, 0)), {"rank": 1}, InvalidArgumentError, "no empty mode"),
        (X.astype(int), {"rank": 1}, DtypeError, "x must be float32 or float64"),
    ],
)
def test_refused(x, options, kind, text):
    with pytest.raises(kind, match=text) as caught:
        tucker(x, **options)
    assert str(caught.value).startswith("[tucker] ")
