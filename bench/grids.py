"""Cases that differ in n alone, one line for each: time of a matrix, ratios, growth. Needs the
standard library alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tables import error_text

MARK = " grid"
LIMIT = 2.0  # a matrix of one more row and column takes at most so many times as long
_NAME = re.compile(r".* grid (?P<count>\d+)x\((?P<n>\d+)x\d+\) (?P<dtype>\w+)")

Cases = Sequence[Mapping[str, Any]]


def of(cases: Cases) -> list[Mapping[str, Any]]:
    """Return the cases that belong to a grid."""
    return [case for case in cases if _NAME.fullmatch(case["name"])]


def table(cases: Cases) -> list[list[str]]:
    """Return a line for each case: microseconds of one matrix, the growth since the n before, how
    many times as long the rivals take, and our largest error."""
    rivals = list(dict.fromkeys(row["contender"] for case in cases for row in case["rows"][1:]))
    lines = [["", "us of one", "x n before", *(f"x {name}" for name in rivals), "error"]]
    grown = {case["name"]: growth for _, case, _, growth in _steps(cases)}
    for case in cases:
        ratios = {row["contender"]: f"{row['ratio']:.2f}" for row in case["rows"]}
        growth = grown.get(case["name"])
        lines.append(
            [
                case["name"],
                f"{_microseconds(case):.3g}",
                "" if growth is None else f"{growth:.2f}",
                *(ratios.get(name, "") for name in rivals),
                error_text(max(case["rows"][0]["errors"].values())),
            ]
        )
    return lines


def jumps(cases: Cases) -> list[str]:
    """Return a sentence for every pair of neighbouring n whose times are more than LIMIT apart."""
    return [
        f"!!! {case['name']}: {growth:.2f} times the time of n = {before}, one less"
        for before, case, n, growth in _steps(cases)
        if n == before + 1 and growth > LIMIT
    ]


def _steps(cases: Cases) -> Iterator[tuple[int, Mapping[str, Any], int, float]]:
    """Give n before, case, n and growth, where the batch is large and of the same kind."""
    last: tuple[str, int, int, float] | None = None
    for case in cases:
        found = _NAME.fullmatch(case["name"])
        if found is None:
            continue
        count, n, time = int(found["count"]), int(found["n"]), _microseconds(case)
        # A matrix alone costs what a call costs; from 16 to 1000 it depends on the count little.
        alike = last is not None and last[0] == found["dtype"] and (last[1] == 1) == (count == 1)
        if last is not None and alike and last[2] < n:
            yield last[2], case, n, time / last[3]
        last = (found["dtype"], count, n, time)


def _microseconds(case: Mapping[str, Any]) -> float:
    found = _NAME.fullmatch(case["name"])
    count = 1 if found is None else int(found["count"])
    return float(case["rows"][0]["median_s"]) / count * 1e6
