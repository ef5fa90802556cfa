"""One report on an autoencoder from its pass over tokens to its files, whoever asked for it."""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from subspan._arrays import library_of, to_numpy
from subspan.activations import OutlierRule
from subspan.report import RunFolder, Stopwatch, run_facts
from subspan.report.result import Progress, finish
from subspan.sae._adapter import Coder
from subspan.sae.autoencoder import Autoencoder
from subspan.sae.cards._collect import Collected, Context, collect
from subspan.sae.cards._effects import Effects, Neighbours, logit_effects, neighbours
from subspan.sae.cards._features import write_features
from subspan.sae.cards._page import page
from subspan.sae.cards._pictures import pictures
from subspan.sae.cards._source import Blocks
from subspan.sae.cards._verdict import findings, thresholds
from subspan.sae.evaluation import Evaluation, defined

__all__ = ["RESULTS", "SCHEMA", "Job", "digest_of", "training_facts"]

SCHEMA = "subspan.sae.report/1"
FEATURES = "features.safetensors"
RESULTS = ("report.json", FEATURES, "figures")
_LIMITS = (
    "Densities, contexts and metrics describe the tokens that were read; other texts use other "
    "latents.",
    "A context shows where a latent fires, not why; what it does to the model is another question, "
    "and the tokens it raises are only its direct effect.",
)


class Job:
    """Everything that is looked at for one report, and the writing of it."""

    def __init__(
        self,
        coder: Coder,
        blocks: Blocks,
        context: Context,
        exclude: OutlierRule | None,
        *,
        effects: int,
        near: int,
        watch: Stopwatch,
    ) -> None:
        self.coder, self.blocks, self.context, self.exclude = coder, blocks, context, exclude
        self.effects, self.near, self.watch = effects, near, watch
        self.facts = blocks.facts()

    def settings(self) -> dict[str, Any]:
        """Return what was asked, in plain values."""
        return {
            "site": self.blocks.site.key,
            "excluded": "nothing" if self.exclude is None else self.exclude.describe(),
            "held_out": 0.0,
            **asdict(self.context),
        }

    def write(
        self,
        folder: RunFolder,
        *,
        evaluation: Evaluation | None,
        training: dict[str, Any] | None,
        progress: Progress,
        resumed: bool = False,
        held_out: float = 0.0,
        also: Callable[[Path], None] | None = None,
    ) -> dict[str, Any]:
        """Make the pass, write page and files into the folder, and return the report.

        ``also`` writes further results into the folder of the stage that it is given.
        """
        sae, blocks, watch = self.coder.sae, self.blocks, self.watch
        with watch.part("latents"):
            found = collect(
                self.coder, iter(blocks), rule=self.exclude, context=self.context,
                progress=lambda done: progress("tokens", done, blocks.n_tokens),
            )  # fmt: skip
        with watch.part("dictionary"):
            progress("dictionary", 0, 1)
            alike, changed = _dictionary(sae, blocks, self.effects, self.near)
        treatment = {"held_out": held_out, "logits": changed and changed.treatment}
        made = _report(found, alike, sae, self.settings() | treatment, self.facts)
        made["evaluation"] = None if evaluation is None else evaluation.to_dict()
        made["training"] = training
        said = findings(made)
        made["verdict"] = {"text": " ".join(finding["text"] for finding in said), "findings": said}
        made["facts"] = run_facts() | {
            "seconds": watch.seconds, "seed": self.context.seed, "resumed": resumed,
            "peak_memory_mb": _peak_memory(),
        }  # fmt: skip
        progress("report", 0, 1)
        with watch.part("report"):
            features = folder.fresh_stage() / FEATURES
            write_features(features, found, changed, alike, blocks.words)
            if also is not None:
                also(folder.stage)
        finish(folder, made, pictures(made), partial(page, features=features), watch)
        progress("report", 1, 1)
        return made


def training_facts(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what the folder of a training run says: its log, its settings, its speed."""
    place = Path(folder)
    lines = (place / "metrics.jsonl").read_text("utf-8").splitlines()
    log = [json.loads(line) for line in lines]
    about = json.loads((place / "training.json").read_text("utf-8"))
    speeds = [row["tokens_per_second"] for row in log if row.get("tokens_per_second")]
    return {
        "log": log,
        "config": about["config"],
        "steps": about["steps"],
        "tokens": about["tokens"],
        "tokens_per_second": float(np.median(speeds)) if speeds else None,
    }


def _peak_memory() -> float | None:
    """Return the most memory that this process has had so far, in MB, where it can be asked."""
    try:
        import resource
    except ImportError:
        return None
    unit = 1.0 if sys.platform == "darwin" else 1024.0
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)


def _dictionary(
    sae: Autoencoder, blocks: Blocks, effects: int, near: int
) -> tuple[Neighbours, Effects | None]:
    w_dec = to_numpy(sae.w_dec).astype(np.float32, copy=False) / np.float32(sae.scale)
    changed = None
    if effects and blocks.model is not None:
        changed = logit_effects(blocks.model, w_dec, effects)
    return neighbours(w_dec, near), changed


def _report(
    found: Collected,
    alike: Neighbours,
    sae: Autoencoder,
    settings: dict[str, Any],
    facts: dict[str, Any],
) -> dict[str, Any]:
    metrics = found.metrics
    dense, twin = thresholds()
    nearest = alike.cosine[:, 0] if alike.cosine.shape[1] else np.zeros(0)
    fired = metrics.density[metrics.density > 0]
    return {
        "schema": SCHEMA,
        "source": facts | {"n_tokens": found.n_tokens, "n_excluded": found.n_excluded},
        "settings": settings,
        "sae": {
            "architecture": sae.architecture, "width": sae.width, "n_latents": sae.n_latents,
            "k": None if sae.k is None else float(sae.k), "hash": digest_of(sae),
        },
        "metrics": {name: _plain(value) for name, value in metrics.scalars().items()},
        "n_dead": int((metrics.density == 0).sum()),
        "n_dense": int((metrics.density > dense).sum()),
        "n_twins": int((nearest > twin).sum()),
        "histograms": {
            "log10_density": _histogram(np.log10(fired), 50),
            "l0": _counts(found.l0),
            "max_cosine": _histogram(nearest, np.linspace(min(0, nearest.min(initial=0)), 1, 51)),
        },
        "by_position": {
            "edges": found.position_edges.tolist(),
            "explained_variance": [_plain(float(v)) for v in found.explained_by_position],
        },
        "features": FEATURES,
        "limits": list(_LIMITS),
    }  # fmt: skip


def _plain(value: Any) -> Any:
    return defined(value.item() if isinstance(value, np.generic) else value)


def _histogram(values: np.ndarray, bins: Any) -> dict[str, Any]:
    if not values.size:
        return {"counts": [0], "edges": [0.0, 1.0]}
    counts, edges = np.histogram(values, bins)
    return {"counts": counts.tolist(), "edges": [float(f"{edge:.6g}") for edge in edges]}


def _counts(counts: np.ndarray) -> dict[str, Any]:
    """Return a histogram of whole numbers 0, 1, ..., in at most about a hundred bins."""
    step = -(-len(counts) // 100)
    merged = np.add.reduceat(counts, np.arange(0, len(counts), step))
    edges = np.arange(len(merged) + 1) * step - 0.5
    return {"counts": merged.tolist(), "edges": edges.tolist()}


def digest_of(sae: Autoencoder) -> str:
    """SHA-256 (hex) of the arrays of an autoencoder, by name."""
    digest = hashlib.sha256()
    fields: Mapping[str, Any] = vars(sae)
    for name in sorted(fields):
        if library_of(fields[name]):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(to_numpy(fields[name])).data)
    return digest.hexdigest()
