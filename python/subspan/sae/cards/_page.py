"""The page of an autoencoder: the findings, the pictures, the numbers, and a card per latent."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from subspan.report import Page
from subspan.report.facts import fact_items
from subspan.report.words import percent, short
from subspan.sae.cards._features import explorer
from subspan.sae.cards._verdict import place, share

__all__ = ["page"]

Row = Mapping[str, Any]
_METRICS = (
    ("explained_variance", "Explained variance", "1 − Σ‖x−x̂‖² / Σ‖x−mean‖²"),
    ("residual_variance", "… less the mean of the error", "form of dictionary_learning"),
    ("saelens_compat", "… as SAELens 6.18 computes it", "for comparison with its tables"),
    ("nmse", "Normalised error", "Σ‖x−x̂‖² / Σ‖x‖²"),
    ("cosine", "Cosine", "mean of cos(x, x̂)"),
    ("l2_ratio", "Length ratio", "mean of ‖x̂‖ / ‖x‖"),
    ("relative_bias", "Relative bias", "Σ‖x̂‖² / Σ⟨x, x̂⟩, 1 where nothing shrinks"),
    ("l0", "L0", "latents for each token"),
    ("l1", "L1", "sum of activations for each token"),
    ("dead_fraction", "Dead latents", "share that never fires on these tokens"),
)


def page(report: Row, drawn: Mapping[str, tuple[str, str]], features: Path) -> Page:
    """Return the page; ``drawn`` maps a picture's name to its inline SVG and caption."""
    settings, sae = report["settings"], report["sae"]
    made = Page(f"Sparse autoencoder: {report['source']['name']}, {place(settings['site'])}")
    texts = [finding["text"] for finding in report["verdict"]["findings"]]
    made.verdict([part for part in (texts[:2], texts[2:]) if part])
    made.cards(_cards(report))
    made.block('<p><a href="#latents">To the cards of the latents</a></p>')
    made.section("Overview")
    for name in ("overview", "training"):
        if name in drawn:
            made.figure(*drawn[name])
    made.section("Metrics")
    _metrics(made, report)
    made.section("Run facts")
    made.definitions(_facts(report))
    made.section("How to read this")
    made.definitions(_method(report))
    made.section("Latents")
    made.paragraph(
        f"A card for each of {sae['n_latents']:,} latents. Colour is the activation as a share of "
        "the latent's largest; the bold token is the place itself, which is the strongest but for "
        "those drawn at random. The key / leads to the search, j and k go from card to card.",
        style="note",
    )
    markup, style, script = explorer(features)
    made.block(markup, style=style, script=script)
    return made


def _cards(report: Row) -> list[tuple[str, str, str]]:
    metrics, found = report["metrics"], report["evaluation"]
    fit, remark = metrics, "of the tokens kept"
    if found is not None and report["settings"]["held_out"]:
        fit, remark = found["reconstruction"], "of text held out"
    cards = [
        (share(fit["explained_variance"]), "variance explained", remark),
        (short(float(fit["l0"])), "latents for each token", f"of {metrics['n_latents']:,}"),
    ]
    if found is not None:
        for name, value in found["ce_recovered"].items():
            if value is not None:
                cards.append((share(value), "loss recovered", f"{name} ablation"))
        cards.append((f"{found['ce_increase']:+.3f}", "cross-entropy", "nats for each token"))
    never = f"never fire on {metrics['n_rows']:,} tokens"
    cards.append((percent(metrics["dead_fraction"]), "of the latents", never))
    return cards


def _metrics(made: Page, report: Row) -> None:
    metrics, found = report["metrics"], report["evaluation"]
    columns = ["Measure", f"{metrics['n_rows']:,} tokens of the cards"]
    if found is not None:
        held_out = "held-out " if report["settings"]["held_out"] else ""
        columns.append(f"{found['reconstruction']['n_rows']:,} {held_out}tokens of the losses")
    rows: list[list[object]] = []
    for name, title, what in _METRICS:
        line: list[object] = [title, metrics[name]]
        line += [] if found is None else [found["reconstruction"].get(name)]
        rows.append([*line, what])
    made.table([*columns, "Definition"], rows)
    if found is None:
        return
    entropy, kl = found["cross_entropy"], found["kl"]
    words = {"clean": "the model as it is", "spliced": "the reconstruction"}
    rows = []
    for name, value in entropy.items():
        what = words.get(name, "zero in their place" if name == "zero" else "their mean")
        row: list[object] = [name, what, value, kl.get(name)]
        row += [found[score].get(name) for score in ("ce_recovered", "kl_score")]
        rows.append(row)
    made.table(
        ["Run", "Activations", "Cross-entropy", "KL from clean", "CE recovered", "KL score"],
        rows,
        caption="Nats for each token. In the row of an ablation: the scores of the reconstruction "
        "by that ablation, (CE ablated − CE spliced) / (CE ablated − CE clean) and "
        "1 − KL spliced / KL ablated.",
    )


def _facts(report: Row) -> list[tuple[str, str]]:
    source, settings, sae = report["source"], report["settings"], report["sae"]
    items = [
        ("Model", source["path"]),
        ("Model hash (SHA-256)", source["hash"]),
        ("Texts", ", ".join(source["texts"])),
        ("Text hash (SHA-256)", source["text_hash"]),
        ("Tokens", f"{source['n_tokens']:,}, of which {source['n_excluded']:,} excluded"),
        ("Excluded", settings["excluded"]),
        (
            "Autoencoder",
            f"{sae['architecture']}, {sae['n_latents']:,} latents, width {sae['width']}",
        ),
        ("Autoencoder hash (SHA-256)", sae["hash"]),
    ]
    if report["evaluation"] is not None:
        found = report["evaluation"]
        text = f"{found['n_predictions']:,} predictions on {found['n_tokens']:,} tokens"
        items.append(("Loss", f"{text}, {found['n_excluded']:,} of which kept their activations"))
    items += _training(report["training"])
    memory = report["facts"]["peak_memory_mb"]
    items.append(("Peak memory", f"{memory:,.0f} MB, of the whole process" if memory else ""))
    items.append(("Seed", f"{settings['seed']}, for the places drawn at random"))
    return [(name, text) for name, text in items if text] + fact_items(report["facts"])


def _training(training: Row | None) -> list[tuple[str, str]]:
    if training is None:
        return []
    text = f"{training['tokens']:,} tokens in {training['steps']:,} steps"
    if training["tokens_per_second"]:
        text += f", {training['tokens_per_second']:,.0f} tokens/s (median over the log)"
    known = {name: value for name, value in training["config"].items() if value is not None}
    return [
        ("Training", text),
        ("Settings", ", ".join(f"{name} {value}" for name, value in known.items())),
    ]


def _method(report: Row) -> list[tuple[str, str]]:
    settings = report["settings"]
    items = [
        (
            "Density",
            "Share of the tokens on which a latent is not zero. Mean and maximum are over those "
            "tokens.",
        ),
        (
            "Histogram",
            "Activations on a log scale, six octaves below the largest; the first bar holds all "
            "that are smaller.",
        ),
    ]
    if settings["logits"]:
        items.append(
            (
                "Raises, lowers",
                "Tokens whose logits the latent's decoder row changes most on the direct path "
                f"through the unembedding. {settings['logits']} Blocks after this site that read "
                "the latent are not in it.",
            )
        )
    items += [
        ("◌", "A further token of the character before it."),
        ("Nearest", "Cosine of the decoder rows, exact over all pairs."),
        (
            "Loss recovered",
            "How much of the damage of an ablation the reconstruction avoids. Zero ablation does "
            "more damage than mean ablation where activations have a large mean, so its score is "
            "higher: compare only scores of one kind. Excluded tokens keep their activations in "
            "every run.",
        ),
        ("What this does not say", " ".join(report["limits"])),
    ]
    return items
