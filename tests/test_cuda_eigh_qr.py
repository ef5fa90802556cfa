"""eigh, eigvalsh and qr on a CUDA device: test ratios on every path, batches, policies."""

import devices
import numpy as np
import pytest
from matrices import (
    EIGH_KINDS,
    GATE,
    SVD_KINDS,
    VALUES_GATE,
    eigh_matrix,
    eigh_ratios,
    norm1,
    over,
    same_bits,
    svd_matrix,
)
from subspan import EighInfo, eigh, eigvalsh, qr
from subspan.errors import InvalidArgumentError

pytestmark = [pytest.mark.gpu, *devices.QUIET]

DTYPES = [np.float32, np.float64]
SIZES = (1, 2, 3, 4, 5, 8, 9, 16, 17, 31, 32, 33, 48, 64, 65, 100, 130, 161, 200, 300)


@pytest.fixture
def gpu():
    return devices.any_library()


def symmetric(shape, rng):
    a = rng.standard_normal(shape)
    return a + np.swapaxes(a, -1, -2)


def parts_of(gpu, result):
    return [gpu.get(part) for part in result]


# ---- eigh --------------------------------------------------------------------------------------


def check_eigh(gpu, a):
    """Ratios of every matrix, values against those of eigvalsh and of the CPU."""
    x = gpu.put(a)
    w, z = parts_of(gpu, eigh(x))
    assert (w.shape, z.shape, w.dtype, z.dtype) == (a.shape[:-1], a.shape, a.dtype, a.dtype)
    assert (np.diff(w) >= 0).all()
    others = gpu.get(eigvalsh(x)), eigvalsh(a)
    for b in range(len(a)):
        assert max(eigh_ratios(a[b], w[b], z[b])) <= GATE, b
        for other in others:
            top = max(np.abs(w[b].astype(np.float64)).max(), np.abs(other[b]).max())
            error = np.abs(w[b].astype(np.float64) - other[b]).max()
            assert over(error, top, 1, a.dtype) <= VALUES_GATE, b


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", SIZES)
def test_eigh_ratios(gpu, n, dtype, rng):
    check_eigh(gpu, symmetric((7 if n <= 64 else 2, n, n), rng).astype(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [2, 3, 5, 8, 16, 20, 32, 33, 64, 70, 100, 170])
def test_eigh_ratios_of_special_matrices(gpu, n, dtype, rng):
    check_eigh(gpu, np.stack([eigh_matrix(kind, n, dtype, rng) for kind in EIGH_KINDS]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [3, 8, 16, 32, 64])
def test_eigh_of_a_thousand_matrices(gpu, n, dtype, rng):
    check_eigh(gpu, symmetric((1000, n, n), rng).astype(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [3, 8, 16, 32, 64, 100, 160])
def test_eigh_does_not_see_the_batch(gpu, n, dtype, rng):
    a = np.stack([eigh_matrix(kind, n, dtype, rng) for kind in EIGH_KINDS])
    whole = parts_of(gpu, eigh(gpu.put(a)))
    order = rng.permutation(len(a))
    turned = parts_of(gpu, eigh(gpu.put(a[order])))
    same_bits(*((x, y[order]) for x, y in zip(turned, whole, strict=True)))
    many = np.concatenate([np.ones((3, n, n), dtype), a, np.zeros((140, n, n), dtype)])
    padded = parts_of(gpu, eigh(gpu.put(many)))
    same_bits(*((x[3 : 3 + len(a)], y) for x, y in zip(padded, whole, strict=True)))
    for b in (0, 5, 11):
        alone = parts_of(gpu, eigh(gpu.put(a[b])))
        same_bits(*zip(alone, (x[b] for x in whole), strict=True))


@pytest.mark.parametrize("n", [6, 33])
def test_eigh_reads_the_lower_triangle_in_any_layout(gpu, n, rng):
    a = symmetric((4, n, n), rng)
    wanted = parts_of(gpu, eigh(gpu.put(a)))
    for junk in (np.nan, np.inf, 1e300):
        dirty = a.copy()
        dirty[:, *np.triu_indices(n, 1)] = junk
        same_bits(*zip(parts_of(gpu, eigh(gpu.put(dirty))), wanted, strict=True))
        same_bits((gpu.get(eigvalsh(gpu.put(dirty))), gpu.get(eigvalsh(gpu.put(a)))))
    for view in devices.layouts(gpu, a).values():
        same_bits(*zip(parts_of(gpu, eigh(view)), wanted, strict=True))
    view = gpu.broadcast(gpu.put(a[0]), (2, 3, n, n))
    for got, single in zip(parts_of(gpu, eigh(view)), wanted, strict=True):
        same_bits(*((got[index], single[0]) for index in np.ndindex(2, 3)))


@pytest.mark.parametrize("shape", [(0, 0), (3, 0, 0), (0, 4, 4), (2, 0, 3, 3)])
def test_eigh_of_empty_shapes(gpu, shape):
    values, vectors, info = parts_of(gpu, eigh(gpu.put(np.zeros(shape)), errors="info"))
    assert (values.shape, vectors.shape, info.shape) == (shape[:-1], shape, shape[:-2])
    assert not info.any()
    assert gpu.get(eigvalsh(gpu.put(np.zeros(shape)))).shape == shape[:-1]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("n", [4, 32, 50, 170])
def test_eigh_nonfinite_policies(gpu, bad, n, rng):
    a = symmetric((2, 3, n, n), rng)
    clean = parts_of(gpu, eigh(gpu.put(a)))
    a[1, 1, n - 1, 0] = bad
    x = gpu.put(a)
    for function in (eigh, eigvalsh):
        with pytest.raises(InvalidArgumentError, match=r"NaN or infinity in matrix 4 of 6"):
            function(x)
    result = eigh(x, nonfinite="propagate", errors="info")
    assert isinstance(result, EighInfo)
    *parts, info = parts_of(gpu, result)
    assert info.dtype == np.int32
    np.testing.assert_array_equal(info, [[0, 0, 0], [0, -1, 0]])
    for got, wanted in zip(parts, clean, strict=True):
        assert np.isnan(got[1, 1]).all()
        same_bits((got[info == 0], wanted[info == 0]))
    assert np.isnan(gpu.get(eigvalsh(x, nonfinite="propagate"))[1, 1]).all()
    ignored = gpu.get(eigh(x, nonfinite="ignore", errors="info").values)
    same_bits((ignored[info == 0], clean[0][info == 0]))


def test_eigh_refuses_what_is_not_square(gpu):
    with pytest.raises(InvalidArgumentError, match="must be square in its last two axes"):
        eigh(gpu.put(np.ones((2, 3))))


# ---- qr ----------------------------------------------------------------------------------------

# Every kernel in registers, shared and global memory; wide ones.
QR_SHAPES = [
    *((1, 1), (2, 1), (8, 8), (16, 8), (17, 5), (32, 8), (64, 8), (100, 3), (128, 8), (129, 8)),
    *((16, 16), (32, 16), (40, 12), (64, 16), (65, 16), (32, 32), (33, 32), (31, 31), (33, 33)),
    *((64, 64), (130, 130), (200, 200), (300, 250), (1000, 32), (2000, 64), (5000, 20)),
    *((2, 3), (8, 16), (20, 30), (16, 40), (32, 33), (40, 70), (100, 300), (250, 300)),
    *((900, 600), (600, 900)),  # few and large
]


def qr_ratios(a, q, r):
    """|A - Q R| / (|A| max(m, n) ulp) and |I - Q^T Q| / (m ulp)."""
    m, n = a.shape
    top = float(np.abs(a).max()) or 1.0
    wide = a.astype(np.float64) / top
    product = q.astype(np.float64) @ (r.astype(np.float64) / top)
    eye = np.eye(min(m, n))
    return (
        over(norm1(wide - product), norm1(wide), max(m, n), a.dtype),
        over(norm1(eye - q.T.astype(np.float64) @ q), 1.0, m, a.dtype),
    )


def check_qr(gpu, a):
    q, r = parts_of(gpu, qr(gpu.put(a)))
    batch, m, n = a.shape
    k = min(m, n)
    assert (q.shape, r.shape, q.dtype, r.dtype) == ((batch, m, k), (batch, k, n), a.dtype, a.dtype)
    assert not np.tril(r, -1).any()
    for b in range(batch):
        assert max(qr_ratios(a[b], q[b], r[b])) <= GATE, b


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", QR_SHAPES, ids=str)
def test_qr_ratios(gpu, shape, dtype, rng):
    check_qr(gpu, rng.standard_normal((7 if max(shape) <= 64 else 2, *shape)).astype(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape", [(3, 3), (16, 8), (30, 12), (32, 32), (100, 5), (20, 30), (64, 60), (300, 40)], ids=str
)
def test_qr_ratios_of_special_matrices(gpu, shape, dtype, rng):
    a = np.stack([svd_matrix(kind, *shape, dtype, rng) for kind in SVD_KINDS])
    check_qr(gpu, a[np.isfinite(a).all(axis=(1, 2))])


def test_qr_signs_are_those_of_the_cpu(gpu, rng):
    for shape in ((3, 16, 8), (3, 40, 33), (2, 300, 20), (3, 8, 16), (1, 900, 600)):
        a = rng.standard_normal(shape)
        q, r = parts_of(gpu, qr(gpu.put(a)))
        np.testing.assert_allclose(r, qr(a).r, atol=1e-11)
        np.testing.assert_allclose(q, qr(a).q, atol=1e-11)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(8, 8), (16, 8), (32, 32), (60, 50), (300, 40)], ids=str)
def test_qr_does_not_see_the_batch(gpu, shape, dtype, rng):
    kinds = ("normal", "zero", "clustered", "graded", "duplicate columns", "integers")
    a = np.stack([svd_matrix(kind, *shape, dtype, rng) for kind in kinds])
    whole = parts_of(gpu, qr(gpu.put(a)))
    many = np.concatenate([np.ones((3, *shape), dtype), a, np.zeros((140, *shape), dtype)])
    padded = parts_of(gpu, qr(gpu.put(many)))
    same_bits(*((x[3 : 3 + len(a)], y) for x, y in zip(padded, whole, strict=True)))
    for b in range(len(a)):
        same_bits(*zip(parts_of(gpu, qr(gpu.put(a[b]))), (x[b] for x in whole), strict=True))
    check_qr(gpu, rng.standard_normal((1000, *shape)).astype(dtype)[: 1000 if shape[0] < 60 else 9])


@pytest.mark.parametrize("shape", [(5, 7, 4), (4, 33, 20), (3, 300, 20)], ids=str)
def test_qr_layouts_give_the_same_bits(gpu, shape, rng):
    a = rng.standard_normal(shape)
    wanted = parts_of(gpu, qr(gpu.put(a)))
    for view in devices.layouts(gpu, a).values():
        same_bits(*zip(parts_of(gpu, qr(view)), wanted, strict=True))
    view = gpu.broadcast(gpu.put(a[0]), (2, 3, *shape[1:]))
    for got, single in zip(parts_of(gpu, qr(view)), wanted, strict=True):
        same_bits(*((got[index], single[0]) for index in np.ndindex(2, 3)))


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0), (0, 4, 3), (2, 0, 3), (2, 3, 0)])
def test_qr_of_empty_shapes(gpu, shape):
    q, r = parts_of(gpu, qr(gpu.put(np.zeros(shape))))
    k = min(shape[-2:])
    assert (q.shape, r.shape) == ((*shape[:-1], k), (*shape[:-2], k, shape[-1]))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape", [(5, 3), (32, 32), (60, 50), (300, 250), (900, 600)], ids=str)
def test_qr_nonfinite_policies(gpu, bad, shape, rng):
    a = rng.standard_normal((4, *shape))
    clean = parts_of(gpu, qr(gpu.put(a)))
    a[2, 4, 2] = bad
    x = gpu.put(a)
    with pytest.raises(InvalidArgumentError, match=r"\[qr\] .*NaN or infinity in matrix 2 of 4"):
        qr(x)
    others = [0, 1, 3]
    for got, wanted in zip(parts_of(gpu, qr(x, nonfinite="propagate")), clean, strict=True):
        assert np.isnan(got[2]).all()
        same_bits((got[others], wanted[others]))
    q, _ = parts_of(gpu, qr(x, nonfinite="ignore"))
    same_bits((q[others], clean[0][others]))
