"""The page of a comparison: everything in the report, in the order a reader asks for it."""

from collections.abc import Mapping
from typing import Any

from subspan.comparison._verdict import site_names, title
from subspan.report import Page
from subspan.report.facts import fact_items
from subspan.report.words import count, percent

__all__ = ["page"]

Row = Mapping[str, Any]

_UNITS = {"token": "token", "line": "line", "row": "row"}


def page(report: Row, drawn: Mapping[str, tuple[str, str]]) -> Page:
    """Return the page; ``drawn`` maps a picture's name to its inline SVG and caption."""
    both = f"{report['a']['name']} (A) and {report['b']['name']} (B)"
    made = Page(f"Comparison: {both}", _subtitle(report))
    texts = [finding["text"] for finding in report["verdict"]["findings"]]
    made.verdict([part for part in (texts[:2], texts[2:]) if part])
    made.cards(_cards(report))
    for heading, names in (
        ("Layer by layer", ("similarity",)),
        ("Best matches", ("best_layer", "best_match")),
        ("Principal angles", ("principal_angles",)),
        ("What outliers do", ("with_outliers",)),
    ):
        if names[0] in drawn:
            made.section(heading)
        for name in names:
            if name in drawn:
                made.figure(*drawn[name])
    if report["with_outliers"] is not None:
        made.paragraph(report["settings"]["outlier_rule"], style="note")
    made.section("Every layer of A")
    _matches(made, report)
    made.section("Run facts")
    made.definitions(_facts(report))
    made.section("How to read this")
    made.definitions(_method(report))
    return made


def _subtitle(report: Row) -> str:
    unit = _UNITS[report["settings"]["unit"]]
    layers = [len(report[side]["sites"]) for side in ("a", "b")]
    return (
        f"{count(report['samples']['n_used'], unit)}, {layers[0]} × {layers[1]} layers, "
        f"{report['facts']['started']}"
    )


def _cards(report: Row) -> list[tuple[str, str, str]]:
    cards = []
    for one in report["measures"]:
        best = [row[one["name"]] for row in report["matches"] if row[one["name"]]]
        if best:
            values = sorted(entry["value"] for entry in best)
            words = f"{title(one['name'])} of the best match"
            cards.append((f"{values[len(values) // 2]:.2f}", words, "median over layers of A"))
    lead = report["measures"][0]
    if lead["n_above"] is not None:
        pairs = sum(value is not None for line in lead["matrix"] for value in line)
        share = percent(lead["n_above"] / pairs) if pairs else "–"
        cards.append((share, "of pairs above the null", title(lead["name"])))
    return cards


def _matches(made: Page, report: Row) -> None:
    names = dict(
        zip(
            (site["key"] for site in report["b"]["sites"]),
            site_names(report["b"]["sites"]), strict=True,
        )
    )  # fmt: skip
    columns, rows = ["Layer of A", "Width"], []
    for one in report["measures"]:
        columns += [f"Best by {title(one['name'])}", "Value"]
        columns += ["Null"] if one["null_quantile"] else []
    known = site_names(report["a"]["sites"])
    for name, site, match in zip(known, report["a"]["sites"], report["matches"], strict=True):
        line: list[object] = [int(name) if name.isdecimal() else name, site["width"]]
        for one in report["measures"]:
            entry = match[one["name"]] or {"b": None, "value": None, "null_quantile": None}
            best = None if entry["b"] is None else names[entry["b"]]
            line += [int(best) if best and best.isdecimal() else best, entry["value"]]
            line += [entry["null_quantile"]] if one["null_quantile"] else []
        rows.append(line)
    made.table(columns, rows, caption="Best match of each layer of A. Matrices are in report.json.")


def _facts(report: Row) -> list[tuple[str, str]]:
    settings, about = report["settings"], report["samples"]
    items = []
    for label in ("a", "b"):
        side = report[label]
        items += [
            (label.upper(), side["path"]),
            (f"Hash of {label.upper()} (SHA-256)", side["hash"]),
        ]
    if report["a"]["texts"]:
        items.append(("Texts", ", ".join(report["a"]["texts"])))
    unit = {"line": "lines, each the mean over its tokens", "token": "tokens", "row": "saved rows"}
    items.append(("Samples", f"{about['n_used']:,} of {about['n']:,} {unit[settings['unit']]}"))
    if settings["n_permutations"]:
        items.append(
            (
                "Null",
                f"{settings['n_permutations']} permutations, for up to {settings['null_layers']} "
                f"layers of either side, interpolated between; seed {settings['seed']}",
            )
        )
    if settings["noise"] > 0 or settings["keep"] < 1:
        changed = f"noise {settings['noise']:g} of the root mean square of each matrix, "
        changed += f"{percent(settings['keep'])} of the singular values kept"
        items.append(("Weights of B", changed))
    said = sorted({text for one in report["measures"] for text in one["warnings"]})
    items += [("Warning", text) for text in said]
    return items + fact_items(report["facts"])


def _method(report: Row) -> list[tuple[str, str]]:
    items = [
        (title(one["name"]), one["formula"] + (" (a distance)" if one["is_distance"] else ""))
        for one in report["measures"]
    ]
    return [
        *items,
        (
            "Null",
            "The samples of B in random order, so that samples of A and B no longer belong "
            "together: what similarity the number of samples and the dimensions alone make.",
        ),
        (
            "Principal angles",
            "Angles between the spans of the leading principal components of two layers, from the "
            "smallest on; 0° is a shared direction. Chance: samples of B permuted, or random "
            "subspaces.",
        ),
        (
            "Blocks",
            "Consecutive layers whose similarities to the other side differ by less than a "
            "twentieth of their range on average.",
        ),
        (
            "What this does not say",
            "Similar activations on these samples are not the same function: other texts may part "
            "the models. CKA is led by directions of large variance, SVCCA counts all that it "
            "keeps alike. A mean over the tokens of a line hides what single tokens do.",
        ),
    ]
