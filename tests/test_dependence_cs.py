"""Cauchy-Schwarz divergences and mutual information: naive formulas, gradients, far samples."""

import numpy as np
import pytest
from subspan.dependence import (
    conditional_cs_divergence,
    cs_divergence,
    cs_mutual_information,
    kernel_bandwidth,
)
from subspan.errors import DtypeError, InvalidArgumentError


def gaussian(x, y, width):
    square = np.square(x[:, None].astype(float) - y.astype(float)).sum(-1)
    return np.exp(-square / (2 * width**2))


def divergence(x, y, width):
    means = [gaussian(*pair, width).mean() for pair in ((x, x), (y, y), (x, y))]
    return np.log(means[0]) + np.log(means[1]) - 2 * np.log(means[2])


def information(x, y, widths):
    k, m = (gaussian(a, a, b) for a, b in zip((x, y), widths, strict=True))
    n = len(x)
    return (
        np.log((k * m).sum() / n**2)
        + np.log(k.sum() * m.sum() / n**4)
        - 2 * np.log(np.ones(n) @ k @ m @ np.ones(n) / n**3)
    )


def conditional(x, y, other, widths, denominator):
    k = gaussian(x, x, widths[0])
    below = k.sum(1) ** 2 if denominator == "squared_sum" else (k**2).sum(1)

    def term(a, b):
        return np.log(((k * gaussian(a, b, widths[1])).sum(1) / below).sum())

    return term(y, y) + term(other, other) - 2 * term(other, y)


@pytest.mark.parametrize(("dtype", "limit"), [(np.float64, 1e-10), (np.float32, 2e-6)])
@pytest.mark.parametrize(("n", "p", "q"), [(2, 1, 1), (60, 3, 2), (150, 20, 1)])
def test_naive_formulas(n, p, q, dtype, limit, rng):
    x = rng.standard_normal((n, p)).astype(dtype)
    y = (x[:, :1] + rng.standard_normal((n, q))).astype(dtype)
    z = (rng.standard_normal((n + 3, p)) + 0.5).astype(dtype)
    widths = (1.1 * p**0.5, 0.9)
    assert abs(cs_divergence(x, z, bandwidth=1.1 * p**0.5) - divergence(x, z, widths[0])) < limit
    found = cs_mutual_information(x, y, bandwidth=widths)
    assert abs(found - information(x, y, widths)) < limit
    ratio = cs_mutual_information(x, y, bandwidth=widths, normalized=True)
    own = information(x, x, widths[:1] * 2), information(y, y, widths[1:] * 2)
    assert abs(ratio - information(x, y, widths) / np.sqrt(own[0] * own[1])) < 100 * limit
    other = (y + 0.3 * rng.standard_normal((n, q))).astype(dtype)
    for denominator in ("squared_sum", "sum_of_squares"):
        got = conditional_cs_divergence(x, y, other, bandwidth=widths, denominator=denominator)
        assert isinstance(got, float)
        assert abs(got - conditional(x, y, other, widths, denominator)) < limit


def test_rules_are_resolved_as_documented(rng):
    x, y = rng.standard_normal((40, 2)), rng.standard_normal((40, 2)) + 1
    pooled = kernel_bandwidth(np.r_[x, y])
    assert cs_divergence(x, y) == cs_divergence(x, y, bandwidth=pooled)
    widths = kernel_bandwidth(x, "scott"), kernel_bandwidth(y, "scott")
    wanted = cs_mutual_information(x, y, bandwidth=widths)
    assert cs_mutual_information(x, y, bandwidth="scott") == wanted
    mixed = conditional_cs_divergence(x, y, y + 1, bandwidth=(2.0, "median"))
    wanted = conditional_cs_divergence(x, y, y + 1, bandwidth=(2.0, kernel_bandwidth(y)))
    assert mixed == wanted


def test_facts(rng):
    x, y = rng.standard_normal((70, 2)), rng.standard_normal((50, 2)) + 1
    assert abs(cs_divergence(x, x)) < 1e-12
    assert abs(cs_divergence(x, y) - cs_divergence(y, x)) < 1e-12
    assert cs_divergence(x, y) > 0
    assert abs(cs_divergence(x + 100, y + 100) - cs_divergence(x, y)) < 1e-9
    assert abs(conditional_cs_divergence(x, x, x)) < 1e-12
    assert abs(cs_mutual_information(x, np.full(70, 3.0))) < 1e-12
    assert cs_mutual_information(x, np.full(70, 3.0), normalized=True) == 0
    assert abs(cs_mutual_information(x, 5 - x, normalized=True) - 1) < 1e-10


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_far_samples_keep_their_divergence(dtype):
    """Single points: D = |x - y|^2 / b^2, however far; clusters: nearly that of their nearest."""
    for gap in (1.0, 10.0, 30.0, 100.0, 1e4):
        x, y = np.zeros((1, 3), dtype), np.full((1, 3), gap, dtype)
        assert np.isclose(cs_divergence(x, y, bandwidth=1.0), 3 * gap**2, rtol=1e-5)
    x = np.array([[0.0], [1.0], [3.0]], dtype)
    y = x[:2] + dtype(500)
    logs = -np.square(x.astype(float) - y.T) / 2
    across = logs.max() + np.log(np.exp(logs - logs.max()).mean())
    own = (np.log(gaussian(a, a, 1.0).mean()) for a in (x, y))
    wanted = sum(own) - 2 * across
    assert np.isclose(cs_divergence(x, y, bandwidth=1.0), wanted, rtol=1e-6)
    t = np.arange(9, dtype=dtype)
    near = conditional_cs_divergence(t, t, t + dtype(70), bandwidth=1.0)
    far = conditional_cs_divergence(t, t, t + dtype(700), bandwidth=1.0)
    assert np.isfinite([near, far]).all()
    assert far > 90 * near > 0


def torch_reference(kind, x, y, z):
    def gram(a, b, width):
        return (-(a[:, None] - b).square().sum(-1) / (2 * width**2)).exp()

    k, m, other = gram(x, x, 1.2), gram(y, y, 0.8), gram(z, z, 0.8)
    n = len(x)
    if kind == "divergence":
        cross = gram(y, z, 0.8).mean().log()
        return m.mean().log() + other.mean().log() - 2 * cross
    if kind == "information":
        sums = k.sum(1), m.sum(1)
        return (
            (k * m).mean().log() + k.mean().log() + m.mean().log()
            - 2 * (sums[0] @ sums[1] / n**3).log()
        )  # fmt: skip
    below = k.sum(1).square()
    terms = [((k * one).sum(1) / below).sum().log() for one in (m, other, gram(z, y, 0.8))]
    return terms[0] + terms[1] - 2 * terms[2]


@pytest.mark.parametrize("kind", ["divergence", "information", "conditional"])
def test_gradients_are_those_of_the_dense_formulas(kind):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    x, y, z = (torch.randn(40, d, dtype=torch.float64, requires_grad=True) for d in (3, 2, 2))
    call = {
        "divergence": lambda: cs_divergence(y, z, bandwidth=0.8),
        "information": lambda: cs_mutual_information(x, y, bandwidth=(1.2, 0.8)),
        "conditional": lambda: conditional_cs_divergence(x, y, z, bandwidth=(1.2, 0.8)),
    }[kind]
    ours, wanted = call(), torch_reference(kind, x, y, z)
    torch.testing.assert_close(ours, wanted, rtol=1e-11, atol=1e-12)
    sides = {"divergence": (y, z), "information": (x, y), "conditional": (x, y, z)}[kind]
    for got, expected in zip(
        torch.autograd.grad(ours, sides), torch.autograd.grad(wanted, sides), strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def test_far_predictions_have_gradients():
    """Where all of the cross term underflows: d/dy |x - y|^2 = 2 (y - x)."""
    torch = pytest.importorskip("torch")
    for dtype in (torch.float32, torch.float64):
        x = torch.zeros(1, 1, dtype=dtype)
        y = torch.full((1, 1), 200.0, dtype=dtype, requires_grad=True)
        cs_divergence(x, y, bandwidth=1.0).backward()
        torch.testing.assert_close(y.grad, torch.full((1, 1), 400.0, dtype=dtype))
        t = torch.arange(6, dtype=dtype)
        moved = (t + 300).requires_grad_()
        conditional_cs_divergence(t, t, moved, bandwidth=1.0).backward()
        assert torch.isfinite(moved.grad).all()
        assert moved.grad.sum() > 0


def test_a_loss_is_trained(rng):
    """Predictions of x^2 by three numbers, from the conditional divergence alone."""
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(rng.uniform(-1, 1, (80, 1)))
    y = x**2 + 0.05 * torch.from_numpy(rng.standard_normal((80, 1)))
    weights = torch.zeros(3, 1, dtype=torch.float64, requires_grad=True)
    features = torch.cat([torch.ones_like(x), x, x**2], 1)
    optimizer = torch.optim.Adam([weights], lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        conditional_cs_divergence(x, y, features @ weights, bandwidth=0.3).backward()
        optimizer.step()
    assert float((features @ weights.detach() - y).square().mean()) < 0.01


def test_libraries(library, rng):
    x, y = rng.standard_normal((2, 20, 2))
    ours = library.put(x), library.put(y)
    for function in (cs_divergence, cs_mutual_information):
        assert np.isclose(float(function(*ours)), function(x, y), rtol=1e-14)


X = np.ones((5, 2))


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: cs_divergence(X, X[:, :1]), InvalidArgumentError, "y must have 2 columns"),
        (lambda: cs_divergence(X, X[:0]), InvalidArgumentError, "at least 1 rows"),
        (lambda: cs_divergence(X, X * np.nan), InvalidArgumentError, "y must be finite, got NaN"),
        (lambda: cs_divergence(X, X, bandwidth=-1.0), InvalidArgumentError, "bandwidth must be >"),
        (lambda: cs_divergence(X, X, bandwidth="x"), InvalidArgumentError, "one of 'median'"),
        (lambda: cs_divergence(X, X.astype(np.float32)), DtypeError, "float64 like x"),
        (lambda: cs_mutual_information(X, X[:4]), InvalidArgumentError, "y must have 5 rows"),
        (lambda: cs_mutual_information(X[:1], X[:1]), InvalidArgumentError, "at least 2 rows"),
        (lambda: cs_mutual_information(X, X, bandwidth=(1.0,)), InvalidArgumentError, "two"),
        (lambda: cs_mutual_information(X, X, normalized=1), DtypeError, "normalized must be a"),
        (lambda: conditional_cs_divergence(X, X, X[:, :1]), InvalidArgumentError, "y_hat must"),
        (lambda: conditional_cs_divergence(X, X, X[:4]), InvalidArgumentError, "y_hat must have 5"),
        (
            lambda: conditional_cs_divergence(X, X, X, denominator="eq18"),
            InvalidArgumentError,
            "denominator must be one of",
        ),
    ],
)
def test_refusals(call, error, text):
    with pytest.raises(error) as raised:
        call()
    assert text in str(raised.value)
