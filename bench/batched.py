"""What the benches of svd, eigh and qr share: shapes, inputs, and how their results are judged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import harness
import numpy as np
from harness import Case, Contender, available

Shape = tuple[int, int, int]

SHAPES: dict[str, list[Shape]] = {
    "full": [
        (4096, 16, 16),
        (4096, 32, 32),
        (1024, 64, 64),
        (256, 128, 128),
        (64, 512, 64),
        (1, 1024, 1024),
    ],
    "quick": [(512, 16, 16), (64, 64, 64), (16, 128, 128), (8, 512, 64), (1, 256, 256)],
    "tiny": [(4, 5, 5), (2, 9, 4)],
}


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
    """Return one case for each shape and dtype."""
    return [
        Case(
            f"{stem} {count}x({m}x{n}) {dtype}",
            lambda shape=(count, m, n), dtype=dtype: Batch(shape, dtype, symmetric=symmetric),
            contenders,
            judge,
        )
        for count, m, n in SHAPES[size]
        if m == n or not symmetric
        for dtype in ("float32", "float64")
    ]
