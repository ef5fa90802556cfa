"""rescal, rescal_k: planted groups, errors that never rise, clusters, refusals."""

from itertools import permutations

import numpy as np
import pytest
from matrices import same_bits
from subspan.errors import DtypeError, InvalidArgumentError
from subspan.tensors import _rescal_clusters, rescal, rescal_k


def planted(seed, n=24, m=8, k=4, level=0.01):
    """Gaussian bumps for groups and uniform relations, the synthetic data of the paper's code."""
    rng = np.random.default_rng(seed)
    places = np.arange(n)[:, None]
    centres = (np.arange(k) + 0.5) * n / k
    a = np.exp(-0.5 * ((places - centres) / (0.35 * n / k)) ** 2)
    x = a @ rng.random((m, k, k)) @ a.T
    return x * (1 + level * rng.uniform(-1, 1, x.shape)), a


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_planted_groups_are_found(dtype):
    x, a = planted(0, level=0.0)
    result = rescal(x.astype(dtype), 4, n_starts=4, tol=1e-7)
    assert result.error < 0.02
    assert result.a.dtype == dtype
    np.testing.assert_allclose(np.linalg.norm(result.a, axis=0), 1, rtol=1e-5)
    assert (result.a >= 0).all()
    assert (result.r >= 0).all()
    near = (a / np.linalg.norm(a, axis=0)).T @ result.a
    assert near.max(axis=0).min() > 0.97
    fitted = result.a @ result.r @ result.a.T
    np.testing.assert_allclose(
        np.linalg.norm(x - fitted) / np.linalg.norm(x), result.error, atol=1e-3
    )


@pytest.mark.parametrize("shape", [(1, 9, 9), (6, 20, 20), (3, 5, 5)])
def test_errors_never_rise(shape, rng):
    x = rng.random(shape) * (rng.random(shape) < 0.4)
    seen = []
    result = rescal(
        x, 3, n_starts=5, tol=0, max_iter=150, progress=lambda n, e: seen.append((n, len(e)))
    )
    assert np.nanmax(np.diff(result.errors, axis=0)) <= 1e-12
    assert seen[-1] == (len(seen) - 1, 5)
    assert not np.isnan(result.errors[-1]).all()


def test_starts_do_not_depend_on_each_other():
    x, _ = planted(1)
    many, one = rescal(x, 3, n_starts=3, max_iter=40), rescal(x, 3, n_starts=1, max_iter=40)
    np.testing.assert_allclose(many.errors[:40, 0], one.errors[:, 0], rtol=1e-9)


def test_zeros_and_single_groups():
    assert rescal(np.zeros((2, 4, 4)), 2, max_iter=5).error == 0
    x = np.einsum("t,i,j->tij", [1.0, 2.0], [1.0, 3.0, 2.0], [1.0, 3.0, 2.0])
    assert rescal(x, 1).error < 1e-6


@pytest.mark.parametrize("k", [2, 5])
def test_assignment_is_the_cheapest(k, rng):
    for cost in [rng.standard_normal((k, k)) for _ in range(20)] + [np.zeros((k, k))]:
        found = _rescal_clusters.assignment(cost)
        best = min(sum(cost[i, p[i]] for i in range(k)) for p in permutations(range(k)))
        assert sorted(found) == list(range(k))
        assert cost[np.arange(k), found].sum() <= best + 1e-12


def test_clusters_undo_permutations(rng):
    base = np.linalg.qr(rng.standard_normal((9, 4)))[0]
    runs = np.stack([base[:, rng.permutation(4)] for _ in range(6)])
    orders, centre = _rescal_clusters.clusters(runs)
    matched = np.take_along_axis(runs, orders[:, None, :], axis=2)
    for other in matched:
        np.testing.assert_array_equal(other, matched[0])
    np.testing.assert_allclose(centre, matched[0], atol=1e-12)
    np.testing.assert_allclose(_rescal_clusters.silhouettes(matched), 1, atol=1e-6)


def test_silhouettes_are_those_of_sklearn(rng):
    metrics = pytest.importorskip("sklearn.metrics")
    runs = np.abs(rng.standard_normal((5, 7, 3)))
    runs /= np.linalg.norm(runs, axis=1, keepdims=True)
    flat = runs.transpose(0, 2, 1).reshape(15, 7)
    angles = np.arccos(np.clip(flat @ flat.T, -1, 1))
    np.fill_diagonal(angles, 0)
    theirs = metrics.silhouette_samples(angles, np.tile(np.arange(3), 5), metric="precomputed")
    ours = _rescal_clusters.silhouettes(runs)
    np.testing.assert_allclose(ours, theirs.reshape(5, 3).mean(axis=0), atol=1e-6)
    assert _rescal_clusters.silhouettes(runs[:, :, :1]).tolist() == [1.0]


def test_the_planted_number_of_groups_is_found():
    right = 0
    for seed in range(4):
        k = 3 + seed % 2
        x, _ = planted(seed, n=18, m=6, k=k)
        result = rescal_k(x, range(2, 6), perturbations=5, max_iter=400, tol=1e-5, seed=seed)
        right += result.k == k
        assert result.chosen.k == result.k
        assert result.chosen.a.shape == (18, result.k)
    assert right == 4


@pytest.mark.slow
def test_the_planted_number_in_18_of_20():
    right = 0
    for seed in range(20):
        k = 3 + seed % 4
        x, _ = planted(seed, n=32, m=10, k=k)
        right += rescal_k(x, range(2, 9), max_iter=1000, seed=seed).k == k
    assert right >= 18


def test_results_are_gone_on_with():
    x, _ = planted(2, n=12, m=4, k=2)
    options = {"perturbations": 3, "max_iter": 60}
    seen = []
    whole = rescal_k(x, [2, 3], **options)
    first = rescal_k(x, [2], **options)
    rest = rescal_k(x, [3], init=first, progress=lambda scan: seen.append(scan.k), **options)
    assert seen == [3]
    assert rest.k == whole.k
    for mine, theirs in zip(rest.scans, whole.scans, strict=True):
        same_bits((mine.a, theirs.a), (mine.run_errors, theirs.run_errors))


def test_libraries(library):
    x, _ = planted(3, n=8, m=3, k=2)
    result = rescal(library.put(x), 2, max_iter=20)
    assert library.owns(result.a)
    assert library.owns(result.r)
    scan = rescal_k(library.put(x), [2], perturbations=2, max_iter=5).chosen
    assert library.owns(scan.a)


X = np.ones((2, 4, 4))


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (lambda: rescal(np.ones((4, 4)), 2), InvalidArgumentError, "3 or more modes, got 2"),
        (lambda: rescal(np.ones((2, 4, 5)), 2), InvalidArgumentError, r"x must be \(m, n, n\)"),
        (lambda: rescal(-X, 2), InvalidArgumentError, "x must be nowhere negative, got -1"),
        (lambda: rescal(X * np.inf, 2), InvalidArgumentError, "x must be finite"),
        (lambda: rescal(X, 5), InvalidArgumentError, "k must be in 1..4, got 5"),
        (lambda: rescal(X, 2, n_starts=0), InvalidArgumentError, "n_starts must be >= 1"),
        (lambda: rescal(X.astype(int), 2), DtypeError, "float32 or float64"),
        (lambda: rescal_k(X, []), InvalidArgumentError, "ks must be one or more"),
        (lambda: rescal_k(X, [0]), InvalidArgumentError, "ks must be in 1..4, got 0"),
        (lambda: rescal_k(X, [2], perturbations=1), InvalidArgumentError, "perturbations must be"),
        (lambda: rescal_k(X, [2], noise=1.0), InvalidArgumentError, "noise must be in"),
        (lambda: rescal_k(X, [2], tol=-1), InvalidArgumentError, "tol must be in"),
        (lambda: rescal_k(X, [2], max_iter=0), InvalidArgumentError, "max_iter must be >= 1"),
    ],
)
def test_refused(call, kind, text):
    with pytest.raises(kind, match=text):
        call()
