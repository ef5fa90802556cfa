"""Adam for the weights of an autoencoder: fused with what its unit rows ask for, or torch's.

Both keep the same state under the same names, so that a checkpoint of one goes on with the other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import torch

import subspan
from subspan.sae.training.config import TrainConfig

__all__ = ["FusedAdam", "Optimizer", "TorchAdam", "make_optimizer"]


class Optimizer(Protocol):
    """What the trainer asks of an optimiser."""

    def step(self, lr: float) -> float | None:
        """Update all parameters from their gradients; the norm of these where they are clipped."""

    def tensors(self) -> dict[str, Any]:
        """Return the running means: ``m.NAME`` and ``v.NAME``, and the counts, ``steps``."""

    def load(self, tensors: Mapping[str, Any]) -> None:
        """Take over what `tensors` returned."""


class FusedAdam:
    """`subspan.adam_step` on every parameter: the projection, Adam and unit rows in one pass.

    Parameters
    ----------
    sae : SAE
        Its parameters; the rows of ``w_dec`` are unit rows where its ``unit_norm`` says so.
    config : TrainConfig
    """

    def __init__(self, sae: Any, config: TrainConfig) -> None:
        self.parameters = dict(sae.named_parameters())
        self.unit = {"w_dec"} if sae.unit_norm else set()
        self.config = config
        self.m = {name: _zeros(p) for name, p in self.parameters.items()}
        self.v = {name: _zeros(p) for name, p in self.parameters.items()}
        self.steps = dict.fromkeys(self.parameters, 0)

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def step(self, lr: float) -> float | None:
        """Update all parameters that have a gradient."""
        present = {name: p for name, p in self.parameters.items() if p.grad is not None}
        norm, scale = None, 1.0
        if self.config.grad_clip is not None:
            norm = math.hypot(
                *(
                    subspan.gradient_norm(p.grad, p if name in self.unit else None)
                    for name, p in present.items()
                )
            )
            scale = _clip(norm, self.config.grad_clip)
        for name, p in present.items():
            self.steps[name] += 1
            subspan.adam_step(
                p,
                p.grad,
                self.m[name],
                self.v[name],
                step=self.steps[name],
                lr=lr,
                betas=self.config.betas,
                eps=self.config.eps,
                weight_decay=self.config.weight_decay,
                scale=scale,
                remove_parallel=name in self.unit,
                unit_rows=name in self.unit,
            )
        return norm

    def tensors(self) -> dict[str, Any]:
        """Return the running means and the counts of steps."""
        return _named(self.m, self.v, self.steps)

    def load(self, tensors: Mapping[str, Any]) -> None:
        """Take over what `tensors` returned."""
        for name in self.parameters:
            self.m[name].copy_(tensors[f"m.{name}"])
            self.v[name].copy_(tensors[f"v.{name}"])
        self.steps = _counts(self.parameters, tensors)


class TorchAdam:
    """``torch.optim.Adam`` (AdamW with weight decay), and the passes beside it by the autoencoder.

    Parameters
    ----------
    sae : SAE
        Its ``remove_parallel_gradient_`` goes before the step, ``normalize_decoder_`` after it.
    config : TrainConfig
    """

    def __init__(self, sae: Any, config: TrainConfig) -> None:
        self.sae, self.config = sae, config
        self.parameters = dict(sae.named_parameters())
        kind = torch.optim.AdamW if config.weight_decay else torch.optim.Adam
        self.adam = kind(
            list(self.parameters.values()),
            lr=1.0,
            betas=config.betas,
            eps=config.eps,
            weight_decay=config.weight_decay,
        )
        for p in self.parameters.values():  # as it does itself at the first step
            self.adam.state[p] = {
                "step": torch.tensor(0.0),
                "exp_avg": _zeros(p),
                "exp_avg_sq": _zeros(p),
            }

    def step(self, lr: float) -> float | None:
        """Update all parameters that have a gradient."""
        self.sae.remove_parallel_gradient_()
        norm = None
        if self.config.grad_clip is not None:
            found = torch.nn.utils.clip_grad_norm_(
                list(self.parameters.values()), self.config.grad_clip
            )
            norm = float(found)
        for group in self.adam.param_groups:
            group["lr"] = lr
        self.adam.step()
        self.sae.normalize_decoder_()
        return norm

    def _of(self, key: str) -> dict[str, Any]:
        return {name: self.adam.state[p][key] for name, p in self.parameters.items()}

    def tensors(self) -> dict[str, Any]:
        """Return the running means and the counts of steps."""
        steps = {name: int(count) for name, count in self._of("step").items()}
        return _named(self._of("exp_avg"), self._of("exp_avg_sq"), steps)

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def load(self, tensors: Mapping[str, Any]) -> None:
        """Take over what `tensors` returned."""
        for name, count in _counts(self.parameters, tensors).items():
            self._of("step")[name].fill_(count)
            self._of("exp_avg")[name].copy_(tensors[f"m.{name}"])
            self._of("exp_avg_sq")[name].copy_(tensors[f"v.{name}"])


def make_optimizer(sae: Any, config: TrainConfig) -> Optimizer:
    """Return the optimiser that the settings name."""
    return FusedAdam(sae, config) if config.optimizer == "fused" else TorchAdam(sae, config)


def _zeros(p: Any) -> Any:
    return torch.zeros_like(p.detach(), memory_format=torch.preserve_format)


def _clip(norm: float, limit: float) -> float:
    return min(1.0, limit / (norm + 1e-6))  # as torch.nn.utils.clip_grad_norm_


def _named(m: Mapping[str, Any], v: Mapping[str, Any], steps: Mapping[str, int]) -> dict[str, Any]:
    named = {f"m.{name}": x for name, x in m.items()} | {f"v.{name}": x for name, x in v.items()}
    return named | {"steps": torch.tensor(list(steps.values()), dtype=torch.int64)}


def _counts(parameters: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, int]:
    return dict(zip(parameters, tensors["steps"].tolist(), strict=True))
