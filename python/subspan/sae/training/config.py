"""The settings of a training run."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from subspan import _checks
from subspan.errors import DtypeError, InvalidArgumentError
from subspan.sae.training.schedules import LR_SCHEDULES, default_lr, k_at, lr_factor, penalty_factor

__all__ = ["TrainConfig"]

_POSITIVE = ("batch_size", "dead_after_tokens", "log_every", "keep_checkpoints", "init_rows")
_COUNTS = (
    *("warmup_steps", "decay_steps", "k_steps", "penalty_warmup_steps"),
    *("checkpoint_every", "eval_every", "seed"),
)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How an autoencoder is trained; every run is a function of this, the data and the weights.

    Parameters
    ----------
    steps, tokens : int, optional
        How long: one of the two, ``tokens`` in rows (rounded down to whole batches).
    batch_size : int
        Rows of one step, over all processes.
    lr : float, optional
        Learning rate; ``2e-4 / sqrt(n / 2^14)`` if left out.
    lr_schedule : {"constant", "cosine"}
    warmup_steps, decay_steps : int
        Linear rise at the beginning, linear fall at the end.
    lr_end : float
        What cosine and fall go to, as a part of ``lr``.
    optimizer : {"fused", "torch"}
        `subspan.adam_step`, or ``torch.optim.Adam`` with projection and renormalisation as passes
        of their own: the same up to rounding.
    betas, eps, weight_decay
        Of Adam; the weight decay is decoupled.
    grad_clip : float, optional
        Greatest norm of all gradients together, less what is parallel to unit rows.
    k_start, k_steps
        k goes from ``k_start`` to that of the autoencoder in ``k_steps`` steps.
    penalty_warmup_steps : int
        The sparsity penalty (L1, L0) grows from 0 over so many steps.
    dead_after_tokens : int
        A latent is dead when it did not fire for so many rows.
    init : {"auto", "tied", "active_subspace"} or None
        How weights, b_dec and the scale of the rows are set from data before the first step; None:
        not at all. "auto": as "tied", unless the autoencoder was initialised, loaded or trained
        before.
    init_rows : int
        Rows that are looked at for this, the first ones of the run.
    init_rank : int, optional
        Rank of the active subspace.
    seed : int
        Of the order of the rows, and of what the autoencoder draws.
    log_every, eval_every, checkpoint_every : int
        Steps between lines of the log, evaluations on held-out rows, checkpoints; 0: only at the
        end.
    keep_checkpoints : int
        Older ones are removed once a newer one is whole.

    Raises
    ------
    InvalidArgumentError
        A value is out of its range, or not exactly one of ``steps`` and ``tokens`` is given.
    DtypeError
        A value is of the wrong type.

    Examples
    --------
    >>> from subspan.sae import TrainConfig
    >>> config = TrainConfig(tokens=10_000, batch_size=1000, lr=1e-3, warmup_steps=4)
    >>> config.total_steps
    10
    >>> config.lr_at(1, n_latents=64)
    0.0005
    """

    steps: int | None = None
    tokens: int | None = None
    batch_size: int = 4096
    lr: float | None = None
    lr_schedule: str = "constant"
    warmup_steps: int = 0
    decay_steps: int = 0
    lr_end: float = 0.0
    optimizer: str = "fused"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 6.25e-10
    weight_decay: float = 0.0
    grad_clip: float | None = None
    k_start: float | None = None
    k_steps: int = 0
    penalty_warmup_steps: int = 0
    dead_after_tokens: int = 10_000_000
    init: str | None = "auto"
    init_rows: int = 8192
    init_rank: int | None = None
    seed: int = 0
    log_every: int = 50
    eval_every: int = 0
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        name = "TrainConfig"
        for field in _POSITIVE:
            self._set(field, _checks.integer(name, field, getattr(self, field), low=1))
        for field in _COUNTS:
            self._set(field, _checks.integer(name, field, getattr(self, field), low=0))
        if (self.steps is None) == (self.tokens is None):
            got = "neither" if self.steps is None else "both"
            raise InvalidArgumentError(
                f"[{name}] exactly one of steps and tokens must be given, got {got}"
            )
        if self.tokens is not None:
            tokens = _checks.integer(name, "tokens", self.tokens, low=self.batch_size)
            self._set("tokens", tokens)
        else:
            self._set("steps", _checks.integer(name, "steps", self.steps, low=1))
        _checks.choice(name, "lr_schedule", self.lr_schedule, LR_SCHEDULES)
        _checks.choice(name, "optimizer", self.optimizer, ("fused", "torch"))
        for field in ("eps", "weight_decay"):
            self._real(field, low=0.0)
        self._real("lr_end", low=0.0, high=1.0)
        for field in ("lr", "grad_clip", "k_start"):
            if getattr(self, field) is not None:
                self._real(field, low=math.ulp(0.0))
        try:
            first, second = self.betas
        except (TypeError, ValueError):
            raise DtypeError(f"[{name}] betas must be two numbers, got {self.betas!r}") from None
        below = math.nextafter(1.0, 0.0)
        self._set(
            "betas",
            (
                _checks.real(name, "betas[0]", first, low=0.0, high=below),
                _checks.real(name, "betas[1]", second, low=0.0, high=below),
            ),
        )
        if self.init is not None:
            _checks.choice(name, "init", self.init, ("auto", "tied", "active_subspace"))
        if self.init_rank is not None:
            self._set("init_rank", _checks.integer(name, "init_rank", self.init_rank, low=1))
        for field in ("warmup_steps", "decay_steps"):
            _checks.integer(name, field, getattr(self, field), low=0, high=self.total_steps)
        if self.k_steps and self.k_start is None:
            raise InvalidArgumentError(f"[{name}] k_start must be given with k_steps, got None")

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.steps if self.steps is not None else int(self.tokens or 0) // self.batch_size

    def lr_at(self, step: int, *, n_latents: int) -> float:
        """Return the learning rate of a step, from 0."""
        lr = default_lr(n_latents) if self.lr is None else self.lr
        return lr * lr_factor(
            step,
            self.total_steps,
            schedule=self.lr_schedule,
            warmup=self.warmup_steps,
            decay=self.decay_steps,
            end=self.lr_end,
        )

    def k_at(self, step: int, *, k: float) -> float:
        """Return k at a step, of an autoencoder whose k is given."""
        if self.k_start is None:
            return k
        start = int(self.k_start) if isinstance(k, int) else self.k_start
        return k_at(step, k=k, start=start, steps=self.k_steps)

    def penalty_at(self, step: int) -> float:
        """Return the factor of the sparsity penalty at a step."""
        return penalty_factor(step, warmup=self.penalty_warmup_steps)

    def to_dict(self) -> dict[str, Any]:
        """Return all settings, ready for JSON."""
        return dataclasses.asdict(self) | {"betas": list(self.betas)}

    def _set(self, field: str, value: Any) -> None:
        object.__setattr__(self, field, value)

    def _real(self, field: str, *, low: float, high: float = 1.7976931348623157e308) -> None:
        value = _checks.real("TrainConfig", field, getattr(self, field), low=low, high=high)
        if field != "k_start" or not isinstance(self.k_start, int):
            self._set(field, value)
