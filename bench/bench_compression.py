"""Smaller weights: time and error against Cholesky and SVD in torch, and scikit-learn.

python bench/bench_compression.py [--quick] [--threads N] [--json FILE]

"blocks" are all matrices of blocks of SmolLM2-135M, which has 30; the others are single shapes.
Dictionaries are timed with as few rounds as it takes each library to come within a tenth of the
noise that was planted, or of the error that ours has after three rounds where nothing was.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

import harness
import numpy as np
from harness import Case, available
from subspan.compression import rank_of_kept, sparse_dictionary, whitened_svd

if available("torch"):
    import torch

Rows = np.ndarray[Any, Any]
KEPT = 0.8
# matrices, out, in
BLOCK = [(2, 576, 576), (2, 192, 576), (2, 1536, 576), (1, 576, 1536)]
SETS = {
    "full": {"210 matrices": [(30 * count, m, n) for count, m, n in BLOCK]}
    | {f"{8 * count}x({m}x{n})": [(8 * count, m, n)] for count, m, n in BLOCK},
    "quick": {"2 blocks": [(2 * count, m, n) for count, m, n in BLOCK]}
    | {f"{2 * count}x({m}x{n})": [(2 * count, m, n)] for count, m, n in BLOCK},
    "tiny": {"tiny": [(2, 24, 32), (2, 32, 24)]},
}
# rows, columns, subspaces of dimension 3 (0: none), atoms, atoms a row uses
UNIONS = {
    "full": [
        (256, 32, 8, 24, 3),
        (960, 128, 24, 96, 3),
        (4096, 128, 64, 192, 3),
        (192, 576, 0, 129, 64),
    ],
    "quick": [(256, 32, 8, 24, 3), (960, 128, 24, 96, 3)],
    "tiny": [(96, 16, 4, 12, 3)],
}
EPOCHS = {"full": (1, 2, 4, 8, 16, 32, 64), "quick": (1, 2, 4, 8, 16, 32), "tiny": (1, 2)}


class Layers:
    """Weights, and Gram matrices of inputs whose directions differ by orders of magnitude."""

    def __init__(self, count: int, m: int, n: int) -> None:
        rng = np.random.default_rng(0)
        self.w = rng.standard_normal((count, m, n), dtype=np.float32) / np.float32(np.sqrt(n))
        self.grams = np.empty((count, n, n))
        mix = rng.standard_normal((n, n)) * np.geomspace(1.0, 0.03, n)
        for gram in self.grams:
            x = rng.standard_normal((2 * n, n)) @ mix
            gram[:] = x.T @ x / len(x)
        self.rank = rank_of_kept(m, n, KEPT)
        if available("torch"):
            self.tensors = torch.from_numpy(self.w), torch.from_numpy(self.grams)


Factored = list[tuple[Any, Any]]  # left and right, stacked, of each shape


@functools.lru_cache(maxsize=1)
def layers(shapes: tuple[tuple[int, int, int], ...]) -> list[Layers]:
    return [Layers(*shape) for shape in shapes]


def ours(stacks: list[Layers], precision: str = "auto") -> Factored:
    made = []
    for b in stacks:
        found = whitened_svd(b.w, b.grams, rank=b.rank, precision=precision).cut(rank=b.rank)
        made.append((found.left, found.right))
    return made


def pipeline(stacks: list[Layers]) -> Factored:
    """Layer by layer as it is usually done: the root is solved for to bring the factors back."""
    made = []
    for b in stacks:
        left, right = [], []
        for w, gram in zip(*b.tensors, strict=True):
            ridge = 1e-6 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
            root = torch.linalg.cholesky(gram + ridge).to(w.dtype)
            u, s, vh = torch.linalg.svd(w @ root, full_matrices=False)
            left.append(u[:, : b.rank] * s[: b.rank])
            right.append(torch.linalg.solve_triangular(root, vh[: b.rank], upper=False, left=False))
        made.append((torch.stack(left).numpy(), torch.stack(right).numpy()))
    return made


def excess(stacks: list[Layers], made: Factored) -> dict[str, float]:
    """Return how far output errors are above the best ones, worked out by SVD in float64.

    Of the first two of each shape.
    """
    worst = 0.0
    for b, (left, right) in zip(stacks, made, strict=True):
        for i in range(min(2, len(b.w))):
            w, one = b.w[i].astype(np.float64), left[i].astype(np.float64) @ right[i]
            root = np.linalg.cholesky(b.grams[i])
            best = np.linalg.norm(np.linalg.svd(w @ root, compute_uv=False)[b.rank :])
            worst = max(worst, np.linalg.norm((w - one) @ root) / best - 1.0)
    return {"above the best": float(worst)}


class Union:
    """Rows from several subspaces of dimension 3, with noise; or rows of noise alone."""

    def __init__(self, rows: int, n: int, planes: int, atoms: int, sparsity: int) -> None:
        rng = np.random.default_rng(0)
        noise = 0.02 if planes else 1.0 / np.sqrt(n)
        clean = np.zeros((rows, n))
        if planes:
            each = rows // planes
            parts = [rng.normal(size=(each, 3)) @ rng.normal(size=(3, n)) for _ in range(planes)]
            clean = np.concatenate(parts) / np.sqrt(n)
        rows = len(clean)
        self.w = rng.permutation(clean + noise * rng.standard_normal(clean.shape))
        self.w = self.w.astype(np.float32)
        self.atoms, self.sparsity = atoms, sparsity
        if planes:
            self.target = 1.1 * noise * np.sqrt(self.w.size)
        else:
            self.target = 1.1 * error(self, ksvd(self, 3))


def error(b: Union, made: Any) -> float:
    return float(np.linalg.norm(b.w - made))


def ksvd(b: Union, rounds: int) -> Rows:
    found = sparse_dictionary(b.w, atoms=b.atoms, sparsity=b.sparsity, iterations=rounds, tol=0.0)
    made: Rows = found.to_dense()
    return made


def sklearn(b: Union, epochs: int, *, whole: bool = False) -> Rows:
    from sklearn.decomposition import DictionaryLearning, MiniBatchDictionaryLearning, sparse_encode

    options = {"alpha": 0.3, "max_iter": epochs, "fit_algorithm": "cd", "random_state": 0}
    if whole:
        learner = DictionaryLearning(b.atoms, tol=0.0, **options)
    else:
        options |= {"batch_size": 64, "max_no_improvement": None}
        learner = MiniBatchDictionaryLearning(b.atoms, tol=0.0, **options)
    learner.fit(b.w)
    codes = sparse_encode(b.w, learner.components_, algorithm="omp", n_nonzero_coefs=b.sparsity)
    made: Rows = codes @ learner.components_
    return made


def enough(run: Any, b: Union, size: str) -> int:
    """Return the fewest rounds that reach the target, or the most that are tried."""
    return next((n for n in EPOCHS[size] if error(b, run(b, n)) <= b.target), EPOCHS[size][-1])


def judged(b: Union, made: Any) -> dict[str, float]:
    return {"over the target": max(0.0, error(b, made) / b.target - 1.0)}


class Learning:
    """A union, and the rounds that every library needs on it."""

    def __init__(self, shape: tuple[int, int, int, int, int], size: str) -> None:
        self.union = Union(*shape)
        self.rounds = {name: enough(run, self.union, size) for name, run in LEARNERS.items()}


LEARNERS: dict[str, Any] = {"subspan.sparse_dictionary": ksvd}
if available("sklearn"):
    LEARNERS["sklearn MiniBatchDictionaryLearning"] = sklearn
    LEARNERS["sklearn DictionaryLearning"] = functools.partial(sklearn, whole=True)


@functools.lru_cache(maxsize=1)
def learning(shape: tuple[int, int, int, int, int], size: str) -> Learning:
    return Learning(shape, size)


def cases(size: str) -> list[Case]:
    """Return the comparisons of a size."""
    factors: dict[str, harness.Contender] = {"subspan.whitened_svd auto": ours}
    if available("torch"):
        factors["torch cholesky, svd, solve"] = pipeline
    factors["subspan.whitened_svd float64"] = functools.partial(ours, precision="float64")
    found = [
        Case(f"whitened {name}", functools.partial(layers, tuple(shapes)), factors, excess)
        for name, shapes in SETS[size].items()
    ]

    def learnt(name: str) -> harness.Contender:
        return lambda b: LEARNERS[name](b.union, b.rounds[name])

    coded = {name: learnt(name) for name in LEARNERS}
    found += [
        Case(
            f"dictionary {shape[0]}x{shape[1]} k={shape[3]} s={shape[4]}",
            functools.partial(learning, shape, size),
            coded,
            lambda b, made: judged(b.union, made),
        )
        for shape in UNIONS[size]
    ]
    return found


def main(argv: list[str] | None = None) -> dict[str, Any]:
    return harness.main(__file__, cases, __doc__ or "", argv)


if __name__ == "__main__":
    main(sys.argv[1:])
