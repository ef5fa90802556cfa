"""spm: planted components of all orders, noise, rank, moments of samples, landscape, refusals."""

import numpy as np
import pytest
from matrices import same_bits
from subspan.errors import ConvergenceError, DtypeError, InvalidArgumentError, UnsupportedError
from subspan.tensors import _spm_spectrum, spm, spm_from_samples, symmetric_pack, symmetrize
from tensor_oracle import matched, power_sum, unit_columns

# (d, order, rank): below, at and near the greatest ranks that are sure to be found.
SIZES = [
    *((2, 3, 2), (3, 3, 3), (7, 3, 1), (7, 3, 4), (12, 3, 12), (2, 4, 2), (3, 4, 4), (4, 4, 6)),
    *((8, 4, 3), (10, 4, 25), (9, 4, 30), (2, 5, 3), (4, 5, 9), (6, 5, 21), (3, 6, 7), (5, 6, 28)),
]


def planted(d, order, rank, rng):
    a = unit_columns(d, rank, rng)
    weights = rng.uniform(0.5, 2.0, rank) * rng.choice([-1.0, 1.0], rank)
    return a, weights, power_sum(a, weights, order)


@pytest.mark.parametrize(("d", "order", "rank"), SIZES)
def test_planted_components_are_found(d, order, rank, rng):
    a, weights, t = planted(d, order, rank, rng)
    found = spm(t)
    assert found.info.rank == rank
    assert found.factors.shape == (d, rank)
    assert found.info.converged.all()
    assert matched(a, found.factors) < 1e-13
    assert found.info.error < 1e-12
    np.testing.assert_allclose(power_sum(found.factors, found.weights, order), t, atol=1e-11)
    np.testing.assert_allclose(found.info.fits, 1, atol=1e-13)
    assert (np.diff(np.abs(found.weights)) <= 0).all()
    wanted = np.abs(weights) if order % 2 else weights
    np.testing.assert_allclose(np.sort(found.weights), np.sort(wanted), atol=1e-10)
    if order % 2 == 0:
        first = np.argmax(np.abs(found.factors) >= np.abs(found.factors).max(axis=0) / 2, axis=0)
        assert (found.factors[first, np.arange(rank)] > 0).all()


def test_the_greatest_rank(rng):
    """There f is nearly flat at components, which costs digits, and has maxima that are none."""
    a, _, t = planted(9, 4, 36, rng)
    found = spm(t)
    assert found.info.rejected > 0
    assert matched(a, found.factors) < 1e-13
    assert found.info.error < 1e-9


@pytest.mark.parametrize(("d", "order"), [(4, 3), (5, 4), (3, 5), (3, 6)])
@pytest.mark.parametrize("block", [1, 2, 64])
def test_ways_to_search_end_alike(d, order, block, rng):
    _, _, t = planted(d, order, d, rng)
    wanted = spm(t)
    for options in ({"block": block}, {"block": block, "shift": "fixed"}, {"rank": d, "seed": 5}):
        found = spm(t, **options)
        assert matched(found.factors, wanted.factors) < 1e-13
        np.testing.assert_allclose(found.weights, wanted.weights, atol=1e-11)


@pytest.mark.parametrize("order", [3, 4, 5, 6])
def test_packed_and_full_tensors_are_the_same(order, rng):
    _, _, t = planted(4, order, 4, rng)
    t = symmetrize(t)
    full, unique = spm(t), spm(symmetric_pack(t), order=order, packed=True)
    same_bits((full.weights, unique.weights), (full.factors, unique.factors))


@pytest.mark.parametrize("order", [3, 4, 5, 6])
def test_sizes_and_signs_of_tensors(order, rng):
    a, _, t = planted(4, order, 4, rng)
    wanted = spm(t)
    for exponent in (-300, 300):
        found = spm(np.ldexp(t, exponent))
        same_bits((found.factors, wanted.factors))
        same_bits((found.weights, np.ldexp(wanted.weights, exponent)))
    turned = spm(-t)
    assert matched(turned.factors, a) < 1e-13
    if order % 2 == 0:
        np.testing.assert_allclose(np.sort(turned.weights), np.sort(-wanted.weights), atol=1e-11)


def test_noise_moves_components_by_its_size(rng):
    """Figure 3 of the paper at a third of its size: the error follows the noise."""
    a, _, _ = planted(8, 4, 12, rng)
    t = power_sum(a, np.ones(12), 4)
    for sigma in (1e-6, 1e-4, 1e-3):
        noise = symmetrize(rng.standard_normal(t.shape))
        noisy = t + sigma * noise * np.linalg.norm(t) / np.linalg.norm(noise)
        found = spm(noisy, rank=12)
        assert matched(a, found.factors) < (10 * sigma) ** 2
        assert found.info.error < 2 * sigma
        assert found.info.converged.all()
        assert spm(noisy, ranksel=20 * sigma).info.rank == 12


def test_repeated_and_opposite_components_are_one(rng):
    a = unit_columns(6, 3, rng)
    both = np.column_stack([a, a[:, 0], -a[:, 1]])
    found = spm(power_sum(both, np.array([1.0, 1.0, 1.0, 2.0, 3.0]), 4))
    assert found.info.rank == 3
    np.testing.assert_allclose(found.weights, [4, 3, 1], atol=1e-12)
    cancelled = spm(power_sum(both, np.array([1.0, 1.0, 1.0, 2.0, 3.0]), 3))
    np.testing.assert_allclose(cancelled.weights, [3, 2, 1], atol=1e-12)  # 1 - 3 = -2


def test_few_components_in_many_dimensions(rng):
    """Random starts are nearly orthogonal to all of them, and are drawn anew."""
    a, _, t = planted(30, 3, 1, rng)
    found = spm(t)
    assert found.info.restarts > 0
    assert matched(a, found.factors) < 1e-14


def test_a_start_beside_the_subspace_is_no_component(rng):
    """f is 1 at components only; a tensor of no low rank has none, and the best are taken."""
    t = symmetrize(rng.standard_normal((5, 5, 5, 5)))
    found = spm(t, rank=3)
    assert found.info.rejected > 0
    assert (found.info.fits < 0.99).any()
    assert found.info.error > 0.1


def test_zero_tensors_have_rank_zero():
    for order in (3, 4, 5, 6):
        found = spm(np.zeros((3,) * order))
        assert found.info.rank == 0
        assert found.weights.shape == (0,)
        assert found.factors.shape == (3, 0)
        assert found.info.error == 0


def test_one_dimension():
    for order in (3, 4, 5, 6):
        found = spm(np.full((1,) * order, -3.0))
        assert found.weights.tolist() == ([3.0] if order % 2 else [-3.0])
        assert found.factors.tolist() == ([[-1.0]] if order % 2 else [[1.0]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_same_library_out(library, dtype, rng):
    a, _, t = planted(5, 4, 6, rng)
    t = symmetrize(t).astype(dtype)
    found = spm(library.put(t))
    assert library.owns(found.weights)
    factors = library.get(found.factors)
    assert factors.dtype == dtype
    assert found.info.rank == 6
    assert matched(a, factors) < (1e-6 if dtype is np.float32 else 1e-13)


@pytest.mark.parametrize("rank", [None, 12])
def test_spectra_of_low_rank_are_those_of_eigh(rank, rng):
    """From a basis of the range, which is worked out instead where there are rows enough."""
    n = _spm_spectrum.SKETCHED
    basis = np.linalg.qr(rng.standard_normal((n, 12)))[0]
    values = np.array([3, -2.9, 2, 1, -0.9, 0.5, 0.1, 1e-2, -1e-3, 1e-5, 1e-7, 1e-9])
    low = (basis * values) @ basis.T
    low = (low + low.T) / 2
    found = _spm_spectrum.spectrum_of(low, rank, 1e-4, even=True)
    assert len(found.values) < n // 2  # not those of all rows
    np.testing.assert_allclose(found.values[:12], values, atol=1e-14)
    assert np.abs(found.values[12:]).max(initial=0) < 1e-14
    np.testing.assert_allclose(found.left.T @ found.left, np.eye(len(found.values)), atol=1e-13)
    np.testing.assert_allclose((found.left * found.values) @ found.left.T, low, atol=1e-14)
    noise = rng.standard_normal((n, n))
    full = low + 1e-6 * (noise + noise.T)
    found = _spm_spectrum.spectrum_of(full, rank, 1e-4, even=True)
    wanted = np.linalg.eigvalsh(full)
    assert len(found.values) == n
    np.testing.assert_allclose(np.sort(found.values), wanted, atol=1e-13)
    assert len(_spm_spectrum.spectrum_of(np.zeros((n, n)), None, 1e-4, even=True).values) == 0


@pytest.mark.slow
@pytest.mark.parametrize(("d", "order", "rank"), [(40, 4, 400), (19, 5, 190), (11, 6, 250)])
def test_sizes_of_the_paper(d, order, rank, rng):
    a, _, t = planted(d, order, rank, rng)
    found = spm(t)
    assert found.info.rank == rank
    assert matched(a, found.factors) < 1e-13
    assert found.info.error < 1e-12


# ---- moments of samples ----------------------------------------------------------------------


@pytest.mark.parametrize("order", [3, 4, 5, 6])
def test_the_moment_of_samples_is_their_tensor(order, rng):
    x = rng.uniform(0.8, 1.2, (6, 1)) * unit_columns(4, 6, rng).T
    t = power_sum(x.T, np.full(6, 1 / 6), order)
    rank = 6 if order > 3 else 3
    found = spm_from_samples(x[:rank], order)
    wanted = spm(power_sum(x[:rank].T, np.full(rank, 1 / rank), order))
    assert t.shape == (4,) * order
    assert matched(found.factors, wanted.factors) < 1e-13
    np.testing.assert_allclose(found.weights, wanted.weights, rtol=1e-9)
    directions = (x[:rank] / np.linalg.norm(x[:rank], axis=1, keepdims=True)).T
    assert matched(found.factors, directions) < 1e-13


@pytest.mark.parametrize("order", [3, 4, 5])
def test_gaussian_noise_is_taken_out_of_the_moment(order):
    """Exactly: samples at the nodes of a quadrature that has the moments of a Gaussian up to 5."""
    steps = np.sqrt(3) * np.array([-1, 0, 0, 0, 0, 1])  # of mass 1/6, 2/3, 1/6
    centres = np.array([[1.0, 0.5], [-0.3, 1.2]])
    noise = 0.4 * np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
    x = (centres[:, None] + noise).reshape(-1, 2)
    clean = spm_from_samples(centres, order)
    found = spm_from_samples(x, order, noise_variance=0.16)
    assert found.info.rank == 2
    assert matched(found.factors, clean.factors) < 1e-13
    np.testing.assert_allclose(found.weights, clean.weights, rtol=1e-11)
    assert matched(spm_from_samples(x, order, 2).factors, clean.factors) > 1e-4


# ---- refusals --------------------------------------------------------------------------------

SKEW = np.zeros((2, 2, 2))
SKEW[0, 0, 1] = 0.5
HOLE = np.full((2, 2, 2), np.nan)
ONES = np.ones((3, 3, 3, 3))


@pytest.mark.parametrize(
    ("t", "options", "error", "text"),
    [
        (np.eye(3), {}, InvalidArgumentError, r"order must be in 3\.\.6, got 2\. For order 2 use"),
        (np.ones((2,) * 7), {}, InvalidArgumentError, r"got 7\. Other orders are not served"),
        (SKEW, {}, InvalidArgumentError, r"t must be symmetric, got entries that differ by 1 of"),
        (HOLE, {}, InvalidArgumentError, "t must be finite, got NaN"),
        (np.ones((2, 2, 3)), {}, InvalidArgumentError, "must have its last 3 axes of one length"),
        (np.ones((4, 3, 3, 3)), {"order": 3}, InvalidArgumentError, "t must be one tensor of 3"),
        (np.ones(4), {"packed": True}, InvalidArgumentError, "order must be given for packed"),
        (np.ones(5), {"packed": True, "order": 3}, InvalidArgumentError, "entries in its last"),
        (ONES.astype(int), {}, DtypeError, "t must be float32 or float64"),
        ([1.0], {}, DtypeError, "t must be an array"),
        (ONES, {"rank": 0}, InvalidArgumentError, r"rank must be in 1\.\.4, .* got 0"),
        (
            ONES,
            {"rank": 5},
            InvalidArgumentError,
            r"rank must be in 1\.\.4, up to which dimension 3",
        ),
        (ONES, {"rank": 2}, InvalidArgumentError, r"in 1\.\.1, the rank of the flattening, got 2"),
        (ONES, {"rank": 1.5}, DtypeError, "rank must be an integer"),
        (ONES, {"ranksel": -1}, InvalidArgumentError, "ranksel must be in"),
        (ONES, {"n_starts": 0}, InvalidArgumentError, "n_starts must be >= 1"),
        (ONES, {"block": 0}, InvalidArgumentError, "block must be >= 1"),
        (ONES, {"tol": 0}, InvalidArgumentError, "tol must be in"),
        (ONES, {"max_iter": 0}, InvalidArgumentError, "max_iter must be >= 1"),
        (ONES, {"shift": "x"}, InvalidArgumentError, "shift must be one of"),
        (ONES, {"errors": "x"}, InvalidArgumentError, "errors must be one of"),
        (ONES, {"seed": -1}, InvalidArgumentError, "seed must be >= 0"),
    ],
)
def test_refusals(t, options, error, text):
    with pytest.raises(error, match=r"\[spm\] .*" + text):
        spm(t, **options)


def test_a_rank_beyond_the_bound_is_refused(rng):
    t = power_sum(unit_columns(4, 9, rng), np.ones(9), 4)
    with pytest.raises(
        InvalidArgumentError, match=r"\[spm\] .* rank <= 6, .* flattening of rank 9"
    ):
        spm(t)


def test_a_spent_budget_is_told(rng):
    _, _, t = planted(6, 4, 8, rng)
    found = spm(t, max_iter=1)
    assert not found.info.converged.all()
    assert found.info.rank == 8
    with pytest.raises(ConvergenceError, match=r"\[spm\] \d of 8 components did not converge in 1"):
        spm(t, max_iter=1, errors="raise")


def test_refused_samples():
    x = np.ones((5, 2))
    for bad, options, text in (
        (np.ones(5), {}, "x must have 2 axes"),
        (np.ones((0, 2)), {}, "x must have rows and columns"),
        (np.full((3, 2), np.inf), {}, "x must be finite"),
        (x, {"noise_variance": -1}, "noise_variance must be in"),
        (x, {"order": 2}, "order must be in"),
    ):
        with pytest.raises(InvalidArgumentError, match=rf"\[spm_from_samples\] {text}"):
            spm_from_samples(bad, **{"order": 4, **options})


def test_cuda_arrays_are_refused():
    from test_interop import CUDA, Producer

    with pytest.raises(UnsupportedError, match=r"\[spm\] t must be on the CPU"):
        spm(Producer(np.zeros((2, 2, 2)), device=CUDA))
