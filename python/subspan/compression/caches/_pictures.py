"""The pictures of a compressed cache: quality against bytes, ranks and errors of every head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from subspan.compression._pictures import quality, run_name, shown
from subspan.report.figures import heatmaps
from subspan.report.result import Picture

__all__ = ["pictures"]

Row = Mapping[str, Any]


def pictures(report: Row) -> Iterator[Picture]:
    """Yield name, figure and caption of every picture."""
    yield quality(report, "the cache of keys and values keeps", "the cache")
    for point in shown(report, 0.5):
        yield from _maps(report, point)


def _maps(report: Row, point: Row) -> Iterator[Picture]:
    layers, heads = report["model"]["layers"], report["model"]["heads"]
    title = f"{run_name(point)}, {100 * point['kept']:g} % kept"
    said = {
        "ranks": ("dimensions", 1.0, "Dimensions that every head keeps"),
        "relative_errors": ("error, %", 100.0, "Error of scores (keys) and of states (values), %"),
    }
    for key, (label, scale, words) in said.items():
        if key == "ranks" and point["allocation"] == "uniform":
            continue  # one number, which the table has
        tables = []
        for side in ("keys", "values"):
            rows = [row[key] for row in point["layers"] if row["of"] == side]
            tables.append((f"{side.capitalize()}: {label}", scale * np.array(rows, np.float64).T))
        figure = heatmaps(
            tables, x_names=[str(i) for i in range(layers)],
            y_names=[str(i) for i in range(heads)], xlabel="layer", ylabel="head", label=label,
        )  # fmt: skip
        name = f"{key.replace('relative_', '')}-{point['method']}-{point['allocation']}"
        yield name, figure, f"{words}: {title}."
