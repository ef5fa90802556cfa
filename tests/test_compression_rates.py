"""What every rank of a head costs, who gets how many dimensions, and weights element by element."""

import itertools

import numpy as np
import pytest
import subspan
from subspan.compression import (
    allocate_rates,
    cache_basis,
    elementwise_svd,
    fisher_svd,
    search_rates,
    truncated_svd,
)
from subspan.compression.caches.basis import basis_errors, orthogonal_basis
from subspan.errors import DtypeError, InvalidArgumentError


def brute(loss, ranks, budget, heads=3):
    best = min(
        (loss(np.array(one)), one)
        for one in itertools.product(ranks, repeat=heads)
        if sum(one) <= budget
    )
    return best[0]


@pytest.mark.parametrize("seed", range(4))
def test_rates_are_the_best_of_all_choices(seed):
    rng = np.random.default_rng(seed)
    gains = np.sort(rng.random((3, 4)), axis=1)[:, ::-1]  # falling: convex
    curves = np.concatenate([gains[:, ::-1].cumsum(1)[:, ::-1], np.zeros((3, 1))], axis=1)

    def loss(ranks):
        return float(curves[np.arange(3), ranks].sum())

    for budget in range(3, 13):
        (searched,) = search_rates(loss, [4, 4, 4], [budget])
        allocated = allocate_rates(curves, budget)
        for ranks in (searched, allocated):
            assert ranks.sum() <= budget
            assert loss(ranks) == pytest.approx(brute(loss, range(1, 5), budget))


def test_smaller_budgets_go_on_from_larger_ones():
    calls = []

    def loss(ranks):
        calls.append(ranks.copy())
        return float(np.square(16 - ranks).sum())

    steps = []
    large, small = search_rates(
        loss, np.full((2, 1, 3), 16), [72, 48], step=4, least=4,
        progress=lambda done, total: steps.append((done, total)),
    )  # fmt: skip
    assert (large.sum(), small.sum()) == (72, 48)
    assert (small == 8).all()
    assert (small <= large).all()
    assert steps == [(n, 12) for n in range(1, 13)]
    assert len(calls) < 60  # far from 6 for each of 12 steps
    assert all((ranks >= 4).all() for ranks in calls)
    (same,) = search_rates(loss, [5, 7], 12)
    assert same.tolist() == [5, 7]
    (wild,) = search_rates(lambda r: float("nan") if r[0] < 4 else 0.0, [4, 4], 5)
    assert wild.tolist() == [4, 1]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: search_rates(abs, [1.5], 1), DtypeError, "start must be integers"),
        (lambda: search_rates(abs, [2, 2], 1), InvalidArgumentError, "pay for the least ranks, 2"),
        (
            lambda: search_rates(abs, np.zeros(0, int), 1),
            InvalidArgumentError,
            "start must be ranks of at least",
        ),
        (lambda: search_rates(abs, [4], 4, least=5), InvalidArgumentError, "at least least=5"),
        (lambda: search_rates(abs, [4], [], step=2), InvalidArgumentError, "budgets must pay"),
        (lambda: search_rates(abs, [4], 2, step=0), InvalidArgumentError, "step must be >= 1"),
        (lambda: allocate_rates([1.0, 0.0], 1), InvalidArgumentError, r"errors must be \(heads"),
        (lambda: allocate_rates([[1.0, 0.0]] * 2, 1), InvalidArgumentError, "budget must pay"),
        (lambda: allocate_rates([[1.0, np.nan]], 1), InvalidArgumentError, "must be finite"),
        (lambda: allocate_rates([[1.0, 0.0]], 1, step=2), InvalidArgumentError, "step must be in"),
    ],
)
def test_what_rates_refuse(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("aware", [False, True])
@pytest.mark.parametrize("centred", [False, True])
def test_errors_of_every_rank_are_those_of_rows(rng, aware, centred):
    x = rng.normal(size=(300, 6)) * np.linspace(2, 0.2, 6) + rng.normal(size=6)
    g = rng.normal(size=(300, 6)) @ rng.normal(size=(6, 6))
    states, weights = (subspan.Moments(precision="float64").update(one) for one in (x, g))
    basis = cache_basis([states], [weights] if aware else None, centred=centred)
    errors = basis_errors(basis, [states], [weights] if aware else None)
    h = g.T @ g / 300 if aware else np.eye(6)
    for r in range(1, 7):
        one = basis.cut(r)
        rest = x - one.decode(one.encode(x[None]))[0]
        direct = np.einsum("ti,ij,tj->", rest, h, rest) / 300
        assert errors[0, r] == pytest.approx(direct, abs=1e-9)
    if not aware:
        assert np.allclose(errors, basis.tails)


def test_orthogonal_bases_lose_less_with_every_dimension(rng):
    x = rng.normal(size=(100, 8)) @ rng.normal(size=(8, 8))
    states = subspan.Moments(precision="float64").update(x)
    axes = np.linalg.qr(rng.normal(size=(1, 8, 8)))[0]
    basis = orthogonal_basis(axes, [states])
    assert (np.diff(basis.tails[0]) < 0).all()
    assert np.allclose(basis.tails, basis_errors(basis, [states]))
    assert np.allclose(basis.decode(basis.encode(x[None])), x[None])
    assert not basis.cut(1).mean.any()


@pytest.mark.parametrize(("m", "n"), [(20, 15), (15, 20)])
def test_elementwise_weights_are_met_at_least_as_well_as_by_rows(rng, m, n):
    for _ in range(5):
        w, seen = rng.normal(size=(m, n)), rng.random((m, n)) ** 4
        rows = np.sqrt(seen.sum(axis=1))
        last = np.inf
        for r in (1, 3, 6):
            found = elementwise_svd(w, seen, r)
            rest = np.sqrt((seen * (w - found.to_dense()) ** 2).sum())
            assert found.error == pytest.approx(rest, rel=1e-9)
            other = fisher_svd(w, rows).cut(rank=r).to_dense()
            assert rest <= np.sqrt((seen * (w - other) ** 2).sum()) * (1 + 1e-12)
            assert rest < last
            last = rest
    assert found.total == pytest.approx(np.sqrt((seen * w**2).sum()))
    assert elementwise_svd(w, seen, min(m, n)).relative_error < 1e-6


def test_equal_weights_are_a_truncated_svd(rng):
    w = rng.normal(size=(10, 7))
    found = elementwise_svd(w, np.full((10, 7), 3.0), 2)
    assert np.allclose(found.to_dense(), truncated_svd(w).cut(rank=2).to_dense(), atol=1e-5)
    half = elementwise_svd(w.astype(np.float32), np.zeros((10, 7)), 2)
    assert (half.error, half.total, half.left.dtype) == (0.0, 0.0, np.float32)


def test_elements_without_weight_do_not_matter(rng):
    low = rng.normal(size=(14, 2)) @ rng.normal(size=(2, 11))
    seen = (rng.random((14, 11)) < 0.8).astype(float)
    found = elementwise_svd(np.where(seen > 0, low, 50.0), seen, 2, iterations=500, tolerance=0.0)
    assert found.relative_error < 1e-4
    assert np.abs(found.to_dense() - low).max() < 0.05 * np.abs(low).max()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": np.ones(4)}, "weight must have 2 axes"),
        ({"weight": np.full((4, 3), np.nan)}, "weight of matrix 0 must be finite"),
        ({"importance": np.ones((3, 4))}, r"importance must be \(4, 3\) .*got shape \(3, 4\)"),
        ({"importance": -np.ones((4, 3))}, "got NaN, infinity or a negative weight"),
        ({"rank": 4}, r"rank must be in 1\.\.3, got 4"),
        ({"iterations": -1}, "iterations must be >= 0"),
        ({"tolerance": -1.0}, "tolerance must be in"),
    ],
)
def test_what_elementwise_refuses(options, message):
    arguments = {"weight": np.ones((4, 3)), "importance": np.ones((4, 3)), "rank": 2} | options
    with pytest.raises(InvalidArgumentError, match=message):
        elementwise_svd(**arguments)
