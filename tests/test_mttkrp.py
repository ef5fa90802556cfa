"""mttkrp: sums against float64, shapes, orders of memory, batches, bits, refusals."""

import decomposition_oracle as oracle
import numpy as np
import pytest
from matrices import same_bits
from subspan import _core, mttkrp
from subspan.errors import DtypeError, InvalidArgumentError, UnsupportedError

DTYPES = [np.float32, np.float64]
SHAPES = (
    *((3, 4), (1, 1), (300, 5), (5, 700), (2, 3000)),
    *((5, 6, 7), (1, 4, 9), (30, 1, 2), (20, 20, 20), (65, 70, 3), (3, 900, 2), (2, 2, 900)),
    *((40, 50, 60), (2, 3, 4, 5), (9, 1, 1, 9), (7, 6, 5, 4, 3), (2, 3, 2, 3, 2, 3)),
)


def far_off(found, x, factors, mode):
    """Largest error over what rounding explains, in units of eps."""
    wanted = oracle.mttkrp(x, factors, mode)
    size = oracle.mttkrp(np.abs(x), [np.abs(a) for a in factors], mode)
    return (np.abs(found - wanted) / size).max() / np.finfo(found.dtype).eps


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_all_modes(shape, dtype, rng):
    for rank in (1, 3, 8, 19, 40):
        x = rng.standard_normal(shape).astype(dtype)
        factors = oracle.planted(rng, shape, rank, dtype)
        for mode in range(len(shape)):
            found = mttkrp(x, factors, mode)
            assert found.dtype == dtype
            assert found.shape == (shape[mode], rank)
            assert far_off(found, x, factors, mode) <= 16
            same_bits((found, mttkrp(x, factors, mode - len(shape))))


@pytest.mark.parametrize("rank", [257, 600])
def test_many_columns(rank, rng):
    x, factors = rng.standard_normal((9, 8, 7)), oracle.planted(rng, (9, 8, 7), rank)
    for mode in range(3):
        found = mttkrp(x, factors, mode)
        assert far_off(found, x, factors, mode) <= 16
        few = mttkrp(x, [a[:, 250:254] for a in factors], mode)
        same_bits((few, found[:, 250:254].copy()))


def test_integers_are_exact(rng):
    x = rng.integers(-3, 4, (11, 30, 13))
    factors = [rng.integers(-3, 4, (n, 6)) for n in x.shape]
    for dtype in DTYPES:
        for mode in range(3):
            found = mttkrp(x.astype(dtype), [a.astype(dtype) for a in factors], mode)
            assert np.array_equal(found, oracle.mttkrp(x, factors, mode))


def memory_orders(x):
    """Views of the same elements."""
    wide = np.zeros([2 * n + 1 for n in x.shape], x.dtype)
    inner = wide[tuple(slice(1, None, 2) for _ in x.shape)]
    inner[...] = x
    yield np.asfortranarray(x)
    yield inner
    yield np.ascontiguousarray(x[::-1, :, ::-1])[::-1, :, ::-1]
    yield np.ascontiguousarray(x.transpose(1, 2, 0)).transpose(2, 0, 1)
    yield np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2)


@pytest.mark.parametrize("shape", [(6, 7, 8), (70, 3, 80), (20, 90, 2)])
def test_strides(shape, rng):
    x, factors = rng.standard_normal(shape), oracle.planted(rng, shape, 5)
    for view in memory_orders(x):
        assert np.array_equal(view, x)
        for mode in range(3):
            assert far_off(mttkrp(view, factors, mode), x, factors, mode) <= 16
    spread = [np.repeat(np.repeat(a, 2, 0), 3, 1)[::2, ::3] for a in factors]
    for mode in range(3):
        same_bits((mttkrp(x, spread, mode), mttkrp(x, factors, mode)))


def test_broadcast_axes_of_the_tensor(rng):
    """An axis of stride 0 is read as often as it says."""
    x = np.broadcast_to(rng.standard_normal((6, 1, 5)), (6, 4, 5))
    factors = oracle.planted(rng, x.shape, 3)
    for mode in range(3):
        assert far_off(mttkrp(x, factors, mode), x, factors, mode) <= 16


@pytest.mark.parametrize("shape", [(5, 6, 7), (4, 3, 5, 6)])
def test_partial_products(shape, rng):
    x, factors = rng.standard_normal(shape), oracle.planted(rng, shape, 3)
    letters = oracle.LETTERS[: len(shape)]
    for first in range(len(shape)):
        for last in range(first + 1, len(shape) + 1):
            kept = tuple(range(first, last))
            if len(kept) == len(shape):
                continue
            others = [n for n in range(len(shape)) if n not in kept]
            given = ",".join([letters, *(f"{letters[n]}z" for n in others)])
            arrays = [factors[n] for n in others]
            wanted = np.einsum(f"{given}->{letters[first:last]}z", x, *arrays)
            found = mttkrp(x, [None if n in kept else a for n, a in enumerate(factors)], kept)
            np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12)
            turned = mttkrp(np.asfortranarray(x), factors, kept)
            np.testing.assert_allclose(turned, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("of_x", [(), (64,), (1,), (8, 8)])
def test_batches_are_single_ones(of_x, rng):
    """A shared tensor too, of which many members are worked on together."""
    lead = (8, 8) if of_x == (8, 8) else (64,)
    x = rng.standard_normal((*of_x, 7, 6, 5))
    factors = [rng.standard_normal((*lead, n, 5)) for n in (7, 6, 5)]
    for mode in range(3):
        found = mttkrp(x, factors, mode)
        assert found.shape == (*lead, (7, 6, 5)[mode], 5)
        for index in np.ndindex(lead):
            one = x[index] if of_x == lead else x.reshape(7, 6, 5)
            same_bits((found[index], mttkrp(one, [a[index] for a in factors], mode)))


@pytest.mark.parametrize("shape", [(40, 50, 60), (3, 200, 90), (90, 4, 130), (12, 11, 10, 13)])
def test_threads_change_no_bit(shape, threads, rng):
    x, factors = rng.standard_normal(shape), oracle.planted(rng, shape, 10)
    results = []
    for number in (1, 2, 5):
        threads(number)
        results.append([mttkrp(x, factors, mode) for mode in range(len(shape))])
    for mine in results[1:]:
        same_bits(*zip(mine, results[0], strict=True))


def test_libraries(library, rng):
    x, factors = rng.standard_normal((2, 4, 5, 6)), oracle.planted(rng, (4, 5, 6), 3)
    found = mttkrp(library.put(x), [library.put(a) for a in factors], 1)
    assert library.owns(found)
    same_bits((library.get(found), mttkrp(x, factors, 1)))


@pytest.mark.parametrize(("shape", "rank"), [((0, 3, 2), 2), ((3, 0, 2), 2), ((3, 2, 2), 0)])
def test_nothing(shape, rank):
    factors = [np.ones((n, rank)) for n in shape]
    for mode in range(3):
        assert np.array_equal(mttkrp(np.ones(shape), factors, mode), np.zeros((shape[mode], rank)))


def test_nonfinite_spreads_where_it_belongs(rng):
    x, factors = rng.standard_normal((6, 7, 8)), oracle.planted(rng, (6, 7, 8), 4)
    clean = mttkrp(x, factors, 1)
    x[2, 3, 4] = np.nan
    found = mttkrp(x, factors, 1)
    assert np.isnan(found[3]).all()
    assert np.array_equal(np.delete(found, 3, 0), np.delete(clean, 3, 0))
    factors[0][1, 2] = np.inf
    assert np.isfinite(mttkrp(x, factors, 0)[:2]).all()  # that of the mode is not read


ONES = [np.ones((n, 2)) for n in (3, 4, 5)]


@pytest.mark.parametrize(
    ("x", "factors", "mode", "kind", "text"),
    [
        (np.ones((3, 4)), ONES, 0, InvalidArgumentError, "x must have 3 or more axes, got 2"),
        (np.ones((3, 4, 6)), ONES, 0, InvalidArgumentError, r"factors\[2\] must be \(..., 6, 2\)"),
        (np.ones((3, 4, 5)), ONES[:1], 0, InvalidArgumentError, "factors must be two or more"),
        (np.ones((3, 4, 5)), ONES[0], 0, DtypeError, "factors must be a list or tuple"),
        (np.ones((3, 4, 5)), ONES, 3, InvalidArgumentError, r"mode must be in -3..2, got 3"),
        (np.ones((3, 4, 5)), ONES, 1.0, DtypeError, "mode must be an integer"),
        (np.ones((3, 4, 5)), ONES, (0, 2), InvalidArgumentError, "adjacent ones in order"),
        (np.ones((3, 4, 5)), ONES, (1, 0), InvalidArgumentError, "adjacent ones in order"),
        (np.ones((3, 4, 5)), ONES, (), InvalidArgumentError, "mode must name a mode"),
        (np.ones((3, 4, 5)), ONES, (0, 1, 2), InvalidArgumentError, "leave a mode to contract"),
        (np.ones((3, 4, 5), int), ONES, 0, DtypeError, "x must be float32 or float64, got int64"),
        (np.ones((3, 4, 5), np.float32), ONES, 0, DtypeError, r"factors\[1\] must be float32 as x"),
        ([[[1.0]]], ONES, 0, DtypeError, "x must be an array"),
        (np.ones((3, 4, 5)), [None, None, ONES[2]], 0, DtypeError, r"factors\[1\] must be an arra"),
        (
            np.ones((3, 4, 5)),
            [ONES[0], ONES[1], np.ones((5, 3))],
            0,
            InvalidArgumentError,
            r"factors\[2\] must be \(..., 5, 2\)",
        ),
        (
            np.ones((2, 3, 4, 5)),
            [ONES[0], ONES[1], np.ones((3, 5, 2))],
            0,
            InvalidArgumentError,
            "leading axes must broadcast",
        ),
    ],
)
def test_refused(x, factors, mode, kind, text):
    with pytest.raises(kind, match=text) as caught:
        mttkrp(x, factors, mode)
    assert str(caught.value).startswith("[mttkrp] ")


def test_gradients_are_refused():
    torch = pytest.importorskip("torch")
    x = torch.ones(3, 4, 5, dtype=torch.float64, requires_grad=True)
    factors = [torch.ones(n, 2, dtype=torch.float64) for n in (3, 4, 5)]
    with pytest.raises(UnsupportedError, match=r"\[mttkrp\] x must not require a gradient"):
        mttkrp(x, factors, 0)


def test_the_core_checks_for_itself():
    x, out = np.ones((1, 3, 4, 5)), np.empty((1, 3, 2))
    factors = [np.ones((1, n, 2)) for n in (3, 4, 5)]
    for arguments, text in (
        ((x[0], factors, 0, out), "factors must be one for each of the 2 modes"),
        ((x, factors[:2], 0, out), "factors must be one for each of the 3 modes"),
        ((x, factors, 3, out), r"mode must be in 0..2, got 3"),
        ((x, factors, 0, np.empty((1, 4, 2))), "out must be C-ordered"),
        ((x, factors, 0, x[:, :, :2, 0]), "out must be C-ordered"),
        ((x, [factors[0], factors[2], factors[1]], 0, out), "factor 1 must be"),
        ((x, factors, 0, x.reshape(-1)[:6].reshape(1, 3, 2)), "out must not overlap x"),
    ):
        with pytest.raises(InvalidArgumentError, match=text):
            _core.mttkrp(*arguments)
    own = np.ones((1, 4, 2))
    with pytest.raises(InvalidArgumentError, match="out must not overlap a factor"):
        _core.mttkrp(np.ones((1, 3, 4, 4)), [factors[0], own, None], 2, own)
