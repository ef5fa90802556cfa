"""kernel_matvec and kernel_logsumexp on a CUDA device: sums of the definition, in every layout."""

import devices
import numpy as np
import pytest
from kernel_oracle import KERNELS, RADIAL, error, matrix
from matrices import same_bits
from subspan import _core, kernel_logsumexp, kernel_matvec
from subspan.errors import DtypeError, InvalidArgumentError, UnsupportedError
from test_kernel_logsumexp import KERNELS as WITH_LOGARITHM
from test_kernel_logsumexp import definition

pytestmark = [pytest.mark.gpu, *devices.QUIET]

DTYPES = (np.float32, np.float64)
OPTIONS = {
    "rational_quadratic": {"alpha": 0.7},
    "polynomial": {"degree": 2, "offset": 0.5},
}


@pytest.fixture
def gpu():
    return devices.any_library()


def points(rng, n, m, d, e, dtype):
    sides = [rng.standard_normal((k, d)) / max(d, 1) ** 0.5 for k in (n, m)]
    return [a.astype(dtype) for a in (*sides, rng.standard_normal((m, e)))]


def on_device(gpu, *arrays):
    return [gpu.put(a) for a in arrays]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("n", "m", "d", "e"),
    [
        *((1, 1, 1, 1), (3, 2, 2, 2), (700, 300, 3, 1), (130, 1500, 3, 4), (90, 260, 5, 1)),
        *((300, 129, 7, 3), (65, 2000, 8, 5), (200, 300, 9, 1), (129, 257, 20, 2)),
        *((513, 1030, 64, 1), (40, 5000, 33, 40), (5, 90_000, 3, 1), (5, 70_000, 12, 3)),
    ],
)
def test_the_definition(gpu, kernel, dtype, n, m, d, e, rng):
    x, y, v = points(rng, n, m, d, e, dtype)
    options = OPTIONS.get(kernel, {}) | {"bandwidth": 0.8}
    out = gpu.get(kernel_matvec(*on_device(gpu, x, y, v), kernel=kernel, **options))
    assert out.dtype == dtype
    signed = kernel in {"linear", "polynomial"}  # products are smaller than their terms
    units = (400 if signed else 60) * (1 + (d if signed else 0) / 16)
    assert error(out, x, y, v, kernel, **options) <= units * np.finfo(dtype).eps


@pytest.mark.parametrize("d", [3, 12])
def test_rows_vectors_and_batches(gpu, d, rng):
    """What a row has depends neither on the other rows nor on the batch."""
    x, y, v = points(rng, 400, 2500, d, 2, np.float32)
    gx, gy, gv = on_device(gpu, x, y, v)
    for kernel in ("gaussian", "softmax", "cauchy"):
        whole = gpu.get(kernel_matvec(gx, gy, gv, kernel=kernel))
        for rows in (slice(5, 9), slice(100, 300), slice(None, None, 3)):
            same_bits((gpu.get(kernel_matvec(gx[rows], gy, gv, kernel=kernel)), whole[rows]))
        batch = kernel_matvec(gx.reshape(4, 100, d), gy, gv[None], kernel=kernel)
        same_bits((gpu.get(batch).reshape(400, 2), whole))
        one = gpu.get(kernel_matvec(gx, gy, gv[:, 0], kernel=kernel))
        np.testing.assert_allclose(one, whole[:, 0], rtol=1e-5, atol=1e-4)
        for _ in range(3):
            same_bits((gpu.get(kernel_matvec(gx, gy, gv, kernel=kernel)), whole))


def test_layouts(gpu, rng):
    x, y, v = (rng.standard_normal((3, 70, 6)).astype(np.float32) for _ in range(3))
    wanted = gpu.get(kernel_matvec(*on_device(gpu, x, y, v), kernel="laplacian"))
    views = [devices.layouts(gpu, a) for a in (x, y, v)]
    for name in views[0]:
        out = kernel_matvec(*(view[name] for view in views), kernel="laplacian")
        same_bits((gpu.get(out), wanted))
    shared = gpu.broadcast(gpu.put(y[0]), y.shape)
    out = gpu.get(kernel_matvec(gpu.put(x), shared, gpu.put(v), kernel="laplacian"))
    same_bits((out[0], wanted[0]))


@pytest.mark.parametrize("kernel", [*RADIAL, "softmax"])
@pytest.mark.parametrize("d", [3, 64])
def test_a_common_offset_costs_nothing(gpu, kernel, d, rng):
    x, y = (np.round(rng.standard_normal((200, d)) * 4096) / 4096 for _ in range(2))
    v = rng.standard_normal(200).astype(np.float32)
    moved = [(a + (100 if kernel in RADIAL or a is y else 0)).astype(np.float32) for a in (x, y)]
    if kernel == "softmax":
        moved[0] = (x / d).astype(np.float32)
    options = {"bandwidth": d**0.5} if kernel in RADIAL else {}
    out = gpu.get(kernel_matvec(*on_device(gpu, *moved, v), kernel=kernel, **options))
    assert error(out, *moved, v, kernel, **options) <= 4e-6


def test_near_points_far_from_the_mean_keep_their_distances(gpu, rng):
    d, scale = 40, 1e-3
    centres = rng.standard_normal((6, d))
    x = (centres.repeat(60, 0) + scale * rng.standard_normal((360, d))).astype(np.float32)
    v = np.eye(360, dtype=np.float32)
    width = scale * d**0.5
    for kernel in ("distance", "laplacian", "gaussian"):
        out = gpu.get(kernel_matvec(gpu.put(x), None, gpu.put(v), kernel=kernel, bandwidth=width))
        wanted = matrix(x, x, kernel, bandwidth=width)
        if kernel == "distance":
            np.testing.assert_allclose(out, wanted, rtol=1e-4)
        else:
            np.testing.assert_allclose(out, wanted, atol=1e-4)


@pytest.mark.parametrize("kernel", RADIAL)
@pytest.mark.parametrize("d", [2, 16, 17, 50])
def test_equal_points_have_distance_zero(gpu, kernel, d, rng):
    x = rng.standard_normal((190, d)).astype(np.float32) + 3
    dense = gpu.get(
        kernel_matvec(gpu.put(x), None, gpu.put(np.eye(190, dtype=np.float32)), kernel=kernel)
    )
    same_bits((np.diag(dense).copy(), np.full(190, 0 if "distance" in kernel else 1, np.float32)))
    np.testing.assert_allclose(dense, dense.T, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("d", [3, 20])
@pytest.mark.parametrize("e", [1, 6])
def test_not_a_number_stays_in_its_row(gpu, kernel, d, e, rng):
    x, y, v = points(rng, 150, 160, d, e, np.float32)
    for bad in (np.nan, np.inf):
        broken = x.copy()
        broken[7, 1] = bad
        out = gpu.get(kernel_matvec(*on_device(gpu, broken, y, v), kernel=kernel))
        assert np.isfinite(np.delete(out, 7, 0)).all()
        if kernel != "linear":
            assert np.isnan(out[7]).all()
    y[3, 0] = np.nan
    assert np.isnan(gpu.get(kernel_matvec(*on_device(gpu, x, y, v), kernel=kernel))).all()


@pytest.mark.parametrize("kernel", KERNELS)
def test_nothing_to_sum(gpu, kernel):
    x, v = gpu.put(np.ones((4, 2))), gpu.put(np.ones((3, 2)))
    assert kernel_matvec(x[:0], v, v, kernel=kernel).shape == (0, 2)
    assert kernel_matvec(x, v, v[:, :0], kernel=kernel).shape == (4, 0)
    if kernel == "softmax":
        with pytest.raises(InvalidArgumentError, match=r"y must have a row for softmax"):
            kernel_matvec(x, v[:0], v[:0], kernel=kernel)
    else:
        assert not gpu.get(kernel_matvec(x, v[:0], v[:0], kernel=kernel)).any()


def test_bandwidths_cutoffs_and_overflow(gpu, rng):
    x, y, v = points(rng, 90, 200, 3, 2, np.float32)
    given = on_device(gpu, x, y, v)
    widths = np.array([0.5, np.inf, 2.0])
    out = gpu.get(kernel_matvec(*given, bandwidth=gpu.put(widths)))
    assert error(out, x, y, v, "gaussian", bandwidth=widths) <= 1e-5
    exact = gpu.get(kernel_matvec(*given, bandwidth=0.01))
    same_bits((gpu.get(kernel_matvec(*given, bandwidth=0.01, cutoff=1e-3)), exact))
    far = gpu.get(kernel_matvec(given[0] * 1e4, given[1] * 1e4, given[2], kernel="exp_dot"))
    assert not np.isfinite(far).all()  # and nobody waited to refuse it


@pytest.mark.parametrize("kernel", WITH_LOGARITHM)
@pytest.mark.parametrize("dtype", DTYPES)
def test_logarithms(gpu, kernel, dtype, rng):
    options = OPTIONS.get(kernel, {}) | {"bandwidth": 0.6}
    for n, m, d, e in ((1, 1, 1, 1), (33, 129, 3, 2), (260, 1030, 2, 1), (40, 9000, 30, 1)):
        x, y, _ = points(rng, n, m, d, 1, dtype)
        for scale in (1, 40):
            moved = (x * dtype(scale), y * dtype(scale))
            v = rng.uniform(size=(m, e)).astype(dtype)
            out = gpu.get(kernel_logsumexp(*on_device(gpu, *moved, v), kernel=kernel, **options))
            wanted = definition(*moved, v, kernel, **options)
            assert (np.abs(out - wanted) / (1 + np.abs(wanted))).max() <= 16 * np.finfo(dtype).eps
    nothing = kernel_logsumexp(gpu.put(x), gpu.put(y), gpu.put(np.zeros(m, dtype)), kernel=kernel)
    assert (gpu.get(nothing) == -np.inf).all()


@pytest.mark.parametrize("function", [kernel_matvec, kernel_logsumexp])
@pytest.mark.parametrize("kernel", [k for k in KERNELS if k != "matern12"])
@pytest.mark.parametrize("d", [3, 14])
def test_gradients_are_those_of_the_cpu(function, kernel, d, rng):
    gpu = devices.library("torch")
    if function is kernel_logsumexp and kernel not in WITH_LOGARITHM:
        pytest.skip("a kernel without a logarithm")
    torch = gpu.module
    arrays = [*points(rng, 40, 1100, d, 3, np.float64), rng.uniform(0.5, 1, d)]
    arrays[2] = np.abs(arrays[2])
    results = []
    for where in ("cpu", gpu.where):
        x, y, v, b = (torch.from_numpy(a).to(where).requires_grad_() for a in arrays)
        out = function(x, y, v, kernel=kernel, bandwidth=b)
        (out * torch.linspace(-1, 1, out.numel(), device=where).reshape(out.shape)).sum().backward()
        results.append([out.detach(), *(a.grad for a in (x, y, v, b))])
    for here, there in zip(*results, strict=True):
        torch.testing.assert_close(there.cpu(), here, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", devices.LIBRARIES)
@pytest.mark.parametrize("kernel", ["gaussian", "softmax"])
def test_the_current_stream_is_used(name, kernel):
    gpu = devices.library(name)
    x = gpu.large()
    kernel_matvec(x[:500, :3], None, x[:500, :2], kernel=kernel)  # what is loaded once, is
    with gpu.stream() as stream:
        late = gpu.busy(x)
        out = kernel_matvec(late[:500, :3], None, late[:500, :2], kernel=kernel)
        assert gpu.pending(stream)  # nobody waited
    x, v = gpu.get(late)[:500, :3], gpu.get(late)[:500, :2]
    assert error(gpu.get(out), x, x, v, kernel) <= 1e-5


def test_what_is_refused(gpu):
    x, v = gpu.put(np.ones((4, 2))), gpu.put(np.ones(4))
    tiles = tuple(np.array(part) for part in ([0, 4], [0, 4], [0, 1], [0]))
    for function in (kernel_matvec, kernel_logsumexp):
        with pytest.raises(UnsupportedError, match="ranges have no CUDA kernel yet"):
            function(x, None, v, ranges=tiles)
        with pytest.raises(DtypeError, match="must be float32 or float64"):
            function(x.astype("float16") if gpu.name == "cupy" else x.half(), None, v)
        with pytest.raises(DtypeError, match="on the device of x"):
            function(x, np.ones((4, 2)), v)
    for method in ("nystrom", "rff", "sparse", "auto"):
        with pytest.raises(UnsupportedError, match="method must be 'exact'"):
            kernel_matvec(x, None, v, method=method, tol=0.1)
    host = np.zeros((1, 4, 1))
    call = (x[None], x[None], v[None, :, None], np.ones(2), host, None, "gaussian", 1.0, 3, 1.0)
    with pytest.raises(InvalidArgumentError, match="on its device"):
        _core.kernel_matvec(*call, 0.0, None, 0)
