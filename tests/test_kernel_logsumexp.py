"""kernel_logsumexp: its definition, also where every term underflows, gradients, and refusals."""

import numpy as np
import pytest
from kernel_oracle import matrix
from scipy.special import logsumexp
from subspan import kernel_logsumexp, kernel_matvec
from subspan.errors import DtypeError, InvalidArgumentError

KERNELS = (
    *("gaussian", "laplacian", "matern12", "matern32", "matern52", "cauchy"),
    *("rational_quadratic", "exp_dot"),
)
DTYPES = (np.float32, np.float64)
OPTIONS = {"rational_quadratic": {"alpha": 0.7}}


def log_matrix(x, y, kernel, bandwidth=1.0, alpha=1.0):
    """Logarithms of kernel values in float64 that do not underflow."""
    x, y = (np.asarray(a, np.float64) / bandwidth for a in (x, y))
    if kernel == "exp_dot":
        return x @ (y * bandwidth).T
    square = ((x[:, None] - y) ** 2).sum(-1)
    d = np.sqrt(square)
    t3, t5 = np.sqrt(3) * d, np.sqrt(5) * d
    return {
        "gaussian": -square / 2,
        "laplacian": -d,
        "matern12": -d,
        "matern32": np.log1p(t3) - t3,
        "matern52": np.log1p(t5 + t5**2 / 3) - t5,
        "cauchy": -np.log1p(square),
        "rational_quadratic": -alpha * np.log1p(square / (2 * alpha)),
    }[kernel]


def definition(x, y, v, kernel, **options):
    k = log_matrix(x, y, kernel, **options)[:, :, None]
    with np.errstate(divide="ignore"):
        return logsumexp(k + np.log(np.asarray(v, np.float64)), axis=1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_definition(kernel, dtype, rng):
    options = OPTIONS.get(kernel, {})
    for n, m, d, e in ((1, 1, 1, 1), (33, 129, 3, 2), (260, 1030, 2, 1), (40, 200, 30, 1)):
        x, y = (rng.standard_normal((k, d)).astype(dtype) / d**0.5 for k in (n, m))
        v = rng.uniform(size=(m, e)).astype(dtype)
        out = kernel_logsumexp(x, y, v, kernel=kernel, bandwidth=0.6, **options)
        assert out.dtype == dtype
        assert out.shape == (n, e)
        wanted = definition(x, y, v, kernel, bandwidth=0.6, **options)
        error = np.abs(out - wanted) / (1 + np.abs(wanted))
        assert error.max() <= 8 * np.finfo(dtype).eps


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_far_points_do_not_underflow(kernel, dtype, rng):
    """Exponents of thousands, where the sum itself is 0 or infinite."""
    for d in (2, 20):
        x = rng.standard_normal((50, d)).astype(dtype)
        y = (rng.standard_normal((300, d)) + 400).astype(dtype)
        v = rng.uniform(size=(300, 1)).astype(dtype)
        out = kernel_logsumexp(x, y, v, kernel=kernel)
        wanted = definition(x, y, v, kernel)
        np.testing.assert_allclose(out, wanted, rtol=20 * np.finfo(dtype).eps, atol=1e-4)
        if kernel == "gaussian":
            assert (kernel_matvec(x, y, v) == 0).all()
            assert (out < -1e5).all()


def test_it_is_the_logarithm_of_the_product(rng):
    x, y = rng.standard_normal((70, 3)), rng.standard_normal((150, 3))
    np.testing.assert_allclose(kernel_logsumexp(x, y), np.log(kernel_matvec(x, y)), rtol=1e-13)
    np.testing.assert_allclose(
        kernel_logsumexp(x, None), np.log(matrix(x, x, "gaussian").sum(1)), atol=1e-13
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_of_zero_do_not_count(dtype, rng):
    x, y = (rng.standard_normal((k, 3)).astype(dtype) for k in (40, 200))
    v = rng.uniform(size=200).astype(dtype)
    v[rng.choice(200, 120, replace=False)] = 0
    out = kernel_logsumexp(x, y, v, kernel="laplacian")
    alone = kernel_logsumexp(x, y[v > 0], v[v > 0], kernel="laplacian")
    np.testing.assert_allclose(out, alone, rtol=0, atol=10 * np.finfo(dtype).eps)
    np.testing.assert_array_equal(kernel_logsumexp(x, y, 0 * v), -np.inf)
    near = np.concatenate([x[:1], x[:1] + 100])  # the nearest has no weight
    out = kernel_logsumexp(x[:1], near, np.array([0, 1], dtype))
    np.testing.assert_allclose(out, -15000, rtol=1e-5)


@pytest.mark.parametrize("d", [3, 20])
def test_bits_do_not_depend_on_threads_rows_and_batch(d, rng, threads):
    x, y = (rng.standard_normal((k, d)).astype(np.float32) for k in (300, 2500))
    v = rng.uniform(size=(2500, 2)).astype(np.float32)
    threads(1)
    whole = kernel_logsumexp(x, y, v)
    threads(3)
    np.testing.assert_array_equal(kernel_logsumexp(x, y, v), whole)
    np.testing.assert_array_equal(kernel_logsumexp(x[5:9], y, v[:, 1]), whole[5:9, 1])
    batch = kernel_logsumexp(x.reshape(10, 30, d), y, v[None])
    np.testing.assert_array_equal(batch.reshape(300, 2), whole)


def test_nothing_to_sum_and_not_a_number(rng):
    x, y = rng.standard_normal((5, 2)), rng.standard_normal((7, 2))
    np.testing.assert_array_equal(kernel_logsumexp(x, y[:0]), -np.inf)
    assert kernel_logsumexp(x[:0], y).shape == (0,)
    assert kernel_logsumexp(x, y, np.ones((7, 0))).shape == (5, 0)
    np.testing.assert_allclose(kernel_logsumexp(x, y, bandwidth=np.inf), np.log(7))
    bad = x.copy()
    bad[2, 0] = np.nan
    for kernel in KERNELS:
        good, out = (kernel_logsumexp(a, y, kernel=kernel) for a in (x, bad))
        np.testing.assert_array_equal(np.isnan(out), np.arange(5) == 2)
        np.testing.assert_array_equal(np.delete(out, 2), np.delete(good, 2))
        assert np.isnan(kernel_logsumexp(x, bad, kernel=kernel)).all()
    weights = np.ones(7)
    weights[3] = np.nan
    assert np.isnan(kernel_logsumexp(x, y, weights)).all()


def test_ranges(rng):
    x, y = rng.standard_normal((30, 2)), rng.standard_normal((50, 2))
    ranges = ([0, 8, 30], [0, 13, 29, 50], [0, 0, 2], [0, 2])
    kept = np.r_[0:13, 29:50]
    out = kernel_logsumexp(x, y, ranges=ranges)
    np.testing.assert_array_equal(out[:8], -np.inf)
    np.testing.assert_allclose(out[8:], kernel_logsumexp(x[8:], y[kept]), rtol=1e-14)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("ranges", [None, ([0, 4, 9], [0, 3, 11], [0, 1, 3], [1, 0, 1])])
def test_gradients_are_those_of_the_dense_logarithm(kernel, ranges):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    x, y = (torch.randn(k, 3, dtype=torch.float64) for k in (9, 11))
    v = torch.rand(11, 2, dtype=torch.float64) + 0.1
    v[4, 0] = 0
    width = torch.rand(3, dtype=torch.float64) + 0.5
    tensors = [a.requires_grad_() for a in (x, y, v, width)]
    ours = kernel_logsumexp(x, y, v, kernel=kernel, bandwidth=width, ranges=ranges)
    square = ((x[:, None] - y[None]) / width).square().sum(-1)
    t3, t5 = 3**0.5 * square.sqrt(), 5**0.5 * square.sqrt()
    k = {
        "gaussian": lambda: -square / 2,
        "laplacian": lambda: -square.sqrt(),
        "matern12": lambda: -square.sqrt(),
        "matern32": lambda: t3.log1p() - t3,
        "matern52": lambda: (t5 + t5**2 / 3).log1p() - t5,
        "cauchy": lambda: -square.log1p(),
        "rational_quadratic": lambda: -(square / 2).log1p(),
        "exp_dot": lambda: (x / width) @ y.mT,
    }[kernel]()
    if ranges is not None:
        outside = torch.zeros(9, 11, dtype=torch.bool)
        outside[:4, :3] = True
        k = k.masked_fill(outside, -torch.inf)
    dense = (k.exp() @ v).log()
    torch.testing.assert_close(ours, dense)
    weight = torch.randn(9, 2, dtype=torch.float64)
    for got, wanted in zip(
        torch.autograd.grad((ours * weight).sum(), tensors),
        torch.autograd.grad((dense * weight).sum(), tensors),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-10)


def test_gradients_where_all_underflows():
    """The nearest point pulls alone: the gradient of -|x - y|^2 / 2."""
    torch = pytest.importorskip("torch")
    for dtype in (torch.float32, torch.float64):
        x = torch.tensor([[0.0, 0.0], [3.0, 0.0]], dtype=dtype, requires_grad=True)
        y = torch.tensor([[100.0, 0.0], [0.0, 300.0]], dtype=dtype, requires_grad=True)
        out = kernel_logsumexp(x, y)
        of_x, of_y = torch.autograd.grad(out.sum(), (x, y))
        torch.testing.assert_close(of_x, torch.tensor([[100.0, 0], [97, 0]], dtype=dtype))
        torch.testing.assert_close(of_y, torch.tensor([[-197.0, 0], [0, 0]], dtype=dtype))
    none = kernel_logsumexp(x, y, torch.zeros(2, dtype=dtype))
    (nothing,) = torch.autograd.grad(none.sum(), x)
    assert nothing.eq(0).all()


@pytest.mark.parametrize(
    ("change", "raised", "text"),
    [
        (
            {"kernel": "softmax"},
            InvalidArgumentError,
            r"kernel must be one of 'gaussian', .*exp_dot",
        ),
        ({"kernel": "linear"}, InvalidArgumentError, r"kernel must be one of 'gaussian'"),
        ({"v": -np.ones(3)}, InvalidArgumentError, r"v must be >= 0, got -1"),
        ({"bandwidth": 0.0}, InvalidArgumentError, r"bandwidth must be > 0, got 0\.0"),
        ({"alpha": 0.0}, InvalidArgumentError, r"alpha must be > 0, got 0"),
        ({"y": np.ones((3, 5))}, InvalidArgumentError, r"y must have 2 columns like x, got 5"),
        ({"v": np.ones(4)}, InvalidArgumentError, r"v must be \(\.\.\., m\) with m = 3"),
        ({"v": np.ones(3, np.float32)}, DtypeError, r"v must be float64 like x"),
        ({"x": np.ones(4)}, InvalidArgumentError, r"x must have 2 or more axes"),
        ({"x": [[1.0, 2.0]]}, DtypeError, r"x must be an array"),
    ],
)
def test_refusals(change, raised, text):
    arguments = {"x": np.ones((4, 2)), "y": np.ones((3, 2)), "v": np.ones(3), **change}
    with pytest.raises(raised, match=r"^\[kernel_logsumexp\] " + text) as caught:
        kernel_logsumexp(**arguments)
    assert "got" in str(caught.value)
