"""Layers as every measure wants them: checked, centred, scaled, on the host, once for each layer.

Centring comes before anything is multiplied: second moments of raw float32 rows cancel.
"""

import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from subspan import _arrays, get_num_threads
from subspan.errors import DtypeError, InvalidArgumentError
from subspan.similarity._progress import Steps

__all__ = ["Floats", "Layer", "Sides", "read_pair", "read_sides"]

Floats = NDArray[Any]
"""float32 or float64."""

# Elements of a block of rows: several passes over it stay in the second cache.
_BLOCK = 1 << 17
# Elements of all layers from which on threads read them.
_SHARED = 1 << 22
_FLOATS = ("float16", "bfloat16", "float32", "float64")


class Layer(NamedTuple):
    """Activations of one layer."""

    name: str
    """What messages call it: ``xs[3]``."""
    rows: Floats
    """(N, d) centred columns times a power of two, magnitudes below 2; constant columns are 0."""
    scale: float
    """``rows * scale`` are the centred columns."""
    rtol: float
    """Singular values below this part of the largest are rounding errors of what came in."""
    source: Floats
    """(N, d) what came in."""


class Sides(NamedTuple):
    """What is compared with what; a set of layers with itself if ``symmetric``."""

    x: list[Layer]
    y: list[Layer]
    symmetric: bool

    @property
    def n(self) -> int:
        """Samples."""
        return len(self.x[0].rows)

    def each(self, function: Callable[[Layer], Any], steps: Steps) -> tuple[list[Any], list[Any]]:
        """Return what ``function`` makes of the layers of both sides, once for each layer."""
        return self.some(lambda layers: [function(layer) for layer in layers], steps, size=1)

    def some(
        self,
        function: Callable[[list[Layer]], list[Any]],
        steps: Steps,
        size: int | None = None,
    ) -> tuple[list[Any], list[Any]]:
        """Return the same of a function of several layers, by default as many as threads."""
        layers = self.x if self.symmetric else [*self.x, *self.y]
        advance = steps.stage("layers", len(layers))
        made: list[Any] = []
        for few in _split(layers, size or get_num_threads()):
            made += function(few)
            advance(len(few))
        return (made, made) if self.symmetric else (made[: len(self.x)], made[len(self.x) :])

    def pairs(self, *, ordered: bool = False, same: bool = True) -> list[tuple[int, int]]:
        """Return the pairs to work out.

        Of a set with itself one order of each will do, unless ``ordered``, and a layer with itself
        is known without ``same``.
        """
        pairs = itertools.product(range(len(self.x)), range(len(self.y)))
        if not self.symmetric:
            return list(pairs)
        return [(i, j) for i, j in pairs if i < j or (i == j and same) or (i > j and ordered)]

    def matrix(
        self, values: Iterable[tuple[tuple[int, int], float]], same: Any = np.nan
    ) -> NDArray[np.float64]:
        """Return (L1, L2) from values of `pairs`, mirrored where one order was worked out.

        ``same``: of the layers of a set with themselves, where these were not worked out.
        """
        out = np.full((len(self.x), len(self.y)), np.nan)
        if self.symmetric:
            np.fill_diagonal(out, same)
        given = np.zeros(out.shape, bool)
        for pair, value in values:
            out[pair], given[pair] = value, True
        return np.where(given, out, out.T) if self.symmetric else out


def read_pair(function: str, x: Any, y: Any) -> Sides:
    """Return two arrays as sides of one layer each."""
    arrays = [("x", x), ("y", y)]
    read = _read_all(function, arrays)
    return Sides(read[:1], read[1:], symmetric=False)


def read_sides(function: str, xs: Any, ys: Any | None) -> Sides:
    """Return two sequences of arrays, or one and None, as sides."""
    named = [(f"xs[{i}]", x) for i, x in enumerate(_sequence(function, "xs", xs))]
    n_left = len(named)
    if ys is not None:
        named += [(f"ys[{j}]", y) for j, y in enumerate(_sequence(function, "ys", ys))]
    read = _read_all(function, named)
    left = read[:n_left]
    return Sides(left, left if ys is None else read[n_left:], symmetric=ys is None)


def _sequence(function: str, name: str, arrays: Any) -> Sequence[Any]:
    if _arrays.library_of(arrays):
        if len(arrays.shape) != 3:
            raise InvalidArgumentError(
                f"[{function}] {name} must be a sequence of arrays (N, d) or one array (L, N, d), "
                f"got an array of shape {tuple(arrays.shape)}. For a single layer write [{name}]"
            )
        arrays = [arrays[i] for i in range(arrays.shape[0])]
    if isinstance(arrays, (str, bytes, dict)) or not isinstance(arrays, Iterable):
        raise DtypeError(
            f"[{function}] {name} must be a sequence of arrays, got {type(arrays).__name__}"
        )
    found = list(arrays)
    if not found:
        raise InvalidArgumentError(f"[{function}] {name} must have at least one layer, got none")
    return found


def _read_all(function: str, named: Sequence[tuple[str, Any]]) -> list[Layer]:
    kinds = [_checked(function, name, x) for name, x in named]
    n = int(named[0][1].shape[0])
    for name, x in named[1:]:
        if int(x.shape[0]) != n:
            raise InvalidArgumentError(
                f"[{function}] {name} must have {n} rows as {named[0][0]}, got {x.shape[0]}. "
                "Row i of every layer is the same sample"
            )
    # One dtype for all, as products need it; in double as soon as anything is.
    dtype = np.dtype(np.float64 if "float64" in kinds else np.float32)

    def read(item: tuple[tuple[str, Any], str]) -> Layer:
        (name, x), kind = item
        return _read(function, name, x, kind, dtype)

    items = list(zip(named, kinds, strict=True))
    if sum(int(x.shape[0]) * int(x.shape[1]) for _, x in named) < _SHARED:
        layers = [read(item) for item in items]
    else:  # passes of numpy over memory, which does not hold the interpreter meanwhile
        with ThreadPoolExecutor(get_num_threads()) as pool:
            layers = list(pool.map(read, items))
    still = [layer.name for layer in layers if not layer.scale]
    if still:
        warnings.warn(
            f"[{function}] {', '.join(still)}: all rows are equal, similarities are NaN",
            UserWarning,
            stacklevel=4,
        )
    return layers


def _checked(function: str, name: str, x: Any) -> str:
    _arrays.require_array(function, name, x)
    shape = tuple(int(extent) for extent in x.shape)
    if len(shape) != 2:
        raise InvalidArgumentError(
            f"[{function}] {name} must have 2 axes (samples, neurons), got shape {shape}"
        )
    if shape[0] < 2 or shape[1] < 1:
        raise InvalidArgumentError(
            f"[{function}] {name} must have at least 2 rows and 1 column, got shape {shape}"
        )
    kind = _arrays.dtype_name(x)
    if kind not in _FLOATS:
        raise DtypeError(
            f"[{function}] {name} must be of floating point, got {kind}. Convert it first"
        )
    return kind


def _read(function: str, name: str, x: Any, kind: str, dtype: np.dtype[Any]) -> Layer:
    source = _arrays.to_numpy(_arrays.exportable(function, name, x))
    n, d = source.shape
    low, high = np.full(d, np.inf), np.full(d, -np.inf)
    total = np.zeros(d)
    for part in _blocks(source):
        block = np.asarray(source[part], dtype)
        np.minimum(low, np.minimum.reduce(block, axis=0), out=low)
        np.maximum(high, np.maximum.reduce(block, axis=0), out=high)
        total += np.add.reduce(block, axis=0, dtype=np.float64)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        _raise_nonfinite(function, name, source)
    constant = low == high
    with np.errstate(over="ignore", invalid="ignore"):
        mean = total / n
        spread = np.maximum(high - mean, mean - low)
    if not np.isfinite(spread).all():
        raise InvalidArgumentError(
            f"[{function}] {name} must have sums that do not overflow, got magnitudes up to "
            f"{max(high.max(), -low.min()):.3g}. Scale the layer down"
        )
    top = float(spread[~constant].max(initial=0.0))
    scale = float(2.0 ** (np.frexp(top)[1] - 1)) if top else 0.0
    rows = np.empty((n, d), dtype)
    if scale:
        _centre_into(rows, source, mean, scale)
        rows[:, constant] = 0.0
    else:
        rows[:] = 0.0
    return Layer(name, rows, scale, _rank_tolerance(n, d, kind), source)


def _centre_into(rows: Floats, source: Floats, mean: NDArray[np.float64], scale: float) -> None:
    """Write ``(source - mean) / scale``; the mean in two parts, as one would be rounded."""
    dtype = rows.dtype
    near = mean.astype(dtype)
    rest = (mean - near).astype(dtype)
    factor = dtype.type(1.0 / scale)
    exact = dtype == np.float32 and not rest.any()
    for part in _blocks(source):
        block = rows[part]
        np.subtract(np.asarray(source[part], dtype), near, out=block)
        if dtype == np.float32 and not exact:
            block -= rest
        block *= factor
    if dtype == np.float64:  # the mean itself was rounded: what is left of it shows now
        rows -= rows.mean(axis=0)


def _blocks(source: Floats) -> Iterator[slice]:
    n, d = source.shape
    step = max(1, _BLOCK // d)
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))


def _rank_tolerance(n: int, d: int, kind: str) -> float:
    """Return ``max(n, d) eps``; of half precision eps, the size of its independent roundings."""
    if kind == "float64":
        return max(n, d) * float(np.finfo(np.float64).eps)
    if kind == "float32":
        return max(n, d) * float(np.finfo(np.float32).eps)
    return 2.0**-10 if kind == "float16" else 2.0**-7


def _split(layers: list[Layer], size: int) -> Iterator[list[Layer]]:
    for start in range(0, len(layers), size):
        yield layers[start : start + size]


def _raise_nonfinite(function: str, name: str, source: Floats) -> None:
    for part in _blocks(source):
        block = np.asarray(source[part], np.float64)
        finite = np.isfinite(block)
        if finite.all():
            continue
        row, column = (int(k) for k in np.unravel_index(int(np.argmin(finite)), block.shape))
        what = "NaN" if np.isnan(block[row, column]) else "infinity"
        raise InvalidArgumentError(
            f"[{function}] {name} must be finite, got {what} in row {part.start + row}, "
            f"column {column}. Drop that row from every layer"
        )
