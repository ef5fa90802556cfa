r"""Signals of rank one in noise: where they can be found, and how well.

The nested matrix-tensor model (Lebeau, Seddik, Goulart, ICLR 2024, arXiv:2402.10677) is

.. math:: M = \beta_M x y^T + \frac{Z}{\sqrt{n_1 + n_2}}, \qquad
          T = \beta_T M \circ z + \frac{W}{\sqrt{n_T}}, \qquad n_T = n_1 + n_2 + n_3

with unit x, y, z and Gaussian Z, W: several views, with strengths z, of one clustering of n_2
points with labels y. Shares are :math:`c_i = n_i / n_T`. Limits hold as all n grow in proportion.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from subspan import _checks
from subspan.tensors._reading import modes
from subspan.tensors.spiked import RankOneLimit, extents, rank_one, strength, unit

__all__ = [
    "NestedSample",
    "SpikeLimit",
    "nested_bound",
    "nested_density",
    "nested_rank_one",
    "nested_sample",
    "nested_unfolding",
]

Floats = NDArray[np.float64]


class NestedSample(NamedTuple):
    """A draw of the nested model: the tensor (n1, n2, n3), its matrix and the three signals."""

    tensor: Floats
    matrix: Floats
    x: Floats
    y: Floats
    z: Floats


class SpikeLimit(NamedTuple):
    """Limit of the largest eigenvalue of :math:`T_{(n)} T_{(n)}^T` and of its eigenvector.

    Attributes
    ----------
    eigenvalue : float
        As it is observed; NaN where nothing stands out.
    alignment : float
        Squared inner product of the eigenvector with the signal; 0 where nothing stands out.
    center, scale : float
        Observed eigenvalues are ``center + scale * s`` with s of the bulk in `nested_density`.
    detectable : bool
    """

    eigenvalue: float
    alignment: float
    center: float
    scale: float
    detectable: bool


def nested_sample(
    shape: Sequence[int],
    beta_m: float,
    beta_t: float,
    *,
    labels: bool = False,
    seed: int = 0,
) -> NestedSample:
    r"""Draw a tensor of the nested matrix-tensor model.

    Parameters
    ----------
    shape : (n1, n2, n3)
    beta_m, beta_t : float
        Strengths of the matrix and of the tensor, >= 0.
    labels : bool
        y of :math:`\pm 1 / \sqrt{n_2}`, two clusters of equal probability; else uniform on the
        sphere, as x and z.
    seed : int

    Returns
    -------
    NestedSample (tensor, matrix, x, y, z)
        numpy, float64.

    Raises
    ------
    InvalidArgumentError, DtypeError
        Not three extents >= 1; a negative strength.

    Examples
    --------
    >>> from subspan.tensors import nested_sample
    >>> nested_sample((4, 3, 2), 1.0, 1.0).tensor.shape
    (4, 3, 2)
    """
    name = "nested_sample"
    n1, n2, n3 = extents(name, shape)
    bm, bt = strength(name, "beta_m", beta_m), strength(name, "beta_t", beta_t)
    rng = np.random.default_rng(_checks.integer(name, "seed", seed, low=0))
    x, y, z = (unit(rng, n) for n in (n1, n2, n3))
    if labels:
        y = np.where(rng.random(n2) < 0.5, -1.0, 1.0) / sqrt(n2)
    matrix = bm * np.outer(x, y) + rng.standard_normal((n1, n2)) / sqrt(n1 + n2)
    noise = rng.standard_normal((n1, n2, n3)) / sqrt(n1 + n2 + n3)
    return NestedSample(bt * matrix[:, :, None] * z + noise, matrix, x, y, z)


def nested_unfolding(
    shape: Sequence[int], beta_m: float, beta_t: float, mode: int = 1
) -> SpikeLimit:
    r"""Spike of an unfolding of the nested model, in closed form.

    With :math:`\rho = \beta_T^2 n_T / \sqrt{n_1 n_2 n_3}`, :math:`b = \beta_M^2`, shares
    :math:`p_i = c_i / (1 - c_3)` and :math:`a_i = \rho p_i + \rho b`, for mode 1

    .. math:: \xi = \frac{a_1 a_2}{\rho b} + \frac{1}{a_2}, \qquad
              \zeta = 1 - \frac{(\rho b / a_2)^2 + \rho p_2 a_1}{a_2 \rho b}

    observed at :math:`n_1 n_3 / n_T + \xi \sqrt{n_1 n_2 n_3} / n_T`, if :math:`b^2 > p_1 p_2` and
    :math:`\rho > b / ((p_2 + b) \sqrt{b^2 - p_1 p_2})`. For mode 2, of a signal that grows with
    the noise of M, :math:`\varrho + 1 / \varrho` with :math:`\varrho = \beta_T^2 n_T (n_1 n_2 /
    (n_1 + n_2) + b) / \sqrt{n_1 n_2 n_3}`, if it exceeds 1.

    Parameters
    ----------
    shape : (n1, n2, n3)
    beta_m, beta_t : float
    mode : {0, 1, 2}
        Of the unfolding, and so of the signal: x, y or z.

    Returns
    -------
    SpikeLimit (eigenvalue, alignment, center, scale, detectable)

    Raises
    ------
    InvalidArgumentError, DtypeError
        As `nested_sample`; no such mode.

    References
    ----------
    Lebeau, Seddik, Goulart (as above), theorems on the unfoldings. The alignment of mode 2,
    :math:`1 - \varrho^{-2}`, is that of the semicircle law with a spike, which is what is left.

    Examples
    --------
    >>> from subspan.tensors import nested_unfolding
    >>> shape = (300, 200, 100)
    >>> rho = 2.0
    >>> beta_t = (rho * (300 * 200 * 100) ** 0.5 / 600) ** 0.5
    >>> limit = nested_unfolding(shape, 1.5, beta_t)
    >>> round(limit.eigenvalue, 2), round(limit.alignment, 3)
    (78.18, 0.779)
    """
    name = "nested_unfolding"
    n1, n2, n3 = extents(name, shape)
    b = strength(name, "beta_m", beta_m) ** 2
    bt2 = strength(name, "beta_t", beta_t) ** 2
    (n,) = modes(name, "mode", [mode], 3)
    total, root = n1 + n2 + n3, sqrt(n1 * n2 * n3)
    scale = root / total
    if n == 2:
        center = n1 * n2 / total
        size = bt2 * total * (n1 * n2 / (n1 + n2) + b) / root
        seen = size > 1
        where = size + 1 / size if seen else float("nan")
        return SpikeLimit(
            center + scale * where, 1 - size**-2 if seen else 0.0, center, scale, seen
        )
    if n == 0:  # x and y change places
        n1, n2 = n2, n1
    center = n1 * n3 / total
    rho = bt2 * total / root
    p1, p2 = n1 / (n1 + n2), n2 / (n1 + n2)
    gap = b * b - p1 * p2
    seen = rho > 0 and gap > 0 and rho > b / ((p2 + b) * sqrt(gap))
    if not seen:
        return SpikeLimit(float("nan"), 0.0, center, scale, False)
    a1, a2 = rho * p1 + rho * b, rho * p2 + rho * b
    where = a1 * a2 / (rho * b) + 1 / a2
    alignment = 1 - ((rho * b / a2) ** 2 + rho * p2 * a1) / (a2 * rho * b)
    return SpikeLimit(center + scale * where, max(alignment, 0.0), center, scale, True)


def nested_density(s: Any, shape: Sequence[int], beta_t: float, mode: int = 1) -> Floats:
    r"""Density of the bulk of the eigenvalues of an unfolding, :math:`\mathrm{Im}\, m(s) / \pi`.

    .. math:: \rho p_2 m^3 + (1 + s \rho p_2) m^2 + (s + \rho (p_2 - p_1)) m + 1 = 0

    for mode 1 (and mode 0 with 1 and 2 exchanged), where :math:`p_i = c_i / (1 - c_3)`; the
    semicircle on [-2, 2] for mode 2.

    Parameters
    ----------
    s : array_like
        Where; an observed eigenvalue is ``center + scale * s`` of `nested_unfolding`.
    shape : (n1, n2, n3)
    beta_t : float
    mode : {0, 1, 2}

    Returns
    -------
    array of float64, in the shape of s

    Raises
    ------
    InvalidArgumentError, DtypeError
        As `nested_unfolding`.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.tensors import nested_density
    >>> s = np.linspace(-12, 12, 4001)
    >>> round(float(nested_density(s, (60, 40, 20), 1.0).sum() * (s[1] - s[0])), 3)
    1.0
    """
    name = "nested_density"
    n1, n2, n3 = extents(name, shape)
    bt2 = strength(name, "beta_t", beta_t) ** 2
    (n,) = modes(name, "mode", [mode], 3)
    points = np.asarray(s, np.float64)
    if n == 2:
        result: Floats = np.sqrt(np.maximum(4 - points**2, 0)) / (2 * np.pi)
        return result
    if n == 0:
        n1, n2 = n2, n1
    rho = bt2 * (n1 + n2 + n3) / sqrt(n1 * n2 * n3)
    q1, q2 = rho * n1 / (n1 + n2), rho * n2 / (n1 + n2)
    out = np.empty(points.size)
    for i, at in enumerate(points.ravel()):
        out[i] = np.roots([q2, 1 + at * q2, at + q2 - q1, 1]).imag.max() / np.pi
    return out.reshape(points.shape)


def nested_rank_one(shape: Sequence[int], beta_m: float, beta_t: float) -> RankOneLimit:
    r"""Limit of the best approximation of rank one of the nested model.

    With :math:`\gamma = \beta_T^2 q_3^2 / (c_1 + c_2)`,

    .. math:: g_1 = \frac{c_1}{-g_2 - g_3 - \gamma g_2 - s}, \;
              g_2 = \frac{c_2}{-g_1 - g_3 - \gamma g_1 - s}, \;
              g_3 = \frac{c_3}{-g_1 - g_2 - s}

    :math:`q_{1,2}^2 = 1 - (1 + \gamma) g_{1,2}^2 / c_{1,2}`, :math:`q_3^2 = 1 - g_3^2 / c_3`, and
    the value is the largest s with :math:`s + (1 + \gamma) (g_1 + g_2 + g_3) - \gamma g_3 =
    \beta_T \beta_M q_1 q_2 q_3`.

    Parameters
    ----------
    shape : (n1, n2, n3)
    beta_m, beta_t : float

    Returns
    -------
    RankOneLimit (value, alignments)

    Raises
    ------
    InvalidArgumentError, DtypeError
        As `nested_sample`.

    References
    ----------
    Lebeau, Seddik, Goulart (as above), the theorem on the best approximation of rank one.

    Examples
    --------
    >>> from subspan.tensors import nested_rank_one
    >>> limit = nested_rank_one((100, 100, 100), 3.0, 2.0)
    >>> [round(q, 2) for q in limit.alignments]
    [0.97, 0.97, 1.0]
    """
    name = "nested_rank_one"
    bm, bt = strength(name, "beta_m", beta_m), strength(name, "beta_t", beta_t)
    return rank_one(extents(name, shape), bt * bm, bt * bt)


def nested_bound(shape: Sequence[int], beta_m: float, beta_t: float) -> float:
    r"""Alignment of y in the nested model for who knows z: no method does better.

    The mean of the views with weights z is a matrix with one spike, of squared strength
    :math:`r = \beta_M^2 \beta_T^2 / \sigma^2`, :math:`\sigma^2 = \beta_T^2 + (n_1 + n_2) / n_T`:

    .. math:: \zeta = 1 - \frac{p_2 (r + p_1)}{r (r + p_2)}, \qquad p_i = n_i / (n_1 + n_2)

    The limits of `nested_unfolding` are for :math:`\beta_T` that grows with :math:`n_T^{1/4}`, to
    which the bound for infinite :math:`\beta_T` belongs; those of `nested_rank_one` for fixed ones.

    Parameters
    ----------
    shape : (n1, n2, n3)
    beta_m, beta_t : float

    Returns
    -------
    float
        Squared inner product; 0 where the matrix shows no spike.

    Raises
    ------
    InvalidArgumentError, DtypeError
        As `nested_sample`.

    References
    ----------
    F. Benaych-Georges, R. R. Nadakuditi: The singular values and vectors of low rank perturbations
    of large rectangular random matrices, J. Multivariate Analysis 111 (2012).

    Examples
    --------
    >>> from subspan.tensors import nested_bound, nested_unfolding
    >>> shape = (300, 200, 100)
    >>> nested_bound(shape, 1.5, 2.0) > nested_unfolding(shape, 1.5, 2.0).alignment
    True
    """
    name = "nested_bound"
    n1, n2, n3 = extents(name, shape)
    b = strength(name, "beta_m", beta_m) ** 2
    h2 = strength(name, "beta_t", beta_t) ** 2
    r = b * h2 / (h2 + (n1 + n2) / (n1 + n2 + n3))
    p1, p2 = n1 / (n1 + n2), n2 / (n1 + n2)
    if r * r <= p1 * p2:
        return 0.0
    return 1 - p2 * (r + p1) / (r * (r + p2))
