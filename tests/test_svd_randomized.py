"""svd by the randomized range finder: bounds, a given error, the certificate, refusals."""

import warnings

import numpy as np
import pytest
from matrices import GATE, layouts, orthogonal, over, same_bits, with_values
from subspan import svd
from subspan.errors import InvalidArgumentError, UnsupportedError

DTYPES = [np.float32, np.float64]
SPECTRA = {
    "rank 10": np.r_[np.linspace(2, 1, 10), np.zeros(70)],
    "geometric": 0.9 ** np.arange(80),
    "power law": 1.0 / np.arange(1, 81),
    "flat": np.ones(80),
}


def svd_ratios_of_parts(u, vh):
    """R2 and R3, the larger."""
    k = vh.shape[0]
    return max(
        over(np.abs(np.eye(k) - u.T @ u).sum(axis=0).max(), 1.0, len(u), u.dtype),
        over(np.abs(np.eye(k) - vh @ vh.T).sum(axis=0).max(), 1.0, vh.shape[1], u.dtype),
    )


def relative_error(a, u, s, vh):
    """Of every matrix, in float64."""
    rest = a.astype(np.float64) - (u.astype(np.float64) * s[..., None, :]) @ vh
    norms = (np.linalg.norm(x, axis=(-2, -1)) for x in (rest, a.astype(np.float64)))
    return np.divide(*norms)


# ---- a given rank ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SPECTRA)
def test_error_keeps_the_bounds_of_the_mean(name, dtype, rng):
    """Halko, Martinsson, Tropp: theorem 10.5 (Frobenius), corollary 10.10 (spectral, q = 2)."""
    s, k, p, q = SPECTRA[name], 10, 10, 2
    a = with_values(120, 80, s, rng).astype(dtype)
    errors = []
    for seed in range(20):
        u, values, vh = svd(a, k=k, method="randomized", seed=seed)
        assert svd_ratios_of_parts(u, vh) <= GATE
        assert (np.diff(values) <= 0).all()
        rest = a.astype(np.float64) - (u * values) @ vh
        errors.append((np.linalg.norm(rest), np.linalg.norm(rest, 2)))
    frobenius, spectral = np.mean(errors, axis=0)
    tail, floor = np.linalg.norm(s[k:]), 1e3 * np.finfo(dtype).eps
    assert frobenius <= 1.1 * np.sqrt(1 + k / (p - 1)) * tail + floor
    assert frobenius >= tail - floor
    growth = 1 + np.sqrt(k / (p - 1)) + np.e * np.sqrt(k + p) / p * np.sqrt(80 - k)
    # Cutting the k + p columns back to k costs at most one more s_{k+1} (their theorem 9.3).
    assert spectral <= 1.1 * (growth ** (1 / (2 * q + 1)) + 1) * s[k] + floor


def test_all_columns_are_the_svd(rng):
    a = rng.standard_normal((30, 12))
    got, wanted = svd(a, k=12, method="randomized"), svd(a)
    np.testing.assert_allclose(got.s, wanted.s, rtol=1e-13)
    np.testing.assert_allclose((got.u * got.s) @ got.vh, a, atol=1e-13)


@pytest.mark.parametrize("options", [{"k": 5}, {"tol": 0.3}, {"tol": 0.3, "center": True}])
def test_seeds(options, threads, rng):
    a = rng.standard_normal((60, 50))
    runs = []
    for n in (1, 2, 4):
        threads(n)
        runs.append(svd(a, method="randomized", seed=3, **options))
    for run in runs[1:]:
        same_bits(*zip(run, runs[0], strict=True))
    other = svd(a, method="randomized", seed=4, **options)
    assert not np.array_equal(other.s, runs[0].s)
    svd(a, method="randomized", seed=2**64 - 1, **options)


def test_a_batch_is_independent(rng):
    a = rng.standard_normal((4, 30, 20))
    whole = svd(a, k=3, method="randomized")
    for b in range(4):
        one = svd(a[b], k=3, method="randomized")
        for x, y in zip(whole, one, strict=True):
            np.testing.assert_array_equal(x[b], y)


def test_layouts(rng):
    a = with_values(60, 40, SPECTRA["geometric"][:40], rng).reshape(2, 30, 40)
    for options in ({"k": 4}, {"tol": 0.1}, {"k": 4, "center": True}):
        wanted = svd(a, method="randomized", **options)
        for name, view in layouts(a).items():
            got = svd(view, method="randomized", **options)
            for x, y in zip(got, wanted, strict=True):
                np.testing.assert_allclose(x, y, rtol=0, atol=1e-9, err_msg=name)


@pytest.mark.parametrize(
    ("dtype", "scale"), [(np.float32, 1e-40), (np.float32, 1e37), (np.float64, 1e-310)]
)
def test_ends_of_the_range(dtype, scale, rng):
    a = rng.standard_normal((30, 20))
    for options in ({"k": 3}, {"k": 3, "center": True}):
        got = svd((a * scale).astype(dtype), method="randomized", **options)
        wanted = svd(a, method="randomized", **options)
        np.testing.assert_allclose(got.s.astype(np.float64) / scale, wanted.s, rtol=1e-3)
        assert np.isfinite(got.u).all()
    for options in ({"k": 2}, {"tol": 0.1}, {"k": 2, "center": True}):
        zero = svd(np.zeros((5, 4), dtype), method="randomized", **options)
        np.testing.assert_array_equal(zero.s, 0)
        assert svd_ratios_of_parts(zero.u, zero.vh) <= GATE


# ---- a given error -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("shape", [(120, 80), (80, 130)])
def test_tol_finds_nearly_the_smallest_rank(shape, name, dtype, rng):
    a = with_values(*shape, SPECTRA[name], rng).astype(dtype)
    for tol in (1.0, 0.3, 0.03, 1e-3, 260 * np.finfo(dtype).eps):
        u, s, vh, _, error = svd(a, tol=tol, method="randomized", errors="info")
        true = relative_error(a, u, s, vh)
        assert true <= tol
        np.testing.assert_allclose(error, true, rtol=1e-3, atol=1e-2 * np.finfo(dtype).eps)
        least = len(svd(a, tol=tol).s)
        assert least <= len(s) <= least + 1
        assert svd_ratios_of_parts(u, vh) <= GATE


@pytest.mark.parametrize("dtype", DTYPES)
def test_tol_below_what_energies_can_tell(dtype, rng):
    """Probes decide when to stop: a loud part of rank 8, and a quiet one that energies miss."""
    eps = np.finfo(dtype).eps
    values = np.r_[np.ones(8), np.full(60, 1e4 * eps), np.zeros(32)]
    a = with_values(140, 100, values, rng).astype(dtype)
    for tol, rank in ((1e5 * eps, 8), (3e3 * eps, 68)):
        _, s, _, _, error = svd(a, tol=tol, method="randomized", errors="info")
        assert error <= tol
        assert rank <= len(s) <= len(svd(a, tol=tol).s) + 1
        assert abs(len(s) - rank) <= 1 or rank == 68


def test_tol_of_a_batch_is_the_largest_rank(rng):
    def with_rank(r):
        return with_values(70, 60, np.r_[np.ones(r), np.zeros(60 - r)], rng)

    a = np.stack([with_rank(3), np.zeros((70, 60)), with_rank(50), with_rank(40)])
    u, s, vh, info, error = svd(a, tol=1e-3, method="randomized", errors="info")
    assert s.shape == (4, 50)
    assert not info.any()
    for b, rank in enumerate((3, 0, 50, 40)):
        np.testing.assert_allclose(s[b], np.r_[np.ones(rank), np.zeros(50 - rank)], atol=1e-13)
        assert svd_ratios_of_parts(u[b], vh[b]) <= GATE  # also of what has no range
    assert (error <= 1e-12).all()
    a[2, 0, 0] = np.nan
    with pytest.raises(InvalidArgumentError, match="NaN or infinity in matrix 2 of 4"):
        svd(a, tol=1e-3, method="randomized")
    rest = svd(a, tol=1e-3, method="randomized", nonfinite="propagate", errors="info")
    assert rest.s.shape == (4, 40)
    assert rest.info.tolist() == [0, 0, -1, 0]
    assert all(np.isnan(part[2]).all() for part in (rest.u, rest.s, rest.vh, rest.error))
    assert np.isfinite(rest.error[[0, 1, 3]]).all()
    none = svd(a[2], tol=1e-3, method="randomized", nonfinite="propagate")
    assert np.isnan(none.s).all()


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 4, 3), (2, 0, 3), (1, 1), (1, 5), (5, 1)])
def test_small_and_empty_shapes(shape):
    a = np.ones(shape)
    for center in (False, True):
        u, s, vh, _, error = svd(a, tol=0.1, method="randomized", center=center, errors="info")
        k = min(*shape[-2:], 1)
        if 0 in shape[:-2]:
            k = s.shape[-1]
        assert (u.shape, s.shape) == ((*shape[:-1], k), (*shape[:-2], k))
        assert (vh.shape, error.shape) == ((*shape[:-2], k, shape[-1]), shape[:-2])


# ---- the certificate ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_error_is_true(dtype, rng):
    """Of a thousand small matrices of all degrees of decay; exact, so it holds in all of them."""
    decay = rng.uniform(0, 2, 1000)[:, None, None]
    values = np.exp(-decay * np.arange(10)[:, None])
    a = (rng.standard_normal((1000, 15, 10)) @ (values * orthogonal(10, 10, rng))).astype(dtype)
    for k in (1, 8):
        u, s, vh, _, error = svd(a, k=k, method="randomized", errors="info")
        true = relative_error(a, u, s, vh)
        assert (true <= error * (1 + 1e-3) + np.finfo(dtype).eps).all()
        np.testing.assert_allclose(error, true, rtol=1e-3, atol=np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_tol_is_kept(dtype, rng):
    for tol in np.geomspace(300 * np.finfo(dtype).eps, 0.9, 40):
        values = np.exp(-rng.uniform(0, 2) * np.arange(50))
        a = with_values(60, 50, values, rng).astype(dtype)
        found = svd(a, tol=tol, method="randomized", errors="info", seed=5)
        assert max(found.error, relative_error(a, *found[:3])) <= tol


@pytest.mark.parametrize(("dtype", "tol"), [(np.float32, 1e-5), (np.float64, 1e-13)])
def test_a_rank_that_misses_tol_warns(dtype, tol, rng):
    """The warning says the truth, also far below the square root of the precision."""
    low = (rng.standard_normal((90, 4)) @ rng.standard_normal((4, 70))).astype(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svd(low, k=4, method="randomized", tol=tol)
    noisy = low + (rng.standard_normal(low.shape) * 30 * tol).astype(dtype)
    with pytest.warns(UserWarning, match="raise k"):
        svd(noisy, k=4, method="randomized", tol=tol)
    flat = orthogonal(60, 60, rng).astype(dtype)
    with pytest.warns(UserWarning, match="relative error of 0.9") as caught:
        svd(np.stack([low[:60, :60], flat]), k=4, method="randomized", tol=0.5)
    assert caught[0].filename == __file__  # points at the caller


# ---- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "limit"), [(np.float32, "3.1e-05"), (np.float64, "5.7e-14")])
def test_a_tol_below_the_precision_is_refused(dtype, limit):
    a = np.eye(5, dtype=dtype)
    for tol in (0.0, 255 * np.finfo(dtype).eps):
        with pytest.raises(InvalidArgumentError, match=rf"\[svd\] tol must be at least {limit}"):
            svd(a, tol=tol, method="randomized")
        svd(a, tol=tol)


def test_neither_rank_nor_error():
    with pytest.raises(InvalidArgumentError, match=r"\[svd\] k or tol must be given"):
        svd(np.eye(3), method="randomized")


def test_gradients_are_refused():
    torch = pytest.importorskip("torch")
    x, c = torch.eye(3, requires_grad=True), torch.zeros(3, requires_grad=True)
    for a, center in ((x, False), (x.detach(), c)):
        with pytest.raises(UnsupportedError, match="must be 'exact' for a tensor that requires"):
            svd(a, k=1, method="randomized", center=center)
