"""The entries of a sparse code, whatever its kind: by row, then by latent, each once."""

from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from subspan import RaggedCode, SparseCode
from subspan._arrays import require_array, to_numpy
from subspan.errors import DtypeError, InvalidArgumentError

__all__ = ["Entries", "entries", "rows_of"]


class Entries(NamedTuple):
    """``values[i]`` stands in row ``rows[i]`` for latent ``latents[i]``; none is zero."""

    rows: NDArray[np.int64]
    latents: NDArray[np.int64]
    values: NDArray[np.float64]
    n_rows: int


def entries(function: str, code: Any, n: int, *, name: str = "code") -> Entries:
    """Return the entries of a code of n latents, in order; what is there twice is added."""
    if isinstance(code, RaggedCode):
        values, latents, offsets = map(to_numpy, code)
        n_rows = len(offsets) - 1
        rows = np.repeat(np.arange(n_rows), np.diff(offsets))
    elif isinstance(code, SparseCode):
        n_rows = prod(int(extent) for extent in code.values.shape[:-1])
        values, latents = to_numpy(code.values).ravel(), to_numpy(code.indices).ravel()
        rows = np.repeat(np.arange(n_rows), int(code.values.shape[-1]))
    else:
        raise DtypeError(
            f"[{function}] {name} must be a SparseCode or RaggedCode, got {type(code).__name__}. "
            "Encode with an autoencoder, or with subspan.topk_encode"
        )
    if latents.size and not 0 <= latents.min() <= latents.max() < n:
        raise InvalidArgumentError(
            f"[{function}] {name} must have indices in 0..{n - 1} (n_latents is {n}), got "
            f"{latents.min()}..{latents.max()}"
        )
    values = values.astype(np.float64)
    if not np.isfinite(values.sum()) and not np.isfinite(values).all():
        raise InvalidArgumentError(
            f"[{function}] {name} must be finite, got {values[~np.isfinite(values)][0]}"
        )
    keys = rows * n + latents
    if np.any(keys[1:] <= keys[:-1]):
        order = np.argsort(keys, kind="stable")
        keys, values = keys[order], values[order]
        first = np.flatnonzero(np.diff(keys, prepend=-1))
        keys, values = keys[first], np.add.reduceat(values, first)
    there = values != 0
    keys = keys[there]
    return Entries(keys // n, keys % n, values[there], n_rows)


def rows_of(function: str, name: str, x: Any, n_rows: int) -> Any:
    """Return x (..., d) as (n_rows, d)."""
    require_array(function, name, x)
    shape = tuple(int(extent) for extent in x.shape)
    if len(shape) < 2 or prod(shape[:-1]) != n_rows:
        raise InvalidArgumentError(
            f"[{function}] {name} must have {n_rows} rows like the code, got shape {shape}"
        )
    return x.reshape((n_rows, shape[-1]))
