"""Memory for large results of torch: in huge pages, and used again once it is given back."""

from __future__ import annotations

import sys
import weakref
from math import prod
from typing import Any

import numpy as np

from subspan import _arrays

__all__ = ["fresh", "reserve"]

_LARGE = 1 << 22  # bytes; below, torch's own memory is as good
_KEPT = 320 << 20  # bytes at most of what was given back
_LINE = 64

_spare: dict[int, list[Any]] = {}  # blocks by size
_reserved: list[int] = []  # bytes that owners of large weights asked for


def fresh(x: Any, shape: tuple[int, ...]) -> Any:
    """Return an uninitialised array of the library, dtype and device of x.

    The system hands out zeros, and what is written once would cost more in page faults and zeros
    than in arithmetic. numpy asks for huge pages, torch does not; and a step of training gives back
    gradients of the sizes that the next step wants, so up to 320 MiB, and what was reserved, are
    kept for it. Cache lines
    begin where numpy's rows would, so that they are written whole.
    """
    if _arrays.library_of(x) != "torch" or _arrays.device_of(x) != "cpu":
        return _arrays.empty_like_on(x, shape)
    torch = sys.modules["torch"]
    size = prod(shape) * x.element_size()
    if size < _LARGE:
        return torch.empty(shape, dtype=x.dtype)
    block = _take(size + _LINE)
    start = -block.ctypes.data % _LINE
    memory = block[start : start + size]
    weakref.finalize(memory, _give_back, block).atexit = False  # torch's tensors hold `memory`
    return torch.from_numpy(memory).view(x.dtype).reshape(shape)


def _take(size: int) -> Any:
    try:
        return _spare[size].pop()
    except (KeyError, IndexError):
        return np.empty(size, np.uint8)


def reserve(owner: Any, n_bytes: int) -> None:
    """Keep so much more of what is given back, as long as the owner lives."""
    _reserved.append(n_bytes)
    weakref.finalize(owner, _release, n_bytes).atexit = False


def _release(n_bytes: int) -> None:
    _reserved.remove(n_bytes)
    if _kept() > _limit():
        _spare.clear()


def _limit() -> int:
    return _KEPT + sum(_reserved)


def _kept() -> int:
    return sum(size * len(blocks) for size, blocks in list(_spare.items()))


def _give_back(block: Any) -> None:
    if block.nbytes > _limit():
        return
    if _kept() + block.nbytes > _limit():
        _spare.clear()
    _spare.setdefault(block.nbytes, []).append(block)
