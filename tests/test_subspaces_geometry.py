"""log, exp, geodesic and transport on Grassmann manifolds."""

import numpy as np
import pytest
from subspace_oracle import apart, frame, mixing, planted, projector
from subspan.subspaces import _work, distance, exp, geodesic, log, span, transport

P = [1, 2, 5]


def pair(rng, p, spread=1.0, lead=(3,)):
    a = frame(rng, 14, p, lead)
    return a, np.linalg.qr(a + spread * frame(rng, 14, p, lead))[0]


@pytest.mark.parametrize("p", P)
@pytest.mark.parametrize("spread", [1e-7, 0.1, 1.0, 100.0])
def test_log_and_exp_are_inverse(p, spread, rng):
    a, b = pair(rng, p, spread)
    delta = log(a, b)
    assert np.abs(a.mT @ delta).max() <= 1e-14
    np.testing.assert_allclose(np.linalg.norm(delta, axis=(1, 2)), distance(a, b), rtol=1e-8)
    assert distance(exp(a, delta), b).max() <= 1e-13
    assert np.abs(log(a, exp(a, delta)) - delta).max() <= 1e-12
    assert np.abs(log(a, b @ mixing(rng, p, (3,))) - delta).max() <= 1e-12


def test_log_reaches_right_angles(rng):
    a, b = planted(rng, 12, 3, 3, np.array([0.0, 0.5, np.pi / 2]), mix=False)
    delta = log(a, b)
    assert np.linalg.norm(delta) == pytest.approx(np.hypot(0.5, np.pi / 2), rel=1e-14)
    assert apart(exp(a, delta), b) <= 1e-14
    assert not log(a, a).any() or np.abs(log(a, a)).max() <= 1e-14


@pytest.mark.parametrize("p", P)
def test_geodesic(p, rng):
    a, b = pair(rng, p)
    t = np.linspace(-0.3, 1.3, 9)
    way = geodesic(a, b, t)
    assert way.shape == (3, 9, 14, p)
    assert np.abs(way.mT @ way - np.eye(p)).max() <= 1e-14
    np.testing.assert_allclose(way, exp(a, log(a, b), t), atol=1e-13)
    assert np.abs(geodesic(a, b, 0.0) - a).max() <= 1e-14
    assert distance(geodesic(a, b, 1.0), b).max() <= 1e-13
    steps = distance(way[:, 1:], way[:, :-1])
    np.testing.assert_allclose(steps, 0.2 * np.broadcast_to(distance(a, b), (8, 3)).T, rtol=1e-11)
    for i in range(3):  # the midpoint: leading eigenvectors of the sum of the projectors
        vectors = np.linalg.eigh(projector(a[i]) + projector(b[i]))[1]
        assert apart(geodesic(a, b, 0.5)[i], vectors[:, -p:]) <= 1e-13


@pytest.mark.parametrize("p", P)
def test_transport(p, rng):
    a, b = pair(rng, p)
    delta = log(a, b)
    raw = rng.standard_normal((2, 3, 14, p))
    v, w = raw - a @ (a.mT @ raw)
    t = np.array([0.0, 0.4, 1.0])
    ends, moved = exp(a, delta, t), transport(a, delta, v, t)
    assert np.abs(ends.mT @ moved).max() <= 1e-13
    assert np.abs(moved[:, 0] - v).max() <= 1e-14
    inner = np.sum(moved * transport(a, delta, w, t), axis=(-2, -1))
    np.testing.assert_allclose(
        inner, np.sum(v * w, axis=(-2, -1))[:, None].repeat(3, 1), rtol=1e-11
    )
    # the velocity stays the velocity
    h = 1e-6
    velocity = (exp(a, delta, 0.4 + h) - exp(a, delta, 0.4 - h)) / (2 * h)
    assert np.abs(velocity - transport(a, delta, delta, 0.4)).max() <= 1e-8


def test_bases_that_are_not_orthonormal(rng):
    a, b = pair(rng, 3)
    skew = a @ mixing(rng, 3, (3,))
    basis = span(skew).basis
    assert distance(exp(skew, log(skew, b)), b).max() <= 1e-13
    np.testing.assert_allclose(log(skew, b), log(basis, b), atol=1e-12)
    padded = np.concatenate([a, a[..., :1]], axis=-1)  # dependent alike: dimension 3
    assert log(padded, b).shape == (3, 14, 3)


def test_batches_dtypes_libraries(library, rng):
    a, b = frame(rng, 9, 2, (4, 1)), frame(rng, 9, 2, (3,))
    delta = log(a, b)
    assert delta.shape == (4, 3, 9, 2)
    assert np.abs(delta[2, 1] - log(a[2, 0], b[1])).max() <= 1e-14
    mine = log(library.put(a), library.put(b))
    assert library.owns(mine)
    assert np.array_equal(library.get(mine), delta)
    assert exp(a, delta, [0.5]).shape == (4, 3, 1, 9, 2)
    low = log(a.astype(np.float32), b.astype(np.float32))
    assert low.dtype == np.float32
    assert np.abs(low - delta).max() <= 1e-5
    assert log(np.zeros((5, 0)), np.zeros((5, 0))).shape == (5, 0)
    assert geodesic(np.zeros((0, 5, 2)), np.zeros((5, 2)) + np.eye(5)[:, :2], 0.5).shape == (
        0,
        5,
        2,
    )


def test_tensors_on_a_device_take_the_same_way(rng, monkeypatch):
    torch = pytest.importorskip("torch")
    a, b = pair(rng, 2)
    t = [0.2, 0.9]
    delta = log(a, b)
    truth = delta, exp(a, delta, t), geodesic(a, b, t), transport(a, delta, delta, t)
    monkeypatch.setattr(_work, "_on_host", lambda _: False)
    x, y, d = (torch.from_numpy(z) for z in (a, b, delta))
    for mine, theirs in zip(
        (log(x, y), exp(x, d, t), geodesic(x, y, t), transport(x, d, d, t)), truth, strict=True
    ):
        np.testing.assert_allclose(mine.numpy(), theirs, atol=1e-13)
