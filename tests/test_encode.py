"""Sparse encoders: against dense float64 and a stable sort; ties, NaN, layouts, bits, gradients."""

import numpy as np
import pytest
import subspan
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import same_bits
from subspan import (
    RaggedCode,
    SparseCode,
    _core,
    batch_topk_encode,
    sparse_decode,
    threshold_encode,
    topk_encode,
)
from subspan.errors import DtypeError, InvalidArgumentError, UnsupportedError

FLOATS = ["float16", "float32", "float64"]
LEVELS = ("baseline", "v3", "v4")
ACTIVATIONS = ("relu", "relu_first", "identity")
# Around tiles of 4 and 8 rows, of 8 to 48 columns, and of tasks of 128 rows.
EXTENTS = (1, 2, 7, 8, 9, 31, 33, 127, 129, 1000)


# ---- references ------------------------------------------------------------------------------


def dense(x, w_enc, b_enc=None, b_pre=None):
    """Return z in float64; exact for small integers, whatever the dtype."""
    x, w_enc = x.astype(np.float64), w_enc.astype(np.float64)
    if b_pre is not None:
        x = x - b_pre.astype(np.float64)
    with np.errstate(invalid="ignore"):
        z = x @ w_enc
    return z if b_enc is None else z + b_enc.astype(np.float64)


def best_of_rows(z, k, activation, dtype):
    """The k largest by a stable sort: equal ones by index, NaN last."""
    if activation == "relu_first":
        z = np.maximum(z, 0)
    indices = np.argsort(-z, axis=-1, kind="stable")[..., :k]
    values = np.take_along_axis(z, indices, axis=-1)
    if activation == "relu":
        values = np.maximum(values, 0)
    return SparseCode((values + 0.0).astype(dtype), indices)


def ragged_of(z, mask, dtype):
    rows, columns = np.nonzero(mask)
    offsets = np.concatenate([[0], np.cumsum(mask.sum(axis=1))]).astype(np.int64)
    return RaggedCode((z[rows, columns] + 0.0).astype(dtype), columns.astype(np.int64), offsets)


def best_of_batch(z, count, activation, dtype):
    flat = z.ravel()
    order = np.argsort(-flat, kind="stable")[: np.count_nonzero(~np.isnan(flat))][:count]
    if activation != "identity":
        order = order[flat[order] > 0]
    mask = np.zeros(flat.shape, bool)
    mask[order] = True
    return ragged_of(z, mask.reshape(z.shape), dtype)


def integers(rng, shape, dtype="float32", reach=3):
    """Small integers: products are exact, and ties are everywhere."""
    return rng.integers(-reach, reach, shape, endpoint=True).astype(dtype)


def problem(rng, rows, d, n, dtype="float32", biases=True):
    x, w_enc = integers(rng, (rows, d), dtype), integers(rng, (d, n), dtype)
    if not biases:
        return x, w_enc, None, None
    return x, w_enc, integers(rng, n, dtype, 9), integers(rng, d, dtype)


def same_code(got, wanted):
    assert type(got) is type(wanted)
    same_bits(*zip(got, wanted, strict=True))


def check_topk(x, w_enc, b_enc, b_pre, k, activation="relu"):
    got = topk_encode(x, w_enc, b_enc, k=k, b_pre=b_pre, activation=activation)
    same_code(got, best_of_rows(dense(x, w_enc, b_enc, b_pre), k, activation, x.dtype))


def check_batch(x, w_enc, b_enc, b_pre, k, activation="relu"):
    got = batch_topk_encode(x, w_enc, b_enc, k=k, b_pre=b_pre, activation=activation)
    count = int(k * len(x))
    same_code(got, best_of_batch(dense(x, w_enc, b_enc, b_pre), count, activation, x.dtype))
    return got


def check_threshold(x, w_enc, b_enc, b_pre, threshold):
    got = threshold_encode(x, w_enc, b_enc, threshold=threshold, b_pre=b_pre)
    z = dense(x, w_enc, b_enc, b_pre)
    same_code(got, ragged_of(z, z > threshold, x.dtype))
    return got


def check_all(x, w_enc, b_enc, b_pre, ks):
    n = w_enc.shape[1]
    for k in ks:
        for activation in ACTIVATIONS:
            check_topk(x, w_enc, b_enc, b_pre, k, activation)
            check_batch(x, w_enc, b_enc, b_pre, k, activation)
    threshold = (np.arange(n) % 7 * 3 - 3).astype(x.dtype)
    check_threshold(x, w_enc, b_enc, b_pre, threshold)


# ---- what is selected ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("rows", EXTENTS)
def test_sizes_around_tiles(dtype, rows, rng):
    for n in EXTENTS:
        d = int(rng.choice(EXTENTS[:-1]))
        if dtype == "float16":
            d = min(d, 31)  # sums of greater depth would leave the exact integers
        ks = {1, min(n, 2), min(n, int(rng.choice([5, 32, 129])))} | ({n} if n < 200 else set())
        activation = ACTIVATIONS[int(rng.integers(3))]
        given = problem(rng, rows, d, n, dtype, biases=bool(rng.integers(2)))
        for k in ks:
            check_topk(*given, k, activation)
        check_batch(*given, min(n, 3), activation)
        check_threshold(*given, np.full(n, 2, dtype))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("d", [0, 1, 63, 64, 65, 1023, 1024, 1025, 1500, 2500])
def test_depths(dtype, d, rng):
    """Beyond 1024 rows of w_enc, sums are put aside."""
    for rows in (1, 3, 130):
        check_all(*problem(rng, rows, d, 70, dtype), [1, 9, 70])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_many_rows(activation, rng):
    """More of them than there are states at a time: of 1 code, and of 1000."""
    for rows, d, n, k in ((41_000, 2, 3, 1), (3000, 3, 1000, 1000), (8300, 2, 1, 1)):
        given = problem(rng, rows, d, n)
        check_topk(*given, k, activation)
        check_batch(*given, min(k, 2), activation)
        check_threshold(*given, np.full(n, 1, np.float32))


def test_many_columns(rng):
    """More than a thread packs at a time, and than all do."""
    for rows, d, n in ((1, 700, 5000), (20, 900, 3000), (300, 1000, 5000)):
        check_all(*problem(rng, rows, d, n), [1, 40])
    check_topk(*problem(rng, 10, 3, 70_001), 129)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_problem(data):
    dtype = data.draw(st.sampled_from(FLOATS))
    rows, n = data.draw(st.integers(0, 40)), data.draw(st.integers(1, 60))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    given = problem(rng, rows, data.draw(st.integers(0, 12)), n, dtype, data.draw(st.booleans()))
    check_all(*given, [data.draw(st.integers(1, n))])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e5])
def test_random_numbers(dtype, scale, rng):
    """What is kept is right to rounding, and nothing that is clearly better was left out."""
    rows, d, n, k = 150, 400, 900, 20
    x = (rng.standard_normal((rows, d)) * scale).astype(dtype)
    w_enc, b_enc = rng.standard_normal((d, n)).astype(dtype), rng.standard_normal(n).astype(dtype)
    b_pre = (rng.standard_normal(d) * scale).astype(dtype)
    z = dense(x, w_enc, b_enc, b_pre)
    room = np.abs(x.astype(float) - b_pre) @ np.abs(w_enc.astype(float)) + np.abs(b_enc)
    tolerance = np.finfo(dtype).eps * np.sqrt(d) * room.max()
    values, indices = topk_encode(x, w_enc, b_enc, k=k, b_pre=b_pre)
    assert np.abs(values - np.take_along_axis(z, indices, 1)).max() < tolerance
    assert np.abs(values - -np.sort(-z)[:, :k]).max() < tolerance
    assert (np.diff(values) <= 0).all()
    kept = batch_topk_encode(x, w_enc, b_enc, k=k, b_pre=b_pre)
    where = np.repeat(np.arange(rows), np.diff(kept.offsets))
    assert np.abs(kept.values - z[where, kept.indices]).max() < tolerance
    assert abs(kept.values.min() - -np.sort(-z.ravel())[rows * k - 1]) < tolerance
    above = threshold_encode(x, w_enc, b_enc, threshold=float(z.std()), b_pre=b_pre)
    doubtful = np.abs(z - np.float64((dtype == "float32" and np.float32(z.std())) or z.std()))
    assert abs(len(above.values) - (z > z.std()).sum()) <= (doubtful < tolerance).sum()
    assert (above.values > np.dtype(dtype).type(z.std())).all()


# ---- ties and values that are special -----------------------------------------------------------


def rows_of(z, dtype="float32", rows=3):
    """A problem whose z is the same given row in all rows: without depth, it is the bias."""
    bias = np.asarray(z, dtype)
    return np.zeros((rows, 0), dtype), np.zeros((0, len(bias)), dtype), bias


def test_of_equal_columns_the_first_is_taken(rng):
    w_enc = np.repeat(rng.standard_normal((40, 50)).astype(np.float32), 3, axis=1)
    x = rng.standard_normal((20, 40)).astype(np.float32)
    values, indices = topk_encode(x, w_enc, k=6, activation="identity")
    assert (indices.reshape(20, 2, 3) % 3 == np.arange(3)).all()
    assert (values.reshape(20, 2, 3) == values[:, ::3, None]).all()
    assert (topk_encode(x, w_enc, k=1).indices % 3 == 0).all()


def test_where_the_rectifier_stands():
    x, w_enc, z = rows_of([-5, 2, -1, 0, -3, 7])
    assert topk_encode(x, w_enc, z, k=4).indices[0].tolist() == [5, 1, 3, 2]
    assert topk_encode(x, w_enc, z, k=4).values[0].tolist() == [7, 2, 0, 0]
    first = topk_encode(x, w_enc, z, k=4, activation="relu_first")
    assert first.indices[0].tolist() == [5, 1, 0, 2]
    assert first.values[0].tolist() == [7, 2, 0, 0]
    plain = topk_encode(x, w_enc, z, k=4, activation="identity")
    assert plain.indices[0].tolist() == [5, 1, 3, 2]
    assert plain.values[0].tolist() == [7, 2, 0, -1]
    for activation in ("relu", "relu_first"):
        kept = batch_topk_encode(x, w_enc, z, k=4, activation=activation)
        assert kept.indices.tolist() == [1, 5] * 3
        assert kept.offsets.tolist() == [0, 2, 4, 6]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n", [3, 31, 32, 33, 100])
def test_nan_and_infinity(dtype, n, rng):
    few = np.array([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, np.nan, 65504.0])
    for _ in range(5):
        x, w_enc, z = rows_of(rng.choice(few, n), dtype, rows=9)
        for k in {1, 2, n // 2, n}:
            for activation in ACTIVATIONS:
                check_topk(x, w_enc, z, None, max(k, 1), activation)
                check_batch(x, w_enc, z, None, k, activation)
        for bar in (0.0, -1.0, np.inf, -np.inf, np.nan, 65504.0):
            check_threshold(x, w_enc, z, None, np.full(n, bar, dtype))


def test_nan_in_a_row_stays_there(rng):
    x, w_enc, b_enc, b_pre = problem(rng, 20, 6, 40)
    clean = topk_encode(x, w_enc, b_enc, k=5, b_pre=b_pre)
    x[7, 2] = np.nan
    values, indices = topk_encode(x, w_enc, b_enc, k=5, b_pre=b_pre)
    assert np.isnan(values[7]).all()
    assert indices[7].tolist() == [0, 1, 2, 3, 4]
    others = np.arange(20) != 7
    same_bits((values[others], clean.values[others]), (indices[others], clean.indices[others]))
    kept = batch_topk_encode(x, w_enc, b_enc, k=5, b_pre=b_pre)
    assert kept.offsets[7] == kept.offsets[8]
    assert not np.isnan(kept.values).any()


@pytest.mark.parametrize("n", [1, 5, 33, 47])
def test_padding_is_never_selected(n):
    x, w_enc, z = rows_of(np.full(n, -np.inf), rows=5)
    values, indices = topk_encode(x, w_enc, z, k=n, activation="identity")
    assert (values == -np.inf).all()
    assert (indices == np.arange(n)).all()
    everything = batch_topk_encode(x, w_enc, z, k=n, activation="identity")
    assert (everything.offsets == np.arange(6) * n).all()
    w_enc, x = np.ones((2, n), np.float32), -np.ones((9, 2), np.float32)
    assert len(threshold_encode(x, w_enc, threshold=-np.inf).values) == 9 * n


def test_no_zero_is_negative():
    x, w_enc, z = rows_of([-0.0, 0.0, -1.0, -2.0])
    for activation in ACTIVATIONS:
        values, indices = topk_encode(x, w_enc, z, k=2, activation=activation)
        assert indices[0].tolist() == [0, 1]
        assert not np.signbit(values).any()


def test_a_number_as_threshold(rng):
    given = problem(rng, 30, 5, 40)
    for bar in (3, -2.0, np.float32(1), np.inf):
        same_code(
            threshold_encode(*given[:3], threshold=bar, b_pre=given[3]),
            threshold_encode(*given[:3], threshold=np.full(40, bar, "f4"), b_pre=given[3]),
        )


def test_flushing_subnormals_to_zero_selects_no_zeros(run_python):
    pytest.importorskip("torch")
    code = """
import numpy as np, subspan, torch
torch.set_flush_denormal(True)
for dtype in (np.float32, np.float64):
    x, w = np.zeros((20, 3), dtype), np.zeros((3, 50), dtype)
    assert subspan.threshold_encode(x, w, threshold=0).offsets[-1] == 0
    assert subspan.batch_topk_encode(x, w, k=5).offsets[-1] == 0
    assert (subspan.topk_encode(x, w, k=5).indices == np.arange(5)).all()
"""
    run_python(code)


# ---- properties of the methods ------------------------------------------------------------------


def test_a_batch_of_one_row_is_topk(rng):
    x, w_enc, b_enc, b_pre = problem(rng, 1, 30, 500)
    single = topk_encode(x, w_enc, b_enc, k=20, b_pre=b_pre)
    batch = batch_topk_encode(x, w_enc, b_enc, k=20, b_pre=b_pre)
    order = np.argsort(single.indices[0])
    same_bits((batch.values, single.values[0][order]), (batch.indices, single.indices[0][order]))


@pytest.mark.parametrize("k", [0, 1, 16, 2.5, 0.01, np.float64(1.999), np.int32(4)])
def test_a_batch_keeps_so_many(k, rng):
    x, w_enc = rng.standard_normal((77, 20)), rng.standard_normal((20, 300))
    code = batch_topk_encode(x, w_enc, k=k)
    assert len(code.values) == code.offsets[-1] == int(float(k) * 77)
    assert (code.values > 0).all()


def test_a_threshold_at_what_a_batch_keeps_gives_its_code(rng):
    x, w_enc = rng.standard_normal((300, 24)), rng.standard_normal((24, 400))
    batch = batch_topk_encode(x, w_enc, k=6)
    bar = np.nextafter(batch.values.min(), 0)
    same_code(threshold_encode(x, w_enc, threshold=bar), batch)


def test_a_threshold_is_a_masked_linear_map(rng):
    x, w_enc, w_dec = (rng.standard_normal(s) for s in ((60, 12), (12, 80), (80, 12)))
    bars = rng.uniform(0.1, 3, 80)
    code = threshold_encode(x, w_enc, threshold=bars)
    z = x @ w_enc
    wanted = (z * (z > bars)) @ w_dec
    got = sparse_decode(code.values, code.indices, w_dec, offsets=code.offsets)
    np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=1e-12)


# ---- independence ------------------------------------------------------------------------------


def codes_of(x, w_enc, b_enc, b_pre):
    yield topk_encode(x, w_enc, b_enc, k=13, b_pre=b_pre)
    yield topk_encode(x, w_enc, b_enc, k=5, b_pre=b_pre, activation="relu_first")
    yield batch_topk_encode(x, w_enc, b_enc, k=4.3, b_pre=b_pre)
    yield batch_topk_encode(x, w_enc, b_enc, k=7, b_pre=b_pre, activation="identity")
    yield threshold_encode(x, w_enc, b_enc, threshold=10.0, b_pre=b_pre)


@pytest.mark.parametrize("shape", [(1, 200, 3000), (5, 64, 777), (300, 40, 500), (2000, 9, 100)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_bits_do_not_depend_on_the_threads(shape, dtype, threads, rng):
    rows, d, n = shape
    given = [rng.standard_normal(s).astype(dtype) for s in ((rows, d), (d, n), (n,), (d,))]
    given[1][:, 1::3] = given[1][:, ::3][:, : n // 3 + (n % 3 > 1)]  # ties
    results = []
    for count in (1, 2, 3, 5):
        threads(count)
        results.append(list(codes_of(*given)))
    for other in results[1:]:
        for got, wanted in zip(other, results[0], strict=True):
            same_code(got, wanted)


def test_a_row_does_not_see_its_batch(rng):
    x = rng.standard_normal((300, 50)).astype(np.float32)
    w_enc = rng.standard_normal((50, 200)).astype(np.float32)
    whole = topk_encode(x, w_enc, k=9)
    above = threshold_encode(x, w_enc, threshold=5.0)
    for cuts in ([1], [129, 130], [8, 16, 299], [150]):
        parts = [topk_encode(part, w_enc, k=9) for part in np.split(x, cuts)]
        same_code(SparseCode(*map(np.concatenate, zip(*parts, strict=True))), whole)
        parts = [threshold_encode(part, w_enc, threshold=5.0) for part in np.split(x, cuts)]
        same_bits(
            (np.concatenate([p.values for p in parts]), above.values),
            (np.concatenate([p.indices for p in parts]), above.indices),
        )


REPORT = """
import hashlib
import numpy as np, subspan
rng = np.random.default_rng(5)
digest = hashlib.sha256()
for dtype in ("float16", "float32", "float64"):
    for rows, d, n in ((1, 7, 100), (33, 100, 333), (200, 1300, 97)):
        x, w, b, p = (rng.standard_normal(s).astype(dtype) for s in ((rows, d), (d, n), (n,), (d,)))
        for code in (
            subspan.topk_encode(x, w, b, k=20, b_pre=p),
            subspan.topk_encode(x, w, k=20, activation="identity"),
            subspan.batch_topk_encode(x, w, b, k=3.5, b_pre=p),
            subspan.threshold_encode(x, w, b, threshold=3.0, b_pre=p),
        ):
            for part in code:
                digest.update(part.tobytes())
print(subspan.cpu_level(), digest.hexdigest())
"""


def test_levels_with_fused_products_give_the_same_bits(run_python):
    cpu = run_python("import subspan; print(subspan.cpu_level())", SUBSPAN_CPU_LEVEL=None)
    levels = LEVELS[: LEVELS.index(cpu.stdout.strip()) + 1]
    lines = [run_python(REPORT, SUBSPAN_CPU_LEVEL=level).stdout.split() for level in levels]
    assert [line[0] for line in lines] == list(levels)
    assert len({line[1] for line in lines if line[0] != "baseline"}) <= 1


EXACT = """
import sys
sys.path.insert(0, {folder!r})
import numpy as np, test_encode
rng = np.random.default_rng(1)
for dtype in ("float32", "float64"):
    for rows, d, n in ((1, 5, 40), (13, 30, 333), (130, 1100, 50)):
        test_encode.check_all(*test_encode.problem(rng, rows, d, n, dtype), [1, 33])
"""


@pytest.mark.parametrize("level", LEVELS[:2])
def test_lower_levels_are_right(level, run_python):
    from pathlib import Path

    run_python(EXACT.format(folder=str(Path(__file__).parent)), SUBSPAN_CPU_LEVEL=level)


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
@pytest.mark.parametrize("activation", ["relu", "relu_first", "identity"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_the_certified_code_is_the_code(dtype, activation, order, rng):
    x = rng.standard_normal((513, 261)).astype(dtype)
    w = np.asarray(rng.standard_normal((261, 4100)).astype(dtype), order=order)
    b, b_pre = rng.standard_normal(4100).astype(dtype), rng.standard_normal(261).astype(dtype)
    arguments = {"k": 8, "b_pre": b_pre, "activation": activation}
    exact = subspan.topk_encode(x, w, b, **arguments)
    certified = subspan.topk_encode(x, w, b, **arguments, precision="certified")
    np.testing.assert_array_equal(certified.values, exact.values)
    np.testing.assert_array_equal(certified.indices, exact.indices)


@pytest.mark.parametrize(
    "case",
    [
        *("ties", "nan row", "inf row", "nan latent", "inf latent", "nan bias", "inf bias"),
        *("huge", "tiny", "zeros", "far"),
    ],
)
def test_what_low_precision_cannot_tell_apart_is_computed_again(case, rng):
    """Rows that the first pass leaves in doubt, and numbers that bfloat16 has no room for."""
    x = rng.standard_normal((600, 300)).astype("float32")
    w = rng.standard_normal((300, 3000)).astype("float32")
    b = np.zeros(3000, np.float32)
    if case == "ties":
        w[:, 1:] = w[:, :1] * (1 + 1e-6 * rng.standard_normal((1, 2999)).astype("float32"))
    elif case == "nan row":
        x[7, 3] = np.nan
    elif case == "inf row":
        x[7, 3] = np.inf
    elif case == "nan latent":
        w[5, 11] = np.nan
    elif case == "inf latent":
        w[5, 11] = np.inf
    elif case == "nan bias":
        b[:-3] = np.nan  # fewer are left than k asks for
    elif case == "inf bias":
        b[11] = np.inf
    elif case == "huge":
        x *= 3e18
        w *= 1e18
        w[:, 17] = 3e38
    elif case == "tiny":
        x *= 1e-20
        w *= 1e-20
    elif case == "zeros":
        x[:100] = 0
    else:
        x += 1000
    with np.errstate(all="ignore"):
        exact = subspan.topk_encode(x, w, b, k=5)
        certified = subspan.topk_encode(x, w, b, k=5, precision="certified")
    np.testing.assert_array_equal(certified.values, exact.values)
    np.testing.assert_array_equal(certified.indices, exact.indices)


def test_a_precision_that_there_is_not():
    with pytest.raises(subspan.errors.InvalidArgumentError, match="precision must be one of"):
        subspan.topk_encode(np.ones((1, 2)), np.ones((2, 3)), k=1, precision="fast")


MEMORY = """
import resource
import numpy as np, subspan
rng = np.random.default_rng(0)
x = rng.standard_normal((2048, 16), dtype=np.float32)
w = rng.standard_normal((16, 65536), dtype=np.float32)
subspan.topk_encode(x[:2], w[:, :64], k=3)
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
subspan.topk_encode(x, w, k=32)
subspan.batch_topk_encode(x, w, k=32)
subspan.threshold_encode(x, w, threshold=15.0)
print(peak() - before)
"""


def test_z_is_never_stored(run_python):
    """It would take 512 MiB."""
    pytest.importorskip("resource")
    grown = int(run_python(MEMORY).stdout)
    assert 0 <= grown < 64 * 1024


# ---- layouts and libraries ---------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
def test_layouts_give_the_same_bits(dtype, rng):
    x, w_enc = rng.standard_normal((30, 45)).astype(dtype), rng.standard_normal((45, 70))
    w_enc = w_enc.astype(dtype)
    b_enc, b_pre = rng.standard_normal(70).astype(dtype), rng.standard_normal(45).astype(dtype)
    wanted = list(codes_of(x, w_enc, b_enc, b_pre))

    def views(a):
        wide = np.zeros(tuple(2 * extent for extent in a.shape), dtype)
        every_second = tuple(slice(1, None, 2) for _ in a.shape)
        wide[every_second] = a
        backwards = tuple(slice(None, None, -1) for _ in a.shape)
        frozen = a.copy()
        frozen.flags.writeable = False
        raw = np.frombuffer(b"\0" + a.tobytes(), np.uint8)[1:].view(dtype).reshape(a.shape)
        yield wide[every_second]
        yield a[backwards].copy()[backwards]
        yield np.asfortranarray(a)
        yield frozen
        yield raw

    for seen in zip(*map(views, (x, w_enc, b_enc, b_pre)), strict=True):
        for got, right in zip(codes_of(*seen), wanted, strict=True):
            same_code(got, right)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_both_orders_of_the_matrix(order, dtype, rng):
    for rows, d, n in ((1, 33, 100), (7, 130, 47), (140, 65, 129)):
        x, w_enc, b_enc, b_pre = problem(rng, rows, min(d, 31 if dtype == "float16" else d), n)
        given = [a.astype(dtype) for a in (x, w_enc, b_enc, b_pre)]
        given[1] = np.asarray(given[1], order=order)
        check_all(*given, [4])
        check_all(*given[:2], None, None, [4])


@pytest.mark.parametrize("lead", [(), (1,), (5,), (2, 3), (3, 0), (2, 1, 3)])
def test_leading_axes(lead, rng):
    x = rng.standard_normal((*lead, 9))
    w_enc = rng.standard_normal((9, 40))
    flat = x.reshape(-1, 9)
    values, indices = topk_encode(x, w_enc, k=3)
    assert values.shape == indices.shape == (*lead, 3)
    same_code(
        SparseCode(values.reshape(-1, 3), indices.reshape(-1, 3)), topk_encode(flat, w_enc, k=3)
    )
    same_code(batch_topk_encode(x, w_enc, k=3), batch_topk_encode(flat, w_enc, k=3))
    same_code(threshold_encode(x, w_enc, threshold=1), threshold_encode(flat, w_enc, threshold=1))
    moved = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, -1, 0)), 0, -1)
    same_code(topk_encode(moved, w_enc, k=3), SparseCode(values, indices))


@pytest.mark.parametrize("dtype", FLOATS)
def test_same_library_out(library, dtype, rng):
    if library.name == "array_api_strict" and dtype == "float16":
        pytest.skip("the standard has no float16")
    given = problem(rng, 6, 8, 30, dtype)
    x, w_enc, b_enc, b_pre = map(library.put, given)
    bars = library.put(np.full(30, 5, dtype))
    got = [
        topk_encode(x, w_enc, b_enc, k=4, b_pre=b_pre),
        batch_topk_encode(x, w_enc, b_enc, k=4, b_pre=b_pre),
        threshold_encode(x, w_enc, b_enc, threshold=bars, b_pre=b_pre),
        threshold_encode(x, w_enc, b_enc, threshold=5, b_pre=b_pre),
    ]
    wanted = [
        topk_encode(*given[:3], k=4, b_pre=given[3]),
        batch_topk_encode(*given[:3], k=4, b_pre=given[3]),
        *[threshold_encode(*given[:3], threshold=5, b_pre=given[3])] * 2,
    ]
    for code, right in zip(got, wanted, strict=True):
        assert all(library.owns(part) for part in code)
        same_code(type(code)(*map(library.get, code)), right)
        full = code.to_dense(31)
        assert library.owns(full)
        same_bits((library.get(full), right.to_dense(31)))


def test_bfloat16(rng):
    torch = pytest.importorskip("torch")
    given = [torch.from_numpy(a).bfloat16() for a in problem(rng, 9, 8, 60)]
    z = dense(*(a.float().numpy() for a in given))
    code = topk_encode(*given[:3], k=7, b_pre=given[3])
    assert code.values.dtype == torch.bfloat16
    wanted = best_of_rows(z, 7, "relu", np.float32)
    assert torch.equal(code.values, torch.from_numpy(wanted.values).bfloat16())
    same_bits((code.indices.numpy(), wanted.indices))
    assert code.to_torch(60).dtype == code.to_dense(60).dtype == torch.bfloat16
    assert code.to_scipy(60).dtype == np.float32
    ml_dtypes = pytest.importorskip("ml_dtypes")
    arrays = [a.float().numpy().astype(ml_dtypes.bfloat16) for a in given]
    ours = topk_encode(*arrays[:3], k=7, b_pre=arrays[3])
    assert ours.values.dtype == ml_dtypes.bfloat16
    same_bits((ours.values.astype("f4"), code.values.float().numpy()))
    full = code.to_dense(60)
    same_bits((ours.to_dense(60).astype("f4"), full.float().numpy()))
    assert torch.equal(ours.to_torch(60).to_dense(), full)
    assert (ours.to_scipy(60).toarray() == full.float().numpy()).all()


# ---- what becomes of codes ----------------------------------------------------------------------


def test_codes_for_other_libraries(rng):
    scipy = pytest.importorskip("scipy.sparse")
    torch = pytest.importorskip("torch")
    x, w_enc, b_enc, b_pre = problem(rng, 12, 5, 40)
    z = dense(x, w_enc, b_enc, b_pre)
    codes = [
        topk_encode(x, w_enc, b_enc, k=30, b_pre=b_pre),
        batch_topk_encode(x, w_enc, b_enc, k=6, b_pre=b_pre),
        threshold_encode(x, w_enc, b_enc, threshold=0, b_pre=b_pre),
    ]
    wanted = np.zeros_like(z, dtype=np.float32)
    np.put_along_axis(wanted, codes[0].indices, codes[0].values, 1)
    assert (codes[0].to_dense(40) == wanted).all()
    assert (codes[2].to_dense(40) == np.maximum(z, 0)).all()
    for code in codes:
        full = code.to_dense(40)
        assert full.dtype == np.float32
        table = code.to_scipy(40)
        assert isinstance(table, scipy.csr_array)
        assert (table.toarray() == full).all()
        assert table.nnz == code.values.size  # zeros as well
        tensor = code.to_torch(40)
        assert tensor.layout == torch.sparse_csr
        assert tensor.values().numel() == code.values.size
        assert (tensor.to_dense().numpy() == full).all()
        torch._validate_sparse_csr_tensor_args(
            tensor.crow_indices(), tensor.col_indices(), tensor.values(), tensor.shape
        )


def test_what_is_there_twice_is_added():
    torch = pytest.importorskip("torch")
    values, indices = np.array([[1.0, 2.0, 4.0], [8.0, 0.0, 1.0]]), np.array([[3, 0, 3], [1, 1, 1]])
    wanted = np.array([[2.0, 0, 0, 5], [0, 9, 0, 0]])
    sparse = SparseCode(values, indices)
    ragged = RaggedCode(values.ravel(), indices.ravel(), np.array([0, 3, 6]))
    for code in (sparse, ragged, *(type(c)(*map(torch.tensor, c)) for c in (sparse, ragged))):
        assert (np.asarray(code.to_dense(4)) == wanted).all()
        assert (code.to_scipy(4).toarray() == wanted).all()
        assert (code.to_torch(4).to_dense().numpy() == wanted).all()
    lead = SparseCode(values.reshape(2, 1, 3), indices.reshape(2, 1, 3))
    assert lead.to_dense(4).shape == (2, 1, 4)
    assert lead.to_scipy(4).shape == tuple(lead.to_torch(4).shape) == (2, 4)


def test_empty_codes():
    torch = pytest.importorskip("torch")
    for library in (np.asarray, torch.from_numpy):
        x, w_enc = library(-np.ones((3, 2))), library(np.ones((2, 5)))
        code = batch_topk_encode(x, w_enc, k=2)
        assert code.offsets.tolist() == [0, 0, 0, 0]
        assert tuple(code.to_dense(5).shape) == code.to_scipy(5).shape == (3, 5)
        assert tuple(code.to_torch(5).shape) == (3, 5)
        none = topk_encode(x[:0], w_enc, k=2)
        assert tuple(none.to_dense(5).shape) == none.to_scipy(5).shape == (0, 5)
        assert batch_topk_encode(x[:0], w_enc, k=2).offsets.tolist() == [0]


def test_too_few_columns_are_refused():
    code = SparseCode(np.ones((1, 2)), np.array([[3, 9]]))
    for method in ("to_dense", "to_scipy", "to_torch"):
        if method == "to_torch":
            pytest.importorskip("torch")
        with pytest.raises(InvalidArgumentError, match=rf"\[{method}\] n must be >= 10, got 9"):
            getattr(code, method)(9)
        with pytest.raises(DtypeError, match=rf"\[{method}\] n must be an integer, got float"):
            getattr(code, method)(10.0)


# ---- gradients ---------------------------------------------------------------------------------


def parameters(rng, rows, d, n, dtype=np.float64):
    torch = pytest.importorskip("torch")
    shapes = ((rows, d), (d, n), (n,), (d,))
    return [
        torch.from_numpy(np.asarray(rng.standard_normal(s), dtype)).requires_grad_() for s in shapes
    ]


def dense_values(kind, activation, x, w_enc, b_enc, b_pre):
    """The same by torch, from all of z."""
    import torch

    z = (x - b_pre) @ w_enc + b_enc
    if kind == "topk":
        if activation == "relu_first":
            z = z.relu()
        values = z.topk(6).values
        return values.relu() if activation == "relu" else values
    if kind == "batch":
        mask = torch.zeros(z.numel(), dtype=torch.bool)
        mask[z.detach().flatten().topk(4 * len(z)).indices] = True
        return z[mask.reshape(z.shape)]
    return z[z > 0.7]


def our_values(kind, activation, x, w_enc, b_enc, b_pre):
    if kind == "topk":
        return topk_encode(x, w_enc, b_enc, k=6, b_pre=b_pre, activation=activation).values
    if kind == "batch":
        return batch_topk_encode(x, w_enc, b_enc, k=4, b_pre=b_pre, activation=activation).values
    return threshold_encode(x, w_enc, b_enc, threshold=0.7, b_pre=b_pre).values


KINDS = [*(("topk", a) for a in ACTIVATIONS), ("batch", "relu"), ("threshold", None)]


@pytest.mark.parametrize(("kind", "activation"), KINDS)
def test_gradients_by_differences(kind, activation, rng):
    torch = pytest.importorskip("torch")
    given = parameters(rng, 5, 4, 11)
    assert torch.autograd.gradcheck(lambda *given: our_values(kind, activation, *given), given)


@pytest.mark.parametrize(("kind", "activation"), KINDS)
@pytest.mark.parametrize("transposed", [False, True])
def test_gradients_are_those_of_the_dense_map(kind, activation, transposed, rng):
    torch = pytest.importorskip("torch")
    given = parameters(rng, 70, 40, 200, np.float32)
    if transposed:
        given[1] = given[1].detach().t().contiguous().t().requires_grad_()
    ours = our_values(kind, activation, *given)
    theirs = dense_values(kind, activation, *given)
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    weights = torch.from_numpy(rng.standard_normal(tuple(ours.shape)).astype(np.float32))
    mine = torch.autograd.grad((ours * weights).sum(), given)
    other = torch.autograd.grad((theirs * weights).sum(), given)
    for a, b in zip(mine, other, strict=True):
        assert a.shape == b.shape
        assert ((a - b).abs().max() / b.abs().max()).item() < 1e-5
    assert mine[1].stride() == given[1].stride()


def test_gradients_of_a_whole_autoencoder(rng):
    """Against the dense one, with a loss of the reconstruction, over leading axes."""
    torch = pytest.importorskip("torch")
    x, w_enc, b_enc, b_dec = parameters(rng, 6 * 5, 16, 90, np.float32)
    x = x.detach().reshape(6, 5, 16).requires_grad_()
    w_dec = w_enc.detach().t().contiguous().requires_grad_()
    given = (x, w_enc, b_enc, w_dec, b_dec)

    code = topk_encode(x, w_enc, b_enc, k=7, b_pre=b_dec)
    mine = (sparse_decode(*code, w_dec, b_dec) - x).square().mean()
    z = (x - b_dec) @ w_enc + b_enc
    values, indices = z.topk(7)
    full = torch.zeros_like(z).scatter(-1, indices, values.relu())
    theirs = (full @ w_dec + b_dec - x).square().mean()
    assert torch.allclose(mine, theirs, rtol=1e-5)
    for a, b in zip(
        torch.autograd.grad(mine, given), torch.autograd.grad(theirs, given), strict=True
    ):
        assert ((a - b).abs().max() / b.abs().max()).item() < 1e-5


def test_what_a_rectifier_cut_has_no_gradient():
    torch = pytest.importorskip("torch")
    bias = torch.tensor([-5.0, 2, -1, 0, -3, 7], requires_grad=True)
    x, w_enc = torch.zeros(1, 3), torch.zeros(3, 6)
    for activation, wanted in (
        ("relu", [0, 1, 0, 0, 0, 1]),
        ("relu_first", [0, 1, 0, 0, 0, 1]),
        ("identity", [0, 1, 1, 1, 0, 1]),
    ):
        values = topk_encode(x, w_enc, bias, k=4, activation=activation).values
        (gradient,) = torch.autograd.grad(values.sum(), bias)
        assert gradient.tolist() == wanted


@pytest.mark.parametrize("wanted", ["x", "w_enc", "b_enc", "b_pre"])
def test_only_the_gradients_that_are_wanted(wanted, rng):
    torch = pytest.importorskip("torch")
    names = ("x", "w_enc", "b_enc", "b_pre")
    given = dict(zip(names, parameters(rng, 7, 5, 20), strict=True))
    everything = torch.autograd.grad(our_values("topk", "relu", **given).sum(), given.values())
    alone = {k: v if k == wanted else v.detach() for k, v in given.items()}
    our_values("topk", "relu", **alone).sum().backward()
    assert torch.equal(given[wanted].grad, everything[names.index(wanted)])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_gradients_of_half_precision(dtype, rng):
    torch = pytest.importorskip("torch")
    given = [
        a.detach().to(getattr(torch, dtype)).requires_grad_() for a in parameters(rng, 9, 8, 30)
    ]
    wide = [a.detach().float().requires_grad_() for a in given]
    mine = torch.autograd.grad(our_values("topk", "identity", *given).float().sum(), given)
    other = torch.autograd.grad(our_values("topk", "identity", *wide).sum(), wide)
    for a, b in zip(mine, other, strict=True):
        assert a.dtype == getattr(torch, dtype)
        assert torch.allclose(a.float(), b, rtol=2e-2, atol=2e-2)


def test_gradients_pass_through_other_forms(rng):
    torch = pytest.importorskip("torch")
    given = parameters(rng, 7, 5, 20)
    weights = torch.from_numpy(rng.standard_normal((7, 20)))
    code = topk_encode(*given[:3], k=4, b_pre=given[3])
    full = torch.zeros(7, 20, dtype=torch.float64).scatter(-1, code.indices, code.values)
    wanted = torch.autograd.grad((full * weights).sum(), given, retain_graph=True)
    for form in (code.to_dense(20), code.to_torch(20).to_dense()):
        got = torch.autograd.grad((form * weights).sum(), given, retain_graph=True)
        for a, b in zip(got, wanted, strict=True):
            assert torch.allclose(a, b)


def test_where_there_is_no_gradient(rng):
    torch = pytest.importorskip("torch")
    x, w_enc, b_enc, b_pre = parameters(rng, 4, 3, 9)
    code = topk_encode(x, w_enc, b_enc, k=2, b_pre=b_pre)
    assert code.values.requires_grad
    assert not code.indices.requires_grad
    assert not batch_topk_encode(x, w_enc, k=2).offsets.requires_grad
    with torch.no_grad():
        assert not topk_encode(x, w_enc, b_enc, k=2).values.requires_grad
    (first,) = torch.autograd.grad(code.values.square().sum(), w_enc, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
    bars = torch.ones(9, dtype=torch.float64, requires_grad=True)
    with pytest.raises(UnsupportedError, match=r"\[threshold_encode\] threshold must not require"):
        threshold_encode(x, w_enc, threshold=bars)
    with torch.no_grad():
        threshold_encode(x, w_enc, threshold=bars)


# ---- refusals ----------------------------------------------------------------------------------

X, W, ONE = np.ones((2, 3)), np.ones((3, 4)), np.ones(4)


@pytest.mark.parametrize(
    ("arguments", "kind", "text"),
    [
        ({"activation": "gelu"}, InvalidArgumentError, "activation must be one of 'relu', 'relu_f"),
        ({"x": [[1.0]]}, DtypeError, "x must be an array .*, got list"),
        ({"x": np.float64(1)}, DtypeError, "x must be an array"),
        ({"x": np.array(1.0)}, InvalidArgumentError, "x must have 1 or more axes, got 0"),
        ({"x": np.ones((2, 3), int)}, DtypeError, "x must be float16, .* or float64, got int64"),
        ({"x": np.ones((2, 3), ">f4")}, DtypeError, "x must be float16, .*, got >f4"),
        ({"x": np.ma.masked_array(X)}, DtypeError, "x must have no mask"),
        ({"x": np.ones((2, 4))}, InvalidArgumentError, "w_enc must have d = 4 rows, .* got 3"),
        ({"w_enc": W.astype("f4")}, DtypeError, "w_enc must be float64 like x, got float32"),
        ({"w_enc": ONE}, InvalidArgumentError, "w_enc must have 2 axes, got 1"),
        ({"b_enc": np.ones(3)}, InvalidArgumentError, "b_enc must have 4 elements, got 3"),
        ({"b_enc": W}, InvalidArgumentError, "b_enc must have 1 axes, got 2"),
        ({"b_enc": ONE.astype("f2")}, DtypeError, "b_enc must be float64 like x, got float16"),
        ({"b_pre": ONE}, InvalidArgumentError, "b_pre must have 3 elements, got 4"),
        ({"b_pre": [1.0, 2.0, 3.0]}, DtypeError, "b_pre must be an array .*, got list"),
    ],
)
def test_refusals(arguments, kind, text):
    arguments = {"x": X, "w_enc": W} | arguments
    for function in (topk_encode, batch_topk_encode):
        with pytest.raises(kind, match=rf"\[{function.__name__}\] {text}"):
            function(**arguments, k=2)
    if "activation" not in arguments:
        with pytest.raises(kind, match=rf"\[threshold_encode\] {text}"):
            threshold_encode(**arguments, threshold=1)


@pytest.mark.parametrize(
    ("k", "kind", "text"),
    [
        (5, InvalidArgumentError, r"k must be in 1\.\.4, got 5"),
        (0, InvalidArgumentError, r"k must be in 1\.\.4, got 0"),
        (2.0, DtypeError, r"k must be an integer, got float 2\.0"),
        (True, DtypeError, r"k must be an integer, got bool True"),
    ],
)
def test_refused_numbers_of_a_row(k, kind, text):
    with pytest.raises(kind, match=r"\[topk_encode\] " + text):
        topk_encode(X, W, k=k)


@pytest.mark.parametrize(
    ("k", "kind", "text"),
    [
        (5, InvalidArgumentError, r"k must be in 0\.\.4, got 5"),
        (-1, InvalidArgumentError, r"k must be in 0\.\.4, got -1"),
        (4.5, InvalidArgumentError, r"k must be in \[0, 4\], got 4\.5"),
        (float("nan"), InvalidArgumentError, r"k must be in \[0, 4\], got nan"),
        (True, DtypeError, "k must be a.* True"),
        ("2", DtypeError, "k must be a number, got '2'"),
        (None, DtypeError, "k must be a number, got NoneType"),
    ],
)
def test_refused_numbers_of_a_batch(k, kind, text):
    with pytest.raises(kind, match=r"\[batch_topk_encode\] " + text):
        batch_topk_encode(X, W, k=k)


@pytest.mark.parametrize(
    ("threshold", "kind", "text"),
    [
        (np.ones(3), InvalidArgumentError, "threshold must have 4 elements, got 3"),
        (W, InvalidArgumentError, "threshold must have 1 axes, got 2"),
        (np.array(1.0), InvalidArgumentError, "threshold must have 1 axes, got 0"),
        (ONE.astype("f4"), DtypeError, "threshold must be float64 like x, got float32"),
        ("high", DtypeError, "threshold must be a number, got 'high'"),
        (None, DtypeError, "threshold must be a number, got NoneType"),
        (float("nan"), InvalidArgumentError, r"threshold must be in \[-inf, inf\], got nan"),
    ],
)
def test_refused_thresholds(threshold, kind, text):
    with pytest.raises(kind, match=r"\[threshold_encode\] " + text):
        threshold_encode(X, W, threshold=threshold)


def test_libraries_are_not_mixed():
    torch = pytest.importorskip("torch")
    with pytest.raises(DtypeError, match=r"\[topk_encode\] w_enc must be of the library .* of x"):
        topk_encode(torch.ones(2, 3, dtype=torch.float64), W, k=1)
    with pytest.raises(DtypeError, match=r"\[threshold_encode\] threshold must be of the library"):
        threshold_encode(X, W, threshold=torch.ones(4, dtype=torch.float64))


def test_cuda_arrays_are_refused():
    from test_interop import CUDA, Producer

    x, w_enc = (Producer(a.astype("f4"), device=CUDA) for a in (X, W))
    for encode in (
        lambda: topk_encode(x, w_enc, k=1),
        lambda: batch_topk_encode(x, w_enc, k=1),
        lambda: threshold_encode(x, w_enc, threshold=1),
    ):
        with pytest.raises(UnsupportedError, match=r"_encode\] .*CUDA"):
            encode()


def core_topk(**change):
    given = {
        "x": X,
        "w_enc": W,
        "b_enc": None,
        "b_pre": None,
        "values": np.zeros((2, 2)),
        "indices": np.zeros((2, 2), np.int64),
        "activation": "relu",
        "certified": False,
    }
    _core.topk_encode(**(given | change))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"values": np.zeros((2, 5))}, r"k must be in 1\.\.4, got 5"),
        ({"values": np.zeros((3, 2))}, "values must be C-ordered, on the device of x, and of"),
        ({"values": np.zeros((2, 4))[:, ::2]}, "values must be C-ordered"),
        ({"values": X[:, :2].copy(), "indices": np.zeros((2, 3), np.int64)}, "indices must be C-o"),
        ({"values": W.reshape(-1)[:4].reshape(2, 2)}, "values must not overlap an input"),
        ({"values": np.zeros(4)}, "values must have 2 axes, got 1"),
        ({"values": np.zeros((2, 2), "f4")}, "values must be float64, got float32"),
        ({"indices": np.zeros((2, 2), "i4")}, "indices must be int64, got int32"),
        ({"activation": "none"}, "activation must be one of 'relu', .*, got 'none'"),
    ],
)
def test_refusals_of_the_core(change, text):
    with pytest.raises((InvalidArgumentError, DtypeError), match=r"\[topk_encode\] " + text):
        core_topk(**change)


def room(count):
    return np.zeros(count), np.zeros(count, np.int64)


@pytest.mark.parametrize(
    ("allocate", "text"),
    [
        (lambda n: room(n + 1), "allocate must return arrays of 8 elements, got 9 and 9"),
        (lambda n: (*room(n), 1), "allocate must return values and indices, got 3 objects"),
        (lambda n: (np.zeros(n, "f4"), np.zeros(n, np.int64)), "values must be float64"),
        (lambda n: (np.zeros(n), np.zeros(n)), "indices must be int64, got float64"),
    ],
)
def test_refused_room(allocate, text):
    offsets = np.zeros(3, np.int64)
    with pytest.raises((InvalidArgumentError, DtypeError), match=r"_encode\] " + text):
        _core.threshold_encode(X, W, None, None, np.zeros(4), offsets, allocate)
    with pytest.raises((InvalidArgumentError, DtypeError), match=r"_encode\] " + text):
        _core.batch_topk_encode(X, W, None, None, 8, offsets, allocate, "relu")


def test_refusals_of_the_ragged_core():
    with pytest.raises(InvalidArgumentError, match=r"count must be in 0\.\.8, got 9"):
        _core.batch_topk_encode(X, W, None, None, 9, np.zeros(3, np.int64), room, "relu")
    with pytest.raises(InvalidArgumentError, match="offsets must be C-ordered"):
        _core.batch_topk_encode(X, W, None, None, 2, np.zeros(2, np.int64), room, "relu")
    with pytest.raises(InvalidArgumentError, match="offsets must be C-ordered"):
        _core.threshold_encode(X, W, None, None, ONE, np.zeros(6, np.int64)[::2], room)


def test_an_error_while_room_is_made_gets_out():
    def fail(_):
        raise LookupError("no room")

    for _ in range(3):
        with pytest.raises(LookupError, match="no room"):
            _core.threshold_encode(X, W, None, None, ONE, np.zeros(3, np.int64), fail)
    assert subspan.topk_encode(X, W, k=1).values.tolist() == [[3.0], [3.0]]
