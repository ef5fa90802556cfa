"""Top-k of rows: time against torch and numpy, and against one read of the memory.

python bench/bench_topk.py [--quick] [--threads N] [--json FILE]
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import harness
import numpy as np
import subspan
from harness import Case, available

Rows = np.ndarray[Any, Any]


def same_upper_bits(x: Rows) -> Rows:
    """All keys agree in their upper 22 bits: what a selection by digits likes least."""
    noise = np.random.default_rng(1).integers(0, 1024, x.shape, dtype=np.uint32)
    return (np.float32(1).view(np.uint32) + noise).view(np.float32)


def in_one_lane(x: Rows) -> Rows:
    """Ascending, dealt out so that the best of a row lie 64 apart."""
    rows, n = x.shape
    dealt = np.sort(x)[:, : n // 64 * 64].reshape(rows, 64, -1).transpose(0, 2, 1)
    return np.concatenate([dealt.reshape(rows, -1), x[:, n // 64 * 64 :]], axis=1)


# Orders of the elements of a row; "random" is the yardstick of the others.
ORDERS: dict[str, Callable[[Rows], Rows]] = {
    "random": lambda x: x,
    "ascending": np.sort,
    "descending": lambda x: np.sort(x)[:, ::-1].copy(),
    "all equal": np.ones_like,
    "two values": lambda x: (x > 0).astype(x.dtype),
    "relu": lambda x: np.maximum(x, 0),
    "same upper bits": same_upper_bits,
    "one lane": in_one_lane,
    "half nan": lambda x: np.where(np.random.default_rng(1).random(x.shape) < 0.5, np.nan, x),
}


class Input:
    """Rows, in numpy and torch, and the values that are right."""

    def __init__(self, rows: int, n: int, k: int, dtype: str, order: str) -> None:
        x = np.random.default_rng(0).standard_normal((rows, n), dtype=np.float32)
        self.x = np.ascontiguousarray(ORDERS[order](x)).astype(dtype)
        self.k = k
        numbers = np.where(np.isnan(self.x), -np.inf, self.x)
        self.wanted = -np.sort(-np.partition(numbers, n - k)[:, n - k :])
        if available("torch"):
            import torch

            self.tensor = torch.from_numpy(self.x)


def by_numpy(b: Input) -> tuple[Rows, Rows]:
    """Partition, then sort what was selected."""
    n = b.x.shape[1]
    chosen = np.argpartition(b.x, n - b.k)[:, n - b.k :] if b.k < n else np.argsort(b.x)
    values = np.take_along_axis(b.x, chosen, axis=1)
    order = np.argsort(-values)
    return np.take_along_axis(values, order, axis=1), np.take_along_axis(chosen, order, axis=1)


def read(b: Input) -> None:
    """Look at every element once: the least that any selection does."""
    flat = b.x.ravel().view(np.int32)  # numpy has fast code for these, whatever the dtype
    threads = subspan.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(np.max, np.array_split(flat, threads)))


def judge(b: Input, result: Any) -> dict[str, float]:
    """Difference of the values, and the share of indices that do not lead to them."""
    if result is None:
        return {}
    values, indices = (np.asarray(part) for part in result)
    found = np.take_along_axis(b.x, indices, axis=1)
    return {
        "values": float(np.max(np.abs(values.astype(np.float64) - b.wanted.astype(np.float64)))),
        "indices": float(np.mean(found != values)),
    }


CONTENDERS: dict[str, harness.Contender] = {"subspan.topk": lambda b: subspan.topk(b.x, b.k)}
if available("torch"):
    import torch

    CONTENDERS["torch.topk"] = lambda b: torch.topk(b.tensor, b.k)
CONTENDERS["numpy argpartition, sort"] = by_numpy
CONTENDERS["one read (max)"] = read

Parameters = tuple[int, int, int, str, str]
SIZES: dict[str, list[Parameters]] = {
    "full": [
        *((4096, 24576, 32, "float32", order) for order in ORDERS),
        *((4096, 24576, k, "float32", "random") for k in (1, 8, 128, 1024)),
        *((4096, 24576, 32, dtype, "random") for dtype in ("float16", "float64")),
        *((256, 24576, k, "float32", "random") for k in (3072, 12288, 24576)),
        *((1, 10_000_000, k, "float32", "random") for k in (32, 4096, 5_000_000, 10_000_000)),
        *((100_000, n, k, "float32", "random") for n, k in ((64, 8), (256, 32), (1024, 128))),
    ],
    "quick": [
        *((512, 24576, 32, "float32", order) for order in ORDERS),
        *((512, 24576, 32, dtype, "random") for dtype in ("float16", "float64")),
        *((32, 24576, k, "float32", "random") for k in (1024, 12288, 24576)),
        *((1, 1_000_000, k, "float32", "random") for k in (32, 500_000)),
        (10_000, 256, 32, "float32", "random"),
    ],
    "tiny": [
        (3, 1000, 5, "float32", "random"),
        (3, 1000, 500, "float64", "random"),
        (2, 300, 7, "float16", "ascending"),
    ],
}


def cases(size: str) -> list[Case]:
    """Return the comparisons of a size."""
    return [
        Case(
            f"topk {rows}x{n} k={k} {dtype}{'' if order == 'random' else f', {order}'}",
            lambda given=(rows, n, k, dtype, order): Input(*given),
            # torch orders NaN before all numbers, and numpy after: another task
            {
                name: run
                for name, run in CONTENDERS.items()
                if order != "half nan" or name in {"subspan.topk", "one read (max)"}
            },
            judge,
        )
        for rows, n, k, dtype, order in SIZES[size]
    ]


def main(argv: list[str] | None = None) -> dict[str, Any]:
    return harness.main(__file__, cases, __doc__ or "", argv)


if __name__ == "__main__":
    main(sys.argv[1:])
