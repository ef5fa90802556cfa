"""The cut-off of kernel_matvec: its bound, in all kernels that have one, and that it pays."""

import time

import numpy as np
import pytest
from kernel_oracle import RADIAL, matrix
from subspan import kernel_matvec

DECREASING = [name for name in RADIAL if "distance" not in name]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kernel", DECREASING)
def test_the_error_is_within_the_bound(kernel, dtype, rng):
    for n, m, d in ((1, 1, 2), (40, 500, 1), (300, 1300, 2), (65, 200, 9)):
        x, y = (rng.uniform(size=(k, d)).astype(dtype) for k in (n, m))
        v = rng.standard_normal((m, 3)).astype(dtype)
        whole = kernel_matvec(x, y, v, kernel=kernel, bandwidth=0.05)
        wanted = matrix(x, y, kernel, bandwidth=0.05) @ v.astype(np.float64)
        rounding = 20 * np.finfo(dtype).eps * np.abs(v).sum()
        for cutoff in (0.5, 1e-2, 1e-5):
            out = kernel_matvec(x, y, v, kernel=kernel, bandwidth=0.05, cutoff=cutoff)
            bound = cutoff * np.abs(v).sum(0) + rounding
            assert (np.abs(out - wanted) <= bound).all()
        np.testing.assert_allclose(out, whole, atol=2e-5 * np.abs(v).sum())


def test_what_is_left_out_is_really_left_out(rng):
    """Two clusters: within a cluster all counts, of the other nothing does."""
    x = rng.uniform(size=(512, 3))
    x[256:] += 50
    shuffled = rng.permutation(512)
    ones = np.ones(512)
    out = kernel_matvec(x[shuffled], None, ones, kernel="cauchy", cutoff=1e-3)
    alone = kernel_matvec(x[:256], None, ones[:256], kernel="cauchy")
    np.testing.assert_allclose(out[np.argsort(shuffled)][:256], alone, rtol=1e-12)
    assert (kernel_matvec(x, None, ones, kernel="cauchy")[:256] > alone + 0.01).all()


def test_bits_do_not_depend_on_threads(rng, threads):
    x, v = rng.uniform(size=(3000, 2)), rng.standard_normal(3000)
    threads(1)
    out = kernel_matvec(x, None, v, bandwidth=0.02, cutoff=1e-6)
    threads(3)
    np.testing.assert_array_equal(kernel_matvec(x, None, v, bandwidth=0.02, cutoff=1e-6), out)


def test_a_row_without_a_number_stays_one_and_a_point_without_spoils_all(rng):
    x, y = rng.uniform(size=(300, 2)), rng.uniform(size=(400, 2))
    v = np.ones(400)
    good = kernel_matvec(x, y, v, bandwidth=0.01, cutoff=1e-4)
    bad = x.copy()
    bad[17, 1] = np.nan
    out = kernel_matvec(bad, y, v, bandwidth=0.01, cutoff=1e-4)
    assert np.isnan(out[17])
    np.testing.assert_allclose(np.delete(out, 17), np.delete(good, 17), atol=1e-4 * 400)
    bad = y.copy()
    bad[3, 0] = np.nan
    assert np.isnan(kernel_matvec(x, bad, v, bandwidth=0.01, cutoff=1e-4)).all()


def test_duplicates_widths_and_offsets(rng):
    x = np.repeat(rng.uniform(size=(10, 2)) + 1000, 40, axis=0)
    v = rng.standard_normal(400)
    for widths in (0.05, np.array([0.05, np.inf]), np.inf):
        whole = kernel_matvec(x, None, v, bandwidth=widths)
        out = kernel_matvec(x, None, v, bandwidth=widths, cutoff=1e-8)
        np.testing.assert_allclose(out, whole, atol=1e-8 * np.abs(v).sum())


def test_points_without_coordinates():
    ones = np.ones(300)
    np.testing.assert_array_equal(kernel_matvec(np.ones((300, 0)), None, ones, cutoff=0.1), 300)


def test_gradients_are_those_of_all_pairs(rng):
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(rng.uniform(size=(200, 2))).requires_grad_()
    v = torch.ones(200, dtype=torch.float64, requires_grad=True)
    of_x, of_v = torch.autograd.grad(kernel_matvec(x, None, v, bandwidth=0.1).sum(), (x, v))
    cut = torch.autograd.grad(kernel_matvec(x, None, v, bandwidth=0.1, cutoff=1e-3).sum(), (x, v))
    torch.testing.assert_close(cut, (of_x, of_v))


def test_it_pays(rng, threads):
    threads(1)
    x, v = rng.uniform(size=(20_000, 2)).astype(np.float32), np.ones(20_000, np.float32)

    def seconds(cutoff):
        start = time.thread_time()
        kernel_matvec(x, None, v, bandwidth=0.005, cutoff=cutoff)
        return time.thread_time() - start

    assert min(seconds(1e-6) for _ in range(3)) < seconds(0.0) / 3
