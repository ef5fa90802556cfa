"""sparse_decode and the gradients around it on a CUDA device: against dense products in float64."""

import devices
import numpy as np
import pytest
from decode_oracle import FLOATS, close, dense, near, problem
from matrices import same_bits
from subspan import _arrays, _core, sparse_decode
from subspan._ops.decode import encode_gradients
from subspan.errors import DtypeError, InvalidArgumentError

pytestmark = [pytest.mark.gpu, *devices.QUIET]


@pytest.fixture
def gpu():
    return devices.any_library()


def decode(gpu, values, indices, w, b=None, offsets=None):
    put = [None if part is None else gpu.put(part) for part in (values, indices, w, b, offsets)]
    return gpu.get(sparse_decode(*put[:4], offsets=put[4]))


def gradients(gpu, values, indices, w, gradient, offsets=None, wanted=(True, True, True)):
    """Return those that are wanted, from the core."""
    shapes = [(values.size,), w.shape, (w.shape[1],)]
    out = [
        gpu.put(np.full(shape, 7, values.dtype)) if want else None
        for shape, want in zip(shapes, wanted, strict=True)
    ]
    code = [gpu.put(values.ravel()), gpu.put(indices.ravel())]
    ends = None if offsets is None else gpu.put(offsets)
    there = gpu.put(w)
    stream = _arrays.stream_of(there)
    core = _core.sparse_decode_backward
    core(*code, ends, len(gradient), there, gpu.put(gradient), *out, stream)
    return [None if part is None else gpu.get(part) for part in out]


# ---- forward -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("d", [1, 3, 31, 64, 65, 128, 130, 256, 264, 768, 1025])
def test_widths(gpu, dtype, d, rng):
    for k in (1, 7, 8, 9, 33, 100):
        values, indices, w, b = problem(rng, k=k, d=d, dtype=dtype)
        close(decode(gpu, values, indices, w, b), (values, indices), w, b, dtype)
        close(decode(gpu, values, indices, w), (values, indices), w, None, dtype)


def test_bfloat16(rng):
    gpu = devices.library("torch")
    for d in (5, 64, 771, 2304):
        values, indices, w, b = problem(rng, rows=300, k=20, n=900, d=d)
        t = [gpu.put(a).bfloat16() for a in (values, w, b)]
        got = sparse_decode(t[0], gpu.put(indices), t[1], t[2])
        assert got.dtype == gpu.module.bfloat16
        wide = [x.double().cpu().numpy() for x in (got, *t)]
        close(wide[0], (wide[1], indices), wide[2], wide[3], "bfloat16")


@pytest.mark.parametrize("dtype", FLOATS)
def test_layouts(gpu, dtype, rng):
    values, indices, w, b = problem(rng, rows=40, k=6, n=33, d=48, dtype=dtype)
    wanted = decode(gpu, values, indices, w, b)
    other = [gpu.put(a) for a in (values, indices, b)]
    for view in devices.layouts(gpu, w[None]).values():
        same_bits((gpu.get(sparse_decode(other[0], other[1], view[0], other[2])), wanted))
    wide = np.zeros((40, 12), dtype)
    wide[:, ::2] = values
    got = sparse_decode(gpu.put(wide)[:, ::2], other[1], gpu.put(w), other[2])
    same_bits((gpu.get(got), wanted))


@pytest.mark.parametrize("dtype", FLOATS)
def test_csr(gpu, dtype, rng):
    _, _, w, b = problem(rng, dtype=dtype)
    offsets = np.concatenate([[0], np.cumsum([0, 3, 0, 0, 1, 12, 1024, 1025, 4000, 0])])
    values = rng.standard_normal(offsets[-1]).astype(dtype)
    indices = rng.integers(0, 20, offsets[-1])
    got = decode(gpu, values, indices, w, b, offsets)
    close(got, (values, indices, offsets), w, b, dtype)


def test_many_rows_of_a_large_dictionary(gpu, rng):
    values, indices, w, b = problem(rng, rows=20_000, k=32, n=30_000, d=768)
    got = decode(gpu, values, indices, w, b)
    for t in (0, 1, 9999, 19_999):
        one = slice(t, t + 1)
        close(got[one], (values[one], indices[one]), w, b, "float32")


def test_shapes(gpu):
    assert decode(gpu, np.zeros((0, 3)), np.zeros((0, 3), int), np.ones((4, 5))).shape == (0, 5)
    assert decode(gpu, np.zeros((2, 3)), np.zeros((2, 3), int), np.ones((4, 0))).shape == (2, 0)
    got = decode(gpu, np.zeros((2, 0)), np.zeros((2, 0), int), np.ones((4, 5)), np.arange(5.0))
    np.testing.assert_array_equal(got, [np.arange(5.0)] * 2)
    values, indices = np.ones((2, 3, 4)), np.zeros((2, 3, 4), int)
    np.testing.assert_array_equal(decode(gpu, values, indices, np.ones((4, 5))), 4)


def test_nothing_is_skipped_and_nothing_else_is_read(gpu):
    w = np.array([[np.inf, 1.0], [np.nan, 2.0], [3.0, 4.0]])
    code = np.array([[0.0, 1.0]])
    np.testing.assert_array_equal(decode(gpu, code, np.array([[0, 2]]), w), [[np.nan, 4.0]])
    np.testing.assert_array_equal(decode(gpu, code, np.array([[2, 2]]), w), [[3.0, 4.0]])


def test_wrong_indices_and_offsets_are_nan(gpu, rng):
    values, indices, w, _ = problem(rng)
    indices[2, 3], indices[5, 0] = 20, -1
    bad = np.isnan(decode(gpu, values, indices, w))
    assert bad[[2, 5]].all()
    assert not bad[[0, 1, 3, 4, 6]].any()
    of_values, of_w, _ = gradients(gpu, values, indices, w, np.ones((7, 33), np.float32))
    wrong = np.zeros((7, 5), bool)
    wrong[2, 3] = wrong[5, 0] = True
    np.testing.assert_array_equal(np.isnan(of_values), wrong.ravel())
    kept = dense(np.where(wrong, 0, values), np.where(wrong, 0, indices), 20)
    near(of_w, kept.sum(0)[:, None] * np.ones(33), "float32", 4)
    one = decode(gpu, np.ones(6), np.zeros(6, int), np.ones((2, 3)), offsets=np.array([0, 4, 2, 6]))
    np.testing.assert_array_equal(np.isnan(one).all(1), [False, True, False])
    none = decode(gpu, np.ones((2, 1)), np.zeros((2, 1), int), np.ones((0, 3)))
    assert np.isnan(none).all()


def test_refusals(gpu):
    code = gpu.put(np.ones((2, 3))), gpu.put(np.zeros((2, 3), int))
    w = gpu.put(np.ones((4, 5)))
    with pytest.raises(DtypeError, match="w_dec must be of the library and on the device of val"):
        sparse_decode(*code, np.ones((4, 5)))
    with pytest.raises(InvalidArgumentError, match="b_dec must have shape"):
        sparse_decode(*code, w, gpu.put(np.ones(4)))
    with pytest.raises(InvalidArgumentError, match="none where there are no rows, got 3"):
        sparse_decode(*(part[0] for part in code), w, offsets=gpu.put(np.zeros(1, int)))


# ---- gradients -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("d", [1, 16, 67, 256, 1100])
@pytest.mark.parametrize(("rows", "k", "n"), [(7, 5, 20), (3000, 4, 30), (50, 3, 2000)])
def test_backward(gpu, dtype, d, rows, k, n, rng):
    values, indices, w, _ = problem(rng, rows, k, n, d, dtype)
    indices[:, 0] = 0  # a list of all rows
    gradient = rng.standard_normal((rows, d)).astype(dtype)
    f, g = dense(values, indices, n), gradient.astype(np.float64)
    wanted = np.take_along_axis(g @ w.astype(np.float64).T, indices, 1).ravel(), f.T @ g, g.sum(0)
    got = gradients(gpu, values, indices, w, gradient)
    for part, right in zip(got, wanted, strict=True):
        near(part, right, dtype, 4)
    for at in range(3):  # each alone has the same bits, every time
        alone = gradients(gpu, values, indices, w, gradient, wanted=[i == at for i in range(3)])
        same_bits((alone[at], got[at]))


def test_backward_of_csr(gpu, rng):
    lengths = np.array([0, 3, 0, 1, 12, 5, 0])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    values, indices = rng.standard_normal(21), rng.integers(0, 20, 21)
    w, gradient = rng.standard_normal((20, 33)), rng.standard_normal((7, 33))
    got = gradients(gpu, values, indices, w, gradient, offsets)
    row = np.repeat(np.arange(7), lengths)
    near(got[0], (gradient[row] * w[indices]).sum(1), "float64", 4)
    near(got[1], dense(values, indices, 20, offsets).T @ gradient, "float64", 4)
    near(got[2], gradient.sum(0), "float64", 4)


def test_gradients_are_those_of_the_cpu(rng):
    gpu = devices.library("torch")
    torch = gpu.module
    values, indices, w, b = problem(rng, rows=300, k=9, n=60, d=100, dtype="float64")
    found = []
    for move in (torch.from_numpy, gpu.put):
        leaves = [move(a).requires_grad_() for a in (values, w, b)]
        for matrix in (leaves[1], leaves[1].t().contiguous().t()):
            out = sparse_decode(leaves[0], move(indices), matrix, leaves[2])
            out.pow(2).sum().backward()
        sparse_decode(leaves[0], move(indices), leaves[1], leaves[2]).sum().backward()
        found.append([leaf.grad.cpu() for leaf in leaves])
    for here, there in zip(*found, strict=True):
        torch.testing.assert_close(there, here, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("rows", "k", "n", "d"), [(30, 4, 50, 20), (2500, 3, 10, 65)])
def test_gradients_of_the_encoder(dtype, turned, rows, k, n, d, rng):
    gpu = devices.library("torch")
    dz, indices, w, b_pre = problem(rng, rows, k, n, d, dtype)
    x = rng.standard_normal((rows, d)).astype(dtype)
    w_enc = gpu.put(w).t() if turned else gpu.put(np.ascontiguousarray(w.T))
    given = [gpu.put(a) for a in (dz, indices, x)]
    names = ("w_enc", "b_enc", "x", "b_pre")
    got = encode_gradients(*given, w_enc, gpu.put(b_pre), wanted=names)
    assert got.w_enc.stride() == w_enc.stride()
    f = dense(dz, indices, n)
    centred = x.astype(np.float64) - b_pre
    wide = w.astype(np.float64)
    wanted = centred.T @ f, f.sum(0), f @ wide, -(wide.T @ f.sum(0))
    for part, right in zip(got, wanted, strict=True):
        near(gpu.get(part), right, dtype, 16)
    for name in names:
        alone = getattr(encode_gradients(*given, w_enc, gpu.put(b_pre), wanted={name}), name)
        same_bits((gpu.get(alone), gpu.get(getattr(got, name))))


# ---- streams -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", devices.LIBRARIES)
def test_work_is_ordered_on_the_current_stream_and_nobody_waits(name, rng):
    gpu = devices.library(name)
    values, indices, w, b = problem(rng, rows=500, k=9, n=100, d=64)
    wanted = decode(gpu, values, indices, w, b)
    large = gpu.large()
    source, target = gpu.put(values), gpu.put(np.zeros_like(values))
    other = [gpu.put(a) for a in (indices, w, b)]
    gpu.get(target)
    with gpu.stream() as stream:
        gpu.busy(large)
        target[...] = source
        got = sparse_decode(target, *other)
        assert gpu.pending(stream)
    same_bits((gpu.get(got), wanted))
