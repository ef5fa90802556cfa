"""A store of a tiny model: values, tokens and texts come back; every kind of damage is named."""

import json
import shutil

import numpy as np
import pytest
from conftest import TEXT
from safetensors.numpy import load_file, save_file
from subspan.activations import (
    ActivationStore,
    OutlierRule,
    Site,
    capture,
    load_model,
    open_saved,
    tokenize,
    write_activations,
)
from subspan.activations._store_index import store_id
from subspan.atlas import atlas
from subspan.errors import DtypeError, FileFormatError, InvalidArgumentError
from subspan.report import Entry, write_safetensors
from test_activations_capture import word_tokenizer

SITES = (Site(1, "resid"), Site(1, "mlp"))
TEXTS = [TEXT, "the dog sat . the red mat", TEXT[:700]]


@pytest.fixture(scope="module")
def model(tiny):
    return load_model(tiny)


@pytest.fixture(scope="module")
def stream(model):
    return tokenize(model, TEXTS, window=48, batch_size=3)


@pytest.fixture(scope="module")
def captured(model, stream):
    return list(capture(model, stream, sites=SITES))


@pytest.fixture(scope="module")
def written(model, stream, tmp_path_factory):
    out = tmp_path_factory.mktemp("stores") / "store"
    return write_activations(model, stream, out, sites=SITES, dtype="float32", shard_mb=0.05)


@pytest.fixture
def copy(written, tmp_path):
    """A copy of the store that a test may damage."""
    return shutil.copytree(written.path, tmp_path / "copy")


def rows_of(captured, site):
    return np.concatenate([batch.arrays[site] for batch in captured])


def test_values_are_those_of_the_model(written, captured, stream):
    assert written.n_tokens == stream.n_tokens
    assert written.sites == tuple(sorted(SITES, key=Site.order))
    assert len(list(written.path.glob("shard-*.safetensors"))) > 3
    written.verify()
    for site in SITES:
        wanted = rows_of(captured, site)
        assert (written.width(site), written.dtype(site.key)) == (32, "float32")
        assert np.array_equal(written.rows(site, 0, written.n_tokens), wanted)
        assert np.array_equal(written.rows(site.key, 90, 300), wanted[90:300])
        some = np.random.default_rng(0).integers(0, len(wanted), 200)
        assert np.array_equal(written.take(site, some), wanted[some])
        assert np.allclose(written.norms(site), np.linalg.norm(wanted, axis=1), rtol=1e-6)
        assert np.array_equal(written.norms(site, 90, 300), written.norms(site)[90:300])
    assert written.take(SITES[0], []).shape == (0, 32)
    assert written.facts["dtype"] == "float32"
    assert written.documents == stream.documents == ("text 0", "text 1", "text 2")
    again = ActivationStore(str(written.path))
    assert again.fingerprint == written.fingerprint
    assert repr(again) == repr(written)


@pytest.mark.parametrize(("dtype", "bits"), [("float16", 11), ("bfloat16", 8)])
def test_stored_rounded_to_nearest(model, stream, captured, tmp_path, dtype, bits):
    torch = pytest.importorskip("torch")
    store = write_activations(model, stream, tmp_path / "s", sites=SITES, dtype=dtype)
    for site in SITES:
        wanted = rows_of(captured, site)
        found = store.rows(site, 0, store.n_tokens)
        assert store.dtype(site) == dtype
        assert np.array_equal(found, torch.from_numpy(wanted).to(getattr(torch, dtype)).float())
        assert np.all(np.abs(found - wanted) <= np.abs(wanted) * 2.0**-bits + 1e-7)
        batch = next(store.batches(site, 16, seed=3, dtype=dtype))
        assert batch.dtype == getattr(torch, dtype)
        rows = store.batches(site, 16, seed=3).rows_of(0)
        assert np.array_equal(batch.float().numpy(), found[rows])
        array = next(store.batches(site, 16, seed=3, output="numpy"))
        assert array.dtype == np.float32
        assert np.array_equal(array, found[rows])
    assert np.array_equal(store.norms(SITES[0]), store.norms(SITES[0].key))


def test_tokens_come_back_without_the_model(written, stream):
    whole = written.tokens()
    parts = list(stream)
    for name in ("ids", "document", "position", "window_position", "special", "shared", "lengths"):
        wanted = np.concatenate([getattr(part, name) for part in parts])
        assert np.array_equal(getattr(whole, name), wanted), name
    assert whole.pieces == tuple(piece for part in parts for piece in part.pieces)
    assert whole.pad_id == stream.pad_id
    padded, mask = parts[1].padded()
    start = len(parts[0])
    again = written.tokens(start, start + len(parts[1])).padded()
    assert np.array_equal(again[0], padded)
    assert np.array_equal(again[1], mask)
    for start, stop in ((0, 1), (47, 49), (100, 500)):
        part = written.tokens(start, stop)
        assert part.pieces == whole.pieces[start:stop]
        assert np.array_equal(part.ids, whole.ids[start:stop])
        assert part.lengths.sum() == stop - start
    row = int(np.flatnonzero(whole.document == 1)[2])
    assert (
        "".join(whole.pieces[i] for i in range(*written.around(row, before=99, after=99)))
        == (TEXTS[1])
    )
    for row in (0, 47, 48, written.n_tokens - 1):
        place = int(whole.document[row]), int(whole.position[row])
        wanted = stream.context(*place, before=5, after=3)
        before, here, after = written.context(row, before=5, after=3)
        # blanks before a piece are part of it here
        assert "".join((before, here, after)).strip() == "".join(wanted).strip()
        assert here.strip() == wanted[1].strip()


def test_characters_of_several_tokens_are_shown_once(tmp_path, model):
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {byte: number for number, byte in enumerate(alphabet)}
    raw = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = tokenizers.decoders.ByteLevel()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=raw)
    config = model.hf.config.to_dict() | {"vocab_size": 256}
    hf = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config)).eval()
    text = "na\u00efve \u732b\U0001f600 \u20ac3"
    stream = tokenize(load_model(hf, tokenizer=fast), text, window=4)
    assert stream.n_tokens == len(text.encode()) > len(text)
    store = write_activations(
        load_model(hf, tokenizer=fast), stream, tmp_path / "s", sites=["resid"], shard_mb=1e-4
    )
    tokens = store.tokens()
    joined = "".join(p[n:] for p, n in zip(tokens.pieces, tokens.shared.tolist(), strict=True))
    assert joined == text
    for row in range(store.n_tokens):
        assert "".join(store.context(row, before=99, after=99)) == text


def test_special_tokens_have_a_mark(tmp_path):
    transformers = pytest.importorskip("transformers")
    options = {"vocab_size": 100, "hidden_size": 16, "num_hidden_layers": 1}
    config = transformers.BertConfig(
        **options, num_attention_heads=2, intermediate_size=8, max_position_embeddings=32
    )
    model = load_model(
        transformers.BertModel(config).eval(), tokenizer=word_tokenizer(special=True)
    )
    text = " ".join(f"w{i % 80}" for i in range(50))
    store = write_activations(model, text, tmp_path / "s", window=12, shard_mb=1e-3)
    tokens = store.tokens()
    assert tokens.special.sum() == 2 * len(tokens.lengths) == 10
    assert tokens.pieces[0] == "[CLS]"
    before, here, after = store.context(6, before=99, after=99)
    assert (before + here + after).strip() == text
    assert store.context(0)[1] == "[CLS]"


def test_other_jobs_read_a_store(written, captured, tmp_path):
    saved = open_saved(written.path)
    assert saved.sites == written.sites
    assert np.array_equal(saved.rows(SITES[1], 5, 90), rows_of(captured, SITES[1])[5:90])
    report = atlas(written.path, out=tmp_path / "atlas", sites=["resid"]).report
    assert report["source"]["n_tokens"] == written.n_tokens


def test_batches_are_a_permutation_of_the_store(written):
    torch = pytest.importorskip("torch")
    rows = written.rows(SITES[0], 0, written.n_tokens)
    batches = written.batches(SITES[0], 64, seed=1, epochs=2, buffer_mb=1)
    for number, batch in enumerate(batches):
        assert isinstance(batch, torch.Tensor)
        assert np.array_equal(batch.numpy(), rows[batches.rows_of(number)])
    epoch = [batches.rows_of(number) for number in range(batches.per_epoch)]
    assert np.array_equal(np.sort(np.concatenate(epoch)), np.arange(written.n_tokens))
    resumed = written.batches(SITES[0], 64, seed=1, epochs=2, start=7, buffer_mb=100)
    assert np.array_equal(next(resumed).numpy(), rows[batches.rows_of(7)])
    resumed.close()
    first = written.tokens().first_in_window
    rule = OutlierRule(factor=1e6, first_token="drop")
    left = written.batches(SITES[0], 64, exclude=rule)
    assert left.n_rows == int((~first).sum())
    kept = np.concatenate([left.rows_of(number) for number in range(left.total)])
    assert np.array_equal(np.sort(kept), np.flatnonzero(~first))
    left.close()


def test_arguments_are_checked(written):
    cases = [
        (lambda: written.rows("layer.00/resid", 0, 1), "site must be one of layer.01/resid"),
        (written.width, "got None"),
        (lambda: written.take(SITES[0], [written.n_tokens]), "indices must be in"),
        (lambda: written.take(SITES[0], [-1]), "indices must be in"),
        (lambda: written.tokens(5, 4), "rows must lie in"),
        (lambda: written.tokens(5, 5), "stop must exceed start"),
        (lambda: written.norms(SITES[0], 0, 10**9), "rows must lie in"),
        (lambda: written.around(-1), "row must be in"),
        (lambda: written.batches("resid", 4), "site must be one of"),
    ]
    for call, match in cases:
        with pytest.raises(InvalidArgumentError, match=match):
            call()
    with pytest.raises(DtypeError, match="list of integers"):
        written.take(SITES[0], [0.5])


def fails(path, match, error=FileFormatError):
    with pytest.raises(error, match=match):
        ActivationStore(path)


def test_what_is_no_store(tmp_path):
    fails(tmp_path / "none", "must exist", FileNotFoundError)
    fails(tmp_path, r"index\.json.* without one")
    (tmp_path / ".run" / "stage").mkdir(parents=True)
    fails(tmp_path, "a finished store, got .* of which 0 shards are written")
    for text in ("", "[]", '{"schema": "x"}', '{"schema": "subspan.activations/1"}'):
        (tmp_path / "index.json").write_text(text)
        fails(tmp_path, "must be the index of a store")


def test_an_index_without_shards(copy):
    index = json.loads((copy / "index.json").read_text())
    (copy / "index.json").write_text(json.dumps(index | {"shards": []}))
    fails(copy, "must be the index of a store .*: it lists no shards")


def test_missing_truncated_and_changed_shards(copy):
    shard = copy / "shard-00001.safetensors"
    whole = shard.read_bytes()
    for size in (len(whole) - 1, len(whole) // 2):
        shard.write_bytes(whole[:size])
        fails(copy, f"must be a whole .safetensors file, got {size} bytes where")
    shard.write_bytes(whole + b"0")
    fails(copy, f"must have {len(whole)} bytes, got {len(whole) + 1}")
    shard.write_bytes(whole[:5])
    fails(copy, "must be a whole .safetensors file")
    shard.unlink()
    fails(copy, "must be there, got no such file")
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    store = ActivationStore(copy)
    with pytest.raises(FileFormatError, match=r"00001.* must hold what was written"):
        store.verify()
    shard.write_bytes(whole)
    ActivationStore(copy).verify()
    tokens = copy / "tokens" / "shard-00000.safetensors"
    whole = tokens.read_bytes()
    tokens.write_bytes(whole[:-20])
    fails(copy, r"tokens/shard-00000\.safetensors must be a whole \.safetensors file")
    tokens.unlink()
    fails(copy, "tokens/shard-00000.safetensors must be there")


def test_foreign_shards(copy, written, model, tmp_path):
    shard = copy / "shard-00001.safetensors"
    mine = shard.read_bytes()
    shutil.copy(copy / "shard-00000.safetensors", shard)
    fails(copy, r"must be shard 1 of this store, got a file of another store \(its shard 0\)")
    texts = [text.replace("cat", "dog") for text in TEXTS]
    other = tokenize(model, texts, window=48, batch_size=3)
    store = write_activations(
        model, other, tmp_path / "o", sites=SITES, dtype="float32", shard_mb=0.05
    )
    shutil.copy(store.path / shard.name, shard)
    assert shard.stat().st_size == len(mine)
    fails(copy, "must be shard 1 of this store, got a file of another store")
    save_file(load_file(written.path / shard.name), shard)
    fails(copy, "that was not written for a store")
    shard.write_bytes(mine)
    ActivationStore(copy)
    shutil.copy(shard, copy / "shard-00099.safetensors")
    fails(copy, "'shard-00099.safetensors' too. Move it away")


def test_an_index_of_other_content(copy):
    index = json.loads((copy / "index.json").read_text())
    sites = dict.fromkeys(index["sites"], 31)
    (copy / "index.json").write_text(json.dumps(index | {"sites": sites}))
    fails(copy, "must hold the widths of its index")
    index["shards"][1]["rows"] += 1
    (copy / "index.json").write_text(json.dumps(index))
    fails(copy, "must describe .* rows, got others")
    index["shards"][1]["rows"] -= 1
    index["identity"]["dtype"] = "float16"
    (copy / "index.json").write_text(json.dumps(index))
    fails(copy, "of another store")  # what was asked is part of the mark


def test_shards_of_another_dtype(model, stream, tmp_path):
    store = write_activations(model, stream, tmp_path / "s", sites=SITES[:1])
    index = json.loads((store.path / "index.json").read_text())
    for number, shard in enumerate(index["shards"]):
        file = store.path / f"shard-{number:05d}.safetensors"
        arrays = {key: array.view(np.uint16) for key, array in load_file(file).items()}
        notes = {"store": store_id(store.facts), "shard": str(number)}
        write_safetensors(file, [Entry.of(k, a, "bfloat16") for k, a in arrays.items()], notes)
        shard["bytes"] = file.stat().st_size
    (store.path / "index.json").write_text(json.dumps(index))
    fails(store.path, r"must hold the dtype of its index \(\{'float16'\}\), got \{'bfloat16'\}")


def test_a_shard_that_shrinks_while_it_is_open_is_named(copy):
    store = ActivationStore(copy)
    batches = store.batches(SITES[0], 8, output="numpy")
    shard = copy / "shard-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:300])
    later = ActivationStore.batches(store, SITES[0], 8, output="numpy", start=1)
    for source in (batches, later):
        with pytest.raises(FileFormatError, match="must be as it was when it was opened"):
            list(source)
