"""Caches of models in fewer dimensions: rates, plans, what attention reads, and measured bytes."""

import itertools

import numpy as np
import pytest
from subspan.activations import load_model
from subspan.compression import (
    CacheMoments,
    CachePlan,
    calibrate_cache,
    perplexity,
    plan_cache,
)
from subspan.compression.caches.moments import _KINDS
from subspan.errors import FileFormatError, InvalidArgumentError, UnsupportedError
from test_compression_models import tokens

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from subspan.compression.caches.compressed import CompressedCache, ProjectingCache  # noqa: E402

METHODS = ("channels", "pca", "score-aware", "loss-aware")


@pytest.fixture(scope="module")
def model(tiny):
    made = load_model(tiny)
    made.hf.double()
    return made


@pytest.fixture(scope="module")
def found(model):
    return calibrate_cache(model, [tokens(0), tokens(1)], gradients=True)


def planted(rng, n=400, rank=8, d=64):
    """Moments of a model with two layers of three heads whose states have few dimensions."""
    states = rng.normal(size=(2, 2, 3, n, rank)) @ rng.normal(size=(2, 2, 3, rank, d))
    made = CacheMoments(2, 3)
    for i, j in np.ndindex(2, 3):
        made.keys[i][j].update(states[0, i, j])
        made.values[i][j].update(states[1, i, j])
        made.queries[i][j].update(rng.normal(size=(n, d)))
    return made, states


@pytest.mark.parametrize("method", ["pca", "score-aware"])
def test_planted_states_are_exact_at_their_rank_and_bytes_are_measured(rng, method):
    moments, states = planted(rng)
    plan = plan_cache(moments, method).cut(0.125)
    assert (plan.ranks == 8).all()
    assert plan.kept == 0.125
    cache = CompressedCache(plan, dtype="float64")
    assert (cache.nbytes, cache.get_seq_length()) == (0, 0)
    for layer in range(2):
        keys, values = (torch.from_numpy(states[side, layer])[None] for side in (0, 1))
        first = cache.update(keys[:, :, :250], values[:, :, :250], layer)
        assert first[0].shape == (1, 3, 250, 64)
        seen = cache.update(keys[:, :, 250:], values[:, :, 250:], layer)
        assert torch.allclose(seen[0], keys, atol=1e-7)
        assert torch.allclose(seen[1], values, atol=1e-7)
    assert cache.nbytes == plan.storage(tokens=400, bits=64).n_bytes == 400 * 8 * 12 * 8
    assert plan.dense_storage(tokens=400, bits=64).n_bytes == 8 * cache.nbytes
    short = CompressedCache(plan.with_ranks(np.full((2, 2, 3), 7)), dtype="float64")
    assert (short.update(keys, values, 1)[0] - keys).abs().max() > 1e-2


@pytest.mark.parametrize("method", METHODS)
def test_all_dimensions_change_nothing(model, found, method):
    plan = plan_cache(found, method)
    assert plan.kept == 1.0
    batch = tokens(3)
    ids = torch.from_numpy(batch.padded()[0])
    with torch.no_grad():
        dense = model.hf(ids).logits
        cache = CompressedCache(plan)
        seen = model.hf(ids, past_key_values=cache, use_cache=True).logits
    assert torch.allclose(dense, seen, atol=1e-9)
    assert cache.nbytes == plan.storage(tokens=36, bits=64).n_bytes
    for norm in ("states", "attention", "loss"):
        for errors in plan.errors(found, norm):
            assert errors.shape == (3, 2, 9)
            assert np.allclose(errors[..., -1], 0, atol=1e-9 * errors.max())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", None])
def test_bytes_are_those_that_are_allocated(model, found, rng, dtype):
    plan = plan_cache(found).with_ranks(rng.integers(1, 9, size=(2, 3, 2)))
    ids = torch.from_numpy(tokens(4).padded()[0])
    cache = CompressedCache(plan, dtype=dtype)
    with torch.no_grad():
        model.hf(ids, past_key_values=cache, use_cache=True)
    bits = {"float16": 16, "bfloat16": 16, "float32": 32, None: 64}[dtype]
    size = plan.storage(tokens=36, bits=bits)
    assert cache.nbytes == size.n_bytes == 36 * int(plan.ranks.sum()) * bits // 8
    assert size.to_dict()["keys"] == 36 * int(plan.ranks[0].sum()) * bits // 8
    owned = [x for layer in cache.layers for x in vars(layer).values() if torch.is_tensor(x)]
    assert sum(x.nbytes for x in owned) == cache.nbytes
    cache.crop(-2)
    assert cache.get_seq_length() == 10
    assert cache.nbytes == plan.storage(tokens=30, bits=bits).n_bytes
    cache.reorder_cache(torch.tensor([0, 0, 2]))
    cache.batch_select_indices(torch.tensor([1]))
    assert cache.nbytes == plan.storage(tokens=10, bits=bits).n_bytes
    cache.reset()
    assert cache.nbytes == 0


def test_one_pass_is_token_after_token(model, found):
    plan = plan_cache(found).cut(0.5)
    ids = torch.from_numpy(tokens(5, windows=2).padded()[0])
    with torch.no_grad():
        whole = model.hf(ids, past_key_values=CompressedCache(plan), use_cache=True).logits
        cache = CompressedCache(plan)
        steps = [
            model.hf(ids[:, t : t + 1], past_key_values=cache, use_cache=True).logits
            for t in range(ids.shape[1])
        ]
        assert torch.allclose(torch.cat(steps, 1), whole, atol=1e-9)
        assert not torch.allclose(model.hf(ids).logits, whole, atol=1e-6)
        made = model.hf.generate(
            ids, past_key_values=CompressedCache(plan), max_new_tokens=3, do_sample=False,
            pad_token_id=0,
        )  # fmt: skip
    assert made.shape == (2, 15)
    shorter = perplexity(model, [tokens(5)], cache=lambda: CompressedCache(plan))
    assert shorter.n_predictions == perplexity(model, [tokens(5)]).n_predictions
    assert shorter.nats != perplexity(model, [tokens(5)]).nats


def test_moments_are_those_of_the_cache(model, found):
    cache = transformers.DynamicCache()
    states = {"keys": [], "values": []}
    for seed in (0, 1):
        cache = transformers.DynamicCache()
        with torch.no_grad():
            model.hf(torch.from_numpy(tokens(seed).padded()[0]), past_key_values=cache)
        states["keys"].append([layer.keys for layer in cache.layers])
        states["values"].append([layer.values for layer in cache.layers])
    assert found.shape == (3, 2)
    assert found.n_tokens == 72
    for kind, many in states.items():
        for i, j in np.ndindex(3, 2):
            rows = torch.cat([one[i][:, j].reshape(-1, 8) for one in many]).numpy()
            moments = getattr(found, kind)[i][j]
            assert moments.count == 72
            assert np.allclose(moments.second_moment(), rows.T @ rows / 72)


def test_queries_are_those_that_share_a_key(model):
    single = tokens(7, windows=20, length=1)  # the first position is not turned
    found = calibrate_cache(model, [single])
    rows = []
    attention = model.hf.model.layers[1].self_attn
    handle = attention.q_proj.register_forward_hook(lambda _m, _a, y: rows.append(y.detach()))
    with torch.no_grad():
        model.hf(torch.from_numpy(single.ids)[:, None])
    handle.remove()
    q = rows[0].reshape(20, 4, 8).numpy()
    for head in range(2):
        mine = q[:, 2 * head : 2 * head + 2].reshape(-1, 8)
        assert found.queries[1][head].count == 40
        assert np.allclose(found.queries[1][head].second_moment(), mine.T @ mine / 40)
    with pytest.raises(InvalidArgumentError, match="gradients must have been collected"):
        plan_cache(found, "loss-aware")


def test_gradients_are_those_of_the_loss(model):
    batch = tokens(8)
    found = calibrate_cache(model, [batch], gradients=True, seed=5)
    assert all(p.requires_grad for p in model.hf.parameters())
    assert all(p.grad is None for p in model.hf.parameters())
    held = {}

    def see(layer, keys, values):
        held[layer] = keys, values
        for x in held[layer]:
            x.retain_grad()
        return held[layer]

    ids = torch.from_numpy(batch.padded()[0])
    logits = model.hf(ids, past_key_values=ProjectingCache(3, see), use_cache=True).logits
    logp = torch.log_softmax(logits.reshape(36, -1), -1)
    drawn = torch.multinomial(logp.exp(), 1, generator=torch.Generator().manual_seed(5))
    (-logp.gather(1, drawn).sum()).backward()
    model.hf.zero_grad(set_to_none=True)
    for (layer, head), place in itertools.product(np.ndindex(3, 2), (0, 1)):
        side, x = ("key", "value")[place], held[layer][place]
        g = x.grad[:, head].reshape(-1, 8).numpy()
        moments = getattr(found, f"{side}_gradients")[layer][head].second_moment()
        assert np.allclose(moments, g.T @ g / 36, rtol=1e-6, atol=1e-14)
        rows, weights = x.detach()[:, head].reshape(-1, 8).numpy(), np.square(g).sum(axis=1)
        felt = getattr(found, f"felt_{side}s")[layer][head].second_moment()
        assert np.allclose(felt, (rows.T * weights) @ rows / weights.sum(), rtol=1e-6)


def test_the_predicted_loss_is_near_the_true_one(model):
    batches = [tokens(s) for s in range(6)]
    moments = calibrate_cache(model, batches * 4, gradients=True)  # four draws of each token
    plan = plan_cache(moments, "pca")
    ranks = plan.ranks.copy()
    ranks[:, 2] = 6
    curves = np.stack(plan.errors(moments, "loss"))
    predicted = float(np.take_along_axis(curves, ranks[..., None], -1).sum())
    total = 0.0
    for batch in batches:
        ids = torch.from_numpy(batch.padded()[0])
        cache = CompressedCache(plan.with_ranks(ranks))
        with torch.no_grad():
            before = torch.log_softmax(model.hf(ids).logits, -1)
            after = torch.log_softmax(model.hf(ids, past_key_values=cache).logits, -1)
        total += float((before.exp() * (before - after)).sum()) / (36 * len(batches))
    assert predicted == pytest.approx(total, rel=0.4)


def test_methods_are_best_in_their_own_norm(found):
    plans = {method: plan_cache(found, method) for method in METHODS}
    for r in (2, 5):
        lost = {
            (method, norm): sum(float(side[..., r].sum()) for side in plan.errors(found, norm))
            for method, plan in plans.items()
            for norm in ("states", "attention", "loss")
        }
        for other in METHODS:
            assert lost["pca", "states"] <= lost[other, "states"] * (1 + 1e-9)
            assert lost["score-aware", "attention"] <= lost[other, "attention"] * (1 + 1e-3)
            assert lost["loss-aware", "loss"] <= lost[other, "loss"] * (1 + 1e-3)


def test_plans_and_moments_come_back_from_files(model, found, tmp_path):
    ranks = np.arange(12).reshape(2, 3, 2) % 5 + 2
    plan = plan_cache(found, "loss-aware").with_ranks(ranks)
    file = plan.save(tmp_path / "plan.safetensors", base=model)
    again = CachePlan.load(file, model)
    assert again.method == "loss-aware"
    assert np.array_equal(again.ranks, ranks)
    ids = torch.from_numpy(tokens(9).padded()[0])
    with torch.no_grad():
        seen = [model.hf(ids, past_key_values=CompressedCache(one)).logits for one in (plan, again)]
    assert torch.allclose(*seen, atol=1e-4)
    size = sum(x.nbytes for x in (plan.keys.tails, plan.values.tails)) // 2 + ranks.size * 4
    header = int.from_bytes(file.read_bytes()[:8], "little") + 8
    assert file.stat().st_size - header == plan.basis_storage().n_bytes + size
    with pytest.raises(InvalidArgumentError, match="must have all dimensions"):
        again.errors(found)
    other = load_model(model.hf)
    object.__setattr__(other, "fingerprint", "0" * 64)
    with pytest.raises(InvalidArgumentError, match="model must be the one of the plan"):
        CachePlan.load(file, other)
    file.write_bytes(file.read_bytes().replace(b"subspan.cache/1", b"subspan.cache/9"))
    with pytest.raises(FileFormatError, match="must be a plan of the schema"):
        CachePlan.load(file)
    file.write_bytes(b"nothing")
    with pytest.raises(FileFormatError, match="must be a whole"):
        CachePlan.load(file)
    found.save(tmp_path / "m.npz")
    back = CacheMoments.load(tmp_path / "m.npz")
    assert back.n_tokens == found.n_tokens
    for kind in _KINDS:
        for one, two in zip(found.flat(kind), back.flat(kind), strict=True):
            assert np.array_equal(one.m2, two.m2)
    (tmp_path / "m.npz").write_bytes(b"PK nothing")
    with pytest.raises(FileFormatError, match="must be whole moments of a cache"):
        CacheMoments.load(tmp_path / "m.npz")


def llama(**options):
    torch.manual_seed(2)
    sizes = {
        "vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1,
    }  # fmt: skip
    config = transformers.LlamaConfig(**sizes | options)
    return load_model(transformers.LlamaForCausalLM(config))


def test_eager_attention_gives_the_same_moments():
    plain = llama()
    eager = load_model(transformers.LlamaForCausalLM(plain.hf.config))
    eager.hf.load_state_dict(plain.hf.state_dict())
    eager.hf.set_attn_implementation("eager")
    one, two = (calibrate_cache(model, [tokens(0)]) for model in (plain, eager))
    for kind in ("keys", "values", "queries"):
        for a, b in zip(one.flat(kind), two.flat(kind), strict=True):
            assert np.allclose(a.second_moment(), b.second_moment(), rtol=1e-4, atol=1e-9)


def test_what_models_and_caches_refuse(model, found):
    with pytest.raises(InvalidArgumentError, match="batches must hold calibration tokens, got n"):
        calibrate_cache(model, [])
    with pytest.raises(InvalidArgumentError, match="method must be one of 'channels'"):
        plan_cache(found, "magic")
    plan = plan_cache(found)
    for ranks in (np.zeros((2, 3, 2)), np.full((2, 3, 2), 9), np.ones((2, 3))):
        with pytest.raises(InvalidArgumentError, match=r"ranks must be \(2, 3, 2\) from 1 to"):
            plan.with_ranks(ranks)
    with pytest.raises(
        InvalidArgumentError, match=r"kept must leave one of 8 dimensions, got 0\.1"
    ):
        plan.cut(0.1)
    with pytest.raises(InvalidArgumentError, match="norm must be one of 'states'"):
        plan.errors(found, "taste")
    with pytest.raises(InvalidArgumentError, match="dtype must be one of 'float16'"):
        CompressedCache(plan, dtype="int4")
    small = llama()
    with pytest.raises(InvalidArgumentError, match="plan must be of this model, got 2 heads of 8"):
        small.hf(torch.zeros(1, 3, dtype=torch.long), past_key_values=CompressedCache(plan))
    with torch.no_grad():
        small.hf.model.layers[1].self_attn.v_proj.weight[0, 0] = float("nan")
    with pytest.raises(InvalidArgumentError, match="values of head 0 in layer 1 must be finite"):
        calibrate_cache(small, [tokens(0)])
    config = transformers.MistralConfig(
        vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, sliding_window=4,
    )  # fmt: skip
    with pytest.raises(UnsupportedError, match="all earlier tokens in every layer, got layers of"):
        calibrate_cache(load_model(transformers.MistralForCausalLM(config)), [tokens(0)])
    config = transformers.BertConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=24,
    )  # fmt: skip
    with pytest.raises(UnsupportedError, match="must be a causal language model with an output"):
        calibrate_cache(load_model(transformers.BertModel(config)), [tokens(0)])
