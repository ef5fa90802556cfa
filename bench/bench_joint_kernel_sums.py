"""Distance correlation, made of sums of two kernels over all pairs, against dcor, numpy and torch.

python bench/bench_joint_kernel_sums.py [--quick] [--threads N] [--json FILE]
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import harness
import numpy as np
import subspan
from harness import Case, available
from subspan.dependence import distance_correlation

Array = np.ndarray[Any, Any]
JUDGED = 50  # rows that are compared with float64
MATRIX = 8000  # rows up to which rivals that keep whole matrices take part


@dataclass(frozen=True)
class Size:
    """Rows and columns of both samples."""

    n: int
    p: int
    q: int
    dtype: str = "float32"

    def __str__(self) -> str:
        dtype = "" if self.dtype == "float32" else f" {self.dtype}"
        return f"{self.n} p={self.p} q={self.q}{dtype}"


class Input:
    """Normally distributed rows, and what depends on them."""

    def __init__(self, size: Size) -> None:
        rng = np.random.default_rng(0)
        x = rng.standard_normal((size.n, size.p))
        y = np.cos(x[:, :1]) + rng.standard_normal((size.n, size.q))
        self.x, self.y = (np.ascontiguousarray(a, size.dtype) for a in (x, y))
        if available("torch"):
            import torch

            self.tx, self.ty = map(torch.from_numpy, (self.x, self.y))


Sums = tuple[Array, Array, Array]


def ours(b: Input) -> Sums:
    return subspan.joint_kernel_sums(b.x, b.y)


def ours_correlation(b: Input) -> float:
    return distance_correlation(b.x, b.y)


def step(b: Input) -> int:
    """So many rows of both matrices as stay near the caches."""
    return max(1, (1 << 20) // len(b.x))


# ---- sums of rows ----------------------------------------------------------------------------


def numpy_sums(b: Input) -> Sums:
    """|x|^2 + |y|^2 - 2 <x, y> of centred rows by BLAS, every further step in place."""
    sides = [a - a.mean(axis=0) for a in (b.x, b.y)]
    norms = [np.einsum("ij,ij->i", a, a) for a in sides]
    n = len(b.x)
    out = np.empty((3, n))
    for start in range(0, n, step(b)):
        rows = slice(start, min(start + step(b), n))
        both = []
        for a, squares in zip(sides, norms, strict=True):
            d = a[rows] @ (-2 * a.T)
            d += squares
            d += squares[rows, None]
            both.append(np.sqrt(np.maximum(d, 0, out=d), out=d))
        out[1, rows], out[2, rows] = (d.sum(axis=1, dtype=np.float64) for d in both)
        out[0, rows] = np.einsum("ij,ij->i", *both)
    return out[0], out[1], out[2]


SUMS: dict[str, harness.Contender] = {
    "subspan.joint_kernel_sums": ours,
    "numpy in chunks": numpy_sums,
}
if available("torch"):
    import torch

    def torch_sums(b: Input) -> Sums:
        parts = []
        for start in range(0, len(b.x), step(b)):
            k, m = (torch.cdist(a[start : start + step(b)], a) for a in (b.tx, b.ty))
            sums = [d.sum(1, dtype=torch.float64) for d in (k, m)]
            parts.append(torch.stack([k.mul_(m).sum(1, dtype=torch.float64), *sums]))
        joint, first, second = torch.cat(parts, 1).numpy()
        return joint, first, second

    SUMS["torch.cdist in chunks"] = torch_sums


def of_sums(sums: Sums, own: tuple[float, float]) -> float:
    """Distance correlation from sums of rows and the means of squared distances."""
    n = len(sums[1])
    a, b = sums[1] / n, sums[2] / n

    def centred(product: float, left: Array, right: Array) -> float:
        return product + left.mean() * right.mean() - 2 * (left * right).mean()

    square = centred(sums[0].sum() / n**2, a, b)
    size = centred(own[0], a, a) * centred(own[1], b, b)
    return float(np.sqrt(square / np.sqrt(size)))


def squares(rows: Array) -> float:
    """Mean of squared distances."""
    return float(2 * np.square(rows - rows.mean(axis=0, dtype=np.float64)).sum(1).mean())


def numpy_correlation(b: Input) -> float:
    return of_sums(numpy_sums(b), (squares(b.x), squares(b.y)))


def numpy_matrices(b: Input) -> float:
    """As it is defined, with whole matrices."""
    centred = []
    for rows in (b.x, b.y):
        wide = rows.astype(np.float64)
        norms = np.square(wide).sum(axis=1)
        a = np.sqrt(np.maximum(norms[:, None] + norms - 2 * wide @ wide.T, 0))
        means = a.mean(axis=0)
        centred.append(a - means - means[:, None] + means.mean())
    a, c = centred
    return float(np.sqrt((a * c).mean() / np.sqrt((a * a).mean() * (c * c).mean())))


def correlations(size: Size) -> dict[str, harness.Contender]:
    found: dict[str, harness.Contender] = {
        "subspan.dependence": ours_correlation,
        "numpy in chunks": numpy_correlation,
    }
    if size.n <= MATRIX:
        found["numpy, matrices"] = numpy_matrices
    if available("dcor") and (size.n <= MATRIX or size.p == size.q == 1):
        import dcor

        found["dcor"] = lambda b: float(dcor.distance_correlation(b.x, b.y))
    return found


# ---- errors ----------------------------------------------------------------------------------


def judge_sums(b: Input, result: Any) -> dict[str, float]:
    """Greatest relative error of some rows, against float64."""
    k, m = (
        np.sqrt(np.square(a[:JUDGED, None].astype(float) - a.astype(float)).sum(-1))
        for a in (b.x, b.y)
    )
    wanted = ((k * m).sum(1), k.sum(1), m.sum(1))
    return {
        "sum": max(
            float(np.abs(np.asarray(got)[:JUDGED] / right - 1).max())
            for got, right in zip(result, wanted, strict=True)
        )
    }


def judge_correlation(b: Input, result: Any) -> dict[str, float]:
    wide = (b.x.astype(np.float64), b.y.astype(np.float64))
    exact = distance_correlation(*wide) if len(b.x) > MATRIX else numpy_matrices(b)
    return {"value": abs(float(result) - exact)}


# ---- sizes -----------------------------------------------------------------------------------

SIZES = {
    "full": [
        *(Size(20_000, p, q) for p, q in ((3, 1), (16, 16), (64, 1), (256, 64))),
        Size(10_000, 16, 16, "float64"),
    ],
    "quick": [Size(4000, 3, 1), Size(4000, 16, 16)],
    "tiny": [Size(80, 3, 1), Size(80, 20, 2)],
}
CORRELATIONS = {
    "full": [Size(200_000, 1, 1), Size(25_000, 16, 16), Size(5000, 16, 16), Size(5000, 1, 1)],
    "quick": [Size(4000, 1, 1), Size(4000, 8, 8)],
    "tiny": [Size(80, 1, 1), Size(80, 4, 4)],
}


def cases(size: str) -> list[Case]:
    """Return the comparisons of a size."""
    sums = [
        Case(
            f"joint_kernel_sums {one}",
            lambda one=one: Input(one),
            SUMS,
            judge_sums,
            2.0 * one.n**2 * (one.p + one.q),
            memory="peak",
        )
        for one in SIZES[size]
    ]
    return sums + [
        Case(
            f"distance_correlation {one}",
            lambda one=one: Input(one),
            {name: run for name, run in correlations(one).items() if feasible(one, name)},
            judge_correlation,
            memory="peak",
        )
        for one in CORRELATIONS[size]
    ]


def feasible(size: Size, name: str) -> bool:
    """Chunks of 200 000 rows would take minutes; ours and dcor sort there."""
    return size.n <= 50_000 or name in {"subspan.dependence", "dcor"}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    return harness.main(__file__, cases, __doc__ or "", argv)


if __name__ == "__main__":
    main(sys.argv[1:])
