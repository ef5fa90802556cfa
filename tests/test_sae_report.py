"""The report on an autoencoder: its files, its words, its page, also in a real browser."""

import json
import re
import shutil
import subprocess
import warnings

import numpy as np
import pytest
from conftest import TEXT
from safetensors import safe_open
from subspan.activations import load_model
from subspan.errors import DtypeError, InvalidArgumentError, OutputError
from subspan.sae import Autoencoder, Report, evaluate, report
from test_report_page import checked

SITE = "layer.02/resid"
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


@pytest.fixture(scope="module")
def model(tiny):
    return load_model(tiny)


@pytest.fixture(scope="module")
def sae():
    rng = np.random.default_rng(0)
    w = rng.normal(size=(96, 32)).astype(np.float32)
    w /= np.linalg.norm(w, axis=1, keepdims=True)
    w[95] = w[94]  # twins
    return Autoencoder("topk", w.T.copy(), w, np.zeros(32, np.float32), k=4)


@pytest.fixture(scope="module")
def made(model, sae, tmp_path_factory):
    found = evaluate(sae, model, TEXT, site=SITE, tokens=150)
    out = tmp_path_factory.mktemp("sae") / "report"
    return report(sae, model, TEXT, out=out, site=SITE, evaluation=found, after=4)


def features(made):
    with safe_open(made.path / "features.safetensors", "numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return arrays, json.loads(file.metadata()["subspan"])


def test_the_folder_and_its_json(made, sae):
    names = {entry.name for entry in made.path.iterdir()}
    assert names == {"report.html", "report.json", "features.safetensors", "figures"}
    assert json.loads((made.path / "report.json").read_text("utf-8")) == json.loads(
        json.dumps(made.report)
    )
    assert Report.load(made.path).summary == made.summary
    content = made.report
    assert content["sae"]["n_latents"] == 96
    assert content["metrics"]["l0"] <= 4
    assert content["n_dead"] == round(content["metrics"]["dead_fraction"] * 96)
    assert content["n_twins"] == 2
    assert sum(content["histograms"]["log10_density"]["counts"]) == 96 - content["n_dead"]
    assert sum(content["histograms"]["l0"]["counts"]) == content["metrics"]["n_rows"]
    assert sum(content["histograms"]["max_cosine"]["counts"]) == 96
    assert content["evaluation"]["n_tokens"] == 150
    assert {f["id"] for f in content["verdict"]["findings"]} >= {"fit", "loss", "dead", "twins"}
    assert "2 latents have a twin" in made.summary
    again = Autoencoder("topk", sae.w_enc, sae.w_dec, 1 + sae.b_dec, k=4)
    assert again.w_dec is sae.w_dec


def test_the_contexts_are_the_text(made, model, sae):
    arrays, about = features(made)
    from subspan.activations import capture, tokenize

    stream = tokenize(model, TEXT, window=64)
    rows, pieces, window = [], [], []
    for batch in capture(model, stream, sites=[SITE]):
        rows.append(next(iter(batch.arrays.values())))
        pieces += batch.tokens.pieces
        window += [len(window) // 64] * len(batch.tokens)
    code = sae.encode(np.concatenate(rows)).to_dense(96)
    assert np.array_equal(arrays["fires"], (code > 0).sum(axis=0))
    assert np.allclose(arrays["max_activation"], code.max(axis=0), rtol=1e-6)
    assert about["n_top"] == 8
    starts = [i for i in range(len(pieces)) if i % 64 == 0]
    checked_places = 0
    for latent in np.flatnonzero(arrays["fires"])[::7]:
        order = np.lexsort((np.arange(len(code)), -code[:, latent]))
        for j in range(min(8, int(arrays["fires"][latent]))):
            row, place = int(order[j]), int(arrays["context_place"][latent, j])
            left, right = (int(v) for v in arrays["context_span"][latent, j])
            begin = max(s for s in starts if s <= row)
            assert left == min(14, row - begin)
            assert right == min(4, min(begin + 64, len(pieces)) - 1 - row)
            shown = [about["texts"][t] for t in arrays["stream"][place - left : place + right + 1]]
            there = [p.replace("\n", "↵") for p in pieces[row - left : row + right + 1]]
            assert shown == there
            shares = code[row - left : row + right + 1, latent] / code[:, latent].max()
            levels = arrays["context_around"][latent, j, 14 - left : 15 + right]
            assert np.array_equal(levels > 0, shares > 0)
            assert np.abs(levels / 255 - shares).max() <= 1 / 255 + 1e-6
            assert arrays["context_value"][latent, j] == code[row, latent]
            checked_places += 1
    assert checked_places > 20
    raised = arrays["promoted"]
    assert raised.shape == (96, 8)
    assert (np.diff(arrays["promoted_by"], axis=1) <= 0).all()
    assert np.array_equal(arrays["neighbours"][94:, 0], [95, 94])
    assert arrays["neighbour_cosine"][94, 0] == pytest.approx(1, abs=1e-6)
    assert (arrays["histogram"].max(axis=1) == np.where(arrays["fires"] > 0, 255, 0)).all()


def test_the_page_is_self_contained(made):
    html = made.page.read_text("utf-8")
    page = checked(html)
    assert {"features-data", "feature-form", "latents"} <= set(page.ids)
    assert "never fired" in html
    assert "fetch(" not in html
    assert "innerHTML" not in html


def test_runs_repeat_and_batches_do_not_matter(made, model, sae, tmp_path, monkeypatch):
    monkeypatch.setattr("subspan.sae.cards._job.pictures", lambda _: iter(()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other = report(
            sae.to_torch(), model, TEXT, out=tmp_path / "out", site=SITE, batch_size=3, after=4
        )
    mine, its = features(made)[0], features(other)[0]
    assert mine.keys() == its.keys()
    for name in ("fires", "context_span", "stream", "promoted", "neighbours", "histogram"):
        assert np.array_equal(mine[name], its[name]), name
    assert other.report["evaluation"] is None
    assert other.report["sae"]["hash"] == made.report["sae"]["hash"]
    assert other.report["metrics"]["explained_variance"] == pytest.approx(
        made.report["metrics"]["explained_variance"], rel=1e-6
    )


def test_refusals(model, sae, tmp_path, made):
    out = tmp_path / "out"
    with pytest.raises(InvalidArgumentError, match="site must be given"):
        report(sae, model, TEXT, out=out)
    with pytest.raises(InvalidArgumentError, match="texts must be given"):
        report(sae, model, out=out, site=SITE)
    with pytest.raises(InvalidArgumentError, match="site must name one site"):
        report(sae, model, TEXT, out=out, site="resid")
    with pytest.raises(InvalidArgumentError, match="top must be in 1"):
        report(sae, model, TEXT, out=out, site=SITE, top=0)
    with pytest.raises(InvalidArgumentError, match="model must be left out"):
        report(sae, model, TEXT, out=out, site=SITE, model=model)
    with pytest.raises(DtypeError, match="sae must be an Autoencoder"):
        report(type("A", (), {"reconstruct": None})(), model, TEXT, out=out, site=SITE)
    narrow = Autoencoder("topk", np.ones((3, 4)), np.ones((4, 3)), np.zeros(3), k=1)
    with pytest.raises(InvalidArgumentError, match="width of the site, 32, got 3"):
        report(narrow, model, TEXT, out=out, site=SITE)
    with pytest.raises(OutputError, match="finished run"):
        report(sae, model, TEXT, out=made.path, site=SITE)
    assert not (out / "report.html").exists()


def browse(made, asked, tmp_path):
    """Return numbers of the cards, and the whole document, after the page has run its script."""
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=20000", "--dump-dom",
        f"{made.page.as_uri()}{asked}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=True)
    return [int(n) for n in re.findall(r'id="latent-(\d+)"', done.stdout)], done.stdout


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_the_page_in_a_browser(made, tmp_path):
    arrays, about = features(made)
    fires = arrays["fires"]
    alive = np.flatnonzero(fires)
    cards, page = browse(made, "", tmp_path)
    by_density = sorted(alive.tolist(), key=lambda i: (-fires[i], i))
    assert cards == by_density[: len(cards)]
    assert len(cards) >= 20
    assert f"{len(alive)} of 96 latents" in page
    top = by_density[0]
    peak = about["texts"][arrays["stream"][arrays["context_place"][top, 0]]]
    card = page.split('<li id="latent-')[1]
    assert card.startswith(f'{top}"')
    assert re.search(rf'<b class="t"[^>]*>{re.escape(peak.replace("<", "&lt;"))}</b>', card)
    assert card.count("<rect") == 24
    assert f'href="#feature={arrays["neighbours"][top, 0]}"' in card

    cards, _ = browse(made, "#sort=max&up=1&dead=1", tmp_path)
    largest = arrays["max_activation"]
    assert cards == sorted(range(96), key=lambda i: (largest[i], i))[: len(cards)]

    texts = np.array(about["texts"])
    tokens = texts[arrays["stream"][np.maximum(arrays["context_place"], 0)]]
    hit = ((np.char.find(tokens, "mat") >= 0) & (arrays["context_place"] >= 0)).any(axis=1)
    cards, page = browse(made, "#q=MAT&in=token&sort=number", tmp_path)
    assert f"{int(hit.sum())} of 96 latents" in page
    assert cards == np.flatnonzero(hit)[: len(cards)].tolist()
    assert 0 < hit.sum() < len(alive)

    words = "sat on the"  # across tokens
    shown = [
        any(
            words in context_text(arrays, about, i, j)
            for j in range(arrays["context_place"].shape[1])
        )
        for i in range(96)
    ]
    cards, page = browse(made, f"#q={words.replace(' ', '+')}&in=context&sort=number", tmp_path)
    assert 0 < sum(shown) < 96
    # a hit may begin in a context and end behind it, so the page may show a few more
    assert set(np.flatnonzero(shown)[: len(cards) // 2]) <= set(cards)

    cards, page = browse(made, "#feature=94", tmp_path)
    assert cards[:2] == [94, 95]
    assert len(cards) == 6
    assert "Latent 94 and its nearest" in page


def context_text(arrays, about, i, j):
    place = int(arrays["context_place"][i, j])
    if place < 0:
        return ""
    left, right = (int(v) for v in arrays["context_span"][i, j])
    return "".join(about["texts"][t] for t in arrays["stream"][place - left : place + right + 1])
