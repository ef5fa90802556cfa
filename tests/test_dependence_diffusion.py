"""Diffusion spectral entropy and mutual information: facts, dense references, intervals."""

import numpy as np
import pytest
from subspan.dependence import (
    diffusion_spectral_entropy,
    diffusion_spectral_mutual_information,
    kernel_bandwidth,
)
from subspan.errors import DtypeError, InvalidArgumentError, UnsupportedError


def reference(x, width, t=1.0, convention="reference"):
    x = np.asarray(x, np.float64)
    matrix = np.exp(-np.square(x[:, None] - x).sum(-1) / (2 * width**2))
    for _ in range(1 if convention == "reference" else 2):
        matrix = matrix / np.sqrt(np.outer(matrix.sum(1), matrix.sum(1)))
    powers = np.abs(np.linalg.eigvalsh(matrix)) ** t
    shares = powers / powers.sum()
    shares = shares[shares > 1e-15]
    return -(shares * np.log2(shares)).sum()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("convention", ["reference", "markov"])
@pytest.mark.parametrize("t", [1.0, 2.0, 5.0])
def test_all_eigenvalues(t, convention, dtype, rng):
    x = rng.standard_normal((130, 3)).astype(dtype)
    found = diffusion_spectral_entropy(x, bandwidth=0.8, t=t, convention=convention)
    assert abs(found.value - reference(x, 0.8, t, convention)) < 1e-9
    assert found.low == found.value == found.high


def test_the_conventions_differ(rng):
    x = rng.standard_normal((60, 5))
    values = [
        diffusion_spectral_entropy(x, bandwidth="median", convention=name).value
        for name in ("reference", "markov")
    ]
    assert abs(values[0] - values[1]) > 0.005


@pytest.mark.parametrize("method", ["exact", "lanczos"])
@pytest.mark.parametrize("convention", ["reference", "markov"])
def test_facts(method, convention, rng):
    """All equal: 0. Far from each other: log2 n. r groups of equal rows: log2 r."""
    options = {"method": method, "convention": convention}
    same = diffusion_spectral_entropy(np.full((40, 3), 2.5), **options)
    assert same.value < 1e-6
    x = rng.standard_normal((40, 3))
    apart = diffusion_spectral_entropy(x, bandwidth=1e-3, **options)
    assert np.isclose(apart.value, np.log2(40))
    groups = np.repeat(100 * np.eye(5), 8, axis=0)
    assert np.isclose(diffusion_spectral_entropy(groups, bandwidth=1.0, **options).value,
                      np.log2(5), atol=1e-6 if method == "exact" else 0.02)  # fmt: skip
    order = rng.permutation(40)
    one, other = (diffusion_spectral_entropy(a, bandwidth=1.0).value for a in (x, x[order]))
    assert abs(one - other) < 1e-10


@pytest.mark.parametrize(
    ("t", "convention"), [(1.0, "reference"), (1.0, "markov"), (2.0, "markov")]
)
def test_intervals_hold_the_value(t, convention, rng):
    """95 % of them should: of 10, fewer than 3 must miss."""
    x = rng.standard_normal((120, 2))
    wanted = reference(x, 0.3, t, convention)
    missed, widths = 0, []
    for seed in range(10):
        found = diffusion_spectral_entropy(
            x, bandwidth=0.3, t=t, convention=convention, method="lanczos", n_steps=32, seed=seed
        )
        assert found.low <= found.value <= found.high
        missed += not found.low <= wanted <= found.high
        widths.append(found.high - found.low)
    assert missed < 3
    assert np.median(widths) < 0.3


def test_more_probes_are_narrower(rng):
    x = rng.standard_normal((250, 3))
    widths = []
    for n_probes in (8, 128):
        found = diffusion_spectral_entropy(
            x, bandwidth=0.5, method="lanczos", n_probes=n_probes, seed=1
        )
        widths.append(found.high - found.low)
    assert widths[1] < widths[0] / 2


def test_seeds_decide(rng, threads):
    x = rng.standard_normal((200, 2))
    first = diffusion_spectral_entropy(x, bandwidth=1.0, method="lanczos", seed=4)
    threads(1)
    assert diffusion_spectral_entropy(x, bandwidth=1.0, method="lanczos", seed=4) == first
    assert diffusion_spectral_entropy(x, bandwidth=1.0, method="lanczos", seed=5) != first


def test_float16_eigenvalues_have_another_entropy(rng):
    """Why eigenvalues are not kept in half precision: many are below its least number."""
    x = rng.standard_normal((200, 3))
    matrix = np.exp(-np.square(x[:, None] - x).sum(-1) / 2)
    matrix /= np.sqrt(np.outer(matrix.sum(1), matrix.sum(1)))
    values = np.abs(np.linalg.eigvalsh(matrix)).astype(np.float16).astype(np.float64)
    shares = values / values.sum()
    rounded = -(shares[shares > 0] * np.log2(shares[shares > 0])).sum()
    exact = diffusion_spectral_entropy(x, bandwidth=1.0).value
    assert 1e-6 < abs(rounded - exact) < 1e-2
    assert abs(exact - reference(x, 1.0)) < 1e-10


def test_labels_take_entropy_away(rng):
    """Clusters known by their labels: log2 of their number; random labels: nothing."""
    x = np.repeat(50 * np.eye(4), 60, axis=0) + 0.01 * rng.standard_normal((240, 4))
    labels = np.repeat(np.arange(4), 60)
    options = {"bandwidth": 1.0, "seed": 2}
    known = diffusion_spectral_mutual_information(x, labels, **options)
    assert abs(known - 2) < 0.05
    unknown = diffusion_spectral_mutual_information(x, rng.permutation(labels), **options)
    assert abs(unknown) < 0.05
    floats = diffusion_spectral_mutual_information(x, labels * 1.0, n_clusters=4, **options)
    assert floats == known
    bools = diffusion_spectral_mutual_information(x, labels > 1, **options)
    assert abs(bools - 1) < 0.05


def test_labels_of_several_columns_are_clustered(rng):
    pytest.importorskip("sklearn")
    x = np.repeat(50 * np.eye(3), 30, axis=0) + 0.01 * rng.standard_normal((90, 3))
    found = diffusion_spectral_mutual_information(x, x, n_clusters=3, bandwidth=1.0)
    assert abs(found - np.log2(3)) < 0.1


def test_rules_see_all_rows(rng):
    x, labels = rng.standard_normal((60, 2)), np.arange(60) % 3
    values = [
        diffusion_spectral_mutual_information(x, labels, bandwidth=width)
        for width in ("median", kernel_bandwidth(x))
    ]
    assert values[0] == values[1]


def test_libraries(library, rng):
    x, labels = rng.standard_normal((30, 2)), np.arange(30) % 2
    found = diffusion_spectral_entropy(library.put(x), bandwidth=1.0)
    assert found == diffusion_spectral_entropy(x, bandwidth=1.0)
    value = diffusion_spectral_mutual_information(
        library.put(x), library.put(labels), bandwidth=1.0
    )
    assert value == diffusion_spectral_mutual_information(x, labels, bandwidth=1.0)


X = np.ones((6, 2))


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"x": X[:1]}, InvalidArgumentError, "at least 2 rows"),
        ({"x": X * np.inf}, InvalidArgumentError, "finite, got infinity"),
        ({"x": X.astype(int)}, DtypeError, "float32 or float64"),
        ({"bandwidth": 0.0}, InvalidArgumentError, "bandwidth must be > 0"),
        ({"bandwidth": "mean"}, InvalidArgumentError, "bandwidth must be one of"),
        ({"t": 0.0}, InvalidArgumentError, "t must be > 0"),
        ({"convention": "paper"}, InvalidArgumentError, "'reference', 'markov'"),
        ({"method": "chebyshev"}, InvalidArgumentError, "method must be one of"),
        ({"n_probes": 1}, InvalidArgumentError, "n_probes must be >= 2"),
        ({"n_steps": 3}, InvalidArgumentError, "n_steps must be >= 4"),
        ({"seed": -1}, InvalidArgumentError, "seed must be >= 0"),
    ],
)
def test_refusals(change, error, text):
    for function, more in (
        (diffusion_spectral_entropy, {}),
        (diffusion_spectral_mutual_information, {"labels": np.zeros(6, int)}),
    ):
        with pytest.raises(error, match=rf"^\[{function.__name__}\] ") as raised:
            function(**({"x": X} | more | change))
        assert text in str(raised.value)


@pytest.mark.parametrize(
    ("labels", "error", "text"),
    [
        (np.zeros(5, int), InvalidArgumentError, "labels must be (6,)"),
        (np.zeros((6, 2), int), InvalidArgumentError, "where they are integers"),
        (np.array(["a"] * 6), DtypeError, "integers, bools or floats"),
        ([0] * 6, DtypeError, "labels must be an array"),
        (np.full(6, np.nan), InvalidArgumentError, "labels must be finite"),
    ],
)
def test_refusals_of_labels(labels, error, text):
    with pytest.raises(error) as raised:
        diffusion_spectral_mutual_information(X, labels)
    assert text in str(raised.value)


def test_gradients_are_not_lost_in_silence():
    torch = pytest.importorskip("torch")
    with pytest.raises(UnsupportedError, match="must not require a gradient"):
        diffusion_spectral_entropy(torch.ones(5, 2, requires_grad=True))
