"""Pictures of spectra, norms and depth curves, drawn from arrays alone.

Every function takes plain arrays in small dictionaries or named tuples and returns a matplotlib
``Figure``; :func:`subspan.report.style.save` writes it. Nothing here knows what an atlas is.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from subspan.report.style import (
    BLUE,
    COLORS,
    INK,
    MAP,
    MUTED,
    VERMILION,
    axes_style,
    color_bar,
    figure,
    shared_legend,
    whole_ticks,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Line",
    "Panel",
    "curves",
    "heatmaps",
    "norm_histograms",
    "spectra_by_depth",
    "spectrum_grid",
]

_MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")


class Line(NamedTuple):
    """One curve: label, x and y of equal length; ``role`` picks the look."""

    label: str
    x: np.ndarray
    y: np.ndarray
    # "all" (dashed, vermilion), "without" (solid, blue), "guide" (dotted, grey), "" (next colour)
    role: str = ""


class Panel(NamedTuple):
    """Axes with a title and its curves."""

    title: str
    lines: Sequence[Line]


def curves(
    panels: Sequence[Panel],
    *,
    xlabel: str,
    ylabel: str,
    log_y: bool = False,
    columns: int = 3,
    wide: bool = False,
    whole_y: bool = False,
) -> "Figure":
    """Draw curves against depth, one panel per kind, one legend for all of them."""
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    made = figure((4.7 if wide else 3.15) * columns + 0.3, (3.2 if wide else 2.45) * rows + 0.35)
    grid = made.subplots(rows, columns, squeeze=False)
    seen: dict[str, Any] = {}
    for place, axes in enumerate(grid.flat):
        if place >= len(panels):
            axes.set_visible(False)
            continue
        panel = panels[place]
        below = place + columns >= len(panels)
        axes_style(
            axes,
            title=panel.title,
            xlabel=xlabel if below else "",
            ylabel=ylabel if place % columns == 0 else "",
        )
        for number, line in enumerate(panel.lines):
            (drawn,) = axes.plot(line.x, line.y, **_look(line.role, number, len(line.x)))
            seen.setdefault(line.label, drawn)
        if log_y:
            axes.set_yscale("log")
            _plain_log_ticks(axes.yaxis)
        else:
            top = max((np.nanmax(line.y, initial=0.0) for line in panel.lines), default=0.0)
            axes.set_ylim(0, 1.07 * top if top > 0 else 1.0)
        whole_ticks(axes.xaxis)
        if whole_y:
            whole_ticks(axes.yaxis)
    shared_legend(made, seen)
    return made


def spectra_by_depth(
    rows: Sequence[tuple[str, Sequence[tuple[str, Mapping[int, np.ndarray]]]]],
) -> "Figure":
    """Draw normalised spectra of all layers, colour = depth.

    Parameters
    ----------
    rows
        ``(row title, [(panel title, {layer: eigenvalues, descending}), ...])``.
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    columns = max(len(panels) for _, panels in rows)
    layers = [layer for _, panels in rows for _, by_layer in panels for layer in by_layer]
    # without the ends of the map, thin lines stand out on a white and on a dark page
    middle = ListedColormap(colormaps[MAP](np.linspace(0.25, 0.93, 256)))
    scale = ScalarMappable(Normalize(min(layers), max(*layers, min(layers) + 1)), middle)
    made = figure(_panel_width(columns) * columns + 0.9, 2.3 * len(rows) + 0.1)
    grid = made.subplots(len(rows), columns, squeeze=False, sharex="col", sharey=True)
    for number, (row_title, panels) in enumerate(rows):
        for place, axes in enumerate(grid[number]):
            if place >= len(panels):
                axes.set_visible(False)
                continue
            title, by_layer = panels[place]
            axes_style(
                axes,
                title=title if number == 0 else "",
                xlabel="component" if number == len(rows) - 1 else "",
                ylabel=f"share of variance\n{row_title}" if place == 0 else "",
            )
            for layer, values in sorted(by_layer.items()):
                x, y = _thin(values)
                axes.plot(x, y, color=scale.to_rgba(np.array(layer)), linewidth=0.9)
            axes.set(xscale="log", yscale="log", ylim=(1e-8, 1.6))
            _plain_log_ticks(axes.xaxis)
    bar = color_bar(made, scale, grid, "layer", fraction=0.025)
    whole_ticks(bar.ax.yaxis)
    return made


def spectrum_grid(panels: Sequence[Panel], *, columns: int = 8) -> "Figure":
    """Draw one small log-log spectrum per layer, all tokens against the rest."""
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    width, height = 1.25 * columns + 0.75, 1.2 * rows + 0.8
    # fixed margins in inches: the automatic layout of dozens of axes takes longer than drawing them
    made = figure(width, height, automatic=False)
    grid = made.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    made.subplots_adjust(
        left=0.62 / width, right=1 - 0.1 / width, bottom=0.5 / height, top=1 - 0.33 / height,
        wspace=0.1, hspace=0.14,
    )  # fmt: skip
    seen: dict[str, Any] = {}
    for place, axes in enumerate(grid.flat):
        if place >= len(panels):
            axes.set_visible(False)
            continue
        axes_style(axes, size=7.5)
        axes.tick_params(labelsize=7)
        axes.text(
            0.96, 0.93, panels[place].title, transform=axes.transAxes,
            ha="right", va="top", fontsize=8, color=INK,
        )  # fmt: skip
        for number, line in enumerate(panels[place].lines):
            x, y = _thin(line.y)
            (drawn,) = axes.plot(x, y, **(_look(line.role, number, 0) | {"linewidth": 1.1}))
            seen.setdefault(line.label, drawn)
        axes.set(xscale="log", yscale="log", ylim=(1e-7, 2.0))
        axes.set_yticks([1, 1e-2, 1e-4, 1e-6])
        axes.minorticks_off()
        _plain_log_ticks(axes.xaxis)
    made.supxlabel("component", fontsize=9, color=INK, y=0.08 / height, va="bottom")
    made.supylabel("share of variance", fontsize=9, color=INK, x=0.08 / width, ha="left")
    shared_legend(made, seen, place="upper right")
    return made


def norm_histograms(
    kinds: Sequence[tuple[str, Sequence[int], np.ndarray, np.ndarray]], *, threshold: float
) -> "Figure":
    """Draw token norms over the median norm of their site: pooled above, by layer below.

    Parameters
    ----------
    kinds
        ``(title, layers, edges, counts)``: ``edges (b + 1,)`` of the ratio, rising,
        ``counts (len(layers), b)``.
    threshold
        The ratio above which a token is an outlier, drawn as a line.
    """
    from matplotlib.colors import LogNorm

    made = figure(_panel_width(len(kinds)) * len(kinds) + 0.9, 4.4)
    grid = made.subplots(
        2, len(kinds), squeeze=False, sharex="col", gridspec_kw={"height_ratios": [1, 1.25]}
    )
    most = max(float(counts.max()) for *_, counts in kinds)
    image = None
    for place, (title, layers, edges, counts) in enumerate(kinds):
        top, low = grid[0, place], grid[1, place]
        axes_style(top, title=title, ylabel="tokens (all layers)" if place == 0 else "")
        total = counts.sum(axis=0)
        top.stairs(total, edges, fill=True, color=BLUE, alpha=0.85)
        top.set(xscale="log", yscale="log", ylim=(0.7, None))
        axes_style(low, xlabel="norm / median norm", ylabel="layer" if place == 0 else "")
        low.grid(False)
        rows = _edges(layers)
        image = low.pcolormesh(
            edges, rows, np.ma.masked_less(counts, 0.5), cmap=MAP, norm=LogNorm(1, max(most, 2)),
            rasterized=True,
        )  # fmt: skip
        low.invert_yaxis()
        whole_ticks(low.yaxis)
        for axes in (top, low):
            axes.axvline(threshold, color=VERMILION, linewidth=1.2, linestyle=(0, (4, 2)))
        top.text(
            threshold * 1.12, 0.96, f"> {threshold:g} \u00d7", color=VERMILION, fontsize=8,
            transform=top.get_xaxis_transform(), va="top",
        )  # fmt: skip
        _plain_log_ticks(low.xaxis)
    if image is not None:
        color_bar(made, image, grid[1, :], "tokens", fraction=0.03)
    return made


def heatmaps(
    maps: Sequence[tuple[str, np.ndarray]],
    *,
    x_names: Sequence[str],
    y_names: Sequence[str],
    xlabel: str,
    ylabel: str,
    label: str,
    limit: float | None = None,
) -> "Figure":
    """Draw matrices side by side on one colour scale, the value written in each cell.

    Rows run left to right (depth), columns top to bottom (heads): deep models stay readable.
    """
    wide = max(9.5, 0.27 * len(x_names) + 1.8)
    made = figure(wide, len(maps) * (0.24 * len(y_names) + 0.5) + 0.5)
    grid = made.subplots(len(maps), 1, squeeze=False, sharex=True)[:, 0]
    low = min(float(np.nanmin(values)) for _, values in maps)
    high = limit or max(float(np.nanmax(values)) for _, values in maps)
    image = None
    for (title, values), axes in zip(maps, grid, strict=True):
        axes_style(
            axes, title=title, ylabel=ylabel, xlabel=xlabel if axes is grid[-1] else "", size=8.5
        )
        axes.grid(False)
        image = axes.imshow(values, cmap=MAP, vmin=low, vmax=high, aspect="auto")
        step = max(1, len(x_names) // 16)
        axes.set_xticks(range(0, len(x_names), step), x_names[::step])
        axes.set_yticks(range(len(y_names)), y_names)
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        if len(x_names) <= 48:
            for (row, column), value in np.ndenumerate(values):
                if np.isfinite(value):
                    light = (value - low) / max(high - low, 1e-12) < 0.5
                    axes.text(
                        column, row, f"{value:.0f}", ha="center", va="center", fontsize=6.5,
                        color="#fefefe" if light else "#101418",
                    )  # fmt: skip
    if image is not None:
        color_bar(made, image, list(grid), label, fraction=0.02, size=8.5)
    return made


def _panel_width(columns: int) -> float:
    # the page shows a figure about ten inches wide: wider ones would shrink their text
    return min(3.0, 9.4 / columns)


def _look(role: str, number: int, n_points: int) -> dict[str, Any]:
    if role == "all":
        look: dict[str, Any] = {"color": VERMILION, "linestyle": (0, (4, 2)), "marker": "s"}
    elif role == "without":
        look = {"color": BLUE, "linestyle": "-", "marker": "o"}
    elif role == "guide":
        look = {"color": MUTED, "linestyle": (0, (1, 2)), "marker": ""}
    else:
        look = {"color": COLORS[number % len(COLORS)], "marker": _MARKS[number % len(_MARKS)]}
    many = n_points > 40 or n_points == 0
    return look | {"linewidth": 1.5, "markersize": 0 if many else 3, "markeredgewidth": 0}


def _thin(values: np.ndarray, points: int = 90) -> tuple[np.ndarray, np.ndarray]:
    """Return log-spaced samples of a spectrum as shares; the eye loses nothing, the file does."""
    values = np.maximum(np.asarray(values, np.float64), 0.0)
    total = values.sum()
    share = values / total if total > 0 else values
    index = np.unique(np.round(np.geomspace(1, max(len(values), 1), points)).astype(int)) - 1
    return index + 1, np.where(share[index] > 0, share[index], np.nan)


def _edges(layers: Sequence[int]) -> np.ndarray:
    middle = np.asarray(layers, np.float64)
    if len(middle) == 1:
        return np.array([middle[0] - 0.5, middle[0] + 0.5])
    between = (middle[1:] + middle[:-1]) / 2
    first, last = 2 * middle[0] - between[0], 2 * middle[-1] - between[-1]
    return np.concatenate([[first], between, [last]])


def _plain_log_ticks(axis: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(numticks=6))
    axis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:g}" if 1e-3 < value < 1e5 else f"{value:.0e}")
    )
    axis.set_minor_formatter(NullFormatter())
