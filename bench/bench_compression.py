"""Smaller weights: time and error against Cholesky, inverse and SVD in torch, and scikit-learn.

python bench/bench_compression.py [--quick] [--threads N] [--json FILE]
"""

from __future__ import annotations

import functools
import sys
from typing import Any

import harness
import numpy as np
from harness import Case, available
from subspan.compression import rank_of_kept, sparse_dictionary, truncated_svd, whitened_svd

if available("torch"):
    import torch

Rows = np.ndarray[Any, Any]
KEPT = 0.8
# matrices, out, in: the shapes of a block of SmolLM2-135M
SHAPES = {
    "full": [(12, 576, 576), (12, 192, 576), (8, 1536, 576), (6, 576, 1536)],
    "quick": [(4, 576, 576), (4, 1536, 576)],
    "tiny": [(2, 24, 32), (2, 32, 24)],
}
# rows, columns, subspaces of dimension 3, atoms
UNIONS = {
    "full": [(256, 32, 8, 24), (960, 128, 24, 96)],
    "quick": [(256, 32, 8, 24)],
    "tiny": [(96, 16, 4, 12)],
}


class Layers:
    """Weights, and Gram matrices of inputs whose directions differ by orders of magnitude."""

    def __init__(self, count: int, m: int, n: int) -> None:
        rng = np.random.default_rng(0)
        self.w = rng.standard_normal((count, m, n), dtype=np.float32) / np.float32(np.sqrt(n))
        mix = rng.standard_normal((n, n)) * np.geomspace(1.0, 0.03, n)
        x = rng.standard_normal((count, 2 * n, n)) @ mix
        self.grams = x.mT @ x / len(x[0])
        self.rank = rank_of_kept(m, n, KEPT)
        if available("torch"):
            self.tensors = torch.from_numpy(self.w), torch.from_numpy(self.grams)


@functools.lru_cache(maxsize=1)
def layers(count: int, m: int, n: int) -> Layers:
    return Layers(count, m, n)


def ours(b: Layers) -> Rows:
    made: Rows = whitened_svd(b.w, b.grams).cut(rank=b.rank).to_dense()
    return made


def pipeline(b: Layers) -> Rows:
    """Layer by layer as it is usually done: the root is inverted to bring the factors back."""
    out = []
    for w, gram in zip(*b.tensors, strict=True):
        ridge = 1e-6 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
        root = torch.linalg.cholesky(gram + ridge).to(w.dtype)
        u, s, vh = torch.linalg.svd(w @ root, full_matrices=False)
        back = torch.linalg.inv(root)
        out.append((u[:, : b.rank] * s[: b.rank]) @ (vh[: b.rank] @ back))
    return torch.stack(out).numpy()


def excess(b: Layers, made: Any) -> dict[str, float]:
    """Return how far output errors are above the best ones, worked out by SVD in float64."""
    worst = 0.0
    for w, gram, one in zip(b.w.astype(np.float64), b.grams, made, strict=True):
        root = np.linalg.cholesky(gram)
        best = np.linalg.norm(np.linalg.svd(w @ root, compute_uv=False)[b.rank :])
        worst = max(worst, np.linalg.norm((w - one) @ root) / best - 1.0)
    return {"above the best": float(worst)}


class Union:
    """Rows from several subspaces of dimension 3, with noise."""

    def __init__(self, rows: int, n: int, planes: int, atoms: int) -> None:
        rng = np.random.default_rng(0)
        each = rows // planes
        parts = [rng.normal(size=(each, 3)) @ rng.normal(size=(3, n)) for _ in range(planes)]
        clean = np.concatenate(parts) / np.sqrt(n)
        self.w = rng.permutation(clean + 0.02 * rng.standard_normal(clean.shape))
        self.atoms = atoms


@functools.lru_cache(maxsize=1)
def union(rows: int, n: int, planes: int, atoms: int) -> Union:
    return Union(rows, n, planes, atoms)


def ksvd(b: Union) -> Rows:
    found = sparse_dictionary(b.w, atoms=b.atoms, sparsity=3, iterations=8)
    made: Rows = found.to_dense()
    return made


def sklearn(b: Union) -> Rows:
    from sklearn.decomposition import MiniBatchDictionaryLearning, sparse_encode

    learner = MiniBatchDictionaryLearning(
        b.atoms, alpha=0.02, max_iter=20, batch_size=64, fit_algorithm="cd", random_state=0
    ).fit(b.w)
    codes = sparse_encode(b.w, learner.components_, algorithm="omp", n_nonzero_coefs=3)
    made: Rows = codes @ learner.components_
    return made


def judged(b: Union, made: Any) -> dict[str, float]:
    """Return by how much the error exceeds half of low rank's at the bytes of the dictionary."""
    m, n = b.w.shape
    kept = (n * b.atoms + 3 * m + min(b.atoms, 3 * 7) * m / 64) / (m * n)
    low = truncated_svd(b.w).cut(kept=kept)
    error = np.linalg.norm(b.w - made)
    return {"above half of low rank": max(0.0, float(error / low.error) - 0.5)}


def cases(size: str) -> list[Case]:
    """Return the comparisons of a size."""
    factors: dict[str, harness.Contender] = {"subspan.whitened_svd": ours}
    if available("torch"):
        factors["torch cholesky, inv, svd"] = pipeline
    coded: dict[str, harness.Contender] = {"subspan.sparse_dictionary": ksvd}
    if available("sklearn"):
        coded["sklearn"] = sklearn
    found = [
        Case(f"whitened {count}x({m}x{n})", functools.partial(layers, count, m, n), factors, excess)
        for count, m, n in SHAPES[size]
    ]
    found += [
        Case(f"dictionary {rows}x{n} k={k}", functools.partial(union, rows, n, p, k), coded, judged)
        for rows, n, p, k in UNIONS[size]
    ]
    return found


def main(argv: list[str] | None = None) -> dict[str, Any]:
    return harness.main(__file__, cases, __doc__ or "", argv)


if __name__ == "__main__":
    main(sys.argv[1:])
