"""A signal of rank one in a noisy tensor: where it can be found, and how well."""

from __future__ import annotations

from collections.abc import Sequence
from math import erf, inf, sqrt
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import subspan
from subspan import _checks
from subspan.errors import InvalidArgumentError
from subspan.tensors._reading import Array, finite, give, modes, tensor
from subspan.tensors.tucker import gram_of

__all__ = [
    "RankOneLimit",
    "SpikedSample",
    "UnfoldingSpectrum",
    "clustering_accuracy",
    "spiked_cubic",
    "spiked_rank_one",
    "spiked_sample",
    "unfolding_spectrum",
]

Floats = NDArray[np.float64]


class RankOneLimit(NamedTuple):
    """Limit of the best approximation of rank one.

    Attributes
    ----------
    value : float
        Its singular value; NaN where none stands out.
    alignments : tuple of 3 floats
        Inner products (not squared) of its vectors with x, y and z; 0 where none stands out.
    """

    value: float
    alignments: tuple[float, float, float]


class SpikedSample(NamedTuple):
    """A draw of a spiked tensor: the tensor (n1, n2, n3) and the three signals."""

    tensor: Floats
    x: Floats
    y: Floats
    z: Floats


class UnfoldingSpectrum(NamedTuple):
    """Eigenvalues of :math:`T_{(n)} T_{(n)}^T`, ascending, and the leading eigenvector."""

    eigenvalues: Any
    leading: Any


def spiked_cubic(beta: float) -> tuple[float, float]:
    r"""Value and alignment of the best approximation of rank one of a cubic spiked tensor.

    .. math:: \lambda = \sqrt{\frac{\beta^2}{2} + 2 + \frac{s}{18 \beta}}, \quad
              q = \frac{\sqrt{9 \beta^2 - 12 + s / \beta} + \sqrt{9 \beta^2 + 36 + s / \beta}}
              {6 \sqrt 2 \beta}, \quad s = \sqrt 3 \, (3 \beta^2 - 4)^{3/2}

    Parameters
    ----------
    beta : float
        Strength of the n x n x n tensor, whose noise has variance 1 / (3 n).

    Returns
    -------
    (value, alignment)
        (NaN, 0) below the threshold :math:`2 / \sqrt 3`.

    Raises
    ------
    InvalidArgumentError, DtypeError
        A negative strength.

    References
    ----------
    Seddik, Guillaud, Couillet (as `spiked_rank_one`).

    Examples
    --------
    >>> from subspan.tensors import spiked_cubic
    >>> value, alignment = spiked_cubic(1.5)
    >>> round(value, 4), round(alignment, 4)
    (1.8487, 0.9051)
    """
    b = strength("spiked_cubic", "beta", beta)
    if 3 * b * b <= 4:
        return float("nan"), 0.0
    s = sqrt(3) * (3 * b * b - 4) ** 1.5
    value = sqrt(b * b / 2 + 2 + s / (18 * b))
    square = 9 * b * b + s / b
    return value, (sqrt(square - 12) + sqrt(square + 36)) / (6 * sqrt(2) * b)


def spiked_rank_one(shape: Sequence[int], beta: float) -> RankOneLimit:
    r"""Limit of the best approximation of rank one of a spiked tensor.

    .. math:: \beta x \circ y \circ z + W / \sqrt{n_T}

    Parameters
    ----------
    shape : (n1, n2, n3)
    beta : float
        Strength, >= 0.

    Returns
    -------
    RankOneLimit (value, alignments)

    Raises
    ------
    InvalidArgumentError, DtypeError
        As `spiked_sample`.

    References
    ----------
    M. E. A. Seddik, M. Guillaud, R. Couillet: When random tensors meet random matrices, Annals of
    Applied Probability 34 (2024). The equations of `nested_rank_one` with :math:`\gamma = 0`.

    Examples
    --------
    >>> from subspan.tensors import spiked_rank_one
    >>> limit = spiked_rank_one((50, 50, 50), 2.0)
    >>> round(limit.value, 4), round(limit.alignments[0], 4)
    (2.2558, 0.953)
    """
    name = "spiked_rank_one"
    return rank_one(extents(name, shape), strength(name, "beta", beta), 0.0)


def spiked_sample(shape: Sequence[int], beta: float, *, seed: int = 0) -> SpikedSample:
    r"""Draw :math:`\beta x \circ y \circ z + W / \sqrt{n_T}` with unit signals.

    Parameters
    ----------
    shape : (n1, n2, n3)
    beta : float
    seed : int

    Returns
    -------
    SpikedSample (tensor, x, y, z)
        numpy, float64.

    Raises
    ------
    InvalidArgumentError, DtypeError
        Not three extents >= 1; a negative strength.

    Examples
    --------
    >>> from subspan.tensors import spiked_sample
    >>> spiked_sample((4, 3, 2), 1.0).tensor.shape
    (4, 3, 2)
    """
    name = "spiked_sample"
    sizes = extents(name, shape)
    b = strength(name, "beta", beta)
    rng = np.random.default_rng(_checks.integer(name, "seed", seed, low=0))
    x, y, z = (unit(rng, n) for n in sizes)
    noise = rng.standard_normal(sizes) / sqrt(sum(sizes))
    return SpikedSample(b * np.einsum("i,j,k->ijk", x, y, z) + noise, x, y, z)


def unfolding_spectrum(x: Any, mode: int) -> UnfoldingSpectrum:
    r"""Eigenvalues of :math:`T_{(n)} T_{(n)}^T` and the eigenvector of the largest.

    Parameters
    ----------
    x : array (I_0, ..., I_{N-1})
        float32 or float64, N >= 2.
    mode : int

    Returns
    -------
    UnfoldingSpectrum (eigenvalues, leading)
        (I_mode,) each, in x's library.

    Raises
    ------
    InvalidArgumentError, DtypeError, UnsupportedError
        No such mode; NaN or infinity; not a float array on the CPU.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.tensors import unfolding_spectrum
    >>> unfolding_spectrum(np.ones((2, 3, 4)), 0).eigenvalues[-1].round(9)
    np.float64(24.0)
    """
    name = "unfolding_spectrum"
    array: Array = tensor(name, x, least=2)
    finite(name, "x", array)
    (n,) = modes(name, "mode", [mode], array.ndim)
    values, vectors = subspan.eigh(gram_of(array, n))[:2]
    return UnfoldingSpectrum(give(x, values), give(x, np.ascontiguousarray(vectors[:, -1])))


def clustering_accuracy(alignment: Any) -> Any:
    r"""Share of labels that the signs of an estimated vector get right.

    .. math:: \Phi\big(\sqrt{\zeta / (1 - \zeta)}\big)

    Parameters
    ----------
    alignment : float or array_like
        :math:`\zeta`, squared inner product with the labels, in [0, 1].

    Returns
    -------
    float or array of float64
        1/2 for 0, 1 for 1.

    Raises
    ------
    InvalidArgumentError
        Outside [0, 1].

    References
    ----------
    H. Lebeau, M. E. A. Seddik, J. H. de M. Goulart: Performance gaps in multi-view clustering under
    the nested matrix-tensor model, ICLR 2024, arXiv:2402.10677.

    Examples
    --------
    >>> from subspan.tensors import clustering_accuracy
    >>> round(clustering_accuracy(0.5), 4), clustering_accuracy(0.0)
    (0.8413, 0.5)
    """
    zeta = np.asarray(alignment, np.float64)
    if not ((zeta >= 0) & (zeta <= 1)).all():
        raise InvalidArgumentError(
            f"[clustering_accuracy] alignment must be in [0, 1], got {zeta.min()} to {zeta.max()}"
        )
    odds = [inf if one == 1 else sqrt(one / (1 - one)) for one in zeta.ravel()]
    found = np.array([(1 + erf(v / sqrt(2))) / 2 for v in odds]).reshape(zeta.shape)
    return float(found) if found.ndim == 0 else found


def rank_one(shape: tuple[int, int, int], beta: float, beta2: float) -> RankOneLimit:
    """Find the largest root, going down from where the noise is left far behind."""
    c = np.array(shape) / sum(shape)
    nothing = RankOneLimit(float("nan"), (0.0, 0.0, 0.0))
    high = beta + 2 * sqrt(beta2) + 4.0
    last, last_gap = high, _gap(high, c, beta, beta2)[0]
    for s in np.linspace(high, 0.5, 600)[1:]:
        gap, _ = _gap(float(s), c, beta, beta2)
        if not np.isfinite(gap):
            return nothing
        if gap <= 0 < last_gap:
            low, up = float(s), last
            for _ in range(80):
                middle = (low + up) / 2
                if _gap(middle, c, beta, beta2)[0] <= 0:
                    low = middle
                else:
                    up = middle
            q = _gap(up, c, beta, beta2)[1]
            return RankOneLimit(up, (float(q[0]), float(q[1]), float(q[2])))
        last, last_gap = float(s), gap
    return nothing


def _gap(s: float, c: Floats, beta: float, beta2: float) -> tuple[float, Floats]:
    """Left minus right side of the equation for s, and the alignments; NaN inside the bulk."""
    g = -c / s
    gamma = 0.0
    bad = float("nan"), np.zeros(3)
    for _ in range(20000):
        gamma = beta2 * max(1 - g[2] ** 2 / c[2], 0.0) / (c[0] + c[1])
        below = np.array(
            [
                -(1 + gamma) * g[1] - g[2] - s,
                -(1 + gamma) * g[0] - g[2] - s,
                -g[0] - g[1] - s,
            ]
        )
        if not (below < 0).all():
            return bad
        new = c / below
        if np.abs(new - g).max() < 1e-13:
            break
        g = new
    else:
        return bad
    spread = np.array([1 + gamma, 1 + gamma, 1.0])
    square = 1 - spread * new**2 / c
    if not (square >= 0).all():
        return bad
    q = np.sqrt(square)
    left = s + (1 + gamma) * new.sum() - gamma * new[2]
    return float(left - beta * q.prod()), q


def unit(rng: np.random.Generator, n: int) -> Floats:
    drawn = rng.standard_normal(n)
    result: Floats = drawn / np.linalg.norm(drawn)
    return result


def extents(function: str, shape: Sequence[int]) -> tuple[int, int, int]:
    if not isinstance(shape, (list, tuple)) or len(shape) != 3:
        raise InvalidArgumentError(
            f"[{function}] shape must be three extents (n1, n2, n3), got {shape!r}"
        )
    n1, n2, n3 = (_checks.integer(function, "shape", n, low=1) for n in shape)
    return n1, n2, n3


def strength(function: str, name: str, value: float) -> float:
    return _checks.real(function, name, value, low=0.0, high=1e100)
