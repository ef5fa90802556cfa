"""sparse_decode and its gradients, and those of the encoder: values, threads, levels."""

import gc

import numpy as np
import pytest
import subspan
import subspan._config
import subspan._ops._fresh
from decode_oracle import FLOATS, LEVELS, dense, encoder_gradients, gradients, near, problem
from matrices import same_bits
from subspan import _core, sparse_decode

# ---- independence ----------------------------------------------------------------------------


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


# ---- gradients of the decoder ----------------------------------------------------------------


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


def test_memory_of_gradients_is_used_again_when_nobody_has_it(rng):
    torch = pytest.importorskip("torch")
    values, indices, w, _ = map(torch.from_numpy, problem(rng, 30, 4, 2500, 500))  # 5 MB
    w.requires_grad_()

    def step(scale):
        out = sparse_decode(values, indices, w)
        return torch.autograd.grad((scale * out).sum(), w)[0]

    first = step(1)
    seen = first[:2].numpy()  # a view keeps what it looks at
    wanted, place = seen.copy(), first.data_ptr()
    del first
    second = step(2)
    assert second.data_ptr() != place
    assert (seen == wanted).all()
    place = second.data_ptr()
    del second
    third = step(4)
    assert third.data_ptr() == place
    assert torch.equal(third[:2], 4 * torch.from_numpy(wanted))
    assert third.data_ptr() % 64 == 0


def test_only_so_much_memory_is_kept(monkeypatch):
    torch = pytest.importorskip("torch")
    module = subspan._ops._fresh
    monkeypatch.setattr(module, "_spare", {})
    monkeypatch.setattr(module, "_KEPT", 20 << 20)
    x = torch.empty(0)
    held = [module.fresh(x, (rows, 1 << 20)) for rows in (1, 1, 2, 4, 6)]  # MiB times 4
    while held:
        held.pop(0)
        kept = sum(size * len(blocks) for size, blocks in module._spare.items())
        assert kept <= 20 << 20
    assert [size >> 20 for size in module._spare] == [16]  # the last had no room


def test_memory_is_kept_for_an_owner_as_long_as_it_lives(monkeypatch):
    torch = pytest.importorskip("torch")
    module = subspan._ops._fresh
    monkeypatch.setattr(module, "_spare", {})
    monkeypatch.setattr(module, "_KEPT", 20 << 20)

    class Owner:
        pass

    owner, x = Owner(), torch.zeros(1)
    subspan._config.keep_memory(owner, 60 << 20)
    first = module.fresh(x, (8 << 20,)), module.fresh(x, (8 << 20,))  # 32 MiB each
    places = {block.data_ptr() for block in first}
    del first
    gc.collect()
    again = [module.fresh(x, (8 << 20,)) for _ in range(2)]
    assert {block.data_ptr() for block in again} == places
    del again
    assert sum(map(len, module._spare.values())) == 2
    del owner
    gc.collect()
    assert module._spare == {}


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
        seen.append([out is not None for out in arguments[-4:-1]])  # the stream comes last
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


# ---- gradients of the encoder ----------------------------------------------------------------


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
