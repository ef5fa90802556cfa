"""Passes that begin at a layer: the bits of the whole model, nothing left behind, refusals."""

import pytest
from conftest import TEXT
from subspan.activations import OutlierRule, load_model, resume_at, splice, tokenize
from subspan.errors import InvalidArgumentError
from subspan.sae import evaluate

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SMALL = {"vocab_size": 16, "bos_token_id": 0, "eos_token_id": 0}
IDS = torch.arange(10).reshape(2, 5)


@pytest.fixture(scope="module")
def model(tiny):
    return load_model(tiny)


def entering(model, layer, ids):
    seen = []
    with torch.no_grad(), splice(model, f"layer.{layer:02d}/resid", seen.append):
        whole = model.hf(ids).logits
    return seen[0], whole


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_the_bits_are_those_of_the_whole_model(model, layer):
    states, whole = entering(model, layer, IDS)
    calls = []
    handles = [
        block.module.mlp.register_forward_hook(lambda *_, n=block.number: calls.append(n))
        for block in model.blocks
    ]
    with torch.no_grad(), resume_at(model, layer, states):
        again = model.hf(IDS).logits
    for handle in handles:
        handle.remove()
    assert torch.equal(again, whole)
    assert calls == list(range(layer, model.n_layers))


def test_gpt2_takes_positional_states_as_well():
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_embd=8, n_layer=3, n_head=2, **SMALL)
    model = load_model(transformers.GPT2LMHeadModel(config))
    states, whole = entering(model, 2, IDS)
    with torch.no_grad(), resume_at(model, 2, states):
        assert torch.equal(model.hf(IDS).logits, whole)
        assert torch.equal(model.hf(IDS.flip(1)).logits, whole)  # the tokens are read below


def test_other_states_give_other_results(model):
    states, whole = entering(model, 1, IDS)
    with torch.no_grad(), resume_at(model, 1, 2 * states):
        assert not torch.equal(model.hf(IDS).logits, whole)


def test_the_model_is_left_as_it_was(model):
    states, whole = entering(model, 2, IDS)
    own = model.blocks[0].module.forward
    model.blocks[0].module.forward = own  # somebody's own wrapper of the instance
    model.hf.train()
    with pytest.raises(RuntimeError), resume_at(model, 2, states):  # noqa: PT012
        assert not model.hf.training
        raise RuntimeError
    assert model.hf.training
    model.hf.eval()
    assert model.blocks[0].module.forward is own
    del model.blocks[0].module.forward
    assert "forward" not in vars(model.blocks[1].module)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.hf.modules())
    with torch.no_grad():
        assert torch.equal(model.hf(IDS).logits, whole)


@pytest.mark.parametrize("site", ["layer.02/resid", "layer.03/resid", "layer.01/mlp"])
def test_an_evaluation_that_resumes_gives_what_whole_passes_give(model, monkeypatch, site):
    class Half:
        def reconstruct(self, x):
            return 0.5 * x

    stream = tokenize(model, [TEXT], window=16, max_tokens=60, batch_size=2)
    given = {"site": site, "exclude": OutlierRule(1.5, "drop")}
    found = evaluate(Half(), model, stream, **given)
    monkeypatch.setattr("subspan.sae.evaluation._Runs._same_from", lambda *_: False)
    assert evaluate(Half(), model, stream, **given) == found
    assert found.kl["spliced"] > 0


def test_refusals(model):
    states, _ = entering(model, 1, IDS)
    with (
        pytest.raises(InvalidArgumentError, match=r"layer must be .*got 3"),
        resume_at(model, 3, states),
    ):
        pass
    with (
        torch.no_grad(),
        pytest.raises(InvalidArgumentError, match=r"states must have shape \(1, 5, 32\)"),
        resume_at(model, 1, states),
    ):
        model.hf(IDS[:1])
