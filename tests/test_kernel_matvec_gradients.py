"""Gradients of kernel_matvec against autograd through the dense matrix, and finite differences."""

import pytest

torch = pytest.importorskip("torch")

from kernel_oracle import KERNELS, product  # noqa: E402
from subspan import kernel_matvec  # noqa: E402

NAMES = [name for name in KERNELS if name != "matern12"]
OPTIONS = {
    "rational_quadratic": {"alpha": 0.7},
    "polynomial": {"degree": 3, "offset": 0.5},
}


def arguments(n, m, d, e, *, seed=0, batch=(), dtype=torch.float64):
    torch.manual_seed(seed)
    x = torch.randn(*batch, n, d, dtype=dtype) / d**0.5
    y = torch.randn(*batch, m, d, dtype=dtype) / d**0.5
    v = torch.randn(*batch, m, e, dtype=dtype)
    b = torch.rand(d, dtype=torch.float64) + 0.5
    return [a.requires_grad_() for a in (x, y, v, b)]


def gradients(function, tensors, weight):
    return torch.autograd.grad((function(*tensors) * weight).sum(), tensors)


@pytest.mark.parametrize("kernel", NAMES)
@pytest.mark.parametrize(("n", "m", "d", "e"), [(5, 7, 3, 1), (40, 150, 18, 5), (9, 1100, 2, 2)])
def test_gradients_are_those_of_the_dense_product(kernel, n, m, d, e):
    tensors = arguments(n, m, d, e)
    options = OPTIONS.get(kernel, {})
    weight = torch.randn(n, e, dtype=torch.float64)
    ours = gradients(
        lambda x, y, v, b: kernel_matvec(x, y, v, kernel=kernel, bandwidth=b, **options),
        tensors,
        weight,
    )
    dense = gradients(lambda x, y, v, b: product(x, y, v, kernel, b, **options), tensors, weight)
    for name, got, wanted in zip("xyvb", ours, dense, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-10, msg=f"{kernel}: {name}")


@pytest.mark.parametrize("kernel", NAMES)
def test_gradients_are_finite_differences(kernel):
    x, y, v, b = arguments(3, 4, 2, 2, seed=1)

    def run(x, y, v, b):
        return kernel_matvec(x, y, v, kernel=kernel, bandwidth=b)

    assert torch.autograd.gradcheck(run, (x, y, v, b), eps=1e-6, atol=1e-6, rtol=1e-5)
    scalar = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (x, y, v, scalar), eps=1e-6, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kernel", NAMES)
@pytest.mark.parametrize("d", [3, 30])
def test_gradients_in_float32(kernel, d):
    tensors = arguments(50, 200, d, 3, dtype=torch.float32)
    options = OPTIONS.get(kernel, {})
    weight = torch.randn(50, 3)
    ours = gradients(
        lambda x, y, v, b: kernel_matvec(x, y, v, kernel=kernel, bandwidth=b, **options),
        tensors,
        weight,
    )
    wide = [a.detach().double().requires_grad_() for a in tensors]
    dense = gradients(
        lambda x, y, v, b: product(x, y, v, kernel, b, **options), wide, weight.double()
    )
    for got, wanted in zip(ours, dense, strict=True):
        scale = wanted.abs().max()
        assert (got.double() - wanted).abs().max() <= 2e-5 * scale


@pytest.mark.parametrize("kernel", ["gaussian", "laplacian", "distance", "softmax"])
def test_a_set_and_itself(kernel):
    """Both uses of x count; at distance 0 the derivative is 0."""
    x = arguments(30, 1, 4, 1)[0]
    weight = torch.randn(30, 4, dtype=torch.float64)
    (got,) = torch.autograd.grad((kernel_matvec(x, None, x, kernel=kernel) * weight).sum(), x)
    off = ~torch.eye(30, dtype=torch.bool)
    square = (x[:, None] - x[None]).square().sum(-1)
    d = torch.where(off, square, 1).sqrt() * off
    k = {
        "gaussian": (-square / 2).exp,
        "laplacian": (-d).exp,
        "distance": lambda: d,
        "softmax": lambda: (x @ x.mT).softmax(-1),
    }[kernel]()
    (wanted,) = torch.autograd.grad((k @ x * weight).sum(), x)
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-11)


def test_batches_and_broadcasting():
    x, y, v, b = arguments(6, 8, 3, 2, batch=(4,))
    y = y[0].detach().requires_grad_()
    weight = torch.randn(4, 6, 2, dtype=torch.float64)
    ours = gradients(lambda x, y, v, b: kernel_matvec(x, y, v, bandwidth=b), [x, y, v, b], weight)
    dense = gradients(lambda x, y, v, b: product(x, y, v, "gaussian", b), [x, y, v, b], weight)
    for got, wanted in zip(ours, dense, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-11)


def test_only_what_is_wanted_is_made():
    x, y, v, b = (a.detach() for a in arguments(6, 8, 3, 2))
    for wanted in (x, y, v):
        wanted.requires_grad_()
        kernel_matvec(x, y, v, bandwidth=b, kernel="matern32").sum().backward()
        assert [a.grad is not None for a in (x, y, v)] == [a is wanted for a in (x, y, v)]
        wanted.grad = None
        wanted.requires_grad_(False)
    with torch.no_grad():
        assert not kernel_matvec(x.requires_grad_(), y, v).requires_grad


def test_gradients_of_nothing():
    x, y, v, b = arguments(4, 0, 3, 2)
    kernel_matvec(x, y, v, bandwidth=b).sum().backward()
    assert x.grad.eq(0).all()
    assert b.grad.eq(0).all()
    assert y.grad.shape == (0, 3)


def test_softmax_far_from_the_origin():
    """A common offset of y is one of the scores, which cancels; so it does in the gradients."""
    x, y, v, b = arguments(12, 40, 5, 2, dtype=torch.float32)
    weight = torch.randn(12, 2)
    grid = (y.detach() * 1024).round() / 1024 + 64
    moved = [x, grid.requires_grad_(), v, b]
    ours = gradients(
        lambda x, y, v, b: kernel_matvec(x, y, v, kernel="softmax", bandwidth=b), moved, weight
    )
    wide = [a.detach().double().requires_grad_() for a in moved]
    dense = gradients(lambda x, y, v, b: product(x, y, v, "softmax", b), wide, weight.double())
    for got, wanted in zip(ours[:3], dense[:3], strict=True):
        assert (got.double() - wanted).abs().max() <= 2e-5 * wanted.abs().max()
