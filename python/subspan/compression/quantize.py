"""Integers for values, with a scale for each group; and two widths in a principal basis (ResQ)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import subspan
from subspan import _arrays, _checks
from subspan.compression._inputs import Floats, grams_of, like
from subspan.compression._turns import basis, high_of
from subspan.compression.storage import Storage, quantized_storage
from subspan.errors import InvalidArgumentError

__all__ = ["MixedBasis", "Quantized", "mixed_basis", "quantize"]

_SHRINKS = np.linspace(1.0, 0.5, 11)[1:]  # parts of a range that are tried where it may be clipped


@dataclass(frozen=True)
class Quantized:
    """``x ~ (values - zeros) * scales``, group by group along the last axis."""

    values: NDArray[np.int32]
    """(..., d) integers of ``bits`` bits."""
    scales: Floats
    """(..., groups)"""
    zeros: NDArray[np.int32] | None
    """(..., groups) integers that stand for zero; None if symmetric."""
    bits: int
    group: int
    like: Any
    """What was quantised, for library and dtype."""

    def dequantize(self) -> Any:
        """Return the values (..., d) in the library and dtype of what was quantised."""
        spread = np.repeat(self.scales, self.group, axis=-1)
        shift = 0 if self.zeros is None else np.repeat(self.zeros, self.group, axis=-1)
        return like(self.like, (self.values - shift) * spread)

    def storage(self, *, scale_bits: int = 16) -> Storage:
        """Return the bytes: packed integers, scales, and zeros of as many bits as the values."""
        zero_bits = 0 if self.zeros is None else self.bits
        return quantized_storage(
            self.values.size, bits=self.bits, group=self.group, scale_bits=scale_bits,
            zero_bits=zero_bits,
        )  # fmt: skip


def quantize(
    x: Any, bits: int, *, group: int | None = None, symmetric: bool = False, clip: bool = False
) -> Quantized:
    r"""Round values to integers with a scale, and a zero point unless symmetric, for each group.

    .. math:: q = \mathrm{clamp}(\mathrm{round}(x / \Delta) + z, 0, 2^b - 1), \quad
              \Delta = \frac{\max - \min}{2^b - 1}, \quad z = \mathrm{round}(-\min / \Delta)

    Ranges contain 0. Symmetric: :math:`\Delta = \max |x| / (2^{b-1} - 1)` and no z.

    Parameters
    ----------
    x : array (..., d)
        float16, bfloat16, float32 or float64 of numpy, torch (CPU) or another library with DLPack.
    bits : int
        2..16.
    group : int, optional
        Neighbours along the last axis that share a scale, a divisor of d; d if left out.
    symmetric : bool
        See above.
    clip : bool
        Shrink the range of each group, down to half, where that makes its squared error smaller:
        few large values are cut off for the sake of all others.

    Returns
    -------
    Quantized
        A group of zeros has the scale 1 if symmetric, and that of [-1, 1] if not.

    Raises
    ------
    InvalidArgumentError, DtypeError
        bits or group out of range, NaN or infinity, not a float array.

    References
    ----------
    U. Saxena et al.: ResQ, `arXiv:2412.14363 <https://arxiv.org/abs/2412.14363>`_; the rules for
    ranges are those of its published code, which clips weights by a search of the same kind.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.compression import quantize
    >>> found = quantize(np.array([-1.0, 0.0, 0.5, 2.0]), 2)
    >>> found.values, found.dequantize()
    (array([0, 1, 1, 3], dtype=int32), array([-1.,  0.,  0.,  2.]))
    """
    function = "quantize"
    _arrays.require_array(function, "x", x)
    _checks.ndim(function, "x", x, 1, or_more=True)
    wide = _wide(function, x)
    d = wide.shape[-1]
    bits = _checks.integer(function, "bits", bits, low=2, high=16)
    size = d if group is None else _checks.integer(function, "group", group, low=1, high=d)
    if d % size:
        raise InvalidArgumentError(
            f"[{function}] group must divide the last axis of x ({d}), got {size}"
        )
    cut = wide.reshape(*wide.shape[:-1], d // size, size)
    values, scales, zeros = _coded(cut, bits, symmetric, 1.0)
    if clip:
        least = _squared_error(cut, values, scales, zeros)
        for shrink in _SHRINKS:
            other = _coded(cut, bits, symmetric, shrink)
            error = _squared_error(cut, *other)
            better = error < least
            least = np.where(better, error, least)
            values = np.where(better[..., None], other[0], values)
            scales, zeros = (
                np.where(better, new, old)
                for new, old in zip(other[1:], (scales, zeros), strict=True)
            )
    shift = None if symmetric else zeros.astype(np.int32)
    return Quantized(values.astype(np.int32).reshape(wide.shape), scales, shift, bits, size, x)


def _coded(cut: Floats, bits: int, symmetric: bool, shrink: float) -> tuple[Floats, Floats, Floats]:
    """Return integers, scales and zeros of groups (..., group) for a part of their range."""
    if symmetric:
        top = 2 ** (bits - 1) - 1
        largest = shrink * np.abs(cut).max(axis=-1)
        scales = np.where(largest > 0, largest / top, 1.0)
        values = np.clip(np.round(cut / scales[..., None]), -top - 1, top)
        return values, scales, np.zeros_like(scales)
    top = 2**bits - 1
    low = shrink * np.minimum(cut.min(axis=-1), 0.0)
    high = shrink * np.maximum(cut.max(axis=-1), 0.0)
    empty = low == high
    low, high = np.where(empty, -1.0, low), np.where(empty, 1.0, high)
    scales = (high - low) / top
    zeros = np.round(-low / scales)
    return np.clip(np.round(cut / scales[..., None]) + zeros[..., None], 0, top), scales, zeros


def _squared_error(cut: Floats, values: Floats, scales: Floats, zeros: Floats) -> Floats:
    away = (values - zeros[..., None]) * scales[..., None] - cut
    found: Floats = np.einsum("...i,...i->...", away, away)
    return found


@dataclass(frozen=True)
class MixedBasis:
    """An orthogonal basis whose last ``high`` coordinates hold most and get more bits."""

    rotation: Floats
    """(d, d) with columns for low coordinates first, then high; each block turned at random."""
    high: int
    """Coordinates of high precision."""

    def quantize(
        self, x: Any, *, low_bits: int = 4, high_bits: int = 8, symmetric: bool = False
    ) -> tuple[Quantized, Quantized]:
        """Return the low and the high coordinates of rows (..., d), each with scales of its own."""
        turned = _wide("MixedBasis.quantize", x) @ self.rotation
        cut = turned.shape[-1] - self.high
        parts = (turned[..., :cut], low_bits), (turned[..., cut:], high_bits)
        low, high = (quantize(like(x, part), bits, symmetric=symmetric) for part, bits in parts)
        return low, high

    def dequantize(self, low: Quantized, high: Quantized) -> Any:
        """Return the rows (..., d) that were quantised, but for the rounding."""
        parts = [np.asarray(_arrays.to_numpy(q.dequantize()), np.float64) for q in (low, high)]
        return like(low.like, np.concatenate(parts, axis=-1) @ self.rotation.T)


def mixed_basis(gram: Any, *, high_fraction: float = 0.125, seed: int = 0) -> MixedBasis:
    r"""Return the basis in which few coordinates of high precision keep the most (ResQ).

    .. math:: U = P \,\mathrm{blockdiag}(R_{low}, R_{high})

    P has the principal directions by rising variance; R are random rotations that even out the
    coordinates inside each block: Hadamard matrices with random signs where one is at hand (powers
    of two, times 1 or one more than a prime that is 3 mod 4), else orthogonal factors of Gaussian
    matrices.

    Parameters
    ----------
    gram : array (d, d) or Moments
        Second moments of what is to be quantised.
    high_fraction : float in (0, 1)
        Share of coordinates of high precision; at least one, and not all.
    seed : int
        Of the rotations.

    Returns
    -------
    MixedBasis
        For 4 and 8 bits and an eighth, 4.5 bits a value, scales aside.

    Raises
    ------
    InvalidArgumentError, DtypeError
        Not square, NaN or infinity, fewer than two columns, a fraction out of range.

    References
    ----------
    U. Saxena et al.: ResQ, `arXiv:2412.14363 <https://arxiv.org/abs/2412.14363>`_, section 4.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.compression import mixed_basis
    >>> x = np.random.default_rng(0).normal(size=(100, 16)) * 0.5 ** np.arange(16)
    >>> basis = mixed_basis(x.T @ x)
    >>> low, high = basis.quantize(x)
    >>> bits = low.values.size * low.bits + high.values.size * high.bits
    >>> bits / x.size, bool(np.abs(basis.dequantize(low, high) - x).max() < 0.1)
    (4.5, True)
    """
    function = "mixed_basis"
    if not isinstance(gram, subspan.Moments):
        _arrays.require_array(function, "gram", gram)
        _checks.ndim(function, "gram", gram, 2)
    d = gram.n_features if isinstance(gram, subspan.Moments) else int(gram.shape[-1])
    if d < 2:
        raise InvalidArgumentError(f"[{function}] gram must have two columns or more, got {d}")
    (g,) = grams_of(function, gram, (), d, None)
    share = _checks.real(function, "high_fraction", high_fraction, low=0.0, high=1.0)
    rng = np.random.default_rng(_checks.integer(function, "seed", seed, low=0))
    high = high_of(d, share)
    return MixedBasis(basis("resq", g, high, rng), high)


def _wide(function: str, x: Any) -> Floats:
    wide = np.asarray(_arrays.to_numpy(x), np.float64)
    if not np.isfinite(wide).all():
        raise InvalidArgumentError(f"[{function}] x must be finite, got NaN or infinity")
    return wide
