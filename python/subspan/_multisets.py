"""Unique entries of symmetric tensors: which they are, how often each occurs, where it stands.

A symmetric tensor of order m and dimension d has C(d + m - 1, m) unique entries, those of sorted
indices i1 <= ... <= im. In packed form they lie in lexicographic order.
"""

from __future__ import annotations

import functools
from itertools import product
from math import comb, prod
from typing import Any

import numpy as np
import numpy.typing as npt

from subspan import _arrays, _checks
from subspan.errors import DtypeError, InvalidArgumentError, UnsupportedError

__all__ = [
    "ORDERS",
    "count",
    "cube",
    "dimension",
    "floats",
    "indices",
    "multiplicities",
    "pack",
    "places",
    "positions",
    "require_symmetric",
]

ORDERS = (3, 6)
_PIECE = 1 << 16  # entries that are compared at a time
_ASYMMETRY = {"float32": 1e-5, "float64": 1e-8}


def floats(function: str, name: str, a: Any) -> npt.NDArray[Any]:
    """Return ``a`` as a numpy array of float32 or float64, in place where it is on the CPU."""
    library = _arrays.require_array(function, name, a)
    dtype = _arrays.dtype_name(a)
    if dtype not in _ASYMMETRY:
        raise DtypeError(
            f"[{function}] {name} must be float32 or float64, got {dtype}. Convert it first"
        )
    if library != "numpy" and _arrays.device_of(a) != "cpu":
        raise UnsupportedError(
            f"[{function}] {name} must be on the CPU, got an array on {_arrays.device_of(a)}: "
            f"{function} has no CUDA kernel yet. Copy it to the host first"
        )
    return _arrays.to_numpy(_arrays.exportable(function, name, a))


def count(d: int, order: int) -> int:
    """How many sorted multi-indices there are."""
    return comb(d + order - 1, order) if d or order == 0 else 0


def dimension(function: str, name: str, entries: int, order: int) -> int:
    """Return d of a packed tensor."""
    d = 0
    while count(d, order) < entries:
        d += 1
    if d == 0 or count(d, order) != entries:
        raise InvalidArgumentError(
            f"[{function}] {name} must have C(d + {order - 1}, {order}) entries in its last "
            f"axis for some d >= 1 ({count(d, order)} for d = {d}), got {entries}. Give the "
            "tensor's order, or pass it in full without packed=True"
        )
    return d


@functools.lru_cache(maxsize=64)
def indices(d: int, order: int) -> npt.NDArray[np.int64]:
    """Sorted multi-indices (count, order) in lexicographic order; read-only."""
    table = np.zeros((1, 0), np.int64)
    for _ in range(order):
        last = table[:, -1] if table.shape[1] else np.zeros(1, np.int64)
        ends = np.cumsum(d - last)
        steps = np.arange(ends[-1]) - np.repeat(ends - (d - last), d - last)
        more = np.repeat(last, d - last) + steps
        table = np.column_stack([np.repeat(table, d - last, axis=0), more])
    table.flags.writeable = False
    return table


@functools.lru_cache(maxsize=64)
def multiplicities(d: int, order: int) -> npt.NDArray[np.float64]:
    """How many entries of the full tensor each unique one stands for; read-only."""
    table = indices(d, order)
    found, same = np.ones(len(table)), np.ones(len(table))
    for k in range(1, order):
        same = np.where(table[:, k] == table[:, k - 1], same + 1, 1)
        found *= (k + 1) / same
    found = np.rint(found)
    found.flags.writeable = False
    return found


def places(d: int, order: int) -> npt.NDArray[np.int64]:
    """Where the unique entries lie in the flat full tensor."""
    return indices(d, order) @ (d ** np.arange(order - 1, -1, -1))


def positions(table: npt.NDArray[np.int64], d: int) -> npt.NDArray[np.int64]:
    """Where multi-indices (..., order), sorted along the last axis, stand in that order."""
    order = table.shape[-1]
    at = np.zeros(table.shape[:-1], np.int64)
    previous: Any = 0
    for k in range(order):
        left = order - k  # so many are still to choose; of_first: how many begin with each
        of_first = [count(d - j, left - 1) for j in range(d)]
        before = np.concatenate([[0], np.cumsum(of_first)]).astype(np.int64)
        at += before[table[..., k]] - before[previous]
        previous = table[..., k]
    return at


def cube(function: str, name: str, shape: tuple[int, ...], order: int | None) -> tuple[int, int]:
    """Return (d, order) of full tensors in the last `order` axes of a shape; None: all axes."""
    order = len(shape) if order is None else order
    tail = shape[len(shape) - order :] if order <= len(shape) else ()
    if not tail or len(set(tail)) != 1 or tail[0] == 0:
        raise InvalidArgumentError(
            f"[{function}] {name} must have its last {order} axes of one length >= 1, got shape "
            f"{tuple(shape)}. Pass order= if leading axes are a batch, packed=True for unique ones"
        )
    return int(tail[0]), _checks.integer(function, "order", order, low=1)


def require_symmetric(
    function: str, name: str, a: npt.NDArray[Any], order: int, tol: float | None = None
) -> None:
    """Raise unless full tensors in the last `order` axes are symmetric up to rounding."""
    allowed = _ASYMMETRY[a.dtype.name] if tol is None else tol
    tensors = a.reshape(prod(a.shape[: a.ndim - order]), *a.shape[a.ndim - order :])
    axes = tuple(range(1, order + 1))
    with np.errstate(invalid="ignore", over="ignore"):
        largest = np.maximum(tensors.max(axis=axes), -tensors.min(axis=axes))
        apart = _apart(tensors)
        wrong = apart > allowed * largest
    if wrong.any():
        first = int(np.flatnonzero(wrong)[0])
        size = apart[first] / largest[first]
        which = f" (tensor {first})" if wrong.size > 1 else ""
        raise InvalidArgumentError(
            f"[{function}] {name} must be symmetric, got entries that differ by {size:.3g} of the "
            f"largest when axes are exchanged{which}. Pass subspan.tensors.symmetrize({name})"
        )


def _apart(tensors: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """By how much entries of each full tensor (s, d, ..., d) differ when axes are exchanged.

    Exchanges of adjacent axes generate all permutations; pieces of the tensor stay in a cache.
    """
    d, order = tensors.shape[-1], tensors.ndim - 1
    apart = np.zeros(len(tensors))
    together = max(1, _PIECE // d**order)
    for k in range(order - 1):
        before, after = d**k, d ** (order - k - 2)
        pairs = tensors.reshape(len(tensors), before, d, d, after)
        inner = min(after, max(1, _PIECE // d**2))
        outer = max(1, _PIECE // (d**2 * inner))
        for t, i, j in product(
            range(0, len(tensors), together), range(0, before, outer), range(0, after, inner)
        ):
            some = pairs[t : t + together, i : i + outer, ..., j : j + inner]
            # Antisymmetric, so that its maximum is that of its magnitude.
            rest = (some - some.swapaxes(2, 3)).max(axis=(1, 2, 3, 4))
            apart[t : t + together] = np.fmax(apart[t : t + together], rest)
    return apart


def pack(a: npt.NDArray[Any], order: int) -> npt.NDArray[Any]:
    """Return the unique entries (..., count) of full tensors in the last `order` axes."""
    d = a.shape[-1]
    flat = a.reshape(*a.shape[: a.ndim - order], d**order)
    return np.ascontiguousarray(flat[..., places(d, order)])
