"""Batched triangular solves: time and error against torch, a scipy loop and numpy's solve.

python bench/bench_solve_triangular.py [--quick] [--threads N] [--json FILE]
"""

from __future__ import annotations

import sys
from typing import Any

import batched
import harness
import numpy as np
import subspan
from harness import Case, available

# Systems, unknowns, right-hand sides of each.
SHAPES: dict[str, list[tuple[int, int, int]]] = {
    "full": [
        (16384, 4, 1),
        (4096, 16, 1),
        (4096, 16, 16),
        (4096, 32, 1),
        (4096, 32, 32),
        (1024, 64, 16),
        (256, 128, 128),
        (1, 1024, 1024),
    ],
    "quick": [(2048, 4, 1), (512, 16, 16), (256, 32, 1), (64, 64, 16), (16, 128, 128)],
    "tiny": [(5, 4, 2), (2, 70, 1)],
}


class Systems:
    """Lower triangles of Gaussian matrices with a dominant diagonal, and right-hand sides."""

    def __init__(self, count: int, n: int, k: int, dtype: str) -> None:
        rng = np.random.default_rng(0)
        a = np.tril(rng.standard_normal((count, n, n)) / np.sqrt(n), -1) + 2 * np.eye(n)
        self.a, self.b = a.astype(dtype), rng.standard_normal((count, n, k)).astype(dtype)
        if available("torch"):
            import torch

            self.tensors = torch.from_numpy(self.a), torch.from_numpy(self.b)


CONTENDERS: dict[str, harness.Contender] = {
    "subspan.solve_triangular": lambda s: subspan.solve_triangular(s.a, s.b),
}
if available("torch"):
    import torch

    CONTENDERS["torch"] = lambda s: torch.linalg.solve_triangular(*s.tensors, upper=False)
if available("scipy"):
    import scipy.linalg

    CONTENDERS["scipy loop"] = lambda s: np.stack(
        [
            scipy.linalg.solve_triangular(a, b, lower=True, check_finite=False)
            for a, b in zip(s.a, s.b, strict=True)
        ]
    )
CONTENDERS["numpy solve"] = lambda s: np.linalg.solve(s.a, s.b)


def judge(systems: Systems, result: Any) -> dict[str, float]:
    """Residual relative to |A| |X| + |B|."""
    a, b, x = batched.doubles(systems.a, systems.b, result)
    norms = [np.linalg.norm(part, axis=(1, 2)) for part in (a @ x - b, a, x, b)]
    return {"residual": float(np.max(norms[0] / (norms[1] * norms[2] + norms[3])))}


def cases(size: str) -> list[Case]:
    """Return the comparisons of a size."""
    return [
        Case(
            f"solve_triangular {count}x({n}x{n}, {k}) {dtype}",
            lambda count=count, n=n, k=k, dtype=dtype: Systems(count, n, k, dtype),
            CONTENDERS,
            judge,
        )
        for count, n, k in SHAPES[size]
        for dtype in ("float32", "float64")
    ]


def main(argv: list[str] | None = None) -> dict[str, Any]:
    return harness.main(__file__, cases, __doc__ or "", argv)


if __name__ == "__main__":
    main(sys.argv[1:])
