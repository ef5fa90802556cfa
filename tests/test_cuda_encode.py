"""topk_encode on a CUDA device: the code of exact products, in every dtype, layout and tile."""

import devices
import numpy as np
import pytest
from encode_oracle import ACTIVATIONS, FLOATS, best_of_rows, dense, integers, problem
from matrices import same_bits
from subspan import batch_topk_encode, threshold_encode, topk_encode
from subspan.errors import DtypeError, InvalidArgumentError, UnsupportedError

pytestmark = [pytest.mark.gpu, *devices.QUIET]
DTYPES = [*FLOATS, "bfloat16"]


@pytest.fixture
def gpu():
    gpu = devices.any_library()
    one = gpu.put(np.ones((1, 1), np.float32))
    try:
        topk_encode(one, one, k=1)
    except UnsupportedError as error:
        pytest.skip(str(error))  # no cuBLAS
    return gpu


def put(gpu, dtype, *arrays):
    if dtype != "bfloat16":
        return [None if a is None else gpu.put(a.astype(dtype)) for a in arrays]
    gpu = devices.library("torch")
    return [None if a is None else gpu.put(a).bfloat16() for a in arrays]


def encode(gpu, dtype, x, w_enc, b_enc, b_pre, k, activation="relu"):
    given = put(gpu, dtype, x, w_enc, b_enc, b_pre)
    values, indices = topk_encode(*given[:3], k=k, b_pre=given[3], activation=activation)
    assert values.dtype == given[0].dtype
    values = values.float() if dtype == "bfloat16" else values
    return gpu.get(values), gpu.get(indices)


def check(gpu, dtype, x, w_enc, b_enc, b_pre, k, activation="relu"):
    """Small integers, whose products and biases are exact: the very code."""
    got = encode(gpu, dtype, x, w_enc, b_enc, b_pre, k, activation)
    wanted = best_of_rows(dense(x, w_enc, b_enc, b_pre), k, activation, got[0].dtype)
    np.testing.assert_array_equal(got[1], wanted.indices)
    values = wanted.values
    if dtype == "bfloat16":
        values = devices.library("torch").module.from_numpy(values).bfloat16().float().numpy()
    np.testing.assert_array_equal(got[0], values)
    assert not np.signbit(got[0][got[0] == 0]).any()


# ---- codes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize(
    ("rows", "d", "n", "k"),
    [
        (1, 1, 1, 1),
        (3, 5, 7, 7),
        (9, 16, 33, 4),
        (50, 8, 1000, 30),
        (2, 64, 5001, 64),
        (4, 0, 9, 3),
    ],
)
def test_few_rows(gpu, dtype, biases, rows, d, n, k, rng):
    given = problem(rng, rows, d, n, biases=biases)
    for activation in ACTIVATIONS:
        check(gpu, dtype, *given, k, activation)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "d", "n", "k"),
    [(1500, 8, 20_000, 32), (2100, 5, 17_001, 64), (3000, 16, 8192, 1), (1200, 4, 16_500, 700)],
)
def test_tiles(gpu, dtype, rows, d, n, k, rng):
    given = problem(rng, rows, d, n)
    for activation in ACTIVATIONS:
        check(gpu, dtype, *given, k, activation)
    check(gpu, dtype, given[0], given[1], None, None, k)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_more_of_a_row_than_a_block_holds(gpu, dtype, rng):
    given = problem(rng, 300, 6, 60_000)
    check(gpu, dtype, *given, 2049 if dtype == "float32" else 1025)
    check(gpu, dtype, *problem(rng, 5, 6, 3000), 3000, "identity")


@pytest.mark.parametrize("rows", [30, 1100])
def test_ties_across_tiles(gpu, rows, rng):
    n = 17_000
    x, w_enc = np.ones((rows, 1), np.float32), np.ones((1, n), np.float32)
    for k in (1, 64, 500):
        check(gpu, "float32", x, w_enc, None, None, k)
    bias = integers(rng, n, reach=1)
    check(gpu, "float32", x, 0 * w_enc, bias, None, 100, "identity")


@pytest.mark.parametrize("rows", [40, 1100])
def test_nan_and_infinities(gpu, rows, rng):
    n = 16_600
    bias = integers(rng, n)
    bias[rng.random(n) < 0.999] = np.nan
    bias[rng.random(n) < 1e-3] = np.inf
    bias[rng.random(n) < 1e-3] = -np.inf
    x, w_enc = np.zeros((rows, 2), np.float32), np.zeros((2, n), np.float32)
    for activation in ACTIVATIONS:
        check(gpu, "float32", x, w_enc, bias, None, 60, activation)
    x = integers(rng, (rows, 2))
    x[3] = np.nan  # concerns that row alone
    check(gpu, "float32", x, integers(rng, (2, n)), None, None, 20)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [60, 1300])
def test_random_numbers_are_as_close_as_their_sums(gpu, dtype, rows, rng):
    d, n, k = 300, 16_640, 40
    x, w_enc = rng.standard_normal((rows, d)) + 3, rng.standard_normal((d, n))
    b_enc, b_pre = rng.standard_normal(n), rng.standard_normal(d) + 3
    given = put(gpu, dtype, x, w_enc, b_enc, b_pre)
    wide = [gpu.get(a.double() if dtype == "bfloat16" else a).astype(float) for a in given]
    z = dense(*wide)
    values, indices = encode(gpu, dtype, x, w_enc, b_enc, b_pre, k, "identity")
    size = np.abs(wide[0]) @ np.abs(wide[1]) + np.abs(wide[3]) @ np.abs(wide[1])
    bound = 1e-6 * size.max() if dtype != "float64" else 1e-14 * size.max()
    eps = {"float16": 2.0**-11, "bfloat16": 2.0**-8}.get(dtype, 0)
    chosen = np.take_along_axis(z, indices, 1)
    assert (np.abs(values - chosen) <= bound + eps * np.abs(chosen)).all()
    kth = -np.sort(-z, axis=1)[:, k - 1 : k]
    assert (chosen >= kth - 2 * bound).all()
    assert all(len(set(row)) == k for row in indices.tolist())


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("rows", [12, 1050])
def test_layouts(gpu, dtype, rows, rng):
    x, w_enc, b_enc, b_pre = problem(rng, rows, 12, 16_500, dtype)
    wanted = best_of_rows(dense(x, w_enc, b_enc, b_pre), 25, "relu", dtype)
    other = gpu.put(b_enc), gpu.put(b_pre)
    for of_x in devices.layouts(gpu, x[None]).values():
        values, indices = topk_encode(of_x[0], gpu.put(w_enc), other[0], k=25, b_pre=other[1])
        same_bits((gpu.get(values), wanted.values), (gpu.get(indices), wanted.indices))
    plain = best_of_rows(dense(x, w_enc), 25, "relu", dtype)
    for of_w in devices.layouts(gpu, w_enc[None]).values():
        values, indices = topk_encode(gpu.put(x), of_w[0], k=25)
        same_bits((gpu.get(values), plain.values), (gpu.get(indices), plain.indices))


def test_leading_axes_and_no_rows(gpu, rng):
    x, w_enc, b_enc, b_pre = problem(rng, 24, 6, 50)
    flat = encode(gpu, "float32", x, w_enc, b_enc, b_pre, 5)
    deep = encode(gpu, "float32", x.reshape(2, 3, 4, 6), w_enc, b_enc, b_pre, 5)
    same_bits(*((a.reshape(24, 5), b) for a, b in zip(deep, flat, strict=True)))
    none = encode(gpu, "float32", x[:0], w_enc, b_enc, b_pre, 5)
    assert none[0].shape == none[1].shape == (0, 5)


def test_the_same_bits_every_time(gpu, rng):
    x, w_enc = (
        gpu.put(rng.standard_normal(s).astype(np.float32)) for s in ((1500, 64), (64, 20_000))
    )
    first = [gpu.get(part) for part in topk_encode(x, w_enc, k=32)]
    for _ in range(4):
        again = [gpu.get(part) for part in topk_encode(x, w_enc, k=32)]
        same_bits(*zip(again, first, strict=True))
    certified = [gpu.get(part) for part in topk_encode(x, w_enc, k=32, precision="certified")]
    same_bits(*zip(certified, first, strict=True))


# ---- refusals, gradients, streams ----------------------------------------------------------------


def test_refusals(gpu):
    x, w_enc = gpu.put(np.ones((2, 3))), gpu.put(np.ones((3, 4)))
    with pytest.raises(DtypeError, match="w_enc must be of the library and on the device of x"):
        topk_encode(x, np.ones((3, 4)), k=1)
    with pytest.raises(InvalidArgumentError, match=r"k must be in 1\.\.4, got 5"):
        topk_encode(x, w_enc, k=5)
    with pytest.raises(InvalidArgumentError, match="w_enc must have d = 3 rows"):
        topk_encode(x, w_enc[:2], k=1)
    with pytest.raises(UnsupportedError, match="has no CUDA kernel yet"):
        batch_topk_encode(x, w_enc, k=1)
    with pytest.raises(UnsupportedError, match="has no CUDA kernel yet"):
        threshold_encode(x, w_enc, threshold=1)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("turned", [False, True])
def test_gradients_are_those_of_the_cpu(activation, turned, rng):
    gpu = devices.library("torch")
    torch = gpu.module
    arrays = [a.astype(np.float64) for a in problem(rng, 60, 9, 300)]
    found = []
    for move in (torch.from_numpy, gpu.put):
        leaves = [move(a).requires_grad_() for a in arrays]
        w_enc = leaves[1].t().contiguous().t() if turned else leaves[1]
        code = topk_encode(
            leaves[0], w_enc, leaves[2], k=11, b_pre=leaves[3], activation=activation
        )
        code.values.pow(2).sum().backward()
        found.append([leaf.grad.cpu() for leaf in leaves])
    for here, there in zip(*found, strict=True):
        torch.testing.assert_close(there, here, atol=1e-9, rtol=1e-9)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("name", devices.LIBRARIES)
@pytest.mark.parametrize("rows", [40, 1100])
def test_work_is_ordered_on_the_current_stream_and_nobody_waits(name, rows, rng):
    gpu = devices.library(name)
    x, w_enc, b_enc, b_pre = problem(rng, rows, 20, 16_500)
    wanted = best_of_rows(dense(x, w_enc, b_enc, b_pre), 9, "relu", "float32")
    large = gpu.large()
    source, target = gpu.put(x), gpu.put(np.zeros_like(x))
    other = [gpu.put(a) for a in (w_enc, b_enc, b_pre)]

    def run():
        return topk_encode(target, other[0], other[1], k=9, b_pre=other[2])

    gpu.get(target)
    with gpu.stream() as stream:
        run()  # cuBLAS opens a handle for this stream, which waits
        stream.synchronize()
        gpu.busy(large)
        target[...] = source
        values, indices = run()
        assert gpu.pending(stream)
    same_bits((gpu.get(values), wanted.values), (gpu.get(indices), wanted.indices))
