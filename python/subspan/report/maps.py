"""Pictures of comparisons: matrices with a contour, and curves coloured by depth."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from subspan.report.style import (
    MAP,
    VERMILION,
    axes_style,
    color_bar,
    figure,
    shared_legend,
    whole_ticks,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Fan", "Map", "fans", "maps"]


class Map(NamedTuple):
    """A matrix to draw: ``low_is_bright`` for distances, ``inside`` what the contour surrounds."""

    title: str
    values: np.ndarray
    label: str = ""
    low_is_bright: bool = False
    inside: np.ndarray | None = None


class Fan(NamedTuple):
    """Curves with a depth each, and what chance gives for all of them."""

    title: str
    depths: Sequence[int]
    lines: np.ndarray
    """(len(depths), q), NaN where a line ends."""
    chance: np.ndarray | None = None
    """(q,)"""


def maps(
    panels: Sequence[Map],
    *,
    x_names: Sequence[str],
    y_names: Sequence[str],
    xlabel: str,
    ylabel: str,
    columns: int = 3,
    one_scale: bool = False,
) -> "Figure":
    """Draw matrices, first row at the bottom, a colour scale for each or one for all of them.

    The contour runs along the borders of cells, so that nothing is interpolated. The best cell of
    each row bears a dot.
    """
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    width = min(10.2, 4.2 * columns + 0.4)
    known = np.concatenate([panel.values.ravel() for panel in panels])
    ends = (np.nanmin(known), np.nanmax(known)) if one_scale else (None, None)
    tall = width / columns * 0.72 * min(max(len(y_names) / len(x_names), 0.75), 1.5)
    made = figure(width, (tall + 0.75) * rows)
    grid = made.subplots(rows, columns, squeeze=False)
    for place, axes in enumerate(grid.flat):
        if place >= len(panels):
            axes.set_visible(False)
            continue
        panel = panels[place]
        axes_style(
            axes,
            title=panel.title,
            xlabel=xlabel,
            ylabel=ylabel if place % columns == 0 else "",
        )
        axes.grid(False)
        image = axes.imshow(
            panel.values, cmap=MAP + "_r" if panel.low_is_bright else MAP, origin="lower",
            aspect="auto", interpolation="nearest", vmin=ends[0], vmax=ends[1],
        )  # fmt: skip
        _named_ticks(axes.xaxis, x_names)
        _named_ticks(axes.yaxis, y_names)
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        _dots(axes, panel)
        if panel.inside is not None:
            _contour(axes, panel.inside)
        color_bar(made, image, axes, panel.label, fraction=0.06, size=8.5, aspect=32)
    return made


def fans(panels: Sequence[Fan], *, xlabel: str, ylabel: str, chance: str, top: float) -> "Figure":
    """Draw curves of many layers, colour = depth, with one dashed curve for chance."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    depths = [depth for panel in panels for depth in panel.depths]
    # without the ends of the map, thin lines stand out on a white and on a dark page
    middle = ListedColormap(colormaps[MAP](np.linspace(0.2, 0.93, 256)))
    scale = ScalarMappable(Normalize(min(depths), max(*depths, min(depths) + 1)), middle)
    made = figure(4.7 * len(panels) + 0.7, 3.5)
    grid = made.subplots(1, len(panels), squeeze=False, sharey=True)
    seen: dict[str, Any] = {}
    for place, (panel, axes) in enumerate(zip(panels, grid[0], strict=True)):
        axes_style(axes, title=panel.title, xlabel=xlabel, ylabel=ylabel if place == 0 else "")
        for depth, line in zip(panel.depths, panel.lines, strict=True):
            numbers = np.arange(1, len(line) + 1)
            axes.plot(numbers, line, color=scale.to_rgba(np.array(depth)), linewidth=1.2)
        if panel.chance is not None:
            numbers = np.arange(1, len(panel.chance) + 1)
            (drawn,) = axes.plot(
                numbers, panel.chance, color=VERMILION, linestyle=(0, (4, 2)), linewidth=1.6
            )
            seen.setdefault(chance, drawn)
        axes.set_ylim(0, top)
        whole_ticks(axes.xaxis)
    bar = color_bar(made, scale, grid, "layer of A", fraction=0.03)
    whole_ticks(bar.ax.yaxis)
    shared_legend(made, seen)
    return made


def _named_ticks(axis: Any, names: Sequence[str]) -> None:
    step = max(1, -(-len(names) // 11))
    axis.set_ticks(range(0, len(names), step), names[::step])


def _dots(axes: "Axes", panel: Map) -> None:
    known = np.flatnonzero(np.isfinite(panel.values).any(axis=1))
    values = -panel.values if panel.low_is_bright else panel.values
    best = np.nanargmax(values[known], axis=1)
    axes.plot(
        best, known, linestyle="none", marker="o", markersize=3.2, markerfacecolor="#fefefe",
        markeredgecolor="#101418", markeredgewidth=0.7,
    )  # fmt: skip


def _contour(axes: "Axes", inside: np.ndarray) -> None:
    """Draw the border between the cells inside and the others; none around all of them."""
    from matplotlib.collections import LineCollection

    lines = []
    for row, column in np.argwhere(inside[1:] != inside[:-1]):
        lines.append([(column - 0.5, row + 0.5), (column + 0.5, row + 0.5)])
    for row, column in np.argwhere(inside[:, 1:] != inside[:, :-1]):
        lines.append([(column + 0.5, row - 0.5), (column + 0.5, row + 0.5)])
    for color, width in (("#fefefe", 2.6), (VERMILION, 1.4)):  # seen on dark and bright cells
        axes.add_collection(LineCollection(lines, colors=color, linewidths=width))
