"""solve_triangular: residuals, triangles, broadcasting, batches, layouts, policies, refusals."""

import itertools

import numpy as np
import pytest
from matrices import GATE, layouts, same_bits
from subspan import SolveTriangularInfo, _core, cholesky, solve_triangular
from subspan.errors import DtypeError, InvalidArgumentError, UnsupportedError

DTYPES = [np.float32, np.float64]
WAYS = [
    {"lower": lower, "transposed": transposed, "unit_diagonal": unit}
    for lower, transposed, unit in itertools.product([True, False], repeat=3)
]
SHAPES = ((1, 1), (2, 3), (4, 4), (5, 1), (7, 2), (16, 16), (19, 5), (33, 9), (64, 64), (63, 7))
LARGE = ((65, 3), (6, 66), (90, 1), (70, 80), (258, 2), (3, 260))


def system(n, k, dtype, rng, lead=()):
    """A full matrix, so that what must not be read would show, and right-hand sides."""
    a = rng.standard_normal((*lead, n, n)) / max(n, 1) ** 0.5
    diagonal = np.arange(n)
    signs = np.where(rng.random((*lead, n)) < 0.5, -1.0, 1.0)
    a[..., diagonal, diagonal] = signs * (1 + rng.random((*lead, n)))
    return a.astype(dtype), rng.standard_normal((*lead, n, k)).astype(dtype)


def operator(a, lower=True, transposed=False, unit_diagonal=False):
    """Return what is solved with, in float64."""
    a = np.tril(a) if lower else np.triu(a)
    if unit_diagonal:
        n = a.shape[-1]
        a = a * (1 - np.eye(n)) + np.eye(n)
    return (a.swapaxes(-1, -2) if transposed else a).astype(np.float64)


def ratio(op, x, b):
    """Largest componentwise backward error, in units of n ulp (Higham, theorem 8.5)."""
    wide = x.astype(np.float64)
    size = np.abs(op) @ np.abs(wide) + np.abs(b)
    error = np.abs(op @ wide - b)
    share = np.divide(error, size, out=np.zeros_like(error), where=size > 0)
    return share.max(initial=0.0) / (op.shape[-1] * np.finfo(x.dtype).eps)


def substituted(op, b):
    """Row by row in float64."""
    n = len(op)
    lower = not np.triu(op, 1).any()
    x = np.zeros_like(b, np.float64)
    for i in range(n) if lower else reversed(range(n)):
        x[i] = (b[i] - op[i] @ x) / op[i, i]
    return x


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("way", WAYS)
def test_backward_errors(way, dtype, rng):
    for n, k in (*SHAPES, *LARGE):
        a, b = system(n, k, dtype, rng)
        x = solve_triangular(a, b, **way)
        assert x.shape == (n, k)
        assert x.dtype == dtype
        assert ratio(operator(a, **way), x, b) <= GATE


@pytest.mark.parametrize("way", WAYS)
def test_entries_are_the_references(way, rng):
    for n, k in ((1, 1), (6, 2), (20, 3), (66, 2), (257, 1)):
        a, b = system(n, k, np.float64, rng)
        wanted = substituted(operator(a, **way), b)
        size = np.abs(wanted).max()
        np.testing.assert_allclose(solve_triangular(a, b, **way), wanted, atol=1e-9 * size)


@pytest.mark.parametrize("way", WAYS)
def test_planted_integers_come_back(way, rng):
    for n, k in ((3, 2), (17, 5), (64, 3), (67, 2)):
        op = np.tril(rng.integers(-1, 2, (n, n)), -1) * (rng.random((n, n)) < 2 / n)
        op = op + np.diag(2.0 ** rng.integers(-2, 3, n))
        if way["lower"] == way["transposed"]:
            op = op.T
        a = op.T if way["transposed"] else op
        x = rng.integers(-3, 4, (n, k)).astype(float)
        b = operator(a, **way) @ x
        for dtype in DTYPES:
            same_bits(
                (solve_triangular(a.astype(dtype), b.astype(dtype), **way) + 0, x.astype(dtype))
            )


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("n", "k"), [(9, 2), (70, 3), (260, 1)])
def test_only_what_counts_is_read(way, n, k, rng):
    a, b = system(n, k, np.float64, rng, (3,))
    counts = np.tril(np.ones((n, n)), -1 if way["unit_diagonal"] else 0)
    if not way["lower"]:
        counts = counts.T
    marked = np.where(counts > 0, a, np.nan)
    same_bits((solve_triangular(marked, b, **way), solve_triangular(a, b, **way)))


def test_a_cholesky_factor_solves_its_matrix(rng):
    x = rng.standard_normal((50, 12, 20))
    a, b = x @ x.mT, rng.standard_normal((50, 12, 3))
    factor = cholesky(a)
    y = solve_triangular(factor, solve_triangular(factor, b), transposed=True)
    np.testing.assert_allclose(a @ y, b, atol=1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
def test_extremes(dtype):
    """Reciprocals of a diagonal may neither overflow nor vanish; zeros may have a sign."""
    limits = np.finfo(dtype)
    for value in (limits.max, limits.tiny, limits.smallest_subnormal * 8, -limits.max / 2):
        a = np.diag(np.array([value, 1, value], dtype))
        b = np.array([[value], [2], [-value / 2]], dtype)
        np.testing.assert_array_equal(solve_triangular(a, b), np.array([[1], [2], [-0.5]], dtype))
    wide = np.array([[limits.max / 4, 0], [0, limits.tiny]], dtype)
    np.testing.assert_array_equal(
        solve_triangular(wide, np.array([limits.max / 4, limits.tiny * 2], dtype)), [1, 2]
    )


@pytest.mark.parametrize(
    ("of_a", "of_b"),
    [
        ((5, 5), (5,)),
        ((5, 5), (5, 2)),
        ((5, 5), (4, 5, 2)),
        ((3, 5, 5), (5,)),
        ((3, 5, 5), (3, 5)),
        ((3, 5, 5), (1, 5)),
        ((1, 5, 5), (3, 5, 2)),
        ((3, 1, 5, 5), (1, 4, 5)),
        ((3, 1, 5, 5), (1, 4, 5, 2)),
        ((2, 3, 5, 5), (5, 2)),
        ((2, 3, 5, 5), (5,)),
        ((2, 3, 5, 5), (2, 3, 5)),
        ((2, 5, 5), (3, 1, 5, 2)),
        ((66, 66), (4, 66, 2)),
    ],
)
def test_leading_axes_broadcast(of_a, of_b, library, rng):
    n = of_a[-1]
    a = system(n, 1, np.float64, rng, of_a[:-2])[0]
    b = rng.standard_normal(of_b)
    vectors = len(of_b) in {1, len(of_a) - 1}
    matrices = b[..., None] if vectors else b
    lead = np.broadcast_shapes(of_a[:-2], matrices.shape[:-2])
    x = solve_triangular(library.put(a), library.put(b))
    assert library.owns(x)
    x = library.get(x)
    assert x.shape == lead + matrices.shape[-2 : -1 if vectors else None]
    full_a = np.broadcast_to(a, (*lead, n, n))
    full_b = np.broadcast_to(matrices, (*lead, *matrices.shape[-2:]))
    for index in np.ndindex(lead):
        single = solve_triangular(full_a[index], full_b[index])
        same_bits((x[index], single[:, 0] if vectors else single))


@pytest.mark.parametrize(
    ("of_a", "of_b"),
    [
        ((0, 0), (0,)),
        ((0, 0), (0, 3)),
        ((3, 3), (3, 0)),
        ((0, 3, 3), (0, 3, 2)),
        ((3, 3), (0, 3, 2)),
    ],
)
def test_empty_shapes(of_a, of_b):
    a = np.zeros(of_a) + np.eye(of_a[-1])
    x, info = solve_triangular(a, np.zeros(of_b), errors="info")
    assert x.shape == of_b
    assert not info.any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("way", WAYS[:4])
@pytest.mark.parametrize(("n", "k"), [(3, 1), (13, 4), (64, 2), (10, 64), (66, 5), (4, 257)])
def test_a_system_does_not_see_its_batch(way, n, k, dtype, rng):
    a, b = system(n, k, dtype, rng, (37,))
    whole = solve_triangular(a, b, **way)
    order = rng.permutation(len(a))
    same_bits((solve_triangular(a[order], b[order], **way), whole[order]))
    for count in (1, 2, 5, 16, 36):
        same_bits((solve_triangular(a[:count], b[:count], **way), whole[:count]))
    many = solve_triangular(a[3], b, **way)
    same_bits((many[3], whole[3]), (many[30], solve_triangular(a[3], b[30], **way)))


def test_bits_do_not_depend_on_the_threads(threads, rng):
    for n, k, count in ((9, 1, 2000), (40, 12, 60), (80, 70, 7)):
        a, b = system(n, k, np.float32, rng, (count,))
        results = []
        for number in (1, 2, 3, 5):
            threads(number)
            results.append(solve_triangular(a, b))
        same_bits(*((other, results[0]) for other in results[1:]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("way", [WAYS[0], WAYS[2], WAYS[4]])
@pytest.mark.parametrize(("n", "k"), [(7, 5), (66, 3), (258, 1)])
def test_layouts_give_the_same_bits(way, n, k, dtype, rng):
    a, b = system(n, k, dtype, rng, (18,))
    wanted = solve_triangular(a, b, **way)
    for view in layouts(b).values():
        same_bits((solve_triangular(a, view, **way), wanted))
    for name, view in layouts(a).items():
        x = solve_triangular(view, b, **way)
        if n <= 256:
            same_bits((x, wanted))
        else:  # BLAS reads the transpose in place, and its sums run in another order
            assert ratio(operator(a, **way), x, b) <= GATE, name


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("n", [5, 68, 260])
@pytest.mark.parametrize("where", ["a", "b"])
def test_nonfinite_policies(where, n, bad, rng):
    a, b = system(n, 2, np.float64, rng, (4,))
    clean = solve_triangular(a, b)
    (a if where == "a" else b)[2, 4, 1] = bad
    text = r"\[solve_triangular\] a and b must be finite, got NaN or infinity in matrix 2 of 4"
    with pytest.raises(InvalidArgumentError, match=text):
        solve_triangular(a, b)
    result = solve_triangular(a, b, nonfinite="propagate", errors="info")
    assert isinstance(result, SolveTriangularInfo)
    assert result.info.tolist() == [0, 0, -1, 0]
    assert np.isnan(result.x[2]).all()
    others = [0, 1, 3]
    same_bits((result.x[others], clean[others]))
    same_bits((solve_triangular(a[:2], b[:2], nonfinite="ignore"), clean[:2]))


@pytest.mark.parametrize("where", ["diagonal", "below", "b"])
@pytest.mark.parametrize("count", [1, 40])
def test_infinity_that_could_hide(where, count):
    """Divided by, or times zero, in packs and one by one; overflow of x is none."""
    a, b = np.tile(np.eye(6), (count, 1, 1)), np.zeros((count, 6, 2))
    last = count - 1
    if where == "diagonal":
        a[last, 3, 3] = np.inf
    elif where == "below":
        a[last, 4, 1] = -np.inf
    else:
        b[last, 2, 1] = np.inf
    a[0, 5, 5], b[0, 5, 0] = 1e-200, 1e200
    x, info = solve_triangular(a, b, nonfinite="propagate", errors="info")
    assert info.tolist() == [0] * last + [-1]
    assert np.isnan(x[last]).all()
    if count > 1:
        assert np.isposinf(x[0, 5, 0])


@pytest.mark.parametrize("way", [way for way in WAYS if not way["unit_diagonal"]])
@pytest.mark.parametrize("n", [1, 6, 67, 259])
def test_zeros_on_the_diagonal(way, n, rng):
    a, b = system(n, 2, np.float32, rng, (5,))
    clean = solve_triangular(a, b, **way)
    place = n - n // 3
    a[1, place - 1, place - 1] = 0
    a[3, place - 1 :, place - 1 :] = -0.0
    with pytest.raises(
        InvalidArgumentError,
        match=r"\[solve_triangular\] a must have no zero on its diagonal, got one in 2 of 5 "
        rf"matrices, the first is 1 \(element {place} of its diagonal\)",
    ):
        solve_triangular(a, b, **way)
    x, info = solve_triangular(a, b, **way, errors="info")
    assert info.tolist() == [0, place, 0, place, 0]
    assert np.isnan(x[[1, 3]]).all()
    same_bits((x[[0, 2, 4]], clean[[0, 2, 4]]))
    unit = dict(way, unit_diagonal=True)
    assert np.isfinite(solve_triangular(a, b, **unit)).all()


@pytest.mark.parametrize(
    ("a", "b", "kind", "text"),
    [
        (np.ones(3), np.ones(3), InvalidArgumentError, "a must have 2 or more axes, got 1"),
        (np.eye(2), np.float64(1), DtypeError, "b must be of the library|b must be an array"),
        (np.eye(2), np.array(1.0), InvalidArgumentError, "b must have 1 or more axes, got 0"),
        (
            np.ones((2, 3)),
            np.ones(2),
            InvalidArgumentError,
            "a must be square in its last",
        ),
        (np.eye(3), np.ones(2), InvalidArgumentError, r"b must be \(..., n\) with n = 3"),
        (np.eye(3), np.ones((2, 3)), InvalidArgumentError, r"b must be \(..., n, k\) with n = 3"),
        (np.ones((2, 3, 3)), np.ones((4, 3, 1)), InvalidArgumentError, r"broadcast with \(2,\)"),
        (
            np.ones((2, 3, 3)),
            np.ones((3, 3)),
            InvalidArgumentError,
            "fewer than a, b is vectors",
        ),
        (np.eye(2, dtype=int), np.ones(2), DtypeError, "a must be float32 or float64, got int64"),
        (np.eye(2), np.ones(2, int), DtypeError, "b must be float32 or float64, got int64"),
        (np.eye(2), np.ones(2, np.float32), DtypeError, "b must be float64, got float32"),
        ([[1.0]], np.ones(1), DtypeError, "a must be an array"),
        (np.eye(1), [1.0], DtypeError, "b must be an array"),
    ],
)
def test_refused_arrays(a, b, kind, text):
    with pytest.raises(kind, match=text) as caught:
        solve_triangular(a, b)
    assert str(caught.value).startswith("[solve_triangular] ")


def test_refused_options():
    for name in ("nonfinite", "errors"):
        with pytest.raises(InvalidArgumentError, match=rf"_triangular\] {name} must be one of"):
            solve_triangular(np.eye(2), np.ones(2), **{name: "x"})


def test_refused_libraries():
    torch = pytest.importorskip("torch")
    with pytest.raises(DtypeError, match="b must be of the library and on the device of a"):
        solve_triangular(np.eye(2), torch.ones(2))


@pytest.mark.parametrize("way", WAYS)
def test_gradients(way, rng):
    torch = pytest.importorskip("torch")

    def solve(a, b):
        return solve_triangular(a, b, **way)

    a, b = (torch.from_numpy(x).requires_grad_() for x in system(3, 2, np.float64, rng, (2,)))
    vector = b[0, :, 0].detach().requires_grad_()
    one, column = a[0].detach().requires_grad_(), b[0, :, :1].detach().requires_grad_()
    assert torch.autograd.gradcheck(solve, (one, b))
    assert torch.autograd.gradcheck(lambda b: solve(a.detach(), b), (vector,))
    assert torch.autograd.gradgradcheck(solve, (one, column))
    with torch.no_grad():
        assert not solve(a, b).requires_grad


def test_a_broadcast_matrix_gathers_gradients(rng):
    torch = pytest.importorskip("torch")
    a = torch.from_numpy(system(5, 1, np.float64, rng)[0]).requires_grad_()
    b = torch.from_numpy(rng.standard_normal((3, 1, 5, 2))).requires_grad_()
    solve_triangular(a, b).square().sum().backward()
    ours = a.grad.clone(), b.grad.clone()
    a.grad = b.grad = None
    torch.linalg.solve_triangular(a.tril(), b, upper=False).square().sum().backward()
    torch.testing.assert_close(ours, (a.grad, b.grad), rtol=1e-10, atol=1e-10)


def test_cuda_arrays_are_refused():
    from test_interop import CUDA, Producer

    x = Producer(np.full((2, 3, 3), np.nan), device=CUDA)
    with pytest.raises(UnsupportedError, match=r"_triangular\] a must be of torch or cupy"):
        solve_triangular(x, x)
    out, info = np.empty((2, 3, 3)), np.empty(2, np.int32)
    with pytest.raises(UnsupportedError, match=r"\[solve_triangular\] has no CUDA kernel yet"):
        _core.solve_triangular(x, x, out, info, True, False, False, "raise", True)
