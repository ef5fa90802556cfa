"""Loading models from disk and cutting texts, on tiny models written by the test."""

import hashlib
import json
import os
import socket

import numpy as np
import pytest
from subspan.activations import Model, Site, capture, load_model, tokenize
from subspan.errors import (
    DeviceError,
    DtypeError,
    FileFormatError,
    InvalidArgumentError,
    UnsupportedError,
)

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

LLAMA = {
    "vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 24, "max_position_embeddings": 64,
}  # fmt: skip
BERT = {k: v for k, v in LLAMA.items() if k != "num_key_value_heads"}
GPT2 = {"vocab_size": 300, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64}
TEXT = "The cat sat on the mat, while 12 dogs slept; naïve cafés — 猫🐈 — stayed open. " * 6


def byte_tokenizer(*, special=()):
    """Byte-level BPE with a few merges; ``special`` names what is put before and after a text."""
    raw = tokenizers.Tokenizer(tokenizers.models.BPE())
    raw.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator([TEXT], trainer)
    if special:
        raw.post_processor = tokenizers.processors.TemplateProcessing(
            single=" ".join(special), special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>")


def write_model(folder, name="LlamaForCausalLM", options=LLAMA, *, special=(), **saving):
    cls = getattr(transformers, name)
    torch.manual_seed(1)
    hf = cls(cls.config_class(**options))
    hf.save_pretrained(folder, **saving)
    byte_tokenizer(special=special).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="module")
def model(folder):
    return load_model(folder)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny-bert")
    return load_model(write_model(path, "BertModel", BERT, special=("<s>", "$A", "</s>")))


# ----------------------------------------------------------------------------- loading


def test_facts_of_a_model(model, folder):
    assert (model.kind, model.n_layers, model.width, model.context) == ("causal", 2, 16, 64)
    assert model.name == folder.name
    assert model.path == folder
    assert model.device == "cpu"
    assert not model.hf.training
    assert model.n_parameters == sum(p.numel() for p in model.hf.parameters())
    assert "causal, 2 layers, width 16" in repr(model)
    wanted = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert model.fingerprint == wanted
    assert load_model(model) is model
    assert load_model(folder / "model.safetensors").fingerprint == wanted
    assert load_model(str(folder), dtype="bfloat16").hf.dtype == torch.bfloat16


def test_encoder_and_headless_models(encoder, tmp_path):
    assert (encoder.kind, encoder.context) == ("encoder", 64)
    write_model(tmp_path / "mlm", "RobertaForMaskedLM", BERT | {"max_position_embeddings": 66})
    roberta = load_model(tmp_path / "mlm")
    assert (roberta.kind, roberta.context) == ("encoder", 64), "two positions are for padding"
    assert type(roberta.hf).__name__ == "RobertaModel"
    # its pooler is not in the file: no report may show random weights
    assert not any("pooler" in name for name, _ in roberta.weights())
    write_model(tmp_path / "gpt2", "GPT2Model", GPT2)
    gpt2 = load_model(tmp_path / "gpt2")
    assert (gpt2.kind, gpt2.context, gpt2.width) == ("causal", 64, 16)
    config = transformers.OPTConfig(
        vocab_size=300, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, ffn_dim=24,
        word_embed_proj_dim=16, max_position_embeddings=64,
    )  # fmt: skip
    assert load_model(transformers.OPTModel(config)).context == 64
    bloom = transformers.BloomConfig(vocab_size=300, hidden_size=16, n_layer=1, n_head=2)
    assert load_model(transformers.BloomModel(bloom)).context is None


def test_module_passes_through(model):
    module = model.hf
    passed = load_model(module, tokenizer=model.tokenizer)
    assert passed.hf is module
    assert passed.path is None
    digest = hashlib.sha256()
    for _, tensor in sorted(module.state_dict().items()):
        digest.update(tensor.numpy().tobytes())
    assert passed.fingerprint == digest.hexdigest()
    half = transformers.LlamaModel(transformers.LlamaConfig(**LLAMA)).to(torch.bfloat16)
    assert len(load_model(half).fingerprint) == 64


def test_sharded_weights(tmp_path):
    path = write_model(tmp_path / "m", max_shard_size="10KB")
    shards = sorted(path.glob("model-*.safetensors"))
    assert len(shards) > 2
    model = load_model(path)
    joined = b"".join(shard.read_bytes() for shard in shards)
    assert model.fingerprint == hashlib.sha256(joined).hexdigest()
    shards[1].unlink()
    with pytest.raises(FileFormatError, match=rf"hold all {len(shards)} shards.*{shards[1].name}"):
        load_model(path)
    (path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(FileFormatError, match="must be a weight index"):
        load_model(path)


def test_weights(model):
    matrices = dict(model.weights())
    state = model.hf.state_dict()
    assert set(matrices) == {name for name, tensor in state.items() if tensor.ndim == 2}
    for name, matrix in matrices.items():
        assert matrix.dtype == np.float32
        assert np.array_equal(matrix, state[name].numpy())
        with pytest.raises(ValueError, match="read-only"):
            matrix[0, 0] = 1.0
    gpt2 = Model(transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2)))
    shapes = {name: matrix.shape for name, matrix in gpt2.weights()}
    assert shapes["transformer.h.0.mlp.c_fc.weight"] == (64, 16), (
        "(out, in), although stored (in, out)"
    )
    assert "lm_head.weight" not in shapes, "tied to the embedding, which is there"
    mixture = transformers.MixtralConfig(**LLAMA, num_local_experts=3, num_experts_per_tok=1)
    shapes = {n: m.shape for n, m in Model(transformers.MixtralForCausalLM(mixture)).weights()}
    experts = [n for n in shapes if "layers.0.mlp.experts" in n]
    assert len(experts) == 6
    assert all(len(shape) == 2 for shape in shapes.values())


def test_loading_is_silent_offline_and_leaves_no_trace(folder, monkeypatch, capfd):
    def refuse(*_args, **_kwargs):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    hub = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", False)
    logging = transformers.utils.logging
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    torch.manual_seed(5)
    wanted = torch.rand(1)
    torch.manual_seed(5)
    load_model(folder)
    assert torch.equal(torch.rand(1), wanted), "the state of the generator is the caller's"
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    assert "HF_HUB_OFFLINE" not in os.environ
    assert hub.HF_HUB_OFFLINE is False
    assert capfd.readouterr() == ("", "")


def test_truncated_weights(tmp_path):
    path = write_model(tmp_path / "m")
    whole = (path / "model.safetensors").read_bytes()
    for keep in (0, 100, len(whole) - 1):
        (path / "model.safetensors").write_bytes(whole[:keep])
        with pytest.raises(FileFormatError, match=r"must be a whole, readable model.*truncated"):
            load_model(path)
    (path / "model.safetensors").write_bytes(whole)
    load_model(path)
    (path / "config.json").write_text("{")
    with pytest.raises(FileFormatError, match="must be a whole, readable model"):
        load_model(path)


def test_weights_that_do_not_fill_the_model(tmp_path):
    path = write_model(tmp_path / "m")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(FileFormatError, match=r"no value for 9 tensors, among them model\.lay"):
        load_model(path)
    (path / "config.json").write_text(json.dumps(config | {"intermediate_size": 32}))
    with pytest.raises(FileFormatError, match="must be a whole, readable model"):
        load_model(path)
    (path / "config.json").write_text(json.dumps({"model_type": "no-such-thing"}))
    with pytest.raises(FileFormatError, match="no-such-thing"):
        load_model(path)


def test_gguf_that_is_none(tmp_path):
    file = tmp_path / "m.gguf"
    file.write_bytes(b"PK\3\4" + bytes(100))
    with pytest.raises(FileFormatError, match="must begin with the bytes 'GGUF'"):
        load_model(file)
    file.write_bytes(b"GGUF" + bytes(20))
    for path in (file, tmp_path):
        with pytest.raises(FileFormatError, match="must be a whole, readable model"):
            load_model(path)
    (tmp_path / "n.gguf").write_bytes(b"GGUF")
    with pytest.raises(FileFormatError, match=r"2 \.gguf files \(m\.gguf, n\.gguf\)"):
        load_model(tmp_path)


def test_folders_without_a_model(tmp_path):
    with pytest.raises(FileNotFoundError, match="not downloaded"):
        load_model("somebody/some-model")
    with pytest.raises(FileFormatError, match="with no model in it"):
        load_model(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(FileFormatError, match=r"must be a \.gguf file or lie in a folder"):
        load_model(tmp_path / "notes.txt")
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "config.json").write_text("{}")
    with pytest.raises(FileFormatError, match=r"There is one in .*inner"):
        load_model(tmp_path)
    with pytest.raises(FileFormatError, match=r"must hold model\.safetensors"):
        load_model(tmp_path / "inner")


def test_models_that_are_not_served(tmp_path):
    config = transformers.T5Config(
        vocab_size=40, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2
    )
    t5 = transformers.T5ForConditionalGeneration(config)
    t5.save_pretrained(tmp_path / "t5")
    for source in (t5, tmp_path / "t5"):
        with pytest.raises(UnsupportedError, match="encoder-decoder model 't5'"):
            load_model(source)
    path = write_model(tmp_path / "own-code")
    config = json.loads((path / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.M"}}
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedError, match="needs Python code that comes with the model"):
        load_model(path)


def test_bad_arguments(folder):
    with pytest.raises(DtypeError, match=r"path must be .* got int"):
        load_model(3)
    with pytest.raises(InvalidArgumentError, match="dtype must be one of"):
        load_model(folder, dtype="int8")
    for device in ("no-such-device", "cuda:99"):
        with pytest.raises(DeviceError, match="device must be one that torch can use"):
            load_model(folder, device=device)


# ------------------------------------------------------------------------------ tokens


def test_windows_and_bookkeeping(model):
    stream = tokenize(model, [TEXT, "The cat.", TEXT], window=20, batch_size=3)
    ids = model.tokenizer(TEXT)["input_ids"]
    short = model.tokenizer("The cat.")["input_ids"]
    assert stream.documents == ("text 0", "text 1", "text 2")
    assert stream.n_tokens == 2 * len(ids) + len(short)
    assert stream.n_windows == 2 * -(-len(ids) // 20) + 1
    assert len(stream) == -(-stream.n_windows // 3)
    batches = list(stream)
    assert [b.index for b in batches] == list(range(len(stream)))
    assert np.array_equal(np.concatenate([b.ids for b in batches]), ids + short + ids)
    document = np.concatenate([b.document for b in batches])
    position = np.concatenate([b.position for b in batches])
    for number, count in enumerate((len(ids), len(short), len(ids))):
        assert np.array_equal(position[document == number], np.arange(count))
    for batch in batches:
        assert batch.lengths.sum() == len(batch) == len(batch.pieces)
        assert batch.lengths.max() <= 20
        assert batch.first_in_window.sum() == len(batch.lengths) <= 3
        assert np.array_equal(batch.window_position, batch.position % 20)
        assert not batch.special.any()
        padded, mask = batch.padded()
        assert np.array_equal(padded[mask], batch.ids)
        assert np.array_equal(mask.sum(axis=1), batch.lengths)
        assert (padded[~mask] == model.tokenizer.pad_token_id).all()
    assert np.array_equal(stream[-1].ids, batches[-1].ids)
    assert [b.index for b in stream[1:3]] == [1, 2]
    with pytest.raises(IndexError, match="batch must be in"):
        stream[len(stream)]


def test_pieces_are_the_text(model):
    plain = "The cat sat on the mat,  while 12 dogs slept;\n\nall of them. " * 4
    stream = tokenize(model, plain, window=16)
    assert "".join(piece for batch in stream for piece in batch.pieces) == plain
    hard = tokenize(model, TEXT, window=16)
    pieces = [piece for batch in hard for piece in batch.pieces]
    assert "🐈" in "".join(pieces)
    assert all(pieces), "a token that is part of a character shows that character"


def test_context_of_a_token(model):
    text = "The cat sat on the mat, while 12 dogs slept."
    stream = tokenize(model, text, window=16)
    pieces = stream.pieces(0, 0, stream.n_tokens)
    for position in range(stream.n_tokens):
        before, here, after = stream.context(0, position, before=3, after=2)
        assert before == "".join(pieces[max(0, position - 3) : position])
        assert here == pieces[position]
        assert after == "".join(pieces[position + 1 : position + 3])
    with pytest.raises(InvalidArgumentError, match="position must be in"):
        stream.context(0, -1)


def test_special_tokens_surround_every_window(encoder):
    stream = tokenize(encoder, TEXT, window=12)
    assert (stream.prefix, stream.suffix) == ((1,), (2,))
    ids = encoder.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    assert stream.n_windows == -(-len(ids) // 10)
    content = []
    for batch in stream:
        starts = np.cumsum([0, *batch.lengths[:-1]])
        assert (batch.ids[starts] == 1).all()
        assert (batch.ids[starts + batch.lengths - 1] == 2).all()
        assert batch.special.sum() == 2 * len(batch.lengths)
        assert np.array_equal(batch.position == -1, batch.special)
        assert batch.pieces[0] == "<s>"
        assert batch.pieces[batch.lengths[0] - 1] == "</s>"
        content += batch.ids[~batch.special].tolist()
    assert content == ids


@pytest.mark.parametrize("limit", [1, 15, 16, 17, 100])
def test_max_tokens_takes_the_beginning(model, limit):
    whole = np.concatenate([b.ids for b in tokenize(model, TEXT * 40, window=16)])
    stream = tokenize(model, TEXT * 40, window=16, max_tokens=limit)
    assert stream.n_tokens == limit
    assert np.array_equal(np.concatenate([b.ids for b in stream]), whole[:limit])
    two = tokenize(model, ["The cat sat", TEXT, "never reached"], window=16, max_tokens=limit)
    assert two.n_tokens == limit


def test_max_tokens_counts_special_tokens(encoder):
    for limit in (3, 12, 13, 14, 15, 30):
        n_tokens = tokenize(encoder, TEXT, window=12, max_tokens=limit).n_tokens
        assert limit - 2 <= n_tokens <= limit


def test_stream_fingerprint(model):
    def mark(text=TEXT, **options):
        return tokenize(model, text, **({"window": 16} | options)).fingerprint

    assert mark() == mark()
    different = [mark(), mark(window=17), mark(batch_size=2), mark(max_tokens=50), mark(TEXT + "x")]
    assert len(set(different)) == len(different)


def test_files(model, tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbf" + TEXT.encode())
    stream = tokenize(model, [path, "The cat"], window=16)
    assert stream.documents == ("a.txt", "text 1")
    assert stream.n_tokens == tokenize(model, [TEXT, "The cat"], window=16).n_tokens
    with pytest.raises(InvalidArgumentError, match=r"names a file\. Pass Path"):
        tokenize(model, str(path), window=16)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must hold text, got an empty file"),
        (b" \n\n ", "must hold text, got an empty file"),
        (b"abc\0def", "binary file .a zero byte at offset 3"),
        ("tr\xe8s noir".encode("latin-1"), "not at offset 2"),
        ("text".encode("utf-16"), "got UTF-16"),
    ],
)
def test_files_that_are_not_text(model, tmp_path, content, message):
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=message):
        tokenize(model, path, window=16)


def test_texts_that_cannot_be_used(model, encoder, tmp_path):
    with pytest.raises(FileNotFoundError, match="must be existing files"):
        tokenize(model, tmp_path / "none.txt", window=16)
    with pytest.raises(FileFormatError, match="got the folder"):
        tokenize(model, tmp_path, window=16)
    with pytest.raises(InvalidArgumentError, match="empty text at index 1"):
        tokenize(model, ["a", "  "], window=16)
    with pytest.raises(InvalidArgumentError, match="at least one text"):
        tokenize(model, [], window=16)
    with pytest.raises(InvalidArgumentError, match="got int at index 0"):
        tokenize(model, [3], window=16)
    with pytest.raises(InvalidArgumentError, match=r"window must be at most 64 .* got 65"):
        tokenize(model, TEXT, window=65)
    with pytest.raises(InvalidArgumentError, match="window must exceed the 2 special tokens"):
        tokenize(encoder, TEXT, window=2)
    for name in ("window", "batch_size", "max_tokens"):
        for value in (0, -1, 1.5, True):
            with pytest.raises(InvalidArgumentError, match=f"{name} must be a positive integer"):
                tokenize(model, TEXT, **({"window": 16} | {name: value}))


def test_tokenizer_missing_or_of_another_model(model, tmp_path):
    with pytest.raises(InvalidArgumentError, match="must have a tokenizer"):
        tokenize(Model(model.hf), TEXT)
    small = transformers.LlamaModel(transformers.LlamaConfig(**(LLAMA | {"vocab_size": 50})))
    with pytest.raises(InvalidArgumentError, match="token ids must be below 50"):
        tokenize(Model(small, model.tokenizer), TEXT, window=16)
    path = write_model(tmp_path / "m")
    for file in path.glob("tokenizer*"):
        file.unlink()
    assert load_model(path).tokenizer is None
    assert load_model(path, tokenizer=model.tokenizer).tokenizer is model.tokenizer


def test_from_folder_to_activations(model):
    stream = tokenize(model, TEXT, window=32, batch_size=4)
    batches = list(capture(model, stream, sites="resid", layers=[0]))
    table = model.hf.get_input_embeddings().weight.detach().numpy()
    for batch in batches:
        assert np.array_equal(batch.arrays[Site(0, "resid")], table[batch.tokens.ids])
