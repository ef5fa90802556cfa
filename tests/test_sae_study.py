"""The whole job on a tiny model, by Python and by the command line, stopped and gone on with."""

import json
import re

import numpy as np
import pytest
from conftest import TEXT
from subspan.activations import ActivationStore, OutlierRule, load_model
from subspan.cli import app
from subspan.errors import InvalidArgumentError, OutputError
from subspan.sae import study
from subspan.sae.formats import load
from test_report_page import checked
from typer.testing import CliRunner

OPTIONS = {
    "site": "layer.01/resid", "k": 4, "expansion": 2, "steps": 60, "batch_size": 64, "lr": 3e-3,
    "log_every": 10, "held_out": 0.2, "window": 32,
}  # fmt: skip


def run(*args):
    done = CliRunner().invoke(app, ["sae", *(str(arg) for arg in args)])
    return done, re.sub(r"\s+", " ", done.output)


@pytest.fixture(autouse=True)
def _without_pictures(request, monkeypatch):
    """Drawing takes most of the time of a small report; `made` comes first and has its own."""
    request.getfixturevalue("made")
    monkeypatch.setattr("subspan.sae.cards._job.pictures", lambda _: iter(()))


@pytest.fixture(scope="module")
def model(tiny):
    return load_model(tiny)


@pytest.fixture(scope="module")
def text(tiny):
    path = tiny.parent / "train.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="module")
def made(tiny, text, tmp_path_factory):
    """What the command makes."""
    out = tmp_path_factory.mktemp("study") / "out"
    done, said = run(
        *("train", tiny, text, "--out", out, "--layer", 1, "--k", 4, "--expansion", 2),
        *("--steps", 60, "--batch-size", 64, "--lr", 3e-3, "--held-out", 0.2, "--window", 32),
        *("--option", "log_every=10"),
    )
    assert done.exit_code == 0, done.output
    assert "on text that it was not trained on" in said
    assert "Report:" in said
    return out


def test_the_command_does_the_whole_job(made):
    names = {entry.name for entry in made.iterdir()}
    assert names == {
        *("report.html", "report.json", "features.safetensors", "figures"),
        *("sae", "store", "training"),
    }
    report = json.loads((made / "report.json").read_text("utf-8"))
    assert report["sae"]["n_latents"] == 64
    assert report["settings"]["site"] == "layer.01/resid"
    assert report["settings"]["held_out"] == 0.2
    assert report["training"]["steps"] == 60
    assert len(report["training"]["log"]) == 6
    assert report["training"]["tokens_per_second"] > 0
    assert set(report["figures"]) == {"overview", "training"}
    store = ActivationStore(made / "store")
    found = report["evaluation"]
    assert 0.1 * store.n_tokens < found["n_tokens"] < 0.3 * store.n_tokens
    assert found["n_tokens"] < report["metrics"]["n_rows"] == store.n_tokens
    assert found["reconstruction"]["explained_variance"] > 0.5
    sae = load(made / "sae")
    assert (sae.architecture, sae.width, sae.n_latents) == ("topk", 32, 64)
    assert sae.metadata["site"] == "layer.01/resid"
    checked((made / "report.html").read_text("utf-8"))


def test_python_gives_the_same_also_after_interruptions(made, model, text, tmp_path):
    out, seen = tmp_path / "out", []

    def stop_at(stage, least):
        def progress(name, done, total):
            seen.append((name, done, total))
            if name == stage and done >= least:
                raise KeyboardInterrupt

        return progress

    for stage, least in (("activations", 300), ("training", 30), ("evaluation", 2)):
        with pytest.raises(KeyboardInterrupt):
            study(model, text, out=out, progress=stop_at(stage, least), **OPTIONS)
        assert not (out / "report.html").exists()
    seen.clear()
    result = study(model, text, out=out, resume=True, progress=stop_at("", 0), **OPTIONS)
    assert {name for name, _, _ in seen}.isdisjoint({"activations", "training"})
    whole = json.loads((made / "report.json").read_text("utf-8"))
    assert result.report["facts"]["resumed"]
    for part in ("sae", "metrics", "evaluation", "histograms", "by_position"):
        assert json.loads(json.dumps(result.report[part])) == whole[part], part
    weights = [(folder / "sae" / "sae_weights.safetensors").read_bytes() for folder in (made, out)]
    assert weights[0] == weights[1]
    with pytest.raises(OutputError, match="finished run"):
        study(model, text, out=out, **OPTIONS)
    again = study(model, text, out=out, overwrite=True, **{**OPTIONS, "steps": 20})
    assert again.report["training"]["steps"] == 20


def test_a_store_serves_too(made, model, tmp_path):
    store = made / "store"
    bare = study(
        store, out=tmp_path / "bare", architecture="batch_topk", k=3, expansion=2, steps=20,
        batch_size=64, held_out=0, exclude=OutlierRule(first_token="drop"),
    )  # fmt: skip
    assert bare.report["evaluation"] is None
    assert "promoted" not in (tmp_path / "bare" / "features.safetensors").read_bytes().decode(
        "latin1"
    )
    windows = len(np.flatnonzero(ActivationStore(store).tokens().first_in_window))
    assert bare.report["source"]["n_excluded"] == windows
    assert not (tmp_path / "bare" / "store").exists()
    full = study(
        store, model=model, out=tmp_path / "full", k=3, expansion=2, steps=20, batch_size=64,
        eval_tokens=100,
    )  # fmt: skip
    assert full.report["evaluation"]["n_tokens"] <= 100
    assert full.report["settings"]["logits"]


def test_eval_report_and_convert(made, tiny, text, tmp_path):
    done, said = run("eval", made / "sae", tiny, text, "--tokens", 200, "--json", "--quiet")
    assert done.exit_code == 0, done.output
    found = json.loads(done.output)
    assert found["site"] == "layer.01/resid"
    assert found["n_tokens"] == 200
    done, said = run("eval", made / "sae", tiny, text, "--tokens", 200)
    assert f"cross_entropy.clean {found['cross_entropy']['clean']:.6g}" in said
    assert "ce_recovered.zero" in said
    done, said = run(
        "report", made / "sae", tiny, text, "--out", tmp_path / "page", "--tokens", 300
    )
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "page" / "report.json").read_text())["evaluation"] is not None
    done, said = run("report", made / "sae", made / "store", "--out", tmp_path / "other")
    assert done.exit_code == 0, done.output
    before = load(made / "sae")
    x = np.random.default_rng(0).normal(size=(5, 32)).astype(np.float32)
    for name in ("saelens", "sparsify", "dictionary_learning", "subspan"):
        done, said = run("convert", made / "sae", tmp_path / name, "--to", name)
        assert done.exit_code == 0, done.output
        assert np.allclose(load(tmp_path / name).reconstruct(x), before.reconstruct(x), atol=1e-5)


def test_refusals(made, model, tiny, text, tmp_path):
    out = tmp_path / "out"
    cases = [
        (["train", tiny, text], "--out must name a folder"),
        (["train", tiny, "--out", out], "texts must be given"),
        (["train", made / "store", text, "--out", out], "texts must be left out"),
        (
            ["train", tiny, text, "--out", out, "--layer", 1, "--site", "layer.01/mlp"],
            "at most one",
        ),
        (["train", tiny, text, "--out", out, "--option", "log"], "NAME=VALUE"),
        (["train", tiny, text, "--out", out, "--report-tokens", "few"], "number or 'all'"),
        (["train", tiny, text, "--out", out, "--held-out", 0.9], "held_out must be in"),
        (["eval", tmp_path, tiny, text], "sae_weights.safetensors"),
        (["eval", made / "sae", tiny, text, "--tokens", 0], "number or 'all'"),
        (["convert", made / "sae", out, "--to", "elsewhere"], "format must be one of"),
        (["report", made / "sae", made / "store", "--out", made], "not written by subspan"),
    ]
    for args, message in cases:
        done, said = run(*args)
        assert done.exit_code == 2, (args, said)
        assert message in said, (args, said)
        assert "Traceback" not in said
    with pytest.raises(InvalidArgumentError, match="which names"):
        study(model, text, out=tmp_path / "a", **{**OPTIONS, "site": "resid"})
    few = {**OPTIONS, "tokens": 40, "held_out": 0.5, "window": 1}
    few["exclude"] = OutlierRule(first_token="drop")
    with pytest.raises(InvalidArgumentError, match="leave tokens to train on"):
        study(model, text, out=tmp_path / "b", **few)
    with pytest.raises(OutputError, match="other settings"):
        study(model, text, out=tmp_path / "b", **{**few, "k": 5})
