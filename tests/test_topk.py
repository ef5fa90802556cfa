"""topk: against a stable sort in numpy; ties, NaN, layouts, libraries, gradients, refusals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from matrices import same_bits
from subspan import TopK, _core, topk
from subspan.errors import DtypeError, InvalidArgumentError, UnsupportedError

FLOATS = ["float16", "float32", "float64"]
INTEGERS = ["int8", "uint8", "int16", "int32", "int64"]
LEVELS = ("baseline", "v3", "v4")
DIRECTIONS = [(True, True), (True, False), (False, True), (False, False)]


def order_of(row, largest):
    """Indices of a row, best first: NaN last, equal values by index."""
    index = np.arange(len(row))
    if row.dtype.kind == "f":
        nan = np.isnan(row)
        value = np.where(nan, 0, row).astype(np.float64) + 0.0  # -0.0 to 0.0
        return np.lexsort((index, -value if largest else value, nan))
    value = row.astype(np.int64)
    return np.lexsort((index, ~value if largest else value))


def reference(x, k, *, largest=True, sorted=True):
    rows = x.reshape(-1, x.shape[-1])
    indices = np.empty((len(rows), k), np.int64)
    for row, out in zip(rows, indices, strict=True):
        chosen = order_of(row, largest)[:k]
        out[:] = chosen if sorted else np.sort(chosen)
    values = np.take_along_axis(rows, indices, axis=1)
    shape = (*x.shape[:-1], k)
    return TopK(values.reshape(shape), indices.reshape(shape))


def agrees(x, k, wanted_of=None):
    for largest, sorted in DIRECTIONS:
        wanted = reference(x if wanted_of is None else wanted_of, k, largest=largest, sorted=sorted)
        same_bits(*zip(topk(x, k, largest=largest, sorted=sorted), wanted, strict=True))


def random_rows(shape, dtype, rng):
    if np.dtype(dtype).kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)


def counts(n):
    """k at the borders: of n, of the routes, of buffers (192, 3 k) and of vectors."""
    wanted = {1, 2, 3, 15, 16, 17, 31, 32, 33, 63, 64, 65, 128, 129, n // 8, n // 8 + 1, n // 2}
    return sorted(k for k in wanted | {n - 1, n} if 1 <= k <= n)


# ---- what is selected --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS + INTEGERS)
@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 63, 64, 65, 129, 513, 769, 1025, 4097])
def test_sizes_around_vectors_and_routes(dtype, n, rng):
    x = random_rows((2, n), dtype, rng)
    for k in counts(n):
        agrees(x, k)


@pytest.mark.parametrize("dtype", FLOATS + INTEGERS)
def test_long_rows(dtype, rng):
    x = random_rows((2, 70_001), dtype, rng)
    for k in (1, 32, 500, 4096, 4097, 8750, 35_000, 70_001):
        agrees(x, k)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n", [40, 700, 9000])
def test_ties_and_special_values(dtype, n, rng):
    few = np.array([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 2.0**-24, -(2.0**-24)], dtype)
    top = np.finfo(dtype).max
    for values in (few, few[:2], few[4:6], few[4:7], np.array([top, -top, np.inf], dtype)):
        x = rng.choice(values, (3, n))
        for k in counts(n):
            agrees(x, k)


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("n", [40, 700, 9000])
def test_integers_at_their_limits(dtype, n, rng):
    limits = np.iinfo(dtype)
    for values in ([limits.min, limits.max], [limits.min, 0, 1, limits.max], [limits.max]):
        x = rng.choice(np.array(values, dtype), (3, n))
        for k in counts(n):
            agrees(x, k)


def test_integers_beyond_the_precision_of_a_double():
    x = 2**60 + np.arange(1000, dtype=np.int64) % 7
    agrees(x, 20)
    assert topk(x, 1).values[0] == 2**60 + 6


@pytest.mark.parametrize("n", [20, 700, 5000])
def test_nan_comes_last_in_both_directions(n, rng):
    x = rng.standard_normal(n)
    x[rng.permutation(n)[: n - 5]] = np.nan
    numbers = np.flatnonzero(~np.isnan(x))
    missing = np.flatnonzero(np.isnan(x))
    for largest in (True, False):
        values, indices = topk(x, 9, largest=largest)
        assert set(indices[:5]) == set(numbers)
        assert not np.isnan(values[:5]).any()
        np.testing.assert_array_equal(indices[5:], missing[:4])
    x[:] = np.nan
    for k in (1, n // 2, n):
        np.testing.assert_array_equal(topk(x, k).indices, np.arange(k))


def test_the_bits_of_nan_and_zero_are_kept():
    x = np.array([0x7FC00001, 0xFFC01234, 0x80000000, 0x00000000], np.uint32).view(np.float32)
    values, indices = topk(x, 4)
    assert indices.tolist() == [2, 3, 0, 1]
    assert values.view(np.uint32).tolist() == [0x80000000, 0, 0x7FC00001, 0xFFC01234]


def test_subnormal_numbers_are_ordered():
    for dtype in FLOATS:
        tiny = np.finfo(dtype).smallest_subnormal
        x = (np.array([3, -2, 0, 1, -3, 2]) * tiny).astype(dtype)
        assert topk(x, 6).indices.tolist() == [0, 5, 3, 2, 1, 4]
        assert topk(x, 6, largest=False).indices.tolist() == [4, 1, 2, 3, 5, 0]


def test_flushing_subnormals_to_zero_changes_nothing(run_python):
    pytest.importorskip("torch")
    code = """
import numpy as np, subspan, torch
torch.set_flush_denormal(True)
for dtype in (np.float32, np.float64):
    x = np.zeros((2, 3000), dtype)
    x.view(np.int32 if dtype is np.float32 else np.int64)[:] = np.arange(1, 3001)
    for k in (1, 5, 100, 2000):
        assert subspan.topk(x, k).indices.tolist() == [list(range(2999, 2999 - k, -1))] * 2
"""
    run_python(code)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_row(data):
    dtype = data.draw(st.sampled_from(FLOATS + INTEGERS))
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=3, max_side=40))
    few = data.draw(st.booleans())
    elements = st.sampled_from([0, 1, 2]) if few else None
    x = data.draw(hnp.arrays(dtype, shape, elements=elements))
    agrees(x, data.draw(st.integers(1, shape[-1])))


# ---- orders that hurt --------------------------------------------------------------------------


def adversaries(n, rng):
    base = rng.standard_normal(n).astype(np.float32)
    ascending = np.sort(base)
    top22 = np.float32(1).view(np.uint32) + rng.integers(0, 1024, n, dtype=np.uint32)
    laced = np.where(rng.random(n) < 0.5, np.float32(np.nan), base)
    giant = np.ones(n, np.float32)
    giant[n // 3] = 1e30
    return {
        "ascending": ascending,
        "descending": ascending[::-1].copy(),
        "organ pipes": np.concatenate([ascending[::2], ascending[1::2][::-1]]),
        "all equal": np.full(n, 3, np.float32),
        "two values": (base > 0).astype(np.float32),
        "few ones": (base > 3).astype(np.float32),
        "relu": np.maximum(base, 0),
        "same upper bits": top22.view(np.float32),
        "best in one lane": ascending[: n // 64 * 64].reshape(64, -1).T.ravel().copy(),
        "nan": laced,
        "one giant": giant,
        "minus infinity": np.where(base > 2, base, np.float32(-np.inf)),
    }


@pytest.mark.parametrize("name", adversaries(64, np.random.default_rng(0)))
def test_orders_that_hurt(name, rng):
    x = adversaries(40_000, rng)[name]
    for k in (1, 32, 200, 1500, 12_000, len(x)):
        agrees(x, k)
    agrees(x.astype(np.float64), 32)


# ---- independence ------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 400_001), (3, 150_000), (300, 700)])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int8"])
def test_bits_do_not_depend_on_the_threads(shape, dtype, threads, rng):
    x = random_rows(shape, dtype, rng)
    x[..., ::3] = x[..., :1]  # ties across the borders of parts
    for k in (1, 40, shape[-1] // 4, shape[-1]):
        for sorted in (True, False):
            results = []
            for n in (1, 2, 3, 5):
                threads(n)
                results.append(topk(x, k, sorted=sorted))
            same_bits(*zip(results[0], reference(x, k, sorted=sorted), strict=True))
            for other in results[1:]:
                same_bits(*zip(other, results[0], strict=True))


REPORT = """
import hashlib
import numpy as np, subspan
rng = np.random.default_rng(5)
digest = hashlib.sha256()
for dtype in ("float16", "float32", "float64", "int8", "uint8", "int16", "int32", "int64"):
    for n in (7, 100, 3000, 50_001):
        x = rng.standard_normal((3, n)) * 40
        if dtype == "uint8":
            x = abs(x)
        if dtype.startswith("f"):
            x[0, ::5] = np.nan
        x = x.astype(dtype)
        for k in {1, min(n, 33), n // 9 + 1, n // 2, n}:
            for largest in (True, False):
                for part in subspan.topk(x, k, largest=largest, sorted=k % 2 == 0):
                    digest.update(part.tobytes())
print(subspan.cpu_level(), digest.hexdigest())
"""


def test_every_level_gives_the_same_bits(run_python):
    cpu = run_python("import subspan; print(subspan.cpu_level())", SUBSPAN_CPU_LEVEL=None)
    levels = LEVELS[: LEVELS.index(cpu.stdout.strip()) + 1]
    lines = [run_python(REPORT, SUBSPAN_CPU_LEVEL=level).stdout.split() for level in levels]
    assert [line[0] for line in lines] == list(levels)
    assert len({line[1] for line in lines}) == 1


def test_a_row_does_not_see_its_batch(rng):
    x = rng.standard_normal((50, 300)).astype(np.float32)
    whole = topk(x, 20)
    order = rng.permutation(50)
    same_bits(*((a, b[order]) for a, b in zip(topk(x[order], 20), whole, strict=True)))
    same_bits(*((a, b[7]) for a, b in zip(topk(x[7], 20), whole, strict=True)))


# ---- layouts and libraries ---------------------------------------------------------------------


@pytest.mark.parametrize("lead", [(), (1,), (5,), (2, 3), (2, 1, 3), (3, 2, 1, 2)])
def test_leading_axes(lead, rng):
    x = rng.standard_normal((*lead, 90))
    agrees(x, 7)


@pytest.mark.parametrize("shape", [(0, 5), (3, 0, 5), (0, 0, 1)])
def test_no_rows(shape):
    for library in (np.asarray, pytest.importorskip("torch").from_numpy):
        values, indices = topk(library(np.zeros(shape, np.float32)), 1)
        assert tuple(values.shape) == tuple(indices.shape) == (*shape[:-1], 1)
        assert str(indices.dtype).endswith("int64")


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "uint8"])
@pytest.mark.parametrize("k", [5, 300, 800])
def test_layouts_give_the_same_bits(dtype, k, rng):
    x = random_rows((4, 3, 800), dtype, rng)
    wide = np.zeros((4, 3, 1601), dtype)
    wide[..., 1::2] = x
    frozen = x.copy()
    frozen.flags.writeable = False
    raw = np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(dtype).reshape(x.shape)
    views = {
        "strided": wide[..., 1::2],
        "negative": x[..., ::-1].copy()[..., ::-1],
        "negative rows": x[::-1, ::-1].copy()[::-1, ::-1],
        "transposed batch": np.ascontiguousarray(x.transpose(1, 0, 2)).transpose(1, 0, 2),
        "columns": np.asfortranarray(x),
        "moved axis": np.moveaxis(np.ascontiguousarray(np.moveaxis(x, -1, 1)), 1, -1),
        "read-only": frozen,
        "unaligned": raw,
    }
    for view in views.values():
        agrees(view, k, wanted_of=x)
    one = np.broadcast_to(x[0, 0], (2, 3, 800))
    for got, single in zip(topk(one, k), topk(x[0, 0], k), strict=True):
        same_bits(*((got[index], single) for index in np.ndindex(2, 3)))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8"])
@pytest.mark.parametrize("k", [1, 40, 1500])
def test_columns(dtype, k, threads, rng):
    """Rows that are fetched together, by line and by what is left of one."""
    x = random_rows((3000, 83), dtype, rng)
    for view in (x.T, x[:, ::-1].T, x[::-1, 5:26:2].T):
        wanted = reference(np.ascontiguousarray(view), k)
        for n in (1, 2):
            threads(n)
            same_bits(*zip(topk(view, k), wanted, strict=True))
    blocks = x[:, :80].reshape(3000, 5, 16).transpose(1, 2, 0)
    same_bits(*zip(topk(blocks, k), reference(blocks, k), strict=True))


def test_strided_rows_are_not_copied(monkeypatch, rng):
    """The core sees the caller's memory, whatever the order of the leading axes."""
    seen = []
    called = _core.topk
    monkeypatch.setattr(_core, "topk", lambda x, *rest: seen.append(x) or called(x, *rest))
    x = rng.standard_normal((6, 4, 50)).astype(np.float32)
    views = (x, x[::2, ::-1], x.transpose(1, 0, 2), x[..., ::-3], np.moveaxis(x, 0, -1), x[0, 0])
    for view in views:
        topk(view, 2)
    assert all(np.shares_memory(part, x) for part in seen)
    assert len(seen) == len(views)


@pytest.mark.parametrize("dtype", FLOATS + INTEGERS)
def test_same_library_out(library, dtype, rng):
    if library.name == "array_api_strict" and dtype == "float16":
        pytest.skip("the standard has no float16")
    x = random_rows((2, 3, 40), dtype, rng)
    for k in (3, 30):
        result = topk(library.put(x), k)
        assert isinstance(result, TopK)
        assert all(library.owns(part) for part in result)
        wanted = reference(x, k)
        same_bits(*((library.get(a), b) for a, b in zip(result, wanted, strict=True)))


@pytest.mark.parametrize("n", [50, 3000])
def test_bfloat16(n, rng):
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(rng.standard_normal((3, n)).astype(np.float32)).bfloat16()
    x[:, ::7] = float("nan")
    for k in (1, n // 9, n // 2, n):
        for largest, sorted in DIRECTIONS:
            values, indices = topk(x, k, largest=largest, sorted=sorted)
            assert values.dtype == torch.bfloat16
            wanted = reference(x.float().numpy(), k, largest=largest, sorted=sorted)
            same_bits((indices.numpy(), wanted.indices), (values.float().numpy(), wanted.values))
    ml_dtypes = pytest.importorskip("ml_dtypes")
    a = rng.standard_normal((3, n)).astype(ml_dtypes.bfloat16)
    values, indices = topk(a, 9)
    assert values.dtype == a.dtype
    same_bits((indices, reference(a.astype(np.float32), 9).indices))


def test_views_of_torch(rng):
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(rng.standard_normal((4, 5, 60)))
    for view in (x.transpose(0, 1), x.movedim(-1, 0), x[..., 1::2], x.expand(2, 4, 5, 60)):
        wanted = reference(view.numpy(), 3)
        same_bits(*((a.numpy(), b) for a, b in zip(topk(view, 3), wanted, strict=True)))


# ---- gradients ---------------------------------------------------------------------------------


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("sorted", [True, False])
def test_gradients(largest, sorted, rng):
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(rng.standard_normal((2, 3, 20))).requires_grad_()

    def values(x):
        return topk(x, 4, largest=largest, sorted=sorted).values

    assert torch.autograd.gradcheck(values, (x,))
    assert torch.autograd.gradgradcheck(lambda x: values(x) ** 3, (x,))


def test_the_gradient_goes_to_what_was_selected(rng):
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(rng.standard_normal((3, 900)).astype(np.float32)).requires_grad_()
    values, indices = topk(x, 5)
    assert not indices.requires_grad
    weights = torch.arange(1.0, 16.0).reshape(3, 5)
    (values * weights).sum().backward()
    wanted = torch.zeros(3, 900).scatter(-1, indices, weights)
    assert torch.equal(x.grad, wanted)
    ours, theirs = topk(x, 5), torch.topk(x, 5)
    assert torch.equal(ours.values, theirs.values)
    (mine,) = torch.autograd.grad(ours.values.sin().sum(), x)
    (other,) = torch.autograd.grad(theirs.values.sin().sum(), x)
    assert torch.equal(mine, other)
    for quiet in (x.detach(), x):
        with torch.no_grad():
            assert not topk(quiet, 5).values.requires_grad


def test_the_gradient_of_a_transform(rng):
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(rng.standard_normal(12))
    gradient = torch.func.grad(lambda x: topk(x, 3).values.square().sum())(x)
    wanted = torch.zeros(12, dtype=x.dtype)
    indices = topk(x, 3).indices
    wanted[indices] = 2 * x[indices]
    assert torch.equal(gradient, wanted)


# ---- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "k", "kind", "text"),
    [
        (np.ones(4), 5, InvalidArgumentError, r"\[topk\] k must be in 1\.\.4, got 5"),
        (np.ones(4), 0, InvalidArgumentError, r"\[topk\] k must be in 1\.\.4, got 0"),
        (np.ones(4), -1, InvalidArgumentError, r"\[topk\] k must be in 1\.\.4, got -1"),
        (np.ones(4), 2.0, DtypeError, r"\[topk\] k must be an integer, got float 2\.0"),
        (np.ones(4), True, DtypeError, r"\[topk\] k must be an integer, got bool True"),
        (np.float64(1), 1, DtypeError, r"\[topk\] x must be an array"),
        (np.array(1.0), 1, InvalidArgumentError, r"\[topk\] x must have 1 or more axes, got 0"),
        (np.ones((3, 0)), 1, InvalidArgumentError, r"elements along its last axis, got .*\(3, 0\)"),
        ([1.0, 2.0], 1, DtypeError, r"\[topk\] x must be an array .*, got list"),
        (np.ones(4, bool), 1, DtypeError, r"\[topk\] x must be a float of .*, got bool"),
        (np.ones(4, complex), 1, DtypeError, "got complex128"),
        (np.ones(4, np.uint32), 1, DtypeError, "signed integer or uint8, got uint32"),
        (np.ones(4, ">f4"), 1, DtypeError, "got >f4"),
        (np.ma.masked_array([1.0]), 1, DtypeError, r"\[topk\] x must have no mask"),
    ],
)
def test_refusals(x, k, kind, text):
    with pytest.raises(kind, match=text):
        topk(x, k)


def core(x, **change):
    outputs = {
        "values": np.zeros((2, 3, 4)),
        "indices": np.zeros((2, 3, 4), np.int64),
        "largest": True,
        "sorted": True,
    } | change
    return _core.topk(x, **outputs)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"values": np.zeros((2, 3, 9))}, r"k must be in 1\.\.8, got 9"),
        ({"values": np.zeros((2, 3, 0))}, r"k must be in 1\.\.8, got 0"),
        ({"values": np.zeros((3, 2, 4))}, r"values must be C-ordered, on the device of x, and"),
        ({"values": np.zeros((2, 3, 8))[..., ::2]}, "values must be C-ordered"),
        ({"indices": np.zeros((2, 3, 5), np.int64)}, "indices must be C-ordered"),
        ({"values": np.zeros((6, 4))}, "values must have 3 axes, got 2"),
        ({"values": np.zeros((2, 3, 4), np.float32)}, "values must be float64, got float32"),
        ({"indices": np.zeros((2, 3, 4), np.int32)}, "indices must be int64, got int32"),
    ],
)
def test_refusals_of_the_core(change, text):
    with pytest.raises((InvalidArgumentError, DtypeError), match=r"\[topk\] " + text):
        core(np.zeros((2, 3, 8)), **change)


def test_outputs_that_overlap_are_refused():
    memory = np.zeros(96)
    x, values = memory[:48].reshape(2, 3, 8), memory[24:48].reshape(2, 3, 4)
    with pytest.raises(InvalidArgumentError, match=r"\[topk\] values must not overlap x"):
        core(x, values=values)
    indices = memory[48:72].view(np.int64).reshape(2, 3, 4)
    with pytest.raises(InvalidArgumentError, match=r"\[topk\] indices must not overlap x"):
        core(memory[40:88].reshape(2, 3, 8), indices=indices)
    with pytest.raises(InvalidArgumentError, match=r"\[topk\] values must not overlap indices"):
        core(x, values=memory[48:72].reshape(2, 3, 4), indices=indices)


def test_too_long_rows_are_refused():
    x = np.broadcast_to(np.int8(0), (1, 1, 2**32))
    outputs = {"values": np.zeros((1, 1, 1), np.int8), "indices": np.zeros((1, 1, 1), np.int64)}
    with pytest.raises(InvalidArgumentError, match=r"fewer than 2\^32 elements .* got 4294967296"):
        core(x, **outputs)


def test_cuda_arrays_of_other_libraries_are_refused():
    from test_interop import CUDA, Producer

    x = Producer(np.zeros((2, 3, 8), np.float32), device=CUDA)
    with pytest.raises(UnsupportedError, match=r"\[topk\] x on a CUDA device must be of torch"):
        topk(x, 4)
    with pytest.raises(InvalidArgumentError, match="on the device of x"):
        core(x, values=np.zeros((2, 3, 4), np.float32))
