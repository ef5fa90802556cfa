"""The job on caches: calibrate, find bases and rates, evaluate every point, write the report."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from subspan import _checks
from subspan.activations import Model, load_model
from subspan.activations.sources import set_threads
from subspan.compression._frame import causal, choices, ended, evaluated, noted, ratios, texts_of
from subspan.compression._reading import Reading, read
from subspan.compression.caches._page import page, verdict
from subspan.compression.caches._pictures import pictures
from subspan.compression.caches._points import FUNCTION, CacheWorker
from subspan.compression.caches.moments import check_attention
from subspan.compression.caches.plan import CACHE_METHODS
from subspan.compression.storage import bits_of
from subspan.report import RunFolder, Stopwatch
from subspan.report.result import Progress, Result, silent

__all__ = ["CacheCompression", "compress_cache"]

_SCHEMA = "subspan.kv/1"
_RESULTS = ("report.json", "figures", "plans")


@dataclass(frozen=True)
class CacheCompression(Result):
    """A finished compression of a cache.

    Attributes
    ----------
    path : Path
        The output folder; ``plans/<method>-<allocation>-<kept>.safetensors`` in it are for
        `CachePlan.load`.
    report : dict
        The content of ``report.json``.
    """

    schema: ClassVar[str] = _SCHEMA


def compress_cache(
    model: Any,
    texts: Any,
    *,
    out: str | os.PathLike[str],
    methods: str | Iterable[str] = ("pca", "loss-aware"),
    kept: float | Iterable[float] = (0.75, 0.5),
    allocations: str | Iterable[str] = ("uniform", "loss"),
    evaluation: Any = None,
    out_of_domain: Any = None,
    tokens: int = 8192,
    eval_tokens: int = 4096,
    window: int | None = None,
    step: int | None = None,
    least: float = 0.375,
    training: int = 200,
    rate: float = 1e-3,
    search_tokens: int = 512,
    dtype: str = "float16",
    store: bool = True,
    seed: int = 0,
    threads: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> CacheCompression:
    """Hold the keys and values of a language model in fewer dimensions, measure the cost, report.

    Every combination of method, allocation and kept ratio is made and evaluated with a
    `CompressedCache`, whose bytes are measured.

    Parameters
    ----------
    model : str, Path, Model or Hugging Face module
        A causal language model, as for `activations.load_model`; it is left as it was found.
    texts : str, Path, or iterable of them
        Calibration texts (a ``str`` is a text, a ``Path`` a file).
    out : path
        Output folder: new, empty, or holding an interrupted run of the same inputs.
    methods : str or iterable of str
        "channels", "pca", "score-aware", "loss-aware" as `plan_cache`; "trained" as `train_cache`.
    kept : float or iterable of float
        Bytes of the cache to keep, keys and values together, in (0, 1].
    allocations : str or iterable of str
        "uniform": the same rank for every head. "loss": one budget for all heads of keys and
        values, for the least loss that the moments of gradients predict (`allocate_rates`).
        "search": dimensions are taken, ``step`` at a time, where the measured loss on calibration
        tokens rises least (`search_rates`); minutes to hours on a CPU.
    evaluation, out_of_domain : str, Path, or iterable of them, optional
        Held-out texts of the same kind as the calibration, and of another. Without ``evaluation``
        the last tenth of each calibration text is held out.
    tokens, eval_tokens : int
        Calibration tokens in all, drawn evenly from the texts; tokens of each text that judges.
    window : int, optional
        Tokens per window; by default 512, or the context length if that is shorter.
    step : int, optional
        Where ranks are not uniform they are multiples of this; by default an eighth of a head.
    least : float in [0, 1]
        No head falls below this part of its dimensions, where ranks are not uniform: what is
        predicted for small ranks is too good to be true.
    training, rate : int, float
        Steps and rate of `train_cache`, a window each.
    search_tokens : int
        Calibration tokens of each measurement of a search.
    dtype : {"float16", "bfloat16", "float32"}
        Of stored numbers.
    store : bool
        Keep the plans in the folder.
    seed : int
        Of the windows that calibrate, of the gradients' tokens and of the training.
    threads : int, optional
        Threads of the native core and of the model.
    resume, overwrite : bool
        As for `atlas.atlas`. A run goes on after the calibration, after each training and search,
        and after each finished point.
    progress : callable, optional
        Called as ``progress(stage, done, total)``.

    Returns
    -------
    CacheCompression
        The report and its folder.

    Raises
    ------
    InvalidArgumentError
        An argument is wrong, a text is too short, or a target cannot be met.
    UnsupportedError
        The model is no causal language model whose layers attend to all earlier tokens.
    OutputError
        The folder cannot be used, or the disk is full. The state stays, so the same call resumes.

    Notes
    -----
    Bases and means are stored once for a model, and are counted apart.
    """
    stages = progress or silent
    watch = Stopwatch()
    settings: dict[str, Any] = {
        "methods": choices(FUNCTION, "methods", methods, (*CACHE_METHODS, "trained")),
        "allocations": choices(FUNCTION, "allocations", allocations, ("uniform", "loss", "search")),
        "kept": ratios(FUNCTION, kept),
        "training": _checks.integer(FUNCTION, "training", training, low=1),
        "rate": _checks.real(FUNCTION, "rate", rate, low=0.0),
        "least": _checks.real(FUNCTION, "least", least, low=0.0, high=1.0),
        "search_tokens": _checks.integer(FUNCTION, "search_tokens", search_tokens, low=2),
        "seed": _checks.integer(FUNCTION, "seed", seed, low=0),
        "dtype": dtype, "store": store, "bits": bits_of(FUNCTION, dtype),
    }  # fmt: skip
    for name, value in (("tokens", tokens), ("eval_tokens", eval_tokens)):
        _checks.integer(FUNCTION, name, value, low=2)
    if step is not None:
        _checks.integer(FUNCTION, "step", step, low=1)
    folder = RunFolder(out, kind=FUNCTION, results=_RESULTS)
    folder.check(resume=resume, overwrite=overwrite)
    if threads is not None:
        set_threads(FUNCTION, threads, model=True)
    with watch.part("loading"):
        stages("loading", 0, 1)
        opened = causal(FUNCTION, load_model(model))
        check_attention(FUNCTION, opened)
        reading = read(
            opened, texts, evaluation, out_of_domain, tokens=tokens, eval_tokens=eval_tokens,
            window=window, seed=seed, function=FUNCTION,
        )  # fmt: skip
    settings |= {
        "window": reading.window, "step": step,
        "calibration_tokens": sum(map(len, reading.calibration)),
    }  # fmt: skip
    identity = {"schema": _SCHEMA, "settings": settings, "model": opened.fingerprint}
    with folder.held(identity | {"texts": reading.fingerprint}, overwrite=overwrite) as resumed:
        worker = CacheWorker(folder, opened, reading, settings, stages, watch)
        with watch.part("evaluation"):
            dense = noted(
                folder.work / "dense.json", lambda: evaluated(FUNCTION, opened, reading, stages)
            )
        runs = [
            (a, b, c)
            for a in settings["methods"]
            for b in settings["allocations"]
            for c in settings["kept"]
        ]
        points = []
        for number, run in enumerate(runs):
            stages("points", number, len(runs))
            points.append(worker.point(*run))
        report = _report(opened, reading, worker, settings, dense, points)
        report["facts"] = {"seed": seed, "resumed": resumed}
        stored = ["plans"] if store else []
        ended(folder, report, (verdict, pictures, page), stored, stages=stages, watch=watch)
    return CacheCompression(folder.path, report)


def _report(  # noqa: PLR0917
    model: Model, reading: Reading, worker: CacheWorker, settings: dict[str, Any],
    dense: dict[str, Any], points: list[dict[str, Any]],
) -> dict[str, Any]:  # fmt: skip
    (layers, heads), widths = worker.found.shape, worker.found.widths
    whole = layers * heads * sum(widths) * settings["bits"] // 8
    return {
        "schema": _SCHEMA,
        "model": {
            "name": model.name,
            "path": str(model.path or model.name),
            "hash": model.fingerprint,
            "n_parameters": model.n_parameters,
            "layers": layers,
            "heads": heads,
            "dimensions": widths[0],
            "context": model.context,
            "bytes_per_token": whole,
        },
        "settings": settings | {"step": worker.step, "keys": "after rotary embedding"},
        "calibration": {
            "texts": list(reading.names),
            "tokens": worker.found.n_tokens,
            "hash": reading.fingerprint,
        },
        "texts": texts_of(reading),
        "dense": dense,
        "points": points,
    }
