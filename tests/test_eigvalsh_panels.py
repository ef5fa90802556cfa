"""eigvalsh of 129 to 1024 columns, by panels of reflections: values, bits, policies."""

import numpy as np
import pytest
from matrices import EIGH_KINDS, VALUES_GATE, eigh_matrix, layouts, over, same_bits
from subspan import eigvalsh
from subspan.errors import InvalidArgumentError

threadpoolctl = pytest.importorskip("threadpoolctl")
DTYPES = [np.float32, np.float64]
# Around panels of 32 and blocks of 16, 8, 4 and 2.
SIZES = (129, 130, 143, 144, 145, 160, 161, 255)


@pytest.fixture(autouse=True, scope="module")
def one_thread_for_numpy():
    with threadpoolctl.threadpool_limits(1):
        yield


def symmetric(shape, dtype, rng):
    a = rng.standard_normal(shape)
    return (a + np.swapaxes(a, -1, -2)).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", SIZES)
def test_values_of_all_kinds(n, dtype, rng):
    """An absolute error of a few eps of the largest value, whatever the kind and the scale."""
    for kind in EIGH_KINDS:
        a = eigh_matrix(kind, n, dtype, rng)
        scale = float(np.abs(a).max()) or 1.0
        wanted = np.linalg.eigvalsh(a.astype(np.float64) / scale)
        found = eigvalsh(a)
        assert found.dtype == dtype
        assert (np.diff(found) >= 0).all()
        error = np.abs(found.astype(np.float64) / scale - wanted).max()
        assert over(error, np.abs(wanted).max(), 1, dtype) <= VALUES_GATE, kind


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_that_take_panels(dtype, rng):
    """Second differences are known: 2 - 2 cos(pi k / (n + 1))."""
    for n in (700, 1024, 1025):
        a = (2 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1)).astype(dtype)
        order = rng.permutation(n)
        wanted = 2 - 2 * np.cos(np.pi * np.arange(1, n + 1) / (n + 1))
        found = eigvalsh(a[order][:, order])
        np.testing.assert_allclose(found, wanted, rtol=0, atol=100 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_depend_on_one_matrix_alone(dtype, threads, rng):
    a = symmetric((19, 131, 131), dtype, rng)
    wanted = eigvalsh(a)
    for number in (1, 3):
        threads(number)
        same_bits((eigvalsh(a), wanted))
    for size in (1, 2, 7, 9, 17):
        same_bits((eigvalsh(a[-size:]), wanted[-size:]))
    for view in layouts(a).values():
        same_bits((eigvalsh(view), wanted))


@pytest.mark.parametrize("dtype", DTYPES)
def test_only_the_lower_half_is_read(dtype, rng):
    a = symmetric((140, 140), dtype, rng)
    dirty = np.where(np.tri(140, dtype=bool), a, np.nan)
    same_bits((eigvalsh(dirty), eigvalsh(a)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_powers_of_two_change_no_bit(dtype, rng):
    a = symmetric((150, 150), dtype, rng)
    for power in (2.0**-100, 2.0**60):
        same_bits((eigvalsh(a * dtype(power)), eigvalsh(a) * dtype(power)))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nonfinite_matrices(bad, rng):
    a = symmetric((5, 135, 135), np.float32, rng)
    clean = eigvalsh(a)
    a[3, 100, 4] = bad
    found = eigvalsh(a, nonfinite="propagate")
    assert np.isnan(found[3]).all()
    same_bits((np.delete(found, 3, 0), np.delete(clean, 3, 0)))
    with pytest.raises(InvalidArgumentError, match=r"a must be finite, .* in matrix 3 of 5"):
        eigvalsh(a)


def test_nothing():
    assert eigvalsh(np.zeros((0, 200, 200))).shape == (0, 200)
    assert not eigvalsh(np.zeros((2, 200, 200))).any()
