"""Memory and open files stay bounded whatever the size of a store."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from subspan.activations import ActivationStore, array_batches, open_saved, write_activations

WIDTH = 256
BYTES = 2 * WIDTH  # of a row in float16


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A store of 96 MB in 64 shards; column 0 is the row modulo 2048, exact in float16."""
    folder = tmp_path_factory.mktemp("large")
    n_rows = 96_000_000 // BYTES
    x = np.ones((n_rows, WIDTH), np.float16)
    x[:, 0] = np.arange(n_rows) % 2048
    np.save(folder / "x.npy", x)
    del x
    saved = open_saved(folder / "x.npy", block_rows=512)
    tracemalloc.start()
    write_activations(saved, None, folder / "store", shard_mb=1.5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6  # a shard, and a block of rows in float32 and float64
    return folder / "store"


def test_buffers_are_as_large_as_asked(folder):
    store = ActivationStore(folder)
    for buffer_mb in (4, 16):
        options = {"seed": 1, "output": "numpy", "buffer_mb": buffer_mb}
        batches = store.batches(None, 256, start=500, **options)
        tracemalloc.start()
        for number, batch in enumerate(batches, start=500):
            if number % 64 == 0:
                rows = batches.rows_of(number)
                assert np.array_equal(batch[:, 0], rows % 2048)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert number + 1 == batches.total == -(-store.n_tokens // 256)
        assert peak < buffer_mb * 1.3e6 + 6e6


def test_resident_memory_is_not_that_of_the_store(folder, run_python):
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc")
    code = f"""
from subspan.activations import ActivationStore
def kilobytes(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))
batches = ActivationStore({str(folder)!r}).batches(
    None, 256, output="numpy", buffer_mb=4
)
before = kilobytes("VmRSS")
rows = sum(len(batch) for batch in batches)
print(rows, kilobytes("VmHWM") - before)
"""
    rows, growth = map(int, run_python(code).stdout.split())
    assert rows == 96_000_000 // BYTES
    assert growth < 60_000  # in kB: the buffer, and what eight readers have mapped


def test_more_shards_than_open_files(folder, run_python):
    pytest.importorskip("resource")
    code = f"""
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
from subspan.activations import ActivationStore, open_saved
store = ActivationStore({str(folder)!r})
batches = store.batches(None, 20000, output="numpy", buffer_mb=64)
rows = sum(len(batch) for batch in batches)
assert rows == store.n_tokens == open_saved({str(folder)!r}).n_rows
assert len(store.take(None, range(0, rows, 1000))) == -(-rows // 1000)
"""
    run_python(code)


def test_memory_maps_of_the_caller_are_read_ahead(tmp_path):
    x = np.arange(40_000, dtype=np.float32).reshape(-1, 2)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    for arrays in (mapped, [mapped[:100], np.asarray(mapped)[100:]]):
        batches = array_batches(arrays, 512, seed=3, buffer_mb=1)
        assert np.array_equal(next(batches), x[batches.rows_of(0)])
        assert sum(len(batch) for batch in batches) == 20_000 - 512
