"""The outlier rule on planted norms."""

import subprocess
import sys

import numpy as np
import pytest
from subspan.activations import OutlierRule
from subspan.errors import DtypeError, InvalidArgumentError

NORMS = np.array([90.0, 1.0, 1.1, 0.9, 40.0, 1.0, 1.2, 1.0, 6.0])
FIRST = np.array([1, 0, 0, 0, 1, 0, 0, 0, 0], dtype=bool)


def test_norms_decide_by_default():
    rule = OutlierRule()
    assert rule.reference(NORMS) == np.median(NORMS) == 1.1
    assert np.flatnonzero(rule.split(NORMS)).tolist() == [0, 4, 8]
    assert np.flatnonzero(rule.split(NORMS, FIRST)).tolist() == [0, 4, 8]
    # strictly above the threshold: 5 x 1.2 = 6.0 is not above 6.0
    assert np.flatnonzero(rule.split(NORMS, median=1.2)).tolist() == [0, 4]


@pytest.mark.parametrize(
    ("choice", "outliers", "dropped", "median"),
    [
        ("auto", [0, 4, 8], [], 1.1),
        ("keep", [8], [], 1.1),
        ("outlier", [0, 4, 8], [], 1.0),
        ("drop", [8], [0, 4], 1.0),
    ],
)
def test_choices_for_the_first_token(choice, outliers, dropped, median):
    rule = OutlierRule(first_token=choice)
    assert rule.reference(NORMS, FIRST) == median
    classes = rule.classify(NORMS, FIRST)
    assert np.flatnonzero(classes.outlier).tolist() == outliers
    assert np.flatnonzero(classes.dropped).tolist() == dropped
    assert np.array_equal(sum(mask.astype(int) for mask in classes), np.ones(len(NORMS), int))
    quiet = rule.classify(np.ones(9), FIRST)  # nothing stands out: only the choice acts
    assert quiet.outlier.sum() == (2 if choice == "outlier" else 0)
    assert quiet.dropped.sum() == (2 if choice == "drop" else 0)


def test_streaming_with_a_stored_median_is_independent_of_batches():
    rng = np.random.default_rng(0)
    norms = rng.gamma(3.0, size=400) * np.where(rng.random(400) < 0.02, 100.0, 1.0)
    rule = OutlierRule(factor=8)
    median = rule.reference(norms[:100])
    whole = rule.split(norms, median=median)
    parts = [rule.split(norms[i : i + 37], median=median) for i in range(0, 400, 37)]
    assert np.array_equal(np.concatenate(parts), whole)
    assert 0 < whole.sum() < 20


def test_zero_and_empty():
    rule = OutlierRule()
    assert rule.reference(np.zeros(5)) == 0.0
    assert not rule.split(np.zeros(5)).any()
    assert not rule.split([0.0, 0.0, 7.0], median=0.0).any()
    mostly_zero = [0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 50.0]
    assert rule.reference(mostly_zero) == 1.0
    assert rule.split(mostly_zero).tolist() == [False] * 6 + [True]
    assert rule.reference([]) == 0.0
    assert rule.split([]).shape == (0,)
    only_first = OutlierRule(first_token="drop")
    assert only_first.reference([3.0], [True]) == 3.0
    assert only_first.classify([3.0], [True]).dropped.all()


def test_text_names_every_choice():
    assert "exceeds 5 times the median" in OutlierRule().describe()
    assert "2.5 times" in OutlierRule(factor=2.5).describe()
    texts = {OutlierRule(first_token=c).describe() for c in ("auto", "keep", "outlier", "drop")}
    assert len(texts) == 4
    assert all("first token" in text for text in texts)


def test_equal_and_frozen():
    assert OutlierRule(6.0) == OutlierRule(6)
    with pytest.raises(AttributeError):
        OutlierRule().factor = 2.0


@pytest.mark.parametrize("factor", [1.0, 0.5, -3, float("nan"), float("inf")])
def test_bad_factor(factor):
    with pytest.raises(InvalidArgumentError, match="factor must be finite and greater than 1"):
        OutlierRule(factor=factor)


def test_other_refusals():
    with pytest.raises(DtypeError, match="factor must be a number, got str"):
        OutlierRule(factor="5")
    with pytest.raises(InvalidArgumentError, match="first_token must be"):
        OutlierRule(first_token="skip")
    with pytest.raises(InvalidArgumentError, match="first_in_window must be given"):
        OutlierRule(first_token="drop").classify(NORMS)
    with pytest.raises(InvalidArgumentError, match=r"shape of norms \(9,\), got \(8,\)"):
        OutlierRule().classify(NORMS, FIRST[:-1])
    with pytest.raises(InvalidArgumentError, match="1-D"):
        OutlierRule().split(np.ones((2, 2)))
    for bad in (np.nan, np.inf, -1.0):
        with pytest.raises(InvalidArgumentError, match="first at index 1"):
            OutlierRule().split([1.0, bad, 1.0])
        with pytest.raises(InvalidArgumentError, match="median must be"):
            OutlierRule().threshold(bad)


def test_import_brings_in_no_heavy_package():
    code = (
        "import sys, subspan.activations; "
        "print([m for m in ('torch', 'transformers', 'safetensors', 'gguf') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
