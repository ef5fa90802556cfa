"""What the benches of svd, eigh and qr share: shapes, inputs, and how their results are judged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grids
import harness
import numpy as np
from harness import Case, Contender, available
from tables import aligned

Shape = tuple[int, int, int]

# Each with a table of its own.
SHAPES: dict[str, list[Shape]] = {
    "full": [
        (4096, 16, 16),
        (4096, 32, 32),
        (1024, 64, 64),
        (256, 128, 128),
        (1024, 256, 16),
        (64, 512, 64),
        (1, 1024, 1024),
    ],
    "quick": [(512, 16, 16), (64, 64, 64), (16, 128, 128), (8, 512, 64), (1, 256, 256)],
    "tiny": [(2, 9, 4)],
}
# n of square matrices, with neighbours where another algorithm begins; and how many of them.
GRID: dict[str, list[int]] = {
    "full": [2, 3, 4, 8, 12, 16, 24, 32, 33, 48, 64, 65, 96, 128, 129, 256],
    "quick": [4, 16, 32, 33, 64, 65],
    "tiny": [5, 6],
}
COUNTS = {"full": (1, 16, 1000), "quick": (1, 200), "tiny": (3,)}
DTYPES = {"full": ("float32", "float64"), "quick": ("float32",), "tiny": ("float32",)}
LONGEST_LOOP = 16  # matrices: a loop over scipy for each of 1000 says nothing new


def grid(size: str) -> list[Shape]:
    """Return the square batches of a size: 1000 matrices have 10 million entries at most."""
    shapes = []
    for count in COUNTS[size]:
        for n in GRID[size]:
            fewer = min(count, max(16, 2_500_000 // n**2)) if n <= 128 else min(count, 16)
            shapes.append((fewer, n, n))
    return list(dict.fromkeys(shapes))


class Batch:
    """Gaussian matrices; symmetric ones on request."""

    def __init__(self, shape: Shape, dtype: str, *, symmetric: bool) -> None:
        a = np.random.default_rng(0).standard_normal(shape)
        self.a = np.ascontiguousarray(a + a.mT if symmetric else a).astype(dtype)
        if available("torch"):
            import torch

            self.tensor = torch.from_numpy(self.a)

    def relative(self, difference: np.ndarray) -> float:
        """Return the largest Frobenius norm of a difference, relative to that of its matrix."""
        size = np.linalg.norm(self.a.astype(np.float64), axis=(1, 2))
        return float(np.max(np.linalg.norm(difference, axis=(1, 2)) / size))


def doubles(*arrays: Any) -> list[np.ndarray]:
    """Return results of any library as float64 numpy arrays."""
    return [np.asarray(a, np.float64) for a in arrays]


def departure(q: np.ndarray) -> float:
    """Return the largest entry of |Q^T Q - I|."""
    return float(np.max(np.abs(q.mT @ q - np.eye(q.shape[-1]))))


def loop(function: Callable[[np.ndarray], tuple[np.ndarray, ...]]) -> Contender:
    """Call a function for single matrices on each, as scipy's users do."""

    def run(batch: Batch) -> tuple[np.ndarray, ...]:
        return tuple(np.stack(parts) for parts in zip(*map(function, batch.a), strict=True))

    return run


def cases(
    stem: str,
    contenders: dict[str, Contender],
    judge: harness.Judge,
    size: str,
    *,
    symmetric: bool = False,
) -> list[Case]:
    """Return one case for each shape and dtype, and for each of the grid."""

    def case(name: str, shape: Shape, dtype: str, some: dict[str, Contender]) -> Case:
        count, m, n = shape
        return Case(
            f"{name} {count}x({m}x{n}) {dtype}",
            lambda: Batch(shape, dtype, symmetric=symmetric),
            some,
            judge,
            rounds=3 if name.endswith(grids.MARK) and size == "full" else None,
        )

    tables = [
        case(stem, shape, dtype, contenders)
        for shape in SHAPES[size]
        if shape[1] == shape[2] or not symmetric
        for dtype in ("float32", "float64")
    ]
    quick = {name: run for name, run in contenders.items() if not name.endswith(" loop")}
    return tables + [
        case(stem + grids.MARK, shape, dtype, contenders if shape[0] <= LONGEST_LOOP else quick)
        for dtype in DTYPES[size]
        for shape in grid(size)
    ]


def main(
    script: str, cases: Callable[[str], list[Case]], doc: str, argv: list[str] | None
) -> dict[str, Any]:
    """Run a bench, then print its grid with the growth of the time from n to n."""
    results = harness.main(script, cases, doc, argv)
    chosen = grids.of(results.get("cases", []))
    if chosen:
        print("\n" + aligned(grids.table(chosen)))
        print("\n".join(grids.jumps(chosen)))
    return results
