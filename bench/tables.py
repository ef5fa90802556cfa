"""Results as tables: cells, columns of text, Markdown. Needs the standard library alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def time_text(seconds: float) -> str:
    """Return milliseconds with three digits."""
    return f"{seconds * 1e3:.3g}" if seconds < 1 else f"{seconds * 1e3:.0f}"


def error_text(error: float) -> str:
    """Return a rounding error as a power of ten; a test ratio, which is about 1, as a number."""
    return f"{error:.0e}" if error < 0.01 else f"{error:.2g}"


def table(case: Mapping[str, Any]) -> list[list[str]]:
    """Return a case as rows of cells, the header first; columns without content are left out."""
    rows = case["rows"]
    kinds = list(dict.fromkeys(key for row in rows for key in row["errors"]))
    many = any(row["min_s"] < row["max_s"] for row in rows)
    rated = any(row["gflops"] for row in rows)
    weighed = any(row["extra_mib"] is not None for row in rows)
    header = ["", "ms", *(["min-max"] if many else []), "x ours", *(["spread"] if many else [])]
    header += ["GFLOP/s"] * rated + kinds + ["extra MiB"] * weighed
    lines = [header]
    for row in rows:
        span = [f"{time_text(row['min_s'])}-{time_text(row['max_s'])}"] * many
        spread = [f"{row['ratio_min']:.2f}-{row['ratio_max']:.2f}"] * many
        line = [row["contender"], time_text(row["median_s"]), *span, f"{row['ratio']:.2f}", *spread]
        line += ["" if row["gflops"] is None else f"{row['gflops']:.0f}"] * rated
        line += [error_text(row["errors"][k]) if k in row["errors"] else "" for k in kinds]
        line += ["" if row["extra_mib"] is None else f"{row['extra_mib']:.0f}"] * weighed
        lines.append(line)
    return lines


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Return cells as text in columns."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """Return cells as a Markdown table; numbers to the right."""
    rule = ["---", *["--:"] * (len(lines[0]) - 1)]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |"
        for line in [lines[0], rule, *lines[1:]]
    )
