"""What every job on a model shares: its choices, its judgement by texts, and its notes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from subspan import _checks
from subspan.activations import Model
from subspan.compression._reading import Reading
from subspan.compression.perplexity import perplexity
from subspan.errors import InvalidArgumentError, UnsupportedError
from subspan.report import RunFolder, Stopwatch, run_facts, write_json
from subspan.report.result import Progress, finish

__all__ = ["causal", "choices", "ended", "evaluated", "noted", "ratios", "texts_of"]


def choices(
    function: str, what: str, asked: str | Iterable[str], known: Iterable[str]
) -> list[str]:
    """Return the names that were asked for, each once, all of them known."""
    names = [asked] if isinstance(asked, str) else list(dict.fromkeys(asked))
    if not names:
        raise InvalidArgumentError(f"[{function}] {what} must name at least one, got none")
    return [_checks.choice(function, what, name, tuple(known)) for name in names]


def ratios(function: str, kept: float | Iterable[float]) -> list[float]:
    """Return kept ratios, falling."""
    asked = list(kept) if isinstance(kept, Iterable) else [kept]
    found = [_checks.real(function, "kept", one, low=0.0, high=1.0) for one in asked]
    if not found or min(found) <= 0:
        raise InvalidArgumentError(f"[{function}] kept must be in (0, 1], got {asked}")
    return sorted(set(found), reverse=True)


def causal(function: str, model: Model) -> Model:
    """Return the model if it predicts next tokens."""
    if model.kind != "causal":
        raise UnsupportedError(
            f"[{function}] model must be a causal language model, got the {model.kind} "
            f"{model.name!r}"
        )
    return model


def evaluated(
    function: str, model: Model, reading: Reading, stages: Progress,
    cache: Callable[[], Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Return cross-entropies and perplexities on every text; what overflows is None."""
    nats, values = {}, {}
    total, done = sum(len(text.batches) for text in reading.evaluation), 0
    for text in reading.evaluation:

        def report(n: int, _: int, before: int = done) -> None:
            stages("evaluation", before + n, total)

        try:
            found = perplexity(model, text.batches, cache=cache, progress=report)
        except InvalidArgumentError as error:
            raise InvalidArgumentError(
                f"[{function}] text {text.name!r} cannot judge: {error}"
            ) from error
        done += len(text.batches)
        nats[text.name] = found.nats if np.isfinite(found.nats) else None
        values[text.name] = found.value if np.isfinite(found.value) else None
    return {"nats": nats, "perplexity": values}


def noted(file: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what an earlier run noted in a file, or what is made now and noted."""
    if not file.exists():
        write_json(file, make())
    found: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return found


def texts_of(reading: Reading) -> list[dict[str, Any]]:
    """Return the texts that judge, for a report."""
    return [
        {"name": text.name, "domain": text.domain, "tokens": text.n_tokens}
        for text in reading.evaluation
    ]


def ended(
    folder: RunFolder, report: dict[str, Any], parts: tuple[Any, Any, Any], kept: Iterable[str],
    *, stages: Progress, watch: Stopwatch,
) -> None:  # fmt: skip
    """Add facts and a verdict to a report and publish it, with folders of the run that are kept.

    ``parts``: what makes the sentences of the verdict, the pictures, and the page.
    """
    verdict, pictures, page = parts
    report["facts"] = run_facts() | {"seconds": watch.seconds} | report["facts"]
    report["verdict"] = {"text": " ".join(verdict(report))}
    stages("report", 0, 1)
    stage = folder.fresh_stage()
    for name in kept:
        # links, so that an interrupted report finds them again
        shutil.copytree(folder.work / name, stage / name, copy_function=os.link)
    finish(folder, report, pictures(report), page, watch)
    stages("report", 1, 1)
