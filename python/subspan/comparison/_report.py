"""The report of a comparison: everything worked out, as plain numbers and words."""

from typing import Any

import numpy as np

from subspan.comparison._measure import Arrays, Measured, angles, measured
from subspan.comparison._rows import Rows
from subspan.comparison._sides import Side, Sides
from subspan.comparison._verdict import blocks, findings
from subspan.errors import InvalidArgumentError
from subspan.report import RunFolder, Stopwatch, run_facts
from subspan.report.result import Progress
from subspan.similarity import MEASURES

__all__ = ["LEAST", "SCHEMA", "make_report"]

SCHEMA = "subspan.compare/1"
LEAST = 8  # samples


def make_report(
    folder: RunFolder,
    sides: Sides,
    rows: list[Rows],
    settings: dict[str, Any],
    *,
    watch: Stopwatch,
    stages: Progress,
) -> tuple[dict[str, Any], list[Measured], Arrays]:
    """Work everything out; returns the report, the measures and the angles."""
    clean = (rows[0].count > 0) & (rows[1].count > 0)
    loud = (rows[0].loud_count > 0) | (rows[1].loud_count > 0)
    if clean.sum() < LEAST:
        raise InvalidArgumentError(
            f"[compare_models] at least {LEAST} samples must be no outliers, got {clean.sum()} of "
            f"{sides.n}. Raise outlier_factor"
        )
    xs, ys = ([side.view(key, clean, everything=False) for key in side.keys] for side in rows)
    found = []
    for name in settings["measures"]:
        with watch.part(name):
            options = {key: settings[key] for key in ("n_permutations", "level", "null_layers")}
            found.append(
                measured(
                    name, xs, ys, folder.work / f"measure-{name}.safetensors",
                    seed=settings["seed"], progress=stages, **options,
                )
            )  # fmt: skip
    match = found[0].best()
    with watch.part("principal angles"):
        turned = angles(
            xs, ys, match, folder.work / "angles.safetensors",
            dims=settings["dims"], seed=settings["seed"], progress=stages,
        )  # fmt: skip
    del xs, ys
    whole = None
    if loud.any():
        with watch.part("with outliers"):
            everything = np.ones(sides.n, bool)
            xs, ys = (
                [side.view(key, everything, everything=True) for key in side.keys] for side in rows
            )
            whole = measured(
                found[0].name, xs, ys, folder.work / "with-outliers.safetensors",
                n_permutations=0, level=0.5, null_layers=1, seed=0, progress=stages,
                title=f"{found[0].name} with outliers",
            )  # fmt: skip
    about = {
        "n": sides.n,
        "n_used": int(clean.sum()),
        "n_outlier_tokens": {
            side.label: int(one.loud_count.sum())
            for side, one in zip((sides.a, sides.b), rows, strict=True)
        },
        "n_with_outliers": int(loud.sum()),
    }
    report = {
        "schema": SCHEMA,
        "a": _side(sides.a, rows[0], found[0].order),
        "b": _side(sides.b, rows[1], found[0].order.T),
        "settings": settings,
        "samples": about,
        "measures": [_measure(one) for one in found],
        "matches": _matches(found, sides),
        "angles": {name: _plain(value) for name, value in turned.items()},
        "with_outliers": None if whole is None else _measure(whole),
        "facts": run_facts() | {"seconds": watch.seconds, "seed": settings["seed"]},
    }
    said = findings(report, found, turned, whole)
    report["verdict"] = {"text": " ".join(one["text"] for one in said), "findings": said}
    return report, [*found, *([] if whole is None else [whole])], turned


def _side(side: Side, rows: Rows, order: np.ndarray) -> dict[str, Any]:
    sites = [
        {"key": site.key, "layer": site.layer if site.layer >= 0 else None, "kind": site.kind,
         "head": site.head, "width": rows.width(site.key)}
        for site in side.source.sites
    ]  # fmt: skip
    return side.facts | {"sites": sites, "blocks": blocks(order)}


def _measure(one: Measured) -> dict[str, Any]:
    about = MEASURES[one.name]
    return {
        "name": one.name,
        "formula": about.formula,
        "is_distance": about.is_distance,
        "matrix": _plain(one.matrix),
        "null_quantile": None if one.null is None else _plain(one.null),
        "null_at": None if one.null_at is None else [at.tolist() for at in one.null_at],
        "n_above": None if one.above is None else int(one.above.sum()),
        "best": one.best(),
        "warnings": one.warnings,
    }


def _matches(found: list[Measured], sides: Sides) -> list[dict[str, Any]]:
    rows = []
    for i, site in enumerate(sides.a.source.sites):
        row: dict[str, Any] = {"a": site.key}
        for one in found:
            j = one.best()[i]
            row[one.name] = None if j is None else {
                "b": sides.b.source.sites[j].key,
                "value": float(one.matrix[i, j]),
                "null_quantile": None if one.null is None else _finite(one.null[i, j]),
            }  # fmt: skip
        rows.append(row)
    return rows


def _plain(values: np.ndarray) -> list[Any]:
    if values.ndim > 1:
        return [_plain(line) for line in values]
    return [_finite(value) for value in values]


def _finite(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
