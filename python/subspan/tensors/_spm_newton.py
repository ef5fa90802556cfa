"""Newton's method on the sphere, which ends the power iterations of the subspace power method."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

import subspan
from subspan.tensors._spm_basis import Array, SymmetricBasis

__all__ = ["Newton"]

_CHUNK = 1 << 21  # elements of its largest array
_STEPS = 8
_FORMED = 2  # entries of A for each of V x^(h-1): half as many flops
_FAR = 0.1  # a step as long as this means that the maximum is elsewhere


class Newton:
    """Maximises |V^T x^(h)|^2 from points near maxima, V (N, r) with orthonormal columns.

    f = A x^(2h) for the symmetric part A of V V^T, so y = A x^(2h-1), and its derivative
    (2 h - 1) A x^(2h-2) maps x to (2 h - 1) y. A is formed where that is cheaper. Else, with p the
    projection of x^(h) and W = V x^(h-1), the derivative is h W W^T + (h - 1) p x^(h-2).
    """

    def __init__(self, v: Array, basis: SymmetricBasis, tol: float) -> None:
        self.v, self.basis, self.tol = v, basis, tol
        self._upper = np.triu_indices(basis.d)
        self._quartic = None
        if basis.h == 2 and basis.size**2 <= _FORMED * basis.d**2 * v.shape[1]:
            self._quartic = _quartic(v, basis)
        else:
            self._halves = basis.halves(v)

    def __call__(self, x: Array) -> tuple[Array, npt.NDArray[np.bool_]]:
        """Return unit columns (d, s), and which are maxima near where they began."""
        d, r = self.basis.d, self.v.shape[1]
        step = max(1, _CHUNK // (d * (r + d)))
        parts = [self._run(x[:, i : i + step]) for i in range(0, x.shape[1], step)]
        return np.hstack([end for end, _ in parts]), np.hstack([near for _, near in parts])

    def form(self, x: Array) -> Array:
        """F of unit columns (d, s): the squared length of the projection of x^(h)."""
        c = subspan.gram(self.v, self.basis.powers(x))
        found: Array = np.einsum("rs,rs->s", c, c)
        return found

    def _run(self, x: Array) -> tuple[Array, npt.NDArray[np.bool_]]:
        near = np.ones(x.shape[1], bool)
        last = np.full(x.shape[1], _FAR)
        for _ in range(_STEPS):
            step, concave = self._step(x)
            length = np.sqrt(np.einsum("ds,ds->s", step, step))
            # Rounding ends the decrease; before it, that means that there is no maximum near by.
            shrinks = length < last
            near &= concave & (shrinks | (length <= 1e-8))
            taken = near & shrinks
            if not taken.any():
                break
            x = x + np.where(taken, step, 0)
            x /= np.sqrt(np.einsum("ds,ds->s", x, x))
            next_length = length * (length / last)  # or shorter: steps shrink ever faster
            last = np.where(taken, length, last)
            if (next_length[taken] <= self.tol).all():
                break
        else:
            near &= last <= 1e-8
        return x, near

    def _step(self, x: Array) -> tuple[Array, npt.NDArray[np.bool_]]:
        """Return steps (d, s), and where the form is strictly concave on the tangent space."""
        basis, h = self.basis, self.basis.h
        y, system = self._derivatives(x)
        point = x.T
        f = np.einsum("sd,sd->s", point, y)
        system *= -1
        across = (2 * h - 1) * y[:, :, None] * point[:, None, :]
        system += across
        system += across.mT
        system -= ((2 * h - 2) * f)[:, None, None] * point[:, :, None] * point[:, None, :]
        system += f[:, None, None] * np.eye(basis.d)
        gradient = y - f[:, None] * point
        factor, info = subspan.cholesky(system, errors="info", nonfinite="ignore")
        concave = info == 0
        factor[~concave] = np.eye(basis.d)
        half = subspan.solve_triangular(factor, gradient[:, :, None])
        return subspan.solve_triangular(factor, half, transposed=True)[:, :, 0].T, concave

    def _derivatives(self, x: Array) -> tuple[Array, Array]:
        """Return y (s, d) and its derivatives (s, d, d)."""
        basis, h = self.basis, self.basis.h
        i, j = self._upper
        if self._quartic is not None:
            # Columns are the monomials of x^2, with the roots of their multiplicities.
            entries = subspan.gram(self._quartic, basis.powers(x)).T
            hessian = np.empty((x.shape[1], basis.d, basis.d))
            hessian[:, i, j] = hessian[:, j, i] = entries
            return (hessian @ x.T[:, :, None])[:, :, 0], 3 * hessian
        p = subspan.gram(self.v.T, subspan.gram(self.v, basis.powers(x)))
        w = subspan.gram(basis.lower_powers(x), self._halves)
        found = subspan.gram(w.reshape(x.shape[1], -1, basis.d))
        found *= h
        second = basis.contract(p, x, 2).T * (h - 1)
        found[:, i, j] += second
        found[:, j[i != j], i[i != j]] += second[:, i != j]
        return basis.contract(p, x, 1).T, found


def _quartic(v: Array, basis: SymmetricBasis) -> Array:
    """Return the symmetric part of V V^T, h = 2: (kl, ij) times the root of how often kl occurs."""
    d = basis.d
    plain = v / basis.roots[:, None]
    products = plain @ plain.T
    place = np.empty((d, d), np.int64)
    i, j = np.triu_indices(d)
    place[i, j] = place[j, i] = np.arange(len(i))
    found = products.copy()
    found += products[place[i[:, None], i], place[j[:, None], j]]
    found += products[place[i[:, None], j], place[j[:, None], i]]
    found *= basis.roots[:, None] / 3
    return found
