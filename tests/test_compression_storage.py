"""Bytes as counted and as written, and one budget over many matrices."""

import itertools

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from subspan.compression import (
    Dense,
    Integers,
    LowRank,
    Options,
    SparseDictionary,
    Storage,
    allocate,
    dense_storage,
    dictionary_size,
    dictionary_storage,
    low_rank_storage,
    quantized_storage,
    rank_of_kept,
    rank_options,
    truncated_svd,
)
from subspan.compression._packing import (
    pack_indices,
    pack_numbers,
    unpack_indices,
    unpack_numbers,
)
from subspan.compression.matrices import from_arrays
from subspan.errors import DtypeError, FileFormatError, InvalidArgumentError


def payload(path, arrays):
    """Bytes of the tensors in a safetensors file: its size less that of the header."""
    save_file({name: np.ascontiguousarray(x) for name, x in arrays.items()}, path)
    content = path.read_bytes()
    return len(content) - 8 - int.from_bytes(content[:8], "little")


def coded(rng, m, n, atoms, sparsity, dtype=np.float16):
    indices = np.sort(np.array([rng.permutation(atoms)[:sparsity] for _ in range(m)]), axis=1)
    return SparseDictionary(
        0.0, 1.0, "", rng.normal(size=(n, atoms)).astype(dtype),
        rng.normal(size=(m, sparsity)).astype(dtype), indices,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_what_is_counted_is_what_a_file_holds(tmp_path, rng, dtype):
    bits = 8 * np.dtype(dtype).itemsize
    w = rng.normal(size=(21, 34)).astype(dtype)
    forms = [
        Dense(0.0, 1.0, "", w),
        LowRank(0.0, 1.0, "", w[:, :5], w[:5]),
        LowRank(0.0, 1.0, "", w[:, :5], w[:5], w[:, 0]),
        coded(rng, 21, 34, 40, 3, dtype),  # a list of indices is shorter
        coded(rng, 21, 34, 13, 6, dtype),  # a mask is
        coded(rng, 21, 34, 1, 1, dtype),
        Integers.of(w.astype(float), bits=(3, 8), blocks=2, high=4, dtype=dtype.__name__),
        Integers.of(w.astype(float), bits=(5, 8), bias=w[:, 0], dtype=dtype.__name__),
    ]
    for form in forms:
        assert payload(tmp_path / "x.safetensors", form.arrays()) == form.storage(bits=bits).n_bytes
        assert form.shape == (21, 34)
        read = load_file(tmp_path / "x.safetensors")
        again = from_arrays(form.kind, read, error=0.0, total=1.0)
        assert np.array_equal(again.to_dense(), form.to_dense())
    assert [form.storage().parts[-1].name for form in forms[3:6]] == ["codes_idx"] * 3


@pytest.mark.parametrize("width", [1, 3, 4, 8, 13, 16])
def test_numbers_are_packed_without_gaps(rng, width):
    numbers = rng.integers(0, 2**width, 37)
    packed = pack_numbers(numbers, width)
    assert packed.nbytes == -(-37 * width // 8)
    assert np.array_equal(unpack_numbers("x", packed, 37, width), numbers)
    with pytest.raises(FileFormatError, match=f"37 numbers of {width} bits must have"):
        unpack_numbers("x", packed[:-1], 37, width)


def test_integers_round_row_by_row_with_two_widths(rng):
    w = rng.normal(size=(5, 24)) * np.arange(5)[:, None]
    made = Integers.of(w, bits=(4, 8), blocks=3, high=2, dtype="float32", clip=False)
    cut = w.reshape(5, 3, 8)
    for part, bits, top in ((cut[..., :6], 4, 7), (cut[..., 6:], 8, 127)):
        flat = part.reshape(5, -1)
        scales = np.where(np.abs(flat).max(1) > 0, np.abs(flat).max(1) / top, 1.0)[:, None]
        wanted = np.clip(np.round(flat / scales), -top - 1, top) * scales
        slot = slice(None, 6) if bits == 4 else slice(6, None)
        found = made.to_dense().reshape(5, 3, 8)[..., slot].reshape(5, -1)
        assert np.allclose(found, wanted, rtol=1e-6)
    assert made.relative_error == pytest.approx(np.linalg.norm(made.to_dense() - w)
                                                / np.linalg.norm(w), rel=1e-6)  # fmt: skip
    size = made.storage(bits=32).to_dict()
    assert size == {"layout": 24, "values": 45 + 30, "scales": 40, "total": 139}
    sixteen = Integers.of(w, bits=(16, 16), dtype="float32")
    assert sixteen.relative_error < 2e-5
    assert Integers.of(w, bits=(4, 8)).error <= Integers.of(w, bits=(4, 8), clip=False).error


def test_damaged_integers_are_refused(rng):
    made = Integers.of(rng.normal(size=(3, 8)), bits=(4, 8), blocks=2, high=1)
    arrays = made.arrays()
    for key, value, message in (
        ("layout", arrays["layout"][:-1], "layout must have 24 bytes, got 23"),
        ("layout", np.zeros(24, np.uint8), "layout must be that of an integer matrix"),
        ("low", arrays["low"][:-1], "18 numbers of 4 bits must have 9 bytes, got 8"),
    ):
        with pytest.raises(FileFormatError, match=message):
            from_arrays("integers", arrays | {key: value}, error=0.0, total=1.0)
    del arrays["high_scales"]
    with pytest.raises(FileFormatError, match="integers needs the tensor 'high_scales'"):
        from_arrays("integers", arrays, error=0.0, total=1.0)


def test_quantised_integers_with_scales_and_zeros(tmp_path):
    size = quantized_storage(1000, bits=4, group=64, zero_bits=8)
    packed = {
        "values": np.zeros(500, np.uint8),
        "scales": np.zeros(16, np.float16),
        "zeros": np.zeros(16, np.uint8),
    }
    assert payload(tmp_path / "q.safetensors", packed) == size.n_bytes == 500 + 32 + 16
    assert quantized_storage(1000, bits=3, group=1000).to_dict() == {
        "values": 375, "scales": 2, "total": 377,
    }  # fmt: skip
    with pytest.raises(InvalidArgumentError, match=r"group must be >= 1, got 0"):
        quantized_storage(10, bits=4, group=0)


def test_storages_add_up():
    both = low_rank_storage(4, 6, 2) + dictionary_storage(4, 6, 8, 2)
    assert isinstance(both, Storage)
    assert both.n_bytes == both.to_dict()["total"] == 2 * (8 + 12 + 48 + 8) + 3
    assert low_rank_storage(6, 3, 2).kept(dense_storage(6, 3)) == 1.0


@pytest.mark.parametrize(("atoms", "sparsity"), [(1, 1), (7, 7), (8, 3), (64, 2), (65, 5), (9, 1)])
def test_packed_indices_come_back(rng, atoms, sparsity):
    indices = np.sort(np.array([rng.permutation(atoms)[:sparsity] for _ in range(11)]), axis=1)
    packed = pack_indices(indices, atoms)
    assert np.array_equal(unpack_indices(packed, 11, sparsity, atoms), indices)
    with pytest.raises(FileFormatError, match="indices must have"):
        unpack_indices(packed[:-1], 11, sparsity, atoms)


def test_damaged_codes_are_refused(rng):
    form = coded(rng, 21, 34, 13, 6)
    arrays = form.arrays()
    arrays["codes_idx"] = arrays["codes_idx"] ^ 1
    with pytest.raises(FileFormatError, match="masks must have 6 bits each"):
        from_arrays("dictionary", arrays, error=0.0, total=1.0)
    with pytest.raises(FileFormatError, match="indices must be below 5, got 7"):
        unpack_indices(np.packbits(np.ones(3, np.uint8)), 1, 1, 5)
    with pytest.raises(FileFormatError, match="needs the tensor 'B'"):
        from_arrays("low_rank", {"A": 1}, error=0.0, total=1.0)
    with pytest.raises(FileFormatError, match="kind must be known, got 'wavelet'"):
        from_arrays("wavelet", {}, error=0.0, total=1.0)


def test_ranks_of_kept_ratios():
    # floor(kept m n / (m + n)); break-even of a square matrix is half its order
    assert rank_of_kept(576, 576, 1.0) == 288
    assert rank_of_kept(576, 576, 0.8) == 230
    assert rank_of_kept(192, 576, 0.6) == 86
    assert rank_of_kept(10, 10, 0.1) == 0
    for m, n, kept in itertools.product((5, 30), (7, 40), (0.3, 0.5, 0.9)):
        rank, dense = rank_of_kept(m, n, kept), dense_storage(m, n).n_bytes
        assert low_rank_storage(m, n, rank).n_bytes <= kept * dense + 1e-6
        assert low_rank_storage(m, n, rank + 1).n_bytes > kept * dense
    with pytest.raises(InvalidArgumentError, match="kept must be in"):
        rank_of_kept(5, 5, 1.1)


def test_sizes_of_dictionaries_fill_the_budget():
    for m, n, kept, ratio in itertools.product((64, 200), (96,), (0.3, 0.6, 0.8), (1.0, 2.0, 7.0)):
        atoms, sparsity = dictionary_size(m, n, kept, ratio=ratio)
        dense = dense_storage(m, n).n_bytes
        assert atoms == round(ratio * sparsity)
        assert dictionary_storage(m, n, atoms, sparsity).n_bytes <= kept * dense
        more = dictionary_storage(m, n, round(ratio * (sparsity + 1)), sparsity + 1)
        assert more.n_bytes > kept * dense
    with pytest.raises(InvalidArgumentError, match=r"kept must leave room .* Keep at least 0\.\d+"):
        dictionary_size(10, 10, 0.01)


def exhaustive(options, budget):
    best = np.inf
    for pick in itertools.product(*(range(len(one.costs)) for one in options)):
        cost = sum(one.costs[i] for one, i in zip(options, pick, strict=True))
        if cost <= budget:
            best = min(best, sum(one.errors[i] for one, i in zip(options, pick, strict=True)))
    return best


def test_allocation_equals_exhaustive_search_where_the_budget_ends_at_a_step(rng):
    ends = []
    for _ in range(20):
        shapes = rng.integers(8, 20, size=(3, 2))
        options = []
        for m, n in shapes:
            tails = truncated_svd(rng.normal(size=(m, n)) * 0.7 ** np.arange(n)).tails
            options.append(rank_options(tails[:6] if min(m, n) > 6 else tails, int(m), int(n)))
        least = sum(int(one.costs[0]) for one in options)
        most = sum(int(one.costs[-1]) for one in options)
        for budget in range(least, most + 1, max(1, (most - least) // 15)):
            found = allocate(options, budget)
            best = exhaustive(options, budget)
            assert found.cost <= budget
            assert found.bound <= best + 1e-9
            assert found.error >= best - 1e-9
            # a budget that is spent to the byte by hull steps alone is spent in the best way
            at = allocate(options, found.cost)
            assert at.error <= found.error + 1e-9
            if abs(found.error - found.bound) < 1e-12:
                assert found.error == pytest.approx(best, abs=1e-9)
            ends.append(found.error <= best + 1e-9)
            # and the gap is at most the step that did not fit
            jumps = [float(np.max(-np.diff(one.errors))) for one in options]
            assert found.error <= found.bound + sum(jumps)
        assert allocate(options, most).error == 0.0
        assert allocate(options, most).sizes.tolist() == [0, 0, 0]
    assert np.mean(ends) > 0.6  # exact more often than not between the steps, too


def test_allocation_is_within_a_hundredth_of_the_best_of_many(rng):
    options = []
    for _ in range(40):
        errors = np.sort(rng.exponential(size=30))[::-1].cumsum()[::-1]
        options.append(Options(np.arange(30), 10 * np.arange(1, 31), errors))
    found = allocate(options, 40 * 150)
    assert found.cost <= 6000
    assert found.bound <= found.error <= 1.01 * found.bound
    uniform = sum(float(one.errors[14]) for one in options)
    assert found.error < 0.99 * uniform


def test_an_error_that_counts_more_gets_more():
    tails = truncated_svd(np.diag(np.arange(16.0, 0, -1))).tails
    plain = rank_options(tails, 16, 16)
    loud = rank_options(100 * tails, 16, 16)
    found = allocate([plain, loud, plain], 2 * int(plain.costs[3]) + int(plain.costs[-1]))
    assert found.sizes[1] == 0
    assert (found.sizes[[0, 2]] > 0).all()


def test_ranks_on_offer():
    tails = truncated_svd(np.eye(16)).tails
    offered = rank_options(tails, 16, 16, multiple=2, least=0.4)
    assert offered.sizes.tolist() == [4, 6, 0]
    assert offered.costs.tolist() == [256, 384, 512]
    assert offered.errors.tolist() == [12.0, 10.0, 0.0]
    assert rank_options(tails, 16, 16, bias=16).sizes.tolist() == [*range(1, 8), 0]


def test_what_allocation_refuses():
    good = Options(np.array([1, 2]), np.array([10, 20]), np.array([2.0, 1.0]))
    with pytest.raises(InvalidArgumentError, match="options must have a matrix at least"):
        allocate([], 10)
    with pytest.raises(InvalidArgumentError, match=r"cheapest option of each matrix, 20 bytes"):
        allocate([good, good], 19)
    with pytest.raises(InvalidArgumentError, match="matrix 1 must have rising costs"):
        allocate([good, good._replace(costs=np.array([10, 10]))], 99)
    with pytest.raises(InvalidArgumentError, match="errors of matrix 0 must be finite"):
        allocate([good._replace(errors=np.array([np.nan, 1.0]))], 99)
    with pytest.raises(DtypeError, match="budget must be an integer"):
        allocate([good], 20.5)
    with pytest.raises(InvalidArgumentError, match="errors must be finite numbers, one for each"):
        rank_options(np.ones((2, 2)), 4, 4)


def test_importing_the_package_is_light(run_python):
    done = run_python(
        "import sys, subspan.compression\n"
        "print(*sorted({'torch', 'transformers', 'matplotlib', 'sklearn'} & set(sys.modules)))"
    )
    assert done.stdout.split() == []
