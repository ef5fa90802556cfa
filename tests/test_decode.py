"""sparse_decode: values against dense products in float64; layouts, libraries."""

import numpy as np
import pytest
from decode_oracle import FLOATS, close, dense, problem
from matrices import same_bits
from subspan import sparse_decode

# ---- values ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("d", [1, 3, 15, 16, 17, 31, 64, 65, 130, 768, 1025, 2100])
def test_widths_around_vectors_and_slices(dtype, d, rng):
    for k in (1, 2, 3, 4, 5, 9):
        values, indices, w, b = problem(rng, k=k, d=d, dtype=dtype)
        close(sparse_decode(values, indices, w, b), (values, indices), w, b, dtype)
        close(sparse_decode(values, indices, w), (values, indices), w, None, dtype)


def test_slices_of_a_large_dictionary(rng):
    """Rows that are used several times and do not fit the cache together are read by slices."""
    values, indices, w, b = problem(rng, rows=1700, k=8, n=6000, d=1000)
    got = sparse_decode(values, indices, w, b)
    for t in (0, 1, 800, 1699):
        close(got[t : t + 1], (values[t : t + 1], indices[t : t + 1]), w, b, "float32")


def test_bfloat16(rng):
    torch = pytest.importorskip("torch")
    for d in (5, 64, 771):
        values, indices, w, b = problem(rng, d=d)
        t = [torch.from_numpy(a).bfloat16() for a in (values, w, b)]
        got = sparse_decode(t[0], torch.from_numpy(indices), t[1], t[2])
        assert got.dtype == torch.bfloat16
        code = t[0].double().numpy(), indices
        close(got.double().numpy(), code, t[1].double().numpy(), t[2].double().numpy(), "bfloat16")


def test_every_float16_survives_and_rounds(rng):
    """One pair of weight 1 hands a row through; sums round to nearest, ties to even."""
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16).reshape(1, -1)
    got = sparse_decode(np.ones((1, 1), np.float16), np.zeros((1, 1), np.int64), every)
    np.testing.assert_array_equal(got, every)
    a = rng.integers(0, 1 << 16, (2, 200_000)).astype(np.uint16).view(np.float16)
    with np.errstate(over="ignore", invalid="ignore"):
        wanted = (a[:1].astype(np.float32) + a[1:].astype(np.float32)).astype(np.float16)
    got = sparse_decode(np.ones((1, 2), np.float16), np.array([[0, 1]]), a)
    np.testing.assert_array_equal(got, wanted)


def test_every_bfloat16_survives_and_rounds(rng):
    torch = pytest.importorskip("torch")
    every = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(torch.bfloat16).reshape(1, -1)
    one, zero = torch.ones(1, 1, dtype=torch.bfloat16), torch.zeros(1, 1, dtype=torch.int64)
    torch.testing.assert_close(
        sparse_decode(one, zero, every), every, rtol=0, atol=0, equal_nan=True
    )
    a = torch.from_numpy(rng.integers(-(1 << 15), 1 << 15, (2, 200_000)).astype(np.int16))
    a = a.view(torch.bfloat16)
    got = sparse_decode(one.expand(1, 2), torch.tensor([[0, 1]]), a)
    wanted = (a[:1].float() + a[1:].float()).bfloat16()
    torch.testing.assert_close(got, wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", FLOATS)
def test_csr(dtype, rng):
    _, _, w, b = problem(rng, dtype=dtype)
    lengths = np.array([0, 3, 0, 0, 1, 12, 5, 0])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    values = rng.standard_normal(offsets[-1]).astype(dtype)
    indices = rng.integers(0, 20, offsets[-1])
    for bias in (b, None):
        got = sparse_decode(values, indices, w, bias, offsets=offsets)
        close(got, (values, indices, offsets), w, bias, dtype)
    same_bits(
        (
            sparse_decode(values[:15], indices[:15], w, offsets=np.arange(0, 16, 5)),
            sparse_decode(values[:15].reshape(3, 5), indices[:15].reshape(3, 5), w),
        )
    )


def test_long_rows_are_summed_in_parts(threads, rng):
    """Rows of more than 1024 pairs, and one that several threads share."""
    lengths = np.array([1, 1024, 1025, 60_000, 3000, 0])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    values = rng.standard_normal(offsets[-1]).astype(np.float32)
    indices = rng.integers(0, 500, offsets[-1])
    w = rng.standard_normal((500, 70)).astype(np.float32)
    f = dense(values, indices, 500, offsets)
    results = []
    for count in (1, 2, 3, 7):
        threads(count)
        results.append(sparse_decode(values, indices, w, offsets=offsets))
    same_bits(*((other, results[0]) for other in results[1:]))
    np.testing.assert_allclose(results[0], f @ w, atol=2e-3)


def test_duplicates_add(rng):
    w = rng.standard_normal((4, 10))
    values, indices = np.array([[1.0, 2.0, 4.0]]), np.array([[3, 3, 3]])
    np.testing.assert_allclose(sparse_decode(values, indices, w)[0], 7 * w[3], rtol=1e-15)


def test_nothing_is_skipped_and_nothing_else_is_read():
    w = np.array([[np.inf, 1.0], [np.nan, 2.0], [3.0, 4.0]])
    code = np.array([[0.0, 1.0]])
    np.testing.assert_array_equal(sparse_decode(code, np.array([[0, 2]]), w), [[np.nan, 4.0]])
    np.testing.assert_array_equal(sparse_decode(code, np.array([[1, 2]]), w), [[np.nan, 4.0]])
    np.testing.assert_array_equal(sparse_decode(code + 1, np.array([[2, 2]]), w), [[9.0, 12.0]])
    nan = sparse_decode(np.array([[np.nan]]), np.array([[2]]), w)
    assert np.isnan(nan).all()


@pytest.mark.parametrize("lead", [(), (1,), (4,), (2, 3), (2, 1, 3)])
def test_leading_axes(lead, rng):
    values, indices = rng.standard_normal((*lead, 5)), rng.integers(0, 20, (*lead, 5))
    w, b = rng.standard_normal((20, 9)), rng.standard_normal(9)
    got = sparse_decode(values, indices, w, b)
    assert got.shape == (*lead, 9)
    close(got.reshape(-1, 9), (values.reshape(-1, 5), indices), w, b, "float64")


@pytest.mark.parametrize(
    ("shape", "n", "d"),
    [((0, 5), 4, 3), ((3, 0), 4, 3), ((3, 0), 0, 3), ((3, 2), 4, 0), ((0,), 4, 3)],
)
def test_empty(shape, n, d):
    b = np.arange(d, dtype=np.float32)
    values, indices = np.ones(shape, np.float32), np.zeros(shape, np.int64)
    w = np.ones((n, d), np.float32)
    got = sparse_decode(values, indices, w, b)
    wanted = np.broadcast_to(b + (shape[-1] if n else 0), (*shape[:-1], d))
    np.testing.assert_array_equal(got, wanted)
    torch = pytest.importorskip("torch")
    t = [torch.from_numpy(np.array(a)).requires_grad_() for a in (values, w, b)]
    out = sparse_decode(t[0], torch.from_numpy(indices), t[1], t[2])
    out.sum().backward()
    for a in t:
        assert a.grad.shape == a.shape
    np.testing.assert_array_equal(t[2].grad, np.full(d, np.prod(shape[:-1]), np.float32))


def test_empty_csr():
    w, b = np.ones((4, 3)), np.arange(3.0)
    none, nowhere = np.ones(0), np.zeros(0, np.int64)
    for rows in (0, 2):
        got = sparse_decode(none, nowhere, w, b, offsets=np.zeros(rows + 1, np.int64))
        np.testing.assert_array_equal(got, np.broadcast_to(b, (rows, 3)))


# ---- layouts and libraries -------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
def test_layouts_give_the_same_bits(dtype, rng):
    values, indices, w, b = problem(rng, rows=40, k=6, n=50, d=80, dtype=dtype)
    wanted = sparse_decode(values, indices, w, b)
    wide = np.zeros((50, 161), dtype)
    wide[:, 1::2] = w
    frozen = w.copy()
    frozen.flags.writeable = False
    unaligned = np.frombuffer(b"\0" + w.tobytes(), np.uint8)[1:].view(dtype).reshape(w.shape)
    views = {
        "columns": np.asfortranarray(w),
        "strided": wide[:, 1::2],
        "negative": w[::-1, ::-1].copy()[::-1, ::-1],
        "negative columns": np.asfortranarray(w[::-1, ::-1])[::-1, ::-1],
        "rows apart": np.repeat(w, 2, axis=0)[::2],
        "read-only": frozen,
        "unaligned": unaligned,
    }
    for view in views.values():
        same_bits((sparse_decode(values, indices, view, b), wanted))
    one = np.broadcast_to(w[:1], w.shape)
    same_bits((sparse_decode(values, indices, one, b), sparse_decode(values, 0 * indices, w, b)))
    twice = np.repeat(values, 2, axis=1)[:, ::2], np.repeat(indices, 2, axis=1)[:, ::2]
    same_bits((sparse_decode(*twice, w, np.repeat(b, 2)[::2]), wanted))
    back = values[::-1, ::-1].copy()[::-1, ::-1], np.asfortranarray(indices)
    same_bits((sparse_decode(*back, w, b[::-1].copy()[::-1]), wanted))


def test_same_library_out(library, rng):
    values, indices, w, b = problem(rng)
    put = [library.put(a) for a in (values, indices, w, b)]
    got = sparse_decode(*put)
    assert library.owns(got)
    same_bits((library.get(got), sparse_decode(values, indices, w, b)))


def test_large_results_are_whole_and_aligned(rng):
    torch = pytest.importorskip("torch")
    values, indices, w, _ = problem(rng, rows=3000, k=3, n=40, d=777)
    wanted = sparse_decode(values, indices, w)
    got = sparse_decode(*map(torch.from_numpy, (values, indices, w)))
    same_bits((got.numpy(), wanted))
    assert got.is_contiguous()
    assert got.data_ptr() % 64 == 0
    half = [torch.from_numpy(a).bfloat16() for a in (values, w)]
    got = sparse_decode(half[0], torch.from_numpy(indices), half[1])
    small = sparse_decode(half[0][:9], torch.from_numpy(indices[:9]), half[1])
    assert torch.equal(got[:9], small)
