"""Batched Cholesky: time and error against numpy, a scipy loop and torch.

python bench/bench_cholesky.py [--quick] [--threads N] [--json FILE]
"""

from __future__ import annotations

import sys
from typing import Any

import batched
import harness
import numpy as np
import subspan
from harness import Case, available

SHAPES: dict[str, list[tuple[int, int]]] = {
    "full": [(16384, 4), (16384, 8), (4096, 16), (4096, 32), (1024, 64), (256, 128), (1, 1024)],
    "quick": [(2048, 4), (512, 16), (256, 32), (64, 64), (16, 128), (1, 256)],
    "tiny": [(5, 4), (2, 70)],
}


class Definite(batched.Batch):
    """Gram matrices of Gaussian ones, with the identity added."""

    def __init__(self, count: int, n: int, dtype: str) -> None:
        super().__init__((count, n, n), "float64", symmetric=False)
        self.a = (self.a @ self.a.mT + np.eye(n)).astype(dtype)
        if available("torch"):
            import torch

            self.tensor = torch.from_numpy(self.a)


CONTENDERS: dict[str, harness.Contender] = {
    "subspan.cholesky": lambda b: subspan.cholesky(b.a),
    "numpy": lambda b: np.linalg.cholesky(b.a),
}
if available("scipy"):
    import scipy.linalg

    CONTENDERS["scipy loop"] = lambda b: np.stack(
        [scipy.linalg.cholesky(a, lower=True, check_finite=False) for a in b.a]
    )
if available("torch"):
    import torch

    CONTENDERS["torch"] = lambda b: torch.linalg.cholesky(b.tensor)


def judge(batch: Definite, result: Any) -> dict[str, float]:
    """Residual of the factors."""
    (factor,) = batched.doubles(result)
    return {"residual": batch.relative(factor @ factor.mT - batch.a)}


def cases(size: str) -> list[Case]:
    """Return the comparisons of a size."""
    return [
        Case(
            f"cholesky {count}x({n}x{n}) {dtype}",
            lambda count=count, n=n, dtype=dtype: Definite(count, n, dtype),
            CONTENDERS,
            judge,
        )
        for count, n in SHAPES[size]
        for dtype in ("float32", "float64")
    ]


def main(argv: list[str] | None = None) -> dict[str, Any]:
    return harness.main(__file__, cases, __doc__ or "", argv)


if __name__ == "__main__":
    main(sys.argv[1:])
