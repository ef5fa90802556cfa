"""Absorption: latents that take over a concept where a more special one is active."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from subspan import _checks
from subspan._arrays import require_array, to_numpy
from subspan._rows import float64_block
from subspan.errors import InvalidArgumentError
from subspan.sae._entries import entries, rows_of

__all__ = ["Absorption", "absorption"]

Floats = NDArray[np.float64]


class Absorption(NamedTuple):
    """How much of a concept its own latents miss because others stand for it."""

    full_rate: float
    """Share of the rows with the concept that are absorbed in full; NaN without such rows."""
    mean_fraction: float
    """Mean of ``fraction`` over the rows with the concept; NaN without such rows."""
    full: NDArray[np.bool_]
    """(rows,) whether no main latent fires and one other carries the concept."""
    fraction: Floats
    """(rows,) share of the concept that other latents carry, 0..1; 0 in rows without it."""


def absorption(
    x: Any,
    code: Any,
    w_dec: Any,
    *,
    probe: Any,
    main: Any,
    present: Any,
    fires_above: float = 0.0,
    min_cosine: float = 0.025,
    min_fraction_cosine: float = 0.1,
    min_share: float = 0.4,
    top: int = 3,
) -> Absorption:
    """Return in which rows a concept is carried by latents that are not its own.

    With p the unit probe and ``c_i = f_i <w_dec_i, p>`` what latent i carries of the concept:

    A row is absorbed in full if no main latent fires, x has ``<x, p> >= 0``, and the latent with
    the largest c_i has a cosine with p of at least ``min_cosine`` and
    ``c_i >= min_share <x, p>``.

    The fraction: M is the sum of c_i of the main latents, A that of the ``top`` largest positive
    ones among others with a cosine of at least ``min_fraction_cosine``. It is 0 where
    ``M >= <x, p>`` or ``A < min_share <x, p>``, else 1 where M <= 0, else A' / (A' + M) with
    ``A' = min(A, <x, p> - M)``.

    Parameters
    ----------
    x : array (rows, d)
    code : SparseCode or RaggedCode
        Of these rows.
    w_dec : array (n, d)
    probe : array (d,)
        The direction of the concept: of a linear probe or, on made-up data, the true one.
    main : array of int
        The latents of the concept itself.
    present : array of bool (rows,)
        Rows that have the concept and in which the probe finds it.
    fires_above : float
        A main latent fires where its absolute value exceeds this.
    min_cosine, min_fraction_cosine, min_share : float
    top : int

    Returns
    -------
    Absorption (full_rate, mean_fraction, full, fraction)

    Raises
    ------
    InvalidArgumentError
        Shapes or indices do not fit, or the probe is zero or not finite.
    DtypeError
        An argument is no array, or ``code`` no code.

    Notes
    -----
    2 d flops for each latent, once, and a few operations for each entry of the code. Lengths of
    decoder rows and of the probe do not matter.

    Chanin et al. 2024, `arXiv:2409.14507 <https://arxiv.org/abs/2409.14507>`_; thresholds and the
    fraction as in SAEBench, whose rates are means over 26 letters, one call each.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan import SparseCode
    >>> from subspan.sae.metrics import absorption
    >>> w_dec = np.array([[1.0, 0.0], [0.6, 0.8]])  # latent 1 holds a part of concept 0
    >>> x = np.array([[1.0, 0.0], [0.6, 0.8]])
    >>> code = SparseCode(np.array([[1.0], [1.0]]), np.array([[0], [1]]))
    >>> found = absorption(x, code, w_dec, probe=w_dec[0], main=[0], present=x[:, 0] > 0)
    >>> found.full_rate, found.fraction
    (0.5, array([0., 1.]))
    """
    function = "absorption"
    for name, each in (("w_dec", w_dec), ("probe", probe)):
        require_array(function, name, each)
    _checks.ndim(function, "w_dec", w_dec, 2)
    n, d = (int(extent) for extent in w_dec.shape)
    found = entries(function, code, n)
    x = float64_block(rows_of(function, "x", x, found.n_rows))
    if x.shape[1] != d or tuple(probe.shape) != (d,):
        raise InvalidArgumentError(
            f"[{function}] x and probe must have d = {d} columns like w_dec, got {x.shape[1]} and "
            f"shape {tuple(probe.shape)}"
        )
    main = _latents(function, main, n)
    present = np.asarray(to_numpy(present), dtype=bool)
    if present.shape != (found.n_rows,):
        raise InvalidArgumentError(
            f"[{function}] present must have shape ({found.n_rows},), got {present.shape}"
        )
    top = _checks.integer(function, "top", top, low=1)
    direction = float64_block(probe)
    length = np.linalg.norm(direction)
    if not (np.isfinite(length) and length > 0):
        raise InvalidArgumentError(
            f"[{function}] probe must be finite and not zero, got length {length}"
        )
    direction = direction / length

    along = float64_block(w_dec) @ direction
    lengths = np.linalg.norm(float64_block(w_dec), axis=1)
    cosines = np.divide(along, lengths, out=np.zeros(n), where=lengths > 0)
    wanted = x @ direction
    rows, latents = found.rows, found.latents
    carried = found.values * along[latents]
    own = main[latents]

    fired = np.zeros(found.n_rows, bool)
    fired[rows[own & (np.abs(found.values) > fires_above)]] = True
    best = _largest(rows[~own], carried[~own], found.n_rows, 1)
    strongest = np.flatnonzero(~own)[best]
    full = np.zeros(found.n_rows, bool)
    at = rows[strongest]
    full[at] = (cosines[latents[strongest]] >= min_cosine) & (
        carried[strongest] >= min_share * wanted[at]
    )
    full &= present & ~fired & (wanted >= 0)

    mine = np.bincount(rows[own], carried[own], found.n_rows)
    others = np.flatnonzero(~own & (carried > 0) & (cosines[latents] >= min_fraction_cosine))
    kept = others[_largest(rows[others], carried[others], found.n_rows, top)]
    absorbed = np.bincount(rows[kept], carried[kept], found.n_rows)
    taken = np.minimum(absorbed, wanted - mine)
    share = np.divide(taken, taken + mine, out=np.ones_like(taken), where=mine > 0)
    some = present & (mine < wanted) & (absorbed >= min_share * wanted) & (absorbed > 0)
    fraction = np.where(some, share, 0.0)
    count = int(present.sum())
    rates = (full.sum() / count, fraction.sum() / count) if count else (float("nan"),) * 2
    return Absorption(float(rates[0]), float(rates[1]), full, fraction)


def _latents(function: str, main: Any, n: int) -> NDArray[np.bool_]:
    """Return which of the n latents are the concept's own."""
    main = np.atleast_1d(np.asarray(main if not hasattr(main, "detach") else to_numpy(main)))
    if main.dtype.kind not in "iu" or (main.size and not 0 <= main.min() <= main.max() < n):
        raise InvalidArgumentError(
            f"[{function}] main must be indices of latents in 0..{n - 1}, got {main}"
        )
    own = np.zeros(n, bool)
    own[main] = True
    return own


def _largest(rows: NDArray[np.int64], values: Floats, n_rows: int, top: int) -> NDArray[np.int64]:
    """Return the places of the ``top`` largest values of every row."""
    order = np.lexsort((-values, rows))
    starts = np.searchsorted(rows[order], np.arange(n_rows))
    rank = np.arange(len(order)) - starts[rows[order]]
    places: NDArray[np.int64] = order[rank < top]
    return places
