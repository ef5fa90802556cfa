"""CKA: slow definitions, both forms, minibatches, memory, and what centring saves."""

import tracemalloc

import numpy as np
import pytest
import similarity_oracle as slow
from subspan.errors import DtypeError, InvalidArgumentError
from subspan.similarity import MinibatchCKA, cka, compare

# Samples and widths on either side of the choice between features and kernels; blocks of 64 to 1024
# rows, whole and cut off.
SHAPES = [(7, 3, 4), (50, 7, 5), (30, 40, 60), (64, 200, 1), (200, 9, 300), (1100, 3, 500)]


def pair(rng, n, d, e):
    hidden = rng.normal(size=(n, 3))
    x = hidden @ rng.normal(size=(3, d)) + 0.5 * rng.normal(size=(n, d)) + 2
    y = np.tanh(hidden @ rng.normal(size=(3, e))) + 0.3 * rng.normal(size=(n, e)) - 1
    return x, y


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_linear_equals_the_definition(shape, dtype, rng):
    x, y = (a.astype(dtype) for a in pair(rng, *shape))
    k, m = slow.linear(x), slow.linear(y)
    error = 1e-12 if dtype == np.float64 else 2e-6
    assert cka(x, y) == pytest.approx(slow.alignment(k, m), abs=error)
    wanted = slow.alignment(k, m, slow.hsic_unbiased)
    assert cka(x, y, unbiased=True) == pytest.approx(wanted, abs=10 * error)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("bandwidth", [0.2, 0.8, 2.0])
def test_gaussian_equals_the_definition(bandwidth, dtype, rng):
    x, y = (a.astype(dtype) for a in pair(rng, 150, 6, 20))
    k, m = (slow.gaussian(a.astype(float), bandwidth) for a in (x, y))
    error = 1e-12 if dtype == np.float64 else 2e-6
    found = cka(x, y, kernel="rbf", bandwidth=bandwidth)
    assert found == pytest.approx(slow.alignment(k, m), abs=error)
    found = cka(x, y, kernel="rbf", bandwidth=bandwidth, unbiased=True)
    assert found == pytest.approx(slow.alignment(k, m, slow.hsic_unbiased), abs=30 * error)


@pytest.mark.parametrize("unbiased", [False, True])
def test_a_kernel_of_ones_own(unbiased, rng):
    def cubic(a, b):
        return (a @ b.T + 1) ** 3

    x, y = pair(rng, 150, 4, 7)
    of = slow.hsic_unbiased if unbiased else slow.hsic
    wanted = slow.alignment(cubic(x, x), cubic(y, y), of)
    assert cka(x, y, kernel=cubic, unbiased=unbiased) == pytest.approx(wanted, abs=1e-10)
    product = cka(x, y, kernel=lambda a, b: a @ b.T, unbiased=unbiased)
    assert product == pytest.approx(cka(x, y, unbiased=unbiased), abs=1e-10)


@pytest.mark.parametrize(
    ("kernel", "text"),
    [(lambda a, _: a, "shape"), (lambda a, b: np.full((len(a), len(b)), np.nan), "NaN")],
)
def test_a_kernel_that_returns_something_else_is_refused(kernel, text, rng):
    x, y = pair(rng, 20, 3, 4)
    with pytest.raises(InvalidArgumentError, match=rf"\[cka\] kernel of x must return .*{text}"):
        cka(x, y, kernel=kernel)


def test_both_forms_agree(rng):
    """Few layers go by kernels where many go by features, and the values are the same."""
    layers = [a for _ in range(6) for a in pair(rng, 260, 12, 90)]
    whole = compare(layers).matrix
    for i, j in ((0, 1), (1, 3), (2, 4)):
        k, m = slow.linear(layers[i]), slow.linear(layers[j])
        assert whole[i, j] == pytest.approx(slow.alignment(k, m), abs=1e-12)
        assert cka(layers[i], layers[j]) == pytest.approx(whole[i, j], abs=1e-12)


def test_float32_rows_far_from_the_origin(rng):
    """Without centring first, second moments of these rows are a matter of rounding."""
    x, y = (a.astype(np.float32) for a in pair(rng, 500, 8, 6))
    x += np.float32(300)
    wanted = slow.alignment(slow.linear(x), slow.linear(y))

    def uncentred(a, b):
        """tr KHLH from raw second moments, all in float32."""
        n = np.float32(len(a))
        cross = a.T @ b - np.outer(a.sum(axis=0), b.sum(axis=0)) / n
        return np.square(cross).sum()

    usual = uncentred(x, y) / np.sqrt(uncentred(x, x) * uncentred(y, y))
    assert abs(usual - wanted) > 1e-4
    assert cka(x, y) == pytest.approx(wanted, abs=1e-6)
    assert cka(x, y, unbiased=True) == pytest.approx(
        slow.alignment(slow.linear(x), slow.linear(y), slow.hsic_unbiased), abs=1e-5
    )


def test_unbiased_is_zero_on_average_where_the_other_is_not(rng):
    draws = [rng.normal(size=(2, 10, 20)) for _ in range(300)]
    unbiased = [cka(x, y, unbiased=True) for x, y in draws]
    assert abs(np.mean(unbiased)) < 4 * np.std(unbiased) / np.sqrt(300)
    assert np.mean([cka(x, y) for x, y in draws]) > 0.5
    assert -1 <= min(unbiased) < 0


@pytest.mark.parametrize("measure", ["cka", "cka-unbiased", "cka-rbf"])
def test_no_array_of_samples_by_samples(measure, rng):
    n = 4000
    wide = rng.normal(size=(n, 3)).astype(np.float32)
    kernel = {} if measure == "cka-rbf" else {"kernel": lambda a, b: a @ b.T}
    for options in ({}, kernel):
        tracemalloc.start()
        compare([wide, wide[:, :2]], measure=measure, **options)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2 * n * n  # bytes: half of one kernel in float32


def test_wide_rows_take_kernels_and_no_square_of_the_width(rng):
    d = 6000
    layers = rng.normal(size=(2, 40, d)).astype(np.float32)
    tracemalloc.start()
    found = compare(layers).matrix
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < d * d
    wanted = slow.alignment(slow.linear(layers[0]), slow.linear(layers[1]))
    assert found[0, 1] == pytest.approx(wanted, abs=1e-6)


# ---- minibatches -----------------------------------------------------------------------------


def batches(rng, count=5, n=32):
    mix = rng.normal(size=(6, 9))
    for _ in range(count):
        x = rng.normal(size=(n, 6))
        yield [x, x[:, :3] + 1], [x @ mix + rng.normal(size=(n, 9)), rng.normal(size=(n, 2)), x]


def test_minibatches_average_the_unbiased_terms(rng):
    state, sums = MinibatchCKA(), 0
    for xs, ys in batches(rng):
        state.update(xs, ys)
        k, m = ([slow.linear(a) for a in side] for side in (xs, ys))
        sums = sums + np.array(
            [[[slow.hsic_unbiased(*of) for of in ((a, b), (a, a), (b, b))] for b in m] for a in k]
        )
    wanted = sums[..., 0] / np.sqrt(sums[..., 1] * sums[..., 2])
    assert state.count == 5
    assert state.matrix() == pytest.approx(wanted, abs=1e-12)
    assert state.matrix()[0, 2] == pytest.approx(1.0)


def test_one_batch_is_the_whole(rng):
    xs, _ = next(batches(rng))
    whole = compare(xs, measure="cka-unbiased").matrix
    assert MinibatchCKA().update(xs).matrix() == pytest.approx(whole, abs=1e-12)


def test_minibatches_merge_in_any_order(rng):
    parts = list(batches(rng))
    whole, merged = MinibatchCKA(), MinibatchCKA()
    for part in parts:
        whole.update(*part)
    for part in parts[::-1]:
        merged.merge(MinibatchCKA().update(*part))
    merged.merge(MinibatchCKA())
    assert merged.count == whole.count
    assert merged.matrix() == pytest.approx(whole.matrix(), abs=1e-13)


def test_minibatches_with_a_kernel_and_in_other_units(rng):
    def linear(a, b):
        return a @ b.T

    plain, own, scaled = MinibatchCKA(), MinibatchCKA(kernel=linear), MinibatchCKA()
    for xs, ys in batches(rng):
        plain.update(xs, ys)
        own.update(xs, ys)
        scaled.update([1e3 * x for x in xs], ys)
    assert own.matrix() == pytest.approx(plain.matrix(), abs=1e-10)
    assert scaled.matrix() == pytest.approx(plain.matrix(), abs=1e-10)


def test_minibatches_are_close_to_the_whole_where_there_are_many(rng):
    parts = list(batches(rng, count=40, n=64))
    state = MinibatchCKA()
    for part in parts:
        state.update(*part)
    xs, ys = (
        [np.concatenate(a) for a in zip(*side, strict=True)] for side in zip(*parts, strict=True)
    )
    assert state.matrix() == pytest.approx(compare(xs, ys, "cka-unbiased").matrix, abs=0.01)


def test_minibatch_refusals(rng):
    parts = next(batches(rng))
    state = MinibatchCKA()
    with pytest.raises(
        InvalidArgumentError, match=r"\[MinibatchCKA.matrix\] there must be a batch"
    ):
        state.matrix()
    before = state.update(*parts).matrix()
    with pytest.raises(InvalidArgumentError, match=r"must have \(2, 3\) layers as before"):
        state.update(parts[0])
    with pytest.raises(InvalidArgumentError, match="at least 4 rows"):
        state.update([x[:3] for x in parts[0]])
    with pytest.raises(InvalidArgumentError, match=r"other must have \(2, 3\) layers"):
        state.merge(MinibatchCKA().update(parts[0]))
    with pytest.raises(InvalidArgumentError, match="other must have the kernel 'linear'"):
        state.merge(MinibatchCKA(kernel=lambda a, b: a @ b.T))
    with pytest.raises(DtypeError, match="must be a MinibatchCKA, got dict"):
        state.merge({})
    with pytest.raises(InvalidArgumentError, match="kernel must be one of 'linear'"):
        MinibatchCKA(kernel="rbf")
    assert np.array_equal(state.matrix(), before)
