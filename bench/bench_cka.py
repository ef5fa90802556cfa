"""Similarity of all pairs of layers: time and error against loops over pairs in torch and numpy.

python bench/bench_cka.py [--quick] [--threads N] [--json FILE]
"""

from __future__ import annotations

import functools
import sys
from typing import Any

import harness
import numpy as np
from harness import Case, available
from subspan.similarity import compare

if available("torch"):
    import torch

Rows = np.ndarray[Any, Any]
# layers, samples, neurons
SHAPES = {
    "full": [(24, 4000, 768), (12, 1000, 256), (48, 2000, 64)],
    "quick": [(8, 1000, 128)],
    "tiny": [(3, 40, 8)],
}
SHARE = 0.99  # of the variance, for SVCCA
JUDGED = 3  # layers whose pairs are worked out in float64


class Layers:
    """Activations of a random residual network: spectra that decay, neighbours that are alike."""

    def __init__(self, count: int, n: int, d: int) -> None:
        rng = np.random.default_rng(0)
        x = rng.standard_normal((n, d), dtype=np.float32)
        self.x: list[Rows] = []
        for _ in range(count):
            mix = rng.standard_normal((d, d), dtype=np.float32) / np.float32(np.sqrt(d))
            x = x + np.tanh(x @ mix) * np.geomspace(1.0, 0.1, d, dtype=np.float32)
            self.x.append(x + np.float32(1.0))
        if available("torch"):
            self.tensors = [torch.from_numpy(x) for x in self.x]
        step = max(1, count // JUDGED)
        self.sample = list(range(0, count, step))[:JUDGED]


@functools.lru_cache(maxsize=1)
def layers(count: int, n: int, d: int) -> Layers:
    return Layers(count, n, d)


# ---- rivals: a loop over pairs, with what belongs to one layer alone worked out once ------------


def numpy_cka(b: Layers) -> Rows:
    centred = [x - x.mean(axis=0) for x in b.x]
    norms = [np.linalg.norm(x.T @ x) for x in centred]
    out = np.eye(len(centred))
    for i, x in enumerate(centred):
        for j in range(i):
            value = np.linalg.norm(x.T @ centred[j]) ** 2 / (norms[i] * norms[j])
            out[i, j] = out[j, i] = value
    return out


def torch_cka(b: Layers) -> Any:
    centred = [x - x.mean(dim=0) for x in b.tensors]
    norms = [torch.linalg.norm(x.T @ x) for x in centred]
    out = torch.eye(len(centred))
    for i, x in enumerate(centred):
        for j in range(i):
            value = torch.linalg.norm(x.T @ centred[j]) ** 2 / (norms[i] * norms[j])
            out[i, j] = out[j, i] = value
    return out


def torch_cka_kernels(b: Layers) -> Any:
    """The form of fewer flops for many layers, with all N x N kernels in memory."""
    kernels = []
    for raw in b.tensors:
        x = raw - raw.mean(dim=0)
        kernels.append((x @ x.T).flatten())
    products = torch.stack(kernels)
    products = products @ products.T
    norms = products.diagonal().sqrt()
    return products / torch.outer(norms, norms)


def torch_svcca(b: Layers) -> Any:
    bases = []
    for raw in b.tensors:
        x = raw - raw.mean(dim=0)
        values, vectors = torch.linalg.eigh(x.T @ x)
        values, vectors = values.flip(0), vectors.flip(1)
        share = torch.cumsum(values, 0) / values.sum()
        kept = int((share < SHARE).sum()) + 1
        bases.append(x @ (vectors[:, :kept] / values[:kept].sqrt()))
    out = torch.eye(len(bases))
    for i, q in enumerate(bases):
        for j in range(i):
            out[i, j] = out[j, i] = torch.linalg.svdvals(q.T @ bases[j]).mean()
    return out


def torch_procrustes(b: Layers) -> Any:
    shapes = [x - x.mean(dim=0) for x in b.tensors]
    shapes = [x / torch.linalg.norm(x) for x in shapes]
    out = torch.zeros(len(shapes), len(shapes))
    for i, x in enumerate(shapes):
        for j in range(i):
            cosine = torch.linalg.svdvals(x.T @ shapes[j]).sum().clamp(max=1.0)
            out[i, j] = out[j, i] = torch.arccos(cosine)
    return out


# ---- references ----------------------------------------------------------------------------------


def exact(measure: str, x: Rows, y: Rows) -> float:
    """Return the value of a pair by its definition, in float64."""
    x, y = (a.astype(np.float64) - a.mean(axis=0, dtype=np.float64) for a in (x, y))
    if measure == "cka":
        return np.linalg.norm(x.T @ y) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))
    if measure == "procrustes":
        nuclear = np.linalg.svd(x.T @ y, compute_uv=False).sum()
        return float(np.arccos(nuclear / (np.linalg.norm(x) * np.linalg.norm(y))))
    bases = []
    for a in (x, y):
        u, s, _ = np.linalg.svd(a, full_matrices=False)
        kept = int(np.searchsorted(np.cumsum(s**2), SHARE * np.sum(s**2))) + 1
        bases.append(u[:, :kept])
    return float(np.linalg.svd(bases[0].T @ bases[1], compute_uv=False).mean())


@functools.lru_cache(maxsize=8)
def truth(measure: str, shape: tuple[int, int, int]) -> dict[tuple[int, int], float]:
    b = layers(*shape)
    return {(i, j): exact(measure, b.x[i], b.x[j]) for i in b.sample for j in b.sample if i < j}


def case(measure: str, shape: tuple[int, int, int], rivals: dict[str, Any]) -> Case:
    def judge(_: Layers, result: Any) -> dict[str, float]:
        found = np.asarray(getattr(result, "matrix", result), np.float64)
        wanted = truth(measure, shape)
        return {"error": max(abs(found[pair] - value) for pair, value in wanted.items())}

    contenders = {"subspan.similarity.compare": lambda b: compare(b.x, measure=measure), **rivals}
    count, n, d = shape
    name = f"{measure} {count} layers of {n}x{d} float32"
    return Case(name, lambda: layers(*shape), contenders, judge, rounds=3)


def cases(size: str) -> list[Case]:
    """Return the comparisons of a size."""
    has_torch = available("torch")
    rivals: dict[str, dict[str, Any]] = {
        "cka": {"numpy": numpy_cka},
        "svcca": {"torch": torch_svcca} if has_torch else {},
        "procrustes": {"torch": torch_procrustes} if has_torch else {},
    }
    if has_torch:
        rivals["cka"] |= {"torch": torch_cka, "torch N x N": torch_cka_kernels}
    return [
        case(measure, shape, others) for shape in SHAPES[size] for measure, others in rivals.items()
    ]


def main(argv: list[str] | None = None) -> dict[str, Any]:
    return harness.main(__file__, cases, __doc__ or "", argv)


if __name__ == "__main__":
    main(sys.argv[1:])
