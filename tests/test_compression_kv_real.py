"""SmolLM2-135M with a smaller cache: what knowing the loss is worth. Minutes long."""

import pydoc_data.topics

import numpy as np
import pytest
from subspan.activations import load_model
from subspan.compression import compress_cache
from test_activations_real import gguf_file

pytestmark = [pytest.mark.realmodel, pytest.mark.slow]


def test_knowing_the_loss_beats_knowing_the_variance(tmp_path):
    found = compress_cache(
        load_model(gguf_file()), "\n\n".join(pydoc_data.topics.topics.values()),
        out=tmp_path / "out", methods=("pca", "score-aware", "loss-aware"), kept=(0.75, 0.5),
        allocations=("uniform", "loss"), tokens=2048, eval_tokens=1024, store=False,
    )  # fmt: skip
    report = found.report
    (text,) = (one["name"] for one in report["texts"])
    assert report["model"]["bytes_per_token"] == 30 * 3 * 128 * 2
    value = {
        (p["method"], p["allocation"], p["kept"]): p["perplexity"][text] for p in report["points"]
    }
    dense = report["dense"]["perplexity"][text]
    assert dense < 20
    for kept in (0.75, 0.5):
        plain = value["pca", "uniform", kept]
        assert dense < value["loss-aware", "uniform", kept] < 0.9 * plain
        assert dense < value["loss-aware", "loss", kept] < plain
    assert value["score-aware", "loss", 0.75] < 0.9 * value["pca", "uniform", 0.75]
    for point in report["points"]:
        assert point["measured"]["bytes"] == point["measured"]["predicted"]
        assert point["kept_bytes"] <= point["kept"]
        ranks = np.array([row["ranks"] for row in point["layers"]])
        assert ranks.min() >= 24
