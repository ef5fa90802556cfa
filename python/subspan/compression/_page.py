"""The page of a compression, and what is said about it in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from subspan.compression._pictures import run_name
from subspan.report import Page
from subspan.report.facts import fact_items
from subspan.report.words import count, listed, percent

__all__ = [
    "against_dense",
    "heading",
    "megabytes",
    "or_worst",
    "page",
    "quality_words",
    "reading_facts",
    "value_word",
    "verdict",
]

Row = Mapping[str, Any]


def quality_words(report: Row) -> list[str]:
    """Return a sentence for each kept ratio: which run was best, and what it costs."""
    texts, dense = report["texts"], report["dense"]["perplexity"]
    first = next((t for t in texts if t["domain"] == "in"), texts[0])["name"]
    said = []
    for kept in report["settings"]["kept"]:
        points = [p for p in report["points"] if p["kept"] == kept]
        best = min(points, key=lambda p: or_worst(p["perplexity"][first]))
        values = against_dense(texts, best["perplexity"], dense)
        which = f", best of {len(points)} by {first}," if len(points) > 1 else ""
        said.append(
            f"With {100 * best['kept_bytes']:.1f} % of the bytes kept, {run_name(best)}{which} has "
            f"a perplexity of {values}."
        )
    return said


def against_dense(texts: Sequence[Row], found: Row, dense: Row) -> str:
    """Return the perplexities of all texts in words, each with that of the dense model."""
    return listed(
        [
            f"{value_word(found[t['name']])} on {t['name']} ({value_word(dense[t['name']])} dense)"
            for t in texts
        ]
    )


def heading(text: Row) -> str:
    """Return what a column of a text is called."""
    return f"{text['name']}{'' if text['domain'] == 'in' else ' (out of domain)'}"


def verdict(report: Row) -> list[str]:
    """Return what was found, in sentences, the bad news included."""
    said = quality_words(report)
    last = report["points"][-1]
    alone = sum(row["kind"] == "dense" for row in last["layers"])
    if alone:
        said.append(
            f"{count(alone, 'matrix', 'matrices')} of {len(last['layers'])} stayed dense with "
            f"{run_name(last)} at {100 * last['kept']:g} %."
        )
    whole = report["model"]["bytes"]
    part = percent(report["model"]["matched_bytes"] / whole)
    said.append(
        f"The matrices that were compressed are {part} of the model; the whole went from "
        f"{megabytes(whole)} to {megabytes(last['model_bytes'])} at {100 * last['kept']:g} % kept."
    )
    return said


def page(report: Row, drawn: Mapping[str, tuple[str, str]]) -> Page:
    """Return the page; ``drawn`` maps a picture's name to its inline SVG and caption."""
    about = report["calibration"]
    made = Page(
        f"Compression of {report['model']['name']}",
        f"{count(len(report['weights']), 'matrix', 'matrices')}, {about['tokens']:,} calibration "
        f"tokens, {report['facts']['started']}",
    )
    said = verdict(report)
    made.verdict([part for part in (said[:1], said[1:]) if part])
    made.section("Quality against bytes")
    made.figure(*drawn["quality"])
    _points(made, report)
    made.section("Matrix by matrix")
    for name, (svg, caption) in drawn.items():
        if name != "quality":
            made.figure(svg, caption)
    for point in report["points"]:
        _layers(made, report, point)
    made.section("Run facts")
    made.definitions(reading_facts(report, f"{about['inputs']} distinct inputs"))
    made.section("How to read this")
    made.definitions(_method())
    return made


def _points(made: Page, report: Row) -> None:
    texts = report["texts"]
    columns = ["Method", "Allocation", "Bytes kept, %", "Matrices, MB", "Model, MB"]
    columns += [heading(text) for text in texts]
    columns += ["Mean output error, %", "Dense"]
    model = report["model"]
    dense = [report["dense"]["perplexity"][t["name"]] for t in texts]
    rows: list[list[object]] = [
        ["dense", "–", 100.0, model["matched_bytes"] / 1e6, model["bytes"] / 1e6, *dense, 0.0,
         len(report["weights"])]
    ]  # fmt: skip
    for point in report["points"]:
        errors = [row["relative_error"] for row in point["layers"]]
        rows.append(
            [
                point["method"], point["allocation"], 100 * point["kept_bytes"],
                point["bytes"] / 1e6, point["model_bytes"] / 1e6,
                *(point["perplexity"][t["name"]] for t in texts),
                100 * sum(errors) / len(errors),
                sum(row["kind"] == "dense" for row in point["layers"]),
            ]
        )  # fmt: skip
    caption = (
        "Perplexity on held-out text. A dash: it overflowed. Dense: matrices that were kept so."
    )
    made.table(columns, rows, caption=caption)


def _layers(made: Page, report: Row, point: Row) -> None:
    shapes = {row["name"]: row["shape"] for row in report["weights"]}
    rows = [
        [
            row["name"], "x".join(map(str, shapes[row["name"]])), row["kind"], row["size"],
            100 * row["kept"], row["bytes"].get("codes_idx", 0), 100 * row["relative_error"],
            row["note"],
        ]
        for row in point["layers"]
    ]  # fmt: skip
    columns = ["Matrix", "Shape", "Form", "Rank or atoms", "Bytes kept, %", "Index bytes",
               "Output error, %", "Note"]  # fmt: skip
    title = f"{run_name(point)}, {100 * point['kept']:g} % kept: every matrix"
    made.table(columns, rows, closed=title)


def reading_facts(report: Row, collected: str) -> list[tuple[str, str]]:
    """Return the model, what calibrated and what judged."""
    settings, about, model = report["settings"], report["calibration"], report["model"]
    judged = [f"{t['name']} ({t['domain']}, {t['tokens']:,} tokens)" for t in report["texts"]]
    return [
        ("Model", model["path"]),
        ("Hash of the model (SHA-256)", model["hash"]),
        ("Calibration", f"{', '.join(about['texts'])}: {about['tokens']:,} tokens in windows of "
         f"{settings['window']}, {collected}; seed {settings['seed']}"),
        ("Hash of the tokens", about["hash"]),
        ("Judged by", ", ".join(judged)),
        ("Stored values", settings["dtype"]),
        *fact_items(report["facts"]),
    ]  # fmt: skip


def _method() -> list[tuple[str, str]]:
    return [
        (
            "Bytes",
            "What the tensors of a file take: values, indices or masks of sparse codes, biases; "
            "without the header. The dense model is counted at the same bits a value.",
        ),
        (
            "Output error",
            "Norm of the change of a layer's output over the norm of the output, on calibration "
            "tokens, as the factorisation predicts it; layers before are taken as unchanged. For "
            "dictionaries, in the weights of their rows if they had any.",
        ),
        (
            "Allocation",
            "uniform: all matrices alike. error: least sum of relative squared output errors. "
            "loss: least predicted increase of the loss, half of tr(H dW G dW'), with G and H the "
            "second moments of inputs and of gradients at outputs.",
        ),
        (
            "What this does not say",
            "Perplexity on these texts is not quality on other tasks. Calibration on one kind of "
            "text costs others: look at the texts out of domain.",
        ),
    ]


def or_worst(value: float | None) -> float:
    """Return a perplexity to sort by; one that overflowed is the worst."""
    return float("inf") if value is None else value


def value_word(value: float | None) -> str:
    """Return a perplexity in words."""
    if value is None:
        return "more than a number can hold"
    return f"{value:,.1f}" if value < 1000 else f"{value:.1e}"


def megabytes(n_bytes: int) -> str:
    """Return bytes in words."""
    return f"{n_bytes / 1e6:,.1f} MB"
