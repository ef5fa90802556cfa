"""The job on caches and its command; training: points, resuming, pages, refusals."""

import json
import re

import numpy as np
import pytest
from conftest import TEXT
from subspan.activations import load_model, tokenize
from subspan.cli import app
from subspan.compression import (
    CacheCompression,
    CachePlan,
    calibrate_cache,
    compress_cache,
    perplexity,
    plan_cache,
    train_cache,
)
from subspan.compression._reading import read
from subspan.errors import InvalidArgumentError, OutputError, UnsupportedError
from test_report_page import checked
from typer.testing import CliRunner

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from subspan.compression.caches.compressed import CompressedCache  # noqa: E402

OTHER = "red house red house the mat the mat . cat dog cat dog ran ran ran to the . " * 8
SMALL = {"tokens": 96, "eval_tokens": 64, "window": 32, "search_tokens": 32, "training": 5}
METHODS = ("channels", "loss-aware", "trained")


@pytest.fixture(scope="module")
def model(tiny):
    return load_model(tiny)


@pytest.fixture(scope="module")
def all_of_it(model, tmp_path_factory):
    return compress_cache(
        model, TEXT, out=tmp_path_factory.mktemp("kv") / "out", methods=METHODS, kept=(0.75, 0.5),
        allocations=("uniform", "loss", "search"), out_of_domain=OTHER, step=2, least=0.2, **SMALL,
    )  # fmt: skip


def test_every_point_is_within_its_bytes_which_are_measured(all_of_it):
    report = all_of_it.report
    assert len(report["points"]) == 3 * 3 * 2
    assert report["model"]["bytes_per_token"] == 3 * 2 * 16 * 2
    for point in report["points"]:
        ranks = np.array([row["ranks"] for row in point["layers"]])
        assert point["bytes"] == 2 * ranks.sum()
        assert point["kept_bytes"] == pytest.approx(point["kept"])  # budgets are spent
        assert point["measured"]["bytes"] == point["measured"]["predicted"] > 0
        assert point["measured"]["bytes"] == point["bytes"] * point["measured"]["tokens"]
        assert (ranks == ranks[0, 0]).all() or point["allocation"] != "uniform"
        assert ranks.min() >= 2
        assert all(0 <= row["relative_error"] < 1.5 for row in point["layers"])
    assert [text["domain"] for text in report["texts"]] == ["in", "out"]
    assert report["settings"]["keys"] == "after rotary embedding"


def test_stored_plans_have_the_perplexities_that_are_reported(all_of_it, model):
    report = all_of_it.report
    reading = read(model, TEXT, None, OTHER, tokens=96, eval_tokens=64, window=32, seed=0)
    name = report["texts"][0]["name"]
    dense = perplexity(model, reading.evaluation[0].batches).value
    assert report["dense"]["perplexity"][name] == pytest.approx(dense, rel=1e-6)
    for point in (report["points"][3], report["points"][-1]):
        file = f"{point['method']}-{point['allocation']}-{point['kept']:g}.safetensors"
        plan = CachePlan.load(all_of_it.path / "plans" / file, model)
        found = perplexity(
            model, reading.evaluation[0].batches,
            cache=lambda plan=plan: CompressedCache(plan, dtype="float16"),
        )  # fmt: skip
        assert found.value == pytest.approx(point["perplexity"][name], rel=1e-5)
        sides = [[row["ranks"] for row in point["layers"] if row["of"] == s]
                 for s in ("keys", "values")]  # fmt: skip
        assert np.array_equal(plan.ranks, sides)


def test_a_search_has_the_smaller_loss_where_it_looked(all_of_it, model):
    """On the tokens that it measured by, from the same bases."""
    reading = read(model, TEXT, None, OTHER, tokens=96, eval_tokens=64, window=32, seed=0)
    nats = {}
    for allocation in ("uniform", "search"):
        file = all_of_it.path / "plans" / f"channels-{allocation}-0.5.safetensors"
        plan = CachePlan.load(file)
        nats[allocation] = perplexity(
            model, reading.calibration[:1],
            cache=lambda plan=plan: CompressedCache(plan, dtype="float16"),
        ).nats  # fmt: skip
    assert nats["search"] < nats["uniform"]


def test_the_page(all_of_it):
    html = all_of_it.page.read_text("utf-8")
    checked(html)
    for word in ("out of domain", "Bytes a token", "after rotary", "loss-aware, loss", "trained"):
        assert word in html
    assert "of the bytes kept" in all_of_it.summary
    assert "were measured, and were those that were planned" in all_of_it.summary
    assert CacheCompression.load(all_of_it.path).report == json.loads(json.dumps(all_of_it.report))
    drawn = list(all_of_it.report["figures"])
    assert drawn[0] == "quality"
    assert 4 <= len(drawn) <= 7  # and one or two for each of the best three of all runs
    assert {name.partition("-")[0] for name in drawn[1:]} == {"ranks", "errors"}
    assert (all_of_it.path / "figures" / "quality.svg").stat().st_size > 1000


def test_an_interrupted_run_goes_on(model, tmp_path):
    options = SMALL | {
        "methods": "trained",
        "allocations": "search",
        "kept": 0.5,
        "step": 2,
        "least": 0.0,
    }
    options |= {"store": False, "training": 2}

    class Stop(Exception):
        pass

    def stop(stage, _done, _total):
        if stage == "evaluation" and (tmp_path / "out/.run/search-trained.json").exists():
            raise Stop

    with pytest.raises(Stop):
        compress_cache(model, TEXT, out=tmp_path / "out", progress=stop, **options)
    with pytest.raises(OutputError, match="interrupted run with other settings"):
        compress_cache(model, TEXT, out=tmp_path / "out", **options | {"seed": 4})
    seen = set()
    done = compress_cache(
        model, TEXT, out=tmp_path / "out", resume=True,
        progress=lambda stage, _done, _total: seen.add(stage), **options,
    )  # fmt: skip
    assert not seen & {"calibration", "training", "search"}
    assert done.report["facts"]["resumed"]
    assert not (done.path / "plans").exists()
    assert not (done.path / ".run").exists()
    assert all(p.requires_grad for p in model.hf.parameters())


def test_the_command(tiny, tmp_path):
    line = ["kv", tiny, tiny.parent / "text.txt", "--out", tmp_path / "out", "--kept", "0.5",
            "--method", "pca", "--allocation", "uniform", "--tokens", 64, "--eval-tokens", 32,
            "--window", 32, "--dtype", "float32"]  # fmt: skip
    done = CliRunner().invoke(app, [str(word) for word in line])
    assert done.exit_code == 0, done.output
    assert "a token takes 192 bytes in place of 384" in re.sub(r"\s+", " ", done.output)
    assert (tmp_path / "out" / "plans" / "pca-uniform-0.5.safetensors").is_file()
    bad = CliRunner().invoke(app, [*map(str, line[:5]), "--kept", "most", "--overwrite"])
    assert bad.exit_code == 2
    assert "[kv] kept must be numbers with commas" in re.sub(r"\s+", " ", bad.output)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": "magic"}, r"\[kv\] methods must be one of 'channels'"),
        ({"methods": ()}, "methods must name at least one"),
        ({"allocations": "fair"}, "allocations must be one of 'uniform'"),
        ({"kept": 0.0}, r"kept must be in \(0, 1\], got \[0\.0\]"),
        ({"kept": 0.01}, "kept must leave one of 8 dimensions"),
        (
            {"kept": 0.25, "step": 4, "allocations": "loss"},
            r"at least 0\.5 where no head .* below 4 of",
        ),
        ({"least": 2}, "least must be in"),
        ({"step": 9}, r"step must be in 1\.\.8, got 9"),
        ({"training": 0}, "training must be >= 1"),
        ({"rate": -1.0}, "rate must be in"),
        ({"search_tokens": 1}, "search_tokens must be >= 2"),
        ({"tokens": 1}, "tokens must be >= 2"),
        ({"dtype": "int4"}, "dtype must be one of 'float16'"),
        ({"texts": []}, r"\[kv\] texts must hold calibration"),
        ({"texts": "the cat"}, r"\[kv\] text .* must have two windows of 32 tokens or more"),
        ({"evaluation": "cat"}, r"\[kv\] text .* cannot judge: .* windows of two tokens"),
    ],
)
def test_what_is_refused(model, tmp_path, options, message):
    settings = SMALL | {"methods": "pca", "allocations": "uniform", "store": False} | options
    with pytest.raises(InvalidArgumentError, match=message):
        compress_cache(model, settings.pop("texts", TEXT), out=tmp_path / "out", **settings)


def test_encoders_are_refused(tmp_path):
    config = transformers.BertConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=24,
    )  # fmt: skip
    encoder = load_model(transformers.BertModel(config))
    with pytest.raises(UnsupportedError, match=r"\[kv\] model must be a causal language model"):
        compress_cache(encoder, TEXT, out=tmp_path / "out")


def test_training_keeps_bases_orthogonal_and_makes_predictions_better(model):
    stream = list(tokenize(model, [TEXT], window=24, max_tokens=240, batch_size=2))
    found = calibrate_cache(model, stream)
    start = plan_cache(found, "pca")
    before = {name: p.clone() for name, p in model.hf.named_parameters()}
    trained, losses = train_cache(model, stream, found, steps=120, rate=1e-2, distill=1.0, levels=4)
    assert len(losses) == 120
    assert trained.method == "trained"
    for basis in (trained.keys, trained.values):
        eye = basis.down @ basis.up
        assert np.allclose(eye, np.eye(8), atol=1e-10)
        assert np.allclose(basis.down, basis.up.swapaxes(-1, -2))
        assert (np.diff(basis.tails, axis=-1) <= 1e-12).all()  # nested
    moved = np.abs(np.abs(np.einsum("lhdi,lhdi->lhi", start.keys.up, trained.keys.up)) - 1)
    assert moved.max() > 1e-3
    for name, p in model.hf.named_parameters():
        assert torch.equal(p, before[name])
        assert p.grad is None
        assert p.requires_grad

    def apart(plan):
        total = 0.0
        for batch in stream:
            ids, mask = (torch.from_numpy(x) for x in batch.padded())
            arguments = {"attention_mask": mask.long()}
            with torch.no_grad():
                p = torch.log_softmax(model.hf(ids, **arguments).logits[mask].double(), -1)
                arguments["past_key_values"] = CompressedCache(plan)
                q = torch.log_softmax(model.hf(ids, **arguments).logits[mask].double(), -1)
            total += float((p.exp() * (p - q)).sum())
        return total

    for kept in (0.25, 0.5):
        assert apart(trained.cut(kept)) < 0.9 * apart(start.cut(kept))
    assert apart(trained) < 1e-8
    again = train_cache(model, stream, found, steps=3, seed=1)
    assert again.losses == train_cache(model, stream, found, steps=3, seed=1).losses
    assert again.losses != train_cache(model, stream, found, steps=3, seed=2).losses


def test_what_training_refuses(model):
    stream = list(tokenize(model, [TEXT], window=8, max_tokens=16, batch_size=1))
    found = calibrate_cache(model, stream)
    single = list(tokenize(model, [TEXT], window=1, max_tokens=3, batch_size=1))
    with pytest.raises(InvalidArgumentError, match="batches must have windows of two tokens"):
        train_cache(model, single, found)
    for options, message in (
        ({"steps": 0}, "steps must be >= 1"), ({"levels": 0}, "levels must be >= 1"),
        ({"rate": -1.0}, "rate must be in"), ({"distill": 2.0}, "distill must be in"),
        ({"seed": -1}, "seed must be >= 0"),
    ):  # fmt: skip
        with pytest.raises(InvalidArgumentError, match=message):
            train_cache(model, stream, found, **options)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip
    other = load_model(transformers.LlamaForCausalLM(config))
    with pytest.raises(InvalidArgumentError, match="found must be of this model of 1 layers"):
        train_cache(other, stream, found)
