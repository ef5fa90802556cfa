"""The pass over tokens against dense arrays: places, samples, histograms, positions, effects."""

import itertools

import numpy as np
import pytest
from subspan.activations import OutlierRule, TokenBatch, load_model
from subspan.sae import Autoencoder
from subspan.sae._adapter import Coder
from subspan.sae._entries import Entries
from subspan.sae.cards._collect import Context, bin_edge, collect
from subspan.sae.cards._contexts import Contexts, uniform
from subspan.sae.cards._effects import logit_effects, neighbours

N, M, BEFORE, AFTER = 7, 3, 2, 1


def dense_code(rng, rows, share=0.4):
    values = np.round(rng.random((rows, N)), 1).astype(np.float32)  # many ties
    return np.where(rng.random((rows, N)) < share, values, 0)


def found_in(code, start, stop):
    rows, latents = np.nonzero(code[start:stop])
    return Entries(rows, latents, code[start:stop][rows, latents].astype(np.float64), stop - start)


def around(code, window, latent, row):
    out = np.zeros(BEFORE + 1 + AFTER, np.float32)
    for place, step in enumerate(range(-BEFORE, AFTER + 1)):
        if 0 <= row + step < len(code) and window[row + step] == window[row]:
            out[place] = code[row + step, latent]
    return out


@pytest.mark.parametrize("borders", [[0, 60], [0, 5, 20, 35, 60], [0, 5, 60]])
def test_places_are_those_of_a_sort_whatever_the_blocks(rng, borders):
    window = np.repeat(np.arange(12), 5)
    code = dense_code(rng, 60)
    code[:, 5] = 0  # a silent latent
    code[7:, 6] = 0  # one with few places
    made = Contexts(N, M, BEFORE, AFTER)
    for start, stop in itertools.pairwise(borders):
        part = found_in(code, start, stop)
        made.update(part, part.values.astype(np.float32), window[start:stop], start)
    for latent in range(N):
        rows = np.flatnonzero(code[:, latent])
        rows = rows[np.lexsort((rows, -code[rows, latent]))][:M]
        count = len(rows)
        assert made.row[latent, :count].tolist() == rows.tolist()
        assert (made.row[latent, count:] == -1).all()
        assert np.array_equal(made.score[latent, :count], code[rows, latent])
        for j, row in enumerate(rows):
            assert np.array_equal(made.around[latent, j], around(code, window, latent, row))


def test_samples_are_uniform_and_a_function_of_place_and_seed():
    rows, latents = (part.ravel() for part in np.meshgrid(np.arange(200), np.arange(50)))
    draws = uniform(rows, latents, 3)
    assert draws.min() >= 0
    assert draws.max() < 1
    assert abs(draws.mean() - 0.5) < 0.02
    assert np.abs(np.histogram(draws, 10)[0] / len(draws) - 0.1).max() < 0.02
    assert np.array_equal(draws[777:], uniform(rows[777:], latents[777:], 3))
    assert (draws != uniform(rows, latents, 4)).mean() > 0.99
    by_latent = draws.reshape(50, 200)
    assert abs(np.corrcoef(by_latent[:-1].ravel(), by_latent[1:].ravel())[0, 1]) < 0.05


def batch_of(rng, lengths):
    n = int(sum(lengths))
    position = np.concatenate([np.arange(length) for length in lengths])
    zeros = np.zeros(n, np.int64)
    return TokenBatch(
        index=0, ids=zeros, pieces=tuple(f"w{i}" for i in rng.integers(0, 9, n)), document=zeros,
        position=position, window_position=position, special=zeros > 0,
        lengths=np.array(lengths), shared=zeros,
    )  # fmt: skip


def test_the_pass_equals_dense_arrays(rng):
    w = rng.normal(size=(24, 6)).astype(np.float32)
    sae = Autoencoder("topk", w.T.copy(), w, rng.normal(size=6).astype(np.float32), k=3)
    batches = [batch_of(rng, lengths) for lengths in ([9, 4], [7], [1, 1, 12])]
    x = [5 + rng.normal(size=(len(batch), 6)).astype(np.float32) for batch in batches]
    x[1][3] *= 40
    rule = OutlierRule(first_token="drop")
    seen = []
    found = collect(
        Coder("test", sae), iter(zip(x, batches, strict=True)), rule=rule,
        context=Context(top=4, sample=2, before=2, after=2), progress=seen.append,
    )  # fmt: skip
    everything = np.concatenate(x)
    position = np.concatenate([batch.window_position for batch in batches])
    kept = position > 0
    kept[13 + 3] = False
    assert seen == [13, 20, 34]
    assert (found.n_tokens, found.n_excluded) == (34, int((~kept).sum()))
    code = np.zeros((34, 24), np.float32)
    code[kept] = sae.encode(everything[kept]).to_dense(24)
    fires = (code > 0).sum(axis=0)
    assert np.array_equal(np.rint(found.metrics.density * kept.sum()), fires)
    assert np.array_equal(found.l0, np.bincount((code[kept] > 0).sum(axis=1)))
    assert np.array_equal(found.histogram.sum(axis=1), fires)
    for latent in np.flatnonzero(fires)[:6]:
        values = code[:, latent][code[:, latent] > 0]
        edges = bin_edge(np.arange(found.histogram.shape[1] + 1))
        assert np.array_equal(found.histogram[latent], np.histogram(values, edges)[0])
    x_hat = sae.reconstruct(everything[kept]).astype(np.float64)
    mean = everything[kept].mean(axis=0, dtype=np.float64)
    for low, high, value in zip(
        found.position_edges[:-1], found.position_edges[1:], found.explained_by_position,
        strict=True,
    ):  # fmt: skip
        rows = (position[kept] >= low) & (position[kept] < high)
        if not rows.any():
            assert np.isnan(value)
            continue
        error = ((everything[kept] - x_hat)[rows] ** 2).sum()
        spread = ((everything[kept] - mean)[rows] ** 2).sum()
        assert value == pytest.approx(1 - error / spread, rel=1e-5)
    assert found.position_edges[-1] > position.max()
    best = code.argmax(axis=0)
    assert np.array_equal(found.top.row[fires > 0, 0], best[fires > 0])
    assert (found.sample.row[fires > 1] >= 0).all()
    assert [found.texts[i] for i in found.text_of] == [p for b in batches for p in b.pieces]


def test_neighbours_are_the_largest_cosines(rng):
    w = rng.normal(size=(30, 5)).astype(np.float32)
    near = neighbours(w, 4)
    unit = w / np.linalg.norm(w, axis=1, keepdims=True)
    cosine = unit @ unit.T - 2 * np.eye(30)
    assert np.array_equal(near.indices, np.argsort(-cosine, axis=1)[:, :4])
    assert np.allclose(near.cosine, -np.sort(-cosine, axis=1)[:, :4], atol=1e-5)
    assert neighbours(w[:1], 4).indices.shape == (1, 0)
    assert neighbours(w[:3], 4).indices.shape == (3, 2)


def configurations():
    transformers = pytest.importorskip("transformers")
    size = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    llama = transformers.LlamaConfig(**size, intermediate_size=16)
    gemma = transformers.Gemma2Config(
        **size,
        intermediate_size=16,
        num_key_value_heads=1,
        head_dim=8,
        final_logit_softcapping=None,
    )
    gpt2 = transformers.GPT2Config(
        n_embd=27, n_layer=2, n_head=3, vocab_size=40, bos_token_id=0, eos_token_id=0
    )
    return [
        transformers.LlamaForCausalLM(llama),
        transformers.Gemma2ForCausalLM(gemma),
        transformers.GPT2LMHeadModel(gpt2),
    ]


def test_effects_are_those_of_the_norm_and_the_head(rng):
    torch = pytest.importorskip("torch")
    for hf in configurations():
        model = load_model(hf)
        norm = next(m for n, m in hf.named_modules() if n in {"model.norm", "transformer.ln_f"})
        with torch.no_grad():
            for parameter in norm.parameters():
                parameter.normal_(generator=torch.Generator().manual_seed(0))
        w = rng.normal(size=(9, model.width)).astype(np.float32)
        made = logit_effects(model, w, 5)
        rows = torch.from_numpy(w)
        with torch.no_grad():  # the difference cancels the biases; a row's own scale stays
            head = hf.get_output_embeddings()
            wanted = (head(norm(rows)) - head(norm(-rows))).numpy()
        assert np.array_equal(made.promoted, np.argsort(-wanted, axis=1)[:, :5])
        assert np.array_equal(made.suppressed, np.argsort(wanted, axis=1)[:, :5])
        ratio = made.promoted_by / np.take_along_axis(wanted, made.promoted, 1)
        assert np.allclose(ratio, ratio[:, :1], rtol=1e-3)  # one factor for each row
        assert ("centring" in made.treatment) == ("GPT2" in type(hf).__name__)
        assert logit_effects(model, w[:, :-1], 5) is None
