"""The job on caches: calibrate, find bases and rates, evaluate every point, write the report."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from subspan import _checks
from subspan.activations import Model, load_model
from subspan.activations.sources import set_threads
from subspan.compression._cache_page import page, verdict
from subspan.compression._cache_pictures import pictures
from subspan.compression._frame import causal, choices, evaluated, noted, ratios, texts_of
from subspan.compression._reading import Reading, read
from subspan.compression.cache_moments import CacheMoments, calibrate_cache, check_attention
from subspan.compression.cache_plan import CACHE_METHODS, CachePlan, plan_cache, power
from subspan.compression.cache_rates import Ranks, allocate_rates, search_rates
from subspan.compression.cache_training import train_cache
from subspan.compression.perplexity import perplexity
from subspan.compression.storage import bits_of
from subspan.errors import InvalidArgumentError
from subspan.report import RunFolder, Stopwatch, run_facts
from subspan.report.result import Progress, Result, finish, silent

__all__ = ["CacheCompression", "compress_cache"]

_FUNCTION = "kv"
_SCHEMA = "subspan.kv/1"
_RESULTS = ("report.json", "figures", "plans")
_METHODS = (*CACHE_METHODS, "trained")
_RATES = ("uniform", "loss", "search")
_LEVELS = 8  # steps of the ranks, where none is given


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
        "methods": choices(_FUNCTION, "methods", methods, _METHODS),
        "allocations": choices(_FUNCTION, "allocations", allocations, _RATES),
        "kept": ratios(_FUNCTION, kept),
        "training": _checks.integer(_FUNCTION, "training", training, low=1),
        "rate": _checks.real(_FUNCTION, "rate", rate, low=0.0),
        "search_tokens": _checks.integer(_FUNCTION, "search_tokens", search_tokens, low=2),
        "seed": _checks.integer(_FUNCTION, "seed", seed, low=0),
        "dtype": dtype, "store": store, "bits": bits_of(_FUNCTION, dtype),
    }  # fmt: skip
    for name, value in (("tokens", tokens), ("eval_tokens", eval_tokens)):
        _checks.integer(_FUNCTION, name, value, low=2)
    if step is not None:
        _checks.integer(_FUNCTION, "step", step, low=1)
    folder = RunFolder(out, kind=_FUNCTION, results=_RESULTS)
    folder.check(resume=resume, overwrite=overwrite)
    if threads is not None:
        set_threads(_FUNCTION, threads, model=True)
    with watch.part("loading"):
        stages("loading", 0, 1)
        opened = causal(_FUNCTION, load_model(model))
        check_attention(_FUNCTION, opened)
        reading = read(
            opened, texts, evaluation, out_of_domain, tokens=tokens, eval_tokens=eval_tokens,
            window=window, seed=seed, function=_FUNCTION,
        )  # fmt: skip
    settings |= {
        "window": reading.window, "step": step,
        "calibration_tokens": sum(map(len, reading.calibration)),
    }  # fmt: skip
    identity = {"schema": _SCHEMA, "settings": settings, "model": opened.fingerprint}
    with folder.held(identity | {"texts": reading.fingerprint}, overwrite=overwrite) as resumed:
        worker = _Worker(folder, opened, reading, settings, stages, watch)
        with watch.part("evaluation"):
            dense = noted(
                folder.work / "dense.json", lambda: evaluated(_FUNCTION, opened, reading, stages)
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
        report["facts"] = run_facts() | {"seconds": watch.seconds, "seed": seed, "resumed": resumed}
        report["verdict"] = {"text": " ".join(verdict(report))}
        stages("report", 0, 1)
        stage = folder.fresh_stage()
        if store:
            # links, so that an interrupted report finds them again
            shutil.copytree(folder.work / "plans", stage / "plans", copy_function=os.link)
        finish(folder, report, pictures(report), page, watch)
        stages("report", 1, 1)
    return CacheCompression(folder.path, report)


class _Worker:
    """Plans of one model, made when they are first asked for and kept in the run's folder."""

    def __init__(  # noqa: PLR0917
        self, folder: RunFolder, model: Model, reading: Reading, settings: dict[str, Any],
        stages: Progress, watch: Stopwatch,
    ) -> None:  # fmt: skip
        self.work, self.model, self.reading = folder.work, model, reading
        self.settings, self.stages, self.watch = settings, stages, watch
        with watch.part("calibration"):
            self.found = self._calibrated()
        self.width = self.found.widths[0]
        self.step = settings["step"] or max(1, self.width // _LEVELS)
        _checks.integer(_FUNCTION, "step", self.step, low=1, high=self.width)
        if settings["allocations"] != ["uniform"]:
            self._need_room()
        self._held: CachePlan | None = None

    def point(self, method: str, allocation: str, kept: float) -> dict[str, Any]:
        """Return what a point cost and what it has, from its note if it is there."""
        name = f"{method}-{allocation}-{kept:g}"

        def make() -> dict[str, Any]:
            with self.watch.part(method):
                whole = self._whole(method)
                plan = whole.with_ranks(self._ranks(whole, allocation, kept))
            with self.watch.part("evaluation"):
                found = self._evaluated(plan)
            if self.settings["store"]:
                (self.work / "plans").mkdir(exist_ok=True)
                plan.save(self.work / "plans" / f"{name}.safetensors", base=self.model)
            found |= {"method": method, "allocation": allocation, "kept": kept}
            return found | self._sizes(whole, plan)

        return noted(self.work / f"{name}.json", make)

    def _calibrated(self) -> CacheMoments:
        file = self.work / "moments.npz"
        if file.exists():
            return CacheMoments.load(file)
        gradients = (
            "loss-aware" in self.settings["methods"] or "loss" in self.settings["allocations"]
        )
        found = calibrate_cache(
            self.model, self.reading.calibration, gradients=gradients, seed=self.settings["seed"],
            progress=self._progress("calibration"),
        )  # fmt: skip
        found.save(file)
        return found

    def _need_room(self) -> None:
        least, lowest = self.step / self.width, self.settings["kept"][-1]
        if lowest < least:
            raise InvalidArgumentError(
                f"[{_FUNCTION}] kept must be at least {least:g} where ranks are multiples of "
                f"{self.step} of {self.width}, got {lowest}. Keep more, or take a smaller step"
            )

    def _whole(self, method: str) -> CachePlan:
        """Return the plan of a method with all dimensions; the last one is held."""
        if self._held is None or self._held.method != method:
            self._held = self._trained() if method == "trained" else plan_cache(self.found, method)
        return self._held

    def _trained(self) -> CachePlan:
        file = self.work / "trained.safetensors"
        if not file.exists():
            made = train_cache(
                self.model, self.reading.calibration, self.found, steps=self.settings["training"],
                rate=self.settings["rate"], seed=self.settings["seed"],
                progress=self._progress("training"),
            )  # fmt: skip
            made.plan.save(file)
        return CachePlan.load(file)

    def _ranks(self, whole: CachePlan, allocation: str, kept: float) -> Ranks:
        if allocation == "uniform":
            return whole.cut(kept).ranks
        if allocation == "loss":
            errors = np.stack(whole.errors(self.found, "loss"))
            return allocate_rates(errors, self._budget(kept), step=self.step, least=self.step)
        found = noted(self.work / f"search-{whole.method}.json", lambda: self._searched(whole))
        return np.array(found[f"{kept:g}"], np.int64)

    def _budget(self, kept: float) -> int:
        layers, heads = self.found.shape
        return int(kept * layers * heads * sum(self.found.widths) + 1e-9)

    def _searched(self, whole: CachePlan) -> dict[str, Any]:
        few, seen = [], 0
        for batch in self.reading.calibration:
            if seen < self.settings["search_tokens"]:
                few.append(batch)
                seen += len(batch)

        def loss(ranks: Ranks) -> float:
            return perplexity(self.model, few, cache=self._cache(whole.with_ranks(ranks))).nats

        shares = self.settings["kept"]
        found = search_rates(
            loss, whole.ranks, [self._budget(kept) for kept in shares], step=self.step,
            least=self.step, progress=self._progress("search"),
        )  # fmt: skip
        return {f"{kept:g}": ranks.tolist() for kept, ranks in zip(shares, found, strict=True)}

    def _cache(self, plan: CachePlan, made: list[Any] | None = None) -> Callable[[], Any]:
        from subspan.compression.compressed_cache import CompressedCache

        def fresh() -> Any:
            cache = CompressedCache(plan, dtype=self.settings["dtype"])
            if made is not None:
                made[:] = [cache]
            return cache

        return fresh

    def _evaluated(self, plan: CachePlan) -> dict[str, Any]:
        """Return perplexities, and the bytes that the last window's cache really had."""
        made: list[Any] = []
        found = evaluated(_FUNCTION, self.model, self.reading, self.stages, self._cache(plan, made))
        tokens = made[0].get_seq_length()
        size = plan.storage(tokens=tokens, bits=self.settings["bits"])
        return found | {
            "measured": {"tokens": tokens, "bytes": made[0].nbytes, "predicted": size.n_bytes}
        }

    def _sizes(self, whole: CachePlan, plan: CachePlan) -> dict[str, Any]:
        bits = self.settings["bits"]
        layers = []
        errors, sizes = whole.errors(self.found, "attention"), power(self.found, "attention")
        for side, curves, ranks, whole_of in zip(
            ("keys", "values"), errors, plan.ranks, sizes, strict=True
        ):
            lost = np.take_along_axis(curves, ranks[..., None], axis=-1)[..., 0]
            each = np.sqrt(np.maximum(lost, 0.0) / np.where(whole_of > 0, whole_of, 1.0))
            for layer in range(len(ranks)):
                layers.append(
                    {
                        "layer": layer,
                        "of": side,
                        "ranks": ranks[layer].tolist(),
                        "relative_errors": each[layer].tolist(),
                        "relative_error": float(np.sqrt(np.square(each[layer]).mean())),
                    }
                )
        return {
            "layers": layers,
            "bytes": plan.storage(bits=bits).n_bytes,
            "basis_bytes": plan.basis_storage().n_bytes,
            "kept_bytes": plan.kept,
        }

    def _progress(self, stage: str) -> Callable[[int, int], object]:
        return lambda done, total: self.stages(stage, done, total)


def _report(  # noqa: PLR0917
    model: Model, reading: Reading, worker: _Worker, settings: dict[str, Any],
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
