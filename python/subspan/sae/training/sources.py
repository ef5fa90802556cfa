"""Where the batches of a training run come from: arrays, stores of activations, iterables.

A source gives batches from any number on, so that a run that was interrupted sees the same rows.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from subspan import _arrays
from subspan.activations import array_batches
from subspan.errors import DtypeError, InvalidArgumentError

__all__ = ["Source", "source_of"]


@dataclass(frozen=True)
class Source:
    """Batches of rows.

    Attributes
    ----------
    identity : str
        What tells these data from others; empty if nothing does.
    open : callable
        ``open(number)`` is an iterator of tensors (batch_size, d) from that batch on.
    """

    identity: str
    open: Callable[[int], Iterator[Any]]


def source_of(
    given: Any, batch_size: int, *, seed: int, site: Any = None, exclude: Any = None
) -> Source:
    """Return the batches of what a caller may train on.

    Parameters
    ----------
    given : ActivationStore, array (n, d), or iterable of arrays (batch_size, d)
        Stores and arrays give their rows in a new random order for every epoch, without end, and
        leave out the rest that fills no batch. An iterable gives its batches as they come; to go on
        after an interruption, those that were used are drawn once more and dropped.
    batch_size : int
    seed : int
        Of the order.
    site : str, optional
        Of a store with several.
    exclude : OutlierRule or bool array (n,), optional
        Rows of a store or array that are never drawn.

    Raises
    ------
    DtypeError
        ``given`` is none of the three.
    InvalidArgumentError
        ``site`` or ``exclude`` do not go with it, or there are fewer rows than ``batch_size``.
    """
    order: dict[str, Any] = {"seed": seed, "epochs": None, "exclude": exclude, "drop_last": True}
    if hasattr(given, "batches") and hasattr(given, "fingerprint"):

        def of_store(start: int) -> Iterator[Any]:
            return iter(given.batches(site, batch_size, start=start, output="torch", **order))

        return Source(f"store {given.fingerprint} {site}{_marks(exclude)}", of_store)
    if site is not None:
        raise InvalidArgumentError(
            f"[train] site must be left out unless source is a store, got {site!r}"
        )
    if _arrays.library_of(given):

        def of_array(start: int) -> Iterator[Any]:
            return array_batches(given, batch_size, start=start, output="torch", **order)

        return Source(_identity(given) + _marks(exclude), of_array)
    if not isinstance(given, Iterable) or isinstance(given, str | bytes):
        raise DtypeError(
            "[train] source must be rows (n, d), a store of activations or an iterable of batches, "
            f"got {type(given).__name__}"
        )
    if exclude is not None:
        raise InvalidArgumentError(
            "[train] exclude must be left out for an iterable, whose batches are taken whole, got "
            "one. Leave such rows out of the batches"
        )
    return Source("", lambda start: _taken(itertools.islice(given, start, None), batch_size))


def _taken(batches: Iterable[Any], batch_size: int) -> Iterator[Any]:
    """Yield batches of an iterable as tensors, once they are seen to be right."""
    import torch

    for batch in batches:
        shape = tuple(getattr(batch, "shape", ()))
        if not _arrays.library_of(batch) or len(shape) != 2 or shape[0] != batch_size:
            raise InvalidArgumentError(
                f"[train] source must yield arrays ({batch_size}, d) for this batch_size, got "
                f"{type(batch).__name__} of shape {shape}"
            )
        is_tensor = _arrays.library_of(batch) == "torch"
        yield batch.detach() if is_tensor else torch.from_numpy(_arrays.to_numpy(batch))


def _identity(x: Any) -> str:
    """Return shape, dtype, and a hash of some rows."""
    n = int(x.shape[0])
    digest = hashlib.sha256()
    for row in np.unique(np.linspace(0, n - 1, min(n, 64)).astype(np.int64)) if n else ():
        digest.update(np.ascontiguousarray(_arrays.to_numpy(x[int(row)])).tobytes())
    shape = "x".join(str(int(extent)) for extent in x.shape)
    return f"array {shape} {_arrays.dtype_name(x)} {digest.hexdigest()[:16]}"


def _marks(exclude: Any) -> str:
    """Return what tells a rule from others."""
    if exclude is None or not hasattr(exclude, "__array__"):
        return "" if exclude is None else f" without {exclude!r}"
    return f" without {hashlib.sha256(_arrays.to_numpy(exclude).tobytes()).hexdigest()[:16]}"
