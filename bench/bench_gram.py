"""Batched products of tall matrices: time and error against numpy, torch and a loop over scipy.

python bench/bench_gram.py [--quick] [--threads N] [--json FILE]
"""

from __future__ import annotations

import sys
from typing import Any

import harness
import numpy as np
import subspan
from harness import Case, available

# Pairs, rows, columns of x and of y; 0: of x with itself.
SHAPES: dict[str, list[tuple[int, int, int, int]]] = {
    "full": [
        (4000, 64, 4, 4),
        (4000, 64, 4, 0),
        (1000, 256, 16, 16),
        (1000, 256, 16, 0),
        (200, 768, 64, 64),
        (200, 768, 64, 0),
        (16, 4000, 128, 0),
        (1, 1000000, 16, 0),
        (1, 4000, 768, 0),
        (1, 4000, 768, 768),
    ],
    "quick": [(1000, 64, 4, 0), (200, 256, 16, 16), (50, 256, 64, 0), (1, 2000, 256, 0)],
    "tiny": [(3, 20, 4, 0), (2, 9, 5, 3)],
}


class Pairs:
    """Gaussian matrices."""

    def __init__(self, count: int, n: int, p: int, q: int, dtype: str) -> None:
        rng = np.random.default_rng(0)
        self.x = rng.standard_normal((count, n, p), dtype=dtype)
        self.y = rng.standard_normal((count, n, q), dtype=dtype) if q else None
        if available("torch"):
            import torch

            self.tensors = [torch.from_numpy(a) for a in (self.x, self.right)]

    @property
    def right(self) -> np.ndarray[Any, Any]:
        return self.x if self.y is None else self.y


CONTENDERS: dict[str, harness.Contender] = {
    "subspan.gram": lambda s: subspan.gram(s.x, s.y),
    "numpy matmul": lambda s: s.x.mT @ s.right,
}
if available("torch"):
    CONTENDERS["torch matmul"] = lambda s: s.tensors[0].mT @ s.tensors[1]
if available("scipy"):
    import scipy.linalg.blas

    def _loop(s: Pairs) -> np.ndarray[Any, Any]:
        """BLAS on single matrices, which it reads as transposed; one triangle for x alone."""
        blas = scipy.linalg.blas
        single = s.x.dtype == np.float32
        if s.y is None:
            syrk = blas.ssyrk if single else blas.dsyrk
            halves = np.stack([syrk(1, x.T) for x in s.x])
            return halves + np.triu(halves, 1).mT
        gemm = blas.sgemm if single else blas.dgemm
        return np.stack([gemm(1, x.T, y.T, trans_b=True) for x, y in zip(s.x, s.y, strict=True)])

    CONTENDERS["scipy blas loop"] = _loop


def judge(pairs: Pairs, result: Any) -> dict[str, float]:
    """Largest error of an element, relative to the norms of its columns."""
    x, y = (a[:4].astype(np.float64) for a in (pairs.x, pairs.right))
    sizes = [np.linalg.norm(a, axis=1) for a in (x, y)]
    error = np.abs(np.asarray(result[:4], np.float64) - x.mT @ y)
    return {"error": float(np.max(error / (sizes[0][:, :, None] * sizes[1][:, None, :])))}


def cases(size: str) -> list[Case]:
    """Return the comparisons of a size."""
    return [
        Case(
            f"gram {count}x({n}x{p}, {q or 'x'}) {dtype}",
            lambda count=count, n=n, p=p, q=q, dtype=dtype: Pairs(count, n, p, q, dtype),
            CONTENDERS,
            judge,
            flops=2.0 * count * n * p * q if q else 1.0 * count * n * p * p,
        )
        for count, n, p, q in SHAPES[size]
        for dtype in ("float32", "float64")
    ]


def main(argv: list[str] | None = None) -> dict[str, Any]:
    return harness.main(__file__, cases, __doc__ or "", argv)


if __name__ == "__main__":
    main(sys.argv[1:])
