"""What sums over kernel matrices take alike, checked."""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from subspan import _arrays, _checks
from subspan._ops import _gradients
from subspan._ops._batch import broadcast, reshaped
from subspan.errors import DtypeError, InvalidArgumentError, UnsupportedError

__all__ = [
    "Points",
    "Ranges",
    "on_device",
    "operands",
    "ranges_of",
    "require_reals",
    "tracked_width",
    "widths_of",
]


class Points(NamedTuple):
    """What the core takes: [batch, n, d], [batch, m, d], [batch, m, e]."""

    x: Any
    y: Any
    v: Any
    lead: tuple[int, ...]
    vectors: bool


class Ranges(NamedTuple):
    """Tiles of rows against tiles of columns, compressed; int64 arrays as the core takes them."""

    rows: npt.NDArray[np.int64]
    columns: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    tiles: npt.NDArray[np.int64]

    def transposed(self) -> Ranges:
        """Return the same pairs with x and y exchanged."""
        of_rows = np.repeat(np.arange(len(self.rows) - 1), np.diff(self.offsets))
        order = np.argsort(self.tiles, kind="stable")
        counts = np.bincount(self.tiles, minlength=len(self.columns) - 1)
        offsets = np.concatenate([[0], np.cumsum(counts)])
        return Ranges(self.columns, self.rows, offsets, of_rows[order])


def require_reals(name: str, arrays: dict[str, Any]) -> None:
    """Require one library, and float32 or float64 like the first."""
    _arrays.require_same(name, **arrays)
    wanted = _arrays.dtype_name(next(iter(arrays.values())))
    for argument, array in arrays.items():
        came = _arrays.dtype_name(array)
        if came not in {"float32", "float64"}:
            raise DtypeError(
                f"[{name}] {argument} must be float32 or float64, got {came}. Convert it first"
            )
        if came != wanted:
            raise DtypeError(
                f"[{name}] {argument} must be {wanted} like x, got {came}. Convert it first"
            )


def on_device(name: str, x: Any) -> bool:
    """Whether x is on a CUDA device, where it must be of a library that results take memory of."""
    if _arrays.device_of(x) == "cpu":
        return False
    if (library := _arrays.library_of(x)) not in {"torch", "cupy"}:
        raise UnsupportedError(
            f"[{name}] x on a CUDA device must be of torch or cupy, whose memory the results take, "
            f"got {library}. Hand it over by torch.from_dlpack"
        )
    return True


def operands(name: str, x: Any, y: Any, v: Any) -> Points:
    """Check points and weights; y None is x, v None is ones."""
    name_of_y = "x" if y is None else "y"
    itself = y is None or y is x
    given = {"x": x, name_of_y: x if itself else y} | ({} if v is None else {"v": v})
    require_reals(name, given)
    on_device(name, x)
    for argument, array in given.items():
        _checks.ndim(name, argument, array, 1 if argument == "v" else 2, or_more=True)

    def readable(argument: str, array: Any) -> Any:
        if _gradients.wanted(array):
            return array
        return _arrays.exportable(name, argument, array)

    x = readable("x", x)
    y = x if itself else readable("y", y)
    if v is None:
        v = _arrays.empty_like_on(y, (int(y.shape[-2]),))
        v[:] = 1
    else:
        v = readable("v", v)
    of_x, of_y, of_v = (tuple(map(int, array.shape)) for array in (x, y, v))
    if of_x[-1] != of_y[-1]:
        raise InvalidArgumentError(
            f"[{name}] y must have {of_x[-1]} columns like x, got {of_y[-1]} (shape {of_y})"
        )
    vectors = len(of_v) in {1, max(len(of_x), len(of_y)) - 1}
    matrices = (*of_v, 1) if vectors else of_v
    try:
        lead = np.broadcast_shapes(of_x[:-2], of_y[:-2], matrices[:-2])
    except ValueError:
        lead = None
    if lead is None:
        raise InvalidArgumentError(
            f"[{name}] x, y and v must have leading axes that broadcast, got shapes "
            f"{of_x}, {of_y} and {of_v}. With one axis, or one fewer than x and y, v is vectors"
        )
    if matrices[-2] != of_y[-2]:
        form = "(..., m)" if vectors else "(..., m, e)"
        raise InvalidArgumentError(
            f"[{name}] v must be {form} with m = {of_y[-2]}, the rows of {name_of_y}, got shape "
            f"{of_v}. With one axis, or one fewer than x and y, v is vectors"
        )

    def batched(array: Any, shape: tuple[int, ...]) -> Any:
        whole = broadcast(array, lead + shape)
        return reshaped(whole, (prod(lead), *shape))

    points = batched(x, of_x[-2:])
    return Points(
        points,
        points if itself else batched(y, of_y[-2:]),
        batched(reshaped(v, matrices), matrices[-2:]),
        lead,
        vectors,
    )


def widths_of(
    name: str, bandwidth: Any, d: int, *, argument: str = "bandwidth", of: str = "x"
) -> npt.NDArray[np.float64]:
    """Return the bandwidth of each of the d coordinates of the argument ``of``."""
    if _arrays.library_of(bandwidth):
        widths = np.asarray(_arrays.to_numpy(bandwidth), np.float64)
        if widths.shape not in {(), (d,)}:
            raise InvalidArgumentError(
                f"[{name}] {argument} must be a number or have shape ({d},), one element per "
                f"column of {of}, got {widths.shape}"
            )
    else:
        widths = np.array(_checks.real(name, argument, bandwidth))
    bad = widths[~(widths > 0)]
    if bad.size:
        raise InvalidArgumentError(f"[{name}] {argument} must be > 0, got {bad.flat[0]}")
    return np.array(np.broadcast_to(widths, (d,)))


def tracked_width(name: str, bandwidth: Any, x: Any) -> Any:
    """Return the bandwidth if it wants a gradient, and None if not."""
    if not _gradients.wanted(bandwidth):
        return None
    library = _arrays.library_of(x)
    if library != "torch":
        raise DtypeError(
            f"[{name}] bandwidth must require no gradient where x is of {library}, got one that "
            "does. Pass bandwidth.detach()"
        )
    return bandwidth


def ranges_of(name: str, ranges: Any) -> Ranges | None:
    """Return a pattern as the core takes it, which checks what is in it."""
    if ranges is None:
        return None
    if not isinstance(ranges, tuple | list) or len(ranges) != 4:
        came = f"{len(ranges)} of them" if isinstance(ranges, tuple | list) else repr(ranges)
        raise DtypeError(
            f"[{name}] ranges must be the four arrays rows, columns, offsets, tiles, got {came}"
        )
    arrays = []
    for part, given in zip(Ranges._fields, ranges, strict=True):
        array = _arrays.to_numpy(given) if _arrays.library_of(given) else np.asarray(given)
        if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
            raise DtypeError(
                f"[{name}] ranges.{part} must be integers with one axis, got {array.dtype} of "
                f"shape {array.shape}"
            )
        arrays.append(np.ascontiguousarray(array, np.int64))
    return Ranges(*arrays)
