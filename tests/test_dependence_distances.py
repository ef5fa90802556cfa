"""Distance covariance, HSIC, permutation tests: definitions, invariants, memory, refusals."""

import numpy as np
import pytest
from subspan.dependence import (
    distance_correlation,
    distance_covariance,
    hsic,
    independence_test,
    kernel_bandwidth,
)
from subspan.errors import DtypeError, InvalidArgumentError, UnsupportedError


def distances(x):
    x = np.asarray(x, np.float64).reshape(len(x), -1)
    return np.sqrt(np.square(x[:, None] - x).sum(-1))


def double_centred(a):
    return a - a.mean(0) - a.mean(1)[:, None] + a.mean()


def u_centred(a):
    n = len(a)
    out = a - a.sum(0) / (n - 2) - a.sum(1)[:, None] / (n - 2) + a.sum() / ((n - 1) * (n - 2))
    np.fill_diagonal(out, 0)
    return out


def covariance(a, b, *, unbiased):
    """Return the squared statistic from whole matrices, by its definition."""
    n = len(a)
    if unbiased:
        return (u_centred(a) * u_centred(b)).sum() / (n * (n - 3))
    return (double_centred(a) * double_centred(b)).mean()


def samples(rng, n, p, q, dtype=np.float64):
    x = rng.standard_normal((n, p))
    y = np.sin(x[:, :1] * rng.standard_normal((1, q))) + 0.5 * rng.standard_normal((n, q))
    return x.astype(dtype), y.astype(dtype)


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("exponent", [0.3, 1.0, 1.7, 2.0])
@pytest.mark.parametrize(("n", "p", "q"), [(4, 1, 1), (57, 1, 1), (200, 3, 1), (130, 12, 20)])
def test_the_definition_by_double_centring(n, p, q, exponent, unbiased, rng):
    x, y = samples(rng, n, p, q)
    a, b = distances(x) ** exponent, distances(y) ** exponent
    own = [covariance(k, k, unbiased=unbiased) for k in (a, b)]
    square = covariance(a, b, unbiased=unbiased)
    size = a.mean() * b.mean()
    options = {"exponent": exponent, "unbiased": unbiased}
    found = distance_covariance(x, y, **options)
    assert isinstance(found, float)
    assert abs((found if unbiased else found**2) - square) <= 1e-12 * size
    ratio = distance_correlation(x, y, **options)
    wanted = square / np.sqrt(own[0] * own[1])
    assert abs((ratio if unbiased else ratio**2) - wanted) <= 1e-11


def test_float32_samples(rng):
    for p, q in ((1, 1), (3, 2), (16, 16)):
        x, y = samples(rng, 600, p, q, np.float32)
        wanted = distance_correlation(x.astype(float), y.astype(float))
        assert abs(distance_correlation(x, y) - wanted) < 1e-6
        shifted = distance_correlation(x + np.float32(128), y)
        assert abs(shifted - wanted) < 2e-5  # the rows themselves were rounded


def test_known_values():
    """Two points: V^2 = |a| |b| / 4. A line with itself: 1."""
    assert np.isclose(distance_covariance(np.array([0.0, 3.0]), np.array([1.0, 5.0])) ** 2, 3.0)
    x = np.linspace(0, 1, 9)
    assert np.isclose(distance_correlation(x, 7 - 2 * x), 1, rtol=1e-14)
    assert np.isclose(distance_correlation(x, 7 - 2 * x, unbiased=True), 1, rtol=1e-13)


def test_motions_and_scales_change_nothing(rng):
    x, y = samples(rng, 80, 4, 3)
    rotation, _ = np.linalg.qr(rng.standard_normal((4, 4)))
    wanted = distance_correlation(x, y)
    for factor in (1e-200, 1e-30, 1.0, 1e30, 1e200):
        moved = (x @ rotation + 3) * factor
        assert np.isclose(distance_correlation(moved, y), wanted, rtol=1e-12)
    order = rng.permutation(80)
    assert np.isclose(distance_correlation(x[order], y[order]), wanted, rtol=1e-12)
    assert np.isclose(distance_correlation(y, x), wanted, rtol=1e-13)
    assert np.isclose(distance_covariance(4 * x, y), 2 * distance_covariance(x, y), rtol=1e-12)
    huge = distance_covariance(x * 1e250, y * 1e250, exponent=0.9)
    assert np.isclose(huge / 1e225, distance_covariance(x, y, exponent=0.9), rtol=1e-12)
    far = (x.astype(np.float32) * np.float32(1e30), y.astype(np.float32))
    assert np.isclose(distance_correlation(*far), wanted, rtol=1e-5)


def test_affine_maps_change_nothing(rng):
    x, y = samples(rng, 90, 3, 2)
    mapped = x @ rng.standard_normal((3, 3)) + 10
    wanted = distance_correlation(x, y, affine_invariant=True)
    assert np.isclose(distance_correlation(mapped, y, affine_invariant=True), wanted, rtol=1e-10)
    wide = np.c_[x, x[:, 0] + x[:, 1]]  # of rank 3
    assert np.isclose(distance_correlation(wide, y, affine_invariant=True), wanted, rtol=1e-10)
    white = [np.linalg.inv(np.linalg.cholesky(np.cov(a.T))) @ a.T for a in (x, y)]
    square = covariance(*(distances(a.T) for a in white), unbiased=False)
    found = distance_covariance(x, y, affine_invariant=True)
    assert np.isclose(found**2, square, rtol=1e-11)


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("affine_invariant", [False, True])
def test_what_is_constant_has_no_correlation(unbiased, affine_invariant, rng):
    options = {"unbiased": unbiased, "affine_invariant": affine_invariant}
    y = rng.standard_normal((20, 2))
    for x in (np.full((20, 1), 0.1), np.full((20, 5), 1e8), np.zeros((20, 0))):
        for dtype in (np.float32, np.float64):
            pair = x.astype(dtype), y.astype(dtype)
            assert distance_correlation(*pair, **options) == 0
            assert distance_correlation(*pair[::-1], **options) == 0
            assert distance_covariance(*pair, **options) == 0
    assert independence_test(x, y, n_permutations=9).p_value == 1


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("kernel", ["gaussian", "laplacian", "cauchy"])
def test_hsic_is_the_trace(kernel, unbiased, rng):
    x, y = samples(rng, 75, 4, 2)
    widths = 1.3, 0.7
    function = {
        "gaussian": lambda d: np.exp(-(d**2) / 2),
        "laplacian": lambda d: np.exp(-d),
        "cauchy": lambda d: 1 / (1 + d**2),
    }[kernel]
    k, l_ = (function(distances(a) / b) for a, b in zip((x, y), widths, strict=True))
    if unbiased:
        np.fill_diagonal(k, 0), np.fill_diagonal(l_, 0)
        n, one = len(k), np.ones(len(k))
        inner = np.trace(k @ l_) + k.sum() * l_.sum() / ((n - 1) * (n - 2))
        wanted = (inner - 2 / (n - 2) * one @ k @ l_ @ one) / (n * (n - 3))
    else:
        wanted = (double_centred(k) * double_centred(l_)).mean()
    found = hsic(x, y, kernel=kernel, bandwidth=widths, unbiased=unbiased)
    assert abs(found - wanted) < 1e-14
    close = hsic(
        x.astype(np.float32), y.astype(np.float32), kernel=kernel, bandwidth=widths,
        unbiased=unbiased,
    )  # fmt: skip
    assert abs(close - wanted) < 1e-7


def test_distance_covariance_is_hsic_of_distances(rng):
    """With k = |x| + |x'| - |x - x'|, a constant to centring, V^2 = 4 HSIC / 4."""
    x, y = samples(rng, 40, 2, 2)
    kernels = [
        np.linalg.norm(a, axis=1)[:, None] + np.linalg.norm(a, axis=1) - distances(a)
        for a in (x, y)
    ]
    wanted = (double_centred(kernels[0]) * double_centred(kernels[1])).mean()
    assert np.isclose(distance_covariance(x, y) ** 2, wanted, rtol=1e-12)


@pytest.mark.parametrize("measure", ["distance", "hsic"])
@pytest.mark.parametrize(("p", "q"), [(1, 1), (5, 1), (1, 5), (3, 3)])
def test_permutations_are_permutations(measure, p, q, rng):
    """The null is that of the statistic itself, of y in those orders."""
    x, y = samples(rng, 50, p, q)
    found = independence_test(x, y, measure=measure, n_permutations=40, seed=3)
    orders = np.random.default_rng(3)
    function = distance_correlation if measure == "distance" else hsic
    wanted = np.array([function(x, y[orders.permutation(50)]) for _ in range(40)])
    np.testing.assert_allclose(np.sort(found.null), np.sort(wanted), rtol=1e-9)
    assert np.isclose(found.statistic, function(x, y), rtol=1e-12)
    assert found.p_value == (1 + (wanted >= found.statistic).sum()) / 41


@pytest.mark.parametrize("measure", ["distance", "hsic"])
def test_the_null_keeps_its_level_and_dependence_is_found(measure):
    """Of 120 independent pairs about a tenth have p <= 0.1; of a circle none is above 0.05."""
    rng = np.random.default_rng(5)
    values = []
    for seed in range(120):
        x, y = rng.standard_normal((2, 20))
        found = independence_test(x, y, measure=measure, n_permutations=19, seed=seed)
        values.append(found.p_value)
    share = np.mean(np.array(values) <= 0.1 + 1e-12)
    assert abs(share - 0.1) < 4 * np.sqrt(0.09 / 120)
    angle = rng.uniform(0, 2 * np.pi, 400)
    circle = independence_test(np.cos(angle), np.sin(angle), measure=measure, n_permutations=99)
    assert circle.p_value == 0.01


def test_ties_count():
    """Of two values on either side many orders give the same: they are as large."""
    x = np.array([0.0, 0.0, 1.0, 1.0])
    found = independence_test(x, x, n_permutations=400)
    assert abs(found.p_value - 1 / 3) < 0.1  # 8 of 24 orders
    for columns in (1, 2):
        wide = np.repeat(x[:, None], columns, axis=1).astype(np.float32)
        assert abs(independence_test(wide, wide, n_permutations=400).p_value - 1 / 3) < 0.1


def test_libraries_are_read_in_place(library, rng):
    x, y = samples(rng, 30, 3, 2)
    ours = library.put(x), library.put(y)
    assert distance_correlation(*ours) == distance_correlation(x, y)
    assert hsic(*ours) == hsic(x, y)
    assert independence_test(*ours, n_permutations=5).statistic == distance_correlation(x, y)


@pytest.mark.parametrize("function", [distance_correlation, distance_covariance, hsic])
@pytest.mark.parametrize(
    ("x", "y", "options", "error", "text"),
    [
        (np.ones(5), np.ones(6), {}, InvalidArgumentError, "y must have 5 rows like x"),
        (np.ones(1), np.ones(1), {}, InvalidArgumentError, "at least 2 rows"),
        (np.ones(3), np.ones(3), {"unbiased": True}, InvalidArgumentError, "at least 4 rows"),
        (np.array([1, np.nan, 2]), np.ones(3), {}, InvalidArgumentError, "NaN in row 1"),
        (np.ones(3), np.array([[1.0], [2.0], [-np.inf]]), {}, InvalidArgumentError, "row 2, col"),
        (np.ones((3, 1, 1)), np.ones(3), {}, InvalidArgumentError, "(n, d) or (n,)"),
        (np.ones(3), np.ones(3, np.float32), {}, DtypeError, "y must be float64 like x"),
        (np.ones(3, int), np.ones(3), {}, DtypeError, "float32 or float64"),
        ([1.0, 2.0], np.ones(2), {}, DtypeError, "must be an array"),
        (np.ones(3), np.ones(3), {"unbiased": 1}, DtypeError, "unbiased must be a bool"),
    ],
)
def test_refusals(function, x, y, options, error, text):
    with pytest.raises(error, match=rf"^\[{function.__name__}\] ") as raised:
        function(x, y, **options)
    assert text in str(raised.value)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda x: distance_correlation(x, x, exponent=0.0), "exponent must be in (0, 2]"),
        (lambda x: distance_covariance(x, x, exponent=2.1), "exponent must be in"),
        (lambda x: hsic(x, x, kernel="linear"), "kernel must be one of"),
        (lambda x: hsic(x, x, bandwidth="wide"), "bandwidth must be one of 'median'"),
        (lambda x: hsic(x, x, bandwidth=0.0), "bandwidth must be > 0"),
        (lambda x: hsic(x, x, bandwidth=(1.0, 1.0, 1.0)), "a tuple of two"),
        (lambda x: independence_test(x, x, measure="cka"), "one of 'distance', 'hsic'"),
        (lambda x: independence_test(x, x, kernel="gaussian"), "among exponent, affine"),
        (lambda x: independence_test(x, x, n_permutations=0), "n_permutations must be"),
        (lambda x: independence_test(x, x, seed=-1), "seed must be"),
        (lambda x: kernel_bandwidth(x, "wide"), "rule must be one of"),
    ],
)
def test_refusals_of_options(call, text):
    with pytest.raises(InvalidArgumentError) as raised:
        call(np.arange(9.0))
    assert text in str(raised.value)


def dense_torch(x, y, measure, exponent, unbiased):
    """Return the statistic from whole matrices, for autograd."""
    import torch

    def matrix(a):
        square = (a[:, None] - a).square().sum(-1) + 1e-300 * torch.eye(len(a), dtype=a.dtype)
        kept = square ** (exponent / 2) if measure != "hsic" else (-square / 2).exp()
        return kept - torch.diag(kept.diagonal()) if unbiased else kept

    def centre(a):
        n = len(a)
        if not unbiased:
            return a - a.mean(0) - a.mean(1)[:, None] + a.mean()
        sums = a.sum(0) / (n - 2)
        out = a - sums - sums[:, None] + a.sum() / ((n - 1) * (n - 2))
        return out - torch.diag(out.diagonal())

    a, b = centre(matrix(x)), centre(matrix(y))
    square = (a * b).sum()
    if measure == "correlation":
        square = square / ((a * a).sum() * (b * b).sum()).sqrt()
    else:
        square = square / (len(x) * (len(x) - 3) if unbiased else len(x) ** 2)
    return square if unbiased or measure == "hsic" else square.sqrt()


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize(("measure", "exponent"), [
    ("correlation", 1.0), ("correlation", 0.6), ("correlation", 2.0), ("covariance", 1.0),
    ("hsic", 1.0),
])  # fmt: skip
@pytest.mark.parametrize(("p", "q"), [(1, 1), (3, 12)])
def test_gradients_are_those_of_the_definition(p, q, measure, exponent, unbiased):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    x = torch.randn(45, p, dtype=torch.float64, requires_grad=True)
    y = (x.detach()[:, :1] ** 2 + torch.randn(45, q, dtype=torch.float64)).requires_grad_()
    function, options = {
        "correlation": (distance_correlation, {"exponent": exponent}),
        "covariance": (distance_covariance, {"exponent": exponent}),
        "hsic": (hsic, {"bandwidth": 1.0}),
    }[measure]
    ours = function(x, y, unbiased=unbiased, **options)
    wanted = dense_torch(x, y, measure, exponent, unbiased)
    torch.testing.assert_close(ours, wanted, rtol=1e-10, atol=1e-12)
    found, expected = (torch.autograd.grad(value, (x, y)) for value in (ours, wanted))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-11)
    with torch.no_grad():
        assert isinstance(function(x, y, unbiased=unbiased, **options), float)
    only = function(x.detach(), y, unbiased=unbiased, **options)
    torch.testing.assert_close(torch.autograd.grad(only, y)[0], found[1])


def test_gradients_where_there_is_nothing():
    torch = pytest.importorskip("torch")
    x = torch.ones(9, 2, requires_grad=True)
    for function in (distance_correlation, distance_covariance):
        value = function(x, torch.randn(9, 1))
        value.backward()
        assert float(value.detach()) == 0
        assert not x.grad.any()
    with pytest.raises(UnsupportedError, match="must not require a gradient"):
        independence_test(x, x)


def test_dependence_is_trained_away(rng):
    """A loss on the distance correlation leaves a score without what it must not know."""
    torch = pytest.importorskip("torch")
    hidden = torch.from_numpy(rng.standard_normal((150, 1)))
    rows = torch.cat([hidden + 0.1 * torch.randn(150, 1), torch.randn(150, 1)], 1)
    weights = torch.tensor([[1.0], [0.3]], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([weights], lr=0.05)
    before = distance_correlation(rows @ weights.detach(), hidden)
    for _ in range(40):
        optimizer.zero_grad()
        score = rows @ weights
        distance_correlation(score / score.std(), hidden).backward()
        optimizer.step()
    after = distance_correlation(rows @ weights.detach(), hidden)
    assert before > 0.9
    assert after < 0.25


def test_bandwidth_rules(rng):
    x = rng.standard_normal((300, 3)) * 2
    off = distances(x)[np.triu_indices(300, 1)]
    assert np.isclose(kernel_bandwidth(x), np.median(off))
    assert np.isclose(kernel_bandwidth(x, "cs_ib"), 10 * np.median(off**2))
    sigma = np.sqrt(x.var(0).mean())
    assert np.isclose(kernel_bandwidth(x, "scott"), sigma * 300 ** (-1 / 7))
    assert np.isclose(kernel_bandwidth(x, "silverman"), sigma * (4 / 5 / 300) ** (1 / 7))
    labels = np.repeat([0.0, 1.0], [90, 10])
    assert kernel_bandwidth(labels) == 1  # most distances are 0
    assert kernel_bandwidth(np.full(5, 7.0)) == 1
    many = rng.standard_normal((5000, 2))
    assert np.isclose(kernel_bandwidth(many), np.median(distances(many[:1500])), rtol=0.05)


MEMORY = """
import resource
import numpy as np
from subspan.dependence import distance_correlation
x = np.sin(np.arange({n} * {d}, dtype=np.float32) ** 1.5).reshape({n}, {d})
y = np.square(x[:, ::-1]) + 1
distance_correlation(x[:200], y[:200])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert 0 < distance_correlation(x, y) < 1
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.parametrize(("n", "d"), [(200_000, 1), (25_000, 16)])
def test_memory_grows_with_the_rows_alone(n, d, run_python):
    """One matrix of distances would take 160 GB, or 2.5 GB."""
    assert float(run_python(MEMORY.format(n=n, d=d)).stdout) < 100
