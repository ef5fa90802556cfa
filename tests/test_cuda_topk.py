"""topk on a CUDA device: the very result of a stable sort, in every dtype, order and layout."""

import devices
import numpy as np
import pytest
from matrices import same_bits
from subspan import _core, topk
from subspan.errors import InvalidArgumentError
from test_topk import DIRECTIONS, FLOATS, INTEGERS, reference

pytestmark = [pytest.mark.gpu, *devices.QUIET]


@pytest.fixture
def gpu():
    return devices.any_library()


def check(gpu, x, k, view=None, directions=DIRECTIONS):
    given = gpu.put(x) if view is None else view
    for largest, sorted in directions:
        got = [gpu.get(part) for part in topk(given, k, largest=largest, sorted=sorted)]
        wanted = reference(x, k, largest=largest, sorted=sorted)
        assert got[1].dtype == np.int64
        np.testing.assert_array_equal(got[1], wanted[1])
        same_bits((got[0], wanted[0]))


def draw(rng, shape, dtype):
    """Numbers with ties; of integers, all that the dtype has."""
    if dtype in FLOATS:
        return rng.standard_normal(shape).round(2).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)


@pytest.mark.parametrize("dtype", FLOATS + INTEGERS)
@pytest.mark.parametrize(
    ("rows", "n", "k"),
    [
        *((1, 1, 1), (5, 7, 3), (300, 33, 33), (3, 100, 64), (9, 1000, 10), (9, 1024, 49)),
        *((4, 1025, 96), (4, 2049, 97), (7, 5000, 192), (7, 5000, 193), (5, 9001, 769)),
        *((3, 1100, 1024), (3, 3000, 1025), (3, 2048, 2048), (3, 2049, 2049), (3, 20_000, 5000)),
        *((2, 100_003, 100), (1, 200_001, 2000), (1, 200_001, 3000), (2, 4000, 4000)),
    ],
)
def test_dtypes_and_sizes(gpu, dtype, rows, n, k, rng):
    check(gpu, draw(rng, (rows, n), dtype), k)


@pytest.mark.parametrize("k", [1, 2, 64, 300, 2048, 2500])
@pytest.mark.parametrize("n", [6000, 150_000])
def test_orders_of_the_elements(gpu, n, k, rng):
    ascending = np.sort(rng.standard_normal(n).astype(np.float32))
    bits = np.float32(1).view(np.uint32) + rng.integers(0, 1024, n, dtype=np.uint32)
    rows = [
        *(ascending, ascending[::-1], np.full(n, -2.5, np.float32), bits.view(np.float32)),
        *((ascending > 1).astype(np.float32), np.maximum(rng.permutation(ascending), 0)),
        np.where(rng.random(n) < 0.5, np.float32(np.nan), ascending),
        np.where(rng.random(n) < 0.1, np.float32(np.inf), -ascending),
    ]
    check(gpu, np.stack(rows).astype(np.float32), k, directions=[(True, True), (False, False)])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n", [100, 5000, 70_000])
def test_nan_zeros_and_infinities(gpu, dtype, n, rng):
    x = rng.integers(-2, 3, (3, n)).astype(dtype)
    x[(x == 0) & (rng.random((3, n)) < 0.5)] = -0.0
    x[rng.random((3, n)) < 0.3] = np.nan
    x[rng.random((3, n)) < 0.01] = np.inf
    x[rng.random((3, n)) < 0.01] = -np.inf
    x[1] = np.nan
    x[2, 5:] = np.nan
    for k in (1, 9, n // 2, n):
        check(gpu, x, k)


def test_the_bits_of_nan_and_zero_are_kept(gpu):
    bits = np.array([0x7FC00001, 0xFFC01234, 0x80000000, 0x00000000], np.uint32)
    values, indices = (gpu.get(part) for part in topk(gpu.put(bits.view(np.float32)), 4))
    assert indices.tolist() == [2, 3, 0, 1]
    assert values.view(np.uint32).tolist() == [0x80000000, 0, 0x7FC00001, 0xFFC01234]


def test_subnormal_numbers_are_ordered(gpu):
    for dtype in FLOATS:
        tiny = np.finfo(dtype).smallest_subnormal
        x = (np.array([3, -2, 0, 1, -3, 2]) * tiny).astype(dtype)
        check(gpu, x, 6)


@pytest.mark.parametrize("n", [50, 4000, 30_000])
def test_bfloat16(n, rng):
    gpu = devices.library("torch")
    torch = gpu.module
    x = torch.from_numpy(rng.standard_normal((4, n)).astype(np.float32)).to(torch.bfloat16)
    x[0, ::3] = torch.nan
    wide = x.float().numpy()
    for k in (1, 30, n // 2):
        for largest, sorted in DIRECTIONS:
            values, indices = topk(x.cuda(), k, largest=largest, sorted=sorted)
            assert values.dtype == torch.bfloat16
            wanted = reference(wide, k, largest=largest, sorted=sorted)
            np.testing.assert_array_equal(indices.cpu().numpy(), wanted[1])
            np.testing.assert_array_equal(values.float().cpu().numpy(), wanted[0])


@pytest.mark.parametrize(
    ("shape", "k"), [((3, 5, 40), 7), ((2, 30, 3000), 64), ((2, 3, 3000), 2600)]
)
@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "int8"])
def test_layouts(gpu, dtype, shape, k, rng):
    x = draw(rng, shape, dtype)
    for view in devices.layouts(gpu, x).values():
        check(gpu, x, k, view, directions=[(True, True)])
    shared = gpu.broadcast(gpu.put(x[0]), shape)
    check(gpu, np.broadcast_to(x[0], shape), k, shared, directions=[(True, True)])


def test_long_rows_are_sorted_by_the_whole_device(gpu, rng):
    x = rng.integers(-1000, 1000, (2, (1 << 19) + 5)).astype(np.float32)
    check(gpu, x, 5000, directions=[(True, True), (False, False)])


def test_every_offset_from_a_boundary(gpu, rng):
    for dtype in ("int8", "float16", "float32", "float64"):
        x = draw(rng, 20 * 1111, dtype)
        whole = gpu.put(x)
        for start in range(17):
            rows = slice(start, start + 19 * 1111)
            check(gpu, x[rows].reshape(19, 1111), 20, whole[rows].reshape(19, 1111), [(True, True)])


def test_a_row_does_not_see_its_batch(gpu, rng):
    x = draw(rng, (2000, 3000), "float32")
    whole = [gpu.get(part) for part in topk(gpu.put(x), 50)]
    for r in (0, 1, 999, 1999):  # few rows are cut into parts
        one = [gpu.get(part) for part in topk(gpu.put(x[r]), 50)]
        same_bits(*((got[r], wanted) for got, wanted in zip(whole, one, strict=True)))


def test_the_same_bits_every_time(gpu, rng):
    for shape, k in (((4, 300_000), 1000), ((600, 5000), 100), ((3, 50_000), 5000)):
        x = gpu.put(draw(rng, shape, "float16"))
        first = [gpu.get(part) for part in topk(x, k)]
        for _ in range(5):
            same_bits(*zip((gpu.get(part) for part in topk(x, k)), first, strict=True))


def test_no_rows_and_wrong_k(gpu):
    values, indices = topk(gpu.put(np.zeros((0, 5), np.float32)), 2)
    assert gpu.get(values).shape == gpu.get(indices).shape == (0, 2)
    for shape, k in (((3,), 4), ((3,), 0), ((2, 0), 1)):
        with pytest.raises(InvalidArgumentError):
            topk(gpu.put(np.zeros(shape, np.float32)), k)


def test_the_input_is_not_written(gpu, rng):
    for k in (5, 5000):
        x = draw(rng, (3, 6000), "float32")
        given = gpu.put(x)
        topk(given, k)
        same_bits((gpu.get(given), x))


def test_outputs_must_be_on_the_device(gpu):
    x = gpu.put(np.zeros((1, 2, 8), np.float32))
    host = np.zeros((1, 2, 3), np.float32)
    with pytest.raises(InvalidArgumentError, match="on the device of x"):
        _core.topk(x, host, np.zeros((1, 2, 3), np.int64), True, True, 0)


@pytest.mark.parametrize("name", devices.LIBRARIES)
@pytest.mark.parametrize("k", [3, 3000])
def test_the_current_stream_is_used(name, k):
    gpu = devices.library(name)
    x = gpu.large()
    topk(x, k)  # what is loaded or reserved once, is
    with gpu.stream() as stream:
        late = gpu.busy(x)
        values, indices = topk(late, k)
        assert gpu.pending(stream)  # nobody waited
    wanted = reference(gpu.get(late)[:50], k)
    same_bits(*zip((gpu.get(values)[:50], gpu.get(indices)[:50]), wanted, strict=True))


def test_gradient():
    gpu = devices.library("torch")
    torch = gpu.module
    x = torch.randn(5, 300, device="cuda", requires_grad=True)
    values, indices = topk(x, 7)
    weights = torch.arange(7.0, device="cuda")
    (values * weights).sum().backward()
    wanted = torch.zeros_like(x).scatter(-1, indices, weights.expand(5, 7))
    assert torch.equal(x.grad, wanted)
    assert not indices.requires_grad
