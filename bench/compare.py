"""Compare two result files: did a change make subspan slower, or less exact?

python bench/compare.py BASE.json CHANGE.json [--threshold 1.1]

Rivals did not change between the two runs, so what changed for them is the machine: the change of
our times is divided by the median change of theirs in the same case. The exit code is 1 if one of
our medians grew beyond the threshold, or one of our errors to more than double and beyond rounding.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tables import aligned, time_text

ROUNDING = 1e-14  # errors below are noise
KNOWN = ("cpu", "threads", "size")  # facts without which times cannot be compared


def is_ours(contender: str) -> bool:
    return contender.startswith("subspan")


def by_name(case: Mapping[str, Any]) -> dict[str, Any]:
    return {row["contender"]: row for row in case["rows"]}


def compare(
    base: Mapping[str, Any], change: Mapping[str, Any], threshold: float
) -> tuple[list[list[str]], bool]:
    """Return the table, and whether something got worse."""
    lines = [
        [
            "case",
            "contender",
            "base ms",
            "change ms",
            "change / base",
            "of the machine",
            "own",
            "verdict",
        ]
    ]
    worse = False
    before = {case["name"]: by_name(case) for case in base["cases"]}
    for case in change["cases"]:
        old, new = before.get(case["name"], {}), by_name(case)
        both = {name: new[name]["median_s"] / old[name]["median_s"] for name in new if name in old}
        drifts = [ratio for name, ratio in both.items() if not is_ours(name)]
        drift = statistics.median(drifts) if drifts else 1.0
        for name in filter(is_ours, both):
            own = both[name] / drift
            verdict = "slower" if own > threshold else "faster" if own < 1 / threshold else ""
            for kind, error in new[name]["errors"].items():
                if error > max(2 * old[name]["errors"].get(kind, error), ROUNDING):
                    verdict = f"{kind} {old[name]['errors'][kind]:.0e} -> {error:.0e}"
                    worse = True
            worse |= own > threshold
            lines.append(
                [
                    case["name"],
                    name,
                    time_text(old[name]["median_s"]),
                    time_text(new[name]["median_s"]),
                    f"{both[name]:.2f}",
                    f"{drift:.2f}",
                    f"{own:.2f}",
                    verdict,
                ]
            )
    return lines, worse


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("base", type=Path)
    parser.add_argument("change", type=Path)
    parser.add_argument("--threshold", type=float, default=1.1)
    options = parser.parse_args(argv)
    base, change = (
        json.loads(path.read_text(encoding="utf-8")) for path in (options.base, options.change)
    )
    for key in KNOWN:
        if base["facts"][key] != change["facts"][key]:
            print(
                f"!!! {key} differs: {base['facts'][key]} and {change['facts'][key]}. These runs "
                "cannot be compared.",
                file=sys.stderr,
            )
            return 2
    lines, worse = compare(base, change, options.threshold)
    if len(lines) == 1:
        print("!!! no case in common", file=sys.stderr)
        return 2
    print(aligned(lines))
    return int(worse)


if __name__ == "__main__":
    sys.exit(main())
