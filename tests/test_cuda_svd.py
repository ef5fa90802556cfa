"""svd and svdvals on a CUDA device: LAPACK's test ratios on every path, batches, policies."""

import devices
import numpy as np
import pytest
from matrices import GATE, SVD_KINDS, VALUES_GATE, over, same_bits, svd_matrix, svd_ratios
from subspan import SVDInfo, svd, svdvals
from subspan.errors import InvalidArgumentError, UnsupportedError

pytestmark = [pytest.mark.gpu, *devices.QUIET]

DTYPES = [np.float32, np.float64]
# Both sides of every change of kernel: registers of a part of a warp, shared memory of a warp or a
# block, global memory, and QR first.
SQUARE = (1, 2, 3, 4, 5, 8, 9, 16, 17, 31, 32, 33, 48, 64, 65, 100, 128, 130, 161, 200, 300)
TALL = ((7, 2), (20, 3), (60, 3), (128, 2), (128, 33), (120, 100), (140, 90), (1000, 32))
TALLER = ((2000, 64), (5000, 20), (4000, 1), (12000, 128))
SHAPES = [*((n, n) for n in SQUARE), *TALL, *((n, m) for m, n in TALL), *TALLER, (64, 2000)]
KIND_SHAPES = [
    *((3, 3), (7, 5), (16, 16), (20, 3), (32, 32), (32, 20), (20, 32), (60, 3), (48, 40)),
    *((64, 64), (100, 80), (200, 40), (40, 200), (170, 165)),
]


@pytest.fixture
def gpu():
    return devices.any_library()


def factors(gpu, x):
    return [gpu.get(part) for part in svd(x)]


def check(gpu, a):
    """Ratios of every matrix, values against those of svdvals and of the CPU."""
    x = gpu.put(a)
    u, s, vh = factors(gpu, x)
    batch, m, n = a.shape
    k = min(m, n)
    assert u.dtype == s.dtype == vh.dtype == a.dtype
    assert (u.shape, s.shape, vh.shape) == ((batch, m, k), (batch, k), (batch, k, n))
    assert (s >= 0).all()
    assert (np.diff(s) <= 0).all()
    others = gpu.get(svdvals(x)), svdvals(a)
    for b in range(batch):
        assert max(svd_ratios(a[b], u[b], s[b], vh[b])) <= GATE, b
        top = float(s[b].max(initial=0.0))
        for other in others:
            error = np.abs(s[b].astype(np.float64) - other[b]).max(initial=0.0)
            assert over(error, top, k, a.dtype) <= VALUES_GATE, b


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_ratios(gpu, shape, dtype, rng):
    batch = 7 if max(shape) <= 64 else 2
    check(gpu, rng.standard_normal((batch, *shape)).astype(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", KIND_SHAPES, ids=str)
def test_ratios_of_special_matrices(gpu, shape, dtype, rng):
    a = np.stack([svd_matrix(kind, *shape, dtype, rng) for kind in SVD_KINDS])
    check(gpu, a[np.isfinite(a).all(axis=(1, 2))])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 5), (32, 32), (60, 3), (60, 50), (300, 40)], ids=str)
def test_the_ends_of_the_range(gpu, shape, dtype, rng):
    info = np.finfo(dtype)
    a = rng.standard_normal((3, *shape))
    unit = a / np.linalg.norm(a, axis=(1, 2), keepdims=True)
    check(gpu, (unit * (0.5 * float(info.max))).astype(dtype))
    check(gpu, (unit * (float(info.tiny) / float(info.eps))).astype(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 3), (9, 5), (40, 33), (200, 10)], ids=str)
def test_subnormal_matrices(gpu, shape, dtype, rng):
    least = np.finfo(dtype).smallest_subnormal
    counts = rng.integers(-50, 51, shape)
    u, s, vh = factors(gpu, gpu.put((counts * least.astype(np.float64)).astype(dtype)))
    wanted = np.linalg.svd(counts.astype(np.float64), compute_uv=False)
    np.testing.assert_allclose(s / least, wanted, rtol=0, atol=2)
    for q in (u, vh.T):
        np.testing.assert_allclose(q.T @ q, np.eye(min(shape)), atol=100 * np.finfo(dtype).eps)


@pytest.mark.parametrize(
    "shape", [(0, 3), (3, 0), (0, 0), (0, 4, 3), (2, 0, 3), (2, 3, 0), (2, 0, 5, 4), (0, 0, 0)]
)
def test_empty_shapes(gpu, shape):
    x = gpu.put(np.zeros(shape))
    k = min(shape[-2:])
    u, s, vh, info, _ = (gpu.get(part) for part in svd(x, errors="info"))
    assert (u.shape, s.shape) == ((*shape[:-1], k), (*shape[:-2], k))
    assert vh.shape == (*shape[:-2], k, shape[-1])
    assert info.shape == shape[:-2]
    assert not info.any()
    assert gpu.get(svdvals(x)).shape == s.shape


# ---- batches -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 3), (8, 8), (16, 9), (32, 32), (60, 3), (64, 64)], ids=str)
def test_a_thousand_matrices(gpu, shape, dtype, rng):
    check(gpu, rng.standard_normal((1000, *shape)).astype(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape",
    [(3, 3), (6, 5), (16, 16), (20, 3), (32, 20), (64, 64), (100, 60), (170, 160), (2000, 64)],
    ids=str,
)
def test_a_matrix_does_not_see_its_batch(gpu, shape, dtype, rng):
    kinds = ("normal", "zero", "clustered", "graded", "duplicate columns", "even huge", "integers")
    a = np.stack([svd_matrix(kind, *shape, dtype, rng) for kind in kinds])
    whole = factors(gpu, gpu.put(a))
    values = gpu.get(svdvals(gpu.put(a)))
    order = rng.permutation(len(a))
    turned = factors(gpu, gpu.put(a[order]))
    same_bits(*((x, y[order]) for x, y in zip(turned, whole, strict=True)))
    many = np.concatenate([np.full((3, *shape), 1e30, dtype), a, np.zeros((140, *shape), dtype)])
    padded = factors(gpu, gpu.put(many))
    same_bits(*((x[3 : 3 + len(a)], y) for x, y in zip(padded, whole, strict=True)))
    same_bits((gpu.get(svdvals(gpu.put(many)))[3 : 3 + len(a)], values))
    for b in range(len(a)):
        same_bits(*zip(factors(gpu, gpu.put(a[b])), (x[b] for x in whole), strict=True))


@pytest.mark.parametrize("shape", [(5, 7, 4), (4, 33, 20), (3, 300, 20)], ids=str)
def test_layouts_give_the_same_bits(gpu, shape, rng):
    a = rng.standard_normal(shape)
    wanted = factors(gpu, gpu.put(a))
    for name, view in devices.layouts(gpu, a).items():
        np.testing.assert_array_equal(gpu.get(view), a, err_msg=name)
        same_bits(*zip(factors(gpu, view), wanted, strict=True))
    for lead in ((3,), (2, 3)):
        view = gpu.broadcast(gpu.put(a[0]), (*lead, *shape[1:]))
        for got, single in zip(factors(gpu, view), wanted, strict=True):
            same_bits(*((got[index], single[0]) for index in np.ndindex(lead)))


def test_leading_axes_that_do_not_join(gpu, rng):
    a = rng.standard_normal((2, 3, 6, 4))
    view = gpu.put(np.swapaxes(a, 0, 1)).swapaxes(0, 1)
    same_bits(*zip(factors(gpu, view), factors(gpu, gpu.put(a)), strict=True))


def test_the_input_is_not_written(gpu, rng):
    for shape in ((4, 6, 5), (4, 60, 50), (2, 300, 20)):
        a = rng.standard_normal(shape)
        x = gpu.put(a)
        svd(x)
        svdvals(x)
        same_bits((gpu.get(x), a))


# ---- policies ----------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape", [(4, 3), (3, 20), (32, 32), (60, 3), (64, 50), (300, 20)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nonfinite_policies(gpu, bad, shape, dtype, rng):
    a = rng.standard_normal((5, *shape)).astype(dtype)
    clean = factors(gpu, gpu.put(a))
    a[3, -1, 1] = bad
    x = gpu.put(a)
    for function in (svd, svdvals):
        with pytest.raises(InvalidArgumentError, match=r"NaN or infinity in matrix 3 of 5"):
            function(x)
    result = svd(x, nonfinite="propagate", errors="info")
    assert isinstance(result, SVDInfo)
    *parts, info = (gpu.get(part) for part in result)
    assert info.dtype == np.int32
    np.testing.assert_array_equal(info, [0, 0, 0, -1, 0])
    others = [0, 1, 2, 4]
    for got, wanted in zip(parts, clean, strict=True):
        assert np.isnan(got[3]).all()
        np.testing.assert_array_equal(got[others], wanted[others])
    assert np.isnan(gpu.get(svdvals(x, nonfinite="propagate"))[3]).all()
    ignored = gpu.get(svd(x, nonfinite="ignore", errors="info").s)  # ends, whatever the fourth is
    np.testing.assert_array_equal(ignored[others], clean[1][others])


def test_k_and_tol_cut_the_exact_factors(gpu, rng):
    x = gpu.put(rng.standard_normal((3, 8, 6)))
    u, s, vh = factors(gpu, x)
    got = [gpu.get(part) for part in svd(x, k=2)]
    for one, wanted in zip(got, (u[..., :2], s[..., :2], vh[..., :2, :]), strict=True):
        np.testing.assert_array_equal(one, wanted)
    diagonal = gpu.put(np.diag(2.0 ** -np.arange(10.0)))
    assert gpu.get(svd(diagonal, tol=0.1).s).shape == (4,)


def test_randomized_is_for_the_host(gpu):
    with pytest.raises(UnsupportedError, match="method must be 'exact'"):
        svd(gpu.put(np.eye(5)), k=2, method="randomized")
