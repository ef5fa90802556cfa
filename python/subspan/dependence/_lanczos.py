"""Spectral sums of symmetric matrices that are known by their products: Lanczos quadrature."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from subspan import eigh

__all__ = ["Quadrature", "student", "tridiagonals"]

Float64 = NDArray[np.float64]


class Quadrature(NamedTuple):
    """Nodes and weights of probes: ``sum_k weights f(nodes)`` is z^T f(K) z."""

    nodes: Float64
    """(probes, steps) eigenvalues of the tridiagonal matrices."""
    weights: Float64
    """(probes, steps)"""


def tridiagonals(
    multiply: Callable[[Float64], Float64], probes: Float64, apart: Float64, steps: int
) -> list[Quadrature]:
    """Return the quadratures after ``steps`` steps, and after three quarters of them.

    ``probes`` (n, p) and ``apart`` (n,), a unit vector that is an eigenvector: all is done beside
    it. Three terms without reorthogonalisation: ghosts of converged eigenvalues share their weight.
    """
    p = probes.shape[1]
    z = probes - np.outer(apart, apart @ probes)
    norms = np.linalg.norm(z, axis=0)
    tiny = 1e-13
    alpha, beta = np.zeros((steps, p)), np.zeros((steps, p))
    previous, current = np.zeros_like(z), _over(z, norms)
    for k in range(steps):
        product = multiply(current)
        product -= np.outer(apart, apart @ product)
        alpha[k] = np.einsum("ij,ij->j", current, product)
        product -= alpha[k] * current
        if k > 0:
            product -= beta[k - 1] * previous
        length = np.linalg.norm(product, axis=0)
        beta[k] = np.where(length > tiny, length, 0.0)
        previous, current = current, _over(product, beta[k])
    return [_quadrature(alpha[:k], beta[:k], norms) for k in (steps, max(1, steps * 3 // 4))]


def _over(columns: Float64, norms: Float64) -> Float64:
    """Return columns over their norms; those of norm 0 end here."""
    return np.asarray(columns * np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0))


def _quadrature(alpha: Float64, beta: Float64, norms: Float64) -> Quadrature:
    steps, p = alpha.shape
    matrices = np.zeros((p, steps, steps))
    at = np.arange(steps)
    matrices[:, at, at] = alpha.T
    matrices[:, at[1:], at[:-1]] = beta[:-1].T
    matrices[:, at[:-1], at[1:]] = beta[:-1].T
    found = eigh(matrices)
    return Quadrature(found.values, np.square(found.vectors[:, 0, :] * norms[:, None]))


def student(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t (Cornish and Fisher's expansion)."""
    z, v = 1.959963984540054, float(freedom)
    first = (z**3 + z) / (4 * v)
    second = (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    return z + first + second + third
