"""First and second difference subspaces, and their magnitudes along a series."""

import numpy as np
import pytest
from subspace_oracle import EPS, apart, frame, mixing, planted, projector
from subspan.subspaces import (
    _work,
    difference_magnitudes,
    difference_subspace,
    distance,
    exp,
    geodesic,
    log,
    principal_angles,
    second_difference_subspace,
)

N = 14


@pytest.mark.parametrize("p", [1, 3, 6])
def test_eigenvectors_of_the_sum_of_projectors(p, rng):
    a, b = frame(rng, N, p), frame(rng, N, p) @ mixing(rng, p)
    found = difference_subspace(a, b)
    theta = principal_angles(a, b).angles
    values, vectors = np.linalg.eigh(projector(a) + projector(b))
    lower = vectors[:, (values > 1e-9) & (values < 1)]
    assert int(found.difference.dims) == int(found.mean.dims) == p
    assert apart(found.difference.basis, lower) <= 1e-12
    assert apart(found.mean.basis, vectors[:, -p:]) <= 1e-12
    assert found.magnitude == pytest.approx(2 * np.sum(1 - np.cos(theta)), rel=1e-12)
    rooted = difference_subspace(a, b, squared=False).magnitude
    assert rooted == pytest.approx(float(distance(a, b, "procrustes")), rel=1e-12)
    assert 0 <= found.magnitude <= 2 * p
    turned = difference_subspace(b, a)  # symmetric
    assert apart(turned.difference.basis, found.difference.basis) <= 1e-12
    assert apart(turned.mean.basis, found.mean.basis) <= 1e-12


def test_shared_directions_belong_to_the_mean_alone(rng):
    theta = np.array([0.0, 1e-9, 1e-3, 0.4])
    a, b = planted(rng, N, 4, 4, theta, (3,))
    d, m, size = difference_subspace(a, b)
    assert d.dims.tolist() == [2] * 3
    assert m.dims.tolist() == [4] * 3
    assert np.abs(d.basis.mT @ m.basis).max() <= 1e-11
    assert np.abs((d.basis.mT @ d.basis)[..., :2, :2] - np.eye(2)).max() <= 8 * EPS
    assert not d.basis[..., 2:].any()
    np.testing.assert_allclose(size, 2 * np.sum(1 - np.cos(theta)), rtol=1e-9)
    assert difference_subspace(a, b, tol=1e-10).difference.dims.tolist() == [3] * 3
    assert difference_subspace(a, b, tol=1.0).difference.dims.tolist() == [0] * 3
    # the axes themselves, in order of their angles
    x = principal_angles(a, b, vectors=True)
    axis = (x.vectors_a - x.vectors_b)[..., 3]
    axis /= np.linalg.norm(axis, axis=-1, keepdims=True)
    assert np.abs(np.abs(np.sum(axis * d.basis[..., 0], axis=-1)) - 1).max() <= 1e-12


@pytest.mark.parametrize("residual", ["drop", "difference"])
def test_different_dimensions(residual, rng):
    a, b = planted(rng, N, 2, 5, np.array([0.0, 0.7]))
    for first, second in ((a, b), (b, a)):
        d, m, size = difference_subspace(first, second, residual=residual)
        assert int(m.dims) == 2
        assert int(d.dims) == (4 if residual == "difference" else 1)
        assert size == pytest.approx(2 - 2 * np.cos(0.7), rel=1e-12)
        values, vectors = np.linalg.eigh(projector(a) + projector(b))
        low = 1 + 1e-9 if residual == "difference" else 1 - 1e-9
        truth = vectors[:, (values > 1e-9) & (values < low)]
        assert apart(d.basis[:, : int(d.dims)], truth) <= 1e-12
    mixed = difference_subspace([a, b, a], [b, b, a], residual=residual)
    assert mixed.mean.dims.tolist() == [2, 5, 2]
    assert mixed.difference.dims.tolist() == [4 if residual == "difference" else 1, 0, 0]
    assert apart(mixed.difference.basis[0, :, :1], d.basis[:, :1]) <= 1 + 1e-12


def test_second_difference_vanishes_on_a_geodesic(rng):
    a, b = frame(rng, N, 3, (4,)), frame(rng, N, 3, (4,))
    x, y, z = np.moveaxis(geodesic(a, b, [0.1, 0.4, 0.7]), 1, 0)
    still = second_difference_subspace(x, y, z)
    assert np.abs(still.magnitude).max() <= 1e-26
    assert still.difference.dims.tolist() == [0] * 4
    shifted = exp(y, 0.2 * log(y, frame(rng, N, 3, (4,))))
    moved = second_difference_subspace(x, shifted, z)
    assert (moved.magnitude > 1e-3).all()
    back = second_difference_subspace(z, shifted, x)
    np.testing.assert_allclose(back.magnitude, moved.magnitude, rtol=1e-11)
    middle = difference_subspace(x, z).mean
    direct = difference_subspace(shifted, middle)
    np.testing.assert_allclose(moved.magnitude, direct.magnitude, rtol=1e-12)
    assert apart(moved.difference.basis, direct.difference.basis) <= 1e-12
    # to first order in the shift, the second magnitude is that of the shift
    small = exp(y, 1e-3 * log(y, shifted))
    ratio = second_difference_subspace(x, small, z).magnitude / distance(y, small) ** 2
    np.testing.assert_allclose(ratio, 1.0, rtol=1e-5)


def test_magnitudes_along_a_series(rng):
    series = rng.standard_normal((2, 9, N, 3))
    for stride in (1, 2):
        first, second = difference_magnitudes(series, stride=stride)
        assert first.shape == (2, 9 - stride)
        assert second.shape == (2, 9 - 2 * stride)
        for g in range(2):
            for t in range(9 - stride):
                alone = difference_subspace(series[g, t], series[g, t + stride])
                assert first[g, t] == pytest.approx(float(alone.magnitude), rel=1e-12)
            for t in range(9 - 2 * stride):
                three = (series[g, t + i * stride] for i in range(3))
                alone = second_difference_subspace(*three)
                assert second[g, t] == pytest.approx(float(alone.magnitude), rel=1e-11)
    short = difference_magnitudes(series[0, :2])
    assert (short.first.shape, short.second.shape) == ((1,), (0,))
    assert difference_magnitudes(series[0, :1], stride=5).first.shape == (0,)
    ragged = difference_magnitudes([rng.standard_normal((N, k)) for k in (2, 3, 1, 3)])
    assert ragged.first.shape == (3,)
    rooted = difference_magnitudes(series, squared=False)
    np.testing.assert_allclose(rooted.first**2, difference_magnitudes(series).first, rtol=1e-12)


def test_libraries_and_dtypes(library, rng):
    a, b = rng.standard_normal((2, N, 3)), rng.standard_normal((2, N, 3))
    truth, found = difference_subspace(a, b), difference_subspace(library.put(a), library.put(b))
    for mine, theirs in (
        (found.magnitude, truth.magnitude),
        (found.difference.basis, truth.difference.basis),
        (found.mean.dims, truth.mean.dims),
    ):
        assert library.owns(mine)
        assert np.array_equal(library.get(mine), theirs)
    low = difference_subspace(a.astype(np.float32), b.astype(np.float32))
    assert low.magnitude.dtype == low.mean.basis.dtype == np.float32
    np.testing.assert_allclose(low.magnitude, truth.magnitude, rtol=1e-5)


def test_tensors_on_a_device_take_the_same_way(rng, monkeypatch):
    torch = pytest.importorskip("torch")
    series = rng.standard_normal((5, N, 3))
    series[1, :, 2] = 0.0
    t = torch.from_numpy(series)
    truth = difference_magnitudes(series)
    pair = difference_subspace(series[:2], series[2], residual="difference")
    monkeypatch.setattr(_work, "_on_host", lambda _: False)
    for mine, theirs in zip(difference_magnitudes(t), truth, strict=True):
        np.testing.assert_allclose(mine.numpy(), theirs, rtol=1e-11)
    found = difference_subspace(t[:2], t[2], residual="difference")
    assert found.difference.dims.tolist() == pair.difference.dims.tolist() == [3, 3]
    for i in range(2):
        assert apart(found.difference.basis[i].numpy(), pair.difference.basis[i]) <= 1e-12
