"""From a calibrated model to evaluated caches: plans, their rates, their perplexities and bytes."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import Any

import numpy as np

from subspan import _checks
from subspan.activations import Model
from subspan.compression._frame import evaluated, noted
from subspan.compression._reading import Reading
from subspan.compression.caches.moments import CacheMoments, calibrate_cache
from subspan.compression.caches.plan import CachePlan, plan_cache, power
from subspan.compression.caches.rates import Ranks, allocate_rates, search_rates
from subspan.compression.caches.training import train_cache
from subspan.compression.perplexity import perplexity
from subspan.errors import InvalidArgumentError
from subspan.report import RunFolder, Stopwatch
from subspan.report.result import Progress

__all__ = ["FUNCTION", "CacheWorker"]

FUNCTION = "kv"
_LEVELS = 8  # steps of the ranks, where none is given


class CacheWorker:
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
        _checks.integer(FUNCTION, "step", self.step, low=1, high=self.width)
        self.least = self.step * max(1, ceil(settings["least"] * self.width / self.step - 1e-9))
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
        share, lowest = self.least / self.width, self.settings["kept"][-1]
        if lowest < share:
            raise InvalidArgumentError(
                f"[{FUNCTION}] kept must be at least {share:g} where no head may fall below "
                f"{self.least} of {self.width} dimensions, got {lowest}. Keep more, or lower least "
                "or step"
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
            return allocate_rates(errors, self._budget(kept), step=self.step, least=self.least)
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
            least=self.least, progress=self._progress("search"),
        )  # fmt: skip
        return {f"{kept:g}": ranks.tolist() for kept, ranks in zip(shares, found, strict=True)}

    def _cache(self, plan: CachePlan, made: list[Any] | None = None) -> Callable[[], Any]:
        from subspan.compression.caches.compressed import CompressedCache

        def fresh() -> Any:
            cache = CompressedCache(plan, dtype=self.settings["dtype"])
            if made is not None:
                made[:] = [cache]
            return cache

        return fresh

    def _evaluated(self, plan: CachePlan) -> dict[str, Any]:
        """Return perplexities, and the bytes that the last window's cache really had."""
        made: list[Any] = []
        found = evaluated(FUNCTION, self.model, self.reading, self.stages, self._cache(plan, made))
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
