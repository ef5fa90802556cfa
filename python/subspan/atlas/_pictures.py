"""The pictures of an atlas, from the rows of its report."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from subspan.activations import headline
from subspan.report import figures
from subspan.report.figures import Line, Panel

__all__ = ["RATIO_EDGES", "pictures"]

RATIO_EDGES = np.geomspace(0.01, 1e5, 141)  # twenty bins per factor of ten
_ALL, _WITHOUT = "all tokens", "without outlier tokens"

# measure, file, axis label, caption
_DEPTH = (
    (
        "effective_rank",
        "rank_vs_depth",
        "effective rank",
        "Effective rank against depth: exp of the entropy of the variance shares. Where the "
        "dashed line lies far below the solid one, a few tokens hide what the others do.",
    ),
    (
        "dim_99",
        "dims_vs_depth",
        "dimensions for 99 %",
        "Leading directions that hold 99 % of the variance, against depth.",
    ),
    (
        "top_share",
        "top_share_vs_depth",
        "share of first direction",
        "Share of the variance in the first direction, against depth.",
    ),
)

Row = Mapping[str, Any]
Picture = tuple[str, Any, str]  # file name, figure, caption


def pictures(
    sites: Sequence[Row], weights: Sequence[Row], counts: Mapping[str, np.ndarray], factor: float
) -> Iterator[Picture]:
    """Yield ``(name, Figure, caption)`` of every picture the data supports."""
    kinds = [kind for kind in dict.fromkeys(r["kind"] for r in sites) if _by_layer(sites, kind)]
    if any(len(_by_layer(sites, kind)) > 1 for kind in kinds):
        for name, file, label, caption in _DEPTH:
            yield _depth(sites, kinds, name, file=file, label=label, caption=caption)
    if kinds:
        yield _overview(sites, kinds)
    for kind in kinds:
        if len(_by_layer(sites, kind)) > 1:
            yield _grid(sites, kind)
    if kinds:
        yield _norms(sites, kinds, counts, factor)
    yield from _heads(sites)
    yield from _weights(weights)


def _by_layer(sites: Sequence[Row], kind: str) -> dict[int, list[Row]]:
    layers: dict[int, list[Row]] = {}
    for row in sites:
        if row["kind"] == kind and row["all"]:
            layers.setdefault(-1 if row["layer"] is None else row["layer"], []).append(row)
    return layers


def _title(kind: str, layers: Mapping[int, Sequence[Row]]) -> str:
    rows = next(iter(layers.values()))
    heads = f", mean of {len(rows)} heads" if len(rows) > 1 else ""
    return f"{headline(kind)} ({rows[0]['width']} dims{heads})"


def _mean(rows: Sequence[Row], view: str, name: str) -> float:
    values = [row[view][name] for row in rows if row[view] and row[view][name] is not None]
    return float(np.mean(values)) if values else float("nan")


def _depth(
    sites: Sequence[Row], kinds: Sequence[str], name: str, *, file: str, label: str, caption: str
) -> Picture:
    panels = []
    for kind in kinds:
        layers = _by_layer(sites, kind)
        x = np.array(sorted(layers))
        lines = [
            Line(text, x, np.array([_mean(layers[layer], view, name) for layer in x]), role)
            for text, view, role in (
                (_WITHOUT, "without_outliers", "without"),
                (_ALL, "all", "all"),
            )
        ]
        panels.append(Panel(_title(kind, layers), lines))
    return file, figures.curves(panels, xlabel="layer", ylabel=label), caption


def _spectrum(rows: Sequence[Row], view: str) -> np.ndarray | None:
    """Mean of the normalised spectra of the heads of a layer (one head: its spectrum)."""
    lines = [np.array(row[view]["spectrum"]) for row in rows if row[view]]
    if not lines:
        return None
    shares = [line / line.sum() if line.sum() > 0 else line for line in lines]
    mean: np.ndarray = np.mean(shares, axis=0)
    return mean


def _overview(sites: Sequence[Row], kinds: Sequence[str]) -> Picture:
    rows = []
    for text, view in (("all tokens", "all"), ("without outliers", "without_outliers")):
        panels = []
        for kind in kinds:
            layers = _by_layer(sites, kind)
            lines = {layer: _spectrum(members, view) for layer, members in layers.items()}
            panels.append((headline(kind), {k: v for k, v in lines.items() if v is not None}))
        rows.append((text, panels))
    caption = (
        "Normalised spectra of the covariance, one line per layer (heads averaged). Upper row: "
        "all tokens. Lower row: without outlier tokens. A first point near 1 followed by a cliff "
        "is one direction that holds nearly all variance."
    )
    return "spectra_overview", figures.spectra_by_depth(rows), caption


def _grid(sites: Sequence[Row], kind: str) -> Picture:
    layers = _by_layer(sites, kind)
    panels = []
    for layer in sorted(layers):
        lines = []
        for text, view, role in (
            (_WITHOUT, "without_outliers", "without"),
            (_ALL, "all", "all"),
        ):
            values = _spectrum(layers[layer], view)
            if values is not None:
                lines.append(Line(text, np.arange(len(values)), values, role))
        panels.append(Panel(f"{layer}", lines))
    caption = f"Spectrum of every layer: {_title(kind, layers)}. The number is the layer."
    name = "spectra_" + "".join(c if c.isalnum() else "_" for c in kind)
    return name, figures.spectrum_grid(panels), caption


def _norms(
    sites: Sequence[Row], kinds: Sequence[str], counts: Mapping[str, np.ndarray], factor: float
) -> Picture:
    entries = []
    for kind in kinds:
        layers = _by_layer(sites, kind)
        order = sorted(layers)
        by_layer = np.stack([sum(counts[row["key"]] for row in layers[layer]) for layer in order])
        entries.append((headline(kind), order, RATIO_EDGES, by_layer))
    used = np.flatnonzero(sum(by_layer.sum(axis=0) for *_, by_layer in entries))
    low, high = int(used[0]), int(used[-1]) + 1
    high = max(high, int(np.searchsorted(RATIO_EDGES, factor)) + 4)
    cut = [
        (title, order, edges[low : high + 1], by_layer[:, low:high])
        for title, order, edges, by_layer in entries
    ]
    caption = (
        "Token norms over the median norm of their site. Above: all layers together. Below: by "
        "layer, colour = number of tokens. Tokens right of the dashed line are outliers."
    )
    return "token_norms", figures.norm_histograms(cut, threshold=factor), caption


def _heads(sites: Sequence[Row]) -> Iterator[Picture]:
    maps = []
    layers = sorted({r["layer"] for r in sites if r["head"] is not None})
    heads = sorted({r["head"] for r in sites if r["head"] is not None})
    width = 0
    for kind in dict.fromkeys(r["kind"] for r in sites if r["head"] is not None):
        values = np.full((len(heads), len(layers)), np.nan)
        for row in sites:
            if row["kind"] == kind and row["without_outliers"]:
                place = heads.index(row["head"]), layers.index(row["layer"])
                values[place] = row["without_outliers"]["dim_90"]
                width = max(width, row["width"])
        maps.append((headline(kind), values))
    if maps and np.isfinite(maps[0][1]).any():
        caption = (
            f"Dimensions of {width} that hold 90 % of the variance per head, without outlier "
            "tokens. Dark: more compressible."
        )
        yield (
            "heads",
            figures.heatmaps(
                maps, x_names=[str(v) for v in layers], y_names=[str(v) for v in heads],
                xlabel="layer", ylabel="head", label="dims for 90 %",
            ),
            caption,
        )  # fmt: skip


def _weights(weights: Sequence[Row]) -> Iterator[Picture]:
    types: dict[str, list[Row]] = {}
    for row in weights:
        if row["layer"] is not None and row["all"]:
            types.setdefault(row["type"], []).append(row)
    if not types:
        return
    measures: list[tuple[str, Callable[[Row], float]]] = [
        (
            "Effective rank / full rank",
            lambda row: row["all"]["effective_rank_singular"] / min(row["shape"]),
        ),
        ("Stable rank", lambda row: row["all"]["stable_rank"]),
    ]
    panels = [
        Panel(
            title,
            [
                Line(
                    kind,
                    np.array([row["layer"] for row in rows]),
                    np.array([measure(row) for row in rows]),
                )
                for kind, rows in types.items()
            ],
        )
        for title, measure in measures
    ]
    made = figures.curves(panels, xlabel="layer", ylabel="", columns=2, wide=True)
    yield "weights", made, "Weights against depth, one line per matrix type."
