"""Rows by number out of matrices that lie in files or in memory, cut into parts anyhow."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from typing import Any

import numpy as np
import numpy.typing as npt

from subspan._arrays import dtype_name, library_of, require_array
from subspan._checks import ndim
from subspan.activations._files import Column, widen_into
from subspan.errors import DtypeError, InvalidArgumentError

Index = npt.NDArray[np.int64]

_PIECE = 1 << 19  # bytes of rows that a thread gathers under one map: what it maps counts as memory
_SPARSE = 1 << 16  # bytes between two wanted rows from which on reading ahead is wasted
_FLOATS = ("float16", "bfloat16", "float32", "float64")


class Rows:
    """The rows of several matrices of one width and dtype, numbered through.

    Attributes
    ----------
    n_rows, width : int
        Size of all together.
    dtype : str
        Name of the data type that the values have where they lie.
    library : str
        "numpy" or "torch".
    resident : bool
        True when all lies in memory, so that reading ahead has no use.
    """

    library = "numpy"

    def __init__(self, sizes: Sequence[int], width: int, dtype: str, *, resident: bool) -> None:
        self.starts = np.cumsum([0, *sizes])
        self.n_rows, self.width = int(self.starts[-1]), width
        self.dtype, self.resident = dtype, resident

    @property
    def row_bytes(self) -> int:
        """Size of a row where it lies."""
        return self.width * {"float64": 8, "float32": 4}.get(self.dtype, 2)

    def gather(self, rows: Index, pool: Executor | None = None) -> Any:
        """Return copies of rows in the order asked for, as they are stored (bfloat16: uint16).

        Within a part they are read in the order in which they lie.
        """
        order = np.argsort(rows)
        ranked = rows[order]
        cuts = np.searchsorted(ranked, self.starts)
        out = self._empty(len(rows))
        jobs: list[Callable[[], None]] = []
        for number, (low, high) in enumerate(itertools.pairwise(cuts)):
            if low < high:
                places, local = order[low:high], ranked[low:high] - self.starts[number]
                jobs += self._jobs(number, local, places, out)
        if pool is None:
            for job in jobs:
                job()
        else:
            for done in [pool.submit(job) for job in jobs]:
                done.result()
        return out

    def blocks(self, n_rows: int) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """Yield (first row, rows as float32 or float64) from the beginning to the end."""
        for start in range(0, self.n_rows, n_rows):
            rows = np.arange(start, min(start + n_rows, self.n_rows), dtype=np.int64)
            yield start, self.widened(self.gather(rows))

    def widened(self, stored: Any) -> npt.NDArray[Any]:
        """Return stored values as float32 (float64 if they are) in a new numpy array."""
        wide = np.float64 if self.dtype == "float64" else np.float32
        out = np.empty(stored.shape, dtype=wide)
        widen_into(out, stored, "BF16" if self.dtype == "bfloat16" else "")
        return out

    def _empty(self, n_rows: int) -> Any:
        kind = np.uint16 if self.dtype == "bfloat16" else np.dtype(self.dtype)
        return np.empty((n_rows, self.width), dtype=kind)

    def _part(self, number: int, *, sparse: bool) -> Any:
        raise NotImplementedError

    def _jobs(self, number: int, local: Index, places: Index, out: Any) -> list[Callable[[], None]]:
        span = int(local[-1] - local[0]) + 1
        sparse = span * self.row_bytes > len(local) * _SPARSE
        step = max(1, _PIECE // max(1, self.row_bytes))

        def job(low: int) -> Callable[[], None]:
            def copy() -> None:
                some = slice(low, low + step)
                out[places[some]] = self._part(number, sparse=sparse)[local[some]]

            return copy

        return [job(low) for low in range(0, len(local), step)]


class StoredRows(Rows):
    """Rows in files; nothing is mapped but while it is read."""

    def __init__(self, columns: Sequence[Column]) -> None:
        super().__init__(
            [column.shape[0] for column in columns],
            columns[0].shape[1],
            columns[0].dtype_name,
            resident=False,
        )
        self._columns = columns

    def _part(self, number: int, *, sparse: bool) -> Any:
        return self._columns[number].mapped(sparse=sparse)


class ArrayRows(Rows):
    """Rows of arrays of numpy (memory-mapped ones too) or torch."""

    def __init__(self, function: str, arrays: Any) -> None:
        parts = list(arrays) if isinstance(arrays, list | tuple) else [arrays]
        if not parts:
            raise InvalidArgumentError(f"[{function}] arrays must hold at least one array, got []")
        for number, part in enumerate(parts):
            name = f"arrays[{number}]" if len(parts) > 1 else "arrays"
            _check_part(function, name, part, parts[0])
        self.library = library_of(parts[0])
        super().__init__(
            [int(part.shape[0]) for part in parts],
            int(parts[0].shape[1]),
            dtype_name(parts[0]),
            resident=self.library == "torch" or not any(_is_mapped(part) for part in parts),
        )
        if not self.n_rows or not self.width:
            raise InvalidArgumentError(
                f"[{function}] arrays must hold at least one value, got {self.n_rows} rows of "
                f"width {self.width}"
            )
        self._parts = [part.detach() if self.library == "torch" else part for part in parts]

    def _part(self, number: int, *, sparse: bool) -> Any:  # noqa: ARG002
        return self._parts[number]

    def _empty(self, n_rows: int) -> Any:
        if self.library == "torch":
            return self._parts[0].new_empty((n_rows, self.width))
        return super()._empty(n_rows)

    def widened(self, stored: Any) -> npt.NDArray[Any]:
        """Return values as float32 (float64 if they are) in a new numpy array."""
        if self.library == "torch":
            wide = _torch().promote_types(stored.dtype, _torch().float32)
            return np.asarray(stored.to(device="cpu", dtype=wide).numpy())
        return super().widened(stored)


def _check_part(function: str, name: str, part: Any, first: Any) -> None:
    if require_array(function, name, part) not in {"numpy", "torch"}:
        raise DtypeError(
            f"[{function}] {name} must be of numpy or torch, got {type(part).__module__}. Convert "
            "it with numpy.asarray or torch.from_dlpack"
        )
    ndim(function, name, part, 2)
    if dtype_name(part) not in _FLOATS:
        raise DtypeError(
            f"[{function}] {name} must be one of {', '.join(_FLOATS)}, got {dtype_name(part)}"
        )
    for what, came, wanted in (
        ("library", library_of(part), library_of(first)),
        ("dtype", dtype_name(part), dtype_name(first)),
        ("device", str(getattr(part, "device", "cpu")), str(getattr(first, "device", "cpu"))),
        ("width", part.shape[1], first.shape[1]),
    ):
        if came != wanted:
            raise InvalidArgumentError(
                f"[{function}] {name} must have the {what} of arrays[0] ({wanted}), got {came}"
            )


def _is_mapped(array: Any) -> bool:
    while array is not None:
        if isinstance(array, np.memmap):
            return True
        array = getattr(array, "base", None)
    return False


def _torch() -> Any:
    import torch

    return torch
