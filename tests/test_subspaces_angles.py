"""subspan.subspaces: span and principal_angles against known angles, scipy and mpmath."""

import numpy as np
import pytest
import scipy.linalg
from subspace_oracle import EPS, apart, frame, mixing, planted
from subspan.errors import InvalidArgumentError
from subspan.subspaces import (
    Subspaces,
    _pairs,
    _screen,
    _work,
    principal_angles,
    spaces,
    span,
)

# Of all sizes, together: this is where scipy 1.17 takes an arccos for the tiny ones.
SPECTRA = {
    "tiny": np.array([1e-9, 3e-9, 1e-8]),
    "mixed": np.array([1e-9, 1e-5, 1.2]),
    "seam": np.pi / 4 + np.array([-1e-9, 0.0, 1e-9]),
    "right": np.array([0.0, np.pi / 2, np.pi / 2]),
    "cluster": np.array([1e-7, 1e-7, 1e-7]),
    "spread": np.array([0.2, 0.7, 1.5]),
}


@pytest.mark.parametrize("kind", SPECTRA)
@pytest.mark.parametrize(("p", "q"), [(3, 3), (3, 5), (6, 3)])
@pytest.mark.parametrize("vectors", [False, True])
def test_known_angles(kind, p, q, vectors, rng):
    theta = SPECTRA[kind]
    a, b = planted(rng, 30, p, q, theta, (4,))
    found = principal_angles(a, b, vectors=vectors)
    assert found.angles.shape == (4, 3)
    assert np.abs(found.angles - theta).max() <= 30 * EPS
    assert (found.dims_a == p).all()
    assert (found.dims_b == q).all()
    if vectors:
        x, y = found.vectors_a, found.vectors_b
        assert np.abs(x.mT @ x - np.eye(3)).max() <= 30 * EPS
        assert np.abs(y.mT @ y - np.eye(3)).max() <= 30 * EPS
        assert np.abs(x.mT @ y - np.eye(3) * np.cos(theta)).max() <= 30 * EPS
        assert np.abs(np.linalg.norm(y - x, axis=-2) - 2 * np.sin(theta / 2)).max() <= 50 * EPS
        for basis, part in ((a, x), (b, y)):
            q1 = np.linalg.qr(basis)[0]
            assert np.abs(part - q1 @ (q1.mT @ part)).max() <= 50 * EPS


def test_float32_and_half(rng):
    theta = np.array([1e-4, 0.3, 1.3])
    a, b = planted(rng, 40, 3, 4, theta, (5,))
    found = principal_angles(a.astype(np.float32), b.astype(np.float32))
    assert found.angles.dtype == np.float32
    assert np.abs(found.angles - theta).max() <= 40 * np.finfo(np.float32).eps
    both = principal_angles(a.astype(np.float32), b)
    assert both.angles.dtype == np.float64
    half = principal_angles(a.astype(np.float16), b.astype(np.float16))
    assert half.angles.dtype == np.float32
    assert np.abs(half.angles - theta).max() <= 40 * np.finfo(np.float16).eps


def test_high_precision_reference(rng):
    mp = pytest.importorskip("mpmath")
    mp.mp.dps = 50
    a, b = planted(rng, 8, 2, 2, np.array([1e-9, 0.4]))
    qa, qb = (mp.qr(mp.matrix(x.tolist()), mode="skinny")[0] for x in (a, b))
    gram = (qa.T * qb).T * (qa.T * qb)
    squares = sorted(mp.eigsy(gram, eigvals_only=True), reverse=True)
    truth = [float(mp.asin(mp.sqrt(1 - square))) for square in squares]
    assert np.abs(principal_angles(a, b).angles - truth).max() <= 8 * EPS


def test_identical_contained_orthogonal(rng):
    a = rng.standard_normal((5, 20, 6))
    assert np.abs(principal_angles(a, a).angles).max() <= 8 * EPS
    assert np.abs(principal_angles(a, a[..., :2]).angles).max() <= 8 * EPS
    whole = frame(rng, 20, 20)
    assert (principal_angles(whole[:, :4], whole[:, 4:7]).angles >= np.pi / 2 - 8 * EPS).all()
    # p + q - n angles are 0 at least
    found = principal_angles(whole[:, :15], rng.standard_normal((20, 12))).angles
    assert (found[:7] <= 20 * EPS).all()
    assert found[7] > 1e-3


def test_all_pairs_equal_a_loop_over_scipy(rng):
    a, b = rng.standard_normal((3, 2, 24, 4)), rng.standard_normal((5, 24, 7))
    found = principal_angles(a, b, pairs="all").angles
    assert found.shape == (3, 2, 5, 4)
    for i in np.ndindex(3, 2, 5):
        truth = scipy.linalg.subspace_angles(a[i[:2]], b[i[2]])[::-1]
        assert np.abs(found[i] - truth).max() <= 1e-7
    by_axes = principal_angles(a[:, :, None], b).angles
    assert np.abs(by_axes - found).max() <= 4 * EPS
    one = principal_angles(a[1, 1], b[2]).angles  # by Gram matrices
    assert np.abs(one - found[1, 1, 2]).max() <= 16 * EPS
    shared = principal_angles(a[:, :, None], np.stack([b, b])[None]).angles
    assert np.abs(shared - found).max() <= 4 * EPS


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_short_way_of_well_conditioned_bases(dtype, rng):
    """Gram matrices decide what they can; poor bases go the long way."""
    theta = rng.uniform(0.9, np.pi / 2, (40, 3))
    theta[::5, :2] = 1e-3, 1e-6
    theta.sort(axis=-1)
    a, b = planted(rng, 25, 3, 4, theta[:, None, :], (40,), mix=False)
    a = a @ mixing(rng, 3, (40,), condition=4)
    b = b @ mixing(rng, 4, (40,), condition=4)
    a[7] *= [1.0, 1e-4, 1e-2]
    a[8, :, 2] = a[8, :, 0] + a[8, :, 1]
    b[9] *= 1e-3
    a, b = a.astype(dtype), b.astype(dtype)
    known = _screen.screen(*(spaces.read("x", "x", x) for x in (a, b)))
    assert known.decided[7]
    assert not known.decided[8]
    assert known.decided.sum() > 30
    found = principal_angles(a, b)
    limit = 50 * np.finfo(dtype).eps
    others = np.arange(40) != 8
    others[7] = dtype == np.float64  # 1e-4 of a column is not much of float32
    assert np.abs(found.angles - theta)[others].max() <= limit
    assert found.dims_a.tolist() == [2 if i == 8 else 3 for i in range(40)]
    assert np.isnan(found.angles[8]).tolist() == [False, False, True]
    by_span = principal_angles(span(a), span(b)).angles
    np.testing.assert_allclose(found.angles, by_span, rtol=0, atol=limit)
    a[11, 2, 1] = np.inf
    with pytest.raises(InvalidArgumentError, match=r"a must be finite, .* in matrix \[11\]"):
        principal_angles(a, b)


def test_a_pair_does_not_depend_on_the_others(rng, threads):
    a, b = planted(rng, 25, 3, 3, np.array([1e-6, 0.7, 1.1]), (20,))
    b[::3] = rng.standard_normal((7, 25, 3))
    a[::4, :, 2] = a[::4, :, 0]
    whole = principal_angles(a, b).angles
    threads(1)
    assert np.array_equal(principal_angles(a, b).angles, whole, equal_nan=True)
    for i in range(20):
        alone = principal_angles(a[i], b[i]).angles
        assert np.array_equal(alone, whole[i], equal_nan=True)


@pytest.mark.parametrize("scale", [1e-200, 1e-160, 1e-150, 1e150])
def test_scale_does_not_matter(scale, rng):
    theta = np.array([1e-6, 0.7, 1.1])
    a, b = planted(rng, 25, 3, 3, theta, (4,))
    assert np.abs(principal_angles(a * scale, b).angles - theta).max() <= 30 * EPS


@pytest.mark.parametrize(("p", "q"), [(3, 4), (5, 2), (4, 4)])
def test_blocks_and_threads_change_no_bit(p, q, rng, threads, monkeypatch):
    """Near pairs, all of them or some, in blocks of one and of all."""
    theta = np.linspace(1e-7, 0.3, min(p, q))
    a, b = planted(rng, 25, p, q, theta, (12,), mix=False)
    for far in (0, 3):
        b[:far] = rng.standard_normal((far, 25, q))
        whole = principal_angles(a, b).angles
        assert np.abs(whole[far:] - theta).max() <= 30 * EPS
        with monkeypatch.context() as patch:
            patch.setattr(_screen, "_BLOCK", 1)
            assert np.array_equal(principal_angles(a, b).angles, whole)
            threads(1)
            assert np.array_equal(principal_angles(a, b).angles, whole)
        threads(None)


def test_what_the_screen_decides(rng):
    """By the determinant or the eigenvalues of what is scaled; never against the rank by span."""
    a, b = frame(rng, 200, 30, (8,)), frame(rng, 200, 30, (8,))
    a[0] *= 10.0 ** rng.uniform(-6, 6, 30)  # sizes of columns do no harm
    a[1] = rng.standard_normal((200, 30))  # a small determinant, but well conditioned
    a[2, :, 4] = a[2, :, 5] + 1e-3 * a[2, :, 4]
    a[3, :, 7] *= 1e-15  # rank 29 to span
    a[4, :, 9] = 0.0
    a[5, 3, 3] = np.nan
    b[6, 2, 2] = np.inf
    known = _screen.screen(*(spaces.read("x", "x", x) for x in (a, b)))
    assert known.decided.tolist() == [True, True, False, False, False, False, False, True]
    assert principal_angles(a[:5], b[:5]).dims_a.tolist() == [30, 30, 30, 29, 29]
    low = (a[7:], b[7:] @ np.diag(np.linspace(0.1, 1, 30)))  # of which half precision sees 18
    low = [x.astype(np.float16) for x in low]
    assert principal_angles(*low).dims_b == span(low[1]).dims < 30


def test_tiles_change_nothing(rng, monkeypatch):
    a = rng.standard_normal((6, 18, 4))
    b = a[:, None] + 0.1 * rng.standard_normal((6, 5, 18, 4))
    whole = principal_angles(a[:, None], b).angles
    outer = principal_angles(a, b, pairs="all").angles
    monkeypatch.setattr(_pairs, "_TILE", 100)
    assert np.abs(principal_angles(a[:, None], b).angles - whole).max() <= 8 * EPS
    assert np.abs(principal_angles(a, b, pairs="all").angles - outer).max() <= 8 * EPS


@pytest.mark.parametrize("vectors", [False, True])
def test_mixed_dimensions_in_one_call(vectors, rng):
    bases = [rng.standard_normal((12, k)) for k in (0, 1, 3, 5, 12)]
    bases[2][:, 0] = bases[3][:, 0]  # a shared direction
    found = principal_angles(bases, bases, pairs="all", vectors=vectors)
    assert found.angles.shape == (5, 5, 12)
    assert found.dims_a.tolist() == [0, 1, 3, 5, 12]
    padded = np.zeros((5, 12, 12))
    for i, basis in enumerate(bases):
        padded[i, :, : basis.shape[1]] = basis
    same = principal_angles(span(padded, dims=[0, 1, 3, 5, 12]), bases, pairs="all")
    np.testing.assert_allclose(same.angles, found.angles, rtol=0, atol=8 * EPS)
    for i, a in enumerate(bases):
        for j, b in enumerate(bases):
            k = min(a.shape[1], b.shape[1])
            alone = principal_angles(a, b).angles
            np.testing.assert_allclose(found.angles[i, j, :k], alone, rtol=0, atol=20 * EPS)
            assert np.isnan(found.angles[i, j, k:]).all()
            if vectors:
                x, y = found.vectors_a[i, j], found.vectors_b[i, j]
                assert np.abs(x.T @ x - np.diag(np.arange(12) < k)).max() <= 30 * EPS
                assert np.abs(np.diag(x.T @ y)[:k] - np.cos(alone)).max(initial=0) <= 30 * EPS


def test_dependent_columns_lower_the_dimension(rng):
    a = rng.standard_normal((3, 20, 4))
    a[1, :, 3] = a[1, :, 0] + a[1, :, 2]
    a[2, :, 1:] = 0.0
    found = span(a)
    assert found.dims.tolist() == [4, 3, 1]
    assert not found.basis[1, :, 3].any()
    assert not found.basis[2, :, 1:].any()
    assert apart(found.basis[1, :, :3], a[1, :, :3]) <= 1e-14
    angles = principal_angles(a, a[:, :, :3])
    assert angles.dims_a.tolist() == [4, 3, 1]
    assert np.isnan(angles.angles).tolist() == [[False] * 3, [False] * 3, [False, True, True]]
    assert np.nanmax(angles.angles) <= 1e-14
    # a rank-deficient square matrix against a plane that contains its columns
    square = np.array([[3.0, 2.0, 1.0], [6.0, 5.0, 4.0], [9.0, 8.0, 7.0]])
    plane = np.array([[2.0, 4.0], [4.0, 1.0], [6.0, 2.0]])
    both = principal_angles(square, plane)
    assert (int(both.dims_a), int(both.dims_b)) == (2, 2)


def test_rank_by_tolerance_and_by_dtype(rng):
    values = np.array([1.0, 1e-2, 1e-5, 1e-9])
    a = frame(rng, 30, 4) * values @ frame(rng, 4, 4)
    assert int(span(a).dims) == 4
    assert int(span(a.astype(np.float32)).dims) == 3
    assert int(span(a.astype(np.float16)).dims) == 1  # 30 eps of float16 is 0.03
    assert int(span(a, rtol=1e-3).dims) == 2
    # stored in half precision, computed in more: rounding noise is no direction
    low = (frame(rng, 60, 2) @ frame(rng, 6, 2).T).astype(np.float16)
    assert int(span(low).dims) == 2
    kahan = np.triu(np.full((40, 40), -np.cos(1.2)), 1) + np.eye(40)
    kahan *= (np.sin(1.2) ** np.arange(40))[:, None]
    values = np.linalg.svd(kahan, compute_uv=False)
    rtol = 3 * values[-1] / values[0]
    assert np.abs(np.linalg.qr(kahan).R.diagonal()).min() > 10 * rtol * values[0]
    assert int(span(kahan, rtol=rtol).dims) == 39  # which no entry of the diagonal shows


def test_span_keeps_what_is_orthonormal_and_nested(rng):
    a = frame(rng, 20, 5, (3,))
    assert np.abs(span(a).basis - a).max() <= 8 * EPS
    b = rng.standard_normal((20, 5))
    found = span(b).basis
    for j in range(1, 6):
        assert apart(found[:, :j], b[:, :j]) <= 1e-13
    wide = span(rng.standard_normal((3, 7)))
    assert wide.basis.shape == (3, 3)
    assert int(wide.dims) == 3
    again = principal_angles(Subspaces(a, np.array([5, 2, 0])), a)
    assert again.dims_a.tolist() == [5, 2, 0]
    assert np.isnan(again.angles).sum(axis=-1).tolist() == [0, 3, 5]


def test_nothing_at_all():
    assert span(np.zeros((0, 4, 2))).basis.shape == (0, 4, 2)
    assert span(np.zeros((3, 4, 0))).dims.tolist() == [0, 0, 0]
    assert int(span(np.zeros((4, 2))).dims) == 0
    for vectors in (False, True):
        found = principal_angles(np.zeros((0, 4, 2)), np.ones((4, 1)), vectors=vectors)
        assert found.angles.shape == (0, 1)
        assert principal_angles(np.ones((4, 0)), np.eye(4), vectors=vectors).angles.shape == (0,)


def test_other_libraries(library, rng):
    a, b = rng.standard_normal((4, 10, 3)), rng.standard_normal((4, 10, 2))
    truth = principal_angles(a, b, vectors=True)
    found = principal_angles(library.put(a), library.put(b), vectors=True)
    for mine, theirs in zip(found, truth, strict=True):
        assert library.owns(mine)
        assert np.array_equal(library.get(mine), theirs)


def test_tensors_on_a_device_take_the_same_way(rng, monkeypatch):
    """As on a device: through torch's own operations instead of numpy's."""
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(_work, "_on_host", lambda _: False)
    a, b = rng.standard_normal((3, 1, 12, 3)), rng.standard_normal((2, 12, 4))
    b[0, :, :2] = a[0, 0, :, :2]
    a[1, 0, :, 2] = 0.0
    for vectors in (False, True):
        truth = principal_angles(a, b, vectors=vectors)
        found = principal_angles(torch.from_numpy(a), torch.from_numpy(b), vectors=vectors)
        np.testing.assert_allclose(found.angles.numpy(), truth.angles, atol=1e-14, rtol=0)
        assert found.dims_a.tolist() == truth.dims_a.tolist() == [[3], [2], [3]]
