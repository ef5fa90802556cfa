"""Batches of rows in a random order, of files larger than memory or of arrays."""

import itertools
import math
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from subspan._checks import choice, integer, real
from subspan.activations._extras import require
from subspan.activations._permutation import Permutation
from subspan.activations._rows import ArrayRows, Index, Rows
from subspan.activations.outliers import OutlierRule
from subspan.errors import InvalidArgumentError

__all__ = ["RowBatches", "array_batches"]

_READERS = 8  # threads that read at once: a disk serves many requests sooner than one by one
_REFERENCE = 8192  # rows whose median norm the outlier rule compares with
_DTYPES = ("float16", "bfloat16", "float32", "float64")

Output = Literal["torch", "numpy"]
Exclude = OutlierRule | npt.ArrayLike | None
Norms = Callable[[int, int], npt.NDArray[Any]]


class RowBatches(Iterator[Any]):
    """Batches of rows in the order of a permutation; made by `ActivationStore.batches`.

    An iterator. What it hands out is a function of the rows and of the arguments alone, so a run
    that was stopped goes on with ``start=batches.state`` and sees what it would have seen.

    Attributes
    ----------
    n_rows : int
        Rows of one epoch: all that are not excluded.
    width, batch_size : int
        Shape of a batch; the last one of an epoch may have fewer rows.
    per_epoch : int
        Batches of one epoch.
    total : int or None
        Batches of all epochs, those before ``start`` included; None when there is no end.
    done : int
        Batches before the next one, those before ``start`` included.
    """

    def __init__(
        self,
        function: str,
        rows: Rows,
        batch_size: int,
        *,
        seed: int,
        epochs: int | None,
        start: int | Mapping[str, Any],
        shuffle: bool,
        output: str,
        dtype: str | None,
        excluded: Index,
        drop_last: bool,
        buffer_mb: float,
    ) -> None:
        self._rows, self.width = rows, rows.width
        self.n_rows = rows.n_rows - len(excluded)
        if not self.n_rows:
            raise InvalidArgumentError(
                f"[{function}] exclude must leave at least one row, got none of {rows.n_rows}"
            )
        # how many rows are kept before each excluded one
        self._kept_before = excluded - np.arange(len(excluded))
        self.batch_size = integer(function, "batch_size", batch_size, low=1)
        self.seed = integer(function, "seed", seed, low=0)
        self.shuffle = bool(shuffle)
        self.drop_last = bool(drop_last)
        whole, rest = divmod(self.n_rows, self.batch_size)
        self.per_epoch = whole + bool(rest and not drop_last)
        if not self.per_epoch:
            raise InvalidArgumentError(
                f"[{function}] batch_size must be at most the {self.n_rows} rows of an epoch when "
                f"drop_last is set, got {self.batch_size}"
            )
        if epochs is not None:
            epochs = integer(function, "epochs", epochs, low=1)
        self.total = None if epochs is None else epochs * self.per_epoch
        self.done = self._started(function, start)
        self._convert = _converter(function, output, dtype, rows)
        size = real(function, "buffer_mb", buffer_mb, low=1) * 1e6 / 2  # one fills, one is used
        room = math.floor(size / (self.batch_size * rows.row_bytes))
        self._window = 1 if rows.resident else max(1, min(room, self.per_epoch))
        self._produced = self._produce(self.done)

    def __iter__(self) -> Iterator[Any]:
        """Return itself."""
        return self

    def __next__(self) -> Any:
        """Return the next batch, shape (batch_size, width)."""
        batch = next(self._produced)
        self.done += 1
        return batch

    @property
    def state(self) -> dict[str, Any]:
        """Where the next batch stands, as JSON-able facts; pass it as ``start`` to go on there."""
        return {"next": self.done, **self._order()}

    def rows_of(self, number: int) -> Index:
        """Return the row numbers of batch ``number``, counted through all epochs.

        Cost: about 0.1 us a row; nothing is read.
        """
        epoch, within = divmod(number, self.per_epoch)
        start = within * self.batch_size
        stop = min(start + self.batch_size, self.n_rows)
        if self.shuffle:
            kept = Permutation(self.n_rows, self.seed, epoch)(start, stop)
        else:
            kept = np.arange(start, stop, dtype=np.int64)
        return kept + np.searchsorted(self._kept_before, kept, side="right")

    def close(self) -> None:
        """Stop reading ahead; there is no next batch then."""
        self._produced.close()

    def _order(self) -> dict[str, Any]:
        """Return what the order of the rows depends on."""
        return {
            "seed": self.seed,
            "n_rows": self.n_rows,
            "batch_size": self.batch_size,
            "shuffle": self.shuffle,
            "drop_last": self.drop_last,
        }

    def _started(self, function: str, start: int | Mapping[str, Any]) -> int:
        if isinstance(start, Mapping):
            for name, now in self._order().items():
                if start.get(name) != now:
                    raise InvalidArgumentError(
                        f"[{function}] start must be a state of the same batches, got {name} "
                        f"{start.get(name)!r} where it is {now!r} now"
                    )
            start = start.get("next", -1)
        return integer(function, "start", start, low=0, high=self.total)

    def _produce(self, first: int) -> Generator[Any, None, None]:
        """Yield batches; while one window of them is used, the next is read."""
        with ExitStack() as stack:
            readers: Executor | None = None
            ahead: Future[Any] | None = None
            if not self._rows.resident:
                readers = stack.enter_context(ThreadPoolExecutor(_READERS))
                reader = stack.enter_context(ThreadPoolExecutor(1))
                ahead = reader.submit(self._read, first, readers)
            while self.total is None or first < self.total:
                windows, cuts = ahead.result() if ahead else self._read(first, None)
                first += len(cuts) - 1
                if not self._rows.resident:
                    ahead = reader.submit(self._read, first, readers)
                for low, high in itertools.pairwise(cuts):
                    yield self._convert(windows[low:high])
                del windows  # else three of them would be held while the next is waited for

    def _read(self, first: int, readers: Executor | None) -> tuple[Any, list[int]]:
        """Read batches from number ``first`` on, as many as a window holds."""
        stop = first + self._window
        if self.total is not None:
            stop = min(stop, self.total)
        numbers = [self.rows_of(number) for number in range(first, stop)]
        cuts = np.cumsum([0, *(len(rows) for rows in numbers)]).tolist()
        if not numbers:
            return None, cuts
        return self._rows.gather(np.concatenate(numbers), readers), cuts


def array_batches(
    arrays: Any,
    batch_size: int,
    *,
    seed: int = 0,
    epochs: int | None = 1,
    start: int | Mapping[str, Any] = 0,
    shuffle: bool = True,
    output: Output | None = None,
    dtype: str | None = None,
    exclude: Exclude = None,
    first_in_window: npt.ArrayLike | None = None,
    drop_last: bool = False,
    buffer_mb: float = 256,
) -> RowBatches:
    """Hand out the rows of arrays in batches, as `ActivationStore.batches` does for files.

    Parameters
    ----------
    arrays : array of shape (n_rows, width), or list of such arrays
        numpy (memory-mapped too) or torch on any device, all of one width and dtype: float16,
        bfloat16 (torch), float32 or float64. A list is read as one array, part after part.
    batch_size : int
        Rows in a batch.
    seed, epochs, start, shuffle, dtype, drop_last, buffer_mb
        As in `ActivationStore.batches`. Nothing is buffered but for memory-mapped arrays.
    output : {"torch", "numpy"}, optional
        By default the library of ``arrays``.
    exclude : OutlierRule or array of bool, shape (n_rows,), optional
        Rows to leave out. A rule looks at the norms of all rows once, before the first batch.
    first_in_window : array of bool, shape (n_rows,), optional
        Which rows are the first of their window, for a rule that treats them apart.

    Returns
    -------
    RowBatches
        An iterator of arrays of shape (batch_size, width).

    Raises
    ------
    DtypeError, InvalidArgumentError
        The arrays do not fit one another, or an argument is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.arange(10, dtype=np.float32).reshape(5, 2)
    >>> batches = array_batches(x, 2, seed=1)
    >>> sorted(float(row[0]) for batch in batches for row in batch)
    [0.0, 2.0, 4.0, 6.0, 8.0]

    """
    function = "array_batches"
    rows = ArrayRows(function, arrays)
    first = None if first_in_window is None else _mask(function, "first_in_window", first_in_window,
                                                       rows.n_rows)  # fmt: skip

    def norms() -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[np.bool_] | None]]:
        for begin, block in rows.blocks(_REFERENCE):
            yield row_norms(block), None if first is None else first[begin : begin + len(block)]

    return RowBatches(
        function,
        rows,
        batch_size,
        seed=seed,
        epochs=epochs,
        start=start,
        shuffle=shuffle,
        output=rows.library if output is None else output,
        dtype=dtype,
        excluded=excluded_rows(function, exclude, rows.n_rows, norms),
        drop_last=drop_last,
        buffer_mb=buffer_mb,
    )


def row_norms(x: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return the Euclidean norms of the rows, summed in float64."""
    squares: npt.NDArray[np.float64] = np.square(x, dtype=np.float64).sum(axis=1)
    return np.sqrt(squares).astype(np.float32)


def excluded_rows(
    function: str,
    exclude: Any,
    n_rows: int,
    norms: Callable[[], Iterator[tuple[npt.NDArray[Any], npt.NDArray[np.bool_] | None]]],
) -> Index:
    """Return the numbers of the rows to leave out, ascending.

    ``norms()`` yields norms and first-in-window marks block by block; the first block must hold
    `_REFERENCE` rows, or all, for the median of the rule.
    """
    if exclude is None:
        return np.empty(0, dtype=np.int64)
    if not isinstance(exclude, OutlierRule):
        return np.flatnonzero(_mask(function, "exclude", exclude, n_rows)).astype(np.int64)
    found, start, median = [], 0, None
    for values, first in norms():
        if median is None:
            median = exclude.reference(values, first)
        ordinary = exclude.classify(values, first, median).ordinary
        found.append(start + np.flatnonzero(~ordinary))
        start += len(values)
    return np.concatenate(found).astype(np.int64)


def _mask(function: str, name: str, mask: Any, n_rows: int) -> npt.NDArray[np.bool_]:
    values = np.asarray(mask)
    if values.dtype != np.bool_ or values.shape != (n_rows,):
        raise InvalidArgumentError(
            f"[{function}] {name} must be {'an OutlierRule or ' if name == 'exclude' else ''}an "
            f"array of bool of shape ({n_rows},), got {values.dtype} of shape {values.shape}"
        )
    return values


def _converter(function: str, output: str, dtype: str | None, rows: Rows) -> Callable[[Any], Any]:
    """Return what turns stored rows into a batch of the library and dtype asked for."""
    choice(function, "output", output, ("torch", "numpy"))
    wide = "float64" if rows.dtype == "float64" else "float32"
    name = wide if dtype is None else choice(function, "dtype", dtype, _DTYPES)
    if output == "numpy":
        if name == "bfloat16":
            raise InvalidArgumentError(
                f"[{function}] dtype must be one that numpy has, got 'bfloat16'. Use float32, or "
                "output='torch'"
            )

        def to_numpy(stored: Any) -> Any:
            if rows.library == "numpy" and rows.dtype == name:
                return stored
            return rows.widened(stored).astype(name, copy=False)

        return to_numpy
    torch = require("torch", function=function)
    kind = getattr(torch, name)

    def to_torch(stored: Any) -> Any:
        if rows.library == "torch":
            return stored.to(kind)
        tensor = torch.from_numpy(stored)
        if rows.dtype == "bfloat16":
            tensor = tensor.view(torch.bfloat16)
        return tensor.to(kind)

    return to_torch
