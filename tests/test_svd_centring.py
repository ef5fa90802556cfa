"""svd of centred matrices, against the SVD of matrices that numpy centred in float64."""

import tracemalloc

import numpy as np
import pytest
from matrices import same_bits, with_values
from subspan import svd
from subspan.errors import DtypeError, InvalidArgumentError

DTYPES = [np.float32, np.float64]
METHODS = [{}, {"k": 3}, {"k": 3, "method": "randomized"}, {"tol": 0.2, "method": "randomized"}]


def planted(m, n, dtype, rng, *, offset):
    """Rows with a clear leading space, and columns whose means are ``offset`` times their size."""
    values = np.r_[9.0, 7, 5, 1e-3 * np.ones(min(m, n) - 3)] * np.sqrt(m)
    a = with_values(m, n, values, rng)
    return (a + offset * a.std() * (1 + rng.random(n))).astype(dtype)


def check(got, centred):
    """Leading values and spaces are those of the centred matrix."""
    u, s, vh = np.linalg.svd(centred, full_matrices=False)
    tolerance = 50 * np.finfo(got.u.dtype).eps
    np.testing.assert_allclose(got.s[:3], s[:3], rtol=tolerance)
    for x, wanted in ((got.u[:, :3], u[:, :3]), (got.vh[:3].T, vh[:3].T)):
        projector = x.astype(np.float64) @ x.T
        np.testing.assert_allclose(projector, wanted @ wanted.T, atol=tolerance)
    rest = np.linalg.norm(centred - (got.u.astype(np.float64) * got.s) @ got.vh)
    assert rest <= (1 + 1e-3) * np.linalg.norm(s[len(got.s) :]) + tolerance * s[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [0, 1, 1e4])
@pytest.mark.parametrize("options", METHODS, ids=str)
def test_is_the_svd_of_centred_rows(options, offset, dtype, rng):
    for shape in ((90, 40), (30, 60)):
        a = planted(*shape, dtype, rng, offset=offset)
        wide = a.astype(np.float64)
        mean = wide.mean(axis=0)
        check(svd(a, center=True, **options), wide - mean)
        check(svd(a, center=mean, **options), wide - mean)
        rounded = mean.astype(np.float32)
        check(svd(a, center=rounded, **options), wide - rounded)


@pytest.mark.parametrize("options", METHODS, ids=str)
def test_without_a_center_nothing_changes(options, rng):
    a = planted(30, 20, np.float64, rng, offset=1)
    for center in (False, np.zeros(20)):
        same_bits(*zip(svd(a, center=center, **options), svd(a, **options), strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", METHODS, ids=str)
def test_batches_and_libraries(options, dtype, library, rng):
    a = np.stack([planted(30, 20, dtype, rng, offset=b) for b in range(6)]).reshape(2, 3, 30, 20)
    means = a.astype(np.float64).mean(axis=-2)
    for given in (True, means, means[0, 1]):
        center = given if given is True else library.put(given)
        result = svd(library.put(a), center=center, errors="info", **options)
        assert all(library.owns(out) for out in result[:3])
        u, s, vh = (library.get(out) for out in result[:3])
        wanted = a - (means if given is True else given)[..., None, :]
        rest = np.linalg.norm(wanted - (u * s[..., None, :]) @ vh, axis=(-2, -1))
        share = rest / np.linalg.norm(wanted, axis=(-2, -1))
        np.testing.assert_allclose(result.error, share, rtol=2e-3, atol=30 * np.finfo(dtype).eps)
        same_bits((library.get(svd(library.put(a), center=center, **options).s), s))


@pytest.mark.parametrize("options", METHODS, ids=str)
def test_constant_columns_are_zero(options):
    a = np.tile(np.float32([1e6, -3.7, 0.1, 1 / 3]), (50, 1))
    result = svd(a, center=True, errors="info", **options)
    assert result.s.max() <= 1e-6  # what float64 leaves of the mean of 1e6
    one = svd(a[:1], center=True, **{**options, **({"k": 1} if "k" in options else {})})
    np.testing.assert_array_equal(one.s, 0)


@pytest.mark.parametrize("options", METHODS, ids=str)
def test_nonfinite_policies(options, rng):
    a = np.stack([planted(30, 20, np.float64, rng, offset=1) for _ in range(3)])
    a[1, 2, 3] = np.inf
    with pytest.raises(InvalidArgumentError, match="a must be finite, got NaN or infinity in mat"):
        svd(a, center=True, **options)
    result = svd(a, center=True, nonfinite="propagate", errors="info", **options)
    assert result.info.tolist() == [0, -1, 0]
    np.testing.assert_array_equal(np.isnan(result.s).all(axis=-1), [False, True, False])


def test_blocks_of_rows_are_centred_where_they_are_multiplied(rng):
    a = rng.standard_normal((4000, 500), dtype=np.float32) + 100
    svd(a[:200], k=2, method="randomized", center=True)
    tracemalloc.start()
    found = svd(a, k=2, method="randomized", center=True, tol=1.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.7 * a.nbytes  # a centred copy alone would be 1
    assert np.abs(found.u.sum(axis=0)).max() <= 1e-3  # orthogonal to the constant
    centred = a - a.mean(axis=0, dtype=np.float64)
    top = np.linalg.eigvalsh(centred.T @ centred)[-1] ** 0.5
    assert 0.9 * top <= found.s[0] <= (1 + 1e-5) * top


def test_gradients_go_through_the_center(rng):
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(rng.standard_normal((2, 6, 4))).requires_grad_()
    c = torch.from_numpy(rng.standard_normal(4)).requires_grad_()

    def loss(x, center):
        u, s, vh = svd(x, center=center, k=2)
        return (u * s.unsqueeze(-2)) @ vh

    assert torch.autograd.gradcheck(lambda x: loss(x, True), (x,))
    assert torch.autograd.gradcheck(loss, (x, c))
    assert torch.autograd.gradcheck(lambda c: loss(x.detach(), c), (c,))


@pytest.mark.parametrize(
    ("center", "kind", "text"),
    [
        (None, DtypeError, r"must be True, False or an array \(\.\.\., n\), got NoneType"),
        ("mean", DtypeError, "must be True, False or an array"),
        (1, DtypeError, "must be True, False or an array"),
        ([0.0, 0.0, 0.0], DtypeError, "got list"),
        (np.zeros(3, np.int64), DtypeError, "must be float32 or float64, got int64"),
        (np.zeros(3, np.float16), DtypeError, "got float16"),
        (np.zeros(5), InvalidArgumentError, r"must have shape \(3,\) or \(2, 3\), got \(5,\)"),
        (np.zeros((1, 3)), InvalidArgumentError, r"got \(1, 3\)"),
        (np.full(3, np.nan), InvalidArgumentError, "must be finite, got NaN or infinity"),
    ],
)
@pytest.mark.parametrize("options", METHODS[1:3], ids=str)
def test_refused_centers(center, kind, text, options):
    with pytest.raises(kind, match=text) as caught:
        svd(np.ones((2, 5, 3)), center=center, **options)
    assert str(caught.value).startswith("[svd] center must ")


def test_a_center_of_another_library():
    torch = pytest.importorskip("torch")
    with pytest.raises(DtypeError, match=r"center must be of the library and on the device of a"):
        svd(np.ones((5, 3)), center=torch.zeros(3))
