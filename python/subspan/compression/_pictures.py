"""The pictures of a compression: quality against bytes, who got how much, who lost how much."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from subspan.report.figures import Line, Panel, curves, heatmaps
from subspan.report.result import Picture

__all__ = ["pictures", "quality", "run_name", "shown"]

Row = Mapping[str, Any]

_MOST_MAPS = 3  # runs whose matrices are drawn; the others are in the tables


def run_name(point: Row) -> str:
    """Return method and allocation in words."""
    return f"{point['method']}, {point['allocation']}"


def pictures(report: Row) -> Iterator[Picture]:
    """Yield name, figure and caption of every picture."""
    yield quality(report, "the matched matrices keep, indices and codes included", "the matrices")
    for point in shown(report, 0.8):
        yield from _maps(report, point)


def quality(report: Row, what: str, of: str) -> Picture:
    """Return perplexity against bytes, a panel for each text and a line for each run."""
    runs = list(dict.fromkeys(run_name(point) for point in report["points"]))
    panels = []
    for text in report["texts"]:
        name, dense = text["name"], report["dense"]["perplexity"][text["name"]]
        lines = []
        for run in runs:
            mine = [p for p in report["points"] if run_name(p) == run]
            pairs = sorted((100 * p["kept_bytes"], p["perplexity"][name]) for p in mine)
            x, y = (np.array([pair[i] for pair in pairs], np.float64) for i in (0, 1))
            lines.append(Line(run, x, y))
        low = min(float(line.x.min()) for line in lines)
        lines.append(Line("dense", np.array([low, 100.0]), np.array([dense, dense]), "guide"))
        where = "" if text["domain"] == "in" else " (out of domain)"
        panels.append(Panel(f"{name}{where}", lines))
    values = np.concatenate([line.y for panel in panels for line in panel.lines])
    decades = np.nanmax(values) > 20 * np.nanmin(values)
    figure = curves(
        panels, xlabel=f"bytes kept of {of}, %", ylabel="perplexity", log_y=bool(decades),
        columns=2, wide=len(panels) < 3,
    )  # fmt: skip
    caption = f"Perplexity on held-out text against the bytes that {what}. Dotted: the dense model."
    return "quality", figure, caption


def shown(report: Row, kept: float) -> list[Row]:
    """Return a point of each of the best runs: the one whose kept ratio is nearest to this."""
    nearest: dict[str, Row] = {}
    for point in report["points"]:
        held = nearest.get(run_name(point))
        if held is None or abs(point["kept"] - kept) < abs(held["kept"] - kept):
            nearest[run_name(point)] = point
    first = report["texts"][0]["name"]

    def loss(point: Row) -> float:
        value = point["perplexity"][first]
        return float("inf") if value is None else float(value)

    return sorted(nearest.values(), key=loss)[:_MOST_MAPS]


def _maps(report: Row, point: Row) -> Iterator[Picture]:
    inside = [row for row in report["weights"] if row["layer"] >= 0]
    if not inside:
        return
    layers = sorted({row["layer"] for row in inside})
    kinds = list(dict.fromkeys(row["kind"] for row in inside))
    found = {row["name"]: row for row in point["layers"]}
    tables = []
    for key in ("kept", "relative_error"):
        table = np.full((len(kinds), len(layers)), np.nan)
        for row in inside:
            place = kinds.index(row["kind"]), layers.index(row["layer"])
            table[place] = 100 * found[row["name"]][key]
        tables.append(table)
    figure = heatmaps(
        [("Bytes kept, %", tables[0]), ("Error of the output, % (root mean square)", tables[1])],
        x_names=[str(layer) for layer in layers],
        y_names=[kind.rpartition(".")[2] for kind in kinds],
        xlabel="layer", ylabel="", label="%",
    )  # fmt: skip
    title = f"{run_name(point)}, {100 * point['kept']:g} % kept"
    name = f"layers-{point['method']}-{point['allocation']}"
    yield name, figure, f"Allocation and error of every matrix: {title}."
