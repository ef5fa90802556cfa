"""Models: one Gram an input, layers in place of weights, files, the way back to dense."""

import json

import numpy as np
import pytest
from conftest import TEXT
from safetensors import safe_open
from subspan.activations import TokenBatch, load_model, tokenize
from subspan.compression import (
    Calibration,
    calibrate,
    export,
    find_weights,
    fisher_svd,
    load,
    perplexity,
    replace_weights,
    replaced,
    save,
    sparse_dictionary,
    truncated_svd,
    whitened_svd,
)
from subspan.compression.layers import matrix_of
from subspan.errors import FileFormatError, InvalidArgumentError, OutputError, UnsupportedError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.fixture
def model(tiny):
    return load_model(tiny)


@pytest.fixture
def stream(model):
    return tokenize(model, [TEXT, "the red cat ran . "], window=16, max_tokens=150, batch_size=3)


def gpt2():
    torch.manual_seed(1)
    config = transformers.GPT2Config(
        n_embd=16, n_layer=2, n_head=2, vocab_size=64, bos_token_id=0, eos_token_id=0
    )
    return load_model(transformers.GPT2LMHeadModel(config))


def tokens(seed, windows=3, length=12, vocabulary=64):
    count = windows * length
    place, zeros = np.tile(np.arange(length), windows), np.zeros(count, np.int64)
    return TokenBatch(
        index=0, ids=np.random.default_rng(seed).integers(0, vocabulary, count),
        pieces=("a",) * count, shared=zeros, document=zeros, position=place, window_position=place,
        special=zeros > 0, lengths=np.full(windows, length),
    )  # fmt: skip


def factors(model, kept=0.6, pick=truncated_svd):
    return {w.name: pick(matrix_of(w.module)).cut(kept=kept) for w in find_weights(model)}


def seen(model, stream, name):
    """Rows that a layer reads, and gradients at its outputs, window by window, without padding."""
    module, rows, wide = model.hf.get_submodule(name), [], []
    handle = module.register_forward_pre_hook(lambda _, args: rows.append(args[0].detach()))
    for batch in stream:
        start = 0
        for length in batch.lengths:
            ids = torch.from_numpy(batch.ids[start : start + length])[None]
            model.hf(ids)
            wide.append(rows.pop().reshape(length, -1).double())
            start += length
    handle.remove()
    return torch.cat(wide).numpy()


def test_weights_are_found_by_pattern(model):
    found = find_weights(model)
    assert len(found) == 21
    assert {w.kind.rpartition(".")[2] for w in found} == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    }  # fmt: skip
    assert [w.layer for w in found] == sorted(w.layer for w in found)
    some = find_weights(model, "model.layers.*.self_attn.k_proj")
    assert [w.shape for w in some] == [(16, 32)] * 3
    with pytest.raises(
        InvalidArgumentError, match=r"modules must be patterns .* Nearby names: .*k_proj"
    ):
        find_weights(model, "model.layers.*.self_attn.key_proj")
    with pytest.raises(InvalidArgumentError, match="must match linear layers"):
        find_weights(model, "model.norm")


def test_tied_weights_are_refused():
    with pytest.raises(InvalidArgumentError, match=r"'lm_head', whose weight is that of .*wte"):
        find_weights(gpt2(), "lm_head")


def test_each_distinct_input_is_collected_once(model, stream):
    found = calibrate(model, stream)
    assert len(found.shared) == 21
    assert len(found.inputs) == 12  # of q, k and v; of o; of gate and up; of down
    first = "model.layers.1.self_attn.q_proj"
    assert found.shared["model.layers.1.self_attn.v_proj"] == first
    assert found.n_tokens == stream.n_tokens
    for name in (first, "model.layers.0.mlp.down_proj"):
        x = seen(model, stream, name)
        assert found.moments(name).count == len(x) == stream.n_tokens
        assert np.allclose(found.moments(name).second_moment(), x.T @ x / len(x), rtol=1e-4)
        assert np.allclose(found.scale(name), np.abs(x).mean(0), rtol=1e-4)
    with pytest.raises(InvalidArgumentError, match=r"importance\] gradients must have been"):
        found.importance(first)


def test_gradients_are_those_of_the_loss(model, stream):
    name = "model.layers.1.mlp.up_proj"
    weight = model.hf.get_submodule(name).weight
    weight.requires_grad_(False)
    one = [stream[0]]
    found = calibrate(model, one, gradients=True, seed=3)
    assert not weight.requires_grad  # as it was
    assert all(p.grad is None for p in model.hf.parameters())
    again = calibrate(model, one, gradients=True, seed=3)
    other = calibrate(model, one, gradients=True, seed=4)
    h = found.outputs(name).second_moment()
    assert np.array_equal(h, again.outputs(name).second_moment())
    assert not np.allclose(h, other.outputs(name).second_moment())
    # against a plain backward pass from the tokens that this seed draws
    ids, mask = (torch.from_numpy(x) for x in stream[0].padded())
    outputs = []
    module = model.hf.get_submodule(name)
    weight.requires_grad_(True)

    def keep(_module, _args, y):
        y.retain_grad()
        outputs.append(y)

    handle = module.register_forward_hook(keep)
    logp = torch.log_softmax(model.hf(ids).logits[mask], -1)
    random = torch.Generator().manual_seed(3)
    labels = torch.multinomial(logp.detach().exp(), 1, generator=random)
    (-logp.gather(1, labels).sum()).backward()
    handle.remove()
    rows = outputs[0].grad[mask].double().numpy()
    assert np.allclose(h, rows.T @ rows / len(rows), rtol=1e-3, atol=1e-12)
    fisher = weight.grad.double().square().sum(1).numpy() / found.n_tokens
    assert np.allclose(found.importance(name), np.sqrt(fisher), rtol=1e-4)


def test_the_predicted_loss_is_near_the_true_one(model, stream):
    """tr H dW G dW^T / 2 is the KL divergence of a small change, but for what tokens share."""
    name = "model.layers.2.mlp.down_proj"  # after it, positions no longer mix
    batches = list(stream)
    draws = [calibrate(model, batches, modules=name, gradients=True, seed=s) for s in range(4)]
    g = draws[0].moments(name).second_moment()
    h = np.mean([d.outputs(name).second_moment() for d in draws], axis=0)
    weight = model.hf.get_submodule(name).weight
    change = 3e-3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    d = change.double().numpy()
    predicted = 0.5 * np.trace(h @ d @ g @ d.T)
    total, count = 0.0, 0
    for batch in batches:
        ids, mask = (torch.from_numpy(x) for x in batch.padded())
        with torch.no_grad():
            before = torch.log_softmax(model.hf(ids).logits[mask].double(), -1)
            weight += change
            after = torch.log_softmax(model.hf(ids).logits[mask].double(), -1)
            weight -= change
        total += float((before.exp() * (before - after)).sum())
        count += int(mask.sum())
    assert predicted == pytest.approx(total / count, rel=0.3)


def test_calibrations_come_back_from_files(model, stream, tmp_path):
    found = calibrate(model, stream, gradients=True)
    found.save(tmp_path / "c.npz")
    again = Calibration.load(tmp_path / "c.npz")
    assert again.shared == found.shared
    assert again.n_tokens == found.n_tokens
    for name in found.shared:
        assert np.array_equal(again.moments(name).m2, found.moments(name).m2)
        assert np.array_equal(again.outputs(name).m2, found.outputs(name).m2)
        assert np.array_equal(again.scale(name), found.scale(name))
        assert np.array_equal(again.importance(name), found.importance(name))
    (tmp_path / "c.npz").write_bytes(b"PK nothing")
    with pytest.raises(FileFormatError, match="must be a whole calibration"):
        Calibration.load(tmp_path / "c.npz")


def test_what_calibration_refuses(model, stream):
    with pytest.raises(InvalidArgumentError, match="batches must hold calibration tokens, got non"):
        calibrate(model, [])
    name = "model.layers.1.mlp.down_proj"
    with torch.no_grad():
        model.hf.get_submodule("model.layers.1.mlp.up_proj").weight[0, 0] = float("nan")
    with pytest.raises(InvalidArgumentError, match=f"input of '{name}' must be finite"):
        calibrate(model, stream)
    config = transformers.BertConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=24,
    )  # fmt: skip
    encoder = load_model(transformers.BertModel(config))
    assert len(calibrate(encoder, [tokens(0)]).shared) == 6
    with pytest.raises(UnsupportedError, match="gradients need a causal language model"):
        calibrate(encoder, [tokens(0)], gradients=True)
    with pytest.raises(UnsupportedError, match="model must be a causal language model with an"):
        perplexity(encoder, [tokens(0)])


def test_perplexity_equals_whole_logits_in_float64(model, stream):
    total, count = 0.0, 0
    for batch in stream:
        start = 0
        for length in batch.lengths:
            ids = torch.from_numpy(batch.ids[start : start + length])[None]
            start += length
            with torch.no_grad():
                logp = torch.log_softmax(model.hf(ids).logits.double(), -1)[0, :-1]
            total -= float(logp.gather(1, ids[0, 1:, None]).sum())
            count += length - 1
    found = perplexity(model, stream)
    assert found.n_predictions == count
    assert found.nats == pytest.approx(total / count, rel=1e-5)
    assert found.value == pytest.approx(np.exp(total / count), rel=1e-4)
    with pytest.raises(InvalidArgumentError, match="windows of two tokens or more"):
        perplexity(model, [tokens(0, windows=2, length=1)])


def test_replaced_layers_compute_what_the_weights_would(model, stream):
    c = calibrate(model, stream, gradients=True)
    made = {}
    for number, w in enumerate(find_weights(model)):
        matrix = matrix_of(w.module)
        if number % 4 == 0:
            made[w.name] = sparse_dictionary(matrix, c.moments(w.name), kept=0.7, iterations=2)
        elif number % 4 == 1:
            made[w.name] = fisher_svd(matrix, c.importance(w.name)).cut(kept=0.7)
        elif number % 4 == 2:
            made[w.name] = whitened_svd(matrix, c.moments(w.name), affine=True).cut(rank=5)
        else:
            made[w.name] = truncated_svd(matrix).cut(kept=1.0)
    before = perplexity(model, stream)
    with replaced(model, made):
        factored = perplexity(model, stream)
    assert perplexity(model, stream) == before
    with torch.no_grad():
        for name, one in made.items():
            module = model.hf.get_submodule(name)
            module.weight.copy_(one.to_dense())
            if getattr(one, "bias", None) is not None:
                module.bias = torch.nn.Parameter(one.bias)
    assert perplexity(model, stream).nats == pytest.approx(factored.nats, rel=1e-5)
    assert factored.nats != before.nats


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_files_hold_what_is_counted_and_load_again(model, stream, tmp_path, dtype):
    made = factors(model)
    name = next(iter(made))
    made[name] = sparse_dictionary(matrix_of(model.hf.get_submodule(name)), kept=0.7, iterations=2)
    last = list(made)[-1]
    made[last] = truncated_svd(matrix_of(model.hf.get_submodule(last))).cut(kept=1.0)
    save(tmp_path / "small", made, base=model, dtype=dtype, facts={"method": "svd"})
    file = tmp_path / "small" / "compressed.safetensors"
    bits = 32 if dtype == "float32" else 16
    head = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    stored = [one for one in made.values() if one.kind != "dense"]
    assert file.stat().st_size - head == sum(one.storage(bits=bits).n_bytes for one in stored)
    notes = json.loads((tmp_path / "small" / "compressed.json").read_text())
    assert notes["method"] == "svd"
    assert notes["modules"][last]["kind"] == "dense"
    assert sum(one["bytes"]["total"] for one in notes["modules"].values()) == sum(
        one.storage(bits=bits).n_bytes for one in made.values()
    )
    with safe_open(file, "pt") as opened:
        keys = list(opened.keys())
    kinds = {key.removeprefix(f"{name}.") for key in keys if key.startswith(name)}
    assert kinds == {"dict", "codes_val", "codes_idx"}
    with replaced(model, made):
        wanted = perplexity(model, stream).nats
    read = load(tmp_path / "small", model)
    assert set(read) == set(made) - {last}
    rel = {"float16": 1e-3, "bfloat16": 1e-2, "float32": 1e-6}[dtype]
    assert perplexity(model, stream).nats == pytest.approx(wanted, rel=rel)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_export_is_an_ordinary_model(tiny, tmp_path, family):
    model = load_model(tiny) if family == "llama" else gpt2()
    batch = [tokens(7)]
    replace_weights(model, factors(model))
    small = perplexity(model, batch).nats
    export(model, tmp_path / "dense")
    assert perplexity(model, batch).nats == pytest.approx(small, rel=1e-5)
    again = load_model(tmp_path / "dense")
    assert perplexity(again, batch).nats == pytest.approx(small, rel=1e-5)
    assert {type(w.module).__name__ for w in find_weights(again)} == {
        "Linear" if family == "llama" else "Conv1D"
    }
    assert [w.shape for w in find_weights(again)] == [w.shape for w in find_weights(model)]
    with pytest.raises(OutputError, match=r"folder must be new, got .* which exists"):
        export(model, tmp_path / "dense")


def test_interrupted_writes_leave_nothing(model, tmp_path, monkeypatch):
    from subspan.report import files

    made = factors(model)
    save(tmp_path / "a", made, base=model)
    before = (tmp_path / "a" / "compressed.safetensors").read_bytes()

    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, _):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "_open", lambda path: Full(path.open("wb")))
    with pytest.raises(OutputError, match="the disk is full"):
        save(tmp_path / "a", factors(model, 0.3), base=model)
    assert (tmp_path / "a" / "compressed.safetensors").read_bytes() == before
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [
        "compressed.json", "compressed.safetensors",
    ]  # fmt: skip


def test_what_files_and_models_refuse(model, tmp_path):
    made = factors(model)
    name = next(iter(made))
    with pytest.raises(InvalidArgumentError, match="names must be those of linear layers"):
        replace_weights(model, {"model.layers.9.q": made[name]})
    with pytest.raises(InvalidArgumentError, match=r"must have a replacement of shape \(32, 32\)"):
        replace_weights(model, {name: truncated_svd(np.ones((5, 6))).cut(rank=1)})
    with pytest.raises(FileNotFoundError, match=r"must hold compressed\.json, got none"):
        load(tmp_path)
    folder = save(tmp_path / "a", made, base=model)
    with pytest.raises(InvalidArgumentError, match="model must be the one that was compressed"):
        load(folder, gpt2())
    big = {name: truncated_svd(1e6 * np.ones((32, 32))).cut(rank=1)}
    with pytest.raises(InvalidArgumentError, match=r"must fit float16, got one that overflows"):
        save(tmp_path / "b", big, base=model)
    with pytest.raises(InvalidArgumentError, match="dtype must be one of"):
        save(tmp_path / "b", made, base=model, dtype="int8")
    note = folder / "compressed.json"
    note.write_text(note.read_text().replace("subspan.compressed/1", "other"))
    with pytest.raises(FileFormatError, match="must be notes of the schema"):
        load(folder)
    (folder / "compressed.safetensors").write_bytes(b"12345678")
    with pytest.raises(FileFormatError, match="must be a whole safetensors file"):
        load(folder)
