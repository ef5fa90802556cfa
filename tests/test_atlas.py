"""The atlas on planted activations: known ranks, known outliers, safe folders, equal bits."""

import errno
import io
import json

import numpy as np
import pytest
import subspan
from safetensors.numpy import save_file
from subspan.atlas import SCHEMA, Atlas, atlas, load_moments
from subspan.atlas._analyse import weight_rows
from subspan.errors import FileFormatError, InvalidArgumentError
from subspan.report import OutputError
from subspan.report import files as files_module
from subspan.report.words import layer_list
from test_report_page import checked

LOUD = [0, 700, 1400]
DIM = 17
WIDTH, ROWS = 48, 2100
COLLAPSED = range(2, 5)


def ranks(layer):
    return 6 + 3 * layer


def basis(rng, rank):
    return np.linalg.qr(rng.normal(size=(WIDTH, rank)))[0].T


def planted(*, outliers=True, heads=False, layers=6):
    rng = np.random.default_rng(5)
    tensors = {}
    for layer in range(layers):
        rank = ranks(layer)
        x = rng.normal(size=(ROWS, rank)) @ basis(rng, rank)
        if outliers and layer in COLLAPSED:
            x[LOUD] = 0
            x[LOUD, DIM] = -2000.0
        tensors[f"layer.{layer:02d}/resid"] = x.astype(np.float32)
        if heads:
            for head in range(2):
                steep = np.arange(1, 17) ** -1.0
                keys, values = rng.normal(size=(2, ROWS, 16))
                tensors[f"layer.{layer:02d}/k/head.{head}"] = (keys * steep).astype(np.float32)
                tensors[f"layer.{layer:02d}/v/head.{head}"] = values.astype(np.float32)
    return tensors


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "acts.safetensors"
    save_file(planted(heads=True), path)
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Few sites: for tests of the run, not of the numbers."""
    path = tmp_path_factory.mktemp("small") / "acts.safetensors"
    save_file(planted(layers=3), path)
    return path


@pytest.fixture(scope="module")
def result(saved, tmp_path_factory):
    return atlas(saved, out=tmp_path_factory.mktemp("out") / "atlas")


def sites(report, kind="resid"):
    return [row for row in report["sites"] if row["kind"] == kind]


def findings(report):
    return {finding["id"]: finding for finding in report["verdict"]["findings"]}


def test_planted_ranks_come_back(result):
    rows = sites(result.report)
    assert [row["layer"] for row in rows] == list(range(6))
    for row in rows:
        without = row["without_outliers"]
        assert without["dim_99"] in (ranks(row["layer"]) - 1, ranks(row["layer"]))
        assert without["effective_rank"] == pytest.approx(ranks(row["layer"]), rel=0.03)
        if row["layer"] in COLLAPSED:
            assert row["n_outliers"] == len(LOUD)
            assert row["all"]["effective_rank"] < 1.1
            assert row["all"]["top_share"] > 0.99
            assert row["all"]["n_tokens"] == ROWS
            assert without["n_tokens"] == ROWS - len(LOUD)
        else:
            assert row["n_outliers"] == 0
            assert row["all"] == without


def test_numbers_equal_those_of_numpy(result):
    x = planted(heads=True)["layer.03/resid"].astype(np.float64)
    row = sites(result.report)[3]
    for view, part in (("all", x), ("without_outliers", np.delete(x, LOUD, axis=0))):
        values = np.linalg.eigvalsh(np.cov(part.T))[::-1]
        values = np.maximum(values, 0)
        got = np.array(row[view]["spectrum"])
        np.testing.assert_allclose(got, values, rtol=1e-5, atol=3e-6 * values[0])
        share = values / values.sum()
        assert row[view]["top_share"] == pytest.approx(share[0], rel=1e-5)
        assert row[view]["stable_rank"] == pytest.approx(1 / share[0], rel=1e-5)
    norms = np.linalg.norm(x, axis=1)
    assert row["norm_max"] == pytest.approx(norms.max(), rel=1e-6)
    assert row["norm_median"] == pytest.approx(np.median(norms), rel=1e-6)


def test_verdict_names_the_collapse_its_cause_and_the_keys(result):
    found = findings(result.report)
    assert found["collapse"]["layers"] == list(COLLAPSED)
    assert found["collapse_from_outliers"]["layers"] == list(COLLAPSED)
    assert "collapse_without_outliers" not in found
    text = result.summary
    assert "collapses in layers 2\u20134 (3 of 6 sites)" in text
    assert "without them (3 of 2,100 tokens)" in text
    assert "rows 0, 700, 1400" in text
    assert "hidden dimension 17" in text
    assert "Keys are more compressible than values" in text
    assert "layer 5" in found["rank"]["text"]
    assert "layer 0" in found["rank"]["text"]


def test_outlier_table_names_rows_and_dimension(result):
    outliers = result.report["outliers"]
    assert outliers["n_tokens"] == 3
    assert sorted(token["token"] for token in outliers["tokens"]) == LOUD
    for token in outliers["tokens"]:
        assert token["layers"] == list(COLLAPSED)
        assert token["dimension"] == DIM
        assert token["dimension_value"] == -2000.0
        assert token["dimension_share"] == pytest.approx(1.0)
        assert token["text"] is None
    assert outliers["dimensions"] == [{"dimension": DIM, "share": 1.0}]


def test_clean_activations_have_no_outlier_sentences(tmp_path):
    save_file(planted(outliers=False), tmp_path / "a.safetensors")
    clean = atlas(tmp_path / "a.safetensors", out=tmp_path / "out")
    found = findings(clean.report)
    assert not {"collapse", "collapse_from_outliers", "outliers"} & set(found)
    assert "No outlier tokens were found in the residual stream" in clean.summary
    assert "5 times" in clean.summary
    assert "collapse" not in clean.summary


def test_collapse_that_is_no_outliers_fault_is_not_blamed_on_them(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1000, 20)) * np.array([50.0] + [1.0] * 19)
    save_file({"layer.00/resid": x.astype(np.float32)}, tmp_path / "a.safetensors")
    text = atlas(tmp_path / "a.safetensors", out=tmp_path / "out").summary
    assert "In layer 0 the collapse is not due to outlier tokens" in text
    assert "cause it" not in text


def test_few_rows_are_admitted(tmp_path):
    x = np.random.default_rng(0).normal(size=(30, 20)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    text = atlas(tmp_path / "x.npy", out=tmp_path / "out").summary
    assert "Only 30 tokens" in text
    assert "biased low" in text


def test_json_has_the_documented_schema(result):
    report = json.loads((result.path / "report.json").read_text("utf-8"))
    assert report["schema"] == SCHEMA == "subspan.atlas/1"
    assert set(report) == {
        "schema", "source", "settings", "verdict", "sites", "weights", "outliers",
        "norm_ratio_histogram", "limits", "facts", "figures",
    }  # fmt: skip
    assert report == json.loads(json.dumps(result.to_dict()))
    assert len(report["source"]["hash"]) == 64
    assert report["facts"]["cpu_level"] in ("baseline", "v3", "v4", "neon")
    assert report["facts"]["threads"] >= 1
    assert set(report["facts"]["seconds"]) >= {"reading", "moments", "spectra"}
    edges = report["norm_ratio_histogram"]["edges"]
    for row in report["sites"]:
        counts = report["norm_ratio_histogram"]["counts"][row["key"]]
        assert len(counts) == len(edges) - 1
        assert sum(counts) == ROWS
        for view in ("all", "without_outliers"):
            assert len(row[view]["spectrum"]) == row["width"]
            assert np.all(np.diff(row[view]["spectrum"]) <= 0)
    for entry in report["figures"].values():
        assert (result.path / entry["png"]).stat().st_size > 1000
        assert (result.path / entry["svg"]).exists()
    assert Atlas.load(result.path).report == report


def test_page_is_self_contained_and_says_everything(result):
    html = (result.path / "report.html").read_text("utf-8")
    checker = checked(html)
    assert checker.tags.count("svg") == len(result.report["figures"])
    for word in ("Rank against depth", "Spectra", "Token norms", "Outlier tokens", "Run facts"):
        assert f">{word}</h2>" in html
    assert html.index('class="verdict"') < html.index("<svg")
    assert result.report["source"]["hash"] in html
    assert sorted(p.name for p in result.path.iterdir()) == [
        "figures", "moments.safetensors", "report.html", "report.json",
    ]  # fmt: skip


def test_moments_are_read_back(result):
    x = planted(heads=True)
    every, inliers = load_moments(result.path), load_moments(result.path, tokens="inliers")
    outliers = load_moments(result.path / "moments.safetensors", tokens="outliers")
    assert set(every) == set(inliers) == set(x)
    assert set(outliers) == {f"layer.{layer:02d}/resid" for layer in COLLAPSED}
    for key, array in x.items():
        assert every[key].count == ROWS
        wide = array.astype(np.float64)
        np.testing.assert_allclose(every[key].mean, wide.mean(axis=0), atol=1e-4)
        scale = np.sqrt(np.outer(*[wide.var(axis=0)] * 2)).max()
        np.testing.assert_allclose(every[key].covariance(), np.cov(wide.T), atol=1e-6 * scale)
    with pytest.raises(InvalidArgumentError, match="'all', 'inliers' or 'outliers'"):
        load_moments(result.path, tokens="loud")


def test_truncated_moments_are_refused(result, tmp_path):
    whole = (result.path / "moments.safetensors").read_bytes()
    (tmp_path / "moments.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FileFormatError, match="whole safetensors"):
        load_moments(tmp_path)
    save_file({"a": np.zeros(2)}, tmp_path / "moments.safetensors")
    with pytest.raises(FileFormatError, match="moments file of an atlas"):
        load_moments(tmp_path)


# ---- resuming


def blocks(path):
    """Open with small blocks, so that a short run has many borders."""
    return subspan.activations.open_saved(path, block_rows=300)


def without_times(report):
    return {key: value for key, value in report.items() if key != "facts"}


class Stop(Exception):
    pass


def stop_after(rows):
    def progress(stage, done, total):  # noqa: ARG001
        if stage == "tokens" and done >= rows:
            raise Stop

    return progress


@pytest.mark.parametrize("every", [0.0, 1e9])
def test_resumed_run_equals_an_uninterrupted_one_in_every_bit(small, tmp_path, every):
    whole = atlas(blocks(small), out=tmp_path / "whole")
    out = tmp_path / "parts"
    for rows in (300, 1200):
        with pytest.raises(Stop):
            atlas(blocks(small), out=out, checkpoint_seconds=every, progress=stop_after(rows))
        assert sorted(p.name for p in out.iterdir()) == [".run"]
    seen = []
    parts = atlas(
        blocks(small), out=out, resume=True, checkpoint_seconds=every,
        progress=lambda stage, done, total: seen.append((stage, done, total)),
    )  # fmt: skip
    # with a checkpoint at every border the third start begins where the second stopped
    assert next(s for s in seen if s[0] == "tokens") == ("tokens", 1200 if every == 0 else 0, ROWS)
    assert without_times(parts.report) == without_times(whole.report)
    assert parts.report["facts"]["resumed"] is True
    first, second = ((r.path / "moments.safetensors").read_bytes() for r in (whole, parts))
    assert first == second


def test_run_interrupted_after_the_pass_does_not_read_again(small, tmp_path):
    def stop(stage, done, total):  # noqa: ARG001
        if stage == "report":
            raise Stop

    with pytest.raises(Stop):
        atlas(small, out=tmp_path / "a", progress=stop)
    seen = []
    atlas(small, out=tmp_path / "a", progress=lambda stage, done, _: seen.append((stage, done)))
    assert [done for stage, done in seen if stage == "tokens"] == [ROWS]


def test_folder_rules(small, result, tmp_path):
    with pytest.raises(OutputError, match="finished run"):
        atlas(small, out=result.path)
    with pytest.raises(Stop):
        atlas(blocks(small), out=tmp_path / "a", progress=stop_after(600))
    with pytest.raises(OutputError, match="other settings"):
        atlas(blocks(small), out=tmp_path / "a", outlier_factor=7)
    again = atlas(small, out=tmp_path / "a", outlier_factor=7, overwrite=True)
    assert again.report["settings"]["outlier_factor"] == 7
    assert again.report["facts"]["resumed"] is False
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(OutputError, match=r"notes\.txt"):
        atlas(small, out=tmp_path / "mine", overwrite=True)


class FullDisk(io.BytesIO):
    def write(self, data):  # noqa: ARG002
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("victim", ["state.safetensors", "report.html", "rank_vs_depth.png"])
def test_full_disk_leaves_a_run_that_resumes(small, tmp_path, monkeypatch, victim):
    real = files_module._open
    with monkeypatch.context() as patch:
        patch.setattr(
            files_module, "_open", lambda path: FullDisk() if victim in path.name else real(path)
        )
        with pytest.raises(OutputError, match=f"disk is full: {victim} needs"):
            atlas(small, out=tmp_path / "a")
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [".run"]
    assert not list((tmp_path / "a").rglob("*.partial"))
    done = atlas(small, out=tmp_path / "a")
    assert len(done.report["sites"]) == 3
    assert not (tmp_path / "a" / ".run").exists()


# ---- choices and refusals


def test_sites_layers_and_tokens_choose(saved, tmp_path):
    some = atlas(saved, out=tmp_path / "a", sites=["resid"], layers=[0, 3], tokens=500)
    assert [row["key"] for row in some.report["sites"]] == ["layer.00/resid", "layer.03/resid"]
    assert some.report["source"]["n_tokens"] == 500
    assert some.report["sites"][1]["n_outliers"] == 1  # only row 0 is among the first 500
    with pytest.raises(InvalidArgumentError, match="at least one saved site"):
        atlas(saved, out=tmp_path / "b", sites=["mlp"])
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"texts": ["a"]}, "texts must be left out for saved"),
        ({"tokens": 1}, "at least 2"),
        ({"tokens": "many"}, "or 'all'"),
        ({"outlier_factor": 0.5}, "greater than 1"),
        ({"first_token": "drop"}, "must be 'auto' for saved"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"checkpoint_seconds": -1.0}, "checkpoint_seconds"),
    ],
)
def test_wrong_arguments_leave_no_folder(saved, tmp_path, options, message):
    with pytest.raises(InvalidArgumentError, match=message):
        atlas(saved, out=tmp_path / "a", **options)
    assert not (tmp_path / "a").exists()


def test_nan_is_named(tmp_path):
    x = np.ones((20, 4), np.float32)
    x[7, 2] = np.nan
    save_file({"layer.01/mlp": x}, tmp_path / "a.safetensors")
    with pytest.raises(InvalidArgumentError, match=r"NaN.*site layer\.01/mlp, token 7"):
        atlas(tmp_path / "a.safetensors", out=tmp_path / "out")


def test_constant_and_zero_activations_are_described(tmp_path):
    save_file(
        {
            "layer.00/resid": np.zeros((50, 4), np.float32),
            "layer.01/resid": np.ones((50, 4), np.float32),
        },
        tmp_path / "a.safetensors",
    )
    report = atlas(tmp_path / "a.safetensors", out=tmp_path / "out").report
    assert [row["all"]["effective_rank"] for row in report["sites"]] == [0.0, 0.0]
    assert "collapse" not in findings(report)


def test_weight_rows_match_numpy():
    rng = np.random.default_rng(1)
    tall = rng.normal(size=(400, 6)) * [5, 4, 3, 2, 1, 0.1]
    tall[3] *= 100
    weights = {
        "layers.0.q.weight": rng.normal(size=(8, 6)).astype(np.float32),
        "embed.weight": tall.astype(np.float32),
        "layers.1.q.weight": rng.normal(size=(8, 6)).astype(np.float32),
    }
    rows = weight_rows(weights.items(), factor=5.0)
    assert [row["name"] for row in rows] == list(weights)
    assert [(row["layer"], row["type"]) for row in rows] == [(0, "q"), (None, "embed"), (1, "q")]
    for row in rows:
        values = np.linalg.svd(weights[row["name"]].astype(np.float64), compute_uv=False)
        np.testing.assert_allclose(row["all"]["spectrum"], values, rtol=1e-4)
        share = values / values.sum()
        rank = np.exp(-np.sum(share * np.log(share)))
        assert row["all"]["effective_rank_singular"] == pytest.approx(rank, rel=1e-4)
        assert row["all"]["stable_rank"] == pytest.approx(
            (values**2).sum() / values[0] ** 2, rel=1e-4
        )
    assert rows[1]["n_outliers"] >= 1
    clean = tall[np.linalg.norm(tall, axis=1) <= 5 * np.median(np.linalg.norm(tall, axis=1))]
    values = np.linalg.svd(clean, compute_uv=False)
    np.testing.assert_allclose(rows[1]["without_outliers"]["spectrum"], values, rtol=1e-4)
    assert rows[0]["without_outliers"] is None


def test_layer_list():
    assert layer_list([5]) == "5"
    assert layer_list([2, 1]) == "1 and 2"
    assert layer_list([1, 2, 3, 7]) == "1\u20133 and 7"
