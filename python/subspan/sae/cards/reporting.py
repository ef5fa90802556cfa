"""The report on an autoencoder: what its latents fire on, and how much of a model it keeps."""

import os
from dataclasses import dataclass
from typing import Any, ClassVar

from subspan import _checks
from subspan.activations import OutlierRule, Site
from subspan.activations.sources import set_threads
from subspan.errors import DtypeError
from subspan.report import RunFolder, Stopwatch
from subspan.report.result import Progress, Result, silent
from subspan.sae._adapter import Coder
from subspan.sae.autoencoder import Autoencoder
from subspan.sae.cards._collect import Context
from subspan.sae.cards._job import RESULTS, SCHEMA, Job, digest_of, training_facts
from subspan.sae.cards._source import Blocks
from subspan.sae.evaluation import Evaluation

__all__ = ["Report", "report"]


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
    training: str | os.PathLike[str] | None = None,
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
    training : path, optional
        The folder of `train`: its log becomes part of the page.
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
    _checks.integer("report", "top", top, low=1, high=255)
    folder = RunFolder(out, kind="report", results=RESULTS)
    folder.check(overwrite=overwrite)
    if threads is not None:
        set_threads("report", threads, model=True)
    with watch.part("loading"):
        stages("loading", 0, 1)
        blocks = Blocks(
            "report", source, texts, model=model, site=site, tokens=tokens, window=window,
            batch_size=batch_size,
        )  # fmt: skip
    context = Context(top, sample, before, after, seed)
    job = Job(coder, blocks, context, exclude, effects=effects, near=near, watch=watch)
    identity = {"schema": SCHEMA, "settings": job.settings(), "sae": digest_of(coder.sae)}
    identity |= {key: job.facts[key] for key in ("hash", "text_hash")}
    with folder.held(identity, overwrite=overwrite):
        log = None if training is None else training_facts(training)
        made = job.write(folder, evaluation=evaluation, training=log, progress=stages)
    return Report(folder.path, made)
