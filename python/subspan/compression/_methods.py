"""From a calibrated model to replacements: the methods by name, and what each matrix gets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subspan.compression.allocation import Options, allocate, rank_options
from subspan.compression.calibration import Calibration
from subspan.compression.dictionary import sparse_dictionary
from subspan.compression.factors import Factors
from subspan.compression.layers import Weight, matrix_of
from subspan.compression.lowrank import activation_svd, fisher_svd, truncated_svd, whitened_svd
from subspan.compression.matrices import Dense, Replacement
from subspan.compression.storage import dense_storage
from subspan.errors import InvalidArgumentError

__all__ = ["ALLOCATIONS", "DICTIONARIES", "METHODS", "Worker", "needs_gradients"]

DICTIONARIES = {"ksvd-dictionary": "ksvd", "orthogonal-dictionary": "orthogonal"}
METHODS = ("svd", "asvd", "fwsvd", "whitened-svd", "two-sided-svd", *DICTIONARIES)
ALLOCATIONS = ("uniform", "error", "loss")
_STACK = 8  # matrices that are factorised at once

Stage = Callable[[str, int, int], None]


def needs_gradients(methods: Sequence[str], allocations: Sequence[str]) -> bool:
    """Say whether a run needs a backward pass."""
    return "loss" in allocations or bool({"fwsvd", "two-sided-svd"} & set(methods))


class Worker:
    """Factors and curves of one model, made when they are first asked for."""

    def __init__(
        self, weights: Sequence[Weight], found: Calibration, *, bits: int, least: float,
        dictionary: dict[str, Any], progress: Stage,
    ) -> None:  # fmt: skip
        self.weights, self.found, self.bits, self.least = weights, found, bits, least
        self.dictionary, self.progress = dictionary, progress
        self._held: tuple[str, dict[str, Factors]] = ("", {})
        self._curves: dict[tuple[str, str], dict[str, NDArray[np.float64]]] = {}

    def make(self, method: str, allocation: str, kept: float) -> dict[str, Replacement]:
        """Return the replacement of every matrix, together within ``kept`` of the dense bytes."""
        if method in DICTIONARIES:
            return self._dictionaries(method, allocation, kept)
        factors = self.factors(method)
        if allocation == "uniform":
            return {name: one.cut(kept=kept) for name, one in factors.items()}
        return {
            name: factors[name].cut(rank=rank) if rank else self._dense(factors[name])
            for name, rank in self._ranks(method, allocation, kept).items()
        }

    def factors(self, method: str) -> dict[str, Factors]:
        """Return the factors of a low-rank method; those of the last one are held."""
        if self._held[0] != method:
            self._held = ("", {})
            made: dict[str, Factors] = {}
            for stack in self._stacks():
                whole = self._factorise(method, stack)
                made |= {weight.name: whole[place] for place, weight in enumerate(stack)}
                self.progress("factors", len(made), len(self.weights))
            self._held = (method, made)
        return self._held[1]

    def relative_error(self, method: str, name: str, made: Replacement) -> float:
        """Return the error of a layer's output over the output, root mean square."""
        if method in DICTIONARIES or made.kind == "dense":
            return float(made.relative_error)
        curve = self.curves(method, "error")[name]
        return float(np.sqrt(curve[made.rank]))  # type: ignore[attr-defined]

    def curves(self, method: str, allocation: str) -> dict[str, NDArray[np.float64]]:
        """Return for each matrix what every rank loses: of its output's power, or of the loss."""
        key = (method, allocation)
        if key not in self._curves:
            curves = {}
            for name, one in self.factors(method).items():
                h = self.found.outputs(name) if allocation == "loss" else None
                curve = one.errors(self.found.moments(name), h)
                scale = 0.5 if h is not None else 1.0 / curve[0] if curve[0] > 0 else 0.0
                curves[name] = np.minimum.accumulate(scale * curve)
            self._curves[key] = curves
        return self._curves[key]

    def _stacks(self) -> list[list[Weight]]:
        by_shape: dict[tuple[int, int], list[Weight]] = {}
        for weight in self.weights:
            by_shape.setdefault(weight.shape, []).append(weight)
        return [
            same[start : start + _STACK]
            for same in by_shape.values()
            for start in range(0, len(same), _STACK)
        ]

    def _factorise(self, method: str, stack: Sequence[Weight]) -> Factors:
        import torch

        names = [weight.name for weight in stack]
        w = torch.stack([matrix_of(weight.module).float().cpu() for weight in stack])
        found = self.found
        if method == "svd":
            return truncated_svd(w, names=names)
        if method == "asvd":
            return activation_svd(w, np.stack([found.scale(name) for name in names]), names=names)
        if method == "fwsvd":
            i = np.stack([found.importance(name) for name in names])
            return fisher_svd(w, i, names=names)
        outputs = None
        if method == "two-sided-svd":
            outputs = [found.outputs(name) for name in names]
        moments = [found.moments(name) for name in names]
        return whitened_svd(w, moments, outputs=outputs, precision="auto", names=names)

    def _ranks(self, method: str, allocation: str, kept: float) -> dict[str, int]:
        """Return the rank of every matrix; 0 is dense."""
        curves = self.curves(method, allocation)
        options: list[Options] = []
        total = 0
        for weight in self.weights:
            m, n = weight.shape
            options.append(
                rank_options(curves[weight.name], m, n, bits=self.bits, least=self.least)
            )
            total += dense_storage(m, n, bits=self.bits).n_bytes
        budget = int(kept * total)
        cheapest = sum(int(one.costs[0]) for one in options)
        if cheapest > budget:
            raise InvalidArgumentError(
                f"[compress] kept must be at least {cheapest / total:.3f} where no matrix may fall "
                f"below {self.least} of its bytes, got {kept}. Keep more, or lower least"
            )
        found = allocate(options, budget)
        return {w.name: int(rank) for w, rank in zip(self.weights, found.sizes, strict=True)}

    def _dictionaries(self, method: str, allocation: str, kept: float) -> dict[str, Replacement]:
        shares = dict.fromkeys((weight.name for weight in self.weights), kept)
        if allocation != "uniform":  # what low rank would give each matrix, in bytes
            ranks = self._ranks("whitened-svd", allocation, kept)
            for weight in self.weights:
                (m, n), rank = weight.shape, ranks[weight.name]
                shares[weight.name] = rank * (m + n) / (m * n) if rank else 1.0
        made: dict[str, Replacement] = {}
        for weight in self.weights:
            matters = None
            if allocation == "loss":
                matters = np.diag(self.found.outputs(weight.name).second_moment())
            made[weight.name] = sparse_dictionary(
                matrix_of(weight.module).float().cpu().contiguous(),
                self.found.moments(weight.name), kept=shares[weight.name], importance=matters,
                dictionary=DICTIONARIES[method], bits=self.bits, **self.dictionary,
            )  # fmt: skip
            self.progress("dictionaries", len(made), len(self.weights))
        return made

    @staticmethod
    def _dense(one: Factors) -> Dense:
        zero = np.zeros_like(one.total)
        return Dense(zero, one.total, "kept dense by the allocation", one.weight)
