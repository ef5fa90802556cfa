"""Iterations over groups: each stops on its own, and a record says how it went."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from subspan import _checks
from subspan.errors import ConvergenceError
from subspan.subspaces._work import Floats

__all__ = ["Record", "check", "run", "tolerance"]


class Record(NamedTuple):
    """How an iteration went; numpy arrays in the leading shape of the groups."""

    iterations: NDArray[np.int64]
    """Steps taken."""
    residual: Floats
    """What was compared with the tolerance, at the end."""
    converged: NDArray[np.bool_]
    """Whether it is at most the tolerance."""


def tolerance(function: str, tol: float | None, dtype: str, defaults: Mapping[str, float]) -> float:
    """Return the tolerance that was given, or the default of a dtype."""
    return defaults[dtype] if tol is None else _checks.real(function, "tol", tol, low=0.0)


def run(
    function: str,
    groups: int,
    step: Callable[[NDArray[np.int64], int], Floats],
    *,
    steps: int,
    limit: float,
    lead: tuple[int, ...],
    errors: str,
) -> Record:
    """Call ``step(places, number)`` on the groups whose residual is above ``limit``.

    It returns residuals, and moves what is above the limit if ``number < steps``: the last call
    only looks.
    """
    iterations = np.zeros(groups, dtype=np.int64)
    residual = np.zeros(groups)
    active = np.arange(groups)
    for number in range(steps + 1):
        if active.size == 0:
            break
        iterations[active] = number
        residual[active] = step(active, number)
        active = active[~(residual[active] <= limit)]
    record = Record(
        iterations.reshape(lead), residual.reshape(lead), (residual <= limit).reshape(lead)
    )
    check(function, record, steps=steps, limit=limit, errors=errors)
    return record


def check(function: str, record: Record, *, steps: int, limit: float, errors: str) -> None:
    """Raise where a group missed the tolerance, unless ``errors`` is "info"."""
    raising = _checks.choice(function, "errors", errors, ("raise", "info")) == "raise"
    missed = np.flatnonzero(~record.converged)
    if raising and missed.size:
        worst = int(missed[0])
        raise ConvergenceError(
            f"[{function}] {missed.size} of {record.converged.size} groups did not converge: group "
            f"{worst} has residual {record.residual.flat[worst]:.3g} after {steps} steps, tol is "
            f'{limit:.3g}. Raise max_iter or tol, or take errors="info"'
        )
