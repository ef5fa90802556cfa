"""Spiked and nested models: closed forms against each other, figures, simulations, refusals."""

from math import sqrt

import numpy as np
import pytest
from subspan.errors import DtypeError, InvalidArgumentError
from subspan.tensors import (
    clustering_accuracy,
    cp,
    nested_bound,
    nested_density,
    nested_rank_one,
    nested_sample,
    nested_unfolding,
    spiked_cubic,
    spiked_rank_one,
    spiked_sample,
    unfold,
    unfolding_spectrum,
)


def strength_for(shape, rho):
    return sqrt(rho * sqrt(np.prod(shape)) / sum(shape))


@pytest.mark.parametrize(
    ("beta", "value", "alignment"),
    [(1.5, 1.8487, 0.9051), (2.0, 2.2558, 0.9530), (3.0, 3.1683, 0.9806)],
)
def test_cubic_closed_form_and_fixed_point(beta, value, alignment):
    closed = spiked_cubic(beta)
    np.testing.assert_allclose(closed, (value, alignment), atol=5e-5)
    limit = spiked_rank_one((50, 50, 50), beta)
    np.testing.assert_allclose(limit.value, closed[0], rtol=1e-8)
    np.testing.assert_allclose(limit.alignments, [closed[1]] * 3, rtol=1e-8)


def test_below_the_thresholds():
    assert spiked_cubic(2 / sqrt(3) - 1e-9)[1] == 0
    assert np.isnan(spiked_cubic(1.0)[0])
    assert spiked_cubic(2 / sqrt(3) + 1e-9)[1] > 0.7  # it does not begin at 0
    assert spiked_rank_one((50, 50, 50), 0.9).alignments == (0.0, 0.0, 0.0)
    assert not nested_unfolding((300, 200, 100), 0.3, 1.0).detectable
    assert not nested_unfolding((300, 200, 100), 3.0, 0.01).detectable
    assert not nested_unfolding((300, 200, 100), 0.0, 0.001, mode=2).detectable
    assert nested_bound((300, 200, 100), 0.5, 1.0) == 0


def test_the_threshold_is_where_the_alignment_ends():
    shape = (300, 200, 100)
    p1, p2 = 0.6, 0.4
    b = 1.5**2
    rho = b / ((p2 + b) * sqrt(b * b - p1 * p2))
    just_above = nested_unfolding(shape, 1.5, strength_for(shape, rho * (1 + 1e-9)))
    assert just_above.detectable
    assert 0 <= just_above.alignment < 1e-6
    assert not nested_unfolding(shape, 1.5, strength_for(shape, rho * (1 - 1e-9))).detectable


def test_unfolding_figures():
    """78.18 and 0.779 for (300, 200, 100), beta_M = 1.5, rho = 2; 44.92 for half the size."""
    for shape, value in (((300, 200, 100), 78.18), ((150, 100, 50), 44.92)):
        limit = nested_unfolding(shape, 1.5, strength_for(shape, 2.0))
        np.testing.assert_allclose(limit.eigenvalue, value, atol=5e-3)
        np.testing.assert_allclose(limit.alignment, 0.779, atol=5e-4)


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_unfoldings_of_samples(mode):
    shape, beta_m = (150, 100, 50), 1.5
    beta_t = strength_for(shape, 2.0)
    limit = nested_unfolding(shape, beta_m, beta_t, mode)
    values, aligned = [], []
    for seed in range(4):
        sample = nested_sample(shape, beta_m, beta_t, seed=seed)
        spectrum = unfolding_spectrum(sample.tensor, mode)
        values.append(spectrum.eigenvalues[-1])
        aligned.append(float((spectrum.leading @ sample[2 + mode]) ** 2))
    np.testing.assert_allclose(np.mean(values), limit.eigenvalue, rtol=0.05)
    np.testing.assert_allclose(np.mean(aligned), limit.alignment, atol=0.05)


def test_the_bulk_has_mass_one_and_holds_the_eigenvalues():
    shape, beta_t = (150, 100, 50), 1.0
    for mode in range(3):
        s = np.linspace(-15, 15, 3001)
        density = nested_density(s, shape, beta_t, mode)
        np.testing.assert_allclose(density.sum() * (s[1] - s[0]), 1, atol=2e-3)
        limit = nested_unfolding(shape, 0.0, beta_t, mode)
        sample = nested_sample(shape, 0.0, beta_t, seed=1)
        found = (unfolding_spectrum(sample.tensor, mode).eigenvalues - limit.center) / limit.scale
        if mode == 2:  # its leading eigenvalue is the matrix's noise itself
            found = found[:-1]
        inside = s[density > 1e-6]
        assert found.min() > inside[0] - 0.6
        assert found.max() < inside[-1] + 0.6
        wanted = (s * density).sum() * (s[1] - s[0])
        np.testing.assert_allclose(found.mean(), wanted, atol=0.15)


def test_rank_one_of_samples():
    shape = (60, 50, 40)
    for limit, sample in (
        (spiked_rank_one(shape, 2.0), spiked_sample(shape, 2.0, seed=3)),
        (nested_rank_one(shape, 3.0, 2.0), nested_sample(shape, 3.0, 2.0, seed=3)),
    ):
        signals = [sample.x, sample.y, sample.z]
        found = cp(sample.tensor, 1, init=(None, [a[:, None] for a in signals])).tensor
        np.testing.assert_allclose(abs(found.weights[0]), limit.value, rtol=0.05)
        cosines = [abs(float(a[:, 0] @ s)) for a, s in zip(found.factors, signals, strict=True)]
        np.testing.assert_allclose(cosines, limit.alignments, atol=0.04)


def test_no_method_beats_the_bound():
    shape = (150, 300, 60)
    for beta_m in np.linspace(0.1, 5, 12):
        for beta_t in (0.5, 1.5, 4.0):
            bound = nested_bound(shape, beta_m, beta_t)
            # The limit of the unfolding is one of growing beta_t.
            unfolded = nested_unfolding(shape, beta_m, beta_t).alignment
            assert unfolded <= nested_bound(shape, beta_m, 1e9) + 1e-9
            assert nested_rank_one(shape, beta_m, beta_t).alignments[1] ** 2 <= bound + 1e-6
    large = nested_bound(shape, 1.5, 1e6)  # the matrix itself, without the tensor's noise
    b, p1, p2 = 1.5**2, 1 / 3, 2 / 3
    np.testing.assert_allclose(large, 1 - p2 * (b + p1) / (b * (b + p2)), rtol=1e-6)


def test_accuracy_of_samples():
    shape, beta_m, beta_t = (75, 150, 30), 2.0, 1.5
    found = []
    for seed in range(6):
        sample = nested_sample(shape, beta_m, beta_t, labels=True, seed=seed)
        right = np.mean(np.sign(unfolding_spectrum(sample.tensor, 1).leading) == np.sign(sample.y))
        found.append(max(right, 1 - right))
    wanted = clustering_accuracy(nested_unfolding(shape, beta_m, beta_t).alignment)
    np.testing.assert_allclose(np.mean(found), wanted, atol=0.04)
    np.testing.assert_allclose(
        clustering_accuracy([0.0, 0.5, 1.0]), [0.5, 0.841345, 1.0], atol=1e-6
    )


def test_spectra_are_those_of_unfoldings(library, rng):
    x = rng.standard_normal((5, 6, 7))
    for mode in range(3):
        spectrum = unfolding_spectrum(library.put(x), mode)
        assert library.owns(spectrum.eigenvalues)
        wanted = np.linalg.eigvalsh(unfold(x, mode) @ unfold(x, mode).T)
        np.testing.assert_allclose(library.get(spectrum.eigenvalues), wanted, atol=1e-10)


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (lambda: nested_sample((3, 4), 1, 1), InvalidArgumentError, "shape must be three extents"),
        (lambda: nested_sample((3, 4, 0), 1, 1), InvalidArgumentError, "shape must be >= 1"),
        (lambda: nested_unfolding((3, 4, 5), -1, 1), InvalidArgumentError, "beta_m must be in"),
        (lambda: nested_unfolding((3, 4, 5), 1, 1, 3), InvalidArgumentError, "mode must be in"),
        (lambda: nested_density(0.0, (3, 4, 5), "a"), DtypeError, "beta_t must be a number"),
        (lambda: nested_rank_one((3, 4, 5), 1, -1), InvalidArgumentError, "beta_t must be in"),
        (lambda: nested_bound((3.0, 4, 5), 1, 1), DtypeError, "shape must be an integer"),
        (lambda: spiked_cubic(-1), InvalidArgumentError, "beta must be in"),
        (lambda: spiked_rank_one([3, 4, 5, 6], 1), InvalidArgumentError, "three extents"),
        (lambda: spiked_sample((3, 4, 5), 1, seed=-1), InvalidArgumentError, "seed must be >= 0"),
        (lambda: unfolding_spectrum(np.ones(3), 0), InvalidArgumentError, "2 or more modes"),
        (lambda: unfolding_spectrum(np.ones((3, 3)) * np.nan, 0), InvalidArgumentError, "finite"),
        (lambda: clustering_accuracy(1.5), InvalidArgumentError, r"must be in \[0, 1\]"),
    ],
)
def test_refused(call, kind, text):
    with pytest.raises(kind, match=text):
        call()
