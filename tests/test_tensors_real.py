"""Measured tensors, out of the package tensorly: immune cells, and a scene in 200 bands."""

import numpy as np
import pytest
from subspan.tensors import cp, spm, spm_from_samples, tucker
from tensor_oracle import matched, power_sum

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def response():
    """IL-2 responses, ligands x times x doses x cell types, and where they are known."""
    datasets = pytest.importorskip("tensorly.datasets")
    x = np.asarray(datasets.load_IL2data().tensor, np.float64)
    known = np.isfinite(x)
    return np.where(known, np.maximum(x, 0), 0), known


@pytest.fixture(scope="module")
def scene():
    """Indian Pines, rows x columns x bands."""
    datasets = pytest.importorskip("tensorly.datasets")
    x = np.asarray(datasets.load_indian_pines().tensor, np.float64)
    return x / x.max()


def test_parts_of_responses_tell_of_hidden_ones(response, rng):
    x, known = response
    hidden = known & (rng.random(x.shape) < 0.1)
    errors, outside = [], []
    for rank in (1, 2, 3):
        found = cp(x, rank, mask=known & ~hidden, nonnegative=True, n_starts=6, tol=1e-6)
        model = found.tensor.to_dense()
        rest = np.where(known & ~hidden, x - model, 0)
        size = np.linalg.norm(np.where(known & ~hidden, x, 0))
        assert found.error == pytest.approx(np.linalg.norm(rest) / size, rel=1e-9)
        assert all((a >= 0).all() for a in found.tensor.factors)
        errors.append(found.error)
        outside.append(np.linalg.norm((x - model)[hidden]) / np.linalg.norm(x[hidden]))
    assert (np.diff(errors) < 0).all()
    assert (np.diff(outside) < 0).all()
    assert errors[2] < 0.8 * errors[0]
    assert outside[2] < 0.9 * outside[0]


def test_a_scene_within_an_error(scene):
    for tol in (0.1, 0.03):
        found = tucker(scene, tol=tol)
        rest = np.linalg.norm(scene - found.tensor.to_dense()) / np.linalg.norm(scene)
        assert rest <= tol
        assert found.error == pytest.approx(rest, rel=1e-6)
        assert found.bound == pytest.approx(rest, rel=1e-6)
        better = tucker(scene, found.tensor.rank, method="hooi")
        assert better.error <= found.error + 1e-12
    assert found.tensor.rank[2] < 20  # 200 bands, of which few differ


def test_sweeps_over_a_scene_are_those_of_tensorly(scene, rng):
    parafac = pytest.importorskip("tensorly.decomposition").parafac
    x = np.ascontiguousarray(scene[::3, ::3, ::4])
    start = np.ones(5), [rng.random((extent, 5)) for extent in x.shape]
    init = start[0], [a.copy() for a in start[1]]
    theirs = parafac(x, 5, init=init, n_iter_max=15, tol=0, return_errors=True)[1]
    ours = cp(x, 5, init=start, max_iter=15, tol=0).errors[:, 0]
    np.testing.assert_allclose(ours, np.array([float(e) for e in theirs])[:15], rtol=1e-6)


@pytest.mark.parametrize("order", [3, 4])
def test_moments_of_spectra(scene, order):
    """The moment of pixels in their six principal directions: from samples, and formed in full."""
    pixels = scene.reshape(-1, scene.shape[2])
    pixels = pixels - pixels.mean(axis=0)
    x = pixels @ np.linalg.svd(pixels, full_matrices=False)[2][:6].T
    x /= x.std(axis=0)
    rank = 6 if order == 3 else 10
    found = spm_from_samples(x, order, rank)
    letters = "ijkl"[:order]
    inputs = ",".join(f"n{c}" for c in letters)
    t = np.einsum(f"{inputs}->{letters}", *[x] * order, optimize=True) / len(x)
    whole = spm(t, rank)
    assert matched(whole.factors, found.factors) < 1e-9
    np.testing.assert_allclose(whole.weights, found.weights, rtol=1e-6)
    rest = np.linalg.norm(t - power_sum(found.factors, found.weights, order))
    assert found.info.error == pytest.approx(rest / np.linalg.norm(t), rel=1e-8)
    assert found.info.error < 1
