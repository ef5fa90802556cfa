"""Principal angles of many pairs: time and error against a scipy loop and batched torch.

python bench/bench_angles.py [--quick] [--threads N] [--json FILE]
"""

from __future__ import annotations

import sys
from typing import Any

import harness
import numpy as np
from harness import Case, available
from subspan import subspaces

# Pairs, ambient dimension, dimension of the subspaces, angles.
SHAPES = {
    "full": [(1000, 256, 16), (200, 768, 64), (4000, 64, 4)],
    "quick": [(200, 256, 16), (500, 64, 4)],
    "tiny": [(6, 20, 3)],
}
# Subspaces on each side of a matrix of all pairs.
MATRICES = {"full": [(32, 768, 16)], "quick": [(16, 256, 16)], "tiny": [(3, 20, 2)]}


class Pairs:
    """Bases with known principal angles, not orthonormal."""

    def __init__(self, shape: tuple[int, int, int], kind: str) -> None:
        count, n, p = shape
        rng = np.random.default_rng(0)
        if kind == "near":
            self.theta = np.sort(10.0 ** rng.uniform(-9, 0, (count, p)))
        else:  # what random subspaces of a large space have
            self.theta = np.sort(rng.uniform(1.0, np.pi / 2, (count, p)))
        whole = np.linalg.qr(rng.standard_normal((count, n, 2 * p)))[0]
        cos, sin = (f(self.theta)[:, None, :] for f in (np.cos, np.sin))
        near = whole[..., :p] * cos + whole[..., p:] * sin
        self.a, self.b = (
            np.ascontiguousarray(x @ (rng.standard_normal((count, p, p)) / p + np.eye(p)))
            for x in (whole[..., :p], near)
        )


class All:
    """Two stacks of random subspaces, each of which meets each."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        rng = np.random.default_rng(0)
        self.a, self.b = rng.standard_normal((2, *shape))
        qa, qb = np.linalg.qr(self.a)[0], np.linalg.qr(self.b)[0]
        products = np.einsum("inp,jnq->ijpq", qa, qb, optimize=True)
        # Half of the angles by their sines would be a reference too; these are all large enough.
        self.theta = np.arccos(np.minimum(np.linalg.svd(products, compute_uv=False), 1.0))


def judge(pairs: Any, result: Any) -> dict[str, float]:
    """Largest absolute error of an angle."""
    return {"error": float(np.max(np.abs(np.asarray(result, np.float64) - pairs.theta)))}


PAIRS: dict[str, harness.Contender] = {
    "subspan.subspaces": lambda x: subspaces.principal_angles(x.a, x.b).angles,
}
MATRIX: dict[str, harness.Contender] = {
    "subspan.subspaces": lambda x: subspaces.principal_angles(x.a, x.b, pairs="all").angles,
}
if available("scipy"):
    import scipy.linalg

    PAIRS["scipy loop"] = lambda x: np.stack(
        [scipy.linalg.subspace_angles(a, b)[::-1] for a, b in zip(x.a, x.b, strict=True)]
    )
    MATRIX["scipy loop"] = lambda x: np.stack(
        [[scipy.linalg.subspace_angles(a, b)[::-1] for b in x.b] for a in x.a]
    )
if available("torch"):
    import torch

    def _torch(x: Any, spread: Any) -> Any:
        """As people write it: QR, products, singular values, arccos."""
        qa, qb = (torch.linalg.qr(torch.from_numpy(y)).Q for y in (x.a, x.b))
        return torch.arccos(torch.linalg.svdvals(spread(qa).mT @ qb).clamp(max=1.0))

    PAIRS["torch qr + svdvals"] = lambda x: _torch(x, lambda q: q)
    MATRIX["torch qr + svdvals"] = lambda x: _torch(x, lambda q: q[:, None])


def cases(size: str) -> list[Case]:
    """Return the comparisons of a size."""
    pairs = [
        Case(
            f"angles {shape[0]} pairs ({shape[1]}x{shape[2]}) {kind} float64",
            lambda shape=shape, kind=kind: Pairs(shape, kind),
            PAIRS,
            judge,
        )
        for shape in SHAPES[size]
        for kind in ("far", "near")
    ]
    matrices = [
        Case(
            f"angles {m} x {m} ({n}x{p}) all pairs float64",
            lambda shape=(m, n, p): All(shape),
            MATRIX,
            judge,
        )
        for m, n, p in MATRICES[size]
    ]
    return pairs + matrices


def main(argv: list[str] | None = None) -> dict[str, Any]:
    return harness.main(__file__, cases, __doc__ or "", argv)


if __name__ == "__main__":
    main(sys.argv[1:])
