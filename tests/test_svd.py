"""svd and svdvals: LAPACK's test ratios, batches, layouts, libraries, policies, refusals."""

import numpy as np
import pytest
import subspan
from matrices import (
    GATE,
    SIZES,
    SVD_KINDS,
    VALUES_GATE,
    layouts,
    over,
    same_bits,
    spectrum,
    svd_matrix,
    svd_ratios,
    with_values,
)
from subspan import SVD, SVDInfo, _core, svd, svdvals
from subspan.errors import (
    ConvergenceError,
    DtypeError,
    InvalidArgumentError,
    UnsupportedError,
)

DTYPES = [np.float32, np.float64]


def check_one(a, u, s, vh, values):
    assert max(svd_ratios(a, u, s, vh)) <= GATE
    assert (s >= 0).all()
    assert (np.diff(s) <= 0).all()
    top = np.abs(s.astype(np.float64)).max()
    assert over(np.abs(s.astype(np.float64) - values).max(), top, len(s), a.dtype) <= VALUES_GATE


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", SVD_KINDS)
def test_lapack_ratios(kind, dtype, rng):
    for m in SIZES:
        for n in SIZES:
            a = svd_matrix(kind, m, n, dtype, rng)
            if not np.isfinite(a).all():
                continue
            u, s, vh = svd(a)
            assert u.dtype == s.dtype == vh.dtype == dtype
            assert (u.shape, s.shape, vh.shape) == ((m, min(m, n)), (min(m, n),), (min(m, n), n))
            check_one(a, u, s, vh, svdvals(a))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(300, 70), (70, 300), (257, 256)])
def test_lapack_ratios_of_larger_matrices(shape, dtype, rng):
    a = rng.standard_normal(shape).astype(dtype)
    check_one(a, *svd(a), svdvals(a))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["even", "clustered", "kahan", "integers", "normal"])
def test_values_are_numpys_in_float64(kind, dtype, rng):
    a = svd_matrix(kind, 30, 16, dtype, rng)
    wanted = np.linalg.svd(a.astype(np.float64), compute_uv=False)
    np.testing.assert_allclose(
        svdvals(a), wanted, rtol=0, atol=30 * np.finfo(dtype).eps * wanted[0]
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_subnormal_matrices(dtype, rng):
    least = np.finfo(dtype).smallest_subnormal
    counts = rng.integers(-50, 51, (9, 5))
    u, s, vh = svd((counts * least.astype(np.float64)).astype(dtype))
    wanted = np.linalg.svd(counts.astype(np.float64), compute_uv=False)
    np.testing.assert_allclose(s / least, wanted, rtol=0, atol=2)
    np.testing.assert_allclose(u.T @ u, np.eye(5), atol=30 * np.finfo(dtype).eps)
    np.testing.assert_allclose(vh @ vh.T, np.eye(5), atol=30 * np.finfo(dtype).eps)


def test_vectors_span_the_right_subspace(rng):
    # |P_hat - P| <= C eps |A| / gap
    a = with_values(40, 20, np.r_[np.full(5, 1.0), np.full(15, 0.5)], rng)
    u, _, vh = svd(a)
    wanted_u, _, wanted_vh = np.linalg.svd(a)
    for got, wanted in ((u[:, :5], wanted_u[:, :5]), (vh[:5].T, wanted_vh[:5].T)):
        distance = np.linalg.norm(got @ got.T - wanted @ wanted.T, 2)
        assert distance <= 100 * np.finfo(np.float64).eps / 0.5


@pytest.mark.parametrize(
    "shape", [(0, 3), (3, 0), (0, 0), (0, 4, 3), (2, 0, 3), (2, 3, 0), (2, 0, 5, 4), (0, 0, 0)]
)
def test_empty_shapes(shape):
    a = np.zeros(shape)
    k = min(shape[-2:])
    for result in (svd(a), svd(a, k=1), svd(a, k=1, method="randomized")):
        rank = min(k, 1) if result.s.shape[-1] != k else k
        assert result.u.shape == (*shape[:-1], rank)
        assert result.s.shape == (*shape[:-2], rank)
        assert result.vh.shape == (*shape[:-2], rank, shape[-1])
    assert svdvals(a).shape == (*shape[:-2], k)
    assert svd(a, errors="info").info.shape == shape[:-2]


# ---- batches -----------------------------------------------------------------------------------


@pytest.mark.parametrize("lead", [(), (1,), (5,), (2, 3), (2, 1, 3), (1, 1), (13, 3)])
def test_leading_axes(lead, rng):
    a = rng.standard_normal((*lead, 6, 4))
    u, s, vh = svd(a)
    assert (u.shape, s.shape, vh.shape) == ((*lead, 6, 4), (*lead, 4), (*lead, 4, 4))
    np.testing.assert_allclose((u * s[..., None, :]) @ vh, a, atol=1e-13)
    np.testing.assert_allclose(s, np.linalg.svd(a, compute_uv=False), rtol=1e-13)
    for index in np.ndindex(lead):
        same_bits(*zip(svd(a[index]), (u[index], s[index], vh[index]), strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_matrix_does_not_see_its_batch(dtype, rng):
    a = np.stack([svd_matrix(kind, 12, 9, dtype, rng) for kind in SVD_KINDS])
    whole = svd(a)
    order = rng.permutation(len(a))
    same_bits(*((x, y[order]) for x, y in zip(svd(a[order]), whole, strict=True)))
    for cut in (1, 7):
        parts = [svd(part) for part in (a[:cut], a[cut:])]
        joined = [np.concatenate(pair) for pair in zip(*parts, strict=True)]
        same_bits(*zip(joined, whole, strict=True))
    padded = np.concatenate([np.full((3, 12, 9), 1e30, dtype), a, np.zeros((40, 12, 9), dtype)])
    same_bits(*((x[3 : 3 + len(a)], y) for x, y in zip(svd(padded), whole, strict=True)))


@pytest.mark.parametrize("shape", [(37, 12, 9), (3, 60, 80), (600, 3, 3)])
def test_bits_do_not_depend_on_the_threads(shape, threads, rng):
    a = rng.standard_normal(shape)
    results = []
    for n in (1, 2, 3, 5):
        threads(n)
        results.append(svd(a))
    for other in results[1:]:
        same_bits(*zip(other, results[0], strict=True))


def test_layouts_give_the_same_bits(rng):
    a = rng.standard_normal((5, 7, 4))
    wanted = svd(a)
    for name, view in layouts(a).items():
        np.testing.assert_array_equal(view, a, err_msg=name)
        same_bits(*zip(svd(view), wanted, strict=True))


def test_broadcast_batches(rng):
    one = rng.standard_normal((6, 4))
    wanted = svd(one)
    for view in (np.broadcast_to(one, (3, 6, 4)), np.broadcast_to(one, (2, 3, 6, 4))):
        for got, single in zip(svd(view), wanted, strict=True):
            same_bits(*((got[index], single) for index in np.ndindex(view.shape[:-2])))
    rows = np.broadcast_to(one[:1], (6, 4))  # stride 0 within the matrix
    np.testing.assert_allclose(svdvals(rows)[1:], 0, atol=1e-15)


def test_the_input_is_not_written(rng):
    a = rng.standard_normal((4, 6, 5))
    before = a.copy()
    svd(a)
    svdvals(a)
    svd(a, k=2, method="randomized")
    same_bits((a, before))


# ---- libraries ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(6, 4), (3, 6, 4), (2, 3, 4, 6)])
def test_same_library_out(library, shape, dtype, rng):
    a = rng.standard_normal(shape).astype(dtype)
    wanted, result = svd(a), svd(library.put(a))
    assert all(library.owns(out) for out in result)
    same_bits(*((library.get(x), y) for x, y in zip(result, wanted, strict=True)))
    values = svdvals(library.put(a))
    assert library.owns(values)
    same_bits((library.get(values), svdvals(a)))
    short = svd(library.put(a), k=2, method="randomized")
    assert all(library.owns(out) for out in short)
    same_bits(
        *(
            (np.ascontiguousarray(library.get(x)), np.ascontiguousarray(y))
            for x, y in zip(short, svd(a, k=2, method="randomized"), strict=True)
        )
    )


def test_numpy_subclasses():
    with pytest.warns(PendingDeprecationWarning):
        matrix = np.matrix([[3.0, 0.0], [0.0, 4.0]])
    np.testing.assert_array_equal(svdvals(matrix), [4.0, 3.0])
    with pytest.raises(DtypeError, match="must have no mask"):
        svd(np.ma.array(np.eye(2), mask=np.eye(2)))


# ---- k, tol ------------------------------------------------------------------------------------


def test_k_cuts_the_exact_factors(rng):
    a = rng.standard_normal((3, 8, 6))
    u, s, vh = svd(a)
    for k in (1, np.int64(4), 6):
        got = svd(a, k=k)
        same_bits((got.s, s[..., :k]), (got.u, u[..., :k]), (got.vh, vh[..., :k, :]))


def test_tol_chooses_the_smallest_rank_that_keeps_it(rng):
    values = 2.0 ** -np.arange(10.0)
    a = with_values(20, 10, values, rng)
    tails = np.sqrt(np.cumsum(values[::-1] ** 2)[::-1] / np.sum(values**2))
    for rank in range(1, 10):
        for share, wanted in ((tails[rank] * 1.01, rank), (tails[rank] * 0.99, rank + 1)):
            result = svd(a, tol=share)
            assert len(result.s) == wanted
            rest = a - (result.u * result.s) @ result.vh
            assert np.linalg.norm(rest) <= share * np.linalg.norm(a)
    assert len(svd(a, tol=1.0).s) == 1
    assert len(svd(a, tol=0.0).s) == 10
    assert len(svd(np.zeros((4, 3)), tol=0.1).s) == 1
    assert len(svd(a * 1e200, tol=0.1).s) == len(svd(a, tol=0.1).s)
    assert len(svd(a * 1e-200, tol=0.1).s) == len(svd(a, tol=0.1).s)
    both = np.stack([a, with_values(20, 10, np.ones(10), rng)])
    assert svd(both, tol=0.1).s.shape == (2, 10)  # the largest rank of the batch


# ---- policies ----------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{}, {"k": 2, "method": "randomized"}])
def test_nonfinite_policies(bad, dtype, options, rng):
    a = rng.standard_normal((5, 4, 3)).astype(dtype)
    clean = svd(a, **options)
    a[3, 2, 1] = bad
    with pytest.raises(InvalidArgumentError, match=r"NaN or infinity in matrix 3 of 5"):
        svd(a, **options)
    result = svd(a, nonfinite="propagate", errors="info", **options)
    assert isinstance(result, SVDInfo)
    assert result.info.dtype == np.int32
    np.testing.assert_array_equal(result.info, [0, 0, 0, -1, 0])
    others = [0, 1, 2, 4]
    for got, wanted in zip(result[:3], clean, strict=True):
        assert np.isnan(got[3]).all()
        np.testing.assert_array_equal(got[others], wanted[others])
    if not options:
        with pytest.raises(InvalidArgumentError, match="matrix 3 of 5"):
            svdvals(a)
        assert np.isnan(svdvals(a, nonfinite="propagate")[3]).all()


def test_ignore_trusts_the_caller(rng):
    a = rng.standard_normal((3, 4, 4))
    same_bits(*zip(svd(a, nonfinite="ignore"), svd(a), strict=True))
    a[1, 0, 0] = np.nan
    result = svd(a, nonfinite="ignore", errors="info")  # ends, whatever it gives for the second
    np.testing.assert_array_equal(result.s[[0, 2]], svd(a[[0, 2]]).s)


def test_errors_info_keeps_the_leading_axes(rng):
    a = rng.standard_normal((2, 3, 5, 4))
    result = svd(a, errors="info")
    assert result.info.shape == (2, 3)
    assert not result.info.any()
    assert isinstance(svd(a), SVD)
    assert svd(a[0, 0], errors="info").info.shape == svd(a[0, 0], errors="info").error.shape == ()


@pytest.mark.parametrize("dtype", DTYPES)
def test_info_has_the_error_of_the_rank(library, dtype, rng):
    a = np.stack([with_values(7, 5, [4.0, 2, 2, 1, 0], rng), np.zeros((7, 5))]).astype(dtype)
    for options, wanted in (({}, 0.0), ({"k": 5}, 0.0), ({"k": 1}, 0.6), ({"tol": 0.5}, 0.2**0.5)):
        error = svd(library.put(a), errors="info", **options).error
        assert type(error) is np.ndarray
        assert error.dtype == np.float64
        np.testing.assert_allclose(error, [wanted, 0], atol=10 * np.finfo(dtype).eps)
    a[1] = np.nan
    error = svd(a, k=1, errors="info", nonfinite="propagate").error
    np.testing.assert_array_equal(np.isnan(error), [False, True])
    assert svd(np.ones((2, 0, 3)), errors="info").error.tolist() == [0, 0]


# ---- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [svd, svdvals])
@pytest.mark.parametrize(
    ("a", "kind", "text"),
    [
        (np.arange(6).reshape(2, 3), DtypeError, "must be float32 or float64, got int64"),
        (np.eye(2, dtype=bool), DtypeError, "got bool"),
        (np.eye(2, dtype=np.float16), DtypeError, "got float16"),
        (np.eye(2, dtype=np.longdouble), DtypeError, "got float128"),
        (np.eye(2, dtype=np.complex128), DtypeError, "got complex128"),
        (np.eye(2).astype(">f8"), DtypeError, "got >f8"),
        (np.array([["a"]]), DtypeError, "got <U1"),
        (np.eye(2, dtype=object), DtypeError, "got object"),
        (np.ones(3), InvalidArgumentError, "must have 2 or more axes, got 1"),
        (np.array(3.0), InvalidArgumentError, "must have 2 or more axes, got 0"),
        ([[1.0, 2.0], [3.0, 4.0]], DtypeError, "must be an array"),
        (np.float64(3.0), DtypeError, "must be an array"),
        (None, DtypeError, "must be an array"),
    ],
)
def test_refused_arrays(function, a, kind, text):
    with pytest.raises(kind, match=text) as caught:
        function(a)
    assert str(caught.value).startswith(f"[{function.__name__}] a must be ") or "axes" in text


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"k": 0}, InvalidArgumentError, r"k must be in 1\.\.3, got 0"),
        ({"k": 4}, InvalidArgumentError, r"k must be in 1\.\.3, got 4"),
        ({"k": True}, DtypeError, "k must be an integer, got bool"),
        ({"k": 2.0}, DtypeError, "k must be an integer, got float"),
        ({"tol": 1.5}, InvalidArgumentError, r"tol must be in \[0.0, 1.0\], got 1.5"),
        ({"tol": np.nan}, InvalidArgumentError, "tol must be in"),
        ({"tol": "0.1"}, DtypeError, "tol must be a number"),
        ({"seed": -1}, InvalidArgumentError, "seed must be in"),
        ({"seed": 2**64}, InvalidArgumentError, "seed must be in"),
        ({"method": "lanczos"}, InvalidArgumentError, "method must be one of 'auto', 'exact'"),
        ({"method": "randomized"}, InvalidArgumentError, "k or tol must be given"),
        ({"nonfinite": "drop"}, InvalidArgumentError, "nonfinite must be one of"),
        ({"errors": "ignore"}, InvalidArgumentError, "errors must be one of"),
    ],
)
def test_refused_options(options, kind, text):
    with pytest.raises(kind, match=text) as caught:
        svd(np.ones((5, 3)), **options)
    assert str(caught.value).startswith("[svd] ")


def test_torch_tensors_that_are_not_dense_memory():
    torch = pytest.importorskip("torch")
    for a in (torch.eye(3).to_sparse(), torch.empty((3, 3), device="meta")):
        with pytest.raises(UnsupportedError, match="must be a dense tensor"):
            svd(a)


def test_the_core_reports_no_convergence(monkeypatch):
    def gave_up(*_):
        raise ConvergenceError("[svd] 1 of 1 matrices did not converge")

    monkeypatch.setattr(subspan._ops.svd._core, "svd", gave_up)
    with pytest.raises(ConvergenceError, match="did not converge"):
        svd(np.eye(2))
    assert _core.svd is gave_up


def test_spectrum_helper_reaches_the_precision():
    # The planted matrices are what the ratios above claim to cover.
    assert spectrum("even", 5, np.float64)[-1] == np.finfo(np.float64).eps
    assert spectrum("clustered", 5, np.float32)[1] == np.finfo(np.float32).eps
