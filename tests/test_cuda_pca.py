"""Moments and PCA of rows on a CUDA device: against float64, and against the twins on the CPU."""

import devices
import numpy as np
import pytest
import subspan
from subspan import PCA, Moments
from subspan.errors import (
    DtypeError,
    InvalidArgumentError,
    OutOfMemoryError,
    UnsupportedError,
)

pytestmark = [pytest.mark.gpu, *devices.QUIET]

# Of sqrt(M_ii M_jj): float32 products of at most 256 rows, float64 products.
BOUNDS = {"float16": 1.5e-5, "bfloat16": 1.5e-5, "float32": 2e-6, "float64": 1e-12}
MEAN_BOUND = 1e-12  # relative: the device adds columns in float64


@pytest.fixture(params=devices.LIBRARIES)
def each(request):
    return devices.library(request.param)


@pytest.fixture
def gpu():
    return devices.any_library()


def reference(x, w=None):
    x = x.astype(np.float64)
    w = np.ones(len(x)) if w is None else w
    mean = np.average(x, axis=0, weights=w)
    return mean, ((x - mean) * w[:, None]).T @ (x - mean)


def check(state, x, w=None, *, bound=None, mean_bound=None):
    mean, m2 = reference(x, w)
    np.testing.assert_allclose(state.mean, mean, rtol=mean_bound or MEAN_BOUND, atol=1e-14)
    scale = np.sqrt(np.outer(np.diag(m2), np.diag(m2))) + 1e-300
    error = np.max(np.abs(state.m2 - m2) / scale)
    assert error <= (BOUNDS[str(x.dtype)] if bound is None else bound)
    assert np.max(np.abs(state.m2 - state.m2.T) / scale) <= 1e-14


def rows(rng, n, d, dtype="float32"):
    """Columns of different sizes, all far from the origin."""
    return (rng.standard_normal((n, d)) * rng.uniform(0.5, 2, d) + 3).astype(dtype)


# ---- Moments -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize(
    "shape",
    [(2, 3), (7, 1), (255, 7), (257, 8), (5000, 65), (20000, 200), (999, 513), (300001, 4)],
    ids=str,
)
@pytest.mark.parametrize("weighted", [False, True])
def test_moments_are_those_of_float64(each, shape, dtype, weighted, rng):
    x = rows(rng, *shape, dtype)
    w = None
    given = x.copy()
    if weighted:
        w = rng.integers(0, 3, shape[0]).astype(np.float64)
        w[[0, -1]] = 1.0
        dead = np.flatnonzero(w == 0)[:5]
        given[dead, 0] = np.nan  # does not count, so it may be anything
    state = Moments().update(each.put(given), None if w is None else each.put(w))
    assert state.count == (shape[0] if w is None else np.count_nonzero(w))
    assert state.weight_sum == (shape[0] if w is None else w.sum())
    assert state.weight_sq_sum == (shape[0] if w is None else (w**2).sum())
    check(state, x, w)


@pytest.mark.parametrize("d", [1, 3, 8, 63, 64, 65, 127, 128, 129, 256, 300, 768, 1025, 2049])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_number_of_columns(gpu, d, dtype, rng):
    x = rows(rng, 1500, d, dtype)
    check(Moments().update(gpu.put(x)), x)


@pytest.mark.parametrize("precision", ["auto", "float64"])
def test_precision_and_bfloat16(precision, rng):
    gpu = devices.library("torch")
    x = gpu.put(rows(rng, 3000, 70)).bfloat16()
    state = Moments(precision=precision).update(x)
    bound = BOUNDS["bfloat16"] if precision == "auto" else 1e-12
    check(state, gpu.get(x.float()), bound=bound)
    x = rows(rng, 3000, 70)
    check(Moments(precision="float64").update(gpu.put(x)), x, bound=1e-12)


def test_real_weights(each, rng):
    x, w = rows(rng, 4000, 33), rng.exponential(size=4000)
    check(Moments().update(each.put(x), each.put(w)), x, w)
    check(
        Moments().update(each.put(x), each.put(w.astype(np.float32))),
        x,
        w.astype(np.float32).astype(np.float64),
    )


def test_rows_far_from_the_origin(each, rng):
    x = (rng.standard_normal((20000, 32)) + 1000).astype(np.float32)
    ours = Moments().update(each.put(x)).covariance()
    assert np.max(np.abs(ours - np.cov(x.astype(np.float64).T))) < 1e-6


def test_layouts_of_rows(gpu, rng):
    x = rows(rng, 3000, 70)
    wanted = Moments().update(gpu.put(x))
    wide = np.zeros((3000, 91), np.float32)
    wide[:, 3:73] = x
    views = {
        "row stride, not aligned": gpu.put(wide)[:, 3:73],
        "every second row": gpu.put(np.repeat(x, 2, axis=0))[::2],
        "one element off": gpu.put(np.r_[np.float32(0), x.ravel()])[1:].reshape(x.shape),
    }
    for view in views.values():
        state = Moments().update(view)
        check(state, x)
        np.testing.assert_allclose(state.m2, wanted.m2, rtol=1e-6, atol=1e-3)
    with pytest.raises(InvalidArgumentError, match="contiguous in their last axis"):
        Moments().update(gpu.put(np.ascontiguousarray(x.T)).T)


def test_parts_and_places_merge(each, rng):
    x = rows(rng, 6000, 40)
    state = Moments()
    for part in np.split(x, [1, 1000, 1000, 4500]):
        state.update(each.put(part))
    check(state, x)
    mixed = Moments().update(each.put(x[:2500])).update(x[2500:])
    check(mixed, x, mean_bound=1e-6)
    both = Moments().update(x[:10]).merge(Moments().update(each.put(x[10:])))
    check(both, x, mean_bound=1e-6)


def test_bits_do_not_change_between_runs_and_libraries(rng):
    x = rows(rng, 50000, 130)
    w = rng.uniform(size=50000)
    states = [
        Moments().update(gpu.put(x), gpu.put(w))
        for gpu in (devices.any_library(), devices.any_library())
    ]
    for name in devices.LIBRARIES:
        try:
            gpu = devices.library(name)
        except pytest.skip.Exception:
            continue
        states.append(Moments().update(gpu.put(x), gpu.put(w)))
    for state in states[1:]:
        np.testing.assert_array_equal(state.m2, states[0].m2)
        np.testing.assert_array_equal(state.mean, states[0].mean)


def test_no_rows(gpu):
    state = Moments().update(gpu.put(np.zeros((0, 4), np.float32)))
    assert (state.count, state.weight_sum) == (0, 0.0)
    state.update(gpu.put(np.ones((3, 4), np.float32)), gpu.put(np.zeros(3)))
    assert (state.count, state.weight_sum) == (0, 0.0)
    state.update(gpu.put(np.eye(4, dtype=np.float32)))
    assert state.count == 4


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_named_and_the_state_stays(each, bad):
    x = np.ones((300, 5), np.float32)
    state = Moments().update(each.put(x))
    before = state.state_dict()
    x[200, 3] = x[250, 1] = bad
    with pytest.raises(InvalidArgumentError, match="row 200, column 3"):
        state.update(each.put(x))
    w = np.ones(300)
    w[7] = bad
    with pytest.raises(InvalidArgumentError, match="weights must be finite and >= 0"):
        state.update(each.put(np.ones((300, 5), np.float32)), each.put(w))
    w[7] = -1.0
    with pytest.raises(InvalidArgumentError, match="weights must be finite and >= 0"):
        state.update(each.put(np.ones((300, 5), np.float32)), each.put(w))
    for name, array in state.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_arrays_of_two_places_are_refused(each):
    x, w = np.ones((6, 3), np.float32), np.ones(6)
    state = Moments()
    for left, right in ((each.put(x), w), (x, each.put(w))):
        with pytest.raises(DtypeError, match="weights must be of the library and on the device"):
            state.update(left, right)
    with pytest.raises(DtypeError, match="y must be of the library and on the device"):
        state.update(each.put(x), y=x)
    if each.name == "torch":
        host = each.module.ones(6, dtype=each.module.float64)
        with pytest.raises(DtypeError, match=r"torch, cuda:0\), got torch, cpu"):
            state.update(each.put(x), host)
    assert (state.count, state.n_features) == (0, 0)


def test_what_is_for_the_host_only_says_so(gpu, rng):
    x = gpu.put(rows(rng, 6, 3))
    with pytest.raises(UnsupportedError, match="no CUDA kernel"):
        Moments().update(x, y=x)
    with pytest.raises(UnsupportedError, match="no CUDA kernel"):
        Moments().update(x, groups=np.arange(6))


def test_no_device_memory_is_an_error_of_ours_and_the_state_stays(gpu):
    d = 24_000  # the products of so many columns take 4.6 GB
    spared = 4 << 30  # for others who use the device
    free = gpu.free_bytes()
    if free < spared:
        pytest.skip(f"needs more than {spared >> 30} GiB of free device memory")
    x = gpu.put(np.ones((2, d), np.float32))
    state = Moments()
    held = gpu.hold(free - spared)
    try:
        with pytest.raises(OutOfMemoryError, match=r"\d+ bytes"):
            state.update(x)
    finally:
        del held
        gpu.release()
    assert (state.count, state.n_features) == (0, 0)
    small = np.eye(3, dtype=np.float32)
    check(state.update(gpu.put(small)), small)


# ---- PCA ---------------------------------------------------------------------------------------


def spiked(rng, n=4000, d=40):
    """Rows whose leading directions are well apart."""
    q, _ = np.linalg.qr(rng.standard_normal((d, d)))
    return (rng.standard_normal((n, d)) * 0.7 ** np.arange(d)) @ q + 5


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("whiten", [False, True])
def test_pca_is_that_of_the_cpu_and_stays_on_the_device(each, dtype, whiten, rng):
    x = spiked(rng).astype(dtype)
    here, there = (PCA(5, whiten=whiten).fit(data) for data in (x, each.put(x)))
    tolerance = 1e-10 if dtype == "float64" else 1e-4
    np.testing.assert_allclose(
        there.explained_variance_, here.explained_variance_, rtol=0.1 * tolerance
    )
    np.testing.assert_allclose(there.components_, here.components_, atol=tolerance)
    np.testing.assert_allclose(there.mean_, here.mean_, rtol=1e-6)
    z = there.transform(each.put(x))
    assert each.owns(z)
    assert each.get(z).dtype == dtype
    np.testing.assert_allclose(each.get(z), here.transform(x), atol=20 * tolerance)
    back = there.inverse_transform(z)
    assert each.owns(back)
    np.testing.assert_allclose(each.get(back), here.inverse_transform(here.transform(x)), atol=1e-3)


def test_pca_in_parts_weighted_and_by_the_gram_route(each, rng):
    x = spiked(rng)
    w = rng.integers(1, 4, len(x)).astype(np.float64)
    weighted = PCA(3).fit(each.put(x), sample_weight=each.put(w))
    repeated = PCA(3).fit(np.repeat(x, w.astype(int), axis=0))
    np.testing.assert_allclose(weighted.components_, repeated.components_, atol=1e-9)
    parts = PCA(3).partial_fit(each.put(x[:1500])).partial_fit(each.put(x[1500:]))
    np.testing.assert_allclose(parts.components_, PCA(3).fit(x).components_, atol=1e-9)
    wide = spiked(rng, 60, 600)
    gram = PCA(3).fit(each.put(wide))
    assert not hasattr(gram, "moments_")
    np.testing.assert_allclose(gram.components_, PCA(3).fit(wide).components_, atol=1e-9)


def test_pca_names_what_is_not_finite(gpu, rng):
    x = spiked(rng)
    x[17, 2] = np.nan
    with pytest.raises(InvalidArgumentError, match="row 17, column 2"):
        PCA(3).fit(gpu.put(x))
    fitted = PCA(3).fit(np.nan_to_num(x))
    with pytest.raises(InvalidArgumentError, match="row 17, column 2"):
        fitted.transform(gpu.put(x))


def test_transform_keeps_gradients(rng):
    gpu = devices.library("torch")
    fitted = PCA(3).fit(spiked(rng))
    x = gpu.put(spiked(rng, 10)).requires_grad_()
    fitted.transform(x).sum().backward()
    wanted = np.broadcast_to(fitted.components_.sum(axis=0), x.shape)
    np.testing.assert_allclose(gpu.get(x.grad), wanted, atol=1e-12)
    with pytest.raises(UnsupportedError, match="must not require a gradient"):
        subspan.Moments().update(x)
