"""A Llama in rotated bases: the same outputs unrounded, the right places rounded, files, export."""

import json

import numpy as np
import pytest
from conftest import TEXT
from subspan.activations import load_model, tokenize
from subspan.compression import (
    Precision,
    Rotation,
    RotationMoments,
    calibrate_rotation,
    export,
    load,
    rotate_model,
    rotated,
    round_weights,
    save,
)
from subspan.compression._turns import BASES, turn
from subspan.compression.rotations.basis import frame_of, turned
from subspan.errors import FileFormatError, InvalidArgumentError, UnsupportedError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

WHOLE = Precision(16, 16, 0.0)


def llama(*, tied=False, bias=True, layers=2, seed=3):
    """Gains, biases and loud channels like those of a trained model."""
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=tied,
        attention_bias=bias, mlp_bias=bias,
    )  # fmt: skip
    model = load_model(transformers.LlamaForCausalLM(config))
    with torch.no_grad():
        for name, p in model.hf.named_parameters():
            if "norm" in name or "bias" in name:
                p.add_(0.3 * torch.randn(p.shape))
            elif "embed" in name:
                p.mul_(10 * torch.linspace(0.1, 3, p.shape[1]))
    return model


@pytest.fixture(scope="module")
def stream(tiny):
    return tokenize(load_model(tiny), [TEXT, "the red cat ran . "], window=16, max_tokens=200,
                    batch_size=3)  # fmt: skip


def logits(model, ids):
    with torch.no_grad():
        return model.hf(ids).logits


@pytest.mark.parametrize("scheme", [*BASES])
@pytest.mark.parametrize("tied", [False, True])
def test_rotation_alone_changes_nothing(stream, scheme, tied):
    model = llama(tied=tied)
    ids = torch.randint(0, 64, (3, 20))
    before = logits(model, ids)
    found = calibrate_rotation(model, stream, block=16)
    rotation = found.rotation(scheme, high_fraction=0.25)
    names = [name for name, _ in model.hf.named_modules()]
    with rotated(model, rotation, precision=Precision(parts=())):
        assert torch.allclose(before, logits(model, ids), atol=1e-5 * float(before.abs().max()))
        with rotated_cache(model, rotation):
            after = logits(model, ids)
        assert torch.allclose(before, after, atol=2e-4 * float(before.abs().max()))
    assert torch.equal(before, logits(model, ids))  # and all is as it was
    assert names == [name for name, _ in model.hf.named_modules()]
    assert model.hf.config.tie_word_embeddings == tied
    head = model.hf.get_output_embeddings().weight
    assert (head is model.hf.get_input_embeddings().weight) == tied


def rotated_cache(model, rotation):
    """Sixteen bits for keys and values: the basis of keys is in use."""
    import contextlib

    from subspan.compression.rotations.model import _cached, _rounding
    from subspan.compression.rotations.moments import on_cached

    undo = contextlib.ExitStack()
    for number, block in enumerate(model.blocks):
        turn = None if rotation.keys is None else torch.from_numpy(rotation.keys[number])
        two = [_rounding(WHOLE, 1, 8, together=False) for _ in range(2)]
        undo.callback(on_cached(block.module.self_attn, _cached(turn, *two)).remove)
    return undo


def test_moments_are_those_of_what_is_read(stream):
    model = llama()
    seen = {}

    def keep(name, rows):
        seen.setdefault(name, []).append(rows.detach().double())

    handles = []
    for layer, block in enumerate(model.blocks):
        own = block.module
        for norm in (own.input_layernorm, own.post_attention_layernorm):
            handles.append(norm.register_forward_hook(
                lambda norm, _, out: keep("residual", (out / norm.weight)[0])))  # fmt: skip
        handles.append(own.mlp.down_proj.register_forward_pre_hook(
            lambda _, args, layer=layer: keep(f"down{layer}", args[0][0])))  # fmt: skip
        handles.append(own.self_attn.v_proj.register_forward_hook(
            lambda _m, _a, out, layer=layer: keep(f"values{layer}", out[0])))  # fmt: skip
    cached = []
    for batch in stream:
        start = 0
        for length in batch.lengths:  # window by window: no padding
            ids = torch.from_numpy(batch.ids[start : start + length])[None]
            cached.append(model.hf(ids, use_cache=True).past_key_values)
            start += length
    for handle in handles:
        handle.remove()
    found = calibrate_rotation(model, stream, block=20)  # 16 is the largest divisor of 48 below
    assert found.n_tokens == stream.n_tokens
    x = torch.cat(seen["residual"]).numpy()
    assert np.allclose(found.residual, x.T @ x, rtol=1e-3, atol=1e-3 * np.trace(x.T @ x) / 32)
    for layer in range(2):
        x = torch.cat(seen[f"down{layer}"]).reshape(-1, 16).numpy()
        assert np.allclose(found.down[layer], x.T @ x, rtol=1e-4, atol=1e-4 * x.size)
        x = torch.cat(seen[f"values{layer}"]).reshape(-1, 2, 8).numpy()
        assert np.allclose(found.values[layer], np.einsum("nhi,nhj->hij", x, x), rtol=1e-3)
        keys = [one.layers[layer].keys.detach()[0].reshape(-1, 8).double() for one in cached]
        x = torch.cat(keys).numpy()
        assert np.allclose(found.keys[layer], x.T @ x, rtol=1e-3, atol=1e-3 * np.trace(x.T @ x))


def test_everything_is_rounded_where_it_should_be(stream):
    model = llama()
    found = calibrate_rotation(model, stream, block=16)
    rotation = found.rotation(high_fraction=0.25)
    precision = Precision(4, 8, 0.25)
    made = round_weights(model, rotation, precision)
    frame = frame_of("test", model)
    assert list(made) == [place.name for place in frame.places]
    for place in frame.places:
        weight, bias = turned(frame, place, rotation)
        one = made[place.name]
        assert one.relative_error == pytest.approx(
            float(np.linalg.norm(one.to_dense() - weight.numpy()) / weight.norm()), rel=1e-5
        )
        assert np.allclose(one.bias, bias.numpy(), atol=1e-6)
        assert 0.01 < one.relative_error < 0.2
    seen = []
    with rotated(model, rotation, made, precision) as meters:
        model.hf.model.layers[1].mlp.gate_proj.register_forward_pre_hook(
            lambda _, args: seen.append(args[0])
        )
        linear = model.hf.model.layers[1].mlp.gate_proj
        rows = torch.randn(5, 32)
        assert torch.equal(
            linear(rows), torch.nn.functional.linear(linear.rounding(rows), linear.weight,
                                                     linear.bias)
        )  # fmt: skip
        batch = torch.randint(0, 64, (2, 9))
        out = model.hf(batch, use_cache=True)
        assert {m.kind.rpartition(".")[2] for m in meters} == {
            *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
            *("keys", "values"),
        }
        assert len(meters) == 2 * 9
        assert all(0.001 < m.rounding.relative_error < 0.3 for m in meters)
        values = out.past_key_values.layers[0].values
        low, high = values[..., :6], values[..., 6:]
        for part, bits in ((low, 4), (high, 8)):  # at most 2^bits different numbers a token
            distinct = [len(torch.unique(row)) for row in part.reshape(-1, part.shape[-1])]
            assert max(distinct) <= 2**bits
        plain = model.hf(batch, use_cache=False).logits
        assert torch.allclose(plain, out.logits, atol=1e-5)
        step = model.hf(batch[:, -1:], past_key_values=out.past_key_values)  # and with a cache
        whole = model.hf(torch.cat([batch, batch[:, -1:]], 1), use_cache=False)
        assert torch.allclose(step.logits[:, -1], whole.logits[:, -1], atol=1e-4)


def test_resq_beats_its_rivals_in_a_model(stream):
    model = llama(bias=False, seed=5)
    ids = torch.randint(0, 64, (8, 24), generator=torch.Generator().manual_seed(0))
    before = logits(model, ids).double()
    found = calibrate_rotation(model, stream, block=16)
    lost = {}
    for scheme in ("none", "hadamard", "resq"):
        share = 0.25 if scheme == "resq" else 0.0
        every = []
        for seed in range(3):
            rotation = found.rotation(scheme, high_fraction=0.25, seed=seed)
            precision = Precision(4, 8, share)
            with rotated(model, rotation, round_weights(model, rotation, precision), precision):
                every.append(float((logits(model, ids) - before).square().mean()))
        lost[scheme] = np.mean(every)
    assert lost["resq"] < 0.7 * lost["hadamard"]
    assert lost["resq"] < 0.7 * lost["none"]


def test_files_and_the_way_back_to_dense(stream, tmp_path):
    ids = torch.randint(0, 64, (2, 15))
    for scheme, tied in (("resq", True), ("outliers", False), ("none", True)):
        model = llama(tied=tied)
        model.fingerprint  # noqa: B018 - of the weights as they are
        share = 0.25 if scheme != "none" else 0.0
        precision = Precision(4, 8, share)
        found = calibrate_rotation(model, stream, block=16)
        rotation = found.rotation(scheme, high_fraction=0.25).stored()
        made = round_weights(model, rotation, precision)
        folder = save(tmp_path / scheme, made, base=model, rotation=rotation, precision=precision)
        size = sum(one.storage().n_bytes for one in made.values())
        bases = sum(x.nbytes for x in rotation.tensors().values())
        content = (folder / "compressed.safetensors").read_bytes()
        assert len(content) - 8 - int.from_bytes(content[:8], "little") == size + bases
        if scheme == "outliers":
            assert bases == 4 * (32 + 2 * 8 + 2 * 16)  # indices, not matrices
        with rotated(model, rotation, made, precision):
            wanted = logits(model, ids)
        fresh = llama(tied=tied)
        again = load(folder, fresh)
        assert torch.allclose(logits(fresh, ids), wanted, atol=2e-3 * float(wanted.abs().max()))
        assert list(again) == list(made)
        notes = json.loads((folder / "compressed.json").read_text())
        assert notes["rotation"]["bits"] == 4
        dense = logits(export_of(fresh, tmp_path / f"{scheme}-dense"), ids)
        only_weights = Precision(4, 8, share, ("weights",))
        with rotated(model, rotation, made, only_weights):
            assert torch.allclose(dense, logits(model, ids), atol=1e-3 * float(wanted.abs().max()))
        assert torch.allclose(logits(fresh, ids), dense, atol=1e-5)
    with pytest.raises(InvalidArgumentError, match="model must be the one that was compressed"):
        load(folder, llama(seed=9))
    notes["rotation"]["magic"] = 1
    (folder / "compressed.json").write_text(json.dumps(notes))
    with pytest.raises(FileFormatError, match="magic"):
        load(folder, llama(tied=tied))


def export_of(model, folder):
    export(model, folder)
    return load_model(folder)


def test_a_model_can_be_changed_for_good(stream):
    model = llama()
    rotation = calibrate_rotation(model, stream, block=16).rotation()
    ids = torch.randint(0, 64, (2, 15))
    before = logits(model, ids)
    assert rotate_model(model, rotation) == []
    after = logits(model, ids)
    assert torch.allclose(before, after, atol=1e-4)
    assert not torch.equal(before, after)


def test_moments_are_saved(stream, tmp_path):
    found = calibrate_rotation(llama(), stream)
    found.save(tmp_path / "m.npz")
    again = RotationMoments.load(tmp_path / "m.npz")
    assert np.array_equal(found.down, again.down)
    assert again.n_tokens == found.n_tokens
    assert again.down.shape == (2, 48, 48)
    (tmp_path / "m.npz").write_bytes(b"nothing")
    with pytest.raises(FileFormatError, match="must be whole moments"):
        RotationMoments.load(tmp_path / "m.npz")


def test_rotations_go_through_tensors(rng):
    order = np.eye(6)[:, rng.permutation(6)]
    turn_of = np.linalg.qr(rng.normal(size=(2, 4, 4)))[0]
    tensors = Rotation(order, None, turn_of, order[None]).tensors()
    assert tensors["residual"].shape == (6,)
    assert tensors["keys"].dtype == np.float16
    again = Rotation.from_tensors(tensors)
    assert np.array_equal(again.residual, order)
    assert np.array_equal(again.down, order[None])
    assert np.array_equal(again.keys, turn_of.astype(np.float16))
    assert again.values is None
    assert Rotation().tensors() == {}
    even = np.stack([turn(12, rng) for _ in range(3)])
    signs = Rotation(down=even).tensors()["down"]
    assert signs.shape == (3, 12)
    assert signs.dtype == np.bool_
    assert np.allclose(Rotation.from_tensors({"down": signs}).down, even, atol=1e-15)
    once = Rotation(order, turn_of, turn_of, even).stored()
    assert once.stored().keys is not None
    assert all(
        np.array_equal(getattr(once, name), getattr(once.stored(), name))
        for name in ("residual", "values", "keys", "down")
    )
    with pytest.raises(FileFormatError, match="signs must be those of a Hadamard matrix, got 6"):
        Rotation.from_tensors({"residual": np.ones(6, np.bool_)})


def test_bits_are_counted():
    row = Precision(4, 8, 0.125).row_storage(1, 64).to_dict()
    assert row == {"values": 28 + 8, "scales": 4, "zeros": 2, "total": 42}
    heads = Precision(4, 8, 0.125).row_storage(9, 64).to_dict()
    assert heads["scales"] == 2 * 18
    assert Precision(4, 8, 0.125).row_storage(6, 256, together=True).to_dict()["scales"] == 4
    assert Precision(4, 8, 0.0).row_storage(1, 64).to_dict()["values"] == 32


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m, _: calibrate_rotation(m, []), InvalidArgumentError, "must hold calibration"),
        (lambda m, s: calibrate_rotation(m, s, block=1), InvalidArgumentError, "block must be >="),
        (lambda m, s: calibrate_rotation(m, s).rotation("magic"), InvalidArgumentError,
         "scheme must be one of"),
        (lambda m, _: rotate_model(m, Rotation(), {"x": _one()}), InvalidArgumentError,
         r"'x' must be a layer of shape \(4, 8\), got no such layer"),
        (lambda m, _: rotate_model(m, Rotation(residual=np.eye(16))), InvalidArgumentError,
         r"residual must be \(32, 32\), got \(16, 16\)"),
        (lambda m, _: rotate_model(m, Rotation(down=np.eye(20)[None].repeat(2, 0))),
         InvalidArgumentError, r"down must be \(2, 48, 48\), got \(2, 20, 20\)"),
        (lambda m, _: round_weights(m, Rotation(keys=2 * np.eye(8)[None].repeat(2, 0))),
         InvalidArgumentError, r"keys must be orthogonal to 5e-3, got 3\.0e\+00 off"),
        (lambda m, _: round_weights(m, Rotation(values=np.full((2, 2, 8, 8), np.nan))),
         InvalidArgumentError, "values must be orthogonal to 5e-3, got nan off"),
    ],
)  # fmt: skip
def test_what_is_refused(stream, call, error, message):
    model = llama()
    ids = torch.randint(0, 64, (1, 9))
    before = logits(model, ids)
    with pytest.raises(error, match=message):
        call(model, stream)
    assert torch.equal(before, logits(model, ids))


def _one():
    from subspan.compression import Integers

    return Integers.of(np.ones((4, 8)), bits=(4, 8))


def test_not_a_number_names_its_place(stream):
    model = llama()
    with torch.no_grad():
        model.hf.model.layers[1].self_attn.v_proj.weight[0, 0] = np.nan
    with pytest.raises(InvalidArgumentError, match="values of layer 1 must be finite"):
        calibrate_rotation(model, stream)


def test_other_families_are_refused(stream):
    config = transformers.GPT2Config(
        n_embd=32, n_layer=2, n_head=2, vocab_size=64, bos_token_id=0, eos_token_id=0
    )
    model = load_model(transformers.GPT2LMHeadModel(config))
    with pytest.raises(UnsupportedError, match=r"calibrate_rotation\] model must be built like"):
        calibrate_rotation(model, stream)
    with pytest.raises(UnsupportedError, match=r"round_weights\] model must be built like Llama"):
        round_weights(model, Rotation())
