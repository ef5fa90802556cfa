"""The job itself: check the folder, read both sides, measure, draw, write, show the result."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from subspan import _checks
from subspan.activations import OutlierRule, Site
from subspan.activations.sources import set_threads
from subspan.comparison._measure import Arrays, Measured, angles, measured
from subspan.comparison._page import page
from subspan.comparison._pictures import pictures
from subspan.comparison._rows import Rows, collect
from subspan.comparison._sides import UNITS, Choices, Side, Sides, open_sides
from subspan.comparison._verdict import blocks, findings
from subspan.errors import InvalidArgumentError
from subspan.report import RunFolder, Stopwatch, run_facts
from subspan.report.result import Progress, Result, finish, silent
from subspan.similarity import MEASURES

__all__ = ["SCHEMA", "ModelComparison", "compare_models"]

SCHEMA = "subspan.compare/1"
_RESULTS = ("report.json", "figures")
_LEAST = 8  # samples


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
    if sides.n < _LEAST:
        raise InvalidArgumentError(
            f"[compare_models] at least {_LEAST} samples are needed, got {sides.n}"
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
        report, found, turned = _report(folder, sides, rows, settings, watch=watch, stages=stages)
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
    if not isinstance(samples, int) or isinstance(samples, bool) or samples < _LEAST:
        raise InvalidArgumentError(
            f"[compare_models] samples must be an integer of at least {_LEAST}, or 'all', got "
            f"{samples!r}"
        )
    return samples


def _report(
    folder: RunFolder,
    sides: Sides,
    rows: list[Rows],
    settings: dict[str, Any],
    *,
    watch: Stopwatch,
    stages: Progress,
) -> tuple[dict[str, Any], list[Measured], Arrays]:
    """Work everything out; returns the report, the measures and the angles."""
    clean = (rows[0].count > 0) & (rows[1].count > 0)
    loud = (rows[0].loud_count > 0) | (rows[1].loud_count > 0)
    if clean.sum() < _LEAST:
        raise InvalidArgumentError(
            f"[compare_models] at least {_LEAST} samples must be no outliers, got {clean.sum()} of "
            f"{sides.n}. Raise outlier_factor"
        )
    xs, ys = ([side.view(key, clean, everything=False) for key in side.keys] for side in rows)
    found = []
    for name in settings["measures"]:
        with watch.part(name):
            options = {key: settings[key] for key in ("n_permutations", "level", "null_layers")}
            found.append(
                measured(
                    name, xs, ys, folder.work / f"measure-{name}.safetensors",
                    seed=settings["seed"], progress=stages, **options,
                )
            )  # fmt: skip
    match = found[0].best()
    with watch.part("principal angles"):
        turned = angles(
            xs, ys, match, folder.work / "angles.safetensors",
            dims=settings["dims"], seed=settings["seed"], progress=stages,
        )  # fmt: skip
    del xs, ys
    whole = None
    if loud.any():
        with watch.part("with outliers"):
            everything = np.ones(sides.n, bool)
            xs, ys = (
                [side.view(key, everything, everything=True) for key in side.keys] for side in rows
            )
            whole = measured(
                found[0].name, xs, ys, folder.work / "with-outliers.safetensors",
                n_permutations=0, level=0.5, null_layers=1, seed=0, progress=stages,
                title=f"{found[0].name} with outliers",
            )  # fmt: skip
    about = {
        "n": sides.n,
        "n_used": int(clean.sum()),
        "n_outlier_tokens": {
            side.label: int(one.loud_count.sum())
            for side, one in zip((sides.a, sides.b), rows, strict=True)
        },
        "n_with_outliers": int(loud.sum()),
    }
    report = {
        "schema": SCHEMA,
        "a": _side(sides.a, rows[0], found[0].order),
        "b": _side(sides.b, rows[1], found[0].order.T),
        "settings": settings,
        "samples": about,
        "measures": [_measure(one) for one in found],
        "matches": _matches(found, sides),
        "angles": {name: _plain(value) for name, value in turned.items()},
        "with_outliers": None if whole is None else _measure(whole),
        "facts": run_facts() | {"seconds": watch.seconds, "seed": settings["seed"]},
    }
    said = findings(report, found, turned, whole)
    report["verdict"] = {"text": " ".join(one["text"] for one in said), "findings": said}
    return report, [*found, *([] if whole is None else [whole])], turned


def _side(side: Side, rows: Rows, order: np.ndarray) -> dict[str, Any]:
    sites = [
        {"key": site.key, "layer": site.layer if site.layer >= 0 else None, "kind": site.kind,
         "head": site.head, "width": rows.width(site.key)}
        for site in side.source.sites
    ]  # fmt: skip
    return side.facts | {"sites": sites, "blocks": blocks(order)}


def _measure(one: Measured) -> dict[str, Any]:
    about = MEASURES[one.name]
    return {
        "name": one.name,
        "formula": about.formula,
        "is_distance": about.is_distance,
        "matrix": _plain(one.matrix),
        "null_quantile": None if one.null is None else _plain(one.null),
        "null_at": None if one.null_at is None else [at.tolist() for at in one.null_at],
        "n_above": None if one.above is None else int(one.above.sum()),
        "best": one.best(),
        "warnings": one.warnings,
    }


def _matches(found: list[Measured], sides: Sides) -> list[dict[str, Any]]:
    rows = []
    for i, site in enumerate(sides.a.source.sites):
        row: dict[str, Any] = {"a": site.key}
        for one in found:
            j = one.best()[i]
            row[one.name] = None if j is None else {
                "b": sides.b.source.sites[j].key,
                "value": float(one.matrix[i, j]),
                "null_quantile": None if one.null is None else _finite(one.null[i, j]),
            }  # fmt: skip
        rows.append(row)
    return rows


def _plain(values: np.ndarray) -> list[Any]:
    if values.ndim > 1:
        return [_plain(line) for line in values]
    return [_finite(value) for value in values]


def _finite(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
