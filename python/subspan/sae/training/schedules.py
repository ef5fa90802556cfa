"""What changes while an autoencoder is trained: the learning rate, k, the weight of a penalty.

All are functions of the number of the step, from 0, so that a run that goes on after an
interruption needs no state for them.
"""

from __future__ import annotations

import math

from subspan import _checks

__all__ = ["LR_SCHEDULES", "default_lr", "k_at", "lr_factor", "penalty_factor"]

LR_SCHEDULES = ("constant", "cosine")


def default_lr(n_latents: int) -> float:
    """Return the learning rate of Adam for a dictionary of n latents.

    ``2e-4 / sqrt(n / 2^14)``

    The scaling law of Gao et al. 2024, `arXiv:2406.04093 <https://arxiv.org/abs/2406.04093>`_, with
    the constant that sparsify and dictionary_learning use.

    Parameters
    ----------
    n_latents : int
        At least 1.

    Examples
    --------
    >>> from subspan.sae.training.schedules import default_lr
    >>> default_lr(4 * 2**14)
    0.0001
    """
    n = _checks.integer("default_lr", "n_latents", n_latents, low=1)
    return 2e-4 / math.sqrt(n / 2**14)


def lr_factor(
    step: int,
    steps: int,
    *,
    schedule: str = "constant",
    warmup: int = 0,
    decay: int = 0,
    end: float = 0.0,
) -> float:
    """Return what the learning rate is multiplied by at a step.

    The product of a rise ``min(1, (step + 1) / warmup)``; for "cosine" of ``end + (1 - end)
    (1 + cos(pi t)) / 2`` with ``t = (step - warmup) / (steps - warmup)`` from the end of the rise
    on; and of a linear tail over the last ``decay`` steps, ``end + (1 - end) (steps - step) /
    decay``.

    Parameters
    ----------
    step : int
        0..steps - 1.
    steps : int
        Steps of the whole run.
    schedule : {"constant", "cosine"}
    warmup, decay : int
        Steps of the rise and of the tail; 0: none.
    end : float
        Where cosine and tail would arrive one step after the last, in [0, 1].

    Returns
    -------
    float
        In (0, 1], and 0 only if ``end`` is.

    Raises
    ------
    InvalidArgumentError
        A number is out of its range.

    Examples
    --------
    >>> from subspan.sae.training.schedules import lr_factor
    >>> [lr_factor(step, 10, warmup=4, decay=2) for step in range(10)]
    [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.5]
    """
    function = "lr_factor"
    steps = _checks.integer(function, "steps", steps, low=1)
    step = _checks.integer(function, "step", step, low=0, high=steps - 1)
    _checks.choice(function, "schedule", schedule, LR_SCHEDULES)
    warmup = _checks.integer(function, "warmup", warmup, low=0, high=steps)
    decay = _checks.integer(function, "decay", decay, low=0, high=steps)
    end = _checks.real(function, "end", end, low=0.0, high=1.0)
    factor = min(1.0, (step + 1) / warmup) if warmup else 1.0
    if schedule == "cosine" and step >= warmup:
        share = (step - warmup) / (steps - warmup)
        factor *= end + (1 - end) * (1 + math.cos(math.pi * share)) / 2
    if step > steps - decay:
        factor *= end + (1 - end) * (steps - step) / decay
    return factor


def k_at(step: int, *, k: float, start: float, steps: int) -> float:
    """Return k on its way from ``start`` to ``k`` in equal parts over the first ``steps`` steps.

    Integers if both ends are, rounded to the nearest. Many latents at first learn from every row;
    sparsity comes afterwards.

    Parameters
    ----------
    step : int
        At least 0.
    k, start : int or float
        Where it ends and begins.
    steps : int
        0: ``k`` throughout.

    Examples
    --------
    >>> from subspan.sae.training.schedules import k_at
    >>> [k_at(step, k=4, start=16, steps=4) for step in range(6)]
    [16, 13, 10, 7, 4, 4]
    """
    if step >= steps:
        return k
    value = start + (k - start) * step / steps
    return round(value) if isinstance(k, int) and isinstance(start, int) else value


def penalty_factor(step: int, *, warmup: int) -> float:
    """Return what a penalty (L1, L0) is multiplied by at a step: ``min(1, step / warmup)``.

    Parameters
    ----------
    step : int
        At least 0.
    warmup : int
        0: 1 throughout.

    Examples
    --------
    >>> from subspan.sae.training.schedules import penalty_factor
    >>> [penalty_factor(step, warmup=4) for step in range(6)]
    [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    """
    return 1.0 if step >= warmup else step / warmup
