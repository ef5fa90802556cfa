"""The paragraph in words: sentences that each carry a finding and its numbers."""

from collections.abc import Mapping
from typing import Any

from subspan.activations import Site, kind_name
from subspan.report.words import count, percent, short

__all__ = ["findings", "place", "share", "thresholds"]

Row = Mapping[str, Any]
_DENSE = 0.1  # of the tokens: a latent that fires on more says little about any of them
_TWIN = 0.9  # cosine of decoder rows
_ENOUGH = 50  # tokens that a latent would fire on if all were alike; below, silence is no death


def place(key: str) -> str:
    """Return the words for a site: "the residual stream entering layer 15"."""
    site = Site.parse(key) if key.startswith("layer.") else Site(-1, key)
    if site.layer < 0:
        return f"the module {site.kind}"
    if site.kind == "resid":
        return f"the residual stream entering layer {site.layer}"
    return f"the {kind_name(site.kind)} of layer {site.layer}"


def findings(report: Row) -> list[dict[str, Any]]:
    """Return the findings that hold, in reading order."""
    metrics, n = report["metrics"], report["sae"]["n_latents"]
    held_out = report["evaluation"] is not None and report["settings"]["held_out"] > 0
    fit = report["evaluation"]["reconstruction"] if held_out else metrics
    text = (
        f"The autoencoder explains {share(fit['explained_variance'])} of the variance of "
        f"{place(report['settings']['site'])}"
    )
    text += " on text that it was not trained on" if held_out else ""
    text += f", with {short(float(fit['l0']))} of {n:,} latents for each token on average."
    said = [{"id": "fit", "text": text}]
    said += _loss(report["evaluation"])
    said.append(_dead(report["n_dead"], n, metrics["n_rows"]))
    if report["n_dense"]:
        verb = "fires" if report["n_dense"] == 1 else "fire"
        text = f"{count(report['n_dense'], 'latent')} {verb} on more than "
        said.append({"id": "dense", "text": f"{text}{percent(_DENSE)} of the tokens."})
    if report["n_twins"]:
        has = "has" if report["n_twins"] == 1 else "have"
        text = f"{count(report['n_twins'], 'latent')} {has} a twin: another latent whose direction "
        said.append({"id": "twins", "text": f"{text}has a cosine above {_TWIN} with theirs."})
    if report["source"]["n_excluded"]:
        text = f"{count(report['source']['n_excluded'], 'outlier token')} of "
        text += f"{report['source']['n_tokens']:,} took no part."
        said.append({"id": "outliers", "text": text})
    fair = metrics["n_rows"] * metrics["l0"] / n
    if fair < _ENOUGH:
        text = f"Only {metrics['n_rows']:,} tokens were read, on which the average latent fires "
        text += f"{short(float(fair))} times: rare latents may look dead, and densities are rough."
        said.append({"id": "few_tokens", "text": text})
    return said


def share(value: float) -> str:
    """Return a score as per cent: unlike a part of something it may be negative or above 100."""
    return percent(value) if 0 <= value <= 1 else f"{100 * value:.1f} %"


def thresholds() -> tuple[float, float]:
    """Return from which density a latent is dense, and from which cosine it has a twin."""
    return _DENSE, _TWIN


def _loss(evaluation: Row | None) -> list[dict[str, Any]]:
    if evaluation is None:
        return []
    entropy, recovered = evaluation["cross_entropy"], evaluation["ce_recovered"]
    text = (
        "With its reconstruction in the place of the activations, the cross-entropy of the model "
        f"goes from {entropy['clean']:.3f} to {entropy['spliced']:.3f} nats for each token"
    )
    parts = [
        f"{share(value)} of the loss under {name} ablation"
        for name, value in recovered.items()
        if value is not None
    ]
    if parts:
        text += f": {' and '.join(parts)} {'is' if len(parts) == 1 else 'are'} recovered"
    return [{"id": "loss", "text": f"{text}."}]


def _dead(dead: int, n: int, tokens: int) -> dict[str, Any]:
    if not dead:
        return {"id": "no_dead", "text": f"Every latent fired on the {tokens:,} tokens."}
    text = f"{count(dead, 'latent')} ({percent(dead / n)}) never fired on {tokens:,} tokens."
    return {"id": "dead", "text": text}
