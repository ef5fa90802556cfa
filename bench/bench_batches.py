"""Batches in a random order from a store of activations: time against reading it in order.

Values stay in float16, as they are stored, so that it is the reading that is timed.
"cold" means that the system's cache of the files was emptied before each run.

python bench/bench_batches.py [--quick] [--threads N] [--json FILE]
"""

from __future__ import annotations

import functools
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import numpy as np
from harness import Case
from subspan.activations import ActivationStore, open_saved, write_activations

Rows = np.ndarray[Any, Any]
Result = list[tuple[Rows, Rows]]  # row numbers and values, of a few batches

BATCH = 4096
_OPTIONS: dict[str, Any] = {"seed": 0, "output": "numpy", "dtype": "float16"}
_PERIOD = 2048  # of the values, so that they are exact in float16


class Input:
    """A store of n rows, and which batches of the epoch are read: the last ``count``."""

    def __init__(self, n: int, width: int, count: int, *, cold: bool) -> None:
        self.folder = _store(n, width)
        self.store, self.cold = ActivationStore(self.folder), cold
        self.n, self.width, self.count = n, width, count
        self.files = sorted(self.folder.glob("*.safetensors"))
        self.column = np.arange(n) % _PERIOD

    def emptied(self) -> None:
        """Drop the files from the system's cache, if this is the cold case."""
        for file in self.files if self.cold else ():
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


@functools.cache
def _keep() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="bench-batches-")


@functools.cache
def _store(n: int, width: int) -> Path:
    """Write a store whose values are the row number modulo a period."""
    folder = Path(_keep().name) / f"{n}x{width}"
    source = folder.with_suffix(".npy")
    x = np.lib.format.open_memmap(source, "w+", np.float16, (n, width))
    for start in range(0, n, 1 << 16):
        stop = min(start + (1 << 16), n)
        x[start:stop] = (np.arange(start, stop) % _PERIOD)[:, None]
    del x
    write_activations(open_saved(source), None, folder)
    source.unlink()
    return folder


def shuffled(b: Input, buffer_mb: float = 256) -> Result:
    """Ours: the last batches of an epoch, so that nothing is read in vain."""
    b.emptied()
    total = -(-b.n // BATCH)
    options: dict[str, Any] = {**_OPTIONS, "buffer_mb": buffer_mb}
    batches = b.store.batches(None, BATCH, start=total - b.count, **options)
    found: Result = []
    for number, batch in enumerate(batches, start=total - b.count):
        found = [*found[-1:], (batches.rows_of(number), batch)]
    return found


def in_order(b: Input) -> Result:
    """As many batches in the order of the text: what reading itself takes."""
    b.emptied()
    batches = b.store.batches(
        None, BATCH, start=-(-b.n // BATCH) - b.count, shuffle=False, **_OPTIONS
    )
    found: Result = []
    for number, batch in enumerate(batches, start=batches.done):
        found = [*found[-1:], (batches.rows_of(number), batch)]
    return found


def indexed(b: Input) -> Result:
    """Memory maps, indexed with a permutation batch by batch: what one writes at first."""
    b.emptied()
    saved = open_saved(b.folder)
    maps = [column.mapped() for column in saved.columns(saved.sites[0])]
    starts = np.cumsum([0, *map(len, maps)])
    order = np.random.default_rng(0).permutation(b.n)[: b.count * BATCH]
    found: Result = []
    for begin in range(0, len(order), BATCH):
        rows = order[begin : begin + BATCH]
        batch = np.empty((len(rows), b.width), np.float16)
        part = np.searchsorted(starts, rows, side="right") - 1
        for number in np.unique(part):
            here = part == number
            batch[here] = maps[number][rows[here] - starts[number]]
        found = [*found[-1:], (rows, batch)]
    return found


def judge(b: Input, result: Any) -> dict[str, float]:
    """Difference of the values from those of the rows that were meant."""
    return {
        "values": max(
            float(np.abs(batch - b.column[rows][:, None]).max()) for rows, batch in result
        )
    }


CONTENDERS: dict[str, Callable[[Input], Result]] = {
    "subspan.batches": shuffled,
    "subspan.batches, buffer_mb=1024": lambda b: shuffled(b, 1024),
    "in order": in_order,
    "maps, indexed batch by batch": indexed,
}

Parameters = tuple[int, int, int, bool]
SIZES: dict[str, list[Parameters]] = {
    "full": [(2_400_000, 576, 108, False), (2_400_000, 576, 108, True)],
    "quick": [(400_000, 576, 54, False), (400_000, 576, 54, True)],
    "tiny": [(9_000, 32, 2, False), (9_000, 32, 2, True)],
}


def cases(size: str) -> list[Case]:
    """Return the comparisons of a size."""
    return [
        Case(
            f"batches {n}x{width} float16, {count} of {BATCH}, {'cold' if cold else 'warm'}",
            lambda given=(n, width, count), cold=cold: Input(*given, cold=cold),
            # one by one from a cold disk, indexing takes minutes
            {
                k: run
                for k, run in CONTENDERS.items()
                if not cold or size == "tiny" or run != indexed
            },
            judge,
            memory="" if cold else "anonymous",
            rounds=3 if size == "full" else None,
        )
        for n, width, count, cold in SIZES[size]
        if not cold or hasattr(os, "posix_fadvise")
    ]


def main(argv: list[str] | None = None) -> dict[str, Any]:
    return harness.main(__file__, cases, __doc__ or "", argv)


if __name__ == "__main__":
    main(sys.argv[1:])
