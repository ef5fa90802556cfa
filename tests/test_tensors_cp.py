"""cp: planted tensors, errors sweep by sweep, starts, masks, signs, shared factors, refusals."""

import decomposition_oracle as oracle
import numpy as np
import pytest
from matrices import same_bits
from subspan.errors import ConvergenceError, DtypeError, InvalidArgumentError
from subspan.tensors import CPTensor, cp
from subspan.tensors._cp_sweep import contracted, tree_split


def noisy(rng, shape, rank, level=0.3):
    x = oracle.outer(oracle.planted(rng, shape, rank))
    return x + level * np.std(x) * rng.standard_normal(shape)


def matches(found, factors):
    """Smallest over components of the best product of cosines over modes."""
    total = 1.0
    for a, b in zip(found.factors, factors, strict=True):
        total = total * np.abs(a.T @ (b / np.linalg.norm(b, axis=0)))
    return total.max(axis=0).min()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(9, 8, 7), (6, 5, 4, 7), (4, 3, 4, 3, 5)])
def test_planted_components_are_found(shape, dtype, rng):
    factors = oracle.planted(rng, shape, 3)
    x = oracle.outer(factors).astype(dtype)
    result = cp(x, 3, n_starts=4, tol=1e-10 if dtype == np.float64 else 1e-6)
    assert result.error < (1e-6 if dtype == np.float64 else 1e-4)
    assert matches(result.tensor, factors) > 0.9999
    assert all(a.dtype == dtype for a in result.tensor.factors)
    np.testing.assert_allclose(result.tensor.to_dense(), x, rtol=0, atol=1e-3 * np.abs(x).max())


@pytest.mark.parametrize("shape", [(12, 10, 8), (30, 25, 20), (6, 7, 5, 4), (3, 4, 5, 3, 2)])
def test_errors_are_those_of_plain_als(shape, rng):
    """Sweep by sweep, with and without the dimension tree."""
    x, init = noisy(rng, shape, 3), oracle.planted(rng, shape, 3)
    result = cp(x, 3, init=(None, init), max_iter=12, tol=0, ridge=0)
    np.testing.assert_allclose(result.errors[:, 0], oracle.als_errors(x, init, 12), atol=1e-10)
    np.testing.assert_allclose(result.error, result.errors[-1, 0], atol=1e-12)


def test_where_the_tree_pays():
    assert tree_split((500, 50, 50)) == 1
    assert tree_split((60, 60, 60, 60)) == 2
    assert tree_split((20, 20, 20)) == 0
    assert tree_split((50, 50, 500)) == 2


def test_contraction_of_a_half(rng):
    partial = rng.standard_normal((2, 3, 4, 5, 6))
    factors = [rng.standard_normal((2, n, 6)) for n in (3, 4, 5)]
    wanted = np.einsum("sabcr,sar,scr->sbr", partial, factors[0], factors[2])
    np.testing.assert_allclose(contracted(partial, factors, 1), wanted, atol=1e-12)


def test_tensorly_has_the_same_errors(rng):
    tensorly = pytest.importorskip("tensorly.decomposition")
    x, init = noisy(rng, (12, 10, 8), 3), oracle.planted(rng, (12, 10, 8), 3)
    start = (np.ones(3), [a.copy() for a in init])
    theirs = tensorly.parafac(x, 3, init=start, n_iter_max=15, tol=0, return_errors=True)[1]
    ours = cp(x, 3, init=(np.ones(3), init), max_iter=15, tol=0)
    np.testing.assert_allclose(ours.errors[:, 0], theirs, atol=1e-8)


def test_a_start_depends_on_no_other(rng):
    x = noisy(rng, (9, 8, 7), 3)
    together = cp(x, 3, n_starts=5, tol=1e-5, seed=7)
    assert len(set(together.iterations.tolist())) > 1
    fewer = cp(x, 3, n_starts=2, tol=1e-5, seed=7)
    for s in range(2):
        steps = fewer.iterations[s]
        np.testing.assert_allclose(together.errors[:steps, s], fewer.errors[:steps, s], rtol=1e-12)
    assert together.best == np.nanargmin([np.nanmin(together.errors[:, s]) for s in range(5)])
    assert np.isnan(together.errors[together.iterations.min() :]).any()


@pytest.mark.parametrize("options", [{}, {"line_search": True}, {"nonnegative": [0]}])
def test_goes_on_where_it_stopped(options, rng):
    x = noisy(rng, (9, 8, 7), 3)
    whole = cp(x, 3, n_starts=2, max_iter=20, tol=0, **options)
    half = cp(x, 3, n_starts=2, max_iter=8, tol=0, **options)
    rest = cp(x, 3, init=half, max_iter=12, tol=0, **options)
    same_bits((rest.errors, whole.errors), (rest.tensor.weights, whole.tensor.weights))
    assert not rest.converged.any()


def test_the_form_of_the_result(rng):
    x = noisy(rng, (9, 8, 7), 3)
    weights, factors = cp(x, 3).tensor
    assert (np.diff(np.abs(weights)) <= 0).all()
    for a in factors:
        np.testing.assert_allclose(np.linalg.norm(a, axis=0), 1)
        assert (a[np.abs(a).argmax(axis=0), np.arange(3)] > 0).all()
    mine = CPTensor(weights, factors)
    np.testing.assert_allclose(mine.norm(), np.linalg.norm(mine.to_dense()))
    assert (mine.rank, mine.shape) == (3, (9, 8, 7))


def test_libraries(library, rng):
    x = oracle.outer(oracle.planted(rng, (5, 4, 3), 1))
    result = cp(library.put(x), 1)
    assert library.owns(result.tensor.weights)
    assert all(library.owns(a) for a in result.tensor.factors)
    np.testing.assert_allclose(library.get(result.tensor.to_dense()), x, atol=1e-10)


@pytest.mark.parametrize("init", ["random", "hosvd"])
def test_nonnegative(init, rng):
    factors = [np.abs(a) * (rng.random(a.shape) < 0.7) for a in oracle.planted(rng, (9, 8, 7), 3)]
    x = oracle.outer(factors)
    result = cp(x, 3, nonnegative=True, n_starts=3, init=init, tol=1e-9, max_iter=800)
    assert result.error < 1e-3
    assert (result.tensor.weights >= 0).all()
    assert all((a >= 0).all() for a in result.tensor.factors)
    assert np.nanmax(np.diff(result.errors, axis=0)) < 1e-7  # it never rises
    many = cp(x + 1, 12, nonnegative=True, max_iter=30)  # starts far too large
    assert many.error < 0.1
    partly = cp(x - 1, 3, nonnegative=[1], max_iter=30)
    assert (partly.tensor.factors[1] >= 0).all()


@pytest.mark.parametrize("order", [3, 4])
def test_symmetric(order, rng):
    """Negative weights of even order too; the error never rises."""
    a = np.linalg.qr(rng.standard_normal((6, 3)))[0] + 0.1 * rng.standard_normal((6, 3))
    w = np.array([3.0, -2.0, 1.5])
    x = oracle.outer([a] * order, w)
    result = cp(x, 3, symmetric=True, n_starts=6, tol=1e-10, max_iter=300)
    assert result.error < 1e-3
    assert np.nanmax(np.diff(result.errors, axis=0)) < 1e-7
    for factor in result.tensor.factors[1:]:
        np.testing.assert_allclose(factor, result.tensor.factors[0], atol=1e-12)
    assert matches(result.tensor, [a] * order) > 0.999
    assert (result.tensor.weights < 0).sum() == (1 if order == 4 else (w < 0).sum()) or order == 3


def test_two_modes_that_share_a_factor(rng):
    a, b = rng.standard_normal((6, 2)), rng.standard_normal((5, 2))
    x = oracle.outer([b, a, a])
    result = cp(x, 2, symmetric=[(1, 2)], n_starts=5, tol=1e-10, max_iter=400)
    assert result.error < 1e-3
    np.testing.assert_allclose(*result.tensor.factors[1:], atol=1e-12)
    assert np.nanmax(np.diff(result.errors, axis=0)) < 1e-7


def test_masked(rng):
    x = oracle.outer(oracle.planted(rng, (12, 11, 10), 2))
    mask = rng.random(x.shape) < 0.5
    holes = np.where(mask, x, np.nan)
    result = cp(holes, 2, mask=mask, n_starts=3, tol=1e-9, max_iter=500)
    assert result.error < 1e-6
    np.testing.assert_allclose(result.tensor.to_dense(), x, atol=1e-4)
    assert np.nanmax(np.diff(result.errors, axis=0)) < 1e-9
    all_known = cp(x, 2, mask=np.ones(x.shape, bool), max_iter=5, tol=0)
    plain = cp(x, 2, max_iter=5, tol=0)
    np.testing.assert_allclose(all_known.errors, plain.errors, atol=1e-7)


def swamp(rng):
    """Nearly collinear columns in all modes: hundreds of sweeps."""
    return oracle.outer(
        [rng.standard_normal((n, 1)) + 0.3 * rng.standard_normal((n, 3)) for n in (10, 9, 8)]
    )


def test_line_search_helps_in_a_swamp(rng):
    x = swamp(rng)
    plain = cp(x, 3, max_iter=120, tol=0, n_starts=4)
    ahead = cp(x, 3, max_iter=120, tol=0, n_starts=4, line_search=True)
    assert np.median(ahead.errors[-1]) < np.median(plain.errors[-1])
    assert np.nanmax(np.diff(ahead.errors, axis=0)) < 1e-7


def test_no_best_approximation(rng):
    """Of rank 3, a limit of rank 2: components diverge, the error goes on falling."""
    a, b = rng.standard_normal(5), rng.standard_normal(5)
    x = sum(np.einsum("i,j,k->ijk", *p) for p in ((a, a, b), (a, b, a), (b, a, a)))
    early, late = (cp(x, 2, max_iter=n, tol=0, n_starts=3, seed=1) for n in (20, 300))
    assert late.error < early.error
    assert abs(late.tensor.weights[0]) > abs(early.tensor.weights[0])
    assert np.isfinite(late.tensor.factors[0]).all()
    assert cp(x, 3, tol=1e-11, n_starts=3, max_iter=1000).error < 1e-3


def test_more_components_than_the_tensor_has(rng):
    x = oracle.outer(oracle.planted(rng, (4, 3, 5), 2))
    for init in ("random", "hosvd"):
        result = cp(x, 7, init=init, max_iter=100)  # more than any extent, too
        assert result.error < 1e-5
        assert np.isfinite(result.tensor.factors[2]).all()
    same = oracle.planted(rng, (4, 3, 5), 1)
    doubled = cp(x, 2, init=(None, [np.repeat(a, 2, axis=1) for a in same]), max_iter=3, tol=0)
    assert np.isfinite(doubled.errors).all()


def test_extents_of_one_and_zeros(rng):
    x = oracle.outer(oracle.planted(rng, (1, 6, 5), 1))
    assert cp(x, 1).error < 1e-9
    nothing = cp(np.zeros((3, 4, 5)), 2)
    assert nothing.error == 0
    assert nothing.converged.all()
    assert not nothing.tensor.weights.any()


def test_the_record_and_the_budget(rng):
    x, seen = noisy(rng, (6, 5, 4), 2), []
    result = cp(x, 2, max_iter=3, tol=0, progress=lambda n, e: seen.append((n, float(e[0]))))
    assert seen == list(enumerate(result.errors[:, 0]))
    assert not result.converged[0]
    with pytest.raises(ConvergenceError, match=r"\[cp\] the error must change by less than"):
        cp(x, 2, max_iter=3, tol=0, errors="raise")
    assert cp(x, 2, tol=1e-3, errors="raise").converged[0]


def test_other_libraries_objects(rng):
    x = noisy(rng, (6, 5, 4), 2)
    tensor = cp(x, 2).tensor
    tensorly = pytest.importorskip("tensorly")
    theirs = tensor.to_tensorly()
    np.testing.assert_allclose(tensorly.cp_to_tensor(theirs), tensor.to_dense())
    same_bits((CPTensor.from_tensorly(theirs).weights, tensor.weights))
    assert CPTensor.from_tensorly((None, tensor.factors)).weights.tolist() == [1.0, 1.0]


def test_pyttb_objects(rng):
    pytest.importorskip("pyttb")
    tensor = cp(noisy(rng, (6, 5, 4), 2), 2).tensor
    theirs = tensor.to_pyttb()
    np.testing.assert_allclose(theirs.full().data, tensor.to_dense())
    again = CPTensor.from_pyttb(theirs)
    np.testing.assert_allclose(again.to_dense(), tensor.to_dense())


X = np.ones((3, 4, 5))
PAIR = (np.ones(2), [np.ones((n, 2)) for n in X.shape])


@pytest.mark.parametrize(
    ("x", "rank", "options", "kind", "text"),
    [
        (np.ones((3, 4)), 1, {}, InvalidArgumentError, "3 or more modes, got 2 .*subspan.svd"),
        (np.ones((3, 0, 4)), 1, {}, InvalidArgumentError, "no empty mode"),
        (X, 0, {}, InvalidArgumentError, "rank must be >= 1, got 0"),
        (X, 13, {}, InvalidArgumentError, "rank must be at most 12, the smallest product"),
        (X, 1.0, {}, DtypeError, "rank must be an integer"),
        (X.astype(int), 1, {}, DtypeError, "x must be float32 or float64"),
        (np.where(X, np.nan, 0), 1, {}, InvalidArgumentError, r"finite, got nan at \(0, 0, 0\)"),
        (X, 1, {"mask": X}, DtypeError, "mask must be of bool"),
        (X, 1, {"mask": X[0] > 0}, InvalidArgumentError, "mask must have the shape of x"),
        (X, 1, {"mask": X < 0}, InvalidArgumentError, "mask must leave elements"),
        (X, 1, {"init": "svd"}, InvalidArgumentError, "init must be one of"),
        (X, 1, {"init": 3}, DtypeError, "init must be 'random'"),
        (X, 3, {"init": PAIR}, InvalidArgumentError, "init must have float64 factors"),
        (X, 2, {"init": (np.ones(2), PAIR[1][:1])}, InvalidArgumentError, "two or more factors"),
        (X, 2, {"init": [PAIR, PAIR], "n_starts": 3}, InvalidArgumentError, "n_starts must be 2"),
        (X, 1, {"n_starts": 0}, InvalidArgumentError, "n_starts must be >= 1"),
        (X, 1, {"nonnegative": [3]}, InvalidArgumentError, "nonnegative must be in"),
        (X, 1, {"symmetric": True}, InvalidArgumentError, "modes of one extent"),
        (X, 1, {"symmetric": [(1,)]}, InvalidArgumentError, "groups of two or more"),
        (X, 1, {"symmetric": [(0, 1), (1, 2)]}, InvalidArgumentError, "distinct modes"),
        (X, 1, {"tol": -1.0}, InvalidArgumentError, "tol must be"),
        (X, 1, {"errors": "ignore"}, InvalidArgumentError, "errors must be one of"),
    ],
)
def test_refused(x, rank, options, kind, text):
    with pytest.raises(kind, match=text) as caught:
        cp(x, rank, **options)
    assert str(caught.value).startswith("[cp] ")


def test_refusals_that_need_numbers(rng):
    cube = rng.standard_normal((4, 4, 4))
    with pytest.raises(InvalidArgumentError, match=r"relative asymmetry of 1\.\d+"):
        cp(cube, 2, symmetric=True)
    even = np.ones((4, 4, 4))
    with pytest.raises(InvalidArgumentError, match=r"share no factor, got \[0, 1\]"):
        cp(even, 2, symmetric=[(0, 1)], nonnegative=True)
    with pytest.raises(InvalidArgumentError, match="init must be a result for shape"):
        cp(cube, 3, init=cp(cube, 2, max_iter=1))
