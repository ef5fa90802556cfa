"""All measures at once: of spectra, and of the features of every layer."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from subspan import Moments, _spectrum, eigvalsh
from subspan._arrays import library_of
from subspan._checks import integer
from subspan._rows import as_rows, check_finite, float64_block, row_blocks
from subspan._spectrum import Floats, Ints, Kind
from subspan.errors import DtypeError, InvalidArgumentError
from subspan.spectrum.measures import RANKME_EPS

__all__ = ["LayerSpectra", "SpectrumStats", "by_layer", "stats"]


class SpectrumStats(NamedTuple):
    """Result of :func:`stats`; every array has the leading shape of the spectra.

    Attributes
    ----------
    effective_rank : ndarray of float64
        exp of the entropy of the singular values divided by their sum.
    effective_rank_variance : ndarray of float64
        exp of the entropy of the variances divided by their sum.
    rankme : ndarray of float64
        As ``effective_rank`` with 1e-7 added to every share.
    participation_ratio : ndarray of float64
        (sum of variances)^2 / sum of squared variances.
    stable_rank : ndarray of float64
        Sum of variances / largest variance.
    dim_90, dim_99 : ndarray of int64
        Fewest leading directions that hold 90 % and 99 % of the variance.
    top_share : ndarray of float64
        Share of the variance in the first direction.
    tail_energy : ndarray of float64
        Share of the variance outside the first ``tail`` directions.
    decay_exponent : ndarray of float64
        a of the power law ``variance_i ~ i^-a``; NaN if fewer than two values are positive.
    dimensions : ndarray of int64, shape (..., len(shares))
        Fewest leading directions for each of ``shares``; the only field with a further axis.
    """

    effective_rank: Floats
    effective_rank_variance: Floats
    rankme: Floats
    participation_ratio: Floats
    stable_rank: Floats
    dim_90: Ints
    dim_99: Ints
    top_share: Floats
    tail_energy: Floats
    decay_exponent: Floats
    dimensions: Ints


def stats(
    s: Any,
    *,
    kind: Kind = "singular",
    shares: tuple[float, ...] = (0.9, 0.99),
    tail: int = 10,
) -> SpectrumStats:
    """Return every measure of this module for one spectrum or a batch of spectra.

    Parameters
    ----------
    s : array_like of float, shape (..., r)
        Spectra in any order. Zeros are allowed; negative values are taken as zero when they are
        within r eps of the largest (eps of the dtype of ``s``) and refused otherwise.
    kind : {"singular", "variance"}
        What ``s`` holds: singular values of the data, or variances, which are their squares up
        to a factor (eigenvalues of a covariance or Gram matrix).
    shares : tuple of float in (0, 1]
        Shares of the variance for ``dimensions``.
    tail : int
        Number of leading directions that ``tail_energy`` leaves out.

    Returns
    -------
    SpectrumStats
        NamedTuple of arrays of shape (...).

    Raises
    ------
    InvalidArgumentError
        If ``s`` has no values, is not finite, or is negative beyond rounding.
    DtypeError
        If ``s`` is not real, or an argument is of a wrong type.

    Notes
    -----
    Sorting dominates: O(r log r) per spectrum. Where the spectra were cut off (only the k largest
    singular values were computed), all measures are of the cut spectrum.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan import spectrum
    >>> result = spectrum.stats(np.array([3.0, 3.0, 3.0, 0.0]))
    >>> round(float(result.effective_rank), 6), int(result.dim_99)
    (3.0, 3)
    """
    sigma, lam = _spectrum.read("stats", s, kind)
    wanted = [_spectrum.check_share("stats", share) for share in shares]
    energy = np.cumsum(lam, axis=-1)
    dimensions = [_spectrum.dimension(energy, share) for share in wanted]
    empty = np.empty((*lam.shape[:-1], 0), dtype=np.int64)
    return SpectrumStats(
        effective_rank=_spectrum.entropy_rank(sigma),
        effective_rank_variance=_spectrum.entropy_rank(lam),
        rankme=_spectrum.rankme(sigma, RANKME_EPS),
        participation_ratio=_spectrum.participation_ratio(lam),
        stable_rank=np.sum(lam, axis=-1),
        dim_90=_spectrum.dimension(energy, 0.9),
        dim_99=_spectrum.dimension(energy, 0.99),
        top_share=_spectrum.ratio(lam[..., 0], np.sum(lam, axis=-1)),
        tail_energy=_spectrum.tail(lam, integer("stats", "tail", tail, low=0)),
        decay_exponent=_spectrum.decay(lam, 1, lam.shape[-1]),
        dimensions=np.stack(dimensions, axis=-1) if dimensions else empty,
    )


class LayerSpectra(NamedTuple):
    """Result of :func:`by_layer`: names, and arrays with one entry for each layer.

    Attributes
    ----------
    names : tuple of str
        Layers in the order that they were given.
    widths, rows : ndarray of int64, shape (L,)
        Features, and rows that were seen.
    active_fraction : ndarray of float64, shape (L,)
        Share of the directions that 99 % of the variance needs.
    stats : SpectrumStats
        All measures; ``stats.effective_rank_variance`` and ``stats.effective_rank`` are the
        effective feature ranks by the variances and by the singular values.
    spectra : tuple of ndarray of float64, shapes (d,)
        Variances of each layer, descending.
    """

    names: tuple[str, ...]
    widths: Ints
    rows: Ints
    active_fraction: Floats
    stats: SpectrumStats
    spectra: tuple[Floats, ...]


def by_layer(
    layers: Mapping[str, Any],
    *,
    centred: bool = True,
    shares: tuple[float, ...] = (0.9, 0.99),
    tail: int = 10,
) -> LayerSpectra:
    """Return how many directions the features of every layer use.

    The spectrum of a layer is that of the covariance of its rows, or of their second moment.

    Parameters
    ----------
    layers : mapping of str to Moments or array (n, d)
        State or rows of each layer; widths and numbers of rows may differ. Rows are numpy, torch
        or cupy arrays of floats, read in blocks.
    centred : bool
        True: the covariance. False: the second moment about 0, as for RankMe.
    shares, tail
        As for :func:`stats`.

    Returns
    -------
    LayerSpectra
        NamedTuple of names, sizes, fractions, measures and spectra.

    Raises
    ------
    InvalidArgumentError
        If there is no layer, a layer has fewer than two rows (one, if not centred), or a value is
        not finite.
    DtypeError
        If ``layers`` is no mapping, or a layer is neither a Moments nor an array.

    Notes
    -----
    n d^2 flops for rows (none for a Moments) and about 4 d^3 / 3 for each layer; variances within
    d eps of the largest are rounding.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan import spectrum
    >>> rng = np.random.default_rng(0)
    >>> wide = rng.normal(size=(400, 8))
    >>> found = spectrum.by_layer({"0": wide, "1": wide[:, :2] @ rng.normal(size=(2, 6))})
    >>> found.stats.dim_99.tolist(), found.active_fraction.round(2).tolist()
    ([8, 2], [1.0, 0.33])
    """
    if not isinstance(layers, Mapping):
        raise DtypeError(
            f"[by_layer] layers must be a mapping of names to Moments or rows, got "
            f"{type(layers).__name__}"
        )
    if not layers:
        raise InvalidArgumentError("[by_layer] layers must have at least one layer, got none")
    if not isinstance(centred, (bool, np.bool_)):
        raise DtypeError(f"[by_layer] centred must be a bool, got {centred!r}")
    states = {str(name): _moments(str(name), layer) for name, layer in layers.items()}
    spectra = [_variances(name, state, bool(centred)) for name, state in states.items()]
    each = [stats(s, kind="variance", shares=shares, tail=tail) for s in spectra]
    widths = np.array([len(s) for s in spectra], dtype=np.int64)
    whole = SpectrumStats(*(np.stack(parts) for parts in zip(*each, strict=True)))
    return LayerSpectra(
        tuple(states),
        widths,
        np.array([state.count for state in states.values()], dtype=np.int64),
        whole.dim_99 / widths,
        whole,
        tuple(spectra),
    )


def _moments(name: str, layer: Any) -> Moments:
    if isinstance(layer, Moments):
        return layer
    if not library_of(layer):
        raise DtypeError(
            f"[by_layer] layer {name!r} must be a Moments or an array, got {type(layer).__name__}"
        )
    rows = as_rows(layer, f"by_layer: {name}")
    check_finite(rows, f"by_layer: {name}")
    state = Moments(precision="float64")
    for start, stop in row_blocks(rows):
        state.update(float64_block(rows[start:stop]))
    return state


def _variances(name: str, state: Moments, centred: bool) -> Floats:
    least = 2 if centred else 1
    if state.count < least:
        raise InvalidArgumentError(
            f"[by_layer] layer {name!r} must have at least {least} rows, got {state.count}"
        )
    matrix = state.covariance() if centred else state.second_moment()
    values: Floats = eigvalsh(matrix)[::-1]
    return np.maximum(values, 0.0)  # products of float32 may lie behind a state
