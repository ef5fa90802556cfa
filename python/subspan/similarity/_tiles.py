"""Inner products of N x N kernels of many layers, tile by tile: none is ever there as a whole."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from subspan.errors import InvalidArgumentError
from subspan.similarity._layers import Floats, Layer
from subspan.similarity._progress import Steps

__all__ = [
    "CallableTiles",
    "GaussianTiles",
    "Kernel",
    "TileSums",
    "Tiles",
    "tile_sums",
    "tiles_of",
]

Kernel = Callable[[Floats, Floats], Floats]
"""Rows (p, d) and (q, d) to kernel values (p, q)."""

# Entries of the tiles of all layers: some megabytes, near the caches.
_TILES = 1 << 22
_LEAST, _MOST = 64, 1024
# Terms that are summed in the dtype of the tiles before float64 takes over.
_RUN = 4096
# Rows from which bandwidths and shifts are taken.
_SAMPLE = 1024


class Tiles(Protocol):
    """A kernel of the rows of one layer."""

    def into(self, out: Floats, first: slice, second: slice) -> None:
        """Write the values of two ranges of rows, less a constant of the layer."""

    def diagonal(self) -> NDArray[np.float64]:
        """Return the values of each row with itself, less the same constant."""

    def permuted(self, order: NDArray[np.int64]) -> "Tiles":
        """Return the kernel of the rows in another order."""


class GaussianTiles:
    """``exp(-|x - y|^2 / (2 sigma^2)) - c``, sigma a multiple of the median distance.

    HSIC does not change with c. The mean of a sample of the kernel as c leaves small numbers, whose
    sums in float32 lose less.
    """

    def __init__(self, rows: Floats, sigma: float, shift: float) -> None:
        self.sigma, self.shift = sigma, shift
        self.rows = rows / rows.dtype.type(sigma) if sigma else rows
        self.halves = 0.5 * np.einsum("ij,ij->i", self.rows, self.rows)

    @classmethod
    def of(cls, rows: Floats, bandwidth: float) -> "GaussianTiles":
        """Return the kernel with sigma = bandwidth x median distance of different rows."""
        sample = rows[_spread(len(rows))].astype(np.float64)
        squares = np.einsum("ij,ij->i", sample, sample)
        distances = squares[:, None] + squares - 2.0 * sample @ sample.T
        middle = np.median(distances[np.triu_indices(len(sample), 1)])
        sigma = bandwidth * float(np.sqrt(max(middle, 0.0)))
        shift = float(np.exp(np.minimum(-0.5 / sigma**2 * distances, 0.0)).mean()) if sigma else 1.0
        return cls(rows, sigma, shift)

    def into(self, out: Floats, first: slice, second: slice) -> None:
        np.matmul(self.rows[first], self.rows[second].T, out=out)
        out -= self.halves[first, None]
        out -= self.halves[second]
        np.minimum(out, 0.0, out=out)
        np.exp(out, out=out)
        out -= out.dtype.type(self.shift)

    def diagonal(self) -> NDArray[np.float64]:
        return np.full(len(self.rows), 1.0 - float(self.rows.dtype.type(self.shift)))

    def permuted(self, order: NDArray[np.int64]) -> "GaussianTiles":
        other = object.__new__(GaussianTiles)
        other.sigma, other.shift = self.sigma, self.shift
        other.rows, other.halves = self.rows[order], self.halves[order]
        return other


class CallableTiles:
    """A kernel of the caller's, of rows as they came in."""

    def __init__(self, message: str, rows: Floats, kernel: Kernel, dtype: np.dtype[Any]) -> None:
        self.message, self.rows, self.kernel, self.dtype = message, rows, kernel, dtype
        sample = np.asarray(rows[_spread(len(rows))], dtype)
        self.shift = float(self._values(sample, sample).mean())

    def _values(self, a: Floats, b: Floats) -> NDArray[np.float64]:
        values = np.asarray(self.kernel(a, b), np.float64)
        wanted = (len(a), len(b))
        if values.shape != wanted or not np.isfinite(values).all():
            what = "NaN or infinity" if values.shape == wanted else f"shape {values.shape}"
            raise InvalidArgumentError(
                f"{self.message} must return finite values of shape {wanted} for rows of shapes "
                f"{a.shape} and {b.shape}, got {what}"
            )
        return values

    def into(self, out: Floats, first: slice, second: slice) -> None:
        a, b = (np.asarray(self.rows[part], self.dtype) for part in (first, second))
        np.subtract(self._values(a, b), self.shift, out=out, casting="same_kind")

    def diagonal(self) -> NDArray[np.float64]:
        out = np.empty(len(self.rows))
        for start in range(0, len(out), _LEAST):
            block = np.asarray(self.rows[start : start + _LEAST], self.dtype)
            out[start : start + _LEAST] = np.diagonal(self._values(block, block))
        return out - self.shift

    def permuted(self, order: NDArray[np.int64]) -> "CallableTiles":
        other = object.__new__(CallableTiles)
        other.message, other.kernel, other.dtype = self.message, self.kernel, self.dtype
        other.rows, other.shift = self.rows[order], self.shift
        return other


def tiles_of(function: str, layer: Layer, kernel: str | Kernel, bandwidth: float) -> Tiles:
    """Return the caller's kernel of a layer, or the Gaussian."""
    if callable(kernel):
        message = f"[{function}] kernel of {layer.name}"
        return CallableTiles(message, layer.source, kernel, layer.rows.dtype)
    return GaussianTiles.of(layer.rows, bandwidth)


class TileSums(NamedTuple):
    """What HSIC needs to know of kernels K_l and L_m, diagonals apart."""

    cross: NDArray[np.float64]
    """(L, M) sums of ``K_ij L_ij`` over i != j."""
    rows: NDArray[np.float64]
    """(L, N) sums of ``K_ij`` over j != i."""


def tile_sums(
    left: Sequence[Tiles],
    right: Sequence[Tiles] | None,
    n: int,
    dtype: np.dtype[Any],
    steps: Steps,
) -> TileSums:
    """Sum products of kernels over all pairs of different rows; ``right`` None is ``left``.

    N^2 flops for each column of each layer, as kernels are symmetric. Scratch: the tiles of all
    layers, 4 million entries or 64 x 64 for each.
    """
    many = len(left) + len(right or ())
    side = min(n, int(np.clip(np.sqrt(_TILES / many) // 64 * 64, _LEAST, _MOST)))
    buffers = [np.empty(len(kernels) * side * side, dtype) for kernels in (left, right or ())]
    cross = np.zeros((len(left), len(left if right is None else right)))
    rows = np.zeros((len(left), n))
    blocks = list(_upper_blocks(n, side))
    advance = steps.stage("pairs", len(blocks))
    for first, second in blocks:
        a = _fill(buffers[0], left, first, second)
        rows[:, first] += a.sum(axis=2)
        if first != second:
            rows[:, second] += a.sum(axis=1)
        b = a if right is None else _fill(buffers[1], right, first, second)
        cross += (1.0 if first == second else 2.0) * _inner(a, b)
        advance(1)
    return TileSums(cross, rows)


def _upper_blocks(n: int, side: int) -> Iterator[tuple[slice, slice]]:
    parts = [slice(start, min(start + side, n)) for start in range(0, n, side)]
    for place, first in enumerate(parts):
        for second in parts[place:]:
            yield first, second


def _fill(buffer: Floats, kernels: Sequence[Tiles], first: slice, second: slice) -> Floats:
    p, q = first.stop - first.start, second.stop - second.start
    tiles = buffer[: len(kernels) * p * q].reshape(len(kernels), p, q)
    for tile, kernel in zip(tiles, kernels, strict=True):
        kernel.into(tile, first, second)
        if first == second:
            np.fill_diagonal(tile, 0.0)
    return tiles


def _inner(a: Floats, b: Floats) -> NDArray[np.float64]:
    """Return all inner products of tiles, in runs that are short enough for the dtype."""
    p, q = a.shape[1:]
    step = max(1, min(p, _RUN // q))
    whole = p // step * step
    out = np.zeros((len(a), len(b)))
    if whole:
        # (runs, layers, entries): rows of a run lie side by side, so these are views.
        left, right = (
            t[:, :whole].reshape(len(t), whole // step, step * q).transpose(1, 0, 2) for t in (a, b)
        )
        out += np.matmul(left, right.transpose(0, 2, 1)).sum(axis=0, dtype=np.float64)
    if whole < p:
        out += a[:, whole:].reshape(len(a), -1) @ b[:, whole:].reshape(len(b), -1).T
    return out


def _spread(n: int) -> NDArray[np.int64]:
    """Return at most 1024 rows, evenly spread."""
    return np.linspace(0, n - 1, min(n, _SAMPLE)).astype(np.int64)
