"""gram, grams, gram_inner: sums against float64, symmetry, layouts, gradients, refusals."""

import numpy as np
import pytest
from matrices import layouts, same_bits
from subspan import _core, gram, gram_inner, grams
from subspan.errors import DtypeError, InvalidArgumentError, UnsupportedError

DTYPES = [np.float32, np.float64]
# Every number of columns around the borders of tiles, of panels and of what BLAS multiplies.
WIDTHS = (*range(1, 20), 24, 25, 31, 33, 40, 47, 65, 128, 129, 200, 257, 300)


def far_off(found, x, y):
    """Largest error of an element over what rounding explains, in units of eps."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    size = np.abs(x.mT) @ np.abs(y)
    error = np.abs(found - x.mT @ y)
    share = np.divide(error, size, out=np.zeros_like(error), where=size > 0)
    return share.max(initial=0.0) / np.finfo(found.dtype).eps


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 7, 300])
def test_products(n, dtype, rng):
    for p in WIDTHS:
        for q in (1, 3, p, 140):
            x, y = (rng.standard_normal((n, k)).astype(dtype) for k in (p, q))
            found = gram(x, y)
            assert found.dtype == dtype
            assert far_off(found, x, y) <= 16


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 6, 520])
def test_one_triangle_is_both(n, dtype, rng):
    for p in WIDTHS:
        x = rng.standard_normal((2, n, p)).astype(dtype)
        found = gram(x)
        same_bits((found, found.mT.copy()))
        assert far_off(found, x, x) <= 16
        if p <= 128:
            same_bits((found, gram(x, x)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("p", "q"), [(1, 1), (4, 7), (16, 16), (20, 5), (130, 140)])
def test_grams_are_the_three(p, q, dtype, rng):
    for count, n in ((1, 40), (30, 40), (2, 9000)):
        if p > 100 and n > 1000:
            continue
        x, y = (rng.standard_normal((count, n, k)).astype(dtype) for k in (p, q))
        found = grams(x, y)
        same_bits((found.xx, gram(x)), (found.xy, gram(x, y)), (found.yy, gram(y)))


def test_integers_are_exact(rng):
    x, y = rng.integers(-9, 10, (3, 20000, 5)), rng.integers(-9, 10, (3, 20000, 9))
    for dtype in DTYPES:
        found = gram(x.astype(dtype), y.astype(dtype))
        assert np.array_equal(found, x.mT @ y)


def test_long_sums_lose_little(rng):
    """A million terms one after the other would lose three digits more."""
    x = rng.random((1 << 20, 2)).astype(np.float32)
    found = gram(x, np.ones((len(x), 1), np.float32))
    assert far_off(found, x, np.ones((len(x), 1))) <= 32


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "p", "q"), [(9, 5, 3), (40, 17, 33), (300, 8, 16), (5, 150, 140)])
def test_layouts(n, p, q, dtype, rng):
    x, y = (rng.standard_normal((4, n, k)).astype(dtype) for k in (p, q))
    wanted, alone = gram(x, y), gram(x)
    for name, view in layouts(x).items():
        found = gram(view, y)
        if q <= 128:
            same_bits((found, wanted), (gram(view), alone))
        else:
            assert far_off(found, x, y) <= 8, name
            assert far_off(gram(view), x, x) <= 8, name
    for view in layouts(y).values():
        if q <= 128:
            same_bits((gram(x, view), wanted))


@pytest.mark.parametrize("shape", [(600, 3, 9), (2, 16, 700), (1, 400, 5)])
def test_transposed_views_make_any_product(shape, rng):
    m, k, n = shape
    a, w = rng.standard_normal((3, m, k)), rng.standard_normal((3, k, n))
    np.testing.assert_allclose(gram(a.mT, w), a @ w, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("of_x", "of_y"), [((), (3,)), ((3, 1), (1, 4)), ((2, 1), ()), ((0,), ())])
def test_leading_axes_broadcast(of_x, of_y, library, rng):
    x, y = rng.standard_normal((*of_x, 12, 3)), rng.standard_normal((*of_y, 12, 2))
    found = gram(library.put(x), library.put(y))
    assert library.owns(found)
    found, wanted = library.get(found), x.mT @ y
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-13)
    for index in np.ndindex(wanted.shape[:-2]):
        full_x = np.broadcast_to(x, (*wanted.shape[:-2], 12, 3))[index]
        full_y = np.broadcast_to(y, (*wanted.shape[:-2], 12, 2))[index]
        same_bits((found[index], gram(full_x, full_y)))


def test_grams_of_other_libraries(library, rng):
    x, y = rng.standard_normal((2, 2, 7, 3)), rng.standard_normal((2, 2, 7, 4))
    for mine, theirs in zip(grams(library.put(x), library.put(y)), grams(x, y), strict=True):
        assert library.owns(mine)
        same_bits((library.get(mine), theirs))


@pytest.mark.parametrize(
    ("n", "p", "q"), [(0, 3, 2), (4, 0, 2), (4, 3, 0), (0, 0, 0), (0, 200, 150)]
)
def test_nothing(n, p, q):
    for lead in ((), (3,), (0,)):
        x, y = np.ones((*lead, n, p)), np.ones((*lead, n, q))
        same_bits((gram(x, y), x.mT @ y), (gram(x), x.mT @ x), (grams(x, y).yy, y.mT @ y))


@pytest.mark.parametrize(
    ("count", "n", "p", "q"),
    [(40, 30, 5, 6), (3, 20000, 4, 3), (9, 9000, 2, 2), (2, 600, 600, 9), (2, 200, 300, 260)],
)
def test_bits_depend_on_one_product_alone(count, n, p, q, threads, rng):
    x, y = (rng.standard_normal((count, n, k)).astype(np.float32) for k in (p, q))
    results = []
    for number in (1, 2, 5):
        threads(number)
        results.append((gram(x, y), gram(x)))
        for i in (0, count - 1):
            same_bits((gram(x[i], y[i]), results[-1][0][i]), (gram(x[i]), results[-1][1][i]))
    for mine in results[1:]:
        same_bits(*zip(mine, results[0], strict=True))
    many = gram(x[0], y)
    same_bits((many[count - 1], gram(x[0], y[count - 1])))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("k", [5, 140])
def test_nonfinite_spreads_where_it_belongs(bad, k, rng):
    x, y = rng.standard_normal((3, 30, k)), rng.standard_normal((3, 30, k))
    clean = gram(x, y)
    x[1, 4, 2] = bad
    found = gram(x, y)
    touched = np.zeros(found.shape, bool)
    touched[1, 2] = True
    assert not np.isfinite(found[touched]).any()
    np.testing.assert_array_equal(found[~touched], clean[~touched])


def test_gradients(rng):
    torch = pytest.importorskip("torch")
    x, y, one = (
        torch.from_numpy(rng.standard_normal(shape)).requires_grad_()
        for shape in ((2, 5, 3), (2, 5, 2), (5, 2))
    )
    for function, arguments in ((gram, (x, y)), (gram, (x,)), (gram, (x, one)), (gram, (one, x))):
        assert torch.autograd.gradcheck(function, arguments)
        assert torch.autograd.gradgradcheck(function, arguments)
    assert torch.autograd.gradcheck(lambda y: gram(x.detach(), y), (y,))
    with torch.no_grad():
        assert not gram(x, y).requires_grad
    with pytest.raises(UnsupportedError, match=r"\[grams\] x must not require a gradient"):
        grams(x, y)


@pytest.mark.parametrize(
    ("x", "y", "kind", "text"),
    [
        (np.ones(3), None, InvalidArgumentError, "x must have 2 or more axes, got 1"),
        (np.ones((3, 2)), np.ones(3), InvalidArgumentError, "y must have 2 or more axes, got 1"),
        (np.ones((3, 2)), np.ones((4, 2)), InvalidArgumentError, r"y must be \(..., n, q\) with n"),
        (np.ones((2, 3, 2)), np.ones((5, 3, 2)), InvalidArgumentError, r"broadcast with \(2,\)"),
        (np.ones((3, 2), int), None, DtypeError, "x must be float32 or float64, got int64"),
        (np.ones((3, 2)), np.ones((3, 2), int), DtypeError, "y must be float32 or float64, got"),
        (np.ones((3, 2)), np.ones((3, 2), np.float32), DtypeError, "y must be float64 as x, got"),
        ([[1.0]], None, DtypeError, "x must be an array"),
        (np.ones((1, 1)), [[1.0]], DtypeError, "y must be an array"),
    ],
)
def test_refused_arrays(x, y, kind, text):
    with pytest.raises(kind, match=text) as caught:
        gram(x, y)
    assert str(caught.value).startswith("[gram] ")
    if y is not None:
        with pytest.raises(kind, match=r"\[grams\]"):
            grams(x, y)


def test_refused_libraries():
    torch = pytest.importorskip("torch")
    for function in (gram, grams):
        with pytest.raises(DtypeError, match="y must be of the library and on the device of x"):
            function(np.ones((3, 2)), torch.ones(3, 2))


def test_refused_outputs():
    x, y = np.ones((2, 3, 4)), np.ones((2, 3, 5))
    with pytest.raises(InvalidArgumentError, match="out must be C-ordered"):
        _core.gram(x, y, np.empty((2, 5, 4)))
    with pytest.raises(InvalidArgumentError, match=r"y must be \[2, 3, q\]"):
        _core.gram(x, y[:1], np.empty((2, 4, 5)))
    memory = np.ones(200)
    inside, out = memory[:24].reshape(2, 3, 4), memory[8:40].reshape(2, 4, 4)
    with pytest.raises(InvalidArgumentError, match="out must not overlap"):
        _core.gram(inside, None, out)
    with pytest.raises(InvalidArgumentError, match="out must not overlap y"):
        _core.gram(x, inside, out)


def test_cuda_arrays_of_others_are_refused():
    from test_interop import CUDA, Producer

    x = Producer(np.full((2, 3, 3), np.nan), device=CUDA)
    for function in (gram, lambda x: gram(x, x), lambda x: grams(x, x)):
        with pytest.raises(UnsupportedError, match=r"\] x must be of torch or cupy"):
            function(x)
    with pytest.raises(UnsupportedError, match=r"\[gram\] has no CUDA kernel yet"):
        _core.gram(x, None, np.empty((2, 3, 3)))


# ---- inner products of the Gram matrices of rows ---------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [0, 1, 5, 63, 64, 65, 130, 417, 1000])
def test_inner_products_of_row_grams(n, dtype, rng):
    xs = [rng.standard_normal((n, d)).astype(dtype) for d in (1, 7, 0, 40, 300)]
    grams_of_rows = [(x.astype(np.float64) @ x.T.astype(np.float64)).ravel() for x in xs]
    wanted = np.stack(grams_of_rows) @ np.stack(grams_of_rows).T
    found = gram_inner(xs)
    assert found.dtype == np.float64
    same_bits((found, found.T.copy()))
    size = np.sqrt(np.outer(np.diag(wanted), np.diag(wanted)))
    assert (np.abs(found - wanted) <= 40 * np.finfo(dtype).eps * size).all()


def test_inner_products_of_many_matrices(rng):
    """More matrices than tiles of full size leave room for, and more than one panel."""
    xs = [rng.standard_normal((150, 2)) for _ in range(270)]
    wanted = np.array([[np.square(x.T @ y).sum() for y in xs] for x in xs])
    np.testing.assert_allclose(gram_inner(xs), wanted, rtol=1e-12)


def test_inner_products_lose_little_in_float32():
    """Sixteen million equal terms, one after the other, would stop to count."""
    ones = np.ones((4000, 1), np.float32)
    assert gram_inner([ones, 3 * ones])[0, 1] == 9 * 4000.0**2


def test_inner_products_of_layouts_and_libraries(library, rng):
    x, y = rng.standard_normal((2, 90, 12))
    wanted = gram_inner([x, y])
    for view in layouts(x).values():
        np.testing.assert_allclose(gram_inner([view, y]), wanted, rtol=1e-13)
    found = gram_inner([library.put(x), library.put(y)])
    assert library.owns(found)
    same_bits((library.get(found), wanted))


def test_inner_products_do_not_depend_on_threads(threads, rng):
    xs = [rng.standard_normal((700, d)).astype(np.float32) for d in (20, 150, 3)]
    results = []
    for number in (1, 2, 5):
        threads(number)
        results.append(gram_inner(xs))
    same_bits((results[1], results[0]), (results[2], results[0]))


def test_nonfinite_inner_products(rng):
    x, y = rng.standard_normal((2, 80, 4))
    x[70, 2] = np.nan
    found = gram_inner([x, y])
    assert np.isnan(found[0]).all()
    assert found[1, 1] == gram_inner([y])[0, 0]


@pytest.mark.parametrize(
    ("xs", "kind", "text"),
    [
        (np.ones((2, 3, 4)), DtypeError, "xs must be a list or tuple of arrays, got ndarray"),
        ([], InvalidArgumentError, "xs must have at least one array, got none"),
        ([[1.0]], DtypeError, r"xs\[0\] must be an array"),
        ([np.ones(3)], InvalidArgumentError, r"xs\[0\] must have 2 axes, got 1"),
        ([np.ones((3, 2), int)], DtypeError, "xs must be float32 or float64, got int64"),
        ([np.ones((3, 2)), np.ones((3, 2), "f4")], DtypeError, r"xs\[1\] must be float64 as xs"),
        ([np.ones((3, 2)), np.ones((4, 2))], InvalidArgumentError, r"xs\[1\] must have 3 rows"),
    ],
)
def test_refused_matrices(xs, kind, text):
    with pytest.raises(kind, match=text) as caught:
        gram_inner(xs)
    assert str(caught.value).startswith("[gram_inner] ")


def test_refused_inner_products_of_the_core():
    x = np.ones((3, 2))
    with pytest.raises(InvalidArgumentError, match="out must be C-ordered"):
        _core.gram_inner([x, x], np.empty((2, 3)))
    with pytest.raises(InvalidArgumentError, match="xs must have 3 rows"):
        _core.gram_inner([x, x[:2]], np.empty((2, 2)))
