"""The job itself: check the folder, read both sides, measure, draw, write, show the result."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from subspan import _checks
from subspan.activations import OutlierRule, Site
from subspan.activations.sources import set_threads
from subspan.comparison._page import page
from subspan.comparison._pictures import pictures
from subspan.comparison._report import LEAST, SCHEMA, make_report
from subspan.comparison._rows import collect
from subspan.comparison._sides import UNITS, Choices, open_sides
from subspan.errors import InvalidArgumentError
from subspan.report import RunFolder, Stopwatch
from subspan.report.result import Progress, Result, finish, silent
from subspan.similarity import MEASURES

__all__ = ["SCHEMA", "ModelComparison", "compare_models"]

_RESULTS = ("report.json", "figures")


@dataclass(frozen=True)
class ModelComparison(Result):
    """A finished comparison.

    Attributes
    ----------
    path : Path
        The output folder.
    report : dict
        The content of ``report.json``.
    """

    schema: ClassVar[str] = SCHEMA

    def matrix(self, measure: str = "cka") -> np.ndarray:
        """Return the values of a measure, (layers of A, layers of B)."""
        for row in self.report["measures"]:
            if row["name"] == measure:
                return np.array(row["matrix"], np.float64)
        have = ", ".join(row["name"] for row in self.report["measures"])
        raise InvalidArgumentError(
            f"[ModelComparison.matrix] measure must be one of {have}, got {measure!r}"
        )


def compare_models(
    a: Any,
    b: Any,
    texts: Any = None,
    *,
    out: str | os.PathLike[str],
    unit: str = "auto",
    samples: int | str | None = None,
    measures: Iterable[str] = ("cka", "svcca", "procrustes"),
    n_permutations: int = 20,
    level: float = 0.95,
    null_layers: int = 6,
    dims: int = 16,
    noise: float = 0.0,
    keep: float = 1.0,
    sites: Iterable[str | Site] | None = None,
    layers: Iterable[int] | None = None,
    layers_b: Iterable[int] | None = None,
    outlier_factor: float = 5.0,
    window: int | None = None,
    batch_size: int = 8,
    seed: int = 0,
    threads: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    checkpoint_seconds: float = 30.0,
    progress: Progress | None = None,
) -> ModelComparison:
    """Compare every layer of one model with every layer of another and write a report.

    Both read the same samples. For all pairs of layers: CKA, SVCCA and the Procrustes distance (or
    other measures), each against a permutation null; for each layer of A and its best match in B:
    the principal angles between their leading subspaces.

    Parameters
    ----------
    a, b : str, Path, Model or SavedActivations
        Two models (Hugging Face folder, GGUF file, loaded model), or two stores of activations
        (``.npy``, ``.safetensors``, or a folder of them) whose row i is the same sample.
    texts : str, Path, or iterable of them
        Texts that both models read (a ``str`` is a text, a ``Path`` a file). Needed with models,
        refused with saved activations.
    out : path
        Output folder: new, empty, or holding an interrupted run of the same inputs.
    unit : {"auto", "token", "line"}
        What a sample is: a token, where both models cut the texts into the same tokens; or a line
        of the texts, as the mean over its tokens. ``"auto"``: token where possible.
    samples : int or "all", optional
        Stop after this many tokens, lines or rows; by default 2048 with models, else all rows.
    measures : iterable of str
        Names of `subspan.similarity.MEASURES`; the first one decides on the matches.
    n_permutations : int
        Random orders of the samples of B for the null; 0 for none.
    level : float in (0, 1)
        Part of the permutations that a pair must exceed to count as more alike than chance.
    null_layers : int
        The null is worked out for this many layers of either side, evenly spread, and
        interpolated between them: it changes slowly, and every permutation costs as much as the
        pairs.
    dims : int
        Dimension of the leading subspaces.
    noise, keep : float
        Change the weights of B first, see `perturbed`: with b = a, a check of what is found.
    sites : iterable of str, optional
        Site kinds or module name patterns, by default ``"resid"`` (saved activations without
        such sites: all).
    layers, layers_b : iterable of int, optional
        Only these layers of A, and of B; ``layers_b`` is ``layers`` where both are equally deep.
    outlier_factor : float
        A token is an outlier when its norm exceeds this many medians at a site; such tokens are
        left out of all numbers but those of the section that shows what they do.
    window : int, optional
        Tokens per window; by default 512, or less where a model's context is shorter.
    batch_size : int
        Windows per batch.
    seed : int
        Of permutations and noise.
    threads : int, optional
        Threads of the native core and of the models.
    resume : bool
        Insist on continuing an interrupted run. Without it one with the same inputs and settings
        is continued, too, but a new one is started where there is none.
    overwrite : bool
        Replace a finished or interrupted run in ``out``.
    checkpoint_seconds : float
        Seconds of reading between checkpoints.
    progress : callable, optional
        Called as ``progress(stage, done, total)``.

    Returns
    -------
    ModelComparison
        The report and its folder.

    Raises
    ------
    InvalidArgumentError
        An argument is wrong, the sides do not have the same samples, or hold NaN.
    OutputError
        The folder cannot be used, or the disk is full. The state stays, so the same call resumes.
    FileFormatError
        A model, text or activation file is damaged or not what its name says.

    Notes
    -----
    One pass over the texts for each model, then what `subspan.similarity.compare` costs. Memory:
    the samples of all sites of both sides. Results of finished measures are kept by an
    interrupted run.

    References
    ----------
    S. Kornblith et al., "Similarity of neural network representations revisited", ICML 2019.
    M. Raghu et al., "SVCCA", NeurIPS 2017. A. Williams et al., "Generalized shape metrics on
    neural representations", NeurIPS 2021.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> from subspan.comparison import compare_models
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(300, 8)).astype(np.float32)
    >>> rotation, _ = np.linalg.qr(rng.normal(size=(8, 8)))
    >>> np.save(folder / "a.npy", x)
    >>> np.save(folder / "b.npy", (3 * x @ rotation).astype(np.float32))
    >>> result = compare_models(folder / "a.npy", folder / "b.npy", out=folder / "compared")
    >>> result.matrix("cka").round(3)
    array([[1.]])
    """
    stages = progress or silent
    watch = Stopwatch()
    names = _check_measures(measures)
    choices = Choices(
        unit=_checks.choice("compare_models", "unit", unit, UNITS),
        samples=_samples(samples),
        window=window,
        batch_size=batch_size,
        sites=None if sites is None else tuple(sites),
        layers=None if layers is None else tuple(layers),
        layers_b=None if layers_b is None else tuple(layers_b),
        noise=_checks.real("compare_models", "noise", noise, low=0.0),
        keep=_checks.real("compare_models", "keep", keep, low=0.0, high=1.0),
        seed=_checks.integer("compare_models", "seed", seed, low=0),
    )
    _checks.integer("compare_models", "n_permutations", n_permutations, low=0)
    _checks.real("compare_models", "level", level, low=0.0, high=1.0)
    _checks.integer("compare_models", "null_layers", null_layers, low=1)
    _checks.integer("compare_models", "dims", dims, low=1)
    every = _checks.real("compare_models", "checkpoint_seconds", checkpoint_seconds, low=0.0)
    rule = OutlierRule(factor=outlier_factor)
    folder = RunFolder(out, kind="compare_models", results=_RESULTS)
    folder.check(resume=resume, overwrite=overwrite)
    if threads is not None:
        set_threads("compare_models", threads, model=True)
    with watch.part("loading"):
        stages("loading", 0, 1)
        sides = open_sides(a, b, texts, choices)
    if sides.n < LEAST:
        raise InvalidArgumentError(
            f"[compare_models] at least {LEAST} samples are needed, got {sides.n}"
        )
    settings = {
        "unit": sides.unit,
        "measures": names,
        "n_permutations": n_permutations,
        "level": level,
        "null_layers": null_layers,
        "dims": dims,
        "noise": choices.noise,
        "keep": choices.keep,
        "seed": choices.seed,
        "outlier_factor": rule.factor,
        "outlier_rule": rule.describe(),
        "window": getattr(sides.a.source, "window", None),
        "batch_size": batch_size,
        "sites": {
            side.label: [site.key for site in side.source.sites] for side in (sides.a, sides.b)
        },
    }
    identity = {"schema": SCHEMA, "settings": settings, "n": sides.n} | {
        f"{key} of {side.label}": side.facts[key]
        for side in (sides.a, sides.b)
        for key in ("kind", "hash", "text_hash")
    }
    with folder.held(identity, overwrite=overwrite) as resumed:
        rows = [
            collect(
                side, sides.n, sides.unit, rule, folder.work / f"rows-{side.label}.safetensors",
                every=every, watch=watch, progress=stages,
            )
            for side in (sides.a, sides.b)
        ]  # fmt: skip
        report, found, turned = make_report(
            folder, sides, rows, settings, watch=watch, stages=stages
        )
        report["facts"]["resumed"] = resumed
        stages("report", 0, 1)
        folder.fresh_stage()
        finish(folder, report, pictures(report, found, turned), page, watch)
        stages("report", 1, 1)
    return ModelComparison(folder.path, report)


def _check_measures(measures: Iterable[str]) -> list[str]:
    names = [measures] if isinstance(measures, str) else list(dict.fromkeys(measures))
    for name in names:
        _checks.choice("compare_models", "measures", name, MEASURES)
    if not names:
        raise InvalidArgumentError("[compare_models] measures must name at least one, got none")
    return names


def _samples(samples: int | str | None) -> int | str | None:
    if samples is None or samples == "all":
        return samples
    if not isinstance(samples, int) or isinstance(samples, bool) or samples < LEAST:
        raise InvalidArgumentError(
            f"[compare_models] samples must be an integer of at least {LEAST}, or 'all', got "
            f"{samples!r}"
        )
    return samples
