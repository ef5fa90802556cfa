"""Comparisons of planted activations: known matches, known nulls, safe folders, equal bits."""

import json

import numpy as np
import pytest
import subspan
from safetensors.numpy import load_file, save_file
from subspan.activations import open_saved
from subspan.comparison import SCHEMA, ModelComparison, compare_models
from subspan.comparison._measure import Measured, _interpolated, _spread
from subspan.comparison._verdict import blocks
from subspan.errors import FileFormatError, InvalidArgumentError, OutputError
from subspan.similarity import cka, procrustes, svcca
from subspan.subspaces import principal_angles
from test_report_page import checked

ROWS = 360
LOUD = [3, 50]
# layer of B -> the layer of A that it is a rotation of; the last one has nothing to do with A
TWIN = {0: 1, 1: 3, 2: 4}
QUICK = {"n_permutations": 9, "null_layers": 3, "dims": 4}


def rotation(rng, width):
    return np.linalg.qr(rng.normal(size=(width, width)))[0]


def planted(*, loud=True):
    rng = np.random.default_rng(7)
    base, layers = rng.normal(size=(ROWS, 10)), []
    for _ in range(5):
        layers.append(base * np.linspace(2, 0.5, 10))
        base = 0.7 * base + 0.7 * rng.normal(size=(ROWS, 10))
    a = {f"layer.{i:02d}/resid": x.astype(np.float32) for i, x in enumerate(layers)}
    b = {
        f"layer.{j:02d}/resid": (3 * layers[i] @ rotation(rng, 10) + 5).astype(np.float32)
        for j, i in TWIN.items()
    }
    b["layer.03/resid"] = rng.normal(size=(ROWS, 10)).astype(np.float32)
    if loud:
        a["layer.02/resid"][LOUD] *= 100
    return a, b


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    for name, tensors in zip("ab", planted(), strict=True):
        save_file(tensors, folder / f"{name}.safetensors")
    return folder / "a.safetensors", folder / "b.safetensors"


@pytest.fixture(scope="module")
def result(stores, tmp_path_factory):
    return compare_models(*stores, out=tmp_path_factory.mktemp("out") / "compare", **QUICK)


@pytest.fixture
def undrawn(monkeypatch):
    """Leave the pictures out, which take most of the time of a small run."""
    monkeypatch.setattr(subspan.comparison._job, "pictures", lambda *_: iter(()))


def findings(report):
    return {finding["id"]: finding for finding in report["verdict"]["findings"]}


def clean(x):
    return np.delete(x, LOUD, axis=0)


def test_matrices_are_those_of_the_definitions_without_outliers(result):
    a, b = (list(side.values()) for side in planted())
    for name, measure in (("cka", cka), ("svcca", svcca), ("procrustes", procrustes)):
        got = result.matrix(name)
        wanted = [[measure(clean(x), clean(y)) for y in b] for x in a]
        wanted = [[getattr(value, "value", value) for value in line] for line in wanted]
        np.testing.assert_allclose(got, np.array(wanted, float), atol=2e-5)
    with pytest.raises(InvalidArgumentError, match="must be one of cka, svcca"):
        result.matrix("rsa")


def test_planted_twins_are_found(result):
    for one in result.report["measures"]:
        best = np.array(one["matrix"], float)
        order = -best if one["is_distance"] else best
        for j, i in TWIN.items():
            assert order[:, j].argmax() == i
            assert order[i, j] == pytest.approx(0.0 if one["is_distance"] else 1.0, abs=2e-3)
            assert one["best"][i] == j
    assert result.report["matches"][1]["cka"]["b"] == "layer.00/resid"
    text = result.summary
    assert "layers 3 of A" not in text
    assert "layer 4 of A with layer 2 of B" in text


def test_the_stranger_is_below_the_null_and_the_twins_above(result):
    for one in result.report["measures"]:
        null, values = np.array(one["null_quantile"]), np.array(one["matrix"])
        above = values < null if one["is_distance"] else values > null
        assert above.sum() == one["n_above"]
        assert above[:, :3].all()
        assert above[:, 3].sum() <= 2  # 5 % of the permutations are above it, too
    found = findings(result.report)["null"]
    assert found["pairs"] == 20
    assert 3 <= found["below"] <= 5
    assert found["weak"] == []


def test_principal_angles_are_those_of_leading_scores(result):
    a, b = planted()
    x = clean(a["layer.03/resid"]).astype(np.float64)
    y = clean(b["layer.01/resid"]).astype(np.float64)
    u, v = (np.linalg.svd(z - z.mean(axis=0), full_matrices=False)[0][:, :4] for z in (x, y))
    lines = np.array(result.report["angles"]["samples"])
    np.testing.assert_allclose(lines[3], principal_angles(u, v).angles, atol=1e-3)
    assert lines[3].max() < 0.05  # twins
    assert lines[0].min() > 0.1  # neighbours
    chance = np.array(result.report["angles"]["chance_samples"])
    assert chance.min() > np.radians(70)
    # the twins are rotated: their directions have nothing in common beyond chance
    assert np.array(result.report["angles"]["features"])[3].max() > np.radians(45)


def test_outliers_are_left_out_and_shown(result):
    about = result.report["samples"]
    assert about["n"] == ROWS
    assert about["n_used"] == ROWS - len(LOUD)
    assert about["n_outlier_tokens"] == {"A": len(LOUD), "B": 0}
    a, b = planted()
    whole = np.array(result.report["with_outliers"]["matrix"])
    wanted = cka(a["layer.02/resid"], b["layer.01/resid"])
    assert whole[2, 1] == pytest.approx(wanted, abs=1e-5)
    assert abs(whole[2, 1] - result.matrix()[2, 1]) > 0.05
    assert "Outliers (2 in A, 0 in B, of 360 samples) are left out" in result.summary


@pytest.mark.usefixtures("undrawn")
def test_a_store_with_itself_matches_layer_by_layer(stores, tmp_path):
    same = compare_models(stores[0], stores[0], out=tmp_path / "same", **QUICK)
    found = findings(same.report)
    assert found["diagonal"]["exact"] == 5
    assert "Every layer of A is most like the same layer of B" in same.summary
    np.testing.assert_allclose(np.diag(same.matrix()), 1.0, atol=1e-6)
    for name in ("samples", "features"):
        assert np.nanmax(np.array(same.report["angles"][name], float)) < 1e-3


def test_json_page_and_pictures(result):
    report = json.loads((result.path / "report.json").read_text("utf-8"))
    assert report["schema"] == SCHEMA == "subspan.compare/1"
    assert set(report) == {
        "schema", "a", "b", "settings", "samples", "measures", "matches", "angles",
        "with_outliers", "verdict", "facts", "figures",
    }  # fmt: skip
    assert report == json.loads(json.dumps(result.to_dict()))
    assert ModelComparison.load(result.path).report == report
    for entry in report["figures"].values():
        assert (result.path / entry["png"]).stat().st_size > 1000
        assert (result.path / entry["svg"]).exists()
    assert set(report["figures"]) == {
        "similarity", "best_layer", "best_match", "principal_angles", "with_outliers",
    }  # fmt: skip
    assert "The red contour" in report["figures"]["similarity"]["caption"]
    html = (result.path / "report.html").read_text("utf-8")
    checker = checked(html)
    assert checker.tags.count("svg") == len(report["figures"])
    assert report["a"]["hash"] in html
    assert html.index('class="verdict"') < html.index("<svg")
    (result.path.parent / "report.json").write_text("{}")
    with pytest.raises(FileFormatError, match=r"ModelComparison\.load.*schema"):
        ModelComparison.load(result.path.parent)


# ---- resuming


class Stop(Exception):
    pass


def stop_at(where, after=0):
    def progress(stage, done, total):  # noqa: ARG001
        if stage == where and done >= after:
            raise Stop

    return progress


@pytest.mark.usefixtures("undrawn")
def test_resumed_run_equals_an_uninterrupted_one(stores, tmp_path):
    def opened():
        return [open_saved(path, block_rows=100) for path in stores]

    options = {**QUICK, "measures": ["cka", "procrustes"], "checkpoint_seconds": 0.0}
    whole = compare_models(*opened(), out=tmp_path / "whole", **options)
    out = tmp_path / "parts"
    for where, after in (("samples of A", 200), ("samples of B", 300), ("procrustes: pairs", 3)):
        with pytest.raises(Stop):
            compare_models(*opened(), out=out, progress=stop_at(where, after), **options)
        assert [entry.name for entry in out.iterdir()] == [".run"]
    assert load_file(out / ".run" / "measure-cka.safetensors")["matrix"].shape == (5, 4)
    seen = []
    parts = compare_models(
        *opened(), out=out, resume=True, progress=lambda *now: seen.append(now), **options
    )
    assert ("samples of A", ROWS, ROWS) in seen
    assert not any(stage.startswith("cka: ") for stage, *_ in seen)
    assert parts.report["facts"]["resumed"] is True
    for key in set(whole.report) - {"facts"}:
        assert parts.report[key] == whole.report[key]


def test_other_settings_and_foreign_folders_are_refused(stores, result, tmp_path):
    with pytest.raises(OutputError, match="finished run"):
        compare_models(*stores, out=result.path)
    with pytest.raises(Stop):
        compare_models(*stores, out=tmp_path / "a", progress=stop_at("cka: pairs"), **QUICK)
    with pytest.raises(OutputError, match="other settings"):
        compare_models(*stores, out=tmp_path / "a", **{**QUICK, "dims": 5})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(OutputError, match=r"notes\.txt"):
        compare_models(*stores, out=tmp_path / "mine", overwrite=True)


# ---- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"texts": ["a"]}, "texts must be left out"),
        ({"unit": "token"}, "unit must be left out"),
        ({"unit": "word"}, "unit must be"),
        ({"noise": 0.1}, "noise must be left out"),
        ({"keep": 0.5}, "keep must be left out"),
        ({"keep": 2.0}, "keep must be"),
        ({"samples": 3}, "samples must be an integer of at least 8"),
        ({"samples": "many"}, "or 'all'"),
        ({"measures": ["likeness"]}, "measures must be"),
        ({"measures": []}, "at least one"),
        ({"n_permutations": -1}, "n_permutations must be"),
        ({"level": 1.5}, "level must be"),
        ({"dims": 0}, "dims must be"),
        ({"null_layers": 0}, "null_layers must be"),
        ({"outlier_factor": 0.5}, "greater than 1"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"checkpoint_seconds": -1.0}, "checkpoint_seconds"),
        ({"sites": ["mlp"]}, "at least one saved site"),
    ],
)
def test_wrong_arguments_leave_no_folder(stores, tmp_path, options, message):
    with pytest.raises(InvalidArgumentError, match=message):
        compare_models(*stores, out=tmp_path / "a", **options)
    assert not (tmp_path / "a").exists()


def test_sides_that_do_not_belong_together(stores, tmp_path):
    np.save(tmp_path / "short.npy", np.ones((20, 3), np.float32))
    with pytest.raises(InvalidArgumentError, match="same rows, sample by sample, got 360 and 20"):
        compare_models(stores[0], tmp_path / "short.npy", out=tmp_path / "out")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(InvalidArgumentError, match="saved activations and a model"):
        compare_models(stores[0], tmp_path / "model", out=tmp_path / "out")
    with pytest.raises(InvalidArgumentError, match="texts must be given"):
        compare_models(tmp_path / "model", tmp_path / "model", out=tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"b must be an existing"):
        compare_models(stores[0], tmp_path / "nowhere", out=tmp_path / "out")
    x = np.ones((20, 4), np.float32)
    x[7, 2] = np.nan
    np.save(tmp_path / "nan.npy", x)
    with pytest.raises(InvalidArgumentError, match="NaN or infinity at site nan of A, sample 7"):
        compare_models(tmp_path / "nan.npy", tmp_path / "short.npy", out=tmp_path / "out")


@pytest.mark.usefixtures("undrawn")
def test_layers_that_do_not_vary_are_told_not_compared(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 6)).astype(np.float32)
    still = {"layer.00/resid": np.ones_like(x), "layer.01/resid": x}
    save_file(still, tmp_path / "a.safetensors")
    save_file({"layer.00/resid": np.ones_like(x)}, tmp_path / "b.safetensors")
    one = compare_models(
        tmp_path / "a.safetensors", tmp_path / "a.safetensors", out=tmp_path / "one", **QUICK
    )
    assert one.report["measures"][0]["best"] == [None, 1]
    assert one.report["matches"][0]["cka"] is None
    assert any("all rows are equal" in text for text in one.report["measures"][0]["warnings"])
    none = compare_models(
        tmp_path / "b.safetensors", tmp_path / "b.safetensors", out=tmp_path / "none", **QUICK
    )
    assert "nothing to compare" in none.summary
    assert none.report["figures"] == {}


# ---- pieces


def test_null_between_layers_is_bilinear():
    i, j = np.mgrid[:7, :5]
    plane = 1.0 + 0.2 * i - 0.3 * j
    at = (_spread(7, 3), _spread(5, 2))
    assert at[0].tolist() == [0, 3, 6]
    assert at[1].tolist() == [0, 4]
    np.testing.assert_allclose(_interpolated(plane[np.ix_(*at)], at, (7, 5)), plane, atol=1e-12)
    assert _spread(2, 6).tolist() == [0, 1]


def test_blocks_of_planted_groups():
    rows = np.repeat([[1.0, 0.1, 0.0], [0.0, 0.9, 0.4]], [3, 2], axis=0)
    assert blocks(rows) == [[0, 2], [3, 4]]
    assert blocks(np.full((3, 2), np.nan)) == [[0, 0], [1, 1], [2, 2]]


def test_best_and_above_of_distances():
    distances = np.array([[0.2, 1.0], [np.nan, np.nan]])
    one = Measured("procrustes", distances, np.full((2, 2), 0.5), None, [])
    assert one.best() == [0, None]
    assert one.above.tolist() == [[True, False], [False, False]]
