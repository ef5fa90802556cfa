"""A set against itself: values made once for both of their pairs are right, in one order."""

import numpy as np
import pytest
from kernel_oracle import KERNELS, error, matrix
from subspan import kernel_matvec

GATE = 8  # ulp of sums of |K v|, as of two sets
OPTIONS = {
    "rational_quadratic": {"alpha": 0.7},
    "polynomial": {"degree": 4, "offset": 0.5},
}


def points(rng, n, d, e, dtype=np.float32):
    x = rng.standard_normal((n, d)) * max(d, 1) ** -0.5
    return x.astype(dtype), rng.standard_normal((n, e)).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kernel", KERNELS)
def test_products_are_the_definitions(kernel, dtype, rng):
    """Sizes around panels, runs, segments and groups; depths and right-hand sides of all ways."""
    options = OPTIONS.get(kernel, {})
    for n, d, e in ((512, 3, 1), (513, 1, 2), (577, 12, 1), (641, 8, 3), (530, 0, 1)):
        x, v = points(rng, n, d, e, dtype)
        out = kernel_matvec(x, None, v, kernel=kernel, bandwidth=0.8, **options)
        assert out.dtype == dtype
        worst = error(out, x, x, v, kernel, bandwidth=0.8, **options)
        assert worst <= GATE * np.finfo(dtype).eps, (n, d, e)


@pytest.mark.parametrize(("d", "e"), [(2, 1), (20, 1), (3, 3)])
def test_more_columns_than_a_block(d, e, rng):
    x, v = points(rng, 16384 + 600, d, e)
    out = kernel_matvec(x, None, v)
    some = np.r_[0:4, 8000:8004, 16380:16390, 16980:16984]
    assert error(out[some], x[some], x, v, "gaussian") <= GATE * np.finfo(np.float32).eps
    one_way = kernel_matvec(x[some], x, v)
    np.testing.assert_allclose(out[some], one_way, atol=1e-5 * np.abs(v).sum() / len(x) ** 0.5)


@pytest.mark.parametrize("kernel", ["gaussian", "laplacian", "exp_dot"])
@pytest.mark.parametrize("d", [3, 20])
def test_bits_do_not_depend_on_threads_batch_and_right_hand_sides(kernel, d, rng, threads):
    x, v = points(rng, 2500, d, 3)
    threads(1)
    whole = kernel_matvec(x, None, v, kernel=kernel)
    threads(3)
    np.testing.assert_array_equal(kernel_matvec(x, x, v, kernel=kernel), whole)
    for k in range(3):
        np.testing.assert_array_equal(kernel_matvec(x, None, v[:, k], kernel=kernel), whole[:, k])
    batch = np.stack([x, x[::-1]])
    both = kernel_matvec(batch, None, v[None], kernel=kernel)
    np.testing.assert_array_equal(both[0], whole)


@pytest.mark.parametrize("d", [3, 30])
def test_it_is_symmetric_and_meets_itself(d, rng):
    """<u, K w> = <w, K u>, and the diagonal counts once."""
    x, v = points(rng, 1400, d, 2, np.float64)
    out = kernel_matvec(x, None, v, kernel="matern32")
    np.testing.assert_allclose(v[:, 0] @ out[:, 1], v[:, 1] @ out[:, 0], rtol=1e-12)
    alone = kernel_matvec(x, None, v, bandwidth=1e-6)
    np.testing.assert_array_equal(alone, v)
    np.testing.assert_array_equal(kernel_matvec(x, None, bandwidth=np.inf), 1400)


def test_right_hand_sides_beyond_three_and_strides(rng):
    x, v = points(rng, 700, 5, 6)
    wide = kernel_matvec(x, None, v)
    np.testing.assert_allclose(kernel_matvec(x, None, v[:, :3]), wide[:, :3], atol=1e-4)
    wanted = kernel_matvec(x, None, v[:, 0])
    np.testing.assert_array_equal(kernel_matvec(np.asfortranarray(x), None, v[:, 0]), wanted)
    backwards = kernel_matvec(x[::-1], None, v[::-1, 0])
    np.testing.assert_allclose(backwards[::-1], wanted, atol=1e-4)


@pytest.mark.parametrize("d", [3, 20])
def test_infinite_weights_and_points_without_numbers(d, rng):
    x, v = points(rng, 800, d, 1)
    for at in (0, 130, 799):
        w = v.copy()
        w[at] = np.inf
        np.testing.assert_array_equal(kernel_matvec(x, None, w), np.inf)  # all k are positive
        bad = x.copy()
        bad[at, 0] = np.nan
        assert np.isnan(kernel_matvec(bad, None, v)).all()


def test_duplicates(rng):
    """Blocks of equal points have blocks of ones, whatever the number of coordinates."""
    for d in (2, 40):
        x = np.repeat(rng.standard_normal((20, d)), 40, axis=0)
        x[:, 0] += 50 * np.repeat(np.arange(20), 40)
        out = kernel_matvec(x.astype(np.float32), None)
        np.testing.assert_array_equal(out, 40)


def test_gradients_come_through(rng):
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(rng.standard_normal((600, 2))).requires_grad_()
    (ours,) = torch.autograd.grad(kernel_matvec(x, None).sum(), x)
    square = (x[:, None] - x[None]).square().sum(-1)
    (wanted,) = torch.autograd.grad((-square / 2).exp().sum(), x)
    torch.testing.assert_close(ours, wanted, rtol=1e-9, atol=1e-9)


def test_sums_of_distances(rng):
    x, v = points(rng, 900, 2, 1, np.float64)
    wanted = matrix(x, x, "distance") @ v
    np.testing.assert_allclose(kernel_matvec(x, None, v, kernel="distance"), wanted, atol=1e-11)
