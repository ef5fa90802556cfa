"""Newton's method on the sphere, which ends the power iterations of the subspace power method."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

import subspan
from subspan.tensors._spm_basis import Array, SymmetricBasis, join

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
        self._square = join(basis.d, 1, 1)  # where entries of a symmetric matrix stand
        self._quartic = None
        if basis.h == 2 and basis.size**2 <= _FORMED * basis.d**2 * v.shape[1]:
            self._quartic = _quartic(v, basis)
        else:
            self._halves = basis.halves(v)

    def __call__(self, x: Array) -> tuple[Array, npt.NDArray[np.bool_], Array]:
        """Return unit columns (d, s), which are maxima near where they began, and the f of these.

        That f is of the point before the last step, which at a maximum is the same.
        """
        d, r = self.basis.d, self.v.shape[1]
        step = max(1, _CHUNK // (d * (r + d)))
        parts = [self._run(x[:, i : i + step]) for i in range(0, x.shape[1], step)]
        ends, near, f = (np.concatenate(each, axis=-1) for each in zip(*parts, strict=True))
        return ends, near, f

    def form(self, x: Array) -> Array:
        """F of unit columns (d, s): the squared length of the projection of x^(h)."""
        c = self.v.T @ self.basis.powers(x)
        found: Array = np.einsum("rs,rs->s", c, c)
        return found

    def _run(self, x: Array) -> tuple[Array, npt.NDArray[np.bool_], Array]:
        near = np.ones(x.shape[1], bool)
        last = np.full(x.shape[1], _FAR)
        for number in range(_STEPS):
            step, concave, f = self._step(x)
            length = np.sqrt(np.einsum("ds,ds->s", step, step))
            # Rounding ends the decrease; before it, that means that there is no maximum near by.
            shrinks = length < last
            near &= concave & (shrinks | (length <= 1e-8))
            taken = near & shrinks
            if not taken.any():
                break
            x = x + np.where(taken, step, 0)
            x /= np.sqrt(np.einsum("ds,ds->s", x, x))
            # From the second on they go as the squares of those before; a factor of 10 to spare.
            next_length = 10 * length * (length / last) ** (2 if number else 1)
            last = np.where(taken, length, last)
            if (next_length[taken] <= self.tol).all():
                break
        else:
            near &= last <= 1e-8
        return x, near, f

    def _step(self, x: Array) -> tuple[Array, npt.NDArray[np.bool_], Array]:
        """Return steps (d, s), where the form is strictly concave on the tangent space, and f."""
        basis, h = self.basis, self.basis.h
        y, hessian = self._derivatives(x)
        point = x.T
        f = np.einsum("sd,sd->s", point, y)
        across = ((2 * h - 1) * y - ((h - 1) * f)[:, None] * point)[:, :, None] * point[:, None, :]
        system = across + across.mT
        system -= hessian
        system[:, np.arange(basis.d), np.arange(basis.d)] += f[:, None]
        gradient = y - f[:, None] * point
        factor, info = subspan.cholesky(system, errors="info", nonfinite="ignore")
        concave = info == 0
        factor[~concave] = np.eye(basis.d)
        half = subspan.solve_triangular(factor, gradient[:, :, None])
        step = subspan.solve_triangular(factor, half, transposed=True)[:, :, 0].T
        return step, concave, f

    def _derivatives(self, x: Array) -> tuple[Array, Array]:
        """Return y (s, d) and its derivatives (s, d, d)."""
        basis, h = self.basis, self.basis.h
        if self._quartic is not None:
            # Columns are the monomials of x^2, with the roots of their multiplicities.
            entries = basis.powers(x).T @ self._quartic
            hessian = entries.take(self._square, axis=1)
            return (hessian @ x.T[:, :, None])[:, :, 0], 3 * hessian
        p = self.v @ (self.v.T @ basis.powers(x))
        w = basis.lower_powers(x).T @ self._halves
        found = subspan.gram(w.reshape(x.shape[1], -1, basis.d))
        found *= h
        found += (h - 1) * basis.contract(p, x, 2).T.take(self._square, axis=1)
        return basis.contract(p, x, 1).T, found


def _quartic(v: Array, basis: SymmetricBasis) -> Array:
    """Return the symmetric part of V V^T, h = 2: (kl, ij) times the root of how often kl occurs."""
    plain = v / basis.roots[:, None]
    products = plain @ plain.T
    i, j = np.triu_indices(basis.d)
    place = join(basis.d, 1, 1)
    found = products.copy()
    for one, other in ((i, j), (j, i)):
        found += products.take(place[i][:, one] * basis.size + place[j][:, other])
    found *= basis.roots[:, None] / 3
    return found
