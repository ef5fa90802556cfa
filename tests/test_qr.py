"""qr: residual and orthogonality ratios, batches, layouts, libraries, policies, refusals."""

import numpy as np
import pytest
from matrices import (
    GATE,
    SIZES,
    SVD_KINDS,
    layouts,
    norm1,
    over,
    same_bits,
    svd_matrix,
)
from subspan import QR, qr
from subspan.errors import DtypeError, InvalidArgumentError

DTYPES = [np.float32, np.float64]


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


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", SVD_KINDS)
def test_ratios(kind, dtype, rng):
    for m in SIZES:
        for n in SIZES:
            a = svd_matrix(kind, m, n, dtype, rng)
            q, r = qr(a)
            k = min(m, n)
            assert (q.shape, r.shape, q.dtype, r.dtype) == ((m, k), (k, n), dtype, dtype)
            assert max(qr_ratios(a, q, r)) <= GATE
            assert not np.tril(r, -1).any()


def test_r_is_numpys_in_float64(rng):
    a = rng.standard_normal((30, 12))
    q, r = np.linalg.qr(a)
    np.testing.assert_allclose(qr(a).r, r, atol=1e-13)
    np.testing.assert_allclose(qr(a).q, q, atol=1e-13)


def test_large_matrix_alone(rng):
    a = rng.standard_normal((400, 300))
    assert max(qr_ratios(a, *qr(a))) <= GATE


@pytest.mark.parametrize(
    "shape", [(0, 3), (3, 0), (0, 0), (0, 4, 3), (2, 0, 3), (2, 3, 0), (2, 0, 5, 4)]
)
def test_empty_shapes(shape):
    q, r = qr(np.zeros(shape))
    k = min(shape[-2:])
    assert (q.shape, r.shape) == ((*shape[:-1], k), (*shape[:-2], k, shape[-1]))


@pytest.mark.parametrize("lead", [(), (1,), (5,), (2, 3), (2, 1, 3)])
@pytest.mark.parametrize("matrix", [(6, 4), (4, 6), (5, 5)])
def test_leading_axes(lead, matrix, rng):
    a = rng.standard_normal((*lead, *matrix))
    q, r = qr(a)
    np.testing.assert_allclose(q @ r, a, atol=1e-13)
    for index in np.ndindex(lead):
        same_bits(*zip(qr(a[index]), (q[index], r[index]), strict=True))


def test_a_matrix_does_not_see_its_batch(rng):
    a = rng.standard_normal((19, 12, 9))
    whole = qr(a)
    order = rng.permutation(len(a))
    same_bits(*((x, y[order]) for x, y in zip(qr(a[order]), whole, strict=True)))
    padded = np.concatenate([np.ones((3, 12, 9)), a, np.zeros((40, 12, 9))])
    same_bits(*((x[3:22], y) for x, y in zip(qr(padded), whole, strict=True)))


def test_bits_do_not_depend_on_the_threads(threads, rng):
    for shape in ((37, 9, 7), (3, 60, 80)):
        a = rng.standard_normal(shape)
        results = []
        for n in (1, 2, 3, 5):
            threads(n)
            results.append(qr(a))
        for other in results[1:]:
            same_bits(*zip(other, results[0], strict=True))


def test_layouts_give_the_same_bits(rng):
    a = rng.standard_normal((5, 7, 4))
    wanted = qr(a)
    for view in layouts(a).values():
        same_bits(*zip(qr(view), wanted, strict=True))
    for got, single in zip(qr(np.broadcast_to(a[0], (2, 3, 7, 4))), qr(a[0]), strict=True):
        same_bits(*((got[index], single) for index in np.ndindex(2, 3)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_same_library_out(library, dtype, rng):
    a = rng.standard_normal((2, 3, 6, 4)).astype(dtype)
    wanted, result = qr(a), qr(library.put(a))
    assert isinstance(result, QR)
    assert all(library.owns(out) for out in result)
    same_bits(*((library.get(x), y) for x, y in zip(result, wanted, strict=True)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nonfinite_policies(bad, rng):
    a = rng.standard_normal((4, 5, 3))
    clean = qr(a)
    a[2, 4, 2] = bad
    with pytest.raises(InvalidArgumentError, match=r"\[qr\] .*NaN or infinity in matrix 2 of 4"):
        qr(a)
    q, r = qr(a, nonfinite="propagate")
    assert np.isnan(q[2]).all()
    assert np.isnan(r[2]).all()
    others = [0, 1, 3]
    same_bits((q[others], clean.q[others]), (r[others], clean.r[others]))
    same_bits(*zip(qr(a[:2], nonfinite="ignore"), qr(a[:2]), strict=True))


@pytest.mark.parametrize(
    ("a", "kind", "text"),
    [
        (np.ones(3), InvalidArgumentError, "must have 2 or more axes, got 1"),
        (np.eye(2, dtype=int), DtypeError, "must be float32 or float64, got int64"),
        (np.eye(2, dtype=np.float16), DtypeError, "got float16"),
        ([[1.0]], DtypeError, "must be an array"),
    ],
)
def test_refused_arrays(a, kind, text):
    with pytest.raises(kind, match=text) as caught:
        qr(a)
    assert str(caught.value).startswith("[qr] a must ")


def test_refused_options():
    with pytest.raises(InvalidArgumentError, match=r"\[qr\] nonfinite must be one of"):
        qr(np.eye(2), nonfinite="x")
