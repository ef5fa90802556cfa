"""The pictures of a report on an autoencoder, from its report alone."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from subspan.report.result import Picture
from subspan.report.style import BLUE, INK, VERMILION, axes_style, figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["pictures"]

Row = Mapping[str, Any]
_CURVES = (
    ("loss", "loss"), ("explained_variance", "explained variance"), ("l0", "L0"),
    ("dead", "dead latents"),
)  # fmt: skip


def pictures(report: Row) -> Iterator[Picture]:
    """Yield ``(name, Figure, caption)`` of every picture the data supports."""
    yield _overview(report)
    if report["training"]:
        yield from _training(report["training"]["log"])


def _overview(report: Row) -> Picture:
    drawn = report["histograms"]
    made = figure(9.6, 5.6)
    (density, l0), (position, cosine) = made.subplots(2, 2)
    dead = report["n_dead"]
    _bars(
        density, drawn["log10_density"],
        title="Density", xlabel="log10 of the share of tokens", ylabel="latents",
    )  # fmt: skip
    if dead:
        _note(density, f"{dead:,} never fire")
    _bars(l0, drawn["l0"], title="Latents for each token", xlabel="L0", ylabel="tokens")
    mean = report["metrics"]["l0"]
    l0.axvline(mean, color=VERMILION, linewidth=1.2, linestyle=(0, (4, 2)))
    _note(l0, f"mean {mean:.1f}")
    axes_style(
        position, title="Explained variance by position", xlabel="position in the window",
        ylabel="explained variance",
    )  # fmt: skip
    edges, values = report["by_position"]["edges"], report["by_position"]["explained_variance"]
    heights = np.array([np.nan if value is None else value for value in values])
    # positions 0, 1, 2, ... on a log axis: each group begins half a token before its first
    borders = np.maximum(np.array(edges) + 0.5, 0.5)
    position.stairs(heights, borders, color=BLUE, linewidth=1.5, baseline=None)
    position.set(xscale="log")
    whole = report["metrics"]["explained_variance"]
    position.axhline(whole, color=VERMILION, linewidth=1.2, linestyle=(0, (4, 2)))
    low = float(np.nanmin(np.append(heights, whole)))
    position.set_ylim(min(0.0, 1.1 * low), 1.02)
    _bars(
        cosine, drawn["max_cosine"], title="Nearest latents",
        xlabel="largest cosine with another latent", ylabel="latents",
    )  # fmt: skip
    caption = (
        "Above: the share of tokens that each latent fires on, and how many latents fire on a "
        "token. Below: explained variance by the position in the window (dashed: all tokens; "
        "positions are counted from 1 here), and how near the decoder rows lie to each other."
    )
    return "overview", made, caption


def _bars(axes: "Axes", histogram: Row, *, title: str, xlabel: str, ylabel: str) -> None:
    axes_style(axes, title=title, xlabel=xlabel, ylabel=ylabel)
    counts = np.array(histogram["counts"], float)
    axes.stairs(counts, histogram["edges"], fill=True, color=BLUE, alpha=0.85)
    used = np.flatnonzero(counts)
    if used.size:
        low, high = histogram["edges"][used[0]], histogram["edges"][used[-1] + 1]
        # a code of one length is one bar: it needs room to look like one
        room = 0.03 * (high - low) if len(used) > 1 else 5 * (high - low)
        axes.set_xlim(low - room, high + room)
    axes.set_ylim(0, 1.08 * max(counts.max(initial=0.0), 1.0))


def _note(axes: "Axes", text: str) -> None:
    axes.text(
        0.98, 0.95, text, transform=axes.transAxes, ha="right", va="top", fontsize=8.5, color=INK
    )


def _training(rows: Sequence[Row]) -> Iterator[Picture]:
    known = [pair for pair in _CURVES if any(row.get(pair[0]) is not None for row in rows)]
    if not known or len(rows) < 2:
        return
    made = figure(2.4 * len(known) + 0.3, 2.5)
    steps = np.array([row["step"] for row in rows])
    grid = made.subplots(1, len(known), squeeze=False)[0]
    for axes, (name, title) in zip(grid, known, strict=True):
        axes_style(axes, title=title, xlabel="step")
        values = [row.get(name) for row in rows]
        axes.plot(steps, [np.nan if v is None else v for v in values], color=BLUE, linewidth=1.2)
        if name == "loss":
            axes.set_yscale("log")
    yield "training", made, "Training: what was logged, step by step."
