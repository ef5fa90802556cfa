"""Reading rows: what estimators accept, and block-wise access to it.

Rows are two-dimensional floating-point arrays of numpy, torch or cupy; lists, integers and data
frames are turned into numpy float64.
"""

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subspan._arrays import device_of, dtype_name, library_of, require_same, to_numpy
from subspan.errors import DtypeError, InvalidArgumentError

# Elements of one block: 8 MiB of float64 on a CPU, so that a block stays near the caches; more on
# a device, where every block costs a few launches.
_HOST_BLOCK = 1 << 20
_DEVICE_BLOCK = 1 << 24


_FLOATS = ("float16", "bfloat16", "float32", "float64")


def as_rows(x: Any, function: str) -> Any:
    """Return ``x`` as rows: a 2-D float array of numpy, torch or cupy with at least one entry."""
    library = library_of(x)
    if library not in ("torch", "cupy"):
        x = _as_numpy(x, library, function)
    elif library == "torch" and str(x.layout) != "torch.strided":
        raise DtypeError(_sparse_text(function))
    name = dtype_name(x)
    if name.startswith("complex"):
        raise InvalidArgumentError(
            f"[{function}] X must be real, got {name}: Complex data not supported"
        )
    if x.ndim != 2:
        raise InvalidArgumentError(
            f"[{function}] X must be 2-D (rows, features), got {x.ndim}-D of shape "
            f"{tuple(x.shape)}. Reshape your data: x[:, None] if it is one feature, x[None] if it "
            "is one row"
        )
    if name not in _FLOATS:
        x = x.double() if library == "torch" else _to_float64(x, function)
    shape = tuple(x.shape)
    if shape[1] == 0:
        raise InvalidArgumentError(
            f"[{function}] X must have columns, got 0 feature(s) (shape={shape}) while a minimum "
            "of 1 is required."
        )
    if shape[0] == 0:
        raise InvalidArgumentError(f"[{function}] X must have rows, got 0 sample(s) of {shape}")
    return x


def _as_numpy(x: Any, library: str, function: str) -> NDArray[Any]:
    if hasattr(x, "tocsr") or hasattr(x, "todense"):
        raise DtypeError(_sparse_text(function))
    if library:
        return to_numpy(x)
    return np.asarray(x.to_numpy() if column_names(x) is not None else x)


def _sparse_text(function: str) -> str:
    return f"[{function}] X must be a dense array, got a sparse one. Use its toarray()"


def _to_float64(x: Any, function: str) -> Any:
    try:
        return x.astype(np.float64)
    except TypeError as error:
        raise DtypeError(f"[{function}] X must be made of numbers: {error}") from error
    except ValueError as error:
        raise InvalidArgumentError(f"[{function}] X must be made of numbers: {error}") from error


def as_weights(rows: Any, weights: Any, function: str) -> Any:
    """Return weights as float64 beside the rows, checked; None stays None."""
    if weights is None:
        return None
    if library_of(rows) == "torch":
        torch = sys.modules["torch"]
        if isinstance(weights, (list, tuple)):
            weights = torch.tensor(weights, device=rows.device)
        require_same(function, X=rows, sample_weight=weights)
        weights = weights.detach().double()
    elif library_of(rows) == "cupy":
        weights = sys.modules["cupy"].asarray(weights, dtype=np.float64)
    else:
        if not library_of(weights):  # lists, series
            weights = np.asarray(weights)
        require_same(function, X=rows, sample_weight=weights)
        weights = weights.astype(np.float64)
    n = rows.shape[0]
    if tuple(weights.shape) != (n,):
        raise InvalidArgumentError(
            f"[{function}] sample_weight must have shape ({n},), one per row of X, got "
            f"{tuple(weights.shape)}"
        )
    low, total = float(weights.min()), float(weights.sum())
    if not (low >= 0 and np.isfinite(total)):
        raise InvalidArgumentError(
            f"[{function}] sample_weight must be finite and >= 0, got minimum {low} and sum {total}"
        )
    if total == 0:
        raise InvalidArgumentError(
            f"[{function}] sample_weight must have a positive entry, got weights that are all zero"
        )
    return weights


def column_names(x: Any) -> NDArray[np.object_] | None:
    """Return the column names of a data frame if all are strings, else None."""
    columns = getattr(x, "columns", None)
    if columns is None or not hasattr(x, "to_numpy"):
        return None
    names = np.asarray(columns, dtype=object)
    return names if all(isinstance(name, str) for name in names) else None


def row_blocks(x: Any) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of the row blocks in which ``x`` (n, d) is worked through."""
    n, d = x.shape
    on_host = device_of(x) == "cpu"
    rows = max(1, (_HOST_BLOCK if on_host else _DEVICE_BLOCK) // max(1, d))
    for start in range(0, n, rows):
        yield start, min(start + rows, n)


def column_blocks(x: Any) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of blocks of columns of ``x`` (n, d), as large as the row blocks."""
    yield from row_blocks(x.T)


def float64_block(block: Any) -> NDArray[np.float64]:
    """Return a block as a numpy float64 array on the host (a copy unless it is one already)."""
    return np.asarray(to_numpy(block), dtype=np.float64)


def check_finite(x: Any, function: str) -> None:
    """Raise if ``x`` (n, d) has NaN or infinity, naming the first place; one pass over ``x``."""
    for start, stop in row_blocks(x):
        block = x[start:stop]
        # A sum in float64 is finite unless an entry is not (or it overflows: then look closer).
        if library_of(block) == "torch":
            torch = sys.modules["torch"]
            total = float(block.detach().sum(dtype=torch.float64))
        else:
            with np.errstate(all="ignore"):
                total = float(block.sum(dtype=np.float64))
        if not np.isfinite(total):
            raise_nonfinite(block, start, function)


def raise_nonfinite(block: Any, start: int, function: str) -> None:
    """Raise if ``block``, whose first row is row ``start`` of the data, has NaN or infinity."""
    values = float64_block(block)
    finite = np.isfinite(values)
    if finite.all():
        return
    row, column = (int(i) for i in np.unravel_index(int(np.argmin(finite)), finite.shape))
    what = "NaN" if np.isnan(values[row, column]) else "infinity (inf)"
    raise InvalidArgumentError(
        f"[{function}] X must be finite, got {what} in row {start + row}, column {column}. "
        "Drop or impute such rows first"
    )
