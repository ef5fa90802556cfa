"""Packed symmetric tensors, symmetrization, and hopm on tensors without symmetry."""

from itertools import permutations

import numpy as np
import pytest
from matrices import same_bits
from subspan.errors import ConvergenceError, DtypeError, InvalidArgumentError
from subspan.tensors import hopm, symmetric_pack, symmetric_unpack, symmetrize
from tensor_oracle import packed, symmetric_normal

# ---- packed form -----------------------------------------------------------------------------


@pytest.mark.parametrize(("d", "order"), [(1, 3), (3, 1), (4, 2), (3, 3), (5, 4), (2, 6)])
def test_packing_and_back(d, order, rng):
    a = symmetric_normal(d, order, rng)
    unique = symmetric_pack(a)
    same_bits((unique, packed(a)), (symmetric_unpack(unique, order), a))
    batch = np.stack([a, 2 * a, -a]).reshape(3, 1, *a.shape)
    both = symmetric_pack(batch, order=order)
    assert both.shape == (3, 1, len(unique))
    same_bits((both[1, 0], 2 * unique), (symmetric_unpack(both, order), batch))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_symmetrization_is_the_mean_over_permutations(dtype, library, rng):
    for order in (2, 3, 4):
        a = rng.standard_normal((3,) * order).astype(dtype)
        found = symmetrize(library.put(a))
        assert library.owns(found)
        found = library.get(found)
        wanted = np.mean([a.transpose(p) for p in permutations(range(order))], axis=0)
        np.testing.assert_allclose(found, wanted, atol=10 * np.finfo(dtype).eps)
        for p in permutations(range(order)):
            same_bits((found.transpose(p), found))
        same_bits((symmetrize(np.stack([a, a]), order=order)[1], found))


def test_packing_refuses_what_is_not_symmetric(rng):
    a = symmetric_normal(3, 4, rng)
    a[0, 1, 2, 0] += 1e-3 * np.abs(a).max()
    with pytest.raises(InvalidArgumentError, match=r"\[symmetric_pack\] a must be symmetric, got "):
        symmetric_pack(a)
    assert symmetric_pack(a, tol=1e-2).shape == (15,)
    with pytest.raises(InvalidArgumentError, match=r"\(tensor 1\)"):
        symmetric_pack(np.stack([symmetrize(a), a]), order=4)
    # Each exchange of axes, not only that of neighbours, is looked at.
    for axes in ((0, 1), (1, 2), (2, 3), (0, 3), (1, 3)):
        b = np.zeros((2, 2, 2, 2))
        index = [0, 0, 0, 0]
        index[axes[0]] = 1
        b[tuple(index)] = 1
        with pytest.raises(InvalidArgumentError, match="differ by 1 of the largest"):
            symmetric_pack(b)


@pytest.mark.parametrize(("d", "order"), [(300, 2), (50, 3), (18, 4)])
def test_one_entry_of_many_that_differs_is_seen(d, order, rng):
    """Tensors are compared with themselves piece by piece."""
    a = np.ones((d,) * order)
    symmetric_pack(a)
    for _ in range(5):
        index = tuple(rng.choice(d, order, replace=False))
        a[index] = -1
        with pytest.raises(InvalidArgumentError, match="differ by 2 of the largest"):
            symmetric_pack(a)
        a[index] = 1


def test_refused_shapes():
    with pytest.raises(InvalidArgumentError, match=r"\[symmetric_unpack\] packed must have C"):
        symmetric_unpack(np.ones(5), 3)
    with pytest.raises(InvalidArgumentError, match="order must be >= 1"):
        symmetric_unpack(np.ones(5), 0)
    with pytest.raises(InvalidArgumentError, match=r"\[symmetrize\] a must have its last 2 axes"):
        symmetrize(np.ones((2, 3)))
    with pytest.raises(DtypeError, match=r"\[symmetric_pack\] a must be float32 or float64"):
        symmetric_pack(np.ones((2, 2), int))


# ---- rank one --------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 3), (3, 5, 4), (2, 3, 4, 5), (3, 1, 2), (2, 3, 2, 2, 3)])
def test_rank_one_tensors_are_found(shape, rng):
    planted = [rng.standard_normal(n) for n in shape]
    t = planted[0]
    for x in planted[1:]:
        t = t[..., None] * x
    found = hopm(t)
    assert found.error < 1e-14
    assert found.converged.all()
    assert abs(found.weight / np.linalg.norm(t) - 1) < 1e-14
    again = found.weight * found.factors[0]
    for x, y in zip(found.factors, planted, strict=True):
        assert abs(abs(x @ y) / np.linalg.norm(y) - 1) < 1e-14
    for x in found.factors[1:]:
        again = again[..., None] * x
    np.testing.assert_allclose(again, t, atol=1e-13 * np.abs(t).max())


def test_a_matrix_gives_its_leading_singular_vectors(rng):
    a = rng.standard_normal((6, 4))
    found = hopm(a, n_starts=3)
    np.testing.assert_allclose(found.weights, np.linalg.svd(a)[1][0], rtol=1e-12)
    assert abs(found.error - np.sqrt(1 - (found.weight / np.linalg.norm(a)) ** 2)) < 1e-12


def test_ends_are_stationary(rng):
    t = rng.standard_normal((5, 4, 6))
    found = hopm(t, n_starts=20)
    u, v, w = found.factors
    for gradient, x in (
        (np.einsum("ijk,j,k->i", t, v, w), u),
        (np.einsum("ijk,i,k->j", t, u, w), v),
        (np.einsum("ijk,i,j->k", t, u, v), w),
    ):
        np.testing.assert_allclose(gradient, found.weight * x, atol=1e-6)
    assert found.weight == found.weights.max() > 0
    assert found.weights.shape == found.iterations.shape == (21,)
    assert all(x[np.argmax(np.abs(x) >= np.abs(x).max() / 2)] > 0 for x in (u, v))


def test_hopm_in_other_libraries(library, rng):
    t = rng.standard_normal((3, 4, 2)).astype(np.float32)
    found = hopm(library.put(t))
    assert all(library.owns(x) for x in found.factors)
    assert library.get(found.factors[0]).dtype == np.float32
    assert abs(found.weight - hopm(t.astype(float)).weight) < 1e-12


def test_hopm_extremes(rng):
    assert hopm(np.zeros((2, 3, 2))).weight == 0
    t = rng.standard_normal((3, 3, 3))
    for exponent in (-900, 900):
        assert hopm(np.ldexp(t, exponent)).weight == np.ldexp(hopm(t).weight, exponent)
    short = hopm(t, max_iter=1)
    assert not short.converged.all()
    with pytest.raises(ConvergenceError, match=r"\[hopm\] .* starts did not converge in 1 sweeps"):
        hopm(t, max_iter=1, errors="raise")


@pytest.mark.parametrize(
    ("t", "options", "text"),
    [
        (np.ones(3), {}, "t must have 2 or more axes"),
        (np.ones((2, 0)), {}, "t must have no empty axis"),
        (np.full((2, 2), np.nan), {}, "t must be finite"),
        (np.ones((2, 2)), {"n_starts": -1}, "n_starts must be >= 0"),
        (np.ones((2, 2)), {"max_iter": 0}, "max_iter must be >= 1"),
        (np.ones((2, 2)), {"tol": -1}, "tol must be in"),
        (np.ones((2, 2)), {"errors": "x"}, "errors must be one of"),
    ],
)
def test_hopm_refusals(t, options, text):
    with pytest.raises(InvalidArgumentError, match=rf"\[hopm\] {text}"):
        hopm(t, **options)
