"""The pictures of rotations: quality against bits, spectra and their split, errors by layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from subspan.report.figures import Line, Panel, curves, heatmaps
from subspan.report.result import Picture

__all__ = ["NAMES", "pictures", "point_name"]

Row = Mapping[str, Any]

NAMES = {
    "none": "no rotation",
    "hadamard": "random rotation",
    "outliers": "loudest channels high",
    "pca": "principal components high",
    "resq": "ResQ",
}
_SITES = {
    "residual": "residual stream, after norms",
    "keys": "keys, mean of layers",
    "values": "values, mean of heads",
    "down": "inputs of down_proj, mean of layers",
}
_MOST_MAPS = 3  # points whose layers are drawn; the others are in the tables


def point_name(point: Row) -> str:
    """Return scheme and bits in words."""
    return f"{NAMES[point['scheme']]}, {point['bits']} bits"


def pictures(report: Row) -> Iterator[Picture]:
    """Yield name, figure and caption of every picture."""
    yield _quality(report)
    yield _spectra(report)
    for point in _shown(report):
        yield _errors(report, point)


def _quality(report: Row) -> Picture:
    schemes = report["settings"]["schemes"]
    panels = []
    for text in report["texts"]:
        name, dense = text["name"], report["dense"]["perplexity"][text["name"]]
        lines = []
        for scheme in schemes:
            mine = [p for p in report["points"] if p["scheme"] == scheme]
            pairs = sorted((p["weight_bits"], p["perplexity"][name]) for p in mine)
            if pairs:
                x, y = (np.array([pair[i] for pair in pairs], np.float64) for i in (0, 1))
                lines.append(Line(NAMES[scheme], x, y))
        every = np.concatenate([line.x for line in lines])
        ends = np.array([every.min(), every.max()])
        lines.append(Line("dense", ends, np.array([dense, dense]), "guide"))
        where = "" if text["domain"] == "in" else " (out of domain)"
        panels.append(Panel(f"{name}{where}", lines))
    values = np.concatenate([line.y for panel in panels for line in panel.lines])
    decades = np.nanmax(values) > 20 * np.nanmin(values)
    figure = curves(
        panels, xlabel="bits a weight, scales and bases included", ylabel="perplexity",
        log_y=bool(decades), columns=2, wide=len(panels) < 3,
    )  # fmt: skip
    caption = (
        "Perplexity on held-out text against the bits that weights of the blocks take in the file, "
        "with scales and bases. Dotted: the dense model."
    )
    return "quality", figure, caption


def _spectra(report: Row) -> Picture:
    panels = []
    for site, title in _SITES.items():
        found = report["spectra"][site]
        d = len(found["channels"])
        x = np.arange(1, d + 1, dtype=np.float64)
        lines = [
            Line(label, x, np.maximum(np.array(found[key]), 1e-9))
            for key, label in (("channels", "channels, sorted"), ("principal", "principal axes"),
                               ("rotated", "basis in use"))
        ]  # fmt: skip
        least = min(float(line.y.min()) for line in lines)
        most = max(float(line.y.max()) for line in lines)
        split = d - found["high"] + 0.5
        lines.append(Line("high from here on", np.array([split, split]),
                          np.array([least, most]), "guide"))  # fmt: skip
        panels.append(Panel(title, lines))
    figure = curves(
        panels, xlabel="coordinate", ylabel="share of the power", log_y=True, columns=2, wide=True
    )
    shares = ", ".join(
        f"{100 * report['spectra'][site]['high_share']:.0f} % of {site}" for site in _SITES
    )
    caption = (
        "Power of each coordinate on calibration tokens: channels as they are, principal axes, and "
        "the basis in use, whose turns even out what is left and right of the split. The high part "
        f"holds {shares}."
    )
    return "spectra", figure, caption


def _shown(report: Row) -> list[Row]:
    """Return the points of fewest bits, the best ones first."""
    first = report["texts"][0]["name"]
    low = min(point["bits"] for point in report["points"])

    def quality(point: Row) -> float:
        value = point["perplexity"][first]
        return float("inf") if value is None else float(value)

    return sorted((p for p in report["points"] if p["bits"] == low), key=quality)[:_MOST_MAPS]


def _errors(report: Row, point: Row) -> Picture:
    kinds = list(dict.fromkeys(row["kind"] for row in report["weights"]))
    names = [*(kind.rpartition(".")[2] for kind in kinds), "keys", "values"]
    layers = report["model"]["layers"]
    tables = {key: np.full((len(names), layers), np.nan) for key in ("weight", "input")}
    for row, found in zip(report["weights"], point["layers"], strict=True):
        for key, table in tables.items():
            table[kinds.index(row["kind"]), row["layer"]] = 100 * found[f"{key}_error"]
    for row in point["cached"]:
        tables["input"][names.index(row["of"]), row["layer"]] = 100 * row["error"]
    figure = heatmaps(
        [("Weights", tables["weight"]), ("What they read, and the cache", tables["input"])],
        x_names=[str(layer) for layer in range(layers)], y_names=names,
        xlabel="layer", ylabel="", label="%",
    )  # fmt: skip
    caption = (
        f"Error of rounding over the size of what was rounded, root mean square: "
        f"{point_name(point)}. Run-time numbers on the tokens that judge."
    )
    return f"errors-{point['scheme']}-{point['bits']}", figure, caption
