"""Turn result files into the Markdown tables of README.md and the documentation.

python bench/publish.py bench/results/*.json            prints the tables
python bench/publish.py bench/results/*.json --write    puts them between their markers

A page marks a place with ``<!-- bench:STEM PATTERN -->`` and ``<!-- /bench -->``; the cases of that
bench whose names match the pattern (shell style) go there. The stem of `make gpu-check` is ``gpu``:
one line for each case; so do those of a grid get one.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import gpu_report
import grids
import tables

ROOT = Path(__file__).resolve().parent.parent
PLACE = re.compile(r"(<!-- bench:(\w+) (.*?) -->\n).*?(<!-- /bench -->)", re.DOTALL)


def header(results: Mapping[str, Any]) -> str:
    """Return what the figures hold for, in one sentence."""
    facts = results["facts"]
    versions = facts["versions"]
    rivals = ", ".join(
        f"{name} {versions[name]}"
        for name in versions
        if name in {"numpy", "scipy", "scikit-learn", "torch"}
    )
    load = max(case["foreign_cores"] for case in results["cases"])
    doubt = (
        f" Other work used up to {load:.1f} cores meanwhile: read ratios, not times."
        if load > 0.15
        else ""
    )
    return (
        f"{facts['cpu']}, {facts['threads']} threads, level {facts['subspan']['cpu_level']}; "
        f"{rivals}; {facts['date']}. Medians of rounds in turns; *x ours* is the median ratio to "
        f"the first line.{doubt} Command: `python bench/bench_{results['bench']}.py`"
    )


def markdown(case: Mapping[str, Any]) -> str:
    """Return a case as a Markdown table under its name."""
    lines = tables.table(case)
    lines[0][0] = case["name"]
    keep = [i for i, cell in enumerate(lines[0]) if cell != "spread"]
    return tables.markdown([[line[i] for i in keep] for line in lines])


def text(results: Mapping[str, Any], pattern: str = "*") -> str:
    """Return the tables of the cases that match, under a line of facts."""
    if results["bench"] == "gpu":
        return gpu_report.place(results, pattern)
    chosen = [case for case in results["cases"] if fnmatchcase(case["name"], pattern)]
    lines = grids.of(chosen)
    each = [markdown(case) for case in chosen if case not in lines]
    grid = [tables.markdown(grids.table(lines))] if lines else []
    return "\n\n".join([header(results), *each, *grid])


def fill(page: str, results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a page with the tables of all benches that have results put in their places."""

    def place(found: re.Match[str]) -> str:
        start, stem, pattern, end = found.groups()
        names = [case["name"] for case in results.get(stem, {"cases": []})["cases"]]
        if not any(fnmatchcase(name, pattern) for name in names):
            return found[0]
        return f"{start}\n{text(results[stem], pattern)}\n\n{end}"

    return PLACE.sub(place, page)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args(argv)
    results = {}
    for path in options.files:
        result = json.loads(path.read_text(encoding="utf-8"))
        results[result["bench"]] = result
    if not options.write:
        print("\n\n".join(text(result) for result in results.values()))
        return
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        before = path.read_text(encoding="utf-8")
        after = fill(before, results)
        if after != before:
            path.write_text(after, encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
