"""unfold, fold, khatri_rao, kronecker, mode products: the identities of both conventions."""

import decomposition_oracle as oracle
import numpy as np
import pytest
from subspan.errors import DtypeError, InvalidArgumentError
from subspan.tensors import (
    fold,
    khatri_rao,
    kronecker,
    mode_product,
    multi_mode_product,
    unfold,
)

CONVENTIONS = ["tensorly", "kolda"]


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("shape", [(3, 4, 2), (2, 3, 4, 5), (4, 3)])
def test_the_identities_of_a_convention(shape, convention, rng):
    factors = oracle.planted(rng, shape, 3)
    x = oracle.outer(factors)
    bases = [rng.standard_normal((n, 2)) for n in shape]
    core = rng.standard_normal((2,) * len(shape))
    whole = multi_mode_product(core, dict(enumerate(bases)))
    for n in range(len(shape)):
        flat = unfold(x, n, convention=convention)
        assert np.array_equal(fold(flat, n, shape, convention=convention), x)
        rest = [a for m, a in enumerate(factors) if m != n]
        side = khatri_rao(rest, convention=convention)
        np.testing.assert_allclose(flat, factors[n] @ side.T, rtol=0, atol=1e-12)
        np.testing.assert_allclose(flat @ side, oracle.mttkrp(x, factors, n), rtol=0, atol=1e-11)
        others = kronecker([a for m, a in enumerate(bases) if m != n], convention=convention)
        np.testing.assert_allclose(
            unfold(whole, n, convention=convention),
            bases[n] @ unfold(core, n, convention=convention) @ others.T,
            rtol=0,
            atol=1e-12,
        )


def test_columns_of_kolda_and_bader():
    """Example 2.6 of Kolda and Bader (2009), page 460: frontal slices 1..12 and 13..24."""
    slices = np.arange(1.0, 25).reshape(2, 4, 3)  # each column by column
    x = slices.transpose(2, 1, 0)
    assert unfold(x, 0, convention="kolda")[0].tolist() == [1, 4, 7, 10, 13, 16, 19, 22]
    assert unfold(x, 1, convention="kolda")[0].tolist() == [1, 2, 3, 13, 14, 15]
    assert unfold(x, 2, convention="kolda")[0].tolist() == list(range(1, 13))


def test_products_of_modes(rng):
    x = rng.standard_normal((4, 5, 6))
    a, b = rng.standard_normal((3, 5)), rng.standard_normal((2, 6))
    np.testing.assert_allclose(mode_product(x, a, 1), np.einsum("ijk,aj->iak", x, a), atol=1e-12)
    both = multi_mode_product(x, {-1: b, 1: a})
    np.testing.assert_allclose(both, np.einsum("ijk,aj,bk->iab", x, a, b), atol=1e-12)
    again = multi_mode_product(x, {1: a.T, 2: b.T}, transposed=True)
    np.testing.assert_allclose(again, both, atol=1e-12)


def test_libraries_and_dtypes(library, rng):
    x, a = rng.standard_normal((3, 4, 5)).astype(np.float32), np.eye(4, dtype=np.float32)
    found = mode_product(library.put(x), library.put(a), 1)
    assert library.owns(found)
    np.testing.assert_array_equal(library.get(found), x)
    assert library.owns(unfold(library.put(x), 1))


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (lambda: unfold(np.ones((2, 3)), 2), InvalidArgumentError, r"\[unfold\] mode must be in"),
        (lambda: unfold([1.0], 0), DtypeError, r"\[unfold\] x must be an array"),
        (lambda: unfold(np.ones((2, 2), int), 0), DtypeError, "must be float32 or float64"),
        (
            lambda: unfold(np.ones((2, 3)), 0, convention="pyttb"),
            InvalidArgumentError,
            "convention must be one of",
        ),
        (
            lambda: fold(np.ones((2, 5)), 0, (2, 2, 3)),
            InvalidArgumentError,
            r"\[fold\] x must be \(2, 6\)",
        ),
        (lambda: khatri_rao([]), InvalidArgumentError, "matrices must be one or more"),
        (
            lambda: khatri_rao([np.ones((2, 3)), np.ones((2, 2))]),
            InvalidArgumentError,
            "one number of columns",
        ),
        (lambda: kronecker([np.ones(3)]), InvalidArgumentError, "must have 2 axes"),
        (
            lambda: mode_product(np.ones((2, 3, 4)), np.ones((2, 2)), 1),
            InvalidArgumentError,
            r"\[mode_product\] a must be a float64 matrix with 3 columns for mode 1",
        ),
        (
            lambda: multi_mode_product(np.ones((2, 3)), {0: np.ones((2, 2)), -2: np.ones((2, 2))}),
            InvalidArgumentError,
            "mode must be distinct",
        ),
    ],
)
def test_refused(call, kind, text):
    with pytest.raises(kind, match=text):
        call()
