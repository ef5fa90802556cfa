"""CCA, SVCCA, PWCCA, Procrustes and RSA against slow definitions and planted answers."""

import warnings

import numpy as np
import pytest
import similarity_oracle as slow
from subspan.similarity import cca, compare, procrustes, pwcca, rsa, svcca

scipy_stats = pytest.importorskip("scipy.stats")
SHAPES = [(60, 4, 4), (80, 9, 5), (90, 3, 30), (400, 70, 90)]


def pair(rng, n, d, e):
    hidden = rng.normal(size=(n, 3))
    x = hidden @ rng.normal(size=(3, d)) + rng.normal(size=(n, d)) * np.geomspace(2, 0.1, d) + 2
    y = np.tanh(hidden @ rng.normal(size=(3, e))) + 0.3 * rng.normal(size=(n, e)) - 1
    return x, y


def planted(rng, n, correlations):
    """Two sets of orthonormal centred columns with these canonical correlations, mixed."""
    k = len(correlations)
    q, _ = np.linalg.qr(slow.centred(rng.normal(size=(n, 2 * k))))
    x, other = q[:, :k], q[:, k:]
    y = x * correlations + other * np.sqrt(1 - np.square(correlations))
    return (a @ rng.normal(size=(k, k)) for a in (x, y))


# ---- canonical correlations ------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_they_equal_the_definitions(shape, dtype, rng):
    x, y = (a.astype(dtype) for a in pair(rng, *shape))
    error = 1e-10 if dtype == np.float64 else 1e-5
    rho = slow.canonical(x, y)
    found = cca(x, y)
    assert found.correlations == pytest.approx(rho, abs=error)
    assert found.value == pytest.approx(rho.mean(), abs=error)
    assert found.mean_square == pytest.approx(np.square(rho).mean(), abs=error)
    assert found.weights == pytest.approx(np.full(len(rho), 1 / len(rho)))
    assert (found.rank_x, found.rank_y) == shape[1:]
    wanted, weights = slow.weighted(x, y)
    weighted = pwcca(x, y)
    assert weighted.value == pytest.approx(wanted, abs=error)
    assert weighted.weights == pytest.approx(weights, abs=50 * error)
    assert weighted.weights.sum() == pytest.approx(1)
    for share in (0.5, 0.9, 0.99, 1.0):
        cut = svcca(x, y, share=share)
        rho = slow.canonical(x, y, share=share)
        # Principal directions next to the cut are as exact as their gap allows.
        assert cut.correlations == pytest.approx(rho, abs=50 * error)
    assert cut.value == pytest.approx(found.value, abs=error)


def test_planted_correlations_come_back(rng):
    correlations = np.array([1.0, 0.9, 0.5, 0.1, 0.0])
    x, y = planted(rng, 200, correlations)
    assert cca(x, y).correlations == pytest.approx(correlations, abs=1e-7)
    assert compare([x], [y], "cca").matrix[0, 0] == pytest.approx(0.5, abs=1e-9)


def test_weights_of_a_variate_are_those_of_its_columns(rng):
    """A column of x that is 20 times larger and shared has nearly all weight."""
    x = rng.normal(size=(300, 4)) * [20, 1, 1, 1]
    y = np.concatenate([x[:, :1] / 20, rng.normal(size=(300, 5))], axis=1)
    found = pwcca(x, y)
    assert found.value > 0.75
    assert found.weights.argmax() == 0
    assert cca(x, y).value < 0.5


def test_the_side_of_smaller_rank_weighs_whichever_comes_first(rng):
    x, y = pair(rng, 100, 6, 3)
    assert pwcca(x, y).value == pytest.approx(pwcca(y, x).value, abs=1e-12)
    copied = np.concatenate(
        [y, y @ rng.normal(size=(3, 8))], axis=1
    )  # wider, of rank 3 all the same
    assert pwcca(x, copied).weights == pytest.approx(slow.weighted(x, copied)[1], abs=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rank_deficient_layers_lower_the_rank_and_say_so(dtype, rng):
    x, y = pair(rng, 200, 6, 9)
    twice = np.concatenate([x, 2 * x[:, :3], x @ rng.normal(size=(6, 70))], axis=1).astype(dtype)
    found = cca(twice, y.astype(dtype))
    assert (found.rank_x, found.rank_y) == (6, 9)
    assert found.correlations == pytest.approx(slow.canonical(x, y), abs=1e-4)
    found = compare([twice, x.astype(dtype)], [y.astype(dtype)], "cca")
    assert found.ranks_x.tolist() == [6, 6]
    assert found.ranks_y.tolist() == [9]
    assert found.matrix[0, 0] == pytest.approx(found.matrix[1, 0], abs=1e-4)


@pytest.mark.parametrize("spread", [1e1, 1e2, 1e3])
def test_float32_layers_with_one_massive_direction(spread, rng):
    """A neuron with most of the variance, as language models have, does not blur the others."""
    x, y = pair(rng, 500, 40, 30)
    x[:, 3] *= spread
    wanted = cca(x, y)
    found = cca(x.astype(np.float32), y.astype(np.float32))
    assert found.rank_x == 40
    assert found.correlations == pytest.approx(wanted.correlations, abs=1e-4)
    rotation, _ = np.linalg.qr(rng.normal(size=(40, 40)))
    x, y = ((a @ r).astype(np.float32) for a, r in ((x, rotation), (y, np.eye(30))))
    wanted = svcca(x.astype(float), y.astype(float), share=0.999)
    found = svcca(x, y, share=0.999)
    assert found.rank_x == wanted.rank_x
    assert found.correlations == pytest.approx(wanted.correlations, abs=2e-4)


def test_columns_of_very_different_units(rng):
    x, y = pair(rng, 100, 5, 4)
    assert cca(x * np.geomspace(1, 1e-12, 5), y).value == pytest.approx(cca(x, y).value, abs=1e-10)


def test_graded_columns_of_float64(rng):
    """Singular values down to 1e-10 of the largest: too small for products, not for the rank."""
    x, y = pair(rng, 100, 6, 4)
    q, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    found = cca(x @ q @ np.diag(np.geomspace(1, 1e-10, 6)) @ q, y)
    assert found.rank_x == 6
    assert found.correlations == pytest.approx(slow.canonical(x, y), abs=1e-4)


def test_too_few_samples_warn_that_correlations_are_one(rng):
    x, y = rng.normal(size=(2, 30, 20))
    with pytest.warns(UserWarning, match=r"\[cca\] 30 samples are few.*11 correlations are 1"):
        found = cca(x, y)
    assert found.correlations[:11] == pytest.approx(np.ones(11))
    with pytest.warns(UserWarning, match=r"\[compare\] 10 samples are few"):
        wide = compare([x[:10]], [y[:10]], "cca")
    assert wide.ranks_x.tolist() == [9]
    assert wide.matrix[0, 0] == pytest.approx(1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svcca(x, y, share=0.3)


def test_rtol_and_share_choose_directions(rng):
    x, y = rng.normal(size=(2, 100, 6)) * [9, 8, 7, 0.01, 0.01, 0.01]
    assert svcca(x, y).rank_x == 3
    assert svcca(x, y, share=0.0).rank_x == 1
    assert svcca(x, y, share=1.0, rtol=0.1).rank_x == 3
    assert cca(x, y, rtol=0.1).rank_x == 6


def test_arrays_come_back_in_the_library(library, rng):
    x, y = (library.put(a) for a in pair(rng, 60, 4, 5))
    for found in (cca(x, y), svcca(x, y), pwcca(x, y)):
        assert library.owns(found.correlations)
        assert library.owns(found.weights)
        assert found.value == pytest.approx(
            float(library.get(found.weights) @ library.get(found.correlations))
        )


# ---- Procrustes ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [*SHAPES, (20, 30, 70)])
def test_procrustes_equals_the_definition(shape, dtype, rng):
    x, y = (a.astype(dtype) for a in pair(rng, *shape))
    error = 1e-10 if dtype == np.float64 else 1e-5
    cosine = slow.procrustes_cosine(x, y)
    a, b = (np.linalg.norm(slow.centred(z)) for z in (x, y))
    assert procrustes(x, y) == pytest.approx(np.arccos(cosine), abs=error)
    found = procrustes(x, y, kind="normalized")
    assert found == pytest.approx(np.sqrt(2 - 2 * cosine), abs=error)
    found = procrustes(x, y, kind="size")
    assert found == pytest.approx(np.sqrt(a**2 + b**2 - 2 * a * b * cosine), rel=10 * error)
    for alpha in (0.0, 0.3, 0.9):
        white = [slow.whitened(z, alpha) for z in (x, y)]
        found = np.cos(procrustes(x, y, alpha=alpha))
        assert found == pytest.approx(slow.procrustes_cosine(*white), abs=10 * error)


def test_procrustes_is_the_distance_after_the_best_rotation(rng):
    x, y = (slow.centred(a) for a in pair(rng, 60, 4, 4))
    u, _, vh = np.linalg.svd(y.T @ x)
    best = np.linalg.norm(x - y @ (u @ vh))
    assert procrustes(x, y, kind="size") == pytest.approx(best)
    for _ in range(20):
        q, _ = np.linalg.qr(rng.normal(size=(4, 4)))
        assert np.linalg.norm(x - y @ q) >= best


def test_fully_whitened_shapes_are_canonical_correlations(rng):
    x, y = pair(rng, 80, 6, 4)
    wanted = np.arccos(cca(x, y).correlations.sum() / np.sqrt(24))
    assert procrustes(x, y, alpha=0.0) == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("decay", [0.0, 2.0])
def test_nuclear_norms_of_float32_layers_of_any_spectrum(decay, rng):
    """Singular values by way of squares, or not, as the spectrum allows; ragged shapes share."""
    widths = (64, 70, 130, 300, 280)
    layers = [
        (rng.normal(size=(320, d)) * np.arange(1, d + 1) ** -decay).astype(np.float32)
        for d in widths
    ]
    found = np.cos(compare(layers, measure="procrustes").matrix)
    for i, j in ((0, 1), (1, 4), (3, 4)):
        wanted = slow.procrustes_cosine(layers[i], layers[j])
        assert found[i, j] == pytest.approx(wanted, rel=1e-5)
    low = [(a[:, :9] @ rng.normal(size=(9, 290))).astype(np.float32) for a in layers]
    found = np.cos(compare(low, measure="procrustes").matrix)
    assert found[0, 1] == pytest.approx(slow.procrustes_cosine(*low[:2]), abs=1e-6)
    found = compare(low, measure="svcca").matrix[0, 1]
    assert found == pytest.approx(slow.canonical(*low[:2], share=0.99).mean(), abs=1e-5)


# ---- RSA -------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [3, 17, 60])
def test_rsa_equals_scipy(n, rng):
    x, y = (np.round(a, 1) for a in pair(rng, n, 4, 5))  # with ties
    above = np.triu_indices(n, 1)
    dissimilarities = {
        "correlation": lambda a: 1 - np.corrcoef(a)[above],
        "euclidean": lambda a: np.round(np.square(a[:, None] - a[None]).sum(axis=2), 9)[above],
    }
    for rdm, of in dissimilarities.items():
        a, b = of(x), of(y)
        found = {m: rsa(x, y, rdm=rdm, method=m) for m in ("spearman", "pearson", "cosine")}
        assert found["pearson"] == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-9)
        assert found["cosine"] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        wanted = scipy_stats.spearmanr(a, b).statistic
        # Ties of products are broken by rounding.
        assert found["spearman"] == pytest.approx(wanted, abs=1e-9 if n == 3 else 2e-3)


def test_ranks_share_their_mean_where_distances_are_equal():
    square = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    line = np.array([[0.0], [1.0], [2.0], [3.0]])
    found = rsa(square, line, rdm="euclidean")
    wanted = scipy_stats.spearmanr([1, 1, 2, 2, 1, 1], [1, 4, 9, 1, 4, 1]).statistic
    assert found == pytest.approx(wanted)


def test_rsa_without_differences_is_nan(rng):
    simplex = np.eye(4)
    assert np.isnan(rsa(simplex, rng.normal(size=(4, 3)), rdm="euclidean", method="pearson"))
