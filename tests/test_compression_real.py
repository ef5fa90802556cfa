"""SmolLM2-135M with smaller weights: what budgets, gradients and bases are worth. Minutes long."""

import pydoc_data.topics

import pytest
from subspan.activations import load_model
from subspan.compression import compress, find_weights, rotate
from test_activations_real import gguf_file

pytestmark = [pytest.mark.realmodel, pytest.mark.slow]


def test_a_budget_by_loss_beats_equal_shares(tmp_path):
    model = load_model(gguf_file())
    assert len(find_weights(model)) == 210
    found = compress(
        model, "\n\n".join(pydoc_data.topics.topics.values()), out=tmp_path / "out",
        methods=("whitened-svd", "two-sided-svd"), allocations=("uniform", "loss"), kept=0.8,
        tokens=2048, eval_tokens=1024, store=False,
    )  # fmt: skip
    report = found.report
    assert report["calibration"]["inputs"] == 120
    (text,) = (one["name"] for one in report["texts"])
    dense = report["dense"]["perplexity"][text]
    value = found.perplexities(text)
    uniform = value["whitened-svd", "uniform", 0.8]
    assert dense < 20
    assert value["whitened-svd", "loss", 0.8] < 0.7 * uniform
    assert value["two-sided-svd", "loss", 0.8] < 0.6 * uniform
    assert value["two-sided-svd", "uniform", 0.8] < uniform
    assert all(point["kept_bytes"] <= 0.8 for point in report["points"])


def test_principal_bases_beat_four_bits_with_and_without_a_turn(tmp_path):
    found = rotate(
        load_model(gguf_file()), "\n\n".join(pydoc_data.topics.topics.values()),
        out=tmp_path / "out", schemes=("none", "hadamard", "resq"), bits=4, tokens=2048,
        eval_tokens=1024, store=False,
    )  # fmt: skip
    report = found.report
    (text,) = (one["name"] for one in report["texts"])
    value = found.perplexities(text)
    assert report["dense"]["rotation_alone"]["logits_moved"] < 0.01
    assert value["resq", 4] < 0.8 * value["hadamard", 4]
    assert value["hadamard", 4] < value["none", 4]
    (point,) = (one for one in report["points"] if one["scheme"] == "resq")
    assert point["integer_bits"] == 4.5
    assert 4.5 < point["weight_bits"] < 5.1
    assert 4.5 < point["activation_bits"] < 5.0
