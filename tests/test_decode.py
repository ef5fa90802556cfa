"""sparse_decode: against dense products in float64; layouts, gradients, threads, refusals."""

import numpy as np
import pytest
import subspan
from matrices import same_bits
from subspan import _core, sparse_decode
from subspan.errors import DtypeError, InvalidArgumentError, UnsupportedError

FLOATS = ["float16", "float32", "float64"]
EPS = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53}
LEVELS = ("baseline", "v3", "v4")


def dense(values, indices, n, offsets=None):
    """The code as a float64 matrix [rows, n]; duplicates add."""
    values, indices = np.asarray(values, np.float64), np.asarray(indices)
    if offsets is None:
        lengths = np.full(int(np.prod(values.shape[:-1])), values.shape[-1])
    else:
        lengths = np.diff(offsets)
    f = np.zeros((len(lengths), n))
    np.add.at(f, (np.repeat(np.arange(len(lengths)), lengths), indices.ravel()), values.ravel())
    return f


def problem(rng, rows=7, k=5, n=20, d=33, dtype="float32"):
    values = rng.standard_normal((rows, k)).astype(dtype)
    indices = rng.integers(0, n, (rows, k))
    w = rng.standard_normal((n, d)).astype(dtype)
    b = rng.standard_normal(d).astype(dtype)
    return values, indices, w, b


def close(got, code, w, b, dtype):
    """Within the rounding of float32 (float64) sums and one rounding of the result."""
    values, indices, *offsets = code
    n = len(w)
    f, magnitude = (dense(v, indices, n, *offsets) for v in (values, np.abs(values)))
    w = np.asarray(w, np.float64)
    wanted = f @ w + (0 if b is None else np.asarray(b, np.float64))
    size = magnitude @ np.abs(w) + (0 if b is None else np.abs(np.asarray(b, np.float64)))
    terms = 4 + np.minimum((magnitude != 0).sum(1, keepdims=True), 1024)
    unit = max(EPS["float32"], EPS[dtype]) if dtype != "float64" else EPS["float64"]
    sums = EPS["float64"] if dtype == "float64" else EPS["float32"]
    tiny = 2.0**-25 if dtype == "float16" else 0
    assert got.shape == wanted.shape
    bound = terms * sums * size + unit * np.abs(wanted) + tiny
    assert (np.abs(np.asarray(got, np.float64) - wanted) <= bound).all()


# ---- values ------------------------------------------------------------------------------------


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


# ---- layouts and libraries ---------------------------------------------------------------------


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


# ---- independence ------------------------------------------------------------------------------


def gradients(values, indices, w, gradient, offsets=None, rows=None):
    """All three, from the core."""
    of_values, of_w = np.full(values.size, 7, w.dtype), np.full(w.shape, 7, w.dtype)
    of_b = np.full(w.shape[1], 7, w.dtype)
    rows = len(gradient) if rows is None else rows
    code = (np.ascontiguousarray(values).ravel(), np.ascontiguousarray(indices).ravel())
    _core.sparse_decode_backward(*code, offsets, rows, w, gradient, of_values, of_w, of_b)
    return of_values, of_w, of_b


def skewed(rng, rows, k, n):
    """Features of very different frequency: the first fires in nearly every row."""
    indices = (n * rng.random((rows, k)) ** 6).astype(np.int64)
    indices[:, 0] = 0
    return indices


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("rows", "k", "n", "d"), [(9000, 6, 700, 40), (300, 20, 5000, 260)])
def test_bits_do_not_depend_on_the_threads(dtype, rows, k, n, d, threads, rng):
    values, _, w, b = problem(rng, rows, k, n, d, dtype)
    indices = skewed(rng, rows, k, n)
    gradient = rng.standard_normal((rows, d)).astype(dtype)
    results = []
    for count in (1, 2, 3):
        threads(count)
        encoded = encoder_gradients(values, indices, gradient, b, w.T)
        flipped = encoder_gradients(values, indices, gradient, b, np.ascontiguousarray(w.T))
        results.append(
            [
                sparse_decode(values, indices, w, b),
                *gradients(values, indices, w, gradient),
                *encoded,
                *flipped,
            ]
        )
    for other in results[1:]:
        same_bits(*zip(other, results[0], strict=True))
    for one, two in zip(encoded[:3], flipped[:3], strict=True):  # layouts do not show either
        same_bits((np.ascontiguousarray(one), np.ascontiguousarray(two)))


REPORT = """
import numpy as np, subspan, sys
rng = np.random.default_rng(3)
out = []
for dtype in ("float16", "float32", "float64"):
    for d in (7, 129):
        values = rng.standard_normal((30, 5)).astype(dtype)
        indices = rng.integers(0, 40, (30, 5))
        w = rng.standard_normal((40, d)).astype(dtype)
        x = rng.standard_normal((30, d)).astype(dtype)
        of_values, of_w = np.empty(150, dtype), np.empty((40, d), dtype)
        code = (values.ravel(), indices.ravel(), None, 30)
        subspan._core.sparse_decode_backward(*code, w, x, of_values, of_w, None)
        out += [subspan.sparse_decode(values, indices, w), of_values, of_w]
print(subspan.cpu_level(), *(float(v) for a in out for v in a.ravel()))
"""


def test_levels_agree(run_python):
    cpu = run_python("import subspan; print(subspan.cpu_level())", SUBSPAN_CPU_LEVEL=None)
    levels = LEVELS[: LEVELS.index(cpu.stdout.strip()) + 1]
    lines = [
        run_python("import subspan._core\n" + REPORT, SUBSPAN_CPU_LEVEL=level).stdout.split()
        for level in levels
    ]
    assert [line[0] for line in lines] == list(levels)
    first = np.array(lines[0][1:], float)
    for line in lines[1:]:
        # float16 results may round to the neighbour.
        np.testing.assert_allclose(np.array(line[1:], float), first, rtol=2e-3, atol=2e-3)


# ---- gradients of the decoder ------------------------------------------------------------------


def near(got, wanted, dtype, scale=1.0):
    tol = {"float16": 4e-3, "float32": 2e-6, "float64": 4e-15}[dtype]
    atol = tol * scale * max(1.0, np.abs(wanted).max(initial=0.0))
    np.testing.assert_allclose(np.asarray(got, np.float64), wanted, rtol=tol, atol=atol)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("d", [1, 5, 16, 67, 130, 1100])
@pytest.mark.parametrize(("rows", "k", "n"), [(7, 5, 20), (3000, 4, 30), (50, 3, 2000)])
def test_backward(dtype, d, rows, k, n, rng):
    if d == 1100 and rows == 3000:
        rows = 400
    values, indices, w, _ = problem(rng, rows, k, n, d, dtype)
    gradient = rng.standard_normal((rows, d)).astype(dtype)
    f, g = dense(values, indices, n), gradient.astype(np.float64)
    wanted = np.take_along_axis(g @ w.astype(np.float64).T, indices, 1).ravel(), f.T @ g, g.sum(0)
    got = gradients(values, indices, w, gradient)
    for part, right in zip(got, wanted, strict=True):
        near(part, right, dtype, 4)
    # Each alone, and in any layout, has the same bits.
    for layout in (np.asfortranarray, lambda a: np.repeat(a, 2, axis=1)[:, ::2], lambda a: a):
        alone = [np.empty_like(part) for part in got]
        for at in range(3):
            outputs = [alone[i] if i == at else None for i in range(3)]
            code = (values.ravel(), indices.ravel(), None, rows)
            _core.sparse_decode_backward(*code, layout(w), layout(gradient), *outputs)
        same_bits(*zip(alone, got, strict=True))


def test_backward_of_csr(rng):
    lengths = np.array([0, 3, 0, 1, 12, 5, 0])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    values, indices = rng.standard_normal(21), rng.integers(0, 20, 21)
    w, gradient = rng.standard_normal((20, 33)), rng.standard_normal((7, 33))
    got = gradients(values, indices, w, gradient, offsets)
    row = np.repeat(np.arange(7), lengths)
    near(got[0], (gradient[row] * w[indices]).sum(1), "float64", 4)
    near(got[1], dense(values, indices, 20, offsets).T @ gradient, "float64", 4)
    near(got[2], gradient.sum(0), "float64", 4)


def test_large_outputs_are_written_past_the_caches(rng):
    """From 8 MiB on; rows that begin within a vector are no exception."""
    n, d = 5000, 501
    values, indices, w, _ = problem(rng, 200, 9, n, d)
    gradient = rng.standard_normal((200, d)).astype(np.float32)
    wanted = dense(values, indices, n).T @ gradient
    _, of_w, _ = gradients(values, indices, w, gradient)
    near(of_w, wanted, "float32", 4)
    memory = np.full(n * d * 4 + 63 + 20, 7, np.uint8)
    for shift in (0, 4, 20, 2):  # 2: not even the elements are aligned
        start = -memory.ctypes.data % 64 + shift
        out = memory[start : start + n * d * 4].view(np.float32).reshape(n, d)
        out[:] = 7
        code = (values.ravel(), indices.ravel(), None, 200)
        _core.sparse_decode_backward(*code, w, gradient, None, out, None)
        same_bits((out, of_w))


def test_gradcheck(rng):
    torch = pytest.importorskip("torch")
    values, indices, w, b = problem(rng, rows=6, k=3, n=5, d=4, dtype="float64")
    t = [torch.from_numpy(a).requires_grad_() for a in (values, w, b)]
    where = torch.from_numpy(indices).reshape(2, 3, 3)

    def decode(values, w, b):
        return sparse_decode(values.reshape(2, 3, 3), where, w, b)

    assert torch.autograd.gradcheck(decode, t)
    offsets = torch.tensor([0, 0, 4, 5, 18])

    def decode_rows(values, w):
        return sparse_decode(values.reshape(-1), where.reshape(-1), w.t(), offsets=offsets)

    assert torch.autograd.gradcheck(decode_rows, (t[0], t[1].detach().t().requires_grad_()))


def test_against_embedding_bag(rng):
    torch = pytest.importorskip("torch")
    values, indices, w, _ = problem(rng, rows=300, k=8, n=90, d=100)
    gradient = torch.from_numpy(rng.standard_normal((300, 100)).astype(np.float32))
    results = []
    for ours in (True, False):
        t = [torch.from_numpy(a.copy()).requires_grad_() for a in (values, w)]
        where = torch.from_numpy(indices)
        if ours:
            out = sparse_decode(t[0], where, t[1])
        else:
            bag = torch.nn.functional.embedding_bag
            out = bag(where, t[1], mode="sum", per_sample_weights=t[0])
        out.backward(gradient)
        results.append((out.detach(), t[0].grad, t[1].grad))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_only_wanted_gradients_are_made(monkeypatch, rng):
    torch = pytest.importorskip("torch")
    seen = []
    called = _core.sparse_decode_backward

    def spy(*arguments):
        seen.append([out is not None for out in arguments[-3:]])
        called(*arguments)

    monkeypatch.setattr(_core, "sparse_decode_backward", spy)
    values, indices, w, b = map(torch.from_numpy, problem(rng))
    for wanted in ((True, False, False), (False, True, False), (False, False, True)):
        t = [a.clone().requires_grad_(on) for a, on in zip((values, w, b), wanted, strict=True)]
        sparse_decode(t[0], indices, t[1], t[2]).sum().backward()
        assert seen.pop() == list(wanted)
        assert [a.grad is not None for a in t] == list(wanted)
    with torch.no_grad():
        assert not sparse_decode(t[0], indices, t[1], t[2]).requires_grad


def test_expanded_gradients_and_other_dtypes(rng):
    torch = pytest.importorskip("torch")
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        values, indices, w, b = map(torch.from_numpy, problem(rng))
        t = [a.to(dtype).requires_grad_() for a in (values, w, b)]
        sparse_decode(t[0], indices, t[1], t[2]).sum().backward()  # a gradient of strides 0
        wanted = t[1].detach().float()[indices].sum(-1)
        assert all(a.grad.dtype == dtype for a in t)
        torch.testing.assert_close(t[0].grad.float(), wanted, rtol=2e-2, atol=2e-2)
        assert torch.equal(t[2].grad, torch.full_like(b, 7, dtype=dtype))


def test_a_second_derivative_is_refused(rng):
    torch = pytest.importorskip("torch")
    values, indices, w, _ = map(torch.from_numpy, problem(rng))
    values.requires_grad_()
    out = sparse_decode(values, indices, w)
    (first,) = torch.autograd.grad(out.square().sum(), values, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


# ---- gradients of the encoder ------------------------------------------------------------------


def encoder_gradients(dz, indices, x, b_pre, w_enc):
    """All four, from the core, in the layout of w_enc."""
    d, n = w_enc.shape
    turned = not w_enc.flags.c_contiguous
    of_w = np.full((n, d), 7, x.dtype).T if turned else np.full((d, n), 7, x.dtype)
    out = of_w, np.full(n, 7, x.dtype), np.full(x.shape, 7, x.dtype), np.full(d, 7, x.dtype)
    code = (dz.ravel(), indices.ravel(), None, len(x))
    _core.topk_encode_backward(*code, n, x, b_pre, w_enc, *out)
    return out


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("d", [1, 16, 67, 1100])
@pytest.mark.parametrize(("rows", "k", "n"), [(7, 5, 20), (2500, 4, 30), (90, 3, 1000)])
@pytest.mark.parametrize("turned", [False, True])
def test_backward_of_the_encoder(dtype, d, rows, k, n, turned, rng):
    if d == 1100 and rows == 2500:
        rows = 400
    dz, indices, w, b = problem(rng, rows, k, n, d, dtype)
    w = w.T if turned else np.ascontiguousarray(w.T)
    x = rng.standard_normal((rows, d)).astype(dtype)
    f = dense(dz, indices, n)
    w64, sums = w.astype(np.float64), f.sum(0)
    for center in (b, None):
        shifted = x.astype(np.float64)
        if center is not None:
            shifted -= center.astype(np.float64)
        got = encoder_gradients(dz, indices, x, center, w)
        for part, right in zip(got, (shifted.T @ f, sums, f @ w64.T, -w64 @ sums), strict=True):
            near(part, right, dtype, 8)
        assert got[0].flags.c_contiguous != turned or min(d, n) == 1
        other = np.asfortranarray(x)
        same_bits((encoder_gradients(dz, indices, other, center, w)[0], got[0]))


def test_large_columns_are_written_past_the_caches(rng):
    for n in (8192, 8200, 8195):  # whole lines in a row, and not
        dz, indices, _, b = problem(rng, 100, 6, n, 300)
        x = rng.standard_normal((100, 300)).astype(np.float32)
        wanted = (x - b).astype(np.float64).T @ dense(dz, indices, n)
        memory = np.full(n * 300 * 4 + 63 + 16, 7, np.uint8)
        for shift in (0, 16):
            start = -memory.ctypes.data % 64 + shift
            out = memory[start : start + n * 300 * 4].view(np.float32).reshape(300, n)
            out[:] = 7
            code = (dz.ravel(), indices.ravel(), None, 100)
            _core.topk_encode_backward(*code, n, x, b, None, out, None, None, None)
            near(out, wanted, "float32", 8)


def test_the_python_gradients_of_the_encoder(rng):
    torch = pytest.importorskip("torch")
    encode_gradients = subspan._ops.decode.encode_gradients
    dz, indices, w, b = map(torch.from_numpy, problem(rng, 6, 3, 20, 9, "float64"))
    x = torch.from_numpy(rng.standard_normal((2, 3, 9)))
    dz, indices = dz.reshape(2, 3, 3), indices.reshape(2, 3, 3)
    for w_enc in (w.t(), w.t().contiguous()):
        t = [a.detach().clone().requires_grad_() for a in (w_enc, torch.zeros(20).double(), x, b)]
        z = (t[2] - t[3]) @ t[0] + t[1]
        wanted = torch.autograd.grad(z.gather(-1, indices), t, dz)
        for names in (("w_enc", "b_enc", "x", "b_pre"), ("b_enc",), ("x", "b_pre")):
            got = encode_gradients(dz, indices, x, w_enc, b, wanted=names)
            for name, mine, right in zip(got._fields, got, wanted, strict=True):
                assert (mine is not None) == (name in names)
                if mine is not None:
                    torch.testing.assert_close(mine, right, rtol=1e-12, atol=1e-12)
        got = encode_gradients(dz, indices, x, w_enc, wanted=("w_enc",))
        assert got.w_enc.stride() == w_enc.stride()


# ---- refusals ----------------------------------------------------------------------------------

ONES, WHERE, W = np.ones((2, 3)), np.zeros((2, 3), np.int64), np.ones((4, 5))


@pytest.mark.parametrize(
    ("change", "kind", "text"),
    [
        ({"values": [1.0]}, DtypeError, r"values must be an array .*, got list"),
        ({"values": np.ones((2, 3), int)}, DtypeError, "values must be float16, .*, got int64"),
        ({"indices": WHERE.astype(np.int32)}, DtypeError, "indices must be int64, got int32"),
        ({"indices": ONES}, DtypeError, "indices must be int64, got float64"),
        ({"w_dec": W.astype("f4")}, DtypeError, "w_dec must be float64 like values, got float32"),
        ({"b_dec": np.ones(5, "f4")}, DtypeError, "b_dec must be float64 like values, got float32"),
        ({"w_dec": np.ones(5)}, InvalidArgumentError, "w_dec must have 2 axes, got 1"),
        ({"b_dec": np.ones(4)}, InvalidArgumentError, r"b_dec must have shape \(5,\), .*\(4,\)"),
        ({"indices": WHERE[:1]}, InvalidArgumentError, r"indices must have the shape of values"),
        (
            {"values": np.array(1.0), "indices": np.array(1)},
            InvalidArgumentError,
            "values must have 1 or more axes, got 0",
        ),
        ({"offsets": np.array([0, 6])}, InvalidArgumentError, "values must have 1 axes, got 2"),
        (
            {"indices": np.array([[0, 1, 3], [2, 4, -1]])},
            InvalidArgumentError,
            r"indices must be in 0\.\.3 \(4 features\), got 4 at row 1, position 1",
        ),
        (
            {"indices": np.array([[0, 1, 3], [2, 3, -1]])},
            InvalidArgumentError,
            r"indices must be in 0\.\.3 \(4 features\), got -1 at row 1, position 2",
        ),
        ({"w_dec": np.ma.masked_array(W)}, DtypeError, "w_dec must have no mask"),
    ],
)
def test_refusals(change, kind, text):
    arguments = {"values": ONES, "indices": WHERE, "w_dec": W} | change
    with pytest.raises(kind, match=r"\[sparse_decode\] " + text):
        sparse_decode(**arguments)


@pytest.mark.parametrize(
    ("offsets", "kind", "text"),
    [
        (np.array([0, 4, 2, 6]), InvalidArgumentError, "ascend from 0 .*, 6, got 2 at position 2"),
        (np.array([1, 4, 6]), InvalidArgumentError, "ascend from 0 .*, 6, got 1 at position 0"),
        (np.array([0, 4, 7]), InvalidArgumentError, "ascend from 0 .*, 6, got 7 at position 2"),
        (np.array([0, 4, 5]), InvalidArgumentError, "ascend from 0 .*, 6, got 5 at position 2"),
        (np.array([0]), InvalidArgumentError, "ascend from 0 .*, 6, got 0 at position 0"),
        (np.zeros(0, int), InvalidArgumentError, "offsets must have one element more .*, got none"),
        (np.array([[0, 6]]), InvalidArgumentError, "offsets must have 1 axes, got 2"),
        (np.array([0.0, 6.0]), DtypeError, "offsets must be int64, got float64"),
    ],
)
def test_refused_offsets(offsets, kind, text):
    with pytest.raises(kind, match=r"\[sparse_decode\] .*" + text):
        sparse_decode(np.ones(6), np.zeros(6, np.int64), W, offsets=offsets)
    where = np.array([0, 1, 2, 3, 9, 1])
    with pytest.raises(InvalidArgumentError, match="got 9 at row 2, position 1"):
        sparse_decode(np.ones(6), where, W, offsets=np.array([0, 2, 3, 6]))


def test_the_first_of_many_bad_indices_is_named_before_anything_is_written(threads, rng):
    indices = rng.integers(0, 4, (20_000, 5))
    indices[(777, 900, 15_000), (2, 0, 4)] = 4
    out = np.full((20_000, 5), 7.0)
    values = np.ones(100_000)
    for count in (1, 2):
        threads(count)
        with pytest.raises(InvalidArgumentError, match="got 4 at row 777, position 2"):
            _core.sparse_decode(values, indices.ravel(), None, 20_000, W, None, out)
        written = np.full_like(W, 7)
        code = (values, indices.ravel(), None, 20_000)
        with pytest.raises(InvalidArgumentError, match="got 4 at row 777, position 2"):
            _core.sparse_decode_backward(*code, W, out, None, written, None)
        assert (written == 7).all()
    assert (out == 7).all()


def core(**change):
    arguments = {
        "values": np.ones(6),
        "indices": np.zeros(6, np.int64),
        "offsets": None,
        "rows": 2,
        "w_dec": W,
        "b_dec": None,
        "out": np.zeros((2, 5)),
    } | change
    _core.sparse_decode(**arguments)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"rows": 4, "out": np.zeros((4, 5))}, "values must be as many in each of 4 rows, got 6"),
        ({"indices": np.zeros(5, np.int64)}, "indices must be as many as values, 6, got 5"),
        ({"offsets": np.array([0, 6])}, "offsets must have 3 elements, got 2"),
        ({"b_dec": np.ones(4)}, r"b_dec must have shape \(5\), got \(4\)"),
        ({"out": np.zeros((2, 4))}, r"out must have shape \(2, 5\), got \(2, 4\)"),
        ({"out": np.zeros((5, 2)).T}, "out must be of the documented strides"),
        ({"w_dec": W.astype(np.float32)}, "w_dec must be float64, got float32"),
    ],
)
def test_refusals_of_the_core(change, text):
    with pytest.raises((InvalidArgumentError, DtypeError), match=r"\[sparse_decode\] " + text):
        core(**change)


def test_refusals_of_the_backward_passes():
    code = (np.ones(6), np.zeros(6, np.int64), None, 2)
    with pytest.raises(InvalidArgumentError, match=r"grad_out must have shape \(2, 5\)"):
        _core.sparse_decode_backward(*code, W, np.ones((3, 5)), np.ones(6), None, None)
    with pytest.raises(InvalidArgumentError, match=r"grad_values must have shape \(6\), got \(5\)"):
        _core.sparse_decode_backward(*code, W, np.ones((2, 5)), np.ones(5), None, None)
    x, w = np.ones((2, 5)), np.ones((5, 4))
    with pytest.raises(InvalidArgumentError, match="x must be given for the gradient of w_enc"):
        _core.topk_encode_backward(*code, 4, None, None, w, np.ones((5, 4)), None, None, None)
    with pytest.raises(InvalidArgumentError, match="w_enc must be given for the gradients of x"):
        _core.topk_encode_backward(*code, 4, x, None, None, None, None, np.ones((2, 5)), None)
    wide = np.ones((5, 8))[:, ::2]
    with pytest.raises(InvalidArgumentError, match="grad_w_enc must be of the documented strides"):
        _core.topk_encode_backward(*code, 4, x, None, w, wide, None, None, None)
    with pytest.raises(InvalidArgumentError, match=r"\[topk_encode\] w_enc must have shape"):
        _core.topk_encode_backward(*code, 9, x, None, w, None, None, x.copy(), None)


def test_outputs_that_overlap_are_refused():
    memory = np.zeros(30)
    with pytest.raises(InvalidArgumentError, match="out must not overlap what is read"):
        core(w_dec=memory[:20].reshape(4, 5), out=memory[15:25].reshape(2, 5))


def test_cuda_arrays_are_refused():
    from test_interop import CUDA, Producer

    def far(a):
        return Producer(a, device=CUDA)

    with pytest.raises(UnsupportedError, match=r"values must be on the CPU, .*, got cuda:0"):
        sparse_decode(far(ONES), far(WHERE), far(W))
    with pytest.raises(DtypeError, match="must be of the library and on the device of values"):
        sparse_decode(ONES, WHERE, far(W))
    single = {"values": np.ones(6, "f4"), "w_dec": W.astype("f4"), "out": np.zeros((2, 5), "f4")}
    with pytest.raises(InvalidArgumentError, match="w_dec must be on the device of values"):
        core(**single | {"w_dec": far(single["w_dec"])})
    with pytest.raises(UnsupportedError, match="has no CUDA kernel yet"):
        core(**single | {"values": far(single["values"])})
