"""SmolLM2-135M with smaller weights: what allocation and gradients are worth. Minutes long."""

import pydoc_data.topics

import pytest
from subspan.activations import load_model
from subspan.compression import compress, find_weights
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
