"""tensor_power: known eigenpairs, curvature, bits, batches, signs, budgets, refusals."""

import numpy as np
import pytest
from matrices import same_bits
from subspan import TensorPower, tensor_power
from subspan.errors import (
    ConvergenceError,
    DtypeError,
    InvalidArgumentError,
    UnsupportedError,
)
from subspan.tensors import symmetric_pack
from tensor_oracle import kind, packed, power_sum, residual, symmetric_normal

DTYPES = [np.float32, np.float64]
ORDERS = (3, 4, 5, 6)
# Kofidis and Regalia's tensor (2002, example 1), on which Kolda and Mayo (2011) show SS-HOPM.
KNOWN = np.array([
    *(0.2883, -0.0031, 0.1973, -0.2485, -0.2939, 0.3847, 0.2972, 0.1862, 0.0919, -0.3619),
    *(0.1241, -0.3420, 0.2127, 0.2727, -0.3054),
])  # fmt: skip


def orthogonal(d, rng):
    return np.linalg.qr(rng.standard_normal((d, d)))[0]


def tol(dtype, order=3):
    return 1e3 * order * np.finfo(dtype).eps


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", ORDERS)
def test_orthogonal_components_are_the_maxima(order, dtype, rng):
    for d in (2, 3, 5):
        q = orthogonal(d, rng)
        values = np.arange(d, 0, -1.0)
        found = tensor_power(power_sum(q, values, order).astype(dtype), n_starts=400)
        top = found.kinds == 1
        np.testing.assert_allclose(found.values[top], values, atol=tol(dtype) * d)
        cosines = np.abs(found.vectors[top] @ q)
        np.testing.assert_allclose(cosines, np.eye(d), atol=tol(dtype) * d)
        # Odd forms have one more maximum, where all a_i x < 0; as reported, a minimum.
        below = found.vectors[~top] @ q * found.values[~top, None] > 0
        assert below.all()
        assert len(below) <= order % 2
        assert found.counts.sum() == 400
        assert found.info == 0


@pytest.mark.parametrize("which", ["max", "min", "both"])
@pytest.mark.parametrize("order", ORDERS)
def test_pairs_of_random_tensors(order, which, rng):
    for d in (1, 2, 4, 6):
        a = symmetric_normal(d, order, rng)
        found = tensor_power(a, which=which, n_starts=24)
        assert found.info == 0
        assert found.pairs >= 1
        assert found.counts.sum() == len(found.pair_of) == (48 if which == "both" else 24)
        assert (np.diff(found.values) <= 0).all()
        size = np.linalg.norm(a)
        for value, x, rest, code in zip(*found[:4], strict=True):
            assert abs(np.linalg.norm(x) - 1) < 1e-14
            assert residual(a, value, x) < 1e-13 * max(size, 1)
            assert rest < 1e-13 * max(size, 1)
            assert d == 1 or code == kind(a, value, x) != 0
        if which != "both" and order % 2 == 0 and d > 1:
            assert set(found.kinds.tolist()) == {1 if which == "max" else -1}


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_published_example(dtype):
    """All strict maxima and minima of the paper's table 1 (four digits), and no other."""
    found = tensor_power(KNOWN.astype(dtype), order=4, packed=True, which="both", n_starts=100)
    np.testing.assert_allclose(
        found.values, [0.8893, 0.8169, 0.3633, -0.0451, -0.5629, -1.0954], atol=6e-5
    )
    assert found.kinds.tolist() == [1, 1, 1, -1, -1, -1]
    assert (found.residuals <= tol(dtype)).all()


def test_a_fixed_shift_finds_what_the_adaptive_one_does(rng):
    for order in ORDERS:
        a = symmetric_normal(3, order, rng)
        shift = (order - 1) * np.abs(a).sum()
        slow = tensor_power(a, shift=shift, n_starts=20, max_iter=100_000)
        quick = tensor_power(a, n_starts=200)
        assert slow.info == 0
        assert (slow.kinds == 1).all() or order % 2
        for value in slow.values:
            assert np.abs(quick.values - value).min() < 1e-10


def test_no_shift_is_the_plain_power_method(rng):
    """For a negative definite form of even order it ends at minima, which Newton may not leave."""
    q = orthogonal(4, rng)
    found = tensor_power(power_sum(q, np.array([-4.0, -3, -2, -1]), 4), shift=0, n_starts=100)
    np.testing.assert_allclose(found.values, [-1, -2, -3, -4], atol=1e-12)
    assert (found.kinds == -1).all()


def test_starts_are_where_runs_begin():
    a = power_sum(np.eye(3), np.array([3.0, 2.0, 1.0]), 4)
    found = tensor_power(a, np.array([[0.1, 0.2, 5.0], [9.0, 0.0, 0.1], [0.0, -1.0, 0.1]]))
    assert found.pair_of.tolist() == [2, 0, 1]
    assert found.counts.tolist() == [1, 1, 1]
    between = tensor_power(power_sum(np.eye(2), np.ones(2), 4), np.array([[1.0, 1.0]]))
    assert between.iterations.tolist() == [0]  # an eigenvector, if not one that is sought
    assert between.kinds.tolist() == [-1]
    saddle = tensor_power(power_sum(np.eye(3), np.ones(3), 4), np.array([[1.0, 1.0, 0.0]]))
    assert saddle.kinds.tolist() == [0]
    flat = tensor_power(power_sum(np.eye(3), np.array([1.0, 0, 0]), 3), np.array([[0, 1.0, 0]]))
    assert flat.values.tolist() == [0]
    assert flat.kinds.tolist() == [0]


@pytest.mark.parametrize("order", ORDERS)
def test_the_sign_is_settled(order, rng):
    a = symmetric_normal(4, order, rng)
    starts = rng.standard_normal((30, 4))
    found = tensor_power(a, np.concatenate([starts, -starts]), which="both")
    if order % 2:
        assert (found.values >= 0).all()
        mirrored = tensor_power(-a, np.concatenate([starts, -starts]), which="both")
        np.testing.assert_allclose(found.values, mirrored.values, atol=1e-12)
        np.testing.assert_allclose(found.vectors, -mirrored.vectors, atol=1e-10)
    else:
        large = np.abs(found.vectors) >= np.abs(found.vectors).max(axis=1, keepdims=True) / 2
        first = found.vectors[np.arange(len(large)), large.argmax(axis=1)]
        assert (first > 0).all()
    close = np.abs(found.vectors @ found.vectors.T) > 1 - 1e-9
    same = np.abs(found.values[:, None] - found.values) < 1e-9
    assert (close & same).sum() == len(close)  # merged


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("d", "order"), [(2, 3), (3, 4), (7, 4), (3, 6), (12, 3)])
def test_a_tensor_does_not_see_its_batch(d, order, dtype, rng):
    a = np.stack([packed(symmetric_normal(d, order, rng)) for _ in range(21)]).astype(dtype)
    how = {"order": order, "packed": True, "n_starts": 9, "which": "both"}
    whole = tensor_power(a, **how)
    for b in (0, 7, 20):
        alone = tensor_power(a[b], **how)
        n = alone.pairs
        same_bits(*((x, y[b][:n]) for x, y in zip(alone[:5], whole[:5], strict=True)))
        same_bits(*((x, y[b]) for x, y in zip(alone[6:], whole[6:], strict=True)))
    order_of = rng.permutation(len(a))
    shuffled = tensor_power(a[order_of], **how)
    same_bits(*((x, y[order_of]) for x, y in zip(shuffled, whole, strict=True)))
    folded = tensor_power(a.reshape(3, 7, -1), **how)
    same_bits((folded.values.reshape(whole.values.shape), whole.values))
    assert folded.pairs.shape == (3, 7)
    strided = tensor_power(np.repeat(np.asfortranarray(a)[:, ::-1], 2, axis=1)[:, ::-2], **how)
    same_bits(*zip(strided, whole, strict=True))


def test_bits_do_not_depend_on_the_threads(threads, rng):
    for count, d in ((1, 5), (3, 8), (200, 3)):
        a = np.stack([packed(symmetric_normal(d, 4, rng)) for _ in range(count)])
        results = []
        for number in (1, 2, 3, 5):
            threads(number)
            results.append(tensor_power(a, order=4, packed=True, n_starts=40))
        for other in results[1:]:
            same_bits(*zip(other, results[0], strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_powers_of_two_change_no_bit(dtype, rng):
    a = symmetric_normal(4, 3, rng).astype(dtype)
    wanted = tensor_power(a)
    limit = np.finfo(dtype).maxexp - 4
    for exponent in (-limit // 2, limit):
        scaled = tensor_power(np.ldexp(a, exponent))
        same_bits((scaled.values, np.ldexp(wanted.values, exponent)))
        same_bits((scaled.vectors, wanted.vectors))


def test_full_and_packed_tensors_are_the_same(rng):
    a = np.stack([symmetric_normal(3, 4, rng) for _ in range(5)])
    full, unique = tensor_power(a, order=4), symmetric_pack(a, order=4)
    same_bits(*zip(tensor_power(unique, order=4, packed=True), full, strict=True))
    starts = rng.standard_normal((5, 6, 3))
    each = tensor_power(a, starts, order=4)
    for b in range(5):
        alone = tensor_power(a[b], starts[b])
        same_bits((alone.values, each.values[b, : alone.pairs]))


def test_zeros_and_empty_batches():
    found = tensor_power(np.zeros((3, 3, 3)))
    assert found.pairs == 0
    assert found.values.shape == (0,)
    assert found.info == 0
    assert tensor_power(np.zeros((0, 10)), order=3, packed=True).vectors.shape == (0, 0, 3)
    some = np.zeros((2, 4))
    some[1, 0] = 1
    found = tensor_power(some, order=3, packed=True)
    assert found.pairs.tolist()[0] == 0
    assert np.isnan(found.values[0]).all()
    assert found.values[1, 0] == 1


def test_one_dimension():
    for order in ORDERS:
        found = tensor_power(np.full((1,) * order, -3.0))
        assert found.values.tolist() == ([3.0] if order % 2 else [-3.0])
        assert found.vectors.tolist() == ([[-1.0]] if order % 2 else [[1.0]])


def test_nonfinite_policies(rng):
    a = np.stack([packed(symmetric_normal(3, 4, rng)) for _ in range(20)])
    clean = tensor_power(a, order=4, packed=True)
    a[4, 7] = np.nan
    a[5, 2] = np.inf
    with pytest.raises(
        InvalidArgumentError, match=r"finite, got NaN or infinity in tensor 4 of 20"
    ):
        tensor_power(a, order=4, packed=True)
    found = tensor_power(a, order=4, packed=True, nonfinite="propagate")
    assert np.flatnonzero(found.info).tolist() == [4, 5]
    assert found.info[4] == -1
    assert np.isnan(found.values[4]).all()
    others = [i for i in range(20) if i not in {4, 5}]
    most = found.values.shape[1]
    same_bits((found.values[others], clean.values[others][:, :most]))


def test_a_spent_budget_is_told(rng):
    a = symmetric_normal(6, 3, rng)
    found = tensor_power(a, max_iter=1, n_starts=8)
    assert isinstance(found, TensorPower)
    assert found.info == 8
    assert found.pairs == 0
    assert found.pair_of.tolist() == [-1] * 8
    assert found.iterations.tolist() == [1] * 8
    with pytest.raises(
        ConvergenceError, match=r"1 of 1 tensors .* in 1 iterations, the first is 0"
    ):
        tensor_power(a, max_iter=1, n_starts=8, errors="raise")


@pytest.mark.parametrize("dtype", DTYPES)
def test_same_library_out(library, dtype, rng):
    a = np.stack([symmetric_normal(3, 3, rng) for _ in range(2)]).astype(dtype)
    wanted = tensor_power(a, order=3)
    found = tensor_power(library.put(a), order=3)
    for x, y in zip(found[:3], wanted[:3], strict=True):
        assert library.owns(x)
        same_bits((library.get(x), y))


SKEW = np.zeros((2, 2, 2))
SKEW[0, 0, 1] = 0.5


@pytest.mark.parametrize(
    ("a", "options", "error", "text"),
    [
        (np.eye(3), {}, InvalidArgumentError, r"order must be in 3\.\.6, got 2\. For order 2 use"),
        (np.ones((2,) * 7), {}, InvalidArgumentError, r"order must be in 3\.\.6, got 7"),
        (np.ones((2, 2, 3)), {}, InvalidArgumentError, "must have its last 3 axes of one length"),
        (np.ones((2, 2)), {"order": 3}, InvalidArgumentError, "last 3 axes of one length"),
        (SKEW, {}, InvalidArgumentError, "must be symmetric, got entries that differ by 1 of"),
        (np.ones(5), {"order": 3, "packed": True}, InvalidArgumentError, r"got 5\. Give the"),
        (np.ones(4), {"packed": True}, InvalidArgumentError, "order must be given for packed"),
        (np.ones((2, 2, 2), int), {}, DtypeError, "must be float32 or float64, got int64"),
        ([1.0], {}, DtypeError, "must be an array"),
        (np.ones((2, 2, 2)), {"shift": -1.0}, InvalidArgumentError, "shift must be in"),
        (np.ones((2, 2, 2)), {"shift": "x"}, DtypeError, "shift must be a number"),
        (np.ones((2, 2, 2)), {"which": "x"}, InvalidArgumentError, "which must be one of"),
        (np.ones((2, 2, 2)), {"max_iter": 0}, InvalidArgumentError, "max_iter must be in"),
        (np.ones((2, 2, 2)), {"n_starts": 0}, InvalidArgumentError, "n_starts must be"),
        (np.ones((2, 2, 2)), {"tol": 2.0}, InvalidArgumentError, "tol must be in"),
        (np.ones((2, 2, 2)), {"starts": np.ones((2, 3))}, InvalidArgumentError, "starts must be"),
        (np.ones((2, 2, 2)), {"starts": np.zeros((2, 2))}, InvalidArgumentError, "not zero"),
        (np.ones((2, 2, 2)), {"starts": np.ones((1, 2), np.float32)}, DtypeError, "a's dtype"),
    ],
)
def test_refusals(a, options, error, text):
    with pytest.raises(error, match=r"\[tensor_power\] .*" + text):
        tensor_power(a, **options)


def test_cuda_arrays_are_refused():
    from test_interop import CUDA, Producer

    with pytest.raises(UnsupportedError, match=r"\[tensor_power\] .*CUDA"):
        tensor_power(Producer(np.zeros((2, 2, 2)), device=CUDA))
