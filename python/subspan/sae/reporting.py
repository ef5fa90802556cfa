"""The report on an autoencoder: what its latents fire on, and how much of a model it keeps."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np

from subspan import _checks
from subspan._arrays import library_of, to_numpy
from subspan.activations import OutlierRule, Site
from subspan.activations.sources import set_threads
from subspan.errors import DtypeError
from subspan.report import RunFolder, Stopwatch, run_facts
from subspan.report.result import Progress, Result, finish, silent
from subspan.sae._adapter import Coder
from subspan.sae._collect import Collected, Context, collect
from subspan.sae._effects import Effects, Neighbours, logit_effects, neighbours
from subspan.sae._features import write_features
from subspan.sae._page import page
from subspan.sae._pictures import pictures
from subspan.sae._source import Blocks
from subspan.sae._verdict import findings, thresholds
from subspan.sae.autoencoder import Autoencoder
from subspan.sae.evaluation import Evaluation, defined

__all__ = ["SCHEMA", "Report", "report"]

SCHEMA = "subspan.sae.report/1"
FEATURES = "features.safetensors"
_RESULTS = ("report.json", FEATURES, "figures")
_LIMITS = (
    "Densities, contexts and metrics describe the tokens that were read; other texts use other "
    "latents.",
    "A context shows where a latent fires, not why; what it does to the model is another question, "
    "and the tokens it raises are only its direct effect.",
)


@dataclass(frozen=True)
class Report(Result):
    """A finished report on an autoencoder.

    Attributes
    ----------
    path : Path
        The output folder.
    report : dict
        The content of ``report.json``.
    """

    schema: ClassVar[str] = SCHEMA


def report(
    sae: Any,
    source: Any,
    texts: Any = None,
    *,
    out: str | os.PathLike[str],
    site: str | Site | None = None,
    model: Any = None,
    tokens: int | None = 65536,
    window: int | None = None,
    batch_size: int = 8,
    exclude: OutlierRule | None = OutlierRule(),  # noqa: B008 - frozen
    evaluation: Evaluation | None = None,
    training: Any = None,
    top: int = 8,
    sample: int = 3,
    before: int = 14,
    after: int = 6,
    effects: int = 8,
    near: int = 5,
    seed: int = 0,
    threads: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Look at every latent of an autoencoder and write a page with a card for each of them.

    A card shows the places where the latent fires most and some drawn at random, with the tokens
    around them coloured by its activation; a histogram of its activations; the tokens whose logits
    it raises and lowers most; and the latents with the nearest directions. The page searches and
    sorts them, and opens with the findings in words, pictures and the metrics.

    Parameters
    ----------
    sae : Autoencoder or SAE
    source : str, Path, Model, or ActivationStore
        A model, which reads ``texts``, or a store of activations with their tokens.
    texts : str, Path, iterable of them, or TokenStream, optional
        Needed with a model.
    out : path
        Output folder: new or empty.
    site : str or Site, optional
        Needed with a model, or a store of several sites.
    model : str, Path or Model, optional
        With a store: the model, for the effects on its logits.
    tokens : int, optional
        Stop after so many; None reads everything.
    window, batch_size : int
        Tokens of a window (512, or the context length if that is shorter), and windows of a batch.
    exclude : OutlierRule, optional
        Tokens that the rule calls outliers, or drops, are not encoded. None: all are.
    evaluation : Evaluation, optional
        From `evaluate`; its losses become part of the page.
    training : iterable of dict, optional
        What was logged in training: ``step`` and any of ``loss``, ``explained_variance``, ``l0``,
        ``dead_fraction``.
    top, sample : int
        Places of each latent: with the largest activations, and drawn at random from all.
    before, after : int
        Tokens shown around a place, within its window.
    effects, near : int
        Tokens raised and lowered; nearest latents.
    seed : int
        Of the places drawn at random.
    threads : int, optional
    overwrite : bool
        Replace a finished report in ``out``.
    progress : callable, optional
        Called as ``progress(stage, done, total)``.

    Returns
    -------
    Report
        The report and its folder.

    Raises
    ------
    InvalidArgumentError
        An argument is wrong, or the autoencoder does not fit the site.
    OutputError
        The folder cannot be used, or the disk is full.

    Notes
    -----
    One pass over the tokens; codes stay sparse. Memory for each latent: 16 + 4 (before + 1 + after)
    bytes for each place, and 640 for its histogram; 8 bytes for each token. The page grows by about
    300 bytes for each latent. Nothing but the seed is random, and results do not depend on the
    number of threads or on how tokens come in batches, beyond the rounding of the model.
    """
    stages = progress or silent
    watch = Stopwatch()
    coder = Coder("report", sae)
    if not isinstance(coder.sae, Autoencoder):
        raise DtypeError(f"[report] sae must be an Autoencoder or an SAE, got {type(sae).__name__}")
    counts = {"before": before, "after": after, "sample": sample, "effects": effects, "near": near}
    for name, value in counts.items():
        _checks.integer("report", name, value, low=0, high=255)
    context = Context(
        _checks.integer("report", "top", top, low=1, high=255), sample, before, after, seed
    )
    folder = RunFolder(out, kind="report", results=_RESULTS)
    folder.check(overwrite=overwrite)
    if threads is not None:
        set_threads("report", threads, model=True)
    with watch.part("loading"):
        stages("loading", 0, 1)
        blocks = Blocks(
            "report", source, texts, model=model, site=site, tokens=tokens, window=window,
            batch_size=batch_size,
        )  # fmt: skip
        facts = blocks.facts()
    settings = {
        "site": blocks.site.key,
        "excluded": "nothing" if exclude is None else exclude.describe(),
        "window": window,
        "top": top, "sample": sample, "before": before, "after": after,
        "seed": seed,
    }  # fmt: skip
    identity = {"schema": SCHEMA, "settings": settings, "sae": _hash(coder.sae)}
    identity |= {"hash": facts["hash"], "text_hash": facts["text_hash"]}
    with folder.held(identity, overwrite=overwrite):
        with watch.part("latents"):
            found = collect(
                coder, iter(blocks), rule=exclude, context=context,
                progress=lambda done: stages("tokens", done, blocks.n_tokens),
            )  # fmt: skip
        with watch.part("dictionary"):
            stages("dictionary", 0, 1)
            alike, changed = _dictionary(coder.sae, blocks, effects, near)
        settings["logits"] = None if changed is None else changed.treatment
        made = _report(found, alike, coder.sae, settings, facts, evaluation, training)
        made["facts"] = run_facts() | {"seconds": watch.seconds, "seed": seed, "resumed": False}
        stages("report", 0, 1)
        with watch.part("report"):
            features = folder.fresh_stage() / FEATURES
            write_features(features, found, changed, alike, blocks.words)
        finish(folder, made, pictures(made), partial(page, features=features), watch)
        stages("report", 1, 1)
    return Report(folder.path, made)


def _dictionary(
    sae: Autoencoder, blocks: Blocks, effects: int, near: int
) -> tuple[Neighbours, Effects | None]:
    w_dec = to_numpy(sae.w_dec).astype(np.float32, copy=False) / np.float32(sae.scale)
    changed = None
    if effects and blocks.model is not None:
        changed = logit_effects(blocks.model, w_dec, effects)
    return neighbours(w_dec, near), changed


def _report(  # noqa: PLR0917 - all of it is named at the one call
    found: Collected,
    alike: Neighbours,
    sae: Autoencoder,
    settings: dict[str, Any],
    facts: dict[str, Any],
    evaluation: Evaluation | None,
    training: Any,
) -> dict[str, Any]:
    metrics = found.metrics
    dense, twin = thresholds()
    nearest = alike.cosine[:, 0] if alike.cosine.shape[1] else np.zeros(0)
    fired = metrics.density[metrics.density > 0]
    made: dict[str, Any] = {
        "schema": SCHEMA,
        "source": facts | {"n_tokens": found.n_tokens, "n_excluded": found.n_excluded},
        "settings": settings,
        "sae": {
            "architecture": sae.architecture, "width": sae.width, "n_latents": sae.n_latents,
            "k": None if sae.k is None else float(sae.k), "hash": _hash(sae),
        },
        "metrics": {name: _plain(value) for name, value in metrics.scalars().items()},
        "evaluation": None if evaluation is None else evaluation.to_dict(),
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
        "training": list(training or ()),
        "features": FEATURES,
        "limits": list(_LIMITS),
    }  # fmt: skip
    said = findings(made)
    made["verdict"] = {"text": " ".join(finding["text"] for finding in said), "findings": said}
    return made


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


def _hash(sae: Autoencoder) -> str:
    """SHA-256 (hex) of the arrays of an autoencoder, by name."""
    digest = hashlib.sha256()
    fields: Mapping[str, Any] = vars(sae)
    for name in sorted(fields):
        if library_of(fields[name]):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(to_numpy(fields[name])).data)
    return digest.hexdigest()
