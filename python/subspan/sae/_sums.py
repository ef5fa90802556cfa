"""Sums over rows and their reconstructions, which merge, and the variances they explain."""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subspan._arrays import require_array
from subspan._rows import float64_block, row_blocks
from subspan.errors import InvalidArgumentError

__all__ = ["FORMS", "Sums", "nothing", "ratio", "sums_of"]

FORMS = ("variance", "residual_variance", "saelens_compat", "saelens_legacy")
_SMALL = 1e-4  # shorter rows count as of length 1 in the ratio of lengths, as in SAELens

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Sums:
    """Sums over rows; those of two sets of rows merge into those of both."""

    rows: int
    mean: Floats  # (d,) of x
    spread: Floats  # (d,) sum of squared deviations of x from its mean
    error_mean: Floats  # (d,) of e = x - x̂
    error_spread: Floats
    square: float  # of x
    recon_square: float  # of x̂
    product: float  # of x with x̂
    cosine: float
    length_ratio: float
    square_ratio: float  # |e|^2 / |x|^2 of every row
    square_rows: int  # that have it
    legacy: float  # 1 - |e|^2 / |x - mean of the batch|^2 of every row
    legacy_rows: int

    def __add__(self, other: "Sums") -> "Sums":
        merged: dict[str, Any] = {}
        for mean, spread in (("mean", "spread"), ("error_mean", "error_spread")):
            a, b = getattr(self, mean), getattr(other, mean)
            weight = other.rows / max(self.rows + other.rows, 1)
            merged[mean] = a + (b - a) * weight
            merged[spread] = getattr(self, spread) + getattr(other, spread)
            merged[spread] += (b - a) ** 2 * (self.rows * weight)
        for each in fields(self):
            if each.name not in merged:
                merged[each.name] = getattr(self, each.name) + getattr(other, each.name)
        return Sums(**merged)

    def explained(self, form: str) -> float:
        error = self.error_spread.sum() + self.rows * (self.error_mean**2).sum()
        total = self.spread.sum()
        if form == "residual_variance":
            return 1 - ratio(self.error_spread.sum(), total)
        if form == "saelens_compat":
            square = self.square / max(self.rows, 1)
            return 1 - ratio(error / max(self.rows, 1), square - (square / len(self.mean)) ** 2)
        if form == "saelens_legacy":
            return ratio(self.legacy, self.legacy_rows)
        return 1 - ratio(error, total)


def nothing(d: int) -> Sums:
    zeros: dict[str, Any] = {each.name: 0 for each in fields(Sums)}
    per_column = ("mean", "spread", "error_mean", "error_spread")
    return Sums(**zeros | {name: np.zeros(d) for name in per_column})


def _block(x: Any, x_hat: Any, mean: Floats) -> Sums:
    """Return the sums of one block of rows; ``mean`` is that of the batch it is part of."""
    x, x_hat = float64_block(x), float64_block(x_hat)
    error = x - x_hat
    square, recon = (np.einsum("ij,ij->i", each, each) for each in (x, x_hat))
    product = np.einsum("ij,ij->i", x, x_hat)
    lost = np.einsum("ij,ij->i", error, error)
    around = np.einsum("ij,ij->i", x - mean, x - mean)
    length = np.sqrt(square)
    lengths = np.sqrt(square * recon)
    spreads = [((each - each.mean(axis=0)) ** 2).sum(axis=0) for each in (x, error)]
    return Sums(
        rows=len(x),
        mean=x.mean(axis=0),
        spread=spreads[0],
        error_mean=error.mean(axis=0),
        error_spread=spreads[1],
        square=square.sum(),
        recon_square=recon.sum(),
        product=product.sum(),
        cosine=(product[lengths > 0] / lengths[lengths > 0]).sum(),
        length_ratio=(np.sqrt(recon) / np.where(length < _SMALL, 1.0, length)).sum(),
        square_ratio=(lost[square > 0] / square[square > 0]).sum(),
        square_rows=int((square > 0).sum()),
        legacy=(1 - lost[around > 0] / around[around > 0]).sum(),
        legacy_rows=int((around > 0).sum()),
    )


def sums_of(function: str, x: Any, x_hat: Any) -> Sums:
    require_array(function, "x_hat", x_hat)
    if tuple(x.shape) != tuple(x_hat.shape):
        raise InvalidArgumentError(
            f"[{function}] x_hat must have the shape of x, {tuple(x.shape)}, got "
            f"{tuple(x_hat.shape)}"
        )
    d = int(x.shape[1])
    blocks = list(row_blocks(x))
    mean = np.zeros(d)
    for start, stop in blocks:
        mean += float64_block(x[start:stop]).sum(axis=0) / len(x)
    total = nothing(d)
    with np.errstate(all="ignore"):  # what is not finite is refused below
        for start, stop in blocks:
            total += _block(x[start:stop], x_hat[start:stop], mean)
    for name, value in (("x", total.square), ("x_hat", total.recon_square)):
        if not np.isfinite(value):
            raise InvalidArgumentError(
                f"[{function}] {name} must be finite, got a sum of squares of {value}. "
                "Leave out rows with NaN or infinity"
            )
    return total


def ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")
