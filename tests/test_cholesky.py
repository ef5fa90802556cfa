"""cholesky: residuals, definiteness, extremes, batches, layouts, libraries, policies, refusals."""

import numpy as np
import pytest
from matrices import GATE, layouts, norm1, orthogonal, over, same_bits
from subspan import CholeskyInfo, _core, cholesky
from subspan.errors import DtypeError, InvalidArgumentError, UnsupportedError

DTYPES = [np.float32, np.float64]
SIZES = (1, 2, 3, 4, 5, 7, 8, 11, 16, 19, 32, 33, 63, 64, 65, 70, 100)
KINDS = ("identity", "gram", "hilbert", "tridiagonal", "graded", "moderate")


def definite(kind, n, dtype, rng):
    """Symmetric positive definite, by more than the rounding to dtype."""
    i, j = np.arange(n)[:, None], np.arange(n)[None, :]
    eps = float(np.finfo(dtype).eps)
    if kind == "identity":
        a = np.eye(n)
    elif kind == "gram":
        x = rng.standard_normal((2 * n, n))
        a = x.T @ x
    elif kind == "hilbert":
        a = 1.0 / (i + j + 1.0) + 4 * n * eps * np.eye(n)
    elif kind == "tridiagonal":
        a = 2.0 * np.eye(n) - (abs(i - j) == 1)
    elif kind == "graded":  # sizes over 30 decades, which scaling by one number would lose
        d = 10.0 ** (-15.0 * np.arange(n) / max(n - 1, 1))
        x = rng.standard_normal((n, n)) / n
        a = d[:, None] * (np.eye(n) + x @ x.T) * d
    else:
        q = orthogonal(n, n, rng)
        a = (q * np.geomspace(1.0, 8 * n * eps, n)) @ q.T
        a = (a + a.T) / 2 + 8 * n * eps * np.eye(n)
    return a.astype(dtype)


def stack(n, count, dtype, rng):
    x = rng.standard_normal((count, n, n + 3))
    return (x @ x.mT + np.eye(n)).astype(dtype)


def reference(a):
    """Return the factor of one matrix, entry by entry, in float64."""
    a = a.astype(np.float64)
    out = np.zeros_like(a)
    for j in range(len(a)):
        out[j, j] = np.sqrt(a[j, j] - out[j, :j] @ out[j, :j])
        out[j + 1 :, j] = (a[j + 1 :, j] - out[j + 1 :, :j] @ out[j, :j]) / out[j, j]
    return out


def ratio(a, factor):
    """|A - L L^T| / (n |A| ulp) of what is symmetric in float64."""
    wide, exact = factor.astype(np.float64), a.astype(np.float64)
    return over(norm1(np.tril(exact - wide @ wide.T)), norm1(exact), len(a), a.dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_ratios(kind, dtype, rng):
    for n in SIZES:
        a = definite(kind, n, dtype, rng)
        factor = cholesky(a)
        assert factor.shape == (n, n)
        assert factor.dtype == dtype
        assert not np.triu(factor, 1).any()
        assert (np.diag(factor) > 0).all()
        assert ratio(a, factor) <= GATE


@pytest.mark.parametrize("n", [1, 4, 6, 15, 40, 90])
def test_entries_are_the_references(n, rng):
    a = stack(n, 5, np.float64, rng)
    for one, factor in zip(a, cholesky(a), strict=True):
        np.testing.assert_allclose(factor, reference(one), rtol=0, atol=1e-12 * np.abs(one).max())
    np.testing.assert_allclose(cholesky(a), np.linalg.cholesky(a), atol=1e-12 * a.max())


def test_large_matrices_alone(rng):
    for dtype in DTYPES:
        a = stack(520, 1, dtype, rng)
        assert ratio(a[0], cholesky(a)[0]) <= GATE
        a[0, 518, 518] = -1
        assert cholesky(a, errors="info").info.tolist() == [519]
        a[0, 300, 2] = np.nan
        assert cholesky(a, errors="info", nonfinite="propagate").info.tolist() == [-1]


def test_a_planted_factor_is_found_exactly(rng):
    for n in (3, 17, 64, 80):
        planted = np.tril(rng.integers(-2, 3, (n, n)), -1) + np.diag(2.0 ** rng.integers(0, 3, n))
        for dtype in DTYPES:
            a = (planted @ planted.T).astype(dtype)
            np.testing.assert_array_equal(cholesky(a), planted)


@pytest.mark.parametrize("n", [9, 70])
def test_only_the_lower_triangle_is_read(n, rng):
    a = stack(n, 3, np.float64, rng)
    above = np.triu(np.full((n, n), np.nan), 1)
    same_bits((cholesky(np.tril(a) + above), cholesky(a)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [5, 64, 75])
def test_powers_of_two_change_no_bit(n, dtype, rng):
    """So sizes near the limits are as good as any, matrix by matrix and row by row."""
    a = definite("gram", n, dtype, rng)
    wanted = cholesky(a)
    limits = np.finfo(dtype)
    low = limits.minexp // 2 + int(np.ceil(-np.log2(np.abs(wanted[wanted != 0]).min()))) + 1
    high = limits.maxexp // 2 - int(np.ceil(np.log2(a.max()) / 2)) - 1
    for exponent in (low, 0, high):
        scaled = np.ldexp(a, 2 * exponent)
        assert np.isfinite(scaled).all()
        same_bits((cholesky(scaled), np.ldexp(wanted, exponent)))
    rows = rng.integers(low // 4, high // 4, n)
    graded = np.ldexp(a, rows[:, None] + rows)
    same_bits((cholesky(graded), np.ldexp(wanted, rows[:, None])))


@pytest.mark.parametrize("n", [2, 66])
def test_subnormal_matrices_have_factors(n):
    for dtype in DTYPES:
        least = np.finfo(dtype).smallest_subnormal
        factor = cholesky(np.eye(n, dtype=dtype) * least * 4)
        np.testing.assert_array_equal(factor, np.eye(n, dtype=dtype) * np.sqrt(least * 4))


@pytest.mark.parametrize("n", [1, 3, 10, 64, 65, 90])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_first_minor_that_is_not_positive(n, dtype, rng):
    for order in {1, 2, (n + 1) // 2, n - 1, n} & set(range(1, n + 1)):
        a = stack(n, 4, dtype, rng)
        clean = cholesky(a)
        # d such that the Schur complement of the minor is -1.
        factor = np.linalg.cholesky(a[2].astype(np.float64))
        a[2, order - 1, order - 1] -= factor[order - 1, order - 1] ** 2 + 1
        with pytest.raises(
            InvalidArgumentError,
            match=rf"\[cholesky\] a must be positive definite, got 1 of 4 matrices that are not, "
            rf"the first is 2 \(its leading minor of order {order}\)",
        ):
            cholesky(a)
        result = cholesky(a, errors="info")
        assert isinstance(result, CholeskyInfo)
        assert result.info.tolist() == [0, 0, order, 0]
        assert np.isnan(result.factor[2]).all()
        others = [0, 1, 3]
        same_bits((result.factor[others], clean[others]))


@pytest.mark.parametrize("n", [2, 70, 515])
def test_hopeless_matrices_are_refused(n):
    huge = np.eye(n) + np.finfo(float).max * (1 - np.eye(n))
    small = np.diag(np.full(n, 1e-300)) + (1 - np.eye(n))
    zero, negative = np.zeros((n, n)), -np.eye(n)
    late = np.eye(n)
    late[-1, 0] = np.finfo(float).max
    result = cholesky(np.stack([huge, small, zero, negative, late, np.eye(n)]), errors="info")
    assert result.info.tolist() == [2, 2, 1, 1, n, 0]


@pytest.mark.parametrize("shape", [(0, 0), (3, 0, 0), (0, 4, 4), (2, 0, 5, 5), (0, 70, 70)])
def test_empty_shapes(shape):
    assert cholesky(np.zeros(shape)).shape == shape
    assert cholesky(np.zeros(shape), errors="info").info.shape == shape[:-2]


@pytest.mark.parametrize("lead", [(), (1,), (5,), (2, 3), (2, 1, 3)])
@pytest.mark.parametrize("n", [6, 66])
def test_leading_axes(lead, n, rng):
    a = stack(n, int(np.prod(lead)), np.float64, rng).reshape(*lead, n, n)
    factor, info = cholesky(a, errors="info")
    assert info.shape == lead
    assert not info.any()
    for index in np.ndindex(lead):
        same_bits((cholesky(a[index]), factor[index]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 3, 13, 32, 50, 64, 67])
def test_a_matrix_does_not_see_its_batch(n, dtype, rng):
    a = stack(n, 37, dtype, rng)
    whole = cholesky(a)
    order = rng.permutation(len(a))
    same_bits((cholesky(a[order]), whole[order]))
    for count in (1, 2, 3, 5, 8, 17, 36):
        same_bits((cholesky(a[:count]), whole[:count]))
    bad = np.full((4, n, n), -1.0, dtype)
    padded, info = cholesky(np.concatenate([bad[:3], a, bad]), errors="info")
    same_bits((padded[3:-4], whole))
    assert np.flatnonzero(info).tolist() == [0, 1, 2, 40, 41, 42, 43]


def test_bits_do_not_depend_on_the_threads(threads, rng):
    for n, count in ((9, 2000), (40, 90), (80, 7)):
        a = stack(n, count, np.float32, rng)
        results = []
        for number in (1, 2, 3, 5):
            threads(number)
            results.append(cholesky(a))
        same_bits(*((other, results[0]) for other in results[1:]))


@pytest.mark.parametrize("n", [7, 66])
@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts_give_the_same_bits(n, dtype, rng):
    a = stack(n, 18, dtype, rng)
    wanted = cholesky(a)
    for view in layouts(a).values():
        same_bits((cholesky(view), wanted))
    repeated = cholesky(np.broadcast_to(a[0], (2, 3, n, n)))
    same_bits(*((repeated[index], wanted[0]) for index in np.ndindex(2, 3)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_same_library_out(library, dtype, rng):
    a = stack(6, 6, dtype, rng).reshape(2, 3, 6, 6)
    result = cholesky(library.put(a))
    assert library.owns(result)
    same_bits((library.get(result), cholesky(a)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("n", [5, 68])
def test_nonfinite_policies(bad, n, rng):
    a = stack(n, 4, np.float64, rng)
    clean = cholesky(a)
    a[2, 4, 2] = bad
    with pytest.raises(InvalidArgumentError, match=r"\[cholesky\] .*NaN or infinity in matrix 2"):
        cholesky(a)
    factor, info = cholesky(a, nonfinite="propagate", errors="info")
    assert info.tolist() == [0, 0, -1, 0]
    assert np.isnan(factor[2]).all()
    others = [0, 1, 3]
    same_bits((factor[others], clean[others]))
    same_bits((cholesky(a, nonfinite="propagate"), factor))
    same_bits((cholesky(a[:2], nonfinite="ignore"), clean[:2]))


@pytest.mark.parametrize(
    ("a", "kind", "text"),
    [
        (np.ones(3), InvalidArgumentError, "must have 2 or more axes, got 1"),
        (np.ones((2, 3)), InvalidArgumentError, "must be square in its last two axes, got 2 x 3"),
        (np.eye(2, dtype=int), DtypeError, "must be float32 or float64, got int64"),
        (np.eye(2, dtype=np.float16), DtypeError, "got float16"),
        ([[1.0]], DtypeError, "must be an array"),
    ],
)
def test_refused_arrays(a, kind, text):
    with pytest.raises(kind, match=text) as caught:
        cholesky(a)
    assert str(caught.value).startswith("[cholesky] a must ")


def test_refused_options():
    for name in ("nonfinite", "errors"):
        with pytest.raises(InvalidArgumentError, match=rf"\[cholesky\] {name} must be one of"):
            cholesky(np.eye(2), **{name: "x"})


def test_gradients(rng):
    torch = pytest.importorskip("torch")
    a = torch.from_numpy(stack(3, 2, np.float64, rng)).requires_grad_()
    loss = torch.from_numpy(rng.standard_normal((2, 3, 3)))
    (ours,) = torch.autograd.grad((cholesky(a) * loss).sum(), a)
    (theirs,) = torch.autograd.grad((torch.linalg.cholesky(a) * loss).sum(), a)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)

    def symmetric(x):
        return cholesky((x + x.mT) / 2)

    assert torch.autograd.gradcheck(symmetric, (a,))
    assert torch.autograd.gradgradcheck(symmetric, (a[:1].detach().requires_grad_(),))
    factor, info = cholesky(a, errors="info")
    assert factor.requires_grad
    assert not info.any()
    with torch.no_grad():
        assert not cholesky(a).requires_grad


def test_cuda_arrays_are_refused():
    from test_interop import CUDA, Producer

    x = Producer(np.full((2, 3, 3), np.nan), device=CUDA)
    with pytest.raises(UnsupportedError, match=r"\[cholesky\] a must be of torch or cupy"):
        cholesky(x)
    out, info = np.empty((2, 3, 3)), np.empty(2, np.int32)
    with pytest.raises(UnsupportedError, match=r"\[cholesky\] has no CUDA kernel yet"):
        _core.cholesky(x, out, info, "raise", True)
