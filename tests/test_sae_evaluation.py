"""Splicing into a model, and what it costs: identity, ablations, plain references, refusals."""

import math
from dataclasses import replace

import numpy as np
import pytest
from conftest import TEXT
from subspan.activations import OutlierRule, load_model, splice, tokenize
from subspan.errors import DtypeError, InvalidArgumentError, UnsupportedError
from subspan.sae import Autoencoder, evaluate, make_sae
from subspan.sae._losses import Head

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SITES = ["layer.00/resid", "layer.02/resid", "layer.03/resid", "layer.01/attn", "layer.01/mlp"]


class Identity:
    def reconstruct(self, x):
        return x


class Half:
    """Works on numpy rows and tells its library, dtype and width."""

    library, dtype, width = "numpy", "float64", 32

    def __init__(self):
        self.seen = []

    def reconstruct(self, x):
        assert isinstance(x, np.ndarray)
        assert x.dtype == np.float64
        self.seen.append(x)
        return 0.5 * x


@pytest.fixture(scope="module")
def model(tiny):
    return load_model(tiny)


@pytest.fixture(scope="module")
def stream(model):
    return tokenize(model, [TEXT, "the red cat ran . "], window=16, max_tokens=150, batch_size=3)


def plain(model, stream, site, change):
    """Cross-entropy and KL by whole logits in float64; ``change`` maps (rows, first) to rows."""
    probe = model.hf.model.layers[site]
    ce, kl, n = 0.0, 0.0, 0
    for batch in stream:
        at = 0
        for length in batch.lengths:
            ids = torch.from_numpy(batch.ids[at : at + length])[None]
            at += length

            def hook(_module, args, kwargs):
                return (change(args[0]), *args[1:]), kwargs

            with torch.no_grad():
                clean = torch.log_softmax(model.hf(ids).logits.double(), -1)[0, :-1]
                handle = probe.register_forward_pre_hook(hook, with_kwargs=True)
                made = torch.log_softmax(model.hf(ids).logits.double(), -1)[0, :-1]
                handle.remove()
            ce -= float(made.gather(1, ids[0, 1:, None]).sum())
            kl += float((clean.exp() * (clean - made)).sum())
            n += length - 1
    return ce / n, kl / n, n


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("exclude", [None, OutlierRule(1.2, "drop")])
def test_identity_changes_nothing_bit_for_bit(model, stream, site, exclude):
    found = evaluate(Identity(), model, stream, site=site, exclude=exclude)
    assert found.site == site
    assert found.cross_entropy["spliced"] == found.cross_entropy["clean"]
    assert found.kl["spliced"] == 0.0
    assert found.reconstruction["explained_variance"] == 1.0
    assert found.kl_score("mean") == found.kl_score("zero") == 1.0
    worse = found.cross_entropy["zero"] > found.cross_entropy["clean"]
    assert found.ce_recovered("zero") == 1.0 if worse else math.isnan(found.ce_recovered("zero"))
    assert found.n_tokens == stream.n_tokens
    assert (found.n_excluded > 0) == (exclude is not None)
    assert found.to_dict()["ce_increase"] == 0.0


def test_losses_equal_whole_logits_in_float64(model, stream):
    half = Half()
    assert Head(model).is_linear
    found = evaluate(half, model, stream, site="layer.01/resid", exclude=None)
    for way, change in (("spliced", lambda x: 0.5 * x), ("zero", torch.zeros_like)):
        ce, kl, n = plain(model, stream, 1, change)
        assert found.n_predictions == n
        assert found.cross_entropy[way] == pytest.approx(ce, rel=1e-5)
        assert found.kl[way] == pytest.approx(kl, rel=1e-3, abs=1e-6)
    rows = np.concatenate(half.seen)
    mean = torch.from_numpy(rows.mean(0)).float()
    ce, kl, _ = plain(model, stream, 1, lambda x: mean.expand(x.shape))
    assert found.cross_entropy["mean"] == pytest.approx(ce, rel=1e-5)
    gap = found.cross_entropy["mean"] - found.cross_entropy["clean"]
    recovered = (found.cross_entropy["mean"] - found.cross_entropy["spliced"]) / gap
    assert found.ce_recovered("mean") == recovered
    assert found.kl_score("mean") == 1 - found.kl["spliced"] / found.kl["mean"]
    # 1 - 0.25 Σ‖x‖² / Σ‖x-x̄‖²
    spread = ((rows - rows.mean(0)) ** 2).sum()
    wanted = 1 - 0.25 * (rows**2).sum() / spread
    assert found.reconstruction["explained_variance"] == pytest.approx(wanted, rel=1e-6)
    assert found.reconstruction["nmse"] == pytest.approx(0.25)
    assert found.reconstruction["cosine"] == pytest.approx(1.0)
    assert found.reconstruction["l2_ratio"] == pytest.approx(0.5)
    assert found.reconstruction["relative_bias"] == pytest.approx(0.5)
    assert "l0" not in found.reconstruction


def test_excluded_tokens_keep_their_own_activations(model, stream):
    half = Half()
    rule = OutlierRule(first_token="drop")
    found = evaluate(half, model, stream, site="layer.01/resid", exclude=rule)
    windows = sum(len(batch.lengths) for batch in stream)
    assert found.n_excluded == windows
    assert sum(map(len, half.seen)) == stream.n_tokens - windows

    def change(x):
        return torch.cat([x[:, :1], 0.5 * x[:, 1:]], dim=1)

    ce, kl, _ = plain(model, stream, 1, change)
    assert found.cross_entropy["spliced"] == pytest.approx(ce, rel=1e-5)
    assert found.kl["spliced"] == pytest.approx(kl, rel=1e-3)


def test_texts_and_batches_and_chunks_give_the_same(model, monkeypatch):
    options = {"site": "layer.02/mlp", "window": 16, "tokens": 90}
    one = evaluate(Half(), model, TEXT, **options)
    other = evaluate(Half(), model, TEXT, batch_size=1, **options)
    monkeypatch.setattr("subspan.sae._losses._ELEMENTS", 200)
    chunks = evaluate(Half(), model, TEXT, ablations=["zero"], **options)
    assert chunks.kl.keys() == {"spliced", "zero"}
    for name, value in chunks.cross_entropy.items():
        assert value == pytest.approx(one.cross_entropy[name], rel=1e-6)
        assert value == pytest.approx(other.cross_entropy[name], rel=1e-6)


def test_heads_that_bend_their_logits_are_run_whole():
    config = transformers.Gemma2Config(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, final_logit_softcapping=0.5,
        max_position_embeddings=32,
    )  # fmt: skip
    torch.manual_seed(0)
    model = load_model(transformers.Gemma2ForCausalLM(config))
    from subspan.activations import TokenBatch

    ids, zeros = np.arange(12) % 32, np.zeros(12, np.int64)
    batch = TokenBatch(
        index=0, ids=ids, pieces=tuple("abcdefghijkl"), shared=zeros, document=zeros, position=ids,
        window_position=ids, special=zeros > 0, lengths=np.array([7, 5]),
    )  # fmt: skip
    assert not Head(model).is_linear
    found = evaluate(Identity(), model, [batch], site="layer.01/resid")
    with torch.no_grad():
        rows = [model.hf(torch.from_numpy(part)[None]).logits[0] for part in (ids[:7], ids[7:])]
    logp = [torch.log_softmax(part.double(), -1) for part in rows]
    wanted = (
        -sum(
            float(part[t, token])
            for part, tokens in zip(logp, (ids[:7], ids[7:]), strict=True)
            for t, token in enumerate(tokens[1:])
        )
        / 10
    )
    assert found.n_predictions == 10
    assert found.cross_entropy["clean"] == pytest.approx(wanted, rel=1e-5)
    assert found.cross_entropy["spliced"] == found.cross_entropy["clean"]


def test_an_autoencoder_reports_its_codes(model, stream):
    rng = np.random.default_rng(0)
    w_dec = rng.normal(size=(48, 32)).astype(np.float32)
    sae = Autoencoder("topk", w_dec.T, w_dec, np.zeros(32, np.float32), k=4)
    numpy = evaluate(sae, model, stream, site="layer.01/resid")
    tensors = evaluate(sae.to_torch(), model, stream, site="layer.01/resid")
    assert 0 < numpy.reconstruction["l0"] <= 4
    assert numpy.reconstruction["n_latents"] == 48
    assert numpy.cross_entropy == tensors.cross_entropy
    assert numpy.reconstruction == tensors.reconstruction


def test_modules_in_training_and_normalised_rows_are_served(model, stream):
    module = make_sae("topk", 32, 48, k=4, seed=3)
    options = {"site": "layer.02/resid", "ablations": ["zero"]}
    found = evaluate(module, model, stream, **options)
    assert found.to_dict() == evaluate(module.export(), model, stream, **options).to_dict()
    made = module.export().to_numpy()
    scaled = replace(made, normalize="layer_norm")
    norms = evaluate(scaled, model, stream, **options)

    class Plain:  # the same without codes
        library, dtype, width = "numpy", "float32", 32
        reconstruct = staticmethod(scaled.reconstruct)

    plain = evaluate(Plain(), model, stream, **options)
    assert norms.cross_entropy == plain.cross_entropy
    assert norms.cross_entropy["spliced"] != found.cross_entropy["spliced"]
    assert norms.reconstruction["l0"] == 4


def test_splice_leaves_no_hooks_and_the_mode_as_it_was(model):
    model.hf.train()
    ids = torch.arange(5)[None]
    with pytest.raises(RuntimeError), splice(model, "layer.01/attn", torch.neg):  # noqa: PT012
        assert not model.hf.training
        raise RuntimeError
    assert model.hf.training
    model.hf.eval()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.hf.modules())
    with torch.no_grad():
        before = model.hf(ids).logits
        with splice(model, "layer.03/resid", torch.zeros_like):
            assert not torch.equal(model.hf(ids).logits, before)
        assert torch.equal(model.hf(ids).logits, before)


def test_what_is_not_defined_is_none(model, stream):
    class Zero:
        def reconstruct(self, x):
            return 0 * x

    found = evaluate(Zero(), model, stream, site="layer.01/resid", exclude=None)
    assert found.ce_recovered("zero") == 0.0
    assert math.isnan(found.reconstruction["relative_bias"])
    assert found.to_dict()["reconstruction"]["relative_bias"] is None


def test_refusals(model, stream):
    site = "layer.01/resid"
    with pytest.raises(DtypeError, match="sae must have reconstruct"):
        evaluate(object(), model, stream, site=site)
    with pytest.raises(InvalidArgumentError, match="ablations must be one of"):
        evaluate(Identity(), model, stream, site=site, ablations=["noise"])
    narrow = Half()
    narrow.width = 31
    with pytest.raises(InvalidArgumentError, match="width of the site, 32, got 31"):
        evaluate(narrow, model, stream, site=site)

    class Broken:
        def __init__(self, made):
            self.made = made

        def reconstruct(self, x):
            return self.made(x)

    with pytest.raises(InvalidArgumentError, match="got NaN or infinity"):
        evaluate(Broken(lambda x: x / 0), model, stream, site=site)
    with pytest.raises(InvalidArgumentError, match="got shape"):
        evaluate(Broken(lambda x: x[:, :5]), model, stream, site=site)
    with pytest.raises(InvalidArgumentError, match="site must name one site"):
        evaluate(Identity(), model, stream, site="resid")
    with pytest.raises(UnsupportedError, match="takes in or gives out"):
        evaluate(Identity(), model, stream, site="layer.01/k/head.0")
    body = load_model(model.hf.model, tokenizer=model.tokenizer)
    with pytest.raises(UnsupportedError, match="output head"):
        evaluate(Identity(), body, stream, site=site)
    with pytest.raises(InvalidArgumentError, match="rule of outliers keeps"):
        evaluate(
            Identity(), model, tokenize(model, TEXT, window=1, max_tokens=3), site=site,
            exclude=OutlierRule(first_token="drop"),
        )  # fmt: skip
    with pytest.raises(InvalidArgumentError, match="two tokens or more"):
        evaluate(Identity(), model, tokenize(model, TEXT, window=1, max_tokens=3), site=site)
    with pytest.raises(InvalidArgumentError, match="ablation must be one of 'zero'"):
        evaluate(Identity(), model, stream, site=site, ablations=["zero"]).ce_recovered("mean")
    with (
        pytest.raises(InvalidArgumentError, match="replace must return"),
        splice(model, site, lambda x: x[:, :1]),
    ):
        model.hf(torch.arange(4)[None])
