"""The job itself: check the folder, read, analyse, draw, write, and only then show the result."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from subspan.activations import OutlierRule, Site
from subspan.activations.sources import (
    ModelSource,
    SavedSource,
    Source,
    is_saved,
    set_threads,
    sources_of,
)
from subspan.atlas._analyse import norm_counts, site_rows, weight_rows
from subspan.atlas._collect import collect
from subspan.atlas._outliers import outlier_report
from subspan.atlas._page import page
from subspan.atlas._pictures import RATIO_EDGES, pictures
from subspan.atlas._state import SiteState, write_states
from subspan.atlas._verdict import findings
from subspan.errors import InvalidArgumentError
from subspan.report import RunFolder, Stopwatch, run_facts
from subspan.report.result import Progress, Result, finish, silent

__all__ = ["SCHEMA", "Atlas", "atlas"]

SCHEMA = "subspan.atlas/1"
_TOKENS = 8192  # read by default: enough for a width of some hundreds, minutes on a laptop
_RESULTS = ("report.json", "moments.safetensors", "figures")


@dataclass(frozen=True)
class Atlas(Result):
    """A finished atlas.

    Attributes
    ----------
    path : Path
        The output folder.
    report : dict
        The content of ``report.json``.
    """

    schema: ClassVar[str] = SCHEMA


def atlas(
    source: Any,
    texts: Any = None,
    *,
    out: str | os.PathLike[str],
    tokens: int | str | None = None,
    window: int | None = None,
    batch_size: int = 4,
    sites: Iterable[str | Site] | None = None,
    layers: Iterable[int] | None = None,
    outlier_factor: float = 5.0,
    first_token: str = "auto",
    weights: bool = True,
    threads: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    checkpoint_seconds: float = 30.0,
    progress: Progress | None = None,
) -> Atlas:
    """Measure the spectrum of every layer of a model and write a report that says what was found.

    For each layer and site: eigenvalues of the covariance of the activations, effective rank,
    dimensions for 90 and 99 % of the variance, stable rank, each for all tokens and without
    outlier tokens; the same for the weights; the outlier tokens by name.

    Parameters
    ----------
    source : str, Path, Model or SavedActivations
        A model (Hugging Face folder, GGUF file, loaded model) or saved activations (``.npy``,
        ``.safetensors``, or a folder of them).
    texts : str, Path, or iterable of them
        Texts to read (a ``str`` is a text, a ``Path`` a file). Needed with a model, refused with
        saved activations.
    out : path
        Output folder: new, empty, or holding an interrupted run of the same inputs.
    tokens : int or "all", optional
        Stop after this many tokens (rows); by default 8192 for a model and all saved rows.
    window : int, optional
        Tokens per window; by default 512, or the model's context length if that is shorter.
    batch_size : int
        Windows per batch.
    sites : iterable of str, optional
        Site kinds (``"resid"``, ``"attn"``, ``"mlp"``, ``"k"``, ``"v"``) or module name patterns;
        by default all five kinds, and every saved site.
    layers : iterable of int, optional
        Only these layers.
    outlier_factor : float
        A token is an outlier at a site when its norm exceeds this many medians; > 1.
    first_token : {"auto", "keep", "outlier", "drop"}
        What happens to the first token of each window, see ``OutlierRule``.
    weights : bool
        Also describe the weight matrices of a model.
    threads : int, optional
        Threads of the native core and of the model.
    resume : bool
        Insist on continuing an interrupted run. Without it one with the same inputs and settings
        is continued, too, but a new one is started where there is none.
    overwrite : bool
        Replace a finished or interrupted run in ``out``.
    checkpoint_seconds : float
        Seconds of work between checkpoints.
    progress : callable, optional
        Called as ``progress(stage, done, total)``.

    Returns
    -------
    Atlas
        The report and its folder.

    Raises
    ------
    InvalidArgumentError
        An argument is wrong, or texts are missing or not allowed.
    OutputError
        The folder cannot be used, or the disk is full. The state stays, so the same call resumes.
    FileFormatError
        A model, text or activation file is damaged or not what its name says.

    Notes
    -----
    One pass over the tokens. Memory: per site up to two float64 ``d x d`` moments, 4 bytes per
    token, plus the activations of one batch. Nothing is random. Equal inputs, thread-independent
    kernels and the same CPU level give equal numbers, interrupted or not.

    References
    ----------
    O. Roy and M. Vetterli, "The effective rank", EUSIPCO 2007.
    M. Sun, X. Chen, J. Z. Kolter, Z. Liu, "Massive Activations in Large Language Models", 2024.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> from subspan.atlas import atlas
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(500, 3)) @ rng.normal(size=(3, 8))
    >>> np.save(folder / "layer.00.npy", x.astype(np.float32))
    >>> result = atlas(folder / "layer.00.npy", out=folder / "atlas")
    >>> result.report["sites"][0]["all"]["dim_99"] <= 3
    True
    """
    stages = progress or silent
    watch = Stopwatch()
    given = sources_of(texts)
    saved = is_saved("atlas", "source", source)
    limit = _check(saved, given, tokens, checkpoint_seconds)
    rule = OutlierRule(factor=outlier_factor, first_token=first_token)  # type: ignore[arg-type]
    if saved and first_token != "auto":
        raise InvalidArgumentError(
            "[atlas] first_token must be 'auto' for saved activations (their rows have no "
            f"windows), got {first_token!r}"
        )
    folder = RunFolder(out, kind="atlas", results=_RESULTS)
    folder.check(resume=resume, overwrite=overwrite)
    if threads is not None:
        set_threads("atlas", threads, model=not saved)
    with watch.part("loading"):
        stages("loading", 0, 1)
        opened: Source = (
            SavedSource(source, function="atlas", tokens=limit, sites=sites, layers=layers)
            if saved
            else ModelSource(
                source, given, tokens=limit, window=window, batch_size=batch_size,
                sites=sites, layers=layers,
            )
        )  # fmt: skip
        facts = opened.facts()
    if opened.n_tokens < 2:
        raise InvalidArgumentError(
            f"[atlas] at least 2 tokens are needed for a covariance, got {opened.n_tokens}"
        )
    settings = {
        "outlier_factor": rule.factor,
        "first_token": rule.first_token,
        "outlier_rule": rule.describe(),
        "window": getattr(opened, "window", None),
        "batch_size": batch_size if not saved else int(opened.saved.block_rows),  # type: ignore[union-attr]
        "sites": [site.key for site in opened.sites],
        "weights": weights and not saved,
    }
    identity = {"schema": SCHEMA, "settings": settings} | {
        key: facts[key] for key in ("kind", "hash", "text_hash", "n_tokens")
    }
    with folder.held(identity, overwrite=overwrite) as resumed:
        states = collect(
            opened, rule, folder.work / "state.safetensors",
            every=checkpoint_seconds, watch=watch, progress=stages,
        )  # fmt: skip
        report = _report(opened, states, facts, settings, watch=watch, stages=stages)
        report["facts"]["resumed"] = resumed
        _write(folder, report, {site.key: state for site, state in states.items()}, watch, stages)
    return Atlas(folder.path, report)


def _check(saved: bool, texts: list[Any], tokens: int | str | None, every: float) -> int | None:
    """Refuse what cannot work and return the number of tokens to read, None for all."""
    if saved and texts:
        raise InvalidArgumentError(
            f"[atlas] texts must be left out for saved activations, got {len(texts)}. If a model "
            "was meant, give its folder (with config.json) or its .gguf file"
        )
    if not saved and not texts:
        raise InvalidArgumentError(
            "[atlas] texts must be given with a model, got none. Name one or more text files"
        )
    if not every >= 0:
        raise InvalidArgumentError(f"[atlas] checkpoint_seconds must be >= 0, got {every}")
    if tokens is None:
        return None if saved else _TOKENS
    if tokens == "all":
        return None
    if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 2:
        raise InvalidArgumentError(
            f"[atlas] tokens must be an integer of at least 2, or 'all', got {tokens!r}"
        )
    return tokens


def _report(
    source: Source,
    states: dict[Site, SiteState],
    facts: dict[str, Any],
    settings: dict[str, Any],
    *,
    watch: Stopwatch,
    stages: Progress,
) -> dict[str, Any]:
    by_key = {site.key: state for site, state in states.items()}
    names = {site.key: site for site in states}
    with watch.part("spectra"):
        stages("spectra", 0, 1)
        sites = site_rows(by_key, names)
    with watch.part("weights"):
        matrices = list(_counted(source, settings, stages))
    outliers = outlier_report(by_key, names, source.tokens())
    for token in outliers["tokens"]:
        token["document_name"] = facts["texts"][token["document"]] if facts["texts"] else None
    found = findings(sites, matrices, outliers, source.n_tokens, settings["outlier_factor"])
    return {
        "schema": SCHEMA,
        "source": facts,
        "settings": settings,
        "verdict": {"text": " ".join(f["text"] for f in found), "findings": found},
        "sites": sites,
        "weights": matrices,
        "outliers": outliers,
        "norm_ratio_histogram": {
            "edges": [float(f"{edge:.6g}") for edge in RATIO_EDGES],
            "counts": {
                key: norm_counts(state, RATIO_EDGES).tolist() for key, state in by_key.items()
            },
        },
        "limits": _limits(source),
        "facts": run_facts() | {"seconds": watch.seconds, "seed": None},
    }


def _counted(
    source: Source, settings: dict[str, Any], stages: Progress
) -> Iterator[dict[str, Any]]:
    if not settings["weights"]:
        return
    done = 0

    def tick(_: str) -> None:
        nonlocal done
        done += 1
        stages("weights", done, 0)

    yield from weight_rows(source.weights(), factor=settings["outlier_factor"], progress=tick)


def _limits(source: Source) -> list[str]:
    """Return what the numbers of a source do not say."""
    if isinstance(source, SavedSource):
        return [
            "Only the saved rows are described; how they were chosen is not known here. Variance "
            "is not importance: a direction of little variance may matter."
        ]
    said = [
        "Ranks describe these texts: other texts, languages or lengths can use other "
        "directions. Variance is not importance: a direction of little variance may matter "
        "to the model's output."
    ]
    if str(source.model.path).endswith(".gguf"):
        said.append(
            "The weights are those of a GGUF release, dequantised: their spectra carry its "
            "rounding noise, so small singular values say nothing about the original weights."
        )
    return said


def _write(
    folder: RunFolder,
    report: dict[str, Any],
    states: dict[str, SiteState],
    watch: Stopwatch,
    stages: Progress,
) -> None:
    stages("report", 0, 1)
    with watch.part("report"):
        write_states(folder.fresh_stage() / "moments.safetensors", states)
    counts = {key: np.array(line) for key, line in report["norm_ratio_histogram"]["counts"].items()}
    factor = report["settings"]["outlier_factor"]
    drawn = pictures(report["sites"], report["weights"], counts, factor)
    finish(folder, report, drawn, page, watch)
    stages("report", 1, 1)
