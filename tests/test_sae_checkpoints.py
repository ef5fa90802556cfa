"""Runs with a folder: what is written, kills, a full disk, damage, and going on to the bit."""

import csv
import errno
import json
import signal
import sys
import types

import pytest
from subspan.errors import FileFormatError, InvalidArgumentError, OutputError, UnsupportedError

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")
from safetensors.torch import load_file, save_file  # noqa: E402
from subspan.sae import Autoencoder, TopKSAE, TrainConfig, Trainer, train  # noqa: E402
from subspan.sae.training.checkpoints import (  # noqa: E402
    latest_checkpoint,
    read_checkpoint,
    write_checkpoint,
)

D, N = 8, 24
ROWS = torch.randn(400, D, generator=torch.Generator().manual_seed(1))
SETTINGS = {"steps": 10, "batch_size": 40, "lr": 1e-2, "init_rows": 80, "dead_after_tokens": 100}
SETTINGS |= {"log_every": 2, "checkpoint_every": 3}


def sae(seed=0):
    return TopKSAE(D, N, k=3, seed=seed)


class Stop(Exception):
    pass


def stop_at(step):
    def progress(stage, done, total):
        assert (stage, total) == ("training", 10)
        if done == step:
            raise Stop

    return progress


def interrupted(out, step, **change):
    with pytest.raises(Stop):
        train(sae(), ROWS, out=out, progress=stop_at(step), **SETTINGS | change)


def results(out):
    """Weights, state, and the log without what depends on the clock."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        assert line.pop("tokens_per_second") > 0
    return load_file(out / "checkpoint.safetensors"), lines


def same(a, b):
    assert a[0].keys() == b[0].keys()
    assert all(torch.equal(x, b[0][name]) for name, x in a[0].items())
    assert a[1] == b[1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody disturbed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    train(sae(), ROWS, out=out, held_out=ROWS[:50], eval_every=4, **SETTINGS)
    return out


def test_what_a_finished_run_leaves(whole):
    names = {path.name for path in whole.iterdir()}
    assert names == {
        *("sae", "training.json", "metrics.csv", "metrics.jsonl"),
        "checkpoint.safetensors",
    }
    facts = json.loads((whole / "training.json").read_text())
    assert (facts["architecture"], facts["steps"], facts["tokens"]) == ("topk", 10, 400)
    assert facts["config"]["batch_size"] == 40
    assert facts["metrics"]["held_out.explained_variance"] <= 1
    loaded = Autoencoder.load(whole / "sae")
    weights = read_checkpoint(whole / "checkpoint.safetensors", architecture="topk").tensors
    assert torch.equal(torch.as_tensor(loaded.w_dec), weights["sae.w_dec"])


def test_the_table_and_the_lines_say_the_same(whole):
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    with (whole / "metrics.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 10]
    for line, row in zip(lines, table, strict=True):
        assert {name: float(x) for name, x in row.items() if x} == line
    evaluated = [line["step"] for line in lines if "held_out.mse" in line]
    assert evaluated == [4, 8, 10]


@pytest.mark.parametrize("step", [1, 3, 8, 10])
def test_an_interrupted_run_goes_on_to_the_bit(step, whole, tmp_path):
    change = {"held_out": ROWS[:50], "eval_every": 4}
    interrupted(tmp_path / "run", step, **change)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {".run"}
    other = sae(seed=9)  # what it begins with is overwritten, or the seed's own start
    if step < 3:
        other = sae()
    done = train(other, ROWS, out=tmp_path / "run", resume=True, **SETTINGS | change)
    same(results(whole), results(tmp_path / "run"))
    assert done.metrics["step"] == 10


def test_a_killed_run_goes_on_to_the_bit(whole, tmp_path, run_python):
    """SIGKILL while a checkpoint is being written: the half of it never had its name."""
    code = f"""
import os, signal, torch
from subspan.report import files
from subspan.sae import TopKSAE, train
rows = torch.randn(400, {D}, generator=torch.Generator().manual_seed(1))
write = files._open
def killing(path):
    if "checkpoint-000000006" in str(path):
        file = write(path)
        file.write(b"half of it")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    return write(path)
files._open = killing
train(TopKSAE({D}, {N}, k=3), rows, out={str(tmp_path / "run")!r}, held_out=rows[:50],
      eval_every=4, **{SETTINGS!r})
"""
    assert run_python(code, check=False).returncode == -signal.SIGKILL
    train(sae(), ROWS, out=tmp_path / "run", held_out=ROWS[:50], eval_every=4, **SETTINGS)
    same(results(whole), results(tmp_path / "run"))


def test_a_full_disk_leaves_the_last_checkpoint(whole, tmp_path, monkeypatch):
    from subspan.report import files

    write, out = files._open, tmp_path / "run"

    def full(path):
        if "checkpoint-000000006" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path)

    monkeypatch.setattr(files, "_open", full)
    with pytest.raises(OutputError, match=r"disk is full: checkpoint-000000006\.safetensors needs"):
        train(sae(), ROWS, out=out, held_out=ROWS[:50], eval_every=4, **SETTINGS)
    assert [path.name for path in (out / ".run").glob("*checkpoint*")] == [
        "checkpoint-000000003.safetensors"
    ]
    monkeypatch.undo()
    train(sae(), ROWS, out=out, held_out=ROWS[:50], eval_every=4, **SETTINGS)
    same(results(whole), results(out))


def test_only_the_latest_checkpoints_are_kept(tmp_path):
    interrupted(tmp_path / "run", 10, checkpoint_every=1, keep_checkpoints=2)
    found = sorted(path.name for path in (tmp_path / "run" / ".run").glob("checkpoint-*"))
    assert found == ["checkpoint-000000009.safetensors", "checkpoint-000000010.safetensors"]


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path):
    trainer = Trainer(sae(), ROWS, TrainConfig(**SETTINGS))
    for _ in range(3):
        trainer.step()
        path = write_checkpoint(tmp_path, trainer.checkpoint())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="The one before it is used"):
        found = latest_checkpoint(tmp_path)
    assert found.about["step"] == 2
    for path in tmp_path.iterdir():
        path.write_bytes(b"nothing")
    with (
        pytest.warns(UserWarning, match="The one before it is used"),
        pytest.raises(FileFormatError, match="must be a whole checkpoint"),
    ):
        latest_checkpoint(tmp_path)


def test_other_settings_and_architectures_are_refused(tmp_path, whole):
    interrupted(tmp_path / "run", 5)
    with pytest.raises(OutputError, match=r"lr: 0\.01 before, 0\.1 now"):
        train(sae(), ROWS, out=tmp_path / "run", **SETTINGS | {"lr": 0.1})
    with pytest.raises(InvalidArgumentError, match="architecture 'relu', got one of 'topk'"):
        read_checkpoint(whole / "checkpoint.safetensors", architecture="relu")
    save_file({"x": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(FileFormatError, match="must be a checkpoint"):
        read_checkpoint(tmp_path / "other.safetensors")
    with pytest.raises(OutputError, match="holds a finished run"):
        train(sae(), ROWS, out=whole, **SETTINGS)
    with pytest.raises(InvalidArgumentError, match="resume needs a folder with an interrupted"):
        train(sae(), ROWS, out=tmp_path / "new", resume=True, **SETTINGS)


def test_a_run_may_be_replaced(tmp_path):
    train(sae(), ROWS, out=tmp_path, **SETTINGS)
    train(sae(), ROWS, out=tmp_path, overwrite=True, **SETTINGS | {"steps": 4})
    assert json.loads((tmp_path / "training.json").read_text())["steps"] == 4


# ---- what it says meanwhile -------------------------------------------------------------------


def test_the_bar_and_the_listeners(capsys):
    pytest.importorskip("rich")
    heard = []
    train(sae(), ROWS, progress=True, on_metrics=heard.append, **SETTINGS)
    assert [line["step"] for line in heard] == [2, 4, 6, 8, 10]
    printed = capsys.readouterr().out
    assert "10/10" in printed
    assert "L0 3.0 dead 0%" in printed
    assert "…" not in printed


def fakes(monkeypatch):
    """Stand-ins for both dashboards, as neither is installed everywhere."""
    taken = []

    class Writer:
        def __init__(self, folder):
            taken.append(("open", folder.rpartition("/")[2]))

        def add_text(self, name, text):
            taken.append((name, json.loads(text)["batch_size"]))

        def add_scalar(self, name, value, step):
            taken.append((name, value, step))

        def close(self):
            taken.append("closed")

    class Run:
        def log(self, values, step):
            taken.append((values, step))

        def finish(self):
            taken.append("finished")

    board = types.SimpleNamespace(SummaryWriter=Writer)
    wandb = types.SimpleNamespace(init=lambda **given: taken.append(given) or Run())
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    return taken


def test_dashboards_hear_what_the_log_says(tmp_path, monkeypatch):
    taken = fakes(monkeypatch)
    change = {"steps": 2, "out": tmp_path / "run", "loggers": ("tensorboard", "wandb")}
    done = train(sae(), ROWS, **SETTINGS | change)
    assert ("open", "tensorboard") in taken
    assert ("settings", 40) in taken
    assert ("loss", done.metrics["loss"], 2) in taken
    logged = [entry for entry in taken if isinstance(entry, tuple) and isinstance(entry[0], dict)]
    assert [step for _, step in logged] == [2]
    assert logged[0][0]["l0"] == done.metrics["l0"]
    assert taken[-2:] == ["finished", "closed"]


def test_a_dashboard_that_is_not_there_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UnsupportedError, match="pip install wandb"):
        train(sae(), ROWS, out=tmp_path / "a", loggers=["wandb"], **SETTINGS)
    with pytest.raises(InvalidArgumentError, match="loggers must be one of 'tensorboard', 'wandb'"):
        train(sae(), ROWS, out=tmp_path / "b", loggers=["mlflow"], **SETTINGS)


def test_a_line_that_was_cut_off_is_dropped(tmp_path):
    from subspan.sae.training.logs import FileLog

    log = FileLog(tmp_path)
    log.write({"step": 1, "loss": 0.5})
    log.write({"step": 2, "loss": 0.25, "new": float("nan")})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    again = FileLog(tmp_path, step=1)
    assert again.rows == [{"step": 1, "loss": 0.5}]
    again.write({"step": 2, "loss": 0.125})
    assert (tmp_path / "metrics.csv").read_text() == "step,loss\n1,0.5\n2,0.125\n"
