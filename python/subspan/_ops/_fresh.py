"""Memory for large results of torch: in huge pages, and used again once it is given back."""

from __future__ import annotations

import sys
import weakref
from math import prod
from typing import Any

import numpy as np

from subspan import _arrays

__all__ = ["fresh"]

_LARGE = 1 << 22  # bytes; below, torch's own memory is as good
_KEPT = 320 << 20  # bytes at most of what was given back
_LINE = 64

_spare: dict[int, list[Any]] = {}  # blocks by size


def fresh(x: Any, shape: tuple[int, ...]) -> Any:
    """Return an uninitialised array of the library, dtype and device of x.

    The system hands out zeros, and what is written once would cost more in page faults and zeros
    than in arithmetic. numpy asks for huge pages, torch does not; and a step of training gives back
    gradients of the sizes that the next step wants, so up to 320 MiB are kept for it. Cache lines
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


def _give_back(block: Any) -> None:
    if block.nbytes > _KEPT:
        return
    if sum(size * len(blocks) for size, blocks in list(_spare.items())) + block.nbytes > _KEPT:
        _spare.clear()
    _spare.setdefault(block.nbytes, []).append(block)
