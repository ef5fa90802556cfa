"""Single measures of spectra: effective ranks, dimensions, tails, decay.

All of them take ``s`` of shape (..., r), see the package.
"""

from typing import Any

import numpy as np

from subspan import _spectrum
from subspan._checks import choice, integer
from subspan._spectrum import Floats, Ints, Kind
from subspan.errors import InvalidArgumentError

__all__ = [
    "active_fraction",
    "decay_exponent",
    "dimension_for",
    "effective_rank",
    "participation_ratio",
    "rankme",
    "stable_rank",
    "tail_energy",
]

RANKME_EPS = 1e-7


def effective_rank(s: Any, *, on: Kind = "singular", kind: Kind = "singular") -> Floats:
    """Return the exponential of the entropy of the normalised spectrum.

    ``exp(-sum_i p_i log p_i)`` with ``p = sigma / sum(sigma)`` (``on="singular"``, Roy and
    Vetterli) or ``p = lambda / sum(lambda)`` (``on="variance"``: the entropy of the variance
    shares, never larger). It lies between 1 and the rank, and is r for r equal values.

    Parameters
    ----------
    s : array_like of float, shape (..., r)
        Spectra in any order.
    on : {"singular", "variance"}
        The convention: shares of singular values or of variances.
    kind : {"singular", "variance"}
        What ``s`` holds.

    Returns
    -------
    ndarray of float64, shape (...)
        Effective ranks; 0 for a spectrum of zeros.

    Raises
    ------
    InvalidArgumentError
        If ``s`` has no values, is not finite, or is negative beyond rounding.

    References
    ----------
    O. Roy, M. Vetterli, "The effective rank: a measure of effective dimensionality",
    EUSIPCO 2007, definition 1.

    Examples
    --------
    >>> from subspan import spectrum
    >>> round(float(spectrum.effective_rank([5.0, 5.0, 0.0])), 6)
    2.0
    """
    sigma, lam = _spectrum.read("effective_rank", s, kind)
    return _spectrum.entropy_rank(
        sigma if choice("effective_rank", "on", on, _spectrum.KINDS) == "singular" else lam
    )


def rankme(s: Any, *, kind: Kind = "singular", eps: float = RANKME_EPS) -> Floats:
    """Return RankMe: the effective rank with a small constant added to every share.

    ``exp(-sum_i p_i log p_i)`` with ``p = sigma / sum(sigma) + eps`` over all r values. The
    constant lifts the result above the effective rank by about ``eps r' log(1/eps)`` relative,
    r' being the number of zeros: 10 equal values among 2048 give 10.033. The published measure is
    of features that are not centred, about 25 600 rows.

    Parameters
    ----------
    s : array_like of float, shape (..., r)
        Spectra in any order, zeros included, since they count.
    kind : {"singular", "variance"}
        What ``s`` holds.
    eps : float, >= 0
        The constant; 1e-7 as published.

    Returns
    -------
    ndarray of float64, shape (...)
        RankMe; 0 for a spectrum of zeros.

    Raises
    ------
    InvalidArgumentError
        If ``s`` has no values, is not finite, or is negative beyond rounding.

    References
    ----------
    Q. Garrido, R. Balestriero, L. Najman, Y. LeCun, "RankMe: assessing the downstream performance
    of pretrained self-supervised representations by their rank", ICML 2023, equation 1.
    """
    if not (isinstance(eps, (int, float, np.floating)) and 0 <= eps < np.inf):
        raise InvalidArgumentError(f"[rankme] eps must be a finite number >= 0, got {eps!r}")
    return _spectrum.rankme(_spectrum.read("rankme", s, kind)[0], float(eps))


def participation_ratio(s: Any, *, kind: Kind = "singular") -> Floats:
    """Return ``(sum lambda)^2 / sum lambda^2`` of the variances lambda.

    Between 1 and the rank; r for r equal values. It is the inverse of the mean variance share and
    follows the leading directions more than the entropy does.

    Parameters
    ----------
    s : array_like of float, shape (..., r)
        Spectra in any order.
    kind : {"singular", "variance"}
        What ``s`` holds.

    Returns
    -------
    ndarray of float64, shape (...)
        Participation ratios; 0 for a spectrum of zeros.

    Raises
    ------
    InvalidArgumentError
        If ``s`` has no values, is not finite, or is negative beyond rounding.
    """
    return _spectrum.participation_ratio(_spectrum.read("participation_ratio", s, kind)[1])


def stable_rank(s: Any, *, kind: Kind = "singular") -> Floats:
    """Return ``|X|_F^2 / |X|_2^2``: the sum of the variances over the largest.

    Between 1 and the rank, and insensitive to small singular values.

    Parameters
    ----------
    s : array_like of float, shape (..., r)
        Spectra in any order.
    kind : {"singular", "variance"}
        What ``s`` holds.

    Returns
    -------
    ndarray of float64, shape (...)
        Stable ranks; 0 for a spectrum of zeros.

    Raises
    ------
    InvalidArgumentError
        If ``s`` has no values, is not finite, or is negative beyond rounding.
    """
    result: Floats = np.sum(_spectrum.read("stable_rank", s, kind)[1], axis=-1)
    return result


def dimension_for(s: Any, share: float, *, kind: Kind = "singular") -> Ints:
    """Return the fewest leading directions that hold a share of the variance.

    ``min{k : lambda_1 + ... + lambda_k >= share * sum(lambda)}``, the sums compared with a margin
    of r eps, so that a flat spectrum of 10 gives 9 for 0.9.

    Parameters
    ----------
    s : array_like of float, shape (..., r)
        Spectra in any order.
    share : float in (0, 1]
        Wanted share of the variance.
    kind : {"singular", "variance"}
        What ``s`` holds.

    Returns
    -------
    ndarray of int64, shape (...)
        Numbers of directions, 1 to r; 0 for a spectrum of zeros.

    Raises
    ------
    InvalidArgumentError
        If ``share`` is outside (0, 1], or ``s`` has no values, is not finite, or is negative
        beyond rounding.

    Examples
    --------
    >>> from subspan import spectrum
    >>> int(spectrum.dimension_for([8.0, 1.0, 1.0], 0.9, kind="variance"))
    2
    """
    lam = _spectrum.read("dimension_for", s, kind)[1]
    return _spectrum.dimension(
        np.cumsum(lam, axis=-1), _spectrum.check_share("dimension_for", share)
    )


def active_fraction(
    s: Any, share: float = 0.99, *, width: int | None = None, kind: Kind = "singular"
) -> Floats:
    """Return the fraction of the directions that a share of the variance needs.

    ``dimension_for(s, share) / d``: what part of a space of d features is active.

    Parameters
    ----------
    s : array_like of float, shape (..., r)
        Spectra in any order.
    share : float in (0, 1]
        Wanted share of the variance.
    width : int, >= r, or None
        d, where ``s`` holds only the r leading values or those of fewer rows than features; None
        is r.
    kind : {"singular", "variance"}
        What ``s`` holds.

    Returns
    -------
    ndarray of float64, shape (...)
        Fractions in (0, 1]; 0 for a spectrum of zeros.

    Raises
    ------
    InvalidArgumentError
        If ``share`` is outside (0, 1], ``width`` is below r, or ``s`` has no values, is not
        finite, or is negative beyond rounding.

    References
    ----------
    J. Wang et al. 2025, `arXiv:2508.16929 <https://arxiv.org/abs/2508.16929>`_: about 0.6 for the
    outputs of attention at a share of 0.99.

    Examples
    --------
    >>> from subspan import spectrum
    >>> float(spectrum.active_fraction([2.0, 2.0, 1e-3, 1e-3]))
    0.5
    """
    lam = _spectrum.read("active_fraction", s, kind)[1]
    r = lam.shape[-1]
    d = r if width is None else integer("active_fraction", "width", width, low=r)
    wanted = _spectrum.check_share("active_fraction", share)
    result: Floats = _spectrum.dimension(np.cumsum(lam, axis=-1), wanted) / d
    return result


def tail_energy(s: Any, k: int, *, kind: Kind = "singular") -> Floats:
    """Return the share of the variance outside the k leading directions.

    ``sum_{i > k} lambda_i / sum(lambda)``: the squared relative error of the best rank-k
    approximation in the Frobenius norm.

    Parameters
    ----------
    s : array_like of float, shape (..., r)
        Spectra in any order.
    k : int, >= 0
        Number of leading directions; 0 from ``k >= r`` on.
    kind : {"singular", "variance"}
        What ``s`` holds.

    Returns
    -------
    ndarray of float64, shape (...)
        Shares in [0, 1]; 0 for a spectrum of zeros.

    Raises
    ------
    InvalidArgumentError
        If ``k`` is negative, or ``s`` has no values, is not finite, or is negative beyond
        rounding.
    """
    lam = _spectrum.read("tail_energy", s, kind)[1]
    return _spectrum.tail(lam, integer("tail_energy", "k", k, low=0))


def decay_exponent(
    s: Any, *, first: int = 1, last: int | None = None, kind: Kind = "singular"
) -> Floats:
    """Return the exponent a of the power law ``lambda_i ~ i^-a`` of the variances.

    Least-squares slope of ``log lambda_i`` against ``log i`` over the ranks ``first <= i <= last``
    whose variance exceeds ``r eps lambda_1`` (below that, values are rounding). All ranks weigh the
    same, so on a log axis the tail dominates; name a range to fit another part.

    Parameters
    ----------
    s : array_like of float, shape (..., r)
        Spectra in any order.
    first, last : int
        Range of ranks, counted from 1, both included; ``last=None`` is r.
    kind : {"singular", "variance"}
        What ``s`` holds; the exponent is that of the variances for both.

    Returns
    -------
    ndarray of float64, shape (...)
        Exponents (positive for a falling spectrum); NaN where fewer than two ranks can be fitted.

    Raises
    ------
    InvalidArgumentError
        If the range is not ``1 <= first <= last <= r``, or ``s`` has no values, is not finite, or
        is negative beyond rounding.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan import spectrum
    >>> variances = np.arange(1, 101) ** -1.5
    >>> round(float(spectrum.decay_exponent(variances, kind="variance")), 6)
    1.5
    """
    lam = _spectrum.read("decay_exponent", s, kind)[1]
    r = lam.shape[-1]
    first = integer("decay_exponent", "first", first, low=0)
    last = r if last is None else integer("decay_exponent", "last", last, low=0)
    if not 1 <= first <= last <= r:
        raise InvalidArgumentError(
            f"[decay_exponent] first and last must satisfy 1 <= first <= last <= {r} "
            f"(size of the last axis of s), got {first} and {last}"
        )
    return _spectrum.decay(lam, first, last)
