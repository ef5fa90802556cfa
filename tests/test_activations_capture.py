"""Captured values against direct computation on tiny random models of several families."""

import numpy as np
import pytest
from subspan.activations import KINDS, Model, Site, capture, find_sites, tokenize
from subspan.errors import (
    DtypeError,
    InvalidArgumentError,
    OutOfMemoryError,
    UnsupportedError,
)

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

LAYERS, WIDTH, HEADS = 3, 32, 4
COMMON = {"vocab_size": 100, "hidden_size": WIDTH, "num_hidden_layers": LAYERS}
COMMON |= {"num_attention_heads": HEADS, "max_position_embeddings": 64}
GATED = COMMON | {"intermediate_size": 48, "num_key_value_heads": 2}
FFN = COMMON | {"intermediate_size": 48}
GPT2 = {"vocab_size": 100, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 64}
OPT = COMMON | {"ffn_dim": 48, "word_embed_proj_dim": WIDTH}
DISTIL = {"vocab_size": 100, "dim": WIDTH, "n_layers": LAYERS, "n_heads": HEADS, "hidden_dim": 48}
DISTIL |= {"max_position_embeddings": 64}
BLOOM = {"vocab_size": 100, "hidden_size": WIDTH, "n_layer": LAYERS, "n_head": HEADS}

FAMILIES = {
    "llama": ("LlamaForCausalLM", GATED),
    "mistral": ("MistralForCausalLM", GATED | {"sliding_window": 4}),
    "qwen3": ("Qwen3ForCausalLM", GATED | {"head_dim": 8}),
    "gpt2": ("GPT2LMHeadModel", GPT2),
    "gpt2-headless": ("GPT2Model", GPT2),
    "neox": ("GPTNeoXForCausalLM", FFN),
    "opt": ("OPTForCausalLM", OPT),
    "bloom": ("BloomForCausalLM", BLOOM),
    "bert": ("BertModel", FFN),
    "bert-mlm": ("BertForMaskedLM", FFN),
    "roberta": ("RobertaModel", FFN),
    "distilbert": ("DistilBertModel", DISTIL),
}
ENCODERS = ("bert", "bert-mlm", "roberta", "distilbert")
# families whose blocks are plain sums: what enters + attention + MLP = what leaves
SUMS = ("llama", "mistral", "qwen3", "gpt2", "gpt2-headless", "neox", "opt", "bloom")
TEXTS = [
    " ".join(f"w{(7 * i) % 80}" for i in range(23)),
    "w1 w2 w3",
    " ".join(f"w{(5 * i) % 60}" for i in range(12)),
]


def word_tokenizer(*, special=False):
    """Words w0..w79, one token each; with [CLS] and [SEP] around a text when asked."""
    vocabulary = {f"w{i}": i + 4 for i in range(80)} | {
        "[PAD]": 0,
        "[UNK]": 1,
        "[CLS]": 2,
        "[SEP]": 3,
    }
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    if special:
        raw.post_processor = tokenizers.processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]"
    )


def build(family, **changes):
    name, options = FAMILIES[family]
    cls = getattr(transformers, name)
    torch.manual_seed(0)
    hf = cls(cls.config_class(**(options | changes)))
    with torch.no_grad():  # larger than the usual start values, so that mistakes show
        for parameter in hf.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return Model(hf.eval(), word_tokenizer(special=family in ENCODERS))


@pytest.fixture(scope="module", params=list(FAMILIES))
def model(request):
    built = build(request.param)
    built.family = request.param
    return built


@pytest.fixture(scope="module")
def llama():
    return build("llama")


def one_window(model, text=TEXTS[0]):
    stream = tokenize(model, text, window=40)
    assert stream.n_windows == 1
    return stream, torch.from_numpy(stream[0].padded()[0])


def close(a, b, tolerance=2e-5):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=tolerance, atol=tolerance)


def test_resid_is_what_enters_each_block(model):
    stream, ids = one_window(model)
    arrays = next(capture(model, stream, sites="resid")).arrays
    assert [s.layer for s in arrays] == list(range(LAYERS + 1))
    with torch.no_grad():
        hidden = model.hf(input_ids=ids, output_hidden_states=True).hidden_states
    for layer in range(LAYERS):
        close(arrays[Site(layer, "resid")], hidden[layer][0])
    # the library's last hidden state has the final norm applied, ours has not
    last = torch.from_numpy(arrays[Site(LAYERS, "resid")])
    base = model.hf.base_model
    base = getattr(base, "decoder", base)
    for name in ("norm", "ln_f", "final_layer_norm"):
        norm = getattr(base, name, None)
        last = last if norm is None else norm(last)
    close(last.detach(), hidden[LAYERS][0])


def test_attention_and_mlp_are_what_the_block_adds(model):
    stream, _ = one_window(model)
    arrays = next(capture(model, stream, sites=("resid", "attn", "mlp"))).arrays
    assert len(arrays) == 3 * LAYERS + 1
    for layer in range(LAYERS):
        enters, leaves = arrays[Site(layer, "resid")], arrays[Site(layer + 1, "resid")]
        attn, mlp = arrays[Site(layer, "attn")], arrays[Site(layer, "mlp")]
        if model.family in SUMS:
            close(enters + attn + mlp, leaves)
            continue
        block = model.blocks[layer].module
        if model.family == "distilbert":
            first, second = block.sa_layer_norm, block.output_layer_norm
        else:
            first, second = block.attention.output.LayerNorm, block.output.LayerNorm
        with torch.no_grad():
            middle = first(torch.from_numpy(enters + attn))
            close(second(middle + torch.from_numpy(mlp)), leaves)


def test_kv_sites_have_one_entry_per_kv_head(model):
    stream, _ = one_window(model)
    batch = next(capture(model, stream, sites=("k", "v")))
    heads = 2 if model.family in ("llama", "mistral", "qwen3") else HEADS
    wanted = {Site(i, kind, h) for i in range(LAYERS) for kind in "kv" for h in range(heads)}
    assert set(batch.arrays) == wanted
    assert {a.shape for a in batch.arrays.values()} == {(stream.n_tokens, WIDTH // HEADS)}
    assert find_sites(model, ("k", "v")) == tuple(batch.arrays)


def rotated(x, base=10000.0):
    """Rotary embedding of rows 0, 1, ... in the half-split layout, from the formula."""
    half = x.shape[1] // 2
    angle = np.arange(len(x))[:, None] * base ** (-np.arange(half) / half)
    a, b = x[:, :half], x[:, half:]
    cos, sin = np.cos(angle), np.sin(angle)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=1)


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_causal_keys_are_rotated_and_complete(family):
    model = build(family)  # mistral: window of 4 of 23 tokens, which its own cache would cut
    stream, _ = one_window(model)
    arrays = next(capture(model, stream, sites=("resid", "k", "v"))).arrays
    for layer in range(LAYERS):
        block = model.blocks[layer].module
        with torch.no_grad():
            x = block.input_layernorm(torch.from_numpy(arrays[Site(layer, "resid")]))
            k, v = block.self_attn.k_proj(x).numpy(), block.self_attn.v_proj(x).numpy()
        for head in range(2):
            columns = slice(8 * head, 8 * head + 8)
            close(arrays[Site(layer, "k", head)], rotated(k[:, columns]))
            close(arrays[Site(layer, "v", head)], v[:, columns])


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_encoder_keys_are_the_outputs_of_the_key_layer(family):
    model = build(family)
    stream, _ = one_window(model)
    arrays = next(capture(model, stream, sites=("resid", "k", "v"))).arrays
    for layer in range(LAYERS):
        modules = dict(model.blocks[layer].module.attention.named_modules())
        names = ("k_lin", "v_lin") if family == "distilbert" else ("self.key", "self.value")
        with torch.no_grad():
            x = torch.from_numpy(arrays[Site(layer, "resid")])
            for kind, name in zip("kv", names, strict=True):
                whole = modules[name](x)
                parts = [arrays[Site(layer, kind, h)] for h in range(HEADS)]
                close(np.concatenate(parts, axis=1), whole)


def rows_of(model, stream, **options):
    """All batches joined."""
    batches = list(capture(model, stream, **options))
    return {s: np.concatenate([b.arrays[s] for b in batches]) for s in batches[0].arrays}


def test_batch_size_and_padding_do_not_matter(model):
    small = tokenize(model, TEXTS, window=10, batch_size=1)
    large = tokenize(model, TEXTS, window=10, batch_size=64)
    assert len(large) == 1
    assert len(set(large[0].lengths)) > 1, "the case needs padding"
    assert large.n_tokens == len(large[0]) == sum(len(b) for b in small)
    one, all_at_once = rows_of(model, small), rows_of(model, large)
    assert list(one) == list(all_at_once) == list(find_sites(model))
    for site, value in one.items():
        assert value.shape[0] == large.n_tokens
        assert value.dtype == np.float32
        close(value, all_at_once[site], 1e-4)


def test_resume_gives_the_same_batches(llama):
    stream = tokenize(llama, TEXTS, window=8, batch_size=2)
    whole = list(capture(llama, stream))
    resumed = list(capture(llama, stream, start=2))
    assert [b.index for b in resumed] == list(range(2, len(stream)))
    for a, b in zip(whole[2:], resumed, strict=True):
        assert np.array_equal(a.tokens.ids, b.tokens.ids)
        for site in a.arrays:
            assert np.array_equal(a.arrays[site], b.arrays[site])
    assert list(capture(llama, stream, start=len(stream))) == []
    with pytest.raises(InvalidArgumentError, match=rf"start must be in 0\.\.{len(stream)}"):
        capture(llama, stream, start=len(stream) + 1)


def test_early_stop_changes_nothing(llama):
    stream = tokenize(llama, TEXTS, window=8, batch_size=2)
    full = rows_of(llama, stream)
    calls = []
    last = llama.blocks[-1].module
    handle = last.register_forward_hook(lambda *_: calls.append(1))
    part = rows_of(llama, stream, sites=("resid", "mlp"), layers=[1])
    handle.remove()
    assert len(calls) == 1, "only the first batch runs to its end"
    assert list(part) == [Site(1, "resid"), Site(1, "mlp")]
    for site, value in part.items():
        assert np.array_equal(value, full[site])


def n_hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.hf.modules())


def test_no_trace_is_left(llama, monkeypatch):
    stream = tokenize(llama, TEXTS, window=8, batch_size=2)
    llama.hf.train()
    llama.blocks[0].module.eval()
    before = [m.training for m in llama.hf.modules()]
    generator = capture(llama, stream)
    next(generator)
    assert n_hooks(llama) == 0
    assert [m.training for m in llama.hf.modules()] == before
    assert not torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()
    generator.close()

    def broken(*_args, **_kwargs):
        raise RuntimeError("planted")

    with monkeypatch.context() as patch:
        patch.setattr(llama.blocks[1].module.mlp, "forward", broken)
        with pytest.raises(RuntimeError, match="planted"):
            list(capture(llama, stream, sites=("resid", "attn")))
    assert n_hooks(llama) == 0
    assert [m.training for m in llama.hf.modules()] == before
    llama.hf.eval()


def test_dropout_is_off():
    model = build("gpt2", resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
    stream, _ = one_window(model)
    calm = next(capture(model, stream)).arrays
    model.hf.train()
    again = next(capture(model, stream)).arrays
    assert all(np.array_equal(calm[site], again[site]) for site in calm)


def test_progress_counts_batches(llama):
    stream = tokenize(llama, TEXTS, window=8, batch_size=2)
    seen = []
    for batch in capture(llama, stream, start=1, progress=lambda *pair: seen.append(pair)):
        assert seen[-1] == (batch.index + 1, len(stream))
    assert len(seen) == len(stream) - 1


def test_torch_output_can_be_trained_on(llama):
    stream, _ = one_window(llama)
    array = next(capture(llama, stream, sites="resid")).arrays[Site(1, "resid")]
    tensor = next(capture(llama, stream, sites="resid", output="torch")).arrays[Site(1, "resid")]
    assert np.array_equal(array, tensor.numpy())
    weight = torch.ones(WIDTH, requires_grad=True)
    (tensor * weight).sum().backward()
    close(weight.grad, array.sum(axis=0), 1e-4)
    with pytest.raises(InvalidArgumentError, match="output must be"):
        capture(llama, stream, output="jax")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_precisions(dtype):
    stream, _ = one_window(build("llama"))
    exact = next(capture(build("llama"), stream)).arrays
    model = build("llama")
    model.hf.to(getattr(torch, dtype))
    arrays = next(capture(model, stream)).arrays
    tolerance = {"float16": 0.02, "bfloat16": 0.15, "float64": 1e-4}[dtype]
    for site, value in arrays.items():
        assert value.dtype == (np.float64 if dtype == "float64" else np.float32)
        scale = np.abs(exact[site]).max()
        assert np.abs(value - exact[site]).max() <= tolerance * scale


# ------------------------------------------------------------------------------- sites


def test_patterns_of_module_names(llama):
    found = find_sites(llama, "model.layers.*.mlp.act_fn")
    assert found == tuple(Site(i, "mlp.act_fn") for i in range(LAYERS))
    assert found[1].key == "layer.01/mlp.act_fn"
    assert find_sites(llama, "model.layers.[12].mlp", layers=[0, 1]) == (Site(1, "mlp"),)
    assert len(find_sites(llama, "**.q_proj")) == LAYERS
    assert find_sites(llama, ["model.norm", "lm_head"]) == (
        Site(-1, "lm_head"),
        Site(-1, "model.norm"),
    )
    stream, ids = one_window(llama)
    arrays = next(capture(llama, stream, sites=["**.act_fn", "lm_head", "model.layers.2"])).arrays
    assert arrays[Site(0, "mlp.act_fn")].shape == (23, 48)
    assert arrays[Site(2, "block")].shape == (23, WIDTH)
    with torch.no_grad():
        close(arrays[Site(-1, "lm_head")], llama.hf(input_ids=ids).logits[0])


def test_sites_by_key_and_by_site(llama):
    wanted = [
        "layer.01/k/head.1",
        Site(LAYERS, "resid"),
        "layer.00/mlp.act_fn",
        Site(-1, "model.norm"),
    ]
    found = find_sites(llama, wanted)
    assert [s.key for s in found] == [
        "layer.00/mlp.act_fn",
        "layer.01/k/head.1",
        "layer.03/resid",
        "model.norm",
    ]
    assert find_sites(llama, found) == found
    everywhere = find_sites(llama)
    runs = []
    handle = llama.hf.model.register_forward_hook(lambda *_: runs.append(1))
    assert find_sites(llama, everywhere) == everywhere
    handle.remove()
    assert len(runs) <= 2, "the model is run once for keys and once for values, not once per site"
    everything = next(capture(llama, one_window(llama)[0])).arrays
    few = next(capture(llama, one_window(llama)[0], sites=found)).arrays
    assert np.array_equal(few[found[1]], everything[found[1]])
    for site in find_sites(llama):
        assert Site.parse(site.key) == site
    with pytest.raises(InvalidArgumentError, match="key must look like"):
        Site.parse("layer3")


def test_a_module_that_bears_the_name_of_a_kind():
    model = build("bloom")  # its mlp module adds the residual, so it is not what "mlp" reads
    found = find_sites(model, ["mlp", "transformer.h.0.mlp"])
    assert found[:2] == (Site(0, "mlp"), Site(0, "mlp.out"))
    block = find_sites(model, ["mlp", "transformer.h.1", "transformer.h.0.mlp"])
    assert Site(1, "block") in block
    for some in (found, block):
        assert find_sites(model, some) == some
    arrays = next(capture(model, one_window(model)[0], sites=["mlp", "transformer.h.0.mlp"])).arrays
    assert not np.allclose(arrays[found[0]], arrays[found[1]])


@pytest.mark.parametrize(
    ("sites", "layers", "message"),
    [
        ("model.layer.*.mlp", None, r"matches none\. Nearby names: .*model\.layers\.\*\.mlp"),
        ("residual", None, "must be one of resid, attn, mlp, k, v"),
        ("resid", [4], r"layers must be in 0\.\.3"),
        ("resid", [-1], r"layers must be in 0\.\.3"),
        ("resid", [], r"layers must be in 0\.\.3.*got none"),
        ("attn", [3], r"layers must include one of 0\.\.2"),
        ("layer.09/resid", None, r"layers must be in 0\.\.3"),
        ("layer.03/attn", None, "layer.03/attn"),
        ("layer.01/k/head.2", None, r"the layer has heads 0\.\.1"),
        ("layer.01/nothing", None, "matches none"),
        ("**.q_proj", [3], "layers must include one that"),
        ("model.[z-a]", None, "must be valid patterns"),
        ([], None, "at least one site"),
    ],
)
def test_sites_that_do_not_exist(llama, sites, layers, message):
    with pytest.raises(InvalidArgumentError, match=message):
        find_sites(llama, sites, layers=layers)


def test_sites_of_a_wrong_type(llama):
    with pytest.raises(DtypeError, match="must be str or Site, got int"):
        find_sites(llama, [3])


def test_kinds_that_a_model_does_not_have():
    config = transformers.MambaConfig(
        vocab_size=100, hidden_size=16, num_hidden_layers=2, state_size=4, expand=2
    )
    mamba = Model(transformers.MambaModel(config))
    assert len(find_sites(mamba, "resid")) == 3
    for kind in ("attn", "mlp"):
        with pytest.raises(UnsupportedError, match=f"got '{kind}' for MambaModel"):
            find_sites(mamba, kind)
    with pytest.raises(UnsupportedError, match="got 'k' for MambaModel"):
        find_sites(mamba, "k")


def test_shared_layers_are_refused():
    config = transformers.AlbertConfig(
        vocab_size=100, hidden_size=16, embedding_size=8, num_hidden_layers=3,
        num_attention_heads=2, intermediate_size=32, max_position_embeddings=64,
    )  # fmt: skip
    albert = Model(transformers.AlbertModel(config).eval(), word_tokenizer(special=True))
    with pytest.raises(UnsupportedError, match="could not be told apart"):
        find_sites(albert, KINDS)
    stream, _ = one_window(albert)
    with pytest.raises(UnsupportedError, match="must run once per pass"):
        next(capture(albert, stream, sites="**.ffn_output"))
    assert n_hooks(albert) == 0


def test_modules_without_token_rows(llama):
    stream, _ = one_window(llama)
    with pytest.raises(UnsupportedError, match=r"must return \(batch, tokens, width\)"):
        next(capture(build("bert"), tokenize(build("bert"), TEXTS, window=12), sites="pooler"))
    with pytest.raises(UnsupportedError, match="must be reached"):
        next(capture(llama, stream, sites="model.layers"))


def test_out_of_memory_names_the_batch(llama, monkeypatch):
    def full(*_args, **_kwargs):
        raise torch.OutOfMemoryError("planted")

    stream, _ = one_window(llama)
    monkeypatch.setattr(llama.blocks[1].module.mlp, "forward", full)
    with pytest.raises(OutOfMemoryError, match=r"batch 0 of 1 x 23 tokens .* smaller batch_size"):
        next(capture(llama, stream, sites="resid"))
