"""The CUDA twins, on a real device: skipped where there is none (run with -m gpu)."""

import numpy as np
import pytest
import subspan

pytestmark = pytest.mark.gpu


@pytest.fixture(params=["torch", "cupy"])
def on_device(request):
    """A function that moves a numpy array to the device, and the library's name."""
    module = pytest.importorskip(request.param)
    if not subspan.show_config()["cuda"]:
        pytest.skip("no CUDA device")
    if request.param == "cupy":
        return module.asarray
    return lambda x: module.from_numpy(np.ascontiguousarray(x)).cuda()


def reference(x, w):
    x = x.astype(np.float64)
    mean = np.average(x, axis=0, weights=w)
    return mean, ((x - mean) * w[:, None]).T @ (x - mean)


@pytest.mark.parametrize("shape", [(1, 3), (7, 1), (5000, 65), (20000, 200)])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("weighted", [False, True])
def test_moments_equal_those_of_the_host(on_device, shape, dtype, weighted):
    rng = np.random.default_rng(0)
    x = (rng.standard_normal(shape) + 3).astype(dtype)
    w = rng.integers(0, 3, shape[0]).astype(np.float64) if weighted else np.ones(shape[0])
    w[0] = 1.0
    if weighted and shape[0] > 1:
        x[1, 0], w[1] = np.nan, 0.0  # does not count, so its values may be anything
    moments = subspan.Moments().update(on_device(x), on_device(w) if weighted else None)
    mean, m2 = reference(np.nan_to_num(x), w)
    assert moments.count == np.count_nonzero(w)
    assert moments.weight_sum == w.sum()
    np.testing.assert_allclose(moments.mean, mean, rtol=1e-12)
    scale = np.sqrt(np.outer(np.diag(m2), np.diag(m2))) + 1e-300
    assert np.max(np.abs(moments.m2 - m2) / scale) < (1e-12 if dtype == "float64" else 2e-6)


def test_rows_far_from_the_origin(on_device):
    rng = np.random.default_rng(1)
    x = (rng.standard_normal((20000, 32)) + 1000).astype(np.float32)
    ours = subspan.Moments().update(on_device(x)).covariance()
    assert np.max(np.abs(ours - np.cov(x.astype(np.float64).T))) < 1e-6


def test_nan_is_named_and_the_state_stays(on_device):
    x = np.ones((300, 5), np.float32)
    state = subspan.Moments().update(on_device(x))
    x[200, 3] = np.nan
    with pytest.raises(subspan.errors.InvalidArgumentError, match="row 200, column 3"):
        state.update(on_device(x))
    assert state.count == 300


def test_bits_do_not_change_between_runs(on_device):
    x = on_device(np.random.default_rng(2).standard_normal((50000, 130)).astype(np.float32))
    first, second = (subspan.Moments().update(x).m2 for _ in range(2))
    assert np.array_equal(first, second)


def test_pca_stays_on_the_device(on_device):
    x = on_device(np.random.default_rng(3).standard_normal((4000, 40)).astype(np.float32))
    z = subspan.PCA(5).fit(x).transform(x)
    assert type(z) is type(x)
    assert z.shape == (4000, 5)
    assert z.device == x.device


def test_what_has_no_kernel_says_so(on_device):
    with pytest.raises(subspan.errors.UnsupportedError, match="no CUDA kernel yet"):
        subspan.svd(on_device(np.eye(4, dtype=np.float32)))
