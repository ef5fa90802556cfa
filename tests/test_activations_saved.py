"""Saved activations: values, blocks across shards, and every kind of damaged file."""

import hashlib
import itertools
import json

import numpy as np
import pytest
from subspan.activations import Site, open_saved
from subspan.errors import FileFormatError, InvalidArgumentError

RNG = np.random.default_rng(3)
X = RNG.standard_normal((50, 6)).astype(np.float32)


def write_safetensors(path, tensors, *, header=None):
    """Write the format by its description; ``tensors`` maps names to (dtype name, array)."""
    entries, data = {}, b""
    for name, (dtype, array) in tensors.items():
        raw = np.ascontiguousarray(array).tobytes()
        entries[name] = {
            "dtype": dtype,
            "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    text = json.dumps(entries if header is None else header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def joined(saved, site=None):
    site = saved.sites[0] if site is None else site
    return np.concatenate([block.arrays[site] for block in saved])


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f4", ">f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy(tmp_path, dtype, order):
    stored = np.asarray(X, dtype=dtype, order=order)
    np.save(tmp_path / "acts.npy", stored)
    saved = open_saved(tmp_path / "acts.npy", block_rows=8)
    assert saved.sites == (Site(-1, "acts"),)
    assert (len(saved), saved.n_rows, saved.widths) == (7, 50, {Site(-1, "acts"): 6})
    assert [b.index for b in saved] == list(range(7))
    assert saved[-1].n_rows == 2
    assert saved[0].tokens is None
    values = joined(saved)
    assert values.dtype == (np.float64 if dtype.endswith("8") else np.float32)
    assert np.array_equal(values, stored.astype(values.dtype))
    assert np.array_equal(saved.rows(saved.sites[0], 13, 31), values[13:31])
    assert saved.fingerprint == hashlib.sha256((tmp_path / "acts.npy").read_bytes()).hexdigest()


def test_blocks_are_fresh_and_writable(tmp_path):
    np.save(tmp_path / "a.npy", X)
    saved = open_saved(str(tmp_path / "a.npy"))
    block = saved[0].arrays[saved.sites[0]]
    block[:] = 0
    assert np.array_equal(joined(saved), X)
    assert [b.index for b in saved[:]] == [0]
    with pytest.raises(IndexError, match=r"block must be in 0\.\.0"):
        saved[1]


def test_safetensors_with_half_precision(tmp_path):
    upper = (X.view(np.uint32) >> 16).astype(np.uint16)  # bfloat16 by truncation
    path = write_safetensors(
        tmp_path / "a.safetensors",
        {
            "layer.03/k/head.1": ("BF16", upper),
            "layer.03/resid": ("F16", X.astype(np.float16)),
            "other": ("F64", X[:, :2].astype(np.float64)),
        },
    )
    saved = open_saved(path, block_rows=7)
    resid, key, other = Site(3, "resid"), Site(3, "k", 1), Site(-1, "other")
    assert saved.sites == (resid, key, other)
    assert np.array_equal(joined(saved, key), (upper.astype(np.uint32) << 16).view(np.float32))
    assert np.allclose(joined(saved, key), X, rtol=2**-7)
    assert np.array_equal(joined(saved, resid), X.astype(np.float16).astype(np.float32))
    assert joined(saved, other).dtype == np.float64
    few = open_saved(path, sites=["other", resid])
    assert few.sites == (resid, other)
    with pytest.raises(InvalidArgumentError, match="got 'none'"):
        open_saved(path, sites=["none"])
    with pytest.raises(InvalidArgumentError, match="site must be one of"):
        few.rows(key, 0, 1)
    with pytest.raises(InvalidArgumentError, match=r"rows must lie in 0\.\.50"):
        few.rows(resid, 0, 51)


def test_agrees_with_the_safetensors_package(tmp_path):
    torch = pytest.importorskip("torch")
    package = pytest.importorskip("safetensors.torch")
    tensors = {
        f"layer.00/{name}": torch.from_numpy(X).to(dtype)
        for name, dtype in [
            ("resid", torch.bfloat16),
            ("attn", torch.float16),
            ("mlp", torch.float32),
        ]
    }
    package.save_file(tensors, tmp_path / "a.safetensors", metadata={"made": "by a test"})
    saved = open_saved(tmp_path / "a.safetensors", block_rows=11)
    for key, tensor in tensors.items():
        assert np.array_equal(joined(saved, Site.parse(key)), tensor.float().numpy())


@pytest.mark.parametrize("block_rows", [1, 4, 17, 50, 1000])
def test_blocks_do_not_depend_on_the_shards(tmp_path, block_rows):
    cuts = [0, 3, 4, 30, 50]
    for number, (a, b) in enumerate(itertools.pairwise(cuts)):
        np.save(tmp_path / f"shard-{7 + number}.npy", X[a:b])  # 7, 8, 9, 10: not in text order
    (tmp_path / "notes.txt").write_text("not a shard")
    saved = open_saved(tmp_path, block_rows=block_rows)
    assert saved.sites == (Site(-1, tmp_path.name),)
    assert len(saved) == -(-50 // block_rows)
    for block in saved:
        start = block.index * block_rows
        assert np.array_equal(block.arrays[saved.sites[0]], X[start : start + block_rows])


def test_a_read_does_not_load_the_whole(tmp_path):
    tracemalloc = pytest.importorskip("tracemalloc")
    big = np.lib.format.open_memmap(tmp_path / "a.npy", "w+", np.float32, (200_000, 32))
    big[-1] = 1.0
    big.flush()
    del big
    tracemalloc.start()
    saved = open_saved(tmp_path / "a.npy", block_rows=1000)
    assert saved[len(saved) - 1].arrays[saved.sites[0]][-1].sum() == 32
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000, "one block takes 128 kB, the file 25.6 MB"


def spoil(path, keep):
    path.write_bytes(path.read_bytes()[:keep])
    return path


@pytest.mark.parametrize("keep", [0, 5, 60, 200, 1327])
def test_truncated_npy(tmp_path, keep):
    np.save(tmp_path / "a.npy", X)
    with pytest.raises(FileFormatError, match=r"must be a whole \.npy file.*truncated"):
        open_saved(spoil(tmp_path / "a.npy", keep))


@pytest.mark.parametrize("keep", [0, 7, 8, 40, 150, -1])
def test_truncated_safetensors(tmp_path, keep):
    path = write_safetensors(tmp_path / "a.safetensors", {"x": ("F32", X)})
    with pytest.raises(FileFormatError, match=r"must be a whole \.safetensors file.*truncated"):
        open_saved(spoil(path, keep))


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [50, 6]},
        {"dtype": "F32", "shape": [50, 6], "data_offsets": [0, 1199]},
        {"dtype": "F32", "shape": [50, 7], "data_offsets": [0, 1200]},
        {"dtype": "F32", "shape": [-50, -6], "data_offsets": [0, 1200]},
        {"dtype": "F32", "shape": [50, 6], "data_offsets": [1200, 0]},
        {"dtype": "F32", "shape": [50, 6], "data_offsets": [-4, 1196]},
        {"dtype": "F32", "shape": "wide", "data_offsets": [0, 1200]},
        ["F32"],
    ],
)
def test_lying_headers(tmp_path, entry):
    path = write_safetensors(tmp_path / "a.safetensors", {"x": ("F32", X)}, header={"x": entry})
    with pytest.raises(FileFormatError, match=r"must be a whole \.safetensors file"):
        open_saved(path)


def test_header_that_is_no_table(tmp_path):
    path = write_safetensors(tmp_path / "a.safetensors", {}, header=[1, 2])
    with pytest.raises(FileFormatError, match="not a table"):
        open_saved(path)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.arange(12).reshape(4, 3), "float32 or float64, got int64"),
        (np.ones((4, 3), dtype=bool), "got bool"),
        (np.ones((4, 3), dtype=complex), "got complex128"),
        (np.ones(4), r"got shape \(4,\)"),
        (np.ones((2, 4, 3)), r"got shape \(2, 4, 3\)\. Reshape"),
        (np.ones((0, 3)), r"at least one value, got \(0, 3\)"),
        (np.ones((3, 0)), r"at least one value, got \(3, 0\)"),
    ],
)
def test_arrays_that_are_not_activations(tmp_path, array, message):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(FileFormatError, match=message):
        open_saved(tmp_path / "a.npy")
    names = {"int64": "I64", "bool": "BOOL", "float64": "F64"}
    if array.dtype.name in names:
        write_safetensors(tmp_path / "a.safetensors", {"x": (names[array.dtype.name], array)})
        with pytest.raises(FileFormatError, match="must hold at 'x'"):
            open_saved(tmp_path / "a.safetensors")


def test_pickled_npy_is_never_run(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(FileFormatError, match=r"must be a whole \.npy file"):
        open_saved(tmp_path / "a.npy")


def test_shards_that_do_not_fit(tmp_path):
    np.save(tmp_path / "0.npy", X)
    np.save(tmp_path / "1.npy", X[:, :5])
    with pytest.raises(FileFormatError, match=r"width 6 .* in 0\.npy, got 5 in 1\.npy"):
        open_saved(tmp_path)
    np.save(tmp_path / "1.npy", X.astype(np.float16))
    with pytest.raises(FileFormatError, match=r"dtype float32 .* got float16"):
        open_saved(tmp_path)
    write_safetensors(tmp_path / "2.safetensors", {"x": ("F32", X)})
    with pytest.raises(FileFormatError, match=r"one kind.*got \.npy and \.safetensors"):
        open_saved(tmp_path)


def test_shards_with_other_sites_or_rows(tmp_path):
    write_safetensors(tmp_path / "0.safetensors", {"x": ("F32", X)})
    path = write_safetensors(tmp_path / "1.safetensors", {"x": ("F32", X), "y": ("F32", X)})
    with pytest.raises(FileFormatError, match=r"same sites as 0\.safetensors.*differs in 'y'"):
        open_saved(tmp_path)
    write_safetensors(path, {"x": ("F32", X), "y": ("F32", X[:9])})
    with pytest.raises(FileFormatError, match="same number of rows, got 9, 50"):
        open_saved(path)
    assert open_saved(path, sites=["x"]).n_rows == 50


def test_paths_that_hold_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match="path must exist"):
        open_saved(tmp_path / "none.npy")
    with pytest.raises(FileFormatError, match="got neither"):
        open_saved(tmp_path)
    (tmp_path / "a.csv").write_text("1,2")
    with pytest.raises(FileFormatError, match=r"must be \.npy, \.safetensors or a folder"):
        open_saved(tmp_path / "a.csv")
    write_safetensors(tmp_path / "e.safetensors", {})
    with pytest.raises(FileFormatError, match="at least one matrix"):
        open_saved(tmp_path / "e.safetensors")
    np.save(tmp_path / "a.npy", X)
    for rows in (0, -1, 2.5, True):
        with pytest.raises(InvalidArgumentError, match="block_rows must be a positive integer"):
            open_saved(tmp_path / "a.npy", block_rows=rows)
