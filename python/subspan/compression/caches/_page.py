"""The page of a compressed cache, and what is said about it in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from subspan.compression._page import heading, quality_words, reading_facts
from subspan.compression._pictures import run_name
from subspan.report import Page
from subspan.report.words import count

__all__ = ["page", "verdict"]

Row = Mapping[str, Any]


def verdict(report: Row) -> list[str]:
    """Return what was found, in sentences, the bad news included."""
    said = quality_words(report)
    last, dense = report["points"][-1], report["model"]["bytes_per_token"]
    said.append(
        f"With {run_name(last)} at {100 * last['kept']:g} % a token takes {last['bytes']:,} bytes "
        f"in place of {dense:,}; bases and means take {last['basis_bytes'] / 1e6:,.1f} MB once"
        + (
            f", which is made up for after {count(_even(last, dense), 'cached token')}."
            if last["bytes"] < dense
            else "."
        )
    )
    wrong = [p for p in report["points"] if p["measured"]["bytes"] != p["measured"]["predicted"]]
    said.append(
        "The bytes of the caches were measured, and were those that were planned."
        if not wrong
        else f"{count(len(wrong), 'cache')} had other bytes than planned."
    )
    return said


def page(report: Row, drawn: Mapping[str, tuple[str, str]]) -> Page:
    """Return the page; ``drawn`` maps a picture's name to its inline SVG and caption."""
    about, model = report["calibration"], report["model"]
    made = Page(
        f"Cache of {model['name']}",
        f"{model['layers']} layers of {count(model['heads'], 'key-value head')} of "
        f"{model['dimensions']} dimensions, {about['tokens']:,} calibration tokens, "
        f"{report['facts']['started']}",
    )
    said = verdict(report)
    made.verdict([said[:1], said[1:]])
    made.section("Quality against bytes")
    made.figure(*drawn["quality"])
    _points(made, report)
    made.section("Head by head")
    for name, (svg, caption) in drawn.items():
        if name != "quality":
            made.figure(svg, caption)
    for point in report["points"]:
        _layers(made, point)
    made.section("Run facts")
    heads = model["layers"] * model["heads"]
    facts = reading_facts(report, f"keys, values and queries of {heads} heads")
    made.definitions([*facts, ("Keys", report["settings"]["keys"])])
    made.section("How to read this")
    made.definitions(_method(report))
    return made


def _points(made: Page, report: Row) -> None:
    texts, model = report["texts"], report["model"]
    columns = ["Method", "Allocation", "Bytes kept, %", "Bytes a token", "Measured, bytes",
               "Bases, MB"]  # fmt: skip
    columns += [heading(text) for text in texts]
    columns += ["Scores lost, %", "Values lost, %", "Ranks of keys", "Ranks of values"]
    dense = [report["dense"]["perplexity"][text["name"]] for text in texts]
    rows: list[list[object]] = [
        ["dense", "", 100.0, model["bytes_per_token"], "", 0.0, *dense, 0.0, 0.0,
         str(model["dimensions"]), str(model["dimensions"])]
    ]  # fmt: skip
    for point in report["points"]:
        ranks, errors = _spread(point, "ranks"), _spread(point, "relative_errors")
        measured = point["measured"]
        rows.append(
            [
                point["method"], point["allocation"], 100 * point["kept_bytes"], point["bytes"],
                f"{measured['bytes']:,} for {measured['tokens']:,} tokens",
                point["basis_bytes"] / 1e6, *(point["perplexity"][t["name"]] for t in texts),
                *(100 * float(np.mean(errors[side])) for side in ("keys", "values")),
                *(_range(ranks[side]) for side in ("keys", "values")),
            ]
        )  # fmt: skip
    caption = (
        "Perplexity on held-out text, attention reading all keys and values from the cache. A "
        "dash: it overflowed."
    )
    made.table(columns, rows, caption=caption)


def _layers(made: Page, point: Row) -> None:
    rows = [
        [
            row["layer"], row["of"], " ".join(map(str, row["ranks"])),
            " ".join(f"{100 * error:.1f}" for error in row["relative_errors"]),
        ]
        for row in point["layers"]
    ]  # fmt: skip
    columns = ["Layer", "Of", "Ranks, head by head", "Lost, %, head by head"]
    title = f"{run_name(point)}, {100 * point['kept']:g} % kept: every layer"
    made.table(columns, rows, closed=title)


def _method(report: Row) -> list[tuple[str, str]]:
    return [
        (
            "Bytes",
            "What the tensors of a cache take, measured on the one that evaluated the last window. "
            "The dense cache is counted at the same bits a number. Bases and means are kept once "
            "for a model, in float32, whatever the number of tokens.",
        ),
        (
            "Keys",
            "Projected as they are cached, after rotary embedding, and decoded when attention "
            "reads them. Each token is read from the cache at once, also the newest.",
        ),
        (
            "Scores and values lost",
            "Root mean square of the change over that of the whole, on calibration tokens: of the "
            "products of keys with the queries that meet them, and of values. All tokens count "
            "alike, and layers before are taken as unchanged.",
        ),
        (
            "Allocation",
            "uniform: one rank for all heads. loss: one budget, least predicted increase of the "
            "loss, half of tr(H E), with H and E the second moments of gradients and of errors. "
            "search: dimensions taken where the measured loss rises least. Not uniform: ranks are "
            f"multiples of {report['settings']['step']}.",
        ),
        (
            "What this does not say",
            "Decoding costs time: memory is saved here, not arithmetic. Perplexity on these texts "
            "is not quality on other tasks; look at the texts out of domain.",
        ),
    ]


def _even(point: Row, dense: int) -> int:
    """Return the number of cached tokens from which the whole is smaller than the dense cache."""
    return int(-(-point["basis_bytes"] // (dense - point["bytes"])))


def _spread(point: Row, key: str) -> dict[str, list[float]]:
    return {
        side: [value for row in point["layers"] if row["of"] == side for value in row[key]]
        for side in ("keys", "values")
    }


def _range(ranks: list[float]) -> str:
    low, high = int(min(ranks)), int(max(ranks))
    return str(low) if low == high else f"{low} to {high}, mean {sum(ranks) / len(ranks):.1f}"
