"""The batch engine of svd, eigh and qr: its borders, packs, lanes, scales and strides.

docs/design/batches.md names the three ways: packs up to 32 columns, rows up to 128, LAPACK above.
Every matrix must have the same bits whatever lies in the lanes beside it.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import (
    EIGH_KINDS,
    GATE,
    SVD_KINDS,
    VALUES_GATE,
    eigh_matrix,
    eigh_ratios,
    layouts,
    norm1,
    over,
    same_bits,
    svd_matrix,
    svd_ratios,
)
from subspan import eigh, eigvalsh, qr, svd, svdvals

threadpoolctl = pytest.importorskip("threadpoolctl")
DTYPES = [np.float32, np.float64]
SQUARES = (
    *(1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17),
    *(31, 32, 33, 34, 63, 64, 65, 66, 127, 128, 129, 130),
)
OBLONG = (
    *((500, 7), (257, 33), (40, 200), (1025, 32), (2, 300), (300, 1), (1, 1000)),
    *((17, 16), (16, 17), (33, 32), (32, 33), (34, 33), (65, 64), (64, 65), (129, 128)),
    *((512, 128), (513, 128), (2048, 32), (2049, 32)),
)
# One of each way, square, tall and wide; small, so that all batch sizes can be tried.
SOME = ((1, 1), (5, 5), (12, 9), (300, 4), (3, 50), (33, 33), (60, 34), (35, 36))

FACTORS = {"svd": svd, "svdvals": lambda a: (svdvals(a),), "qr": qr}
SQUARE_FACTORS = {"eigh": eigh, "eigvalsh": lambda a: (eigvalsh(a),)}


@pytest.fixture(autouse=True, scope="module")
def one_thread_for_numpy():
    """Two threads of its BLAS wait for each other, on busy cores a hundred times longer."""
    with threadpoolctl.threadpool_limits(1):
        yield


def qr_ratios(a, q, r):
    """R1 and R2 with Q and R for U and S V^T."""
    top = float(np.abs(a).max()) or 1.0
    wide, q = a.astype(np.float64) / top, q.astype(np.float64)
    return (
        over(norm1(wide - q @ (r.astype(np.float64) / top)), norm1(wide), max(a.shape), a.dtype),
        over(norm1(np.eye(q.shape[1]) - q.T @ q), 1.0, len(a), a.dtype),
    )


def stack(kinds, make, count):
    """Return `count` finite matrices of these kinds in turns."""
    with np.errstate(over="ignore"):
        made = [make(kind) for kind in kinds]
    made = [a for a in made if np.isfinite(a).all()]
    return np.stack([made[i % len(made)] for i in range(count)])


def mixed(m, n, dtype, rng, count=40):
    kinds = in_turns(SVD_KINDS, m + n, count)
    return stack(kinds, lambda kind: svd_matrix(kind, m, n, dtype, rng), count)


def mixed_symmetric(n, dtype, rng, count=40):
    kinds = in_turns(EIGH_KINDS, n, count)
    return stack(kinds, lambda kind: eigh_matrix(kind, n, dtype, rng), count)


def in_turns(kinds, first, count):
    """Return `count` of the kinds, or all, from another one on for every size."""
    return [kinds[(first + i) % len(kinds)] for i in range(min(count, len(kinds)))]


def batch_for(size):
    """Fewer of the large ones: the test has to end."""
    return 40 if size <= 34**2 else 18 if size <= 66**2 else 6


def functions_of(shape):
    return FACTORS | (SQUARE_FACTORS if shape[0] == shape[1] else {})


def same_parts(function, a, whole, begin, end):
    same_bits(*((x, y[begin:end]) for x, y in zip(function(a[begin:end]), whole, strict=True)))


# ---- accuracy ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [*((n, n) for n in SQUARES), *OBLONG], ids=str)
def test_svd_and_qr_keep_the_ratios_of_lapack(shape, dtype, rng):
    count = batch_for(shape[0] * shape[1])
    a = mixed(*shape, dtype, rng, count)
    u, s, vh, info, _ = svd(a, errors="info")
    q, r = qr(a)
    assert not info.any()
    assert (np.diff(s, axis=-1) <= 0).all()
    assert (s >= 0).all()
    assert not np.tril(r, -1).any()
    values = svdvals(a).astype(np.float64)
    for b in range(min(count, len(SVD_KINDS))):
        assert max(svd_ratios(a[b], u[b], s[b], vh[b])) <= GATE
        assert max(qr_ratios(a[b], q[b], r[b])) <= GATE
        apart = np.abs(s[b] - values[b]).max()
        assert over(apart, max(s[b, 0], values[b, 0]), 1, dtype) <= VALUES_GATE
    for size in (1, 3, 17)[: 3 if count > 17 else 1]:
        same_parts(svd, a, (u, s, vh), 0, size)
        same_parts(qr, a, (q, r), 0, size)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", SQUARES)
def test_eigh_keeps_the_ratios_of_lapack(n, dtype, rng):
    count = batch_for(n * n)
    a = mixed_symmetric(n, dtype, rng, count)
    w, z, info = eigh(a, errors="info")
    assert not info.any()
    assert (np.diff(w, axis=-1) >= 0).all()
    values = eigvalsh(a).astype(np.float64)
    for b in range(min(count, len(EIGH_KINDS))):
        assert max(eigh_ratios(a[b], w[b], z[b])) <= GATE
        top = max(np.abs(w[b].astype(np.float64)).max(), np.abs(values[b]).max())
        assert over(np.abs(w[b] - values[b]).max(), top, 1, dtype) <= VALUES_GATE
    for size in (1, 3, 17)[: 3 if count > 17 else 1]:
        same_parts(eigh, a, (w, z), 0, size)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [2, 8, 31, 32, 33, 90, 128])
def test_values_that_are_known(n, dtype):
    """Second differences: 2 - 2 cos(pi k / (n + 1)). Ones on two diagonals: 2 cos(pi k / (2n + 1)).
    Hadamard's matrix: all sqrt(n)."""
    slack = VALUES_GATE * np.finfo(dtype).eps
    k = np.arange(1, n + 1)
    differences = (2 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1)).astype(dtype)
    wanted = 2 - 2 * np.cos(np.pi * k / (n + 1))
    np.testing.assert_allclose(eigvalsh(differences), wanted, rtol=0, atol=4 * slack)
    np.testing.assert_allclose(svdvals(differences), wanted[::-1], rtol=0, atol=4 * slack)
    ones = (np.eye(n) + np.eye(n, k=1)).astype(dtype)
    wanted = 2 * np.cos(np.pi * k / (2 * n + 1))
    np.testing.assert_allclose(svdvals(ones), wanted, rtol=0, atol=2 * slack)
    if n & (n - 1) == 0:
        signs = np.array([[(-1) ** (i & j).bit_count() for j in range(n)] for i in range(n)], dtype)
        np.testing.assert_allclose(svdvals(signs), np.sqrt(n), rtol=slack)
        wanted = np.repeat([-1, 1], n // 2) * np.sqrt(n)  # symmetric, of trace 0
        np.testing.assert_allclose(eigvalsh(signs), wanted, rtol=slack)


# ---- what lies in the other lanes ---------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SOME, ids=str)
def test_any_batch_size_and_place_give_the_same_bits(shape, dtype, rng):
    """Up to 40: wide packs, narrow ones and packs that are not full."""
    a = mixed(*shape, dtype, rng)
    counts = range(1, 41) if max(shape) <= 12 else (1, 2, 3, 4, 5, 8, 9, 16, 17)
    for name, function in functions_of(shape).items():
        b = a if name not in SQUARE_FACTORS else mixed_symmetric(shape[0], dtype, rng)
        whole = function(b)
        for count in counts:
            same_parts(function, b, whole, 0, count)
        for begin in (1, 7, 16, 39):
            same_parts(function, b, whole, begin, min(begin + 17, 40))
        order = rng.permutation(40)
        same_bits(*((x, y[order]) for x, y in zip(function(b[order]), whole, strict=True)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_number_of_threads_gives_the_same_bits(dtype, threads, rng):
    """It decides between wide and narrow packs."""
    for m, n in ((6, 6), (300, 4), (4, 30), (35, 33)):
        a = rng.standard_normal((29, m, n)).astype(dtype)
        square = a[:, : min(m, n), : min(m, n)]
        results = []
        for number in (1, 2, 3, 8):
            threads(number)
            results.append([*svd(a), *qr(a), *eigh(square), *eigh(square[:3]), *svd(a[:9])])
        for other in results[1:]:
            same_bits(*zip(other, results[0], strict=True))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_matrix_that_is_not_finite_leaves_the_others(dtype, bad, rng):
    for m, n in ((3, 3), (9, 4), (4, 9), (200, 6), (33, 33), (34, 40)):
        a = rng.standard_normal((19, m, n)).astype(dtype)
        a[7] = 0
        clean = svd(a), qr(a)
        for place in (0, 5, 18):
            dirty = a.copy()
            dirty[place, m - 1, 0] = bad
            others = np.arange(19) != place
            for function, wanted in zip((svd, qr), clean, strict=True):
                got = function(dirty, nonfinite="propagate")
                assert all(np.isnan(x[place]).all() for x in got)
                same_bits(*((x[others], y[others]) for x, y in zip(got, wanted, strict=True)))
            if m == n:
                got, wanted = eigh(dirty, nonfinite="propagate"), eigh(a)
                assert all(np.isnan(x[place]).all() for x in got)
                same_bits(*((x[others], y[others]) for x, y in zip(got, wanted, strict=True)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [6, 20, 40])
def test_lanes_that_converge_at_their_own_pace(n, dtype, rng):
    """One matrix that takes all sweeps, among such as are done before the first."""
    slow = rng.standard_normal((n, n)).astype(dtype)
    blocks = np.kron(np.eye(n // 2), [[2, 1], [1, 3]]).astype(dtype)
    quick = [np.eye(n, dtype=dtype), np.zeros((n, n), dtype), np.diag(np.arange(n)).astype(dtype)]
    alone, alone_symmetric = svd(slow), eigh(slow + slow.T)
    for place in (0, 3, 15, 16, 18):
        a = np.stack([(*quick, blocks)[i % 4] for i in range(19)])
        a[place] = slow
        same_bits(*((x[place], y) for x, y in zip(svd(a), alone, strict=True)))
        a[place] = slow + slow.T
        same_bits(*((x[place], y) for x, y in zip(eigh(a), alone_symmetric, strict=True)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2100, 32), (9000, 8), (4, 30000), (66000, 1)], ids=str)
def test_blocks_of_rows(shape, dtype, threads, rng):
    """Tall and narrow: on all threads, the last block of fewer rows, blocks of triangles again."""
    a = rng.standard_normal((3, *shape)).astype(dtype)
    a[1, : shape[0] // 2] = 0
    a[2] *= dtype(1e30)
    results = []
    for number in (1, 2, 5):
        threads(number)
        results.append([*svd(a), *qr(a), svdvals(a)])
    for other in results[1:]:
        same_bits(*zip(other, results[0], strict=True))
    u, s, vh, q, r, _ = results[0]
    for b in range(3):
        assert max(svd_ratios(a[b], u[b], s[b], vh[b])) <= GATE
        assert max(qr_ratios(a[b], q[b], r[b])) <= GATE
        same_bits(*zip(svd(a[b]), (u[b], s[b], vh[b]), strict=True))
    turned = np.ascontiguousarray(a.mT).mT
    same_bits(*zip([*svd(turned), *qr(turned)], (u, s, vh, q, r), strict=True))
    a[1, -1, -1] = np.nan
    for got, wanted in zip(svd(a, nonfinite="propagate"), (u, s, vh), strict=True):
        assert np.isnan(got[1]).all()
        same_bits((got[0], wanted[0]), (got[2], wanted[2]))


# ---- scales, zeros, repeated values -------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 5), (90, 6), (33, 33), (40, 60)], ids=str)
def test_powers_of_two_change_nothing_but_the_values(shape, dtype, rng):
    """Up to the ends of the range, subnormal numbers included: these small integers stay exact."""
    info = np.finfo(dtype)
    a = rng.integers(-9, 10, (7, *shape)).astype(dtype)
    square = a[..., : min(shape), : min(shape)]
    (u, s, vh), (q, r), (w, z) = svd(a), qr(a), eigh(square)
    for size in (info.smallest_subnormal, info.tiny, 0.25, info.max / 2**14):
        factor = dtype(2.0 ** np.floor(np.log2(np.float64(size))))
        for got, wanted in zip(svd(a * factor), (u, s * factor, vh), strict=True):
            same_bits((got, wanted))
        same_bits(*zip(qr(a * factor), (q, r * factor + dtype(0)), strict=True))
        same_bits(*zip(eigh(square * factor), (w * factor + dtype(0), z), strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SOME, ids=str)
def test_zeros_and_signs_of_zeros(shape, dtype):
    m, n = shape
    zero = np.zeros((3, m, n), dtype)
    zero[1:] = -0.0
    for function in functions_of(shape).values():
        for part in function(zero):
            same_bits((part[1], part[0]), (part[2], part[0]))
            assert not np.signbit(part[part == 0]).any()
    u, s, vh = svd(zero)
    np.testing.assert_array_equal(s, 0)
    np.testing.assert_array_equal(qr(zero).r, 0)
    assert max(svd_ratios(zero[0], u[0], s[0], vh[0])) <= GATE


@pytest.mark.parametrize("dtype", DTYPES)
def test_wide_ones_are_the_transposes_of_tall_ones(dtype, rng):
    for m, n in ((7, 3), (300, 5), (64, 33), (129, 40)):
        a = rng.standard_normal((5, m, n)).astype(dtype)
        u, s, vh = svd(a)
        other = svd(np.ascontiguousarray(a.mT))
        same_bits((other.s, s), (other.u.mT.copy(), vh), (other.vh.mT.copy(), u))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5), (40, 34), (33, 33)], ids=str)
def test_strides(shape, dtype, rng):
    a = rng.standard_normal((18, *shape)).astype(dtype)
    for function in functions_of(shape).values():
        wanted = function(a)
        for view in layouts(a).values():
            same_bits(*zip(function(view), wanted, strict=True))
        one = np.broadcast_to(a[0], a.shape)  # the batch has stride 0
        for part, first in zip(function(one), wanted, strict=True):
            same_bits(*((x, first[0]) for x in part))
        rows = np.broadcast_to(a[:, :1], a.shape)  # and the rows
        same_bits(*zip(function(rows), function(rows.copy()), strict=True))


# ---- whatever else ------------------------------------------------------------------------------


@st.composite
def batches(draw, kinds):
    """Shape, dtype, seed, kind and power of two of every matrix, and how many stand before."""
    shape = draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    picks = draw(st.lists(st.tuples(st.sampled_from(kinds), st.integers(-60, 60)), min_size=1))
    dtype, seed = draw(st.sampled_from(DTYPES)), draw(st.integers(0, 2**32 - 1))
    return shape, picks[:36], dtype, np.random.default_rng(seed), draw(st.integers(0, 18))


def scaled(a, exponent):
    """Return a 2^exponent, or `a` where that would lose bits."""
    power = a.dtype.type(2.0**exponent)
    with np.errstate(over="ignore", under="ignore"):
        return a * power if np.array_equal(a * power / power, a) else a


@settings(max_examples=100, deadline=None)
@given(batches(SVD_KINDS))
def test_any_batch_of_any_kinds(made):
    (m, n), picks, dtype, rng, before = made
    own = [scaled(svd_matrix(kind, m, n, dtype, rng), e) for kind, e in picks]
    a = np.stack([*[np.ones((m, n), dtype)] * before, *own])
    u, s, vh = svd(a)
    q, r = qr(a)
    for b, matrix in enumerate(own, before):
        assert max(svd_ratios(matrix, u[b], s[b], vh[b])) <= GATE
        assert max(qr_ratios(matrix, q[b], r[b])) <= GATE
        same_bits(*zip(svd(matrix), (u[b], s[b], vh[b]), strict=True))
        same_bits(*zip(qr(matrix), (q[b], r[b]), strict=True))


@settings(max_examples=100, deadline=None)
@given(batches(EIGH_KINDS))
def test_any_batch_of_any_symmetric_kinds(made):
    (n, _), picks, dtype, rng, before = made
    own = [scaled(eigh_matrix(kind, n, dtype, rng), e) for kind, e in picks]
    a = np.stack([*[np.ones((n, n), dtype)] * before, *own])
    w, z = eigh(a)
    for b, matrix in enumerate(own, before):
        assert max(eigh_ratios(matrix, w[b], z[b])) <= GATE
        same_bits(*zip(eigh(matrix), (w[b], z[b]), strict=True))
