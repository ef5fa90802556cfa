"""Conjugate gradients for many right-hand sides at a time."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from subspan.kernels._kernel import Floats

__all__ = ["ConjugateGradients"]

Apply = Callable[[Floats], Floats]

_STARTS = 4
_SPARE = 0.5  # of tol: what the recurrence is to reach, as the residual itself is a little larger


@dataclass(eq=False)
class ConjugateGradients:
    """Solves A z = b of columns to a relative residual, in at most so many iterations.

    `history` has the largest relative residual after each iteration, as the recurrence has it.
    """

    multiply: Apply
    precondition: Apply
    tol: float
    most: int
    report: Callable[[int], None]
    history: list[float] = field(default_factory=list)

    def solve(self, b: Floats) -> tuple[Floats, Floats]:
        """Return z, and the norms of b - A z over those of b.

        Where the residual itself is larger than the recurrence believes, it starts again there.
        """
        sizes = np.linalg.norm(b, axis=0)
        sizes = np.where(sizes > 0, sizes, 1.0)
        z, residual = np.zeros_like(b), b
        norms = np.linalg.norm(residual, axis=0) / sizes
        for _ in range(_STARTS):
            left = np.flatnonzero(norms > self.tol)
            if not len(left) or len(self.history) >= self.most:
                break
            self._descend(z, residual, left, sizes)
            residual = b - self.multiply(z)
            before, norms = norms, np.linalg.norm(residual, axis=0) / sizes
            if norms.max() > 0.5 * before.max():  # rounding: there is nothing more to be had
                break
        return z, norms

    def _descend(self, z: Floats, residual: Floats, left: NDArray[np.int64], sizes: Floats) -> None:
        """Correct those columns of z in place, until the recurrence finds them solved.

        Every column has steps of its own, and leaves when it is there.
        """
        r = residual[:, left]
        direction = self.precondition(r)
        power = (r * direction).sum(0)
        while len(left) and len(self.history) < self.most:
            image = self.multiply(direction)
            curvature = (direction * image).sum(0)
            sound = curvature > 0  # otherwise there is nothing but rounding in the direction
            step = np.where(sound, power / np.where(sound, curvature, 1.0), 0.0)
            z[:, left] += step * direction
            r -= step * image
            norms = np.linalg.norm(r, axis=0) / sizes[left]
            self.history.append(float(norms.max()))
            self.report(len(self.history))
            going = (norms > _SPARE * self.tol) & sound
            left, r = left[going], r[:, going]
            preconditioned = self.precondition(r)
            before, power = power[going], (r * preconditioned).sum(0)
            direction = preconditioned + power / before * direction[:, going]
