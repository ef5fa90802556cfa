"""Sparse encoders: what they select, against dense float64 and a stable sort; ties, NaN."""

import numpy as np
import pytest
from encode_oracle import (
    ACTIVATIONS,
    FLOATS,
    check_all,
    check_batch,
    check_threshold,
    check_topk,
    dense,
    problem,
    rows_of,
    same_code,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import same_bits
from subspan import batch_topk_encode, sparse_decode, threshold_encode, topk_encode

# Around tiles of 4 and 8 rows, of 8 to 48 columns, and of tasks of 128 rows.
EXTENTS = (1, 2, 7, 8, 9, 31, 33, 127, 129, 1000)


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
    for rows, d, n in ((1, 700, 5000), (20, 900, 3000), (140, 1000, 5000)):
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


# ---- ties and values that are special --------------------------------------------------------


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


# ---- properties of the methods ---------------------------------------------------------------


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
