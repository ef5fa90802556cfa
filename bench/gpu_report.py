"""What `make gpu-check` says: one line for each case, all tables as Markdown, outcomes.

Needs the standard library alone, for there may be nothing but a failed build to report.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from tables import aligned, error_text, markdown, table, time_text

Results = Mapping[str, Any]


def machine_text(results: Results) -> str:
    """Return what the figures hold for, in one sentence."""
    facts = results["facts"]
    gpu, versions = facts["gpu"], facts.get("versions", {})
    rivals = [
        f"{name} {number}"
        for name, number in versions.items()
        if name.startswith(("torch", "cupy", "cuml"))
    ]
    parts = [
        f"{gpu['name']} ({gpu['multiprocessors']} multiprocessors, {gpu['memory_gib']} GiB)",
        f"driver {gpu['driver']}, CUDA {facts['nvcc']}",
        *([", ".join(rivals)] if rivals else []),
        facts["date"],
    ]
    if ceilings := facts.get("ceilings"):
        parts.append(
            f"measured: copies {ceilings['copy_gb_s']:.0f} GB/s (read and written), float32 "
            f"products {ceilings['float32_tflops']:.1f} TFLOP/s"
        )
    return "; ".join(parts)


def outcomes(results: Results) -> list[list[str]]:
    """Return the sections that ran as rows of cells."""
    return [
        ["section", "outcome", "seconds", ""],
        *(
            [name, "ok" if s["ok"] else "FAILED", f"{s['seconds']:.0f}", s["detail"]]
            for name, s in results["sections"].items()
        ),
    ]


def is_ours(row: Mapping[str, Any]) -> bool:
    return str(row["contender"]).startswith("subspan")


def _ratio(row: Mapping[str, Any]) -> str:
    ratio = row["ratio"]
    return f"{ratio:.0f}x" if ratio >= 100 else f"{ratio:.2g}x"


def _worst(row: Mapping[str, Any]) -> str:
    """Return a row's largest test ratio, or its largest error where it has no ratios."""
    ratios = [e for name, e in row["errors"].items() if name.startswith(("R", "E"))]
    errors = ratios or list(row["errors"].values())
    if not errors:
        return ""
    return "nan" if any(map(math.isnan, errors)) else error_text(max(errors))


def _others(case: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    rows = [row for row in case["rows"][1:] if not row["contender"].endswith("no wait")]
    return sorted(rows, key=lambda row: (is_ours(row), row["median_s"]))


def summary(cases: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return one line for each case: ours, and every rival as `times ours (error)`.

    Rivals share columns by their place in the order of speed, so the first is the best; other
    settings of ours come last.
    """
    most = max((len(_others(case)) for case in cases), default=0)
    lines = [["case", "ms", "no wait", "error", *(["best rival"] + ["next"] * (most - 1))[:most]]]
    for case in cases:
        ours = case["rows"][0]
        waiting = [row for row in case["rows"] if row["contender"].endswith("no wait")]
        told = [f"{row['contender']} {_ratio(row)} ({_worst(row)})" for row in _others(case)]
        lines.append(
            [
                case["name"],
                time_text(ours["median_s"]),
                time_text(waiting[0]["median_s"]) if waiting else "-",
                _worst(ours),
                *told,
                *[""] * (most - len(told)),
            ]
        )
    return lines


LEGEND = (
    "ms: median of subspan; no wait: the same with status left on the device. Rivals: median ratio "
    "to ours, in turns; (from b of B): extrapolated from two smaller batches. Errors: the largest "
    "test ratio R1..R3 (E1, E2; 1 is rounding), elsewhere the relative error, against float64."
)


def chosen(results: Results, pattern: str) -> list[Mapping[str, Any]]:
    """Return the cases whose names match, shell style."""
    return [case for case in results["cases"] if fnmatchcase(case["name"], pattern)]


def place(results: Results, pattern: str) -> str:
    """Return the summary of the cases that match, for a page of the documentation."""
    return "\n\n".join(
        [f"{machine_text(results)}. {LEGEND}", markdown(summary(chosen(results, pattern)))]
    )


def page(results: Results) -> str:
    """Return everything as a Markdown page."""
    parts = [f"# GPU check: {results['facts']['gpu']['name']}", machine_text(results) + "."]
    parts.append(markdown(outcomes(results)))
    if results["cases"]:
        parts += ["## Summary", LEGEND, markdown(summary(results["cases"])), "## All figures"]
    for case in results["cases"]:
        lines = table(case)
        lines[0][0] = case["name"]
        parts.append(markdown(lines))
        parts += [f"{name}: {why}" for name, why in case["absent"].items()]
    if results["left_out"]:
        parts.append("Left out: " + "; ".join(results["left_out"]) + ".")
    return "\n\n".join(parts) + "\n"


def compact(results: Results) -> str:
    """Return outcomes and summary as short as a terminal likes them."""
    parts = [machine_text(results), aligned(outcomes(results))]
    if results["cases"]:
        lines = summary(results["cases"])
        # Text after text, not columns: rivals have long names, and the output may be cut in front.
        parts.append("\n".join(" | ".join(cell for cell in line if cell) for line in lines))
    if results["left_out"]:
        parts.append("left out: " + "; ".join(results["left_out"]))
    return "\n\n".join(parts)
