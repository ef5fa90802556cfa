"""States of Moments: refusals leave them alone, files and copies bring them back."""

import contextlib
import errno
import pickle
import sys
import threading

import numpy as np
import pytest
from matrices import same_bits
from moments_oracle import bits, mixed
from subspan import Moments
from subspan.errors import (
    DtypeError,
    FileFormatError,
    InvalidArgumentError,
    SubspanError,
    UnsupportedError,
)

# ---- refusals ----------------------------------------------------------------------------------


def some(rng, **options):
    x = mixed(20, 3, rng)
    return Moments().update(x, np.ones(20), [0, 1] * 10, y=x[:, :2], **options)


def with_bad(rng, row, column, value, n=20, d=3, dtype=np.float64):
    x = rng.standard_normal((n, d)).astype(dtype)
    x[row, column] = value
    return x


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(
    ("value", "word"), [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity")]
)
@pytest.mark.parametrize(("row", "column"), [(0, 0), (9, 2), (299, 1), (257, 0)])
def test_nonfinite_rows_are_named(dtype, value, word, row, column, rng):
    moments = Moments().update(rng.standard_normal((30, 3)))
    before = bits(moments)
    x = with_bad(rng, row, column, value, n=300, dtype=dtype)
    with pytest.raises(
        InvalidArgumentError, match=f"x must be finite, got {word} in row {row}, column {column}"
    ):
        moments.update(x)
    assert bits(moments) == before


def test_the_state_is_untouched_by_every_refusal(rng):
    moments = some(rng)
    before = bits(moments)
    x = mixed(20, 3, rng)
    y, g, w = x[:, :2], [0, 1] * 10, np.ones(20)
    bad_y = y.copy()
    bad_y[4, 1] = np.nan
    negative = w.copy()
    negative[7] = -1
    cases = [
        ({"x": with_bad(rng, 3, 1, np.nan)}, "x must be finite, got NaN in row 3, column 1"),
        ({"x": with_bad(rng, 3, 1, 1e200)}, "squares that float64 can hold"),
        ({"y": bad_y}, "y must be finite, got NaN in row 4, column 1"),
        ({"weights": negative}, "weights must be finite and >= 0, got -1 in row 7"),
        ({"weights": w * np.nan}, "weights must be finite and >= 0"),
        ({"weights": w * np.inf}, "weights must be finite and >= 0"),
        ({"weights": w[:5]}, r"weights must have shape \(20,\), one per row of x, got \(5,\)"),
        ({"weights": np.ones((20, 1))}, "weights must have shape"),
        ({"weights": [1.0] * 20}, "weights must be an array"),
        ({"weights": np.array(["a"] * 20)}, "weights must be real numbers"),
        ({"weights": w * 1j}, "weights must be real numbers, got complex128"),
        ({"groups": g[:5]}, r"groups must have shape \(20,\)"),
        ({"groups": None}, "groups must be given always or never"),
        ({"y": None}, "y must be given always or never"),
        ({"y": x}, "y must have 2 columns as before, got 3"),
        ({"y": y[:4]}, "y must have the rows of x"),
        ({"y": y.astype(np.float32)}, r"y must have the dtype of x \(float64\), got float32"),
        ({"y": y[0]}, "y must have 2 axes, got 1"),
        ({"x": x[:, :2]}, "x must have 3 columns as before, got 2"),
        ({"x": x[0]}, "x must have 2 axes, got 1"),
        ({"x": x[:, :0]}, "x must have at least one column"),
        ({"x": x.tolist()}, "x must be an array"),
        (
            {"x": x.astype(int), "y": y.astype(int)},
            "float16, bfloat16, float32 or float64, got int",
        ),
        ({"x": x.astype(">f8"), "y": y.astype(">f8")}, "must have native byte order"),
        ({"x": np.ma.array(x)}, "must have no mask"),
    ]
    for change, text in cases:
        arguments = {"x": x, "weights": w, "groups": g, "y": y} | change
        with pytest.raises(SubspanError, match=text) as caught:
            moments.update(**arguments)
        assert str(caught.value).startswith("["), text
        assert bits(moments) == before, text
    fresh = Moments()
    for change, text in cases[:2]:
        with pytest.raises(SubspanError, match=text):
            fresh.update(**({"x": x} | change))
        assert bits(fresh) == bits(Moments())
        assert fresh.n_features == 0


def test_torch_tensors_that_cannot_be_read():
    torch = pytest.importorskip("torch")
    for x, text in (
        (torch.eye(3, requires_grad=True), "x must not require a gradient"),
        (torch.eye(3).to_sparse(), "x must be a dense tensor"),
        (torch.empty((3, 3), device="meta"), "x must be a dense tensor"),
    ):
        with pytest.raises(UnsupportedError, match=text):
            Moments().update(x)
    with pytest.raises(UnsupportedError, match="weights must not require a gradient"):
        Moments().update(torch.eye(3), torch.ones(3, requires_grad=True))
    with pytest.raises(DtypeError, match="weights must be of the library and on the device of x"):
        Moments().update(torch.eye(3), np.ones(3))
    with pytest.raises(DtypeError, match="must be float16, bfloat16, float32 or float64"):
        Moments().update(torch.zeros((3, 2), dtype=torch.int32))


def test_missing_parts_say_how_to_get_them(rng):
    moments = Moments().update(mixed(5, 2, rng))
    assert moments.mean_y is None
    assert moments.cross_m2 is None
    with pytest.raises(InvalidArgumentError, match=r"Call update\(x, y=y\)"):
        moments.cross_covariance()
    for name in ("group_labels", "group_counts", "group_weights", "group_means"):
        with pytest.raises(InvalidArgumentError, match=r"Call update\(x, groups=labels\)"):
            getattr(moments, name)
    with pytest.raises(InvalidArgumentError, match=r"Moments.group_means"):
        moments.between()
    with pytest.raises(InvalidArgumentError, match="precision must be one of"):
        Moments(precision="float32")
    with pytest.raises(InvalidArgumentError, match="weights must be one of"):
        moments.covariance(weights="biased")
    assert repr(moments) == "Moments(count=5, n_features=2, precision='auto')"


# ---- storage -----------------------------------------------------------------------------------


def states(rng):
    x = mixed(60, 4, rng)
    return {
        "empty": Moments(),
        "plain": Moments(precision="float64").update(x),
        "full": Moments().update(x, rng.uniform(0, 1, 60), np.arange(60) % 3, y=x[:, :2]),
    }


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("kind", ["empty", "plain", "full"])
def test_save_and_load(suffix, kind, tmp_path, rng):
    if suffix == ".safetensors":
        pytest.importorskip("safetensors")
    moments = states(rng)[kind]
    path = tmp_path / f"state{suffix}"
    moments.save(path)
    loaded = Moments.load(path)
    assert bits(loaded) == bits(moments)
    assert loaded.precision == moments.precision
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    x = mixed(10, 4, rng)
    extra = {"groups": [0] * 10, "y": x[:, :2]} if kind == "full" else {}
    assert bits(loaded.update(x, **extra)) == bits(moments.update(x, **extra))


def test_copies_share_nothing(rng):
    for moments in states(rng).values():
        before = bits(moments)
        for copy in (moments.copy(), pickle.loads(pickle.dumps(moments))):
            assert bits(copy) == before
            copy.merge(copy)
            assert bits(moments) == before
        for array in moments.state_dict().values():
            array[...] = array[..., ::-1] if array.dtype.kind == "U" else 7
        assert bits(moments) == before


def test_string_labels_need_npz(tmp_path, rng):
    pytest.importorskip("safetensors")
    moments = Moments().update(mixed(4, 2, rng), groups=["a", "b", "a", "b"])
    moments.save(tmp_path / "a.npz")
    np.testing.assert_array_equal(Moments.load(tmp_path / "a.npz").group_labels, ["a", "b"])
    with pytest.raises(InvalidArgumentError, match=r"Save as \.npz"):
        moments.save(tmp_path / "a.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_damaged_files(suffix, tmp_path, rng):
    if suffix == ".safetensors":
        pytest.importorskip("safetensors")
    path = tmp_path / f"state{suffix}"
    states(rng)["full"].save(path)
    whole = path.read_bytes()
    for size in {0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 30, len(whole) - 1}:
        path.write_bytes(whole[:size])
        with pytest.raises(FileFormatError, match="must be a whole"):
            Moments.load(path)
    loaded = 0
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[rng.integers(0, len(whole))] ^= 1 << int(rng.integers(0, 8))
        path.write_bytes(damaged)
        with contextlib.suppress(FileFormatError):  # and nothing else comes out
            loaded += Moments.load(path) is not None
    assert loaded < 300


def test_other_files(tmp_path):
    np.save(tmp_path / "a.npy", np.ones(3))
    (tmp_path / "a.npy").rename(tmp_path / "array.npz")
    np.savez(tmp_path / "other.npz", a=np.ones(3))
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps({"count": 1}))
    (tmp_path / "text.safetensors").write_text("no")
    for name in ("array.npz", "other.npz", "pickle.npz"):
        with pytest.raises(FileFormatError, match=r"\[Moments"):
            Moments.load(tmp_path / name)
    if pytest.importorskip("safetensors"):
        with pytest.raises(FileFormatError):
            Moments.load(tmp_path / "text.safetensors")
    with pytest.raises(FileNotFoundError, match="path must be a file"):
        Moments.load(tmp_path / "none.npz")
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(FileNotFoundError, match="path must be a file"):
        Moments.load(tmp_path / "folder.npz")
    for function in (Moments.load, Moments().save):
        with pytest.raises(InvalidArgumentError, match="suffix of path must be one of"):
            function(tmp_path / "a.pt")


def test_states_that_do_not_belong_together(rng):
    good = states(rng)["full"].state_dict()
    for name in good:
        if name in {"cross.cross", "groups.sums"}:
            continue  # without these there is no such part
        with pytest.raises(FileFormatError):
            Moments.from_state_dict({k: v for k, v in good.items() if k != name})
    for name, value in (
        ("m2", np.zeros((3, 3))),
        ("mean", np.zeros(5)),
        ("totals", np.zeros(3)),
        ("count", np.zeros(2)),
        ("version", np.array([99])),
        ("cross.mean_x", np.zeros(9)),
        ("groups.counts", np.zeros(9)),
        ("m2", np.array([["a"]])),
    ):
        with pytest.raises(FileFormatError, match=r"\[Moments\]"):
            Moments.from_state_dict(good | {name: value})


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_disk_full(suffix, tmp_path, monkeypatch, rng):
    path = tmp_path / f"state{suffix}"
    states(rng)["plain"].save(path)
    before = path.read_bytes()

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    if suffix == ".npz":
        monkeypatch.setattr(np, "savez", full)
    else:
        monkeypatch.setattr(pytest.importorskip("safetensors.numpy"), "save_file", full)
    with pytest.raises(OSError, match=r"the disk is full: ") as caught:
        states(rng)["full"].save(path)
    assert isinstance(caught.value, SubspanError)
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_an_interrupted_save_leaves_nothing(tmp_path, monkeypatch, rng):
    def interrupt(file, **_):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", interrupt)
    with pytest.raises(KeyboardInterrupt):
        states(rng)["full"].save(tmp_path / "a.npz")
    assert list(tmp_path.iterdir()) == []


# ---- memory ------------------------------------------------------------------------------------

BOUNDED = """
import resource, sys
import numpy as np, subspan
from subspan import Moments, PCA
path, rows, d = sys.argv[1] if len(sys.argv) > 1 else {path!r}, {rows}, {d}
warm = np.random.default_rng(0).standard_normal((2000, d)).astype(np.float32)
Moments().update(warm); PCA(4).fit(warm)  # threads, BLAS buffers, modules
del warm
def data_size():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmData"))
limit = data_size() + (64 << 20)
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
try:
    bytearray(100 << 20)
except MemoryError:
    pass
else:
    raise SystemExit("the limit does not bind")
x = np.memmap({path!r}, np.float32, "r", shape=(rows, d))
moments = Moments().update(x)
pca = PCA(4).fit(x)
assert moments.count == rows and pca.n_samples_ == rows
print(repr(float(np.trace(moments.covariance()))), repr(float(pca.explained_variance_[0])))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_DATA is Linux's")
def test_a_large_file_passes_through_little_memory(tmp_path, run_python, rng):
    d, block, repeats = 768, 2048, 64  # 402 MB of float32
    rows = rng.standard_normal((block, d)).astype(np.float32)
    path = tmp_path / "rows.bin"
    with path.open("wb") as file:
        for _ in range(repeats):
            rows.tofile(file)
    done = run_python(BOUNDED.format(path=str(path), rows=block * repeats, d=d))
    trace, top = (float(word) for word in done.stdout.split())
    centred = rows.astype(np.float64) - rows.astype(np.float64).mean(axis=0)
    n = block * repeats
    np.testing.assert_allclose(trace, np.square(centred).sum() * repeats / (n - 1), rtol=1e-6)
    wanted = np.linalg.norm(centred, 2) ** 2 * repeats / (n - 1)
    np.testing.assert_allclose(top, wanted, rtol=1e-5)


def test_states_on_several_threads_at_once(rng):
    x = mixed(4000, 30, rng).astype(np.float32)
    wanted = bits(Moments().update(x))
    seen = []
    workers = [
        threading.Thread(target=lambda: seen.append(bits(Moments().update(x)))) for _ in range(6)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert seen == [wanted] * 6
    same_bits((Moments().update(x).mean, Moments().update(x).mean))
