"""The study of rotations and its command: points, bits, resuming, pages, refusals."""

import json
import re

import pytest
from conftest import TEXT
from subspan.activations import load_model
from subspan.cli import app
from subspan.compression import RotationReport, load, perplexity, rotate
from subspan.compression._reading import read
from subspan.errors import DtypeError, InvalidArgumentError, OutputError, UnsupportedError
from test_report_page import checked
from typer.testing import CliRunner

pytest.importorskip("torch")
pytest.importorskip("transformers")

OTHER = "red house red house the mat the mat . cat dog cat dog ran ran ran to the . " * 8
SMALL = {"tokens": 200, "eval_tokens": 64, "window": 32, "block": 16}
SCHEMES = ("none", "hadamard", "outliers", "pca", "resq")


@pytest.fixture(scope="module")
def model(tiny):
    return load_model(tiny)


@pytest.fixture(scope="module")
def all_of_it(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("all") / "out"
    return rotate(model, TEXT, out=out, schemes=SCHEMES, bits=(8, 4), out_of_domain=OTHER, **SMALL)


def test_every_point_has_its_bits(all_of_it):
    report = all_of_it.report
    runs = [(point["scheme"], point["bits"]) for point in report["points"]]
    mixed = [(scheme, 4) for scheme in SCHEMES[2:]]
    assert runs == [("none", 4), ("none", 8), ("hadamard", 4), ("hadamard", 8), *mixed]
    numbers = sum(m * n for m, n in (row["shape"] for row in report["weights"]))
    for point in report["points"]:
        inside = sum(row["bytes"]["total"] for row in point["layers"])
        assert point["bytes"] == inside + point["basis_bytes"]
        assert point["weight_bits"] == pytest.approx(8 * point["bytes"] / numbers)
        wanted = point["bits"] if point["scheme"] in {"none", "hadamard"} else 4.5
        assert point["integer_bits"] == pytest.approx(wanted)  # 32, 48 / 3 and 8: eighths
        assert wanted < point["activation_bits"] < wanted + 4
        assert point["cache_bytes"] * 8 == pytest.approx(point["cache_bits"] * 3 * 2 * 2 * 8)
        assert len(point["layers"]) == 21
        assert len(point["cached"]) == 6
        assert all(0 < row["weight_error"] < 0.3 for row in point["layers"])
        assert all(0 < row["input_error"] < 0.5 for row in point["layers"])
    assert report["points"][0]["basis_bytes"] == 0
    alone = report["dense"]["rotation_alone"]
    assert alone["scheme"] == "resq"
    assert alone["logits_moved"] < 1e-4 * alone["logits_size"]
    for found in report["spectra"].values():
        for name in ("channels", "principal", "rotated"):
            assert sum(found[name]) == pytest.approx(1, abs=1e-5)
        assert 0 < found["high_share"] <= 1


def test_more_bits_are_a_smaller_error(all_of_it):
    mean = {}
    for point in all_of_it.report["points"]:
        rows = point["layers"]
        mean[point["scheme"], point["bits"]] = sum(row["input_error"] for row in rows) / len(rows)
    assert mean["none", 8] < 0.2 * mean["none", 4]
    assert mean["resq", 4] < mean["none", 4]
    assert mean["resq", 4] < mean["hadamard", 4]


def test_stored_models_have_the_perplexities_that_are_reported(all_of_it, tiny, model):
    report = all_of_it.report
    name = report["texts"][0]["name"]
    reading = read(model, TEXT, None, OTHER, tokens=200, eval_tokens=64, window=32, seed=0)
    dense = perplexity(model, reading.evaluation[0].batches).value
    assert report["dense"]["perplexity"][name] == pytest.approx(dense, rel=1e-6)
    for scheme, bits in (("resq", 4), ("none", 8)):
        fresh = load_model(tiny)
        load(all_of_it.path / "models" / f"{scheme}-{bits}", fresh)
        found = perplexity(fresh, reading.evaluation[0].batches).value
        assert found == pytest.approx(all_of_it.perplexities(name)[scheme, bits], rel=1e-4)
        file = all_of_it.path / "models" / f"{scheme}-{bits}" / "compressed.safetensors"
        (point,) = (p for p in report["points"] if (p["scheme"], p["bits"]) == (scheme, bits))
        content = file.read_bytes()
        header = 8 + int.from_bytes(content[:8], "little")
        assert len(content) - header == point["bytes"]
    with pytest.raises(InvalidArgumentError, match="text must be one of"):
        all_of_it.perplexities("nowhere")


def test_the_page(all_of_it):
    html = all_of_it.page.read_text("utf-8")
    checked(html)
    for word in ("out of domain", "ResQ, 4 bits", "Bits a weight", "principal axes"):
        assert word in html
    assert "a weight with scales and bases" in all_of_it.summary
    assert RotationReport.load(all_of_it.path).report == json.loads(json.dumps(all_of_it.report))
    drawn = list(all_of_it.report["figures"])
    assert drawn[:2] == ["quality", "spectra"]
    assert len(drawn) == 5  # and the best three of the fewest bits
    for one in all_of_it.report["figures"].values():
        assert (all_of_it.path / one["png"]).stat().st_size > 1000


def test_an_interrupted_run_goes_on(model, tmp_path):
    options = SMALL | {"schemes": ("none", "resq"), "bits": 4, "parts": ("activations", "cache")}
    whole = rotate(model, TEXT, out=tmp_path / "whole", **options)

    class Stop(Exception):
        pass

    def stop(stage, done, total):  # noqa: ARG001
        if stage == "points" and done == 1:
            raise Stop

    before = perplexity(model, read(model, TEXT, None, None, tokens=32, eval_tokens=32,
                                    window=32, seed=0).calibration)  # fmt: skip
    with pytest.raises(Stop):
        rotate(model, TEXT, out=tmp_path / "parts", progress=stop, **options)
    with pytest.raises(OutputError, match="interrupted run with other settings"):
        rotate(model, TEXT, out=tmp_path / "parts", **options | {"bits": 3})
    seen = []
    parts = rotate(
        model, TEXT, out=tmp_path / "parts", resume=True,
        progress=lambda stage, done, _: seen.append((stage, done)), **options,
    )  # fmt: skip
    assert "calibration" not in {stage for stage, _ in seen}
    assert parts.report["points"] == whole.report["points"]
    assert parts.report["facts"]["resumed"]
    assert not (parts.path / "models").exists()  # weights were not rounded
    assert all(point["integer_bits"] == 16 for point in parts.report["points"])
    after = perplexity(model, read(model, TEXT, None, None, tokens=32, eval_tokens=32,
                                   window=32, seed=0).calibration)  # fmt: skip
    assert before == after


def test_the_command(tiny, tmp_path):
    text = tiny.parent / "text.txt"
    (tmp_path / "other.txt").write_text(OTHER)
    line = ["rotate", tiny, text, "--out", tmp_path / "out", "--scheme", "resq", "--bits", "4",
            "--high", "1/4", "--round", "weights", "--tokens", 100, "--eval-tokens", 64,
            "--window", 32, "--no-store", "--no-clip",
            "--evaluate", tmp_path / "other.txt"]  # fmt: skip
    done = CliRunner().invoke(app, [str(word) for word in line])
    assert done.exit_code == 0, done.output
    assert "At 4 bits, ResQ (5.00 bits an integer" in re.sub(r"\s+", " ", done.output)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [one["name"] for one in report["texts"]] == ["other.txt"]
    assert not report["points"][0]["cached"]
    for option, value, message in (
        ("--bits", "few", "bits must be whole numbers with commas"),
        ("--high", "most", "high must be a fraction such as 1/8"),
    ):
        bad = CliRunner().invoke(app, [*map(str, line[:5]), option, value, "--overwrite"])
        assert bad.exit_code == 2
        assert message in re.sub(r"\s+", " ", bad.output)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"schemes": "magic"}, InvalidArgumentError, "schemes must be one of 'none'"),
        ({"schemes": ()}, InvalidArgumentError, "schemes must name at least one"),
        ({"schemes": "resq", "bits": 8}, InvalidArgumentError, r"bits must be below the high bits"),
        ({"bits": 1}, InvalidArgumentError, r"bits must be in 2\.\.16, got 1"),
        ({"bits": ()}, InvalidArgumentError, "bits must name at least one width"),
        ({"high_bits": 17}, InvalidArgumentError, r"high_bits must be in 2\.\.16"),
        ({"high_fraction": 1.0}, InvalidArgumentError, "high_fraction must be between 0 and 1"),
        ({"parts": "gradients"}, InvalidArgumentError, "parts must be one of 'weights'"),
        ({"block": 1}, InvalidArgumentError, "block must be >= 2"),
        ({"tokens": 1}, InvalidArgumentError, "tokens must be >= 2"),
        ({"seed": 0.5}, DtypeError, "seed must be an integer"),
        ({"dtype": "int4"}, InvalidArgumentError, "dtype must be one of 'float16'"),
        ({"texts": []}, InvalidArgumentError, r"\[rotate\] texts must hold calibration"),
        ({"evaluation": "cat"}, InvalidArgumentError, "cannot judge: .* windows of two tokens"),
    ],
)  # fmt: skip
def test_what_is_refused(model, tmp_path, options, error, message):
    settings = SMALL | {"schemes": "none", "bits": 4, "store": False} | options
    with pytest.raises(error, match=message):
        rotate(model, settings.pop("texts", TEXT), out=tmp_path / "out", **settings)


def test_encoders_are_refused(tmp_path):
    import transformers

    config = transformers.BertConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=24,
    )  # fmt: skip
    encoder = load_model(transformers.BertModel(config))
    with pytest.raises(UnsupportedError, match=r"\[rotate\] model must be a causal language"):
        rotate(encoder, TEXT, out=tmp_path / "out")
