"""The pictures of a comparison, from its report and matrices."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from subspan.comparison._measure import Arrays, Measured
from subspan.comparison._verdict import site_names, title
from subspan.report import figures
from subspan.report.figures import Line, Panel
from subspan.report.maps import Fan, Map, fans, maps
from subspan.report.result import Picture
from subspan.report.words import listed

__all__ = ["pictures"]

Row = Mapping[str, Any]


def pictures(report: Row, found: Sequence[Measured], turned: Arrays) -> Iterator[Picture]:
    """Yield ``(name, Figure, caption)`` of every picture the data supports."""
    measured = found[: len(report["measures"])]
    names: dict[str, Any] = {
        "x_names": site_names(report["b"]["sites"]), "y_names": site_names(report["a"]["sites"]),
        "xlabel": "layer of B", "ylabel": "layer of A",
    }  # fmt: skip
    panels = [
        Map(_headline(one.name), one.matrix, low_is_bright=one.is_distance, inside=one.above)
        for one in measured
        if np.isfinite(one.matrix).any()
    ]
    if not panels:
        return
    caption = "All pairs of layers; bright is similar. The dot marks the best match of each "
    caption += "layer of A."
    if measured[0].above is not None:
        known = [one for one in measured if np.isfinite(one.matrix).any()]
        free = [title(one.name) for one in known if one.above is not None and one.above.all()]
        limit = f"{100 * report['settings']['level']:g} % of permutations"
        if len(free) < len(known):
            caption += f" The red contour parts the pairs that are more alike than {limit} from the"
            caption += " others."
        if free:
            caption += f" By {listed(free)} all pairs are more alike than {limit}, so there "
            caption += "is no contour."
    yield "similarity", maps(panels, **names), caption
    if len(report["a"]["sites"]) > 1:
        yield from _best(report, measured)
    yield from _angles(report, turned)
    if len(found) > len(measured):
        whole, lead = found[-1], measured[0]
        pair = [
            Map("without outliers", lead.matrix, low_is_bright=lead.is_distance),
            Map("all tokens", whole.matrix, low_is_bright=whole.is_distance),
        ]
        text = f"{_headline(lead.name)} without outlier tokens, and with them."
        yield "with_outliers", maps(pair, one_scale=True, **names), text


def _headline(name: str) -> str:
    words = title(name)
    return words[:1].upper() + words[1:]


def _depths(sites: Sequence[Row]) -> np.ndarray:
    names = site_names(sites)
    return np.array([int(n) if n.isdecimal() else i for i, n in enumerate(names)])


def _best(report: Row, measured: Sequence[Measured]) -> Iterator[Picture]:
    x, depth = _depths(report["a"]["sites"]), _depths(report["b"]["sites"])
    lines, panels = [], []
    for one in measured:
        match = one.best()
        known = np.array([i for i, j in enumerate(match) if j is not None], int)
        if not len(known):
            continue
        at = np.array([match[i] for i in known], int)
        lines.append(Line(title(one.name), x[known], depth[at]))
        values = [Line("best match", x[known], one.matrix[known, at], "without")]
        if one.null is not None:
            values.append(Line("permutations", x[known], one.null[known, at], "all"))
        panels.append(Panel(_headline(one.name), values))
    if np.array_equal(x, depth):
        lines.append(Line("the same layer", x, depth, "guide"))
    made = figures.curves(
        [Panel("", lines)], xlabel="layer of A", ylabel="best-matching layer of B",
        columns=1, wide=True, whole_y=True,
    )  # fmt: skip
    yield "best_layer", made, "The layer of B that each layer of A is most like."
    caption = "How alike each layer of A and its best match are."
    if measured[0].null is not None:
        caption += (
            f" Dashed: what {100 * report['settings']['level']:g} % of permutations do not reach."
        )
    yield "best_match", figures.curves(panels, xlabel="layer of A", ylabel="value"), caption


def _angles(report: Row, turned: Arrays) -> Iterator[Picture]:
    depths = _depths(report["a"]["sites"])
    panels = []
    for name, words in (("samples", "over samples"), ("features", "over neurons")):
        lines = np.degrees(turned[name])
        known = np.isfinite(lines).any(axis=1)
        if known.any():
            panels.append(
                Fan(
                    f"Principal angles {words}", depths[known].tolist(), lines[known],
                    np.degrees(turned[f"chance_{name}"]),
                )
            )  # fmt: skip
    if panels:
        caption = (
            "Principal angles between the leading subspaces of each layer of A and its best match "
            "in B, in ascending order. Over samples: between the spans of the leading principal "
            "scores, whatever the neurons."
        )
        if len(panels) > 1:
            caption += (
                " Over neurons: between the leading principal directions themselves, which agree "
                "only where both models use the same basis."
            )
        yield (
            "principal_angles",
            fans(panels, xlabel="number of the angle", ylabel="degrees", chance="chance", top=93.0),
            caption,
        )
