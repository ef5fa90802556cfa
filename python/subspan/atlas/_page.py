"""The page of an atlas: everything in the report, in the order a reader asks for it."""

from collections.abc import Mapping, Sequence
from typing import Any

from subspan.activations import kind_name
from subspan.report import Page, visible
from subspan.report.facts import fact_items
from subspan.report.words import layer_list, percent, short

__all__ = ["page"]

_SECTIONS = (
    ("Rank against depth", ("rank_vs_depth", "dims_vs_depth", "top_share_vs_depth")),
    ("Spectra", ("spectra_",)),
    ("Token norms", ("token_norms",)),
)
_OPEN = ("rank_vs_depth", "spectra_overview", "spectra_resid", "token_norms", "heads", "weights")

Row = Mapping[str, Any]


def page(report: Mapping[str, Any], drawn: Mapping[str, tuple[str, str]]) -> Page:
    """Return the page; ``drawn`` maps a picture's name to its inline SVG and caption."""
    source = report["source"]
    made = Page(f"Spectrum atlas: {source['name']}", _subtitle(report))
    found = report["verdict"]["findings"]
    split = {
        first: [finding["text"] for finding in found if _leads(finding) == first]
        for first in (True, False)
    }
    made.verdict([sentences for sentences in split.values() if sentences])
    made.cards(_cards(report))
    for title, prefixes in _SECTIONS:
        names = [name for name in drawn if name.startswith(prefixes)]
        if names:
            made.section(title)
        for name in names:
            svg, caption = drawn[name]
            closed = "" if name in _OPEN or len(names) == 1 else f"Show: {caption}"
            made.figure(svg, caption, closed=closed)
    _outliers(made, report)
    if "heads" in drawn:
        made.section("Keys and values by head")
        made.figure(*drawn["heads"])
    if report["weights"]:
        _weights(made, report, drawn)
    made.section("Every site")
    _sites(made, report["sites"])
    made.section("Run facts")
    made.definitions(_facts(report))
    made.section("How to read this")
    made.definitions(_method(report))
    return made


def _leads(finding: Row) -> bool:
    """Say whether a finding belongs to the first paragraph: the collapse and its tokens."""
    name = str(finding["id"])
    return name == "no_outliers" or name.startswith(("collapse", "outliers"))


def _subtitle(report: Mapping[str, Any]) -> str:
    source = report["source"]
    text = f"{source['n_tokens']:,} {'tokens' if source['kind'] == 'model' else 'rows'}"
    return f"{text}, {len(report['sites'])} sites, {report['facts']['started']}"


def _cards(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    lead = [
        row
        for row in report["sites"]
        if row["kind"] == report["outliers"]["kind"] and row["without_outliers"] and row["all"]
    ]
    if not lead:
        return []
    kind = kind_name(lead[0]["kind"])
    width = lead[0]["width"]

    def ranks(view: str) -> list[float]:
        return sorted(row[view]["effective_rank"] for row in lead)

    whole, clean = ranks("all"), ranks("without_outliers")
    middle = len(lead) // 2
    dims = sorted(row["without_outliers"]["dim_99"] for row in lead)
    top = max(lead, key=lambda row: row["all"]["top_share"])
    ratio = max(lead, key=lambda row: row["max_ratio"] or 0.0)
    where = f"layer {top['layer']}" if top["layer"] is not None else top["key"]
    loud = f"layer {ratio['layer']}" if ratio["layer"] is not None else ratio["key"]
    return [
        (short(whole[middle]), "effective rank, all tokens", f"median of the {kind}, of {width}"),
        (short(clean[middle]), "effective rank without outliers", f"median of the {kind}"),
        (f"{dims[middle]:,}", "dimensions for 99 %", "median, without outliers"),
        (
            percent(top["all"]["top_share"]),
            "largest share of one direction",
            f"{where}, all tokens",
        ),
        (f"{report['outliers']['n_tokens']:,}", "outlier tokens", f"in the {kind}"),
        (f"{short(ratio['max_ratio'] or 0.0)} ×", "largest norm / median", loud),
    ]


def _outliers(made: Page, report: Mapping[str, Any]) -> None:
    outliers = report["outliers"]
    tokens = outliers["tokens"]
    made.section("Outlier tokens")
    made.paragraph(report["settings"]["outlier_rule"])
    if not tokens:
        made.paragraph(f"None was found in the {kind_name(outliers['kind'])}.")
    else:
        named = tokens[0]["text"] is not None
        columns = ["Token", "In context", "Position in window"] if named else ["Row"]
        columns += ["× median", "Largest norm", "In layer", "Outlier in layers", "Count"]
        columns += ["Dimension", "Its value", "Its share of norm²"]
        columns += ["Document"] if named else []
        rows = [_token(token, named) for token in tokens[:100]]
        more = (
            f" (first {len(rows)} of {outliers['n_tokens']:,})"
            if outliers["n_tokens"] > 100
            else ""
        )
        made.table(
            columns,
            rows,
            caption=f"Outlier tokens of the {kind_name(outliers['kind'])}{more}, the most "
            "widespread first. · is a space, ↵ a line end.",
        )
    by_kind = outliers["n_tokens_by_kind"]
    if len(by_kind) > 1:
        text = ", ".join(f"{kind_name(kind)} {number:,}" for kind, number in by_kind.items())
        made.paragraph(
            f"Tokens that are outliers at one site or more, by kind: {text}.", style="note"
        )


def _token(token: Row, named: bool) -> list[object]:
    if named:
        context = (
            f"{visible(token['before'], limit=40)}‹{visible(token['text'])}›"
            f"{visible(token['after'], limit=40)}"
        )
        row: list[object] = [visible(token["text"], limit=24), context]
        row.append(token["position_in_window"])
    else:
        row = [token["token"]]
    layers = [layer for layer in token["layers"] if layer is not None and layer >= 0]
    row += [token["max_ratio"], token["max_norm"], token["max_layer"]]
    row += [layer_list(layers) if layers else "–", len(token["layers"])]
    row += [token["dimension"], token["dimension_value"], token["dimension_share"]]
    return [*row, token["document_name"]] if named else row


def _weights(made: Page, report: Mapping[str, Any], drawn: Mapping[str, tuple[str, str]]) -> None:
    made.section("Weights")
    made.paragraph(
        "A weight matrix sees no tokens, so it has one spectrum. Only an embedding has rows that "
        "belong to tokens; it is described with and without rows of outlying norm."
    )
    if "weights" in drawn:
        made.figure(*drawn["weights"])
    columns = ["Matrix", "Layer", "Shape", "Effective rank", "Stable rank", "Dims 90 %"]
    columns += ["Dims 99 %", "First direction", "Outlier rows", "Effective rank without"]
    rows = []
    for row in report["weights"]:
        whole, rest = row["all"], row["without_outliers"]
        line: list[object] = [row["type"], row["layer"], " × ".join(map(str, row["shape"]))]
        line += [whole["effective_rank_singular"], whole["stable_rank"], whole["dim_90"]]
        line += [whole["dim_99"], whole["top_share"], row.get("n_outliers")]
        rows.append([*line, rest["effective_rank_singular"] if rest else None])
    made.table(columns, rows, closed=f"Show all {len(rows)} matrices")


def _sites(made: Page, sites: Sequence[Row]) -> None:
    columns = ["Layer", "Site", "Head", "Dims", "Outliers", "Effective rank", "… without"]
    columns += ["σ eff. rank", "… without", "Dims 90 %", "… without", "Dims 99 %"]
    columns += [
        "… without",
        "Stable rank",
        "… without",
        "First direction",
        "… without",
    ]
    columns += ["Norm median", "Norm max"]
    rows = []
    names = ("effective_rank", "effective_rank_singular", "dim_90", "dim_99", "stable_rank")
    for row in sites:
        line: list[object] = [row["layer"], kind_name(row["kind"]), row["head"], row["width"]]
        line.append(row["n_outliers"])
        for name in (*names, "top_share"):
            for view in ("all", "without_outliers"):
                line.append(row[view][name] if row[view] else None)
        rows.append([*line, row["norm_median"], row["norm_max"]])
    made.table(
        columns,
        rows,
        caption="All tokens, and (… without) without outlier tokens. Click a head to sort; "
        "select and copy to paste. Spectra are in report.json.",
    )


def _facts(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    source, settings = report["source"], report["settings"]
    items = [
        ("Source", source["path"]),
        ("Source hash (SHA-256)", source["hash"]),
    ]
    if source["kind"] == "model":
        items += [
            ("Texts", ", ".join(source["texts"])),
            ("Text hash (SHA-256)", source["text_hash"]),
            ("Tokens", f"{source['n_tokens']:,} in windows of {settings['window']}"),
        ]
    items.append(("Seed", "none: nothing here is random"))
    return items + fact_items(report["facts"])


def _method(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    items = [
        (
            "Spectrum",
            "Eigenvalues λ of the centred covariance of the activations at a site, from float64 "
            "moments that are exact to merge: all tokens = inliers merged with outliers.",
        ),
        (
            "Effective rank",
            "exp(−Σ p log p). On variances, p = λ/Σλ (the headline for activations); on singular "
            "values, p = σ/Σσ with σ = √λ (“σ eff. rank”, and the headline for weights): "
            "Roy and Vetterli, The effective rank, EUSIPCO 2007.",
        ),
        (
            "Dims 90 %, 99 %",
            "Fewest leading directions whose variance (for weights: squared singular values) adds "
            "up to that share.",
        ),
        (
            "Stable rank",
            "Σλ / λ₁, that is ‖X‖²_F / ‖X‖²₂ of the centred data.",
        ),
        (
            "Outlier tokens",
            report["settings"]["outlier_rule"] + " The median is that of the first batch. Such "
            "tokens and the few dimensions that carry them are described by Sun, Chen, Kolter and "
            "Liu, Massive Activations in Large Language Models, 2024.",
        ),
        (
            "Layer",
            "Residual stream n is what enters block n (the last one is what leaves the model's "
            "last block); attention and MLP outputs are what block n adds to it; keys are taken "
            "after rotary position encoding where the model has it.",
        ),
    ]
    if report["source"]["kind"] != "model":
        items = items[:-1]
    return [*items, ("What this does not say", " ".join(report["limits"]))]
