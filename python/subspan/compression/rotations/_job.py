"""The job on rotations: calibrate, round in every basis, evaluate every point, write the report."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from subspan import _checks
from subspan.activations import Model, load_model
from subspan.activations.sources import set_threads
from subspan.compression._frame import causal, choices, ended, evaluated, noted
from subspan.compression._reading import Reading, read
from subspan.compression._turns import BASES
from subspan.compression.layers import evaluating, inputs_of
from subspan.compression.matrices import Integers
from subspan.compression.rotations._page import page, verdict
from subspan.compression.rotations._pictures import pictures
from subspan.compression.rotations._report import UNIFORM, content, sizes
from subspan.compression.rotations.basis import Precision, Rotation, frame_of
from subspan.compression.rotations.model import rotated, round_weights
from subspan.compression.rotations.moments import RotationMoments, calibrate_rotation
from subspan.compression.storage import bits_of
from subspan.compression.weights import save
from subspan.errors import InvalidArgumentError
from subspan.report import RunFolder, Stopwatch
from subspan.report.result import Progress, Result, silent

__all__ = ["RotationReport", "rotate"]

_FUNCTION = "rotate"
_SCHEMA = "subspan.rotate/1"
_RESULTS = ("report.json", "figures", "models")
_PARTS = ("weights", "activations", "cache")


@dataclass(frozen=True)
class RotationReport(Result):
    """A finished study of rotations.

    Attributes
    ----------
    path : Path
        The output folder; ``models/<scheme>-<bits>`` in it are for `load`.
    report : dict
        The content of ``report.json``.
    """

    schema: ClassVar[str] = _SCHEMA

    def perplexities(self, text: str) -> dict[tuple[str, int], float]:
        """Return the perplexity on a text by (scheme, bits)."""
        names = [one["name"] for one in self.report["texts"]]
        _checks.choice("RotationReport.perplexities", "text", text, names)
        return {
            (one["scheme"], one["bits"]): one["perplexity"][text] for one in self.report["points"]
        }


def rotate(
    model: Any,
    texts: Any,
    *,
    out: str | os.PathLike[str],
    schemes: str | Iterable[str] = ("none", "hadamard", "resq"),
    bits: int | Iterable[int] = (4, 8),
    high_bits: int = 8,
    high_fraction: float = 0.125,
    parts: str | Iterable[str] = _PARTS,
    block: int = 256,
    clip: bool = True,
    evaluation: Any = None,
    out_of_domain: Any = None,
    tokens: int = 8192,
    eval_tokens: int = 4096,
    window: int | None = None,
    dtype: str = "float16",
    store: bool = True,
    seed: int = 0,
    threads: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> RotationReport:
    """Round a language model to few bits in several bases, measure the cost, and write a report.

    Every combination of scheme and bits is made, evaluated and stored.

    Parameters
    ----------
    model : str, Path, Model or Hugging Face module
        A causal language model of the Llama family, as for `activations.load_model`; it is left as
        it was found.
    texts : str, Path, or iterable of them
        Calibration texts (a ``str`` is a text, a ``Path`` a file).
    out : path
        Output folder: new, empty, or holding an interrupted run of the same inputs.
    schemes : str or iterable of str
        "none" and "hadamard" (turned at random) have the same bits everywhere; "outliers" (the
        loudest channels), "pca" (the largest principal components) and "resq" (these, and turned at
        random inside both parts) give ``high_bits`` to a part of the coordinates.
    bits : int or iterable of int
        Of all, or of all other coordinates. Two widths of which the first is not smaller are left
        out.
    high_bits : int
        Of the high part.
    high_fraction : float in (0, 1)
        The high part of every basis.
    parts : str or iterable of str
        What is rounded: "weights", "activations" (inputs of matrices), "cache" (keys, values).
    block : int
        As for `calibrate_rotation`.
    clip : bool
        As for `round_weights`.
    evaluation, out_of_domain, tokens, eval_tokens, window
        As for `compress`.
    dtype : {"float16", "bfloat16", "float32"}
        Of stored scales, and what the dense model is counted at.
    store : bool
        Keep the models in the folder, if weights are rounded.
    seed : int
        Of the windows that calibrate and of the turns.
    threads, resume, overwrite, progress
        As for `compress`. A run goes on after the calibration and after each finished point.

    Returns
    -------
    RotationReport
        The report and its folder.

    Raises
    ------
    InvalidArgumentError
        An argument is wrong, or a text is too short.
    UnsupportedError
        The model is no causal language model of the Llama family.
    OutputError
        The folder cannot be used, or the disk is full. The state stays, so the same call resumes.

    Notes
    -----
    Memory: the weights of the blocks once more, and their integers. Bytes of weights are those of
    files, with scales and bases; bits at run time are those of what is rounded, with 16 bits a
    scale. Embedding and output head are not rounded.
    """
    stages = progress or silent
    watch = Stopwatch()
    chosen = choices(_FUNCTION, "schemes", schemes, BASES)
    widths = _widths(bits)
    rounded = choices(_FUNCTION, "parts", parts, _PARTS)
    settings: dict[str, Any] = {
        "schemes": chosen, "bits": widths, "parts": rounded,
        "high_bits": _checks.integer(_FUNCTION, "high_bits", high_bits, low=2, high=16),
        "high_fraction": _share(high_fraction),
        "block": _checks.integer(_FUNCTION, "block", block, low=2),
        "seed": _checks.integer(_FUNCTION, "seed", seed, low=0),
        "clip": clip, "dtype": dtype, "store": store and "weights" in rounded,
    }  # fmt: skip
    runs = [(a, b) for a in chosen for b in widths if a in UNIFORM or b < high_bits]
    if not runs:
        raise InvalidArgumentError(
            f"[{_FUNCTION}] bits must be below the high bits ({high_bits}), got {widths}"
        )
    for name, value in (("tokens", tokens), ("eval_tokens", eval_tokens)):
        _checks.integer(_FUNCTION, name, value, low=2)
    bits_of(_FUNCTION, dtype)
    folder = RunFolder(out, kind=_FUNCTION, results=_RESULTS)
    folder.check(resume=resume, overwrite=overwrite)
    if threads is not None:
        set_threads(_FUNCTION, threads, model=True)
    with watch.part("loading"):
        stages("loading", 0, 1)
        opened = causal(_FUNCTION, load_model(model))
        frame_of(_FUNCTION, opened)
        reading = read(
            opened, texts, evaluation, out_of_domain, tokens=tokens, eval_tokens=eval_tokens,
            window=window, seed=seed, function=_FUNCTION,
        )  # fmt: skip
    settings |= {
        "window": reading.window, "calibration_tokens": sum(map(len, reading.calibration)),
    }  # fmt: skip
    identity = {"schema": _SCHEMA, "settings": settings, "model": opened.fingerprint}
    with folder.held(identity | {"texts": reading.fingerprint}, overwrite=overwrite) as resumed:
        worker = _Worker(folder, opened, reading, settings, stages, watch)
        dense = worker.dense()
        points = []
        for number, run in enumerate(runs):
            stages("points", number, len(runs))
            points.append(worker.point(*run))
        report = {"schema": _SCHEMA} | content(
            opened, reading, worker.frame, worker.found, settings, dense, points
        )
        report["facts"] = {"seed": seed, "resumed": resumed}
        stored = ["models"] if settings["store"] else []
        ended(folder, report, (verdict, pictures, page), stored, stages=stages, watch=watch)
    return RotationReport(folder.path, report)


def _widths(bits: int | Iterable[int]) -> list[int]:
    asked = list(bits) if isinstance(bits, Iterable) else [bits]
    found = {_checks.integer(_FUNCTION, "bits", one, low=2, high=16) for one in asked}
    if not found:
        raise InvalidArgumentError(f"[{_FUNCTION}] bits must name at least one width, got none")
    return sorted(found)


def _share(high_fraction: float) -> float:
    share = _checks.real(_FUNCTION, "high_fraction", high_fraction, low=0.0, high=1.0)
    if share in {0.0, 1.0}:
        raise InvalidArgumentError(
            f"[{_FUNCTION}] high_fraction must be between 0 and 1, got {share:g}"
        )
    return share


class _Worker:
    """Points of one model, made when they are first asked for and kept in the run's folder."""

    def __init__(  # noqa: PLR0917
        self, folder: RunFolder, model: Model, reading: Reading, settings: dict[str, Any],
        stages: Progress, watch: Stopwatch,
    ) -> None:  # fmt: skip
        self.work, self.model, self.reading = folder.work, model, reading
        self.settings, self.stages, self.watch = settings, stages, watch
        self.frame = frame_of(_FUNCTION, model)
        with watch.part("calibration"):
            self.found = self._calibrated()

    def dense(self) -> dict[str, Any]:
        """Return what the model is worth as it is, and rotated but not rounded."""

        def make() -> dict[str, Any]:
            with self.watch.part("evaluation"):
                found = evaluated(_FUNCTION, self.model, self.reading, self.stages)
                return found | {"rotation_alone": self._rotation_alone()}

        return noted(self.work / "dense.json", make)

    def point(self, scheme: str, bits: int) -> dict[str, Any]:
        """Return what a point cost and what it has, from its note if it is there."""
        name = f"{scheme}-{bits}"

        def make() -> dict[str, Any]:
            precision = self._precision(scheme, bits)
            with self.watch.part("rounding"):
                rotation = self.rotation(scheme).stored()
                made: dict[str, Integers] = {}
                if "weights" in precision.parts:
                    made = round_weights(
                        self.model, rotation, precision, clip=self.settings["clip"],
                        dtype=self.settings["dtype"],
                        progress=lambda done, total: self.stages("weights", done, total),
                    )  # fmt: skip
            with (
                self.watch.part("evaluation"),
                rotated(self.model, rotation, made, precision) as meters,
            ):
                found = evaluated(_FUNCTION, self.model, self.reading, self.stages)
            found |= {"scheme": scheme, "bits": bits}
            found |= sizes(self.frame, rotation, precision, made, meters, self.value_bits)
            if self.settings["store"]:
                about = {key: found[key] for key in ("scheme", "bits", "bytes")}
                about["calibration"] = self.reading.fingerprint
                save(
                    self.work / "models" / name, made, base=self.model, rotation=rotation,
                    precision=precision, dtype=self.settings["dtype"], facts=about,
                )  # fmt: skip
            return found

        return noted(self.work / f"{name}.json", make)

    @property
    def value_bits(self) -> int:
        """Bits of a stored value that is not rounded."""
        return bits_of(_FUNCTION, self.settings["dtype"])

    def rotation(self, scheme: str) -> Rotation:
        """Return the bases of a scheme."""
        return self.found.rotation(
            scheme, high_fraction=self.settings["high_fraction"], seed=self.settings["seed"]
        )

    def _precision(self, scheme: str, bits: int) -> Precision:
        share = 0.0 if scheme in UNIFORM else self.settings["high_fraction"]
        return Precision(bits, self.settings["high_bits"], share, tuple(self.settings["parts"]))

    def _calibrated(self) -> RotationMoments:
        file = self.work / "moments.npz"
        if file.exists():
            return RotationMoments.load(file)
        found = calibrate_rotation(
            self.model, self.reading.calibration, block=self.settings["block"],
            progress=lambda done, total: self.stages("calibration", done, total),
        )  # fmt: skip
        found.save(file)
        return found

    def _rotation_alone(self) -> dict[str, Any]:
        """Return how far logits move in the bases of the last scheme, on one window."""
        import torch

        inputs, _ = inputs_of(self.model, self.reading.evaluation[0].batches[0])
        scheme = self.settings["schemes"][-1]
        with evaluating(self.model.hf), torch.no_grad():
            before = self.model.hf(**inputs).logits.double()
            with rotated(self.model, self.rotation(scheme)):
                after = self.model.hf(**inputs).logits.double()
        return {
            "scheme": scheme,
            "logits_moved": float((after - before).abs().max()),
            "logits_size": float(before.abs().max()),
        }
