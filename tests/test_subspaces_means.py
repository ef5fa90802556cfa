"""Karcher mean, flag mean, flag median, and chordal averages of flags."""

import itertools

import numpy as np
import pytest
from subspace_oracle import apart, frame, mixing, projector
from subspan.errors import ConvergenceError
from subspan.subspaces import (
    _work,
    chordal_flag_mean,
    chordal_flag_median,
    distance,
    exp,
    flag_distance,
    flag_mean,
    flag_median,
    geodesic,
    karcher_mean,
    log,
    span,
)

N = 12


def around(rng, p, count, spread, lead=()):
    """Bases around a common one."""
    centre = frame(rng, N, p, lead)[..., None, :, :]
    return centre[..., 0, :, :], np.linalg.qr(
        centre + spread * rng.standard_normal((*lead, count, N, p))
    )[0]


@pytest.mark.parametrize("p", [1, 2, 4])
def test_karcher_mean_of_two_is_the_midpoint(p, rng):
    a, b = frame(rng, N, p), frame(rng, N, p)
    assert apart(karcher_mean([a, b]).basis, geodesic(a, b, 0.5)) <= 1e-12
    off = karcher_mean([a, b], weights=[3, 1])
    assert apart(off.basis, geodesic(a, b, 0.25)) <= 1e-7
    assert off.dispersion == pytest.approx(3 / 16 * float(distance(a, b)) ** 2, rel=1e-7)


def test_karcher_mean_of_opposite_steps_is_where_they_start(rng):
    centre, near = around(rng, 3, 4, 0.1)
    deltas = log(centre, near)
    mean = karcher_mean(exp(centre, np.concatenate([deltas, -deltas])))
    assert apart(mean.basis, centre) <= 1e-9
    assert bool(mean.unique)
    assert mean.dispersion == pytest.approx(np.mean(np.sum(deltas**2, axis=(1, 2))), rel=1e-9)


def test_karcher_mean_gradient_equivariance_groups(rng):
    _, near = around(rng, 2, 6, 0.3, (3,))
    near[2] = frame(rng, N, 2, (6,))  # far apart: takes longer
    weights = rng.random((3, 6))
    mean = karcher_mean(near, weights=weights)
    shares = weights / weights.sum(axis=1, keepdims=True)
    pull = np.einsum("gi,ginp->gnp", shares, log(mean.basis[:, None], near))
    assert np.abs(pull).max() <= 1e-7
    assert mean.unique.tolist()[2] is False
    assert len(set(mean.record.iterations.tolist())) > 1
    turn = frame(rng, N, N)
    for g in range(3):
        alone = karcher_mean(turn @ near[g] @ mixing(rng, 2, (6,)), weights=weights[g])
        assert apart(alone.basis, turn @ mean.basis[g]) <= 1e-6
    d = distance(mean.basis[:, None], near)
    np.testing.assert_allclose(mean.dispersion, np.sum(shares * d**2, axis=1), rtol=1e-9)


def test_flag_mean_against_the_sum_of_projectors(rng):
    bases = [rng.standard_normal((N, k)) for k in (1, 2, 4, 3)]
    weights = np.array([1.0, 2.0, 0.5, 0.0])
    basis, shares = flag_mean(bases, r=5, weights=weights)
    total = sum(w * projector(b) for w, b in zip(weights / 3.5, bases, strict=True))
    values, vectors = np.linalg.eigh(total)
    np.testing.assert_allclose(shares, values[::-1][:5], atol=1e-13)
    for j in range(1, 6):
        assert apart(basis[:, :j], vectors[:, ::-1][:, :j]) <= 1e-11
    assert flag_mean(bases).basis.shape == (N, 4)
    same = flag_mean(np.stack([bases[1]] * 5))
    assert apart(same.basis, bases[1]) <= 1e-13
    np.testing.assert_allclose(same.shares, 1.0, rtol=1e-13)
    assert flag_mean(np.zeros((2, N, 0))).basis.shape == (N, 0)


def test_flag_median_leaves_outliers_aside(rng):
    centre, near = around(rng, 2, 12, 0.002)
    data = np.concatenate([near, frame(rng, N, 2, (4,))])
    median = flag_median(data)
    assert distance(centre, median.basis) < 0.2 * distance(centre, flag_mean(data).basis)
    assert median.weights.sum() == pytest.approx(1)
    assert median.weights[12:].max() < 0.2 * median.weights[:12].min()
    cost = np.inf
    for steps in range(6):  # never grows
        basis = flag_median(data, max_iter=steps, errors="info").basis
        now = float(distance(data, basis, "chordal").sum())
        assert now <= cost * (1 + 1e-12)
        cost = now
    mixed = [*near, centre[:, :1], rng.standard_normal((N, 3))]
    assert distance(flag_median(mixed, r=2).basis, centre) < 0.1
    alone = flag_median(np.stack([data, data[::-1]]))
    assert apart(alone.basis[0], median.basis) <= 1e-12
    assert apart(alone.basis[1], median.basis) <= 1e-5


def chordal_cost(y, frames, dims, weights=None):
    blocks = [slice(i, j) for i, j in itertools.pairwise([0, *dims])]
    square = sum(
        (s.stop - s.start) - np.sum((np.swapaxes(y[:, s], 0, 1) @ frames[..., s]) ** 2, (-2, -1))
        for s in blocks
    )
    return float(np.average(square, weights=weights))


@pytest.mark.parametrize("dims", [[1, 3], [2, 3], [1, 2, 3]])
def test_chordal_flag_mean(dims, rng):
    _, frames = around(rng, 3, 8, 0.4, (2,))
    mean = chordal_flag_mean(frames, dims)
    y = mean.frame
    assert np.abs(y.mT @ y - np.eye(3)).max() <= 1e-14
    for g in range(2):
        cost = chordal_cost(y[g], frames[g], dims)
        assert mean.cost[g] == pytest.approx(cost, rel=1e-12)
        assert np.mean(flag_distance(y[g], frames[g], dims) ** 2) == pytest.approx(cost, rel=1e-12)
        for _ in range(200):  # no better flag near, none at random
            other = np.linalg.qr(y[g] + 10.0 ** rng.uniform(-4, 1) * rng.standard_normal((N, 3)))[0]
            assert chordal_cost(other, frames[g], dims) >= cost - 1e-11
    before = np.inf
    for steps in range(8):
        now = chordal_flag_mean(frames[0], dims, starts=1, max_iter=steps, errors="info").cost
        assert now <= before + 1e-14
        before = now
    turn = frame(rng, N, N)
    moved = chordal_flag_mean(turn @ frames[0], dims)
    assert flag_distance(moved.frame, turn @ y[0], dims) <= 1e-4
    assert moved.cost == pytest.approx(mean.cost[0], rel=1e-9)


def test_one_block_is_the_flag_mean(rng):
    _, frames = around(rng, 3, 7, 0.5)
    weights = rng.random(7)
    found = chordal_flag_mean(frames, [3], weights=weights)
    assert apart(found.frame, flag_mean(frames, weights=weights).basis) <= 1e-6


def test_chordal_flag_median(rng):
    centre, near = around(rng, 3, 9, 0.01)
    data = np.concatenate([near, frame(rng, N, 3, (3,))])
    median, mean = (f(data, [1, 3]) for f in (chordal_flag_median, chordal_flag_mean))
    errors = [float(flag_distance(centre, found.frame, [1, 3])) for found in (median, mean)]
    assert errors[0] < 0.3 * errors[1]
    d = flag_distance(median.frame, data, [1, 3])
    assert median.cost == pytest.approx(float(np.mean(d)), rel=1e-9)
    assert float(np.mean(d)) <= float(np.mean(flag_distance(mean.frame, data, [1, 3])))
    assert bool(median.record.converged)


def test_flag_distance(rng):
    a, b = frame(rng, N, 4, (5,)), frame(rng, N, 4, (5,))
    b[4] = np.linalg.qr(a[4] + 1e-9 * b[4])[0]
    kinds = [slice(0, 1), slice(1, 3), slice(3, 4)]
    found = flag_distance(a, b, [1, 3, 4])
    for i in range(5):
        blocks = (projector(a[i][:, s]) - projector(b[i][:, s]) for s in kinds)
        truth = np.sqrt(sum(np.linalg.norm(block) ** 2 for block in blocks) / 2)
        assert found[i] == pytest.approx(truth, rel=1e-6)
    whole = flag_distance(a, b, [4])
    np.testing.assert_allclose(whole, distance(a, b, "chordal"), rtol=1e-6)
    assert flag_distance(a, b, [1, 3, 4], pairs="all").shape == (5, 5)
    # what spans the same flag is the same flag
    upper = np.triu(rng.standard_normal((4, 4))) + 3 * np.eye(4)
    assert flag_distance(a, a @ upper, [1, 2, 3, 4]).max() <= 1e-13


def test_records_and_convergence_errors(rng):
    _, near = around(rng, 2, 5, 0.5, (2,))
    near[1] = near[1, :1]  # converged from the start
    found = karcher_mean(near, max_iter=1, errors="info")
    assert found.record.converged.tolist() == [False, True]
    assert found.record.iterations.tolist() == [1, 0]
    assert found.record.residual[0] > 1e-8
    for function, more in (
        (karcher_mean, {}),
        (flag_median, {}),
        (chordal_flag_mean, {"dims": [1, 2]}),
        (chordal_flag_median, {"dims": [1, 2]}),
    ):
        with pytest.raises(ConvergenceError, match=rf"\[{function.__name__}\] .* did not converge"):
            function(near, max_iter=0, tol=0.0, **more)
        exact = function(near, tol=1e-3, **more)
        assert exact.record.converged.all()
        assert (exact.record.residual <= 1e-3).all()


def test_dtypes_and_libraries(library, rng):
    _, near = around(rng, 2, 4, 0.3)
    for function, more in (
        (karcher_mean, {}),
        (flag_mean, {}),
        (flag_median, {}),
        (chordal_flag_mean, {"dims": [1, 2]}),
    ):
        truth = function(near, **more)
        found = function(library.put(near), **more)
        assert library.owns(found[0])
        assert np.array_equal(library.get(found[0]), truth[0])
        low = function(near.astype(np.float32), **more)
        assert low[0].dtype == np.float32
        assert apart(low[0].astype(np.float64), truth[0]) <= 1e-3
    assert span(near).dims.tolist() == [2] * 4


def test_tensors_on_a_device_take_the_same_way(rng, monkeypatch):
    torch = pytest.importorskip("torch")
    _, near = around(rng, 2, 4, 0.3, (2,))
    calls = [
        (karcher_mean, {}),
        (flag_mean, {}),
        (flag_median, {}),
        (chordal_flag_mean, {"dims": [1, 2]}),
        (chordal_flag_median, {"dims": [1, 2]}),
    ]
    truth = [function(near, **more) for function, more in calls]
    monkeypatch.setattr(_work, "_on_host", lambda _: False)
    for (function, more), expected in zip(calls, truth, strict=True):
        found = function(torch.from_numpy(near), **more)
        assert apart(found[0].numpy(), expected[0]) <= 1e-9
