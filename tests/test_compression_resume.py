"""Calibrations that were interrupted go on from their last checkpoint, to the same bits."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import TEXT
from subspan.activations import load_model, tokenize
from subspan.compression import Calibration, _job, calibrate, compress
from subspan.errors import FileFormatError, InvalidArgumentError

pytest.importorskip("torch")
pytest.importorskip("transformers")


class StopError(Exception):
    pass


def stopping(at):
    def stop(done, total):  # noqa: ARG001
        if done == at:
            raise StopError

    return stop


@pytest.fixture(scope="module")
def model(tiny):
    return load_model(tiny)


@pytest.fixture(scope="module")
def stream(model):
    return tokenize(model, [TEXT], window=16, max_tokens=150, batch_size=2)


def same(a, b):
    assert a.shared == b.shared
    assert (a.n_tokens, a.n_batches) == (b.n_tokens, b.n_batches)
    for name in a.shared:
        assert np.array_equal(a.moments(name).m2, b.moments(name).m2)
        assert np.array_equal(a.moments(name).mean, b.moments(name).mean)
        assert np.array_equal(a.scale(name), b.scale(name))
        if a.gradients:
            assert np.array_equal(a.outputs(name).m2, b.outputs(name).m2)
            assert np.array_equal(a.importance(name), b.importance(name))


@pytest.mark.parametrize("gradients", [False, True])
def test_it_goes_on_to_the_same_bits(model, stream, tmp_path, gradients):
    file, seen = tmp_path / "c.npz", []
    options = {"gradients": gradients, "seed": 3}
    whole = calibrate(model, stream, **options)
    assert whole.n_batches == len(stream) > 3
    with pytest.raises(StopError):
        calibrate(model, stream, checkpoint=file, every=0, progress=stopping(3), **options)
    assert 1 <= Calibration.load(file).n_batches <= 3
    assert [one.name for one in tmp_path.iterdir()] == ["c.npz"]
    found = calibrate(
        model, stream, checkpoint=file, progress=lambda done, _: seen.append(done), **options
    )
    same(found, whole)
    assert 1 < seen[0] <= 4
    assert seen[-1] == len(stream)
    # one that is whole is read, and nothing runs
    same(calibrate(model, stream, checkpoint=file, progress=stopping(1), **options), whole)


def test_seconds_between_checkpoints(model, stream, tmp_path):
    with pytest.raises(StopError):
        calibrate(model, stream, checkpoint=tmp_path / "c.npz", progress=stopping(3))
    assert not list(tmp_path.iterdir())  # no minute has passed


def test_what_is_not_of_this_run_is_refused(model, stream, tmp_path):
    file = tmp_path / "c.npz"
    calibrate(model, stream, checkpoint=file)
    for batches, options, what in (
        (stream, {"gradients": True}, "gradients"),
        (stream, {"modules": "model.layers.*.mlp.up_proj"}, "layers"),
        (stream[:2], {}, "tokens"),
        (tokenize(model, [TEXT[40:]], window=11, max_tokens=150, batch_size=2), {}, "tokens"),
    ):
        with pytest.raises(InvalidArgumentError, match=f"must be of this run, got .* other {what}"):
            calibrate(model, batches, checkpoint=file, **options)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(FileFormatError, match="must be a whole calibration"):
        calibrate(model, stream, checkpoint=file)
    with pytest.raises(InvalidArgumentError, match="every must be in"):
        calibrate(model, stream, every=-1.0)


def test_a_compression_goes_on_in_its_calibration(model, tmp_path, monkeypatch):
    options = {"methods": "whitened-svd", "kept": 0.7, "store": False, "tokens": 320,
               "eval_tokens": 64, "window": 16}  # fmt: skip
    whole = compress(model, TEXT, out=tmp_path / "whole", **options)
    monkeypatch.setattr(_job, "_CHECKPOINT", 0.0)

    def stop(stage, done, total):
        if stage == "calibration" and done == total - 1:
            raise StopError

    with pytest.raises(StopError):
        compress(model, TEXT, out=tmp_path / "parts", progress=stop, **options)
    seen = []
    parts = compress(
        model, TEXT, out=tmp_path / "parts", resume=True,
        progress=lambda stage, done, _: seen.append((stage, done)), **options,
    )  # fmt: skip
    assert next(done for stage, done in seen if stage == "calibration") > 1
    assert parts.report["points"] == whole.report["points"]
    assert parts.report["facts"]["resumed"]


@pytest.mark.slow
def test_a_process_that_is_killed(tiny, model, stream, tmp_path):
    file = tmp_path / "c.npz"
    code = (
        "import os, signal, sys\n"
        "from conftest import TEXT\n"
        "from subspan.activations import load_model, tokenize\n"
        "from subspan.compression import calibrate\n"
        "model = load_model(sys.argv[1])\n"
        "stream = tokenize(model, [TEXT], window=16, max_tokens=150, batch_size=2)\n"
        "def stop(done, total):\n"
        "    if done == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        "calibrate(model, stream, checkpoint=sys.argv[2], every=0, progress=stop)\n"
    )
    path = os.pathsep.join([*sys.path, str(Path(__file__).parent)])
    done = subprocess.run(
        [sys.executable, "-c", code, str(tiny), str(file)],
        env=os.environ | {"PYTHONPATH": path}, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    assert 1 <= Calibration.load(file).n_batches <= 3
    same(calibrate(model, stream, checkpoint=file), calibrate(model, stream))
