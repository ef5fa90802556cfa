"""The job and its command: points, allocations, resuming, pages, refusals."""

import json
import re

import numpy as np
import pytest
from conftest import TEXT
from subspan.activations import load_model
from subspan.cli import app
from subspan.compression import Compression, compress, load, perplexity
from subspan.compression._methods import METHODS
from subspan.compression._reading import read
from subspan.errors import DtypeError, InvalidArgumentError, OutputError, UnsupportedError
from test_report_page import checked
from typer.testing import CliRunner

pytest.importorskip("torch")
pytest.importorskip("transformers")

OTHER = "red house red house the mat the mat . cat dog cat dog ran ran ran to the . " * 8
SMALL = {"tokens": 200, "eval_tokens": 64, "window": 32, "iterations": 2}


@pytest.fixture(scope="module")
def model(tiny):
    return load_model(tiny)


@pytest.fixture(scope="module")
def all_of_it(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("all") / "out"
    return compress(
        model, TEXT, out=out, methods=METHODS, kept=(0.6, 0.9), allocations=("uniform", "loss"),
        out_of_domain=OTHER, **SMALL,
    )  # fmt: skip


def test_every_point_is_within_its_bytes(all_of_it):
    report = all_of_it.report
    assert len(report["points"]) == len(METHODS) * 2 * 2
    for point in report["points"]:
        assert point["kept_bytes"] <= point["kept"] + 1e-9, point["method"]
        assert point["bytes"] == sum(row["bytes"]["total"] for row in point["layers"])
        assert len(point["layers"]) == len(report["weights"]) == 21
        if point["allocation"] == "loss" and point["method"] not in METHODS[-2:]:
            assert point["kept_bytes"] > point["kept"] - 0.02  # the budget is spent
        assert all(0 <= row["relative_error"] < 1.5 for row in point["layers"])
        coded = [row for row in point["layers"] if row["kind"] == "dictionary"]
        assert all(row["bytes"]["codes_idx"] > 0 for row in coded)
        assert bool(coded) == point["method"].endswith("dictionary")
    assert report["calibration"]["inputs"] == 12
    assert [text["domain"] for text in report["texts"]] == ["in", "out"]


def test_less_kept_is_a_larger_error(all_of_it):
    found = {}
    for point in all_of_it.report["points"]:
        errors = [row["relative_error"] for row in point["layers"]]
        found[point["method"], point["allocation"], point["kept"]] = np.square(errors).sum()
    for method in METHODS:
        assert found[method, "uniform", 0.6] > found[method, "uniform", 0.9]
    for kept in (0.6, 0.9):
        for other in ("svd", "asvd", "fwsvd"):
            best = found["whitened-svd", "uniform", kept]
            assert best <= found[other, "uniform", kept] * (1 + 1e-6)


def test_stored_models_have_the_perplexities_that_are_reported(all_of_it, tiny, model):
    report = all_of_it.report
    name = report["texts"][0]["name"]
    reading = read(
        model, TEXT, None, OTHER, tokens=200, eval_tokens=64, window=32, seed=0
    )  # fmt: skip
    dense = perplexity(model, reading.evaluation[0].batches).value
    assert report["dense"]["perplexity"][name] == pytest.approx(dense, rel=1e-6)
    for folder in ("whitened-svd-loss-0.6", "ksvd-dictionary-uniform-0.6"):
        fresh = load_model(tiny)
        load(all_of_it.path / "models" / folder, fresh)
        found = perplexity(fresh, reading.evaluation[0].batches).value
        key = (*re.fullmatch(r"(.*)-(\w+)-[\d.]+", folder).groups(), 0.6)
        assert found == pytest.approx(all_of_it.perplexities(name)[key], rel=1e-6)
        notes = json.loads((all_of_it.path / "models" / folder / "compressed.json").read_text())
        assert notes["calibration"] == report["calibration"]["hash"]
    with pytest.raises(InvalidArgumentError, match="text must be one of"):
        all_of_it.perplexities("nowhere")


def test_the_page(all_of_it):
    html = all_of_it.page.read_text("utf-8")
    checked(html)
    for word in ("out of domain", "Index bytes", "two-sided-svd, loss", "orthogonal-dictionary"):
        assert word in html
    assert "of the bytes kept" in all_of_it.summary
    assert Compression.load(all_of_it.path).report == json.loads(json.dumps(all_of_it.report))
    drawn = list(all_of_it.report["figures"])
    assert drawn[0] == "quality"
    assert len(drawn) == 4  # and the best three of all runs
    assert all(name.startswith("layers-") for name in drawn[1:])


def test_an_interrupted_run_goes_on(model, tmp_path):
    options = SMALL | {"methods": "svd", "kept": (0.8, 0.5, 0.3), "store": False}
    whole = compress(model, TEXT, out=tmp_path / "whole", **options)

    class Stop(Exception):
        pass

    def stop(stage, done, total):  # noqa: ARG001
        if stage == "points" and done == 2:
            raise Stop

    with pytest.raises(Stop):
        compress(model, TEXT, out=tmp_path / "parts", progress=stop, **options)
    before = perplexity(model, read(model, TEXT, None, None, tokens=32, eval_tokens=32,
                                    window=32, seed=0).calibration)  # fmt: skip
    with pytest.raises(OutputError, match="interrupted run with other settings"):
        compress(model, TEXT, out=tmp_path / "parts", **options | {"kept": 0.4})
    seen = []
    parts = compress(
        model, TEXT, out=tmp_path / "parts", resume=True,
        progress=lambda stage, done, _: seen.append((stage, done)), **options,
    )  # fmt: skip
    assert "calibration" not in {stage for stage, _ in seen}
    assert parts.report["points"] == whole.report["points"]
    assert parts.report["facts"]["resumed"]
    assert not (parts.path / "models").exists()
    after = perplexity(model, read(model, TEXT, None, None, tokens=32, eval_tokens=32,
                                   window=32, seed=0).calibration)  # fmt: skip
    assert before == after  # the model is as it was


def test_the_command(tiny, tmp_path):
    text = tiny.parent / "text.txt"
    (tmp_path / "other.txt").write_text(OTHER)
    line = ["compress", tiny, text, "--out", tmp_path / "out", "--kept", "0.7", "--method", "svd",
            "--tokens", 100, "--eval-tokens", 64, "--window", 32, "--no-store",
            "--evaluate", tmp_path / "other.txt",
            "--modules", "model.layers.*.mlp.*_proj"]  # fmt: skip
    done = CliRunner().invoke(app, [str(word) for word in line])
    assert done.exit_code == 0, done.output
    assert "of the bytes kept" in re.sub(r"\s+", " ", done.output)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert len(report["weights"]) == 9
    assert [one["name"] for one in report["texts"]] == ["other.txt"]
    bad = CliRunner().invoke(app, [*map(str, line[:5]), "--kept", "most", "--overwrite"])
    assert bad.exit_code == 2
    assert "kept must be numbers with commas" in re.sub(r"\s+", " ", bad.output)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"methods": "magic"}, InvalidArgumentError, "methods must be one of 'svd'"),
        ({"methods": ()}, InvalidArgumentError, "methods must name at least one"),
        ({"allocations": "fair"}, InvalidArgumentError, "allocations must be one of 'uniform'"),
        ({"kept": 0.0}, InvalidArgumentError, r"kept must be in \(0, 1\], got \[0\.0\]"),
        ({"kept": 1.5}, InvalidArgumentError, "kept must be in"),
        ({"kept": ()}, InvalidArgumentError, r"kept must be in \(0, 1\], got \[\]"),
        ({"kept": 0.01}, InvalidArgumentError, "kept must leave room for rank 1"),
        ({"kept": 0.2, "allocations": "error", "least": 0.5}, InvalidArgumentError,
         r"kept must be at least 0\.5\d+ where no matrix may fall below 0\.5"),
        ({"tokens": 1}, InvalidArgumentError, "tokens must be >= 2"),
        ({"seed": 0.5}, DtypeError, "seed must be an integer"),
        ({"least": 2}, InvalidArgumentError, "least must be in"),
        ({"ratio": 0}, InvalidArgumentError, "ratio must be in"),
        ({"iterations": 0}, InvalidArgumentError, "iterations must be >= 1"),
        ({"dtype": "int4"}, InvalidArgumentError, "dtype must be one of 'float16'"),
        ({"modules": "model.layers.*.qproj"}, InvalidArgumentError, "matches none. Nearby names"),
        ({"modules": "lm_head", "texts": []}, InvalidArgumentError, "texts must hold calibration"),
        ({"texts": "the cat"}, InvalidArgumentError, "must have two windows of 32 tokens or more"),
        ({"evaluation": "cat"}, InvalidArgumentError, "cannot judge: .* windows of two tokens"),
    ],
)  # fmt: skip
def test_what_is_refused(model, tmp_path, options, error, message):
    settings = SMALL | {"methods": "svd", "store": False} | options
    with pytest.raises(error, match=message):
        compress(model, settings.pop("texts", TEXT), out=tmp_path / "out", **settings)


def test_encoders_and_folders_are_refused(tmp_path):
    import transformers

    config = transformers.BertConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=24,
    )  # fmt: skip
    encoder = load_model(transformers.BertModel(config))
    with pytest.raises(UnsupportedError, match="must be a causal language model, got the enc"):
        compress(encoder, TEXT, out=tmp_path / "out")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"which holds 'notes\.txt'"):
        compress(encoder, TEXT, out=tmp_path / "foreign")
