"""The job itself: calibrate, factorise, evaluate every point, write the report."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from subspan import _checks
from subspan.activations import Model, load_model
from subspan.activations.sources import set_threads
from subspan.compression._frame import causal, choices, ended, evaluated, noted, ratios, texts_of
from subspan.compression._methods import ALLOCATIONS, METHODS, Worker, needs_gradients
from subspan.compression._page import page, verdict
from subspan.compression._pictures import pictures
from subspan.compression._reading import Reading, read
from subspan.compression.calibration import Calibration, calibrate
from subspan.compression.layers import Weight, find_weights
from subspan.compression.matrices import Replacement
from subspan.compression.storage import bits_of, dense_storage
from subspan.compression.weights import replaced, rounded, save
from subspan.errors import InvalidArgumentError
from subspan.report import RunFolder, Stopwatch, write_json
from subspan.report.result import Progress, Result, silent

__all__ = ["SCHEMA", "Compression", "compress"]

SCHEMA = "subspan.compress/1"
_RESULTS = ("report.json", "figures", "models")
_CHECKPOINT = 60.0  # seconds of calibration that an interruption may cost, or longer if files do


@dataclass(frozen=True)
class Compression(Result):
    """A finished compression.

    Attributes
    ----------
    path : Path
        The output folder; ``models/<method>-<allocation>-<kept>`` in it are for `load`.
    report : dict
        The content of ``report.json``.
    """

    schema: ClassVar[str] = SCHEMA

    def perplexities(self, text: str) -> dict[tuple[str, str, float], float]:
        """Return the perplexity on a text by (method, allocation, kept)."""
        names = [one["name"] for one in self.report["texts"]]
        if text not in names:
            raise InvalidArgumentError(
                f"[Compression.perplexities] text must be one of {', '.join(names)}, got {text!r}"
            )
        return {
            (one["method"], one["allocation"], one["kept"]): one["perplexity"][text]
            for one in self.report["points"]
        }


def compress(
    model: Any,
    texts: Any,
    *,
    out: str | os.PathLike[str],
    methods: str | Iterable[str] = "whitened-svd",
    kept: float | Iterable[float] = (0.9, 0.8, 0.6),
    allocations: str | Iterable[str] = "uniform",
    evaluation: Any = None,
    out_of_domain: Any = None,
    modules: str | Iterable[str] | None = None,
    tokens: int = 8192,
    eval_tokens: int = 4096,
    window: int | None = None,
    least: float = 0.2,
    iterations: int = 20,
    ratio: float = 2.0,
    dtype: str = "float16",
    store: bool = True,
    seed: int = 0,
    threads: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Compression:
    """Compress the linear layers of a language model, measure what it costs, and write a report.

    Every combination of method, allocation and kept ratio is made, evaluated and stored.

    Parameters
    ----------
    model : str, Path, Model or Hugging Face module
        A causal language model, as for `activations.load_model`; it is left as it was found.
    texts : str, Path, or iterable of them
        Calibration texts (a ``str`` is a text, a ``Path`` a file).
    out : path
        Output folder: new, empty, or holding an interrupted run of the same inputs.
    methods : str or iterable of str
        "svd", "asvd", "fwsvd", "whitened-svd", "two-sided-svd" (`whitened_svd` with the moments of
        gradients at the outputs), "ksvd-dictionary", "orthogonal-dictionary".
    kept : float or iterable of float
        Bytes to keep of those matrices, indices included, in (0, 1].
    allocations : str or iterable of str
        "uniform": the same kept ratio for every matrix. "error": one budget, for the least sum of
        relative squared output errors. "loss": one budget, for the least second-order increase of
        the loss, as the moments of inputs and of gradients predict it. Dictionaries get the bytes
        that whitened-svd would; with "loss", also weights for their rows.
    evaluation, out_of_domain : str, Path, or iterable of them, optional
        Held-out texts of the same kind as the calibration, and of another. Without ``evaluation``
        the last tenth of each calibration text is held out.
    modules : str or iterable of str, optional
        Patterns of module names, as `find_weights`; by default all linear layers in the blocks.
    tokens, eval_tokens : int
        Calibration tokens in all, drawn evenly from the texts; tokens of each text that judges.
    window : int, optional
        Tokens per window; by default 512, or the context length if that is shorter.
    least : float in [0, 1]
        No matrix falls below this part of its bytes where the allocation is not uniform.
    iterations, ratio : int, float
        Of `sparse_dictionary`.
    dtype : {"float16", "bfloat16", "float32"}
        Of stored values; the perplexities are those of the stored values.
    store : bool
        Keep the compressed models in the folder.
    seed : int
        Of the windows that calibrate and of the gradients' tokens.
    threads : int, optional
        Threads of the native core and of the model.
    resume, overwrite : bool
        As for `atlas.atlas`. A run goes on after each finished point, and in the calibration from
        its last checkpoint, at most a minute old unless writing one takes three seconds or more.
    progress : callable, optional
        Called as ``progress(stage, done, total)``.

    Returns
    -------
    Compression
        The report and its folder.

    Raises
    ------
    InvalidArgumentError
        An argument is wrong, a pattern matches nothing (near names are listed), a text is too
        short, or a target cannot be met.
    UnsupportedError
        The model is no causal language model.
    OutputError
        The folder cannot be used, or the disk is full. The state stays, so the same call resumes.

    Notes
    -----
    Memory: `calibrate`'s, and the factors of all matrices of one method (twice their weights).
    Bytes are those of the matrices that were matched, and of the whole model beside them.
    """
    stages = progress or silent
    watch = Stopwatch()
    chosen = choices("compress", "methods", methods, METHODS)
    ways = choices("compress", "allocations", allocations, ALLOCATIONS)
    shares = ratios("compress", kept)
    for name, value in (("tokens", tokens), ("eval_tokens", eval_tokens)):
        _checks.integer("compress", name, value, low=2)
    for name, value in (("seed", seed), ("iterations", iterations)):
        _checks.integer("compress", name, value, low=int(name == "iterations"))
    _checks.real("compress", "least", least, low=0.0, high=1.0)
    _checks.real("compress", "ratio", ratio, low=1.0)
    bits = bits_of("compress", dtype)
    folder = RunFolder(out, kind="compress", results=_RESULTS)
    folder.check(resume=resume, overwrite=overwrite)
    if threads is not None:
        set_threads("compress", threads, model=True)
    with watch.part("loading"):
        stages("loading", 0, 1)
        opened = causal("compress", load_model(model))
        weights = find_weights(opened, modules)
        reading = read(
            opened, texts, evaluation, out_of_domain,
            tokens=tokens, eval_tokens=eval_tokens, window=window, seed=seed,
        )  # fmt: skip
    settings = {
        "methods": chosen, "allocations": ways, "kept": shares, "least": least, "dtype": dtype,
        "modules": [weight.name for weight in weights], "window": reading.window,
        "iterations": iterations, "ratio": ratio, "seed": seed, "store": store,
        "calibration_tokens": sum(map(len, reading.calibration)),
    }  # fmt: skip
    identity = {"schema": SCHEMA, "settings": settings, "model": opened.fingerprint}
    with folder.held(identity | {"texts": reading.fingerprint}, overwrite=overwrite) as resumed:
        gradients = needs_gradients(chosen, ways)
        with watch.part("calibration"):
            found = _calibrated(folder, opened, reading, modules, gradients, seed, stages)
        worker = Worker(
            weights, found, bits=bits, least=least, progress=stages,
            dictionary={"iterations": iterations, "ratio": ratio, "seed": seed},
        )  # fmt: skip
        with watch.part("evaluation"):
            dense = noted(
                folder.work / "dense.json", lambda: evaluated("compress", opened, reading, stages)
            )
        points = []
        runs = [(a, b, c) for a in chosen for b in ways for c in shares]
        for number, (method, allocation, share) in enumerate(runs):
            stages("points", number, len(runs))
            note = folder.work / f"{method}-{allocation}-{share:g}.json"
            if not note.exists():
                with watch.part(method):
                    made = worker.make(method, allocation, share)
                with watch.part("evaluation"), replaced(opened, rounded(made, dtype)):
                    point = evaluated("compress", opened, reading, stages)
                point |= {"method": method, "allocation": allocation, "kept": share}
                point |= _sizes(worker, method, weights, made, bits)
                if store:
                    about = {key: point[key] for key in ("method", "allocation", "kept", "bytes")}
                    about["calibration"] = reading.fingerprint
                    save(folder.work / "models" / note.stem, made, base=opened, dtype=dtype,
                         facts=about)  # fmt: skip
                write_json(note, point)
            points.append(json.loads(note.read_text("utf-8")))
        report = _report(opened, weights, reading, found, settings, dense, points, bits)
        report["facts"] = {"seed": seed, "resumed": resumed}
        stored = ["models"] if store else []
        ended(folder, report, (verdict, pictures, page), stored, stages=stages, watch=watch)
    return Compression(folder.path, report)


def _calibrated(  # noqa: PLR0917
    folder: RunFolder, model: Model, reading: Reading, modules: Any, gradients: bool, seed: int,
    stages: Progress,
) -> Calibration:  # fmt: skip
    return calibrate(
        model, reading.calibration, modules=modules, gradients=gradients, seed=seed,
        checkpoint=folder.work / "calibration.npz", every=_CHECKPOINT,
        progress=lambda done, total: stages("calibration", done, total),
    )  # fmt: skip


def _sizes(
    worker: Worker, method: str, weights: list[Weight], made: dict[str, Replacement], bits: int
) -> dict[str, Any]:
    layers: list[dict[str, Any]] = []
    total = 0
    for weight in weights:
        one = made[weight.name]
        dense = dense_storage(*weight.shape, bits=bits)
        size = one.storage(bits=bits)
        total += size.n_bytes
        layers.append(
            {
                "name": weight.name,
                "kind": one.kind,
                "size": getattr(one, "rank", getattr(one, "atoms", None)),
                "bytes": size.to_dict(),
                "kept": size.kept(dense),
                "relative_error": worker.relative_error(method, weight.name, one),
                "note": one.note,
            }
        )
    return {"layers": layers, "bytes": total}


def _report(  # noqa: PLR0917
    model: Model, weights: list[Weight], reading: Reading, found: Calibration,
    settings: dict[str, Any], dense: dict[str, Any], points: list[dict[str, Any]], bits: int,
) -> dict[str, Any]:  # fmt: skip
    matched = sum(dense_storage(*weight.shape, bits=bits).n_bytes for weight in weights)
    whole = dense_storage(model.n_parameters, 1, bits=bits).n_bytes
    for point in points:
        point["kept_bytes"] = point["bytes"] / matched
        point["model_bytes"] = whole - matched + point["bytes"]
    return {
        "schema": SCHEMA,
        "model": {
            "name": model.name,
            "path": str(model.path or model.name),
            "hash": model.fingerprint,
            "n_parameters": model.n_parameters,
            "bytes": whole,
            "matched_bytes": matched,
        },
        "settings": settings,
        "calibration": {
            "texts": list(reading.names),
            "tokens": found.n_tokens,
            "inputs": len(found.inputs),
            "hash": reading.fingerprint,
        },
        "texts": texts_of(reading),
        "weights": [
            {"name": w.name, "layer": w.layer, "kind": w.kind, "shape": list(w.shape)}
            for w in weights
        ],
        "dense": dense,
        "points": points,
    }
