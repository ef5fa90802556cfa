"""Comparisons of models: samples that belong together, changed weights, the command line."""

import json
import re

import numpy as np
import pytest
from conftest import TEXT
from safetensors.numpy import save_file
from subspan.activations import capture, load_model, tokenize
from subspan.cli import app
from subspan.comparison import compare_models, perturbed
from subspan.errors import InvalidArgumentError
from subspan.similarity import cka
from typer.testing import CliRunner

QUICK = {"n_permutations": 5, "null_layers": 2, "dims": 4, "measures": ["cka"]}
LINES = "\n".join(f"the {a} {b} to the {c} house ." for a in ("cat", "dog", "red") for b in
                  ("sat", "ran", "house") for c in ("red", "mat", "cat"))  # fmt: skip


def run(*args):
    done = CliRunner().invoke(app, [str(arg) for arg in args])
    return done.exit_code, re.sub(r"\s+", " ", done.output)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A random BERT with another tokenizer: pieces of words, [CLS] and [SEP] around them."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("encoder") / "tiny-bert"
    folder.mkdir()
    letters = sorted(set(TEXT) - set(" \n"))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", *letters]
    words += [f"##{letter}" for letter in letters]
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys(words)))
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(1)
    config = transformers.BertConfig(
        vocab_size=128, hidden_size=24, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def undrawn(monkeypatch):
    """Leave the pictures out, which take most of the time of a small run."""
    import subspan.comparison

    monkeypatch.setattr(subspan.comparison._job, "pictures", lambda *_: iter(()))


@pytest.mark.usefixtures("undrawn")
def test_a_model_with_noise_is_compared_token_by_token(tiny, tmp_path):
    loud = compare_models(tiny, tiny, TEXT, out=tmp_path / "a", samples=300, noise=0.3, **QUICK)
    assert loud.report["settings"]["unit"] == "token"
    assert loud.report["samples"]["n"] == 300
    assert loud.report["b"]["name"] == "tiny-llama with noise 0.3"
    assert loud.report["a"]["hash"] != loud.report["b"]["hash"]
    model = load_model(tiny)
    rows = []
    for one in (model, perturbed(model, noise=0.3)):
        stream = tokenize(one, TEXT, window=64, max_tokens=300, batch_size=8)
        arrays = [batch.arrays for batch in capture(one, stream, sites=["resid"])]
        rows.append({s.key: np.concatenate([a[s] for a in arrays]) for s in arrays[0]})
    assert loud.report["samples"]["n_with_outliers"] == 0
    wanted = [[cka(x, y) for y in rows[1].values()] for x in rows[0].values()]
    np.testing.assert_allclose(loud.matrix(), wanted, atol=1e-5)
    less = compare_models(model, model, TEXT, out=tmp_path / "b", samples=300, noise=0.1, **QUICK)
    assert (np.diag(less.matrix()) > np.diag(loud.matrix())).all()
    assert np.diag(less.matrix()).min() < 0.9999


@pytest.mark.usefixtures("undrawn")
def test_two_tokenizers_meet_on_the_means_of_lines(tiny, encoder, tmp_path):
    result = compare_models(tiny, encoder, LINES, out=tmp_path / "a", **QUICK)
    report = result.report
    assert report["settings"]["unit"] == "line"
    assert report["samples"]["n"] == len(LINES.splitlines())
    assert report["settings"]["window"] == 64
    assert [len(report[side]["sites"]) for side in "ab"] == [4, 3]
    means = []
    for path, last in ((tiny, "layer.03/resid"), (encoder, "layer.02/resid")):
        model, lines = load_model(path), LINES.splitlines()
        stream = tokenize(model, lines, window=64, batch_size=len(lines))
        (batch,) = capture(model, stream, sites=[last])
        (rows,) = batch.arrays.values()
        of = np.where(batch.tokens.special, -1, batch.tokens.document)
        means.append(np.array([rows[of == i].mean(axis=0) for i in range(len(lines))]))
    assert report["samples"]["n_with_outliers"] == 0
    assert result.matrix()[3, 2] == pytest.approx(cka(*means), abs=1e-5)
    with pytest.raises(InvalidArgumentError, match="unit 'token' needs models that cut"):
        compare_models(tiny, encoder, LINES, out=tmp_path / "b", unit="token", **QUICK)


@pytest.mark.usefixtures("undrawn")
def test_an_interrupted_comparison_of_models_resumes(tiny, encoder, tmp_path):
    def interrupt(stage, done, total):  # noqa: ARG001
        if stage == "samples of B" and done >= 300:
            raise KeyboardInterrupt

    options = {**QUICK, "checkpoint_seconds": 0.0, "batch_size": 9}
    whole = compare_models(tiny, encoder, LINES, out=tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        compare_models(tiny, encoder, LINES, out=tmp_path / "parts", progress=interrupt, **options)
    parts = compare_models(tiny, encoder, LINES, out=tmp_path / "parts", resume=True, **options)
    assert parts.report["measures"] == whole.report["measures"]
    assert parts.report["angles"] == whole.report["angles"]


def test_perturbed_weights(tiny):
    model = load_model(tiny)
    before = {name: w.copy() for name, w in model.weights()}
    cut = dict(perturbed(model, keep=0.25).weights())
    noisy = dict(perturbed(model, noise=0.2, seed=3).weights())
    for name, w in before.items():
        np.testing.assert_array_equal(w, dict(model.weights())[name])
        u, s, vh = np.linalg.svd(w.astype(np.float64), full_matrices=False)
        rank = -(-len(s) // 4)
        np.testing.assert_allclose(cut[name], (u[:, :rank] * s[:rank]) @ vh[:rank], atol=1e-5)
        change = np.sqrt(np.mean((noisy[name] - w) ** 2) / np.mean(w**2))
        assert change == pytest.approx(0.2, rel=0.1)
    again = dict(perturbed(model, noise=0.2, seed=3).weights())
    assert all((again[name] == w).all() for name, w in noisy.items())
    assert perturbed(model).name == model.name
    for options, message in (({"noise": -1.0}, "noise must be"), ({"keep": 1.5}, "keep must be")):
        with pytest.raises(InvalidArgumentError, match=message):
            perturbed(model, **options)


# ---- the command line


@pytest.fixture
def stores(tmp_path):
    x = np.random.default_rng(0).normal(size=(120, 8)).astype(np.float32)
    for name, scale in (("a", 1.0), ("b", 2.0)):
        tensors = {"layer.00/resid": x * np.float32(scale), "layer.01/resid": x[:, ::-1] ** 3}
        tensors = {key: np.ascontiguousarray(value) for key, value in tensors.items()}
        save_file(tensors, tmp_path / f"{name}.safetensors")
    return tmp_path / "a.safetensors", tmp_path / "b.safetensors"


def test_command_end_to_end(stores, tmp_path):
    out = tmp_path / "out"
    code, text = run("compare", *stores, "--out", out, "--permutations", 9, "--measures", "cka,rsa")
    assert code == 0, text
    assert "Every layer of A is most like the same layer of B" in text
    assert "report.html" in text
    report = json.loads((out / "report.json").read_text())
    assert [one["name"] for one in report["measures"]] == ["cka", "rsa"]
    assert report["settings"]["n_permutations"] == 9
    assert (out / "figures" / "similarity.svg").exists()
    code, text = run("compare", *stores, "--out", out)
    assert code == 2
    assert "finished run" in text


def test_errors_of_the_command_are_one_message(stores, tmp_path):
    out = tmp_path / "out"
    cases = [
        ([*stores], "[compare_models] --out must name a folder"),
        ([stores[0], tmp_path / "nowhere", "--out", out], "nowhere"),
        ([*stores, "--out", out, "--layers", "a:b"], "[compare_models] layers must look like"),
        ([*stores, "--out", out, "--samples", "few"], "or 'all'"),
        ([*stores, "--out", out, "--unit", "word"], "unit must be"),
        ([*stores, "--out", out, "--measures", "magic"], "measures must be"),
        ([*stores, "--out", out, "--resume"], "resume needs"),
        ([*stores, stores[0], "--out", out], "texts must be left out"),
    ]
    for args, message in cases:
        code, text = run("compare", *args)
        assert code == 2, (args, text)
        assert message in text
        assert "Traceback" not in text
    assert not out.exists()
