"""Look of every figure: colours, ink, and how a figure becomes PNG, SVG and inline SVG.

Figures are plain ``matplotlib.figure.Figure`` objects; no pyplot, no global settings. The colours
of lines are those of Okabe and Ito (2008), told apart by readers with any colour vision; density
uses cividis (Nunez, Anderton and Renslow, PLOS ONE 2018), which also survives a grey print.
"""

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from subspan.errors import UnsupportedError
from subspan.report.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "BLUE",
    "COLORS",
    "GRID",
    "INK",
    "MAP",
    "MUTED",
    "VERMILION",
    "axes_style",
    "color_bar",
    "figure",
    "legend",
    "save",
    "shared_legend",
    "whole_ticks",
]

# In the page the first four follow the light or dark theme.
INK, MUTED, GRID, BLUE = "#1f2329", "#5e6773", "#d9dee5", "#0072b2"
VERMILION = "#d55e00"
COLORS = (BLUE, VERMILION, "#009e73", "#e69f00", "#cc79a7", "#56b4e9", INK, MUTED)
MAP = "cividis"
_PIXELS = 1.5  # of the page for a point of a figure, at most
_THEMED = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--grid)", BLUE: "var(--blue)"}


def figure(width: float, height: float, *, automatic: bool = True) -> "Figure":
    """Return an empty figure in inches, laid out by itself or (not ``automatic``) by the caller."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UnsupportedError(
            "[report] pictures need matplotlib. Install it with: pip install 'subspan[report]'"
        ) from error
    layout: Any = "constrained" if automatic else "none"
    return Figure(figsize=(width, height), dpi=160, facecolor="white", layout=layout)


def axes_style(
    axes: "Axes", *, title: str = "", xlabel: str = "", ylabel: str = "", size: float = 9.0
) -> None:
    """Give axes the common look: thin frame left and below, faint grid, one text size."""
    if title:
        axes.set_title(title, fontsize=size + 1, color=INK, loc="left")
    axes.set_xlabel(xlabel, fontsize=size, color=INK)
    axes.set_ylabel(ylabel, fontsize=size, color=INK)
    axes.tick_params(which="both", labelsize=size - 1, colors=MUTED, width=0.6)
    axes.tick_params(which="minor", length=1.5)
    axes.set_facecolor("none")
    axes.grid(True, color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(MUTED)
        spine.set_linewidth(0.6)


def legend(target: Any, handles: Sequence[Any] | None = None, **options: Any) -> None:
    """Add a frameless legend to axes or a figure in the common text size."""
    settings: dict[str, Any] = {"frameon": False, "fontsize": 8.5, "labelcolor": INK, **options}
    if handles is None:
        target.legend(**settings)
    else:
        target.legend(handles=handles, **settings)


def color_bar(
    made: "Figure",
    drawn: Any,
    axes: Any,
    label: str,
    *,
    fraction: float,
    size: float = 9.0,
    aspect: float = 20.0,
) -> Any:
    """Add the colour bar of ``drawn`` beside ``axes`` in the common look and return it."""
    bar = made.colorbar(drawn, ax=axes, fraction=fraction, pad=0.01, aspect=aspect)
    bar.set_label(label, fontsize=size, color=INK)
    bar.ax.tick_params(labelsize=8, colors=MUTED, width=0.6)
    cast("Any", bar.outline).set_visible(False)
    return bar


def whole_ticks(axis: Any) -> None:
    """Let an axis have ticks at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=7, integer=True, min_n_ticks=1))


def shared_legend(
    made: "Figure", seen: Mapping[str, Any], *, place: str = "outside upper right"
) -> None:
    """Add one legend for all axes of a figure, in as many columns as fit."""
    if any(seen):
        each = 0.075 * max(map(len, seen)) + 0.6  # inches, by the size of the letters
        columns = max(1, min(len(seen), int(made.get_figwidth() / each)))
        legend(
            made,
            list(seen.values()),
            labels=list(seen),
            loc=place,
            ncols=columns,
        )


def save(made: "Figure", folder: Path, name: str) -> str:
    """Write ``name.png`` (white, 160 dpi) and ``name.svg``; return the SVG for use inside a page.

    The returned text follows the colours of the page (``--ink``, ``--muted``, ``--grid``,
    ``--blue``), and its ids carry ``name``, so that many figures can share one page.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    png, svg = io.BytesIO(), io.StringIO()
    # a context, not a setting: text stays text (small, selectable) and equal runs give equal files
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        # the canvases draw once each; Figure.savefig would draw twice, and lay out every time
        FigureCanvasAgg(made).print_png(png, metadata={"Software": None})
        made.set_layout_engine("none")
        made.patch.set_facecolor("none")
        FigureCanvasSVG(made).print_svg(svg, metadata={"Date": None})
    for suffix, content in ((".png", png.getvalue()), (".svg", svg.getvalue().encode())):
        write_atomic(folder / f"{name}{suffix}", [content], n_bytes=len(content))
    return _inline(svg.getvalue(), name)


def _inline(svg: str, name: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<image[^>]*?)\sid="[^"]*"', r"\1", svg)  # equal images have equal ones
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)  # the HTML parser knows them
    # the page sets the size, but does not blow up small figures
    svg = re.sub(r'(<svg[^>]*?)\swidth="([\d.]+)pt"', _limited, svg, count=1)
    svg = re.sub(r'(<svg[^>]*?)\sheight="[^"]*"', r"\1", svg, count=1)
    for color, variable in _THEMED.items():
        svg = svg.replace(color, variable)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)  # the page's own font
    return svg.strip()


def _limited(match: re.Match[str]) -> str:
    return f'{match[1]} style="max-width:{_PIXELS * float(match[2]):.0f}px"'
