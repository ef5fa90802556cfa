"""eigh and eigvalsh: LAPACK's test ratios, batches, layouts, libraries, policies, refusals."""

import numpy as np
import pytest
from matrices import (
    EIGH_KINDS,
    GATE,
    SIZES,
    VALUES_GATE,
    eigh_matrix,
    eigh_ratios,
    layouts,
    orthogonal,
    over,
    same_bits,
)
from subspan import Eigh, EighInfo, eigh, eigvalsh
from subspan.errors import DtypeError, InvalidArgumentError

DTYPES = [np.float32, np.float64]


def symmetric(shape, rng):
    a = rng.standard_normal(shape)
    return a + np.swapaxes(a, -1, -2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", EIGH_KINDS)
def test_lapack_ratios(kind, dtype, rng):
    for n in (*SIZES, 5, 20, 70):
        a = eigh_matrix(kind, n, dtype, rng)
        w, z = eigh(a)
        assert w.dtype == z.dtype == dtype
        assert max(eigh_ratios(a, w, z)) <= GATE
        assert (np.diff(w) >= 0).all()
        other = eigvalsh(a).astype(np.float64)
        top = max(np.abs(w.astype(np.float64)).max(), np.abs(other).max())
        assert over(np.abs(w - other).max(), top, 1, dtype) <= VALUES_GATE


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_matrix_alone(dtype, rng):
    a = symmetric((300, 300), rng).astype(dtype)
    w, z = eigh(a)
    assert max(eigh_ratios(a, w, z)) <= GATE
    wanted = np.linalg.eigvalsh(a.astype(np.float64))
    atol = 30 * np.finfo(dtype).eps * np.abs(wanted).max()
    np.testing.assert_allclose(w, wanted, rtol=0, atol=atol)


def test_gram_matrices_have_no_negative_values_beyond_rounding(rng):
    for n in (3, 10, 40):
        x = rng.standard_normal((n // 2, n))
        w = eigvalsh(x.T @ x)
        assert w[0] >= -n * np.finfo(np.float64).eps * w[-1]


def test_vectors_span_the_right_subspace(rng):
    q = orthogonal(20, 20, rng)
    a = (q * np.r_[np.full(15, 0.5), np.full(5, 1.0)]) @ q.T
    top = eigh(a).vectors[:, 15:]
    distance = np.linalg.norm(top @ top.T - q[:, 15:] @ q[:, 15:].T, 2)
    assert distance <= 100 * np.finfo(np.float64).eps / 0.5


def test_two_by_two_by_hand():
    values, vectors = eigh(np.array([[2.0, 1.0], [1.0, 2.0]]))
    np.testing.assert_allclose(values, [1.0, 3.0], rtol=1e-15)
    np.testing.assert_allclose(np.abs(vectors), np.sqrt(0.5), rtol=1e-15)
    assert vectors[0, 0] * vectors[1, 0] < 0 < vectors[0, 1] * vectors[1, 1]


def test_only_the_lower_triangle_is_read(rng):
    a = symmetric((4, 6, 6), rng)
    wanted = eigh(a)
    upper = np.triu_indices(6, 1)
    for junk in (np.nan, np.inf, 1e300):
        dirty = a.copy()
        dirty[:, *upper] = junk
        same_bits(*zip(eigh(dirty), wanted, strict=True))
        same_bits((eigvalsh(dirty), eigvalsh(a)))


@pytest.mark.parametrize("shape", [(0, 0), (3, 0, 0), (0, 4, 4), (2, 0, 3, 3)])
def test_empty_shapes(shape):
    a = np.zeros(shape)
    values, vectors, info = eigh(a, errors="info")
    assert (values.shape, vectors.shape, info.shape) == (shape[:-1], shape, shape[:-2])
    assert eigvalsh(a).shape == shape[:-1]


@pytest.mark.parametrize("lead", [(), (1,), (5,), (2, 3), (2, 1, 3)])
def test_leading_axes(lead, rng):
    a = symmetric((*lead, 5, 5), rng)
    w, z = eigh(a)
    np.testing.assert_allclose((z * w[..., None, :]) @ np.swapaxes(z, -1, -2), a, atol=1e-13)
    np.testing.assert_allclose(w, np.linalg.eigvalsh(a), rtol=1e-12)
    for index in np.ndindex(lead):
        same_bits(*zip(eigh(a[index]), (w[index], z[index]), strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_matrix_does_not_see_its_batch(dtype, rng):
    a = np.stack([eigh_matrix(kind, 11, dtype, rng) for kind in EIGH_KINDS])
    whole = eigh(a)
    order = rng.permutation(len(a))
    same_bits(*((x, y[order]) for x, y in zip(eigh(a[order]), whole, strict=True)))
    padded = np.concatenate([np.ones((3, 11, 11), dtype), a, np.zeros((40, 11, 11), dtype)])
    same_bits(*((x[3 : 3 + len(a)], y) for x, y in zip(eigh(padded), whole, strict=True)))
    parts = [eigh(part) for part in (a[:6], a[6:])]
    joined = [np.concatenate(pair) for pair in zip(*parts, strict=True)]
    same_bits(*zip(joined, whole, strict=True))


def test_bits_do_not_depend_on_the_threads(threads, rng):
    for shape in ((37, 9, 9), (3, 60, 60)):
        a = symmetric(shape, rng)
        results = []
        for n in (1, 2, 3, 5):
            threads(n)
            results.append(eigh(a))
        for other in results[1:]:
            same_bits(*zip(other, results[0], strict=True))


def test_layouts_give_the_same_bits(rng):
    a = symmetric((5, 6, 6), rng)
    wanted = eigh(a)
    for view in layouts(a).values():
        same_bits(*zip(eigh(view), wanted, strict=True))
    for got, single in zip(eigh(np.broadcast_to(a[0], (2, 3, 6, 6))), eigh(a[0]), strict=True):
        same_bits(*((got[index], single) for index in np.ndindex(2, 3)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_same_library_out(library, dtype, rng):
    a = symmetric((2, 3, 5, 5), rng).astype(dtype)
    wanted, result = eigh(a), eigh(library.put(a))
    assert all(library.owns(out) for out in result)
    same_bits(*((library.get(x), y) for x, y in zip(result, wanted, strict=True)))
    values = eigvalsh(library.put(a))
    assert library.owns(values)
    same_bits((library.get(values), eigvalsh(a)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nonfinite_policies(bad, rng):
    a = symmetric((2, 3, 4, 4), rng)
    clean = eigh(a)
    a[1, 1, 3, 0] = bad
    for function in (eigh, eigvalsh):
        with pytest.raises(InvalidArgumentError, match=r"NaN or infinity in matrix 4 of 6"):
            function(a)
    values, vectors, info = result = eigh(a, nonfinite="propagate", errors="info")
    assert isinstance(result, EighInfo)
    np.testing.assert_array_equal(info, [[0, 0, 0], [0, -1, 0]])
    assert np.isnan(values[1, 1]).all()
    assert np.isnan(vectors[1, 1]).all()
    same_bits((values[info == 0], clean.values[info == 0]))
    same_bits((vectors[info == 0], clean.vectors[info == 0]))
    assert np.isnan(eigvalsh(a, nonfinite="propagate")[1, 1]).all()
    same_bits(*zip(eigh(a[0], nonfinite="ignore"), eigh(a[0]), strict=True))
    assert isinstance(eigh(a[0]), Eigh)


@pytest.mark.parametrize("function", [eigh, eigvalsh])
@pytest.mark.parametrize(
    ("a", "kind", "text"),
    [
        (np.ones((2, 3)), InvalidArgumentError, "must be square in its last two axes, got 2 x 3"),
        (np.ones((4, 3, 2)), InvalidArgumentError, "got 3 x 2"),
        (np.ones(3), InvalidArgumentError, "must have 2 or more axes, got 1"),
        (np.eye(2, dtype=int), DtypeError, "must be float32 or float64, got int64"),
        (np.eye(2, dtype=complex), DtypeError, "got complex128"),
        ([[1.0]], DtypeError, "must be an array"),
    ],
)
def test_refused_arrays(function, a, kind, text):
    with pytest.raises(kind, match=text) as caught:
        function(a)
    assert str(caught.value).startswith(f"[{function.__name__}] a must ")


def test_refused_options():
    with pytest.raises(InvalidArgumentError, match=r"\[eigh\] nonfinite must be one of"):
        eigh(np.eye(2), nonfinite="x")
    with pytest.raises(InvalidArgumentError, match=r"\[eigh\] errors must be one of"):
        eigh(np.eye(2), errors="x")
    with pytest.raises(InvalidArgumentError, match=r"\[eigvalsh\] nonfinite must be one of"):
        eigvalsh(np.eye(2), nonfinite=None)
