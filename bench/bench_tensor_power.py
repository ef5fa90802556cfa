"""tensor_power and spm: time and error against TensorLy, numpy and the published algorithm.

python bench/bench_tensor_power.py [--quick] [--threads N] [--json FILE]
"""

from __future__ import annotations

import sys
from itertools import combinations_with_replacement
from typing import Any

import harness
import numpy as np
import subspan
from harness import Case, available
from subspan import tensors
from tensor_rivals import batched_sshopm, published_spm

# d, order, rank
SPM: dict[str, list[tuple[int, int, int]]] = {
    "full": [(40, 4, 200), (40, 4, 400), (136, 3, 136), (19, 5, 190), (11, 6, 250), (80, 4, 400)],
    "quick": [(20, 4, 80), (10, 5, 50), (40, 3, 40)],
    "tiny": [(5, 4, 6), (4, 5, 5)],
}
# d, order, rank, with orthogonal components
ORTHOGONAL: dict[str, list[tuple[int, int, int]]] = {
    "full": [(10, 3, 5), (20, 4, 10), (50, 3, 20)],
    "quick": [(10, 3, 5)],
    "tiny": [(4, 3, 2)],
}
# tensors, d, starts; order 4
SMALL: dict[str, list[tuple[int, int, int]]] = {
    "full": [(500, 3, 32), (50, 6, 16), (2, 20, 16)],
    "quick": [(100, 3, 16)],
    "tiny": [(10, 3, 4)],
}


class Planted:
    """A sum of powers of unit columns; orthogonal ones have weights from 2 to 1."""

    def __init__(self, d: int, order: int, rank: int, *, orthogonal: bool = False) -> None:
        rng = np.random.default_rng(0)
        a = rng.standard_normal((d, rank))
        self.a = np.linalg.qr(a)[0] if orthogonal else a / np.linalg.norm(a, axis=0)
        signs = rng.choice([-1.0, 1.0], rank) * rng.uniform(0.5, 2, rank)
        weights = np.linspace(2, 1, rank) if orthogonal else signs
        packed = self._powers(order) @ weights
        self.t = tensors.symmetric_unpack(packed, order)

    def _powers(self, order: int) -> Any:
        index = np.array(list(combinations_with_replacement(range(len(self.a)), order)))
        found = self.a[index[:, 0]]
        for k in range(1, order):
            found = found * self.a[index[:, k]]
        return found


def _angles(planted: Planted, found: Any) -> dict[str, float]:
    """Worst 1 - |cos| of a component to the nearest found; 1 where some are missing."""
    found = np.asarray(found, np.float64)
    if found.shape[1] < planted.a.shape[1]:
        return {"angle": 1.0}
    return {"angle": float(max(0.0, 1 - np.abs(planted.a.T @ found).max(axis=1).min()))}


def _judge_spm(planted: Planted, result: Any) -> dict[str, float]:
    return _angles(planted, result[1])


def _maxima(planted: Planted) -> Any:
    """Ten starts for each component, as TensorLy has; all at once, and without deflation."""
    found = subspan.tensor_power(planted.t, n_starts=10 * planted.a.shape[1])
    top = found.kinds == 1
    return found.values[top], found.vectors[top].T


def _tensorly(planted: Planted) -> Any:
    from tensorly.decomposition import symmetric_parafac_power_iteration

    return symmetric_parafac_power_iteration(planted.t, rank=planted.a.shape[1])


class Small:
    """Many random symmetric tensors of order 4, full and packed, and starts for all of them."""

    def __init__(self, count: int, d: int, starts: int) -> None:
        rng = np.random.default_rng(0)
        size = tensors.symmetric_pack(np.zeros((d,) * 4)).shape[0]
        self.packed = rng.standard_normal((count, size))
        self.full = tensors.symmetric_unpack(self.packed, 4)
        self.starts = rng.standard_normal((starts, d))


def _ours_small(b: Small) -> Any:
    found = subspan.tensor_power(b.packed, b.starts, order=4, packed=True)
    assert not found.info.any()
    return found.values, found.vectors


def _judge_small(b: Small, result: Any) -> dict[str, float]:
    """Return the greatest residual over the norm of the tensor."""
    values, x = result
    some = min(len(x), 200)
    x, values = x[:some], values[:some]
    y = np.einsum("bijkl,bsj,bsk,bsl->bsi", b.full[:some], x, x, x, optimize=True)
    size = np.linalg.norm(b.full[:some].reshape(some, -1), axis=1)[:, None]
    rest = np.linalg.norm(y - values[..., None] * x, axis=-1) / size
    return {"residual": float(np.nanmax(rest))}


def cases(size: str) -> list[Case]:
    """Return the comparisons of a size."""
    found = [
        Case(
            f"spm d={d} order={order} rank={rank}",
            lambda d=d, order=order, rank=rank: Planted(d, order, rank),
            {
                "subspan.tensors.spm": lambda b: tensors.spm(b.t),
                "published, numpy": lambda b: published_spm(b.t),
            },
            _judge_spm,
            rounds=3,
        )
        for d, order, rank in SPM[size]
    ]
    for d, order, rank in ORTHOGONAL[size]:
        contenders: dict[str, harness.Contender] = {
            "subspan.tensor_power": _maxima,
            "subspan.tensors.spm": lambda b: tensors.spm(b.t),
            "published, numpy": lambda b: published_spm(b.t),
        }
        if available("tensorly"):
            contenders["tensorly"] = _tensorly
        found.append(
            Case(
                f"orthogonal d={d} order={order} rank={rank}",
                lambda d=d, order=order, rank=rank: Planted(d, order, rank, orthogonal=True),
                contenders,
                _judge_spm,
            )
        )
    found += [
        Case(
            f"tensor_power {count} x d={d} order=4, {starts} starts",
            lambda count=count, d=d, starts=starts: Small(count, d, starts),
            {
                "subspan.tensor_power": _ours_small,
                "numpy SS-HOPM": lambda b: batched_sshopm(b.full, b.starts),
            },
            _judge_small,
            rounds=3,
        )
        for count, d, starts in SMALL[size]
    ]
    return found


def main(argv: list[str] | None = None) -> dict[str, Any]:
    return harness.main(__file__, cases, __doc__ or "", argv)


if __name__ == "__main__":
    main(sys.argv[1:])
