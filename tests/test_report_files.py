"""Atomic files and the output folder: whole or not at all, and one clear error."""

import errno
import io
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from subspan.errors import FileFormatError, InvalidArgumentError
from subspan.report import (
    Entry,
    OutputError,
    RunFolder,
    write_atomic,
    write_json,
    write_safetensors,
)
from subspan.report import files as files_module


class FullDisk(io.BytesIO):
    def write(self, data):  # noqa: ARG002
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def full_disk(monkeypatch):
    def fill():
        def opened(path):
            path.touch()
            return FullDisk()

        monkeypatch.setattr(files_module, "_open", opened)

    return fill


def test_bfloat16_is_named_so(tmp_path):
    torch = pytest.importorskip("torch")
    load = pytest.importorskip("safetensors.torch").load_file
    x = torch.linspace(-3, 1e30, 12).reshape(3, 4).to(torch.bfloat16)
    bits = x.view(torch.int16).numpy().view(np.uint16)
    write_safetensors(tmp_path / "x", [Entry.of("x", bits, "bfloat16")])
    assert torch.equal(load(tmp_path / "x")["x"], x)
    for wrong in (Entry.of("x", bits), Entry.of("x", np.zeros(3, np.float32), "bfloat16")):
        with pytest.raises(InvalidArgumentError, match="a dtype of"):
            write_safetensors(tmp_path / "y", [wrong])


def test_write_atomic_replaces_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    write_atomic(path, [b"ne", b"w"], n_bytes=3)
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_full_disk_names_file_and_need_and_keeps_the_old_file(tmp_path, full_disk):
    path = tmp_path / "state.bin"
    path.write_text("old")
    full_disk()
    with pytest.raises(OutputError, match=r"disk is full: state\.bin needs 2\.5 MB") as caught:
        write_atomic(path, [b"x"], n_bytes=2_500_000)
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(path)
    assert isinstance(caught.value, OSError)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["state.bin"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_device_is_reported_like_a_full_disk(tmp_path, monkeypatch):
    def opened(path):  # noqa: ARG001
        return Path("/dev/full").open("wb")

    monkeypatch.setattr(files_module, "_open", opened)
    with pytest.raises(OutputError, match="disk is full"):
        write_atomic(tmp_path / "a", [b"x" * 10_000_000], n_bytes=10_000_000)
    assert list(tmp_path.iterdir()) == []


def test_interrupt_while_writing_leaves_nothing(tmp_path):
    def chunks():
        yield b"half"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "a", chunks(), n_bytes=8)
    assert list(tmp_path.iterdir()) == []


def test_json_refuses_nan(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_safetensors_are_read_back_by_the_official_reader(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "a/b": rng.normal(size=(3, 5)),
        "f32": rng.normal(size=(4, 2)).astype(np.float32)[:, ::-1],
        "scalar": np.array(7, np.int64),
        "empty": np.zeros((0, 3), np.int32),
        "flags": np.array([True, False, True]),
    }
    path = tmp_path / "x.safetensors"
    write_safetensors(path, [Entry.of(k, v) for k, v in arrays.items()], {"note": "h\u00e9"})
    read = load_file(path)
    assert set(read) == set(arrays)
    for name, array in arrays.items():
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name], array)


def test_safetensors_refuse_unknown_dtypes_and_double_names(tmp_path):
    entry = Entry.of("a", np.zeros(2, np.complex128))
    with pytest.raises(InvalidArgumentError, match="complex128"):
        write_safetensors(tmp_path / "x", [entry])
    double = [Entry.of("a", np.zeros(1)), Entry.of("a", np.zeros(1))]
    with pytest.raises(InvalidArgumentError, match="unique names"):
        write_safetensors(tmp_path / "x", double)


# ---- the folder


def folder(path):
    return RunFolder(path, kind="atlas", results=("report.json",))


def test_new_run_publishes_and_leaves_no_work(tmp_path):
    out = tmp_path / "a" / "b"
    run = folder(out)
    run.check()
    with run.held({"x": 1}) as resumed:
        assert resumed is False
        stage = run.fresh_stage()
        (stage / "report.html").write_text("page")
        (stage / "report.json").write_text("{}")
        assert sorted(p.name for p in out.iterdir()) == [".run"]
        run.publish()
    assert sorted(p.name for p in out.iterdir()) == ["report.html", "report.json"]
    with pytest.raises(OutputError, match=r"finished run.*--overwrite"):
        folder(out).check()
    folder(out).check(overwrite=True)
    with pytest.raises(InvalidArgumentError, match="which is finished"):
        folder(out).check(resume=True)


def test_interrupted_run_resumes_only_with_the_same_identity(tmp_path):
    run = folder(tmp_path)
    with run.held({"x": 1, "text": "abc"}):
        (run.work / "state").write_text("s")
    again = folder(tmp_path)
    again.check()
    again.check(resume=True)
    with again.held({"x": 1, "text": "abc"}) as resumed:
        assert resumed
    with (
        pytest.raises(OutputError, match="x: 1 before, 2 now"),
        folder(tmp_path).held({"x": 2, "text": "abc"}),
    ):
        pass
    with folder(tmp_path).held({"x": 2}, overwrite=True) as resumed:
        assert not resumed
    assert not (run.work / "state").exists()
    assert json.loads((run.work / "run.json").read_text()) == {"x": 2}


def test_foreign_folder_is_never_touched(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for options in ({}, {"overwrite": True}):
        with pytest.raises(OutputError, match=r"'thesis\.tex', not written by subspan"):
            folder(tmp_path).check(**options)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_folder_that_is_a_file_and_contradicting_options(tmp_path):
    file = tmp_path / "f"
    file.touch()
    with pytest.raises(OutputError, match="must be a folder"):
        folder(file).check()
    with pytest.raises(InvalidArgumentError, match="at most one"):
        folder(tmp_path).check(resume=True, overwrite=True)
    with pytest.raises(InvalidArgumentError, match="resume needs"):
        folder(tmp_path / "new").check(resume=True)


def test_two_runs_in_one_folder_are_refused(tmp_path):
    with (
        folder(tmp_path).held({"x": 1}),
        pytest.raises(OutputError, match="another run is working"),
        folder(tmp_path).held({"x": 1}),
    ):
        pass


def test_damaged_note_says_how_to_go_on(tmp_path):
    run = folder(tmp_path)
    with run.held({"x": 1}):
        pass
    (run.work / "run.json").write_text("{not json")
    with pytest.raises(FileFormatError, match="--overwrite"), folder(tmp_path).held({"x": 1}):
        pass
