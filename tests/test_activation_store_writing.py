"""Writing a store: stopped anywhere it goes on, and ends with the same bytes; nothing is lost."""

import errno
import io
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import TEXT
from subspan.activations import (
    ActivationStore,
    Site,
    load_model,
    open_saved,
    tokenize,
    write_activations,
)
from subspan.cli import app
from subspan.errors import FileFormatError, InvalidArgumentError, OutputError
from subspan.report import files as files_module
from typer.testing import CliRunner

RNG = np.random.default_rng(7)
X = RNG.standard_normal((230, 8)).astype(np.float32)
SMALL = 40 * 8 * 2 / 1e6  # megabytes: five blocks of 8 rows, in float16
SHARD = 1e-6 + SMALL


class StoppedError(Exception):
    """Plays a run that ends here."""


@pytest.fixture
def source(tmp_path):
    np.save(tmp_path / "x.npy", X)
    return tmp_path / "x.npy"


def write(source, out, **options):
    saved = open_saved(source, block_rows=8)
    return write_activations(saved, None, out, **{"shard_mb": SHARD, **options})


def content(folder):
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != "lock"
    }


def written_at(file):
    facts = file.stat()
    return facts.st_mtime_ns, facts.st_ino


@pytest.fixture
def whole(source, tmp_path):
    store = write(source, tmp_path / "whole")
    assert len(list(store.path.glob("shard-*"))) == 6
    assert {file.name for file in store.path.iterdir()} == {
        *(f"shard-0000{number}.safetensors" for number in range(6)),
        "tokens",
        "index.json",
    }
    return content(store.path)


def stop_after(monkeypatch, owner, name, left):
    """Let so many calls of a function pass, then raise."""
    real, calls = getattr(owner, name), itertools.count()

    def counted(*args, **options):
        if next(calls) >= left:
            raise StoppedError
        return real(*args, **options)

    monkeypatch.setattr(owner, name, counted)


@pytest.mark.parametrize(
    ("owner", "name"), [(files_module, "_open"), (Path, "replace"), (shutil, "rmtree")]
)
@pytest.mark.parametrize("before", [None, "same", "other"])
def test_stopped_at_every_step(source, whole, tmp_path, owner, name, before):
    """At every file that is opened, every rename, every removal; also over an older store."""
    old = {"same": {}, "other": {"dtype": "float32", "shard_mb": SHARD / 3}}
    stopped = 0
    for cut in itertools.count():
        out = tmp_path / f"out{cut}"
        options = {}
        if before:
            write(source, out, **old[before])
            options = {"overwrite": True}
        with pytest.MonkeyPatch.context() as patch:
            stop_after(patch, owner, name, cut)
            try:
                write(source, out, **options)
            except StoppedError:
                stopped += 1
            else:
                break
        finished = {
            file: written_at(file) for file in (out / ".run" / "stage").glob("shard-*.safetensors")
        }
        if (out / ".run").exists():
            write(source, out)
        assert content(out) == whole, cut
        for file, facts in finished.items():  # moved, not written again
            assert written_at(out / file.name) == facts
        ActivationStore(out).verify()
        shutil.rmtree(out)
    assert content(out) == whole
    assert stopped == (1 if name == "rmtree" and not before else stopped) > 0


def test_a_stopped_run_reads_only_what_is_left(source, whole, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        stop_after(
            patch, files_module, "_open", 1 + 2 * 3
        )  # the note, three shards and their tokens
        with pytest.raises(StoppedError):
            write(source, out)
    with pytest.raises(FileFormatError, match="of which 3 shards are written"):
        ActivationStore(out)
    # what a process leaves that is killed while it writes
    (out / ".run" / "stage" / ".shard-00003.safetensors.1.partial").write_bytes(b"half")
    (out / ".run" / "stage" / "tokens" / ".shard-00003.safetensors.1.partial").write_bytes(b"h")
    calls = []
    saved = open_saved(source, block_rows=8)
    read = saved.rows
    monkeypatch.setattr(saved, "rows", lambda *args: calls.append(args[1]) or read(*args))
    seen = []
    write_activations(
        saved, None, out, shard_mb=SHARD, resume=True, progress=lambda *p: seen.append(p)
    )
    assert calls[0] == 3 * 40
    assert content(out) == whole
    assert seen[0] == ("activations", 120, 230)
    assert seen[-1] == ("activations", 230, 230)


def test_killed_in_the_middle_of_a_file(source, whole, tmp_path, run_python):
    out = tmp_path / "out"
    code = f"""
import os
from subspan.activations import open_saved, write_activations
from subspan.report import files
opened = files._open
left = [6]
def dying(path):
    left[0] -= 1
    stream = opened(path)
    if not left[0]:
        stream.write(b"half of it")
        stream.flush()
        os._exit(9)
    return stream
files._open = dying
write_activations(open_saved({str(source)!r}, block_rows=8), None, {str(out)!r}, shard_mb={SHARD})
"""
    assert run_python(code, check=False).returncode == 9
    assert list((out / ".run" / "stage").rglob("*.partial"))
    write(source, out)
    assert content(out) == whole


def test_a_full_disk_keeps_what_is_finished(source, whole, tmp_path, monkeypatch):
    class Full(io.BytesIO):
        def write(self, data):  # noqa: ARG002
            raise OSError(errno.ENOSPC, "No space left on device")

    out, real = tmp_path / "out", files_module._open
    with monkeypatch.context() as patch:
        patch.setattr(files_module, "_open", lambda p: Full() if "00003.saf" in p.name else real(p))
        with pytest.raises(OutputError, match=r"disk is full: shard-00003.*run again") as caught:
            write(source, out)
    assert caught.value.errno == errno.ENOSPC
    assert len(list((out / ".run" / "stage").glob("shard-*"))) == 3
    assert not list(out.rglob("*.partial"))
    write(source, out)
    assert content(out) == whole


def test_a_damaged_shard_of_a_stopped_run(source, whole, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        stop_after(patch, files_module, "_open", 7)
        with pytest.raises(StoppedError):
            write(source, out)
    shard = out / ".run" / "stage" / "shard-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-3])
    with pytest.raises(FileFormatError, match=r"shard-00001.safetensors must be a whole"):
        write(source, out)
    write(source, out, overwrite=True)
    assert content(out) == whole


def test_folders_and_settings_are_guarded(source, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        stop_after(patch, files_module, "_open", 4)
        with pytest.raises(StoppedError):
            write(source, out)
    for changed in ({"dtype": "float32"}, {"shard_mb": 1}, {"tokens": 100}):
        with pytest.raises(OutputError, match="interrupted run with other settings"):
            write(source, out, **changed)
    np.save(source, -X)
    with pytest.raises(OutputError, match=r"interrupted run with other settings .*hash"):
        write(source, out)
    np.save(source, X)
    write(source, out)
    with pytest.raises(OutputError, match="holds a finished run"):
        write(source, out)
    with pytest.raises(InvalidArgumentError, match="resume needs a folder with an interrupted"):
        write(source, out, resume=True)
    with pytest.raises(InvalidArgumentError, match="at most one of resume and overwrite"):
        write(source, out, resume=True, overwrite=True)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    shutil.copy(out / "shard-00000.safetensors", foreign)
    for options in ({}, {"overwrite": True}):
        with pytest.raises(OutputError, match=r"holds 'shard-00000\.safetensors', not written"):
            write(source, foreign, **options)


def test_two_writers_on_one_store(source, tmp_path):
    pytest.importorskip("fcntl")
    refused = []

    def second(_stage, done, _total):
        if done and not refused:
            with pytest.raises(OutputError, match="another run is working") as caught:
                write(source, tmp_path / "out")
            refused.append(caught.value)

    write(source, tmp_path / "out", progress=second).verify()
    assert refused


def test_dtypes_and_refusals(source, tmp_path):
    for dtype, exact in (("float32", X), ("float16", X.astype(np.float16))):
        store = write(source, tmp_path / dtype, dtype=dtype)
        assert np.array_equal(store.rows(None, 0, 230), exact)
    assert not store.has_tokens
    with pytest.raises(InvalidArgumentError, match="the store must have tokens"):
        store.tokens()
    assert write(source, tmp_path / "few", tokens=70).n_tokens == 70
    for options, match in (
        ({"dtype": "float64"}, "dtype must be one of 'float16', 'bfloat16', 'float32'"),
        ({"shard_mb": 0}, "shard_mb must be in"),
        ({"tokens": 0}, "tokens must be >= 1"),
        ({"sites": ["mlp"]}, "must choose at least one saved site"),
        ({"threads": 0}, "threads must be at least 1"),
    ):
        with pytest.raises(InvalidArgumentError, match=match):
            write(source, tmp_path / "out", **options)
    with pytest.raises(InvalidArgumentError, match="texts must be None for saved activations"):
        write_activations(source, "text", tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="source must be an existing file"):
        write_activations(tmp_path / "none", None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("value", "dtype", "match"),
    [
        (np.nan, "float32", "must be finite, got nan at 'x', row 3 of batch 25"),
        (-np.inf, "bfloat16", "must be finite, got -inf"),
        (70000, "float16", "must be at most 65504 for float16, got 70000 .*bfloat16"),
        (3.4e38, "bfloat16", "must be below 3.39e38 for bfloat16, got 3.4e\\+38"),
        (1e300, "float32", "must be finite, got inf"),
    ],
)
def test_values_that_cannot_be_stored(source, tmp_path, value, dtype, match):
    x = X.astype(float)
    x[203, 5] = value
    np.save(source, x)
    with pytest.raises(InvalidArgumentError, match=match):
        write(
            source, tmp_path / "out", dtype=dtype, shard_mb=SHARD if dtype != "float32" else 0.001
        )
    assert len(list((tmp_path / "out" / ".run" / "stage").glob("shard-*"))) >= 5
    if value == 70000:
        store = write(source, tmp_path / "wide", dtype="bfloat16")
        assert store.rows(None, 203, 204)[0, 5] == 70144  # the nearest with 8 bits


def test_a_model_resumes_too(tiny, tmp_path, monkeypatch):
    model = load_model(tiny)
    options = {"sites": ["resid", "k"], "layers": [1], "shard_mb": 0.03, "window": 32}
    store = write_activations(model, [TEXT, TEXT[:99]], tmp_path / "whole", **options)
    assert store.sites == (Site(1, "resid"), Site(1, "k", 0), Site(1, "k", 1))
    wanted = content(store.path)
    shards = len(list(store.path.glob("shard-*")))
    assert shards > 2
    for cut in (0, 1, 4, 2 * shards + 1):
        out = tmp_path / f"out{cut}"
        with monkeypatch.context() as patch:
            stop_after(patch, files_module, "_open", cut)
            with pytest.raises(StoppedError):
                write_activations(model, [TEXT, TEXT[:99]], out, **options)
        write_activations(model, [TEXT, TEXT[:99]], out, **options)
        assert content(out) == wanted
    stream = tokenize(model, TEXT, window=32)
    for texts, more, match in (
        (None, {}, "texts must be given for a model"),
        (stream, {"window": 8}, "tokens and window must be left out for a TokenStream"),
        (stream, {"tokens": 8}, "tokens and window must be left out for a TokenStream"),
    ):
        with pytest.raises(InvalidArgumentError, match=match):
            write_activations(model, texts, tmp_path / "no", **more)


def test_the_command(tiny, tmp_path):
    def run(*args):
        return CliRunner().invoke(app, ["activations", *map(str, args)])

    text, out = tiny.parent / "text.txt", tmp_path / "store"
    options = ["--layers", "1:3", "--tokens", 300, "--dtype", "bfloat16", "--window", 40]
    done = run(tiny, text, "--out", out, *options)
    assert done.exit_code == 0, done.output
    assert "Stored 300 tokens at layer.01/resid, layer.02/resid in" in done.output
    store = ActivationStore(out)
    same = write_activations(
        str(tiny), text, tmp_path / "python", layers=[1, 2], tokens=300, dtype="bfloat16", window=40
    )
    assert content(store.path) == content(same.path)
    assert json.loads((out / "index.json").read_text())["fingerprint"] == same.fingerprint
    again = run(tiny, text, "--out", out)
    assert (again.exit_code, "--overwrite" in again.output) == (2, True)
    copied = run(out, "--out", tmp_path / "copy", "--sites", "layer.02/resid", "--quiet")
    assert (copied.exit_code, copied.output) == (0, "")
    assert np.array_equal(
        ActivationStore(tmp_path / "copy").rows(None, 0, 300), store.rows("layer.02/resid", 0, 300)
    )
    missing = run(tiny, text)
    assert (missing.exit_code, "--out must name a folder" in missing.output) == (2, True)
