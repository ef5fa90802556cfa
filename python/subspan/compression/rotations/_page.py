"""The page of a study of rotations, and what is said about it in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from subspan.compression._page import (
    against_dense,
    heading,
    megabytes,
    or_worst,
    reading_facts,
    value_word,
)
from subspan.compression.rotations._pictures import NAMES, point_name
from subspan.report import Page
from subspan.report.words import count, listed, percent

__all__ = ["page", "verdict"]

Row = Mapping[str, Any]


def verdict(report: Row) -> list[str]:
    """Return what was found, in sentences, the bad news included."""
    texts, dense = report["texts"], report["dense"]["perplexity"]
    first = texts[0]["name"]
    said = []
    for bits in report["settings"]["bits"]:
        points = [p for p in report["points"] if p["bits"] == bits]
        if not points:
            continue
        best = min(points, key=lambda p: or_worst(p["perplexity"][first]))
        values = against_dense(texts, best["perplexity"], dense)
        others = [
            f"{value_word(p['perplexity'][first])} with {NAMES[p['scheme']]}"
            for p in points if p is not best
        ]  # fmt: skip
        rest = f"; on {first} it is {listed(others)}" if others else ""
        size = (
            f"{best['integer_bits']:.2f} bits an integer, {best['weight_bits']:.2f} a weight with "
            "scales and bases"
        )
        parts = report["settings"]["parts"]
        what = size if "weights" in parts else f"{listed(parts)} only"
        said.append(
            f"At {bits} bits, {NAMES[best['scheme']]} ({what}) has a perplexity of {values}{rest}."
        )
    last = min(report["points"], key=lambda p: (p["bits"], or_worst(p["perplexity"][first])))
    whole = report["model"]["bytes"]
    part = percent(report["model"]["matched_bytes"] / whole)
    said.append(
        f"The matrices that were rounded are {part} of the model; with {point_name(last)}, the "
        f"whole goes from {megabytes(whole)} to {megabytes(last['model_bytes'])}, a token in the "
        f"cache from {report['model']['cache_bytes']:,} to {last['cache_bytes']:,} bytes."
    )
    alone = report["dense"]["rotation_alone"]
    said.append(
        f"Rotation without rounding moved no logit by more than {alone['logits_moved']:.1e} (of "
        f"sizes up to {alone['logits_size']:.0f})."
    )
    return said


def page(report: Row, drawn: Mapping[str, tuple[str, str]]) -> Page:
    """Return the page; ``drawn`` maps a picture's name to its inline SVG and caption."""
    about = report["calibration"]
    made = Page(
        f"Rotations of {report['model']['name']}",
        f"{count(len(report['weights']), 'matrix', 'matrices')}, {about['tokens']:,} calibration "
        f"tokens, {report['facts']['started']}",
    )
    said = verdict(report)
    made.verdict([part for part in (said[:1], said[1:]) if part])
    made.section("Quality against bits")
    made.figure(*drawn["quality"])
    _points(made, report)
    made.section("What is rounded high")
    made.figure(*drawn["spectra"])
    made.section("Layer by layer")
    for name, (svg, caption) in drawn.items():
        if name.startswith("errors"):
            made.figure(svg, caption)
    for point in report["points"]:
        _layers(made, report, point)
    made.section("Run facts")
    made.definitions(_facts(report))
    made.section("How to read this")
    made.definitions(_method())
    return made


def _points(made: Page, report: Row) -> None:
    texts, model = report["texts"], report["model"]
    columns = ["Basis", "Bits", "Bits a weight", *(heading(text) for text in texts)]
    columns += ["Matrices, MB", "Bases, MB", "Model, MB", "Bits an input", "Bits a cached number"]
    plain = float(8 * model["bytes"] / model["n_parameters"])
    dense = [report["dense"]["perplexity"][t["name"]] for t in texts]
    rows: list[list[object]] = [
        ["dense", "–", plain, *dense, model["matched_bytes"] / 1e6, 0.0, model["bytes"] / 1e6,
         plain, plain]
    ]  # fmt: skip
    for p in report["points"]:
        rows.append(
            [
                NAMES[p["scheme"]], p["bits"], p["weight_bits"],
                *(p["perplexity"][t["name"]] for t in texts), p["bytes"] / 1e6,
                p["basis_bytes"] / 1e6, p["model_bytes"] / 1e6, p["activation_bits"],
                p["cache_bits"],
            ]
        )  # fmt: skip
    caption = (
        "Perplexity on held-out text. A dash: it overflowed. Bits include scales, and those of "
        "weights the bases that a file holds, which are in the bytes of the matrices."
    )
    made.table(columns, rows, caption=caption)


def _layers(made: Page, report: Row, point: Row) -> None:
    shapes = {row["name"]: row["shape"] for row in report["weights"]}
    rows: list[list[object]] = [
        [
            row["name"], "x".join(map(str, shapes[row["name"]])), row["bits"],
            row["bytes"]["total"], 100 * row["weight_error"], 100 * row["input_error"],
        ]
        for row in point["layers"]
    ]  # fmt: skip
    rows += [[row["name"], "", "", "", "", 100 * row["error"]] for row in point["cached"]]
    columns = ["Matrix or cache", "Shape", "Bits a weight", "Bytes", "Weight error, %",
               "Input or cache error, %"]  # fmt: skip
    made.table(columns, rows, closed=f"{point_name(point)}: every matrix")


def _facts(report: Row) -> list[tuple[str, str]]:
    settings, about = report["settings"], report["calibration"]
    high = f"{settings['high_fraction']:g} of the coordinates, {settings['high_bits']} bits"
    return [
        ("What is rounded", ", ".join(settings["parts"])),
        ("High part", high),
        ("Blocks of down_proj inputs", f"{settings['block']} coordinates"),
        ("Clipped weights", "yes" if settings["clip"] else "no"),
        *reading_facts(report, f"{about['places']} second moments"),
    ]


def _method() -> list[tuple[str, str]]:
    return [
        (
            "Bases",
            "One for the residual stream and one for the values of each head, folded into the "
            "weights; one for the keys of each layer, after rotary embedding, and one for all "
            "blocks of inputs of a down_proj, applied at run time.",
        ),
        (
            "Rounding",
            "Weights: symmetric, a scale for each row; with two widths, one for its low columns "
            "and one for the high ones. Inputs: with a zero point, for each token, and for each "
            "head where attention comes out. Keys and values: with a zero point, for each token "
            "and head. Embedding, output head and norms are not rounded.",
        ),
        (
            "Bytes",
            "Integers are packed without gaps; scales, layout and bases are counted. The embedding "
            "is that of the dense model's file; a rotated model in memory has an output head of "
            "its own. Bits at run time count 16 bits for a scale.",
        ),
        (
            "What this does not say",
            "Numbers are rounded in simulation: nothing here is a measure of speed. Perplexity on "
            "these texts is not quality on other tasks. Calibration on one kind of text costs "
            "others: look at the texts out of domain.",
        ),
    ]
