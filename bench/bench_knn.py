"""Exact nearest neighbours: time against faiss, torch, scikit-learn, and the bare product.

python bench/bench_knn.py [--quick] [--threads N] [--only TEXT] [--json FILE]
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
from collections.abc import Iterator
from typing import Any

import harness
import numpy as np
import subspan
from harness import Case, available

# Before the threads are counted.
if available("faiss"):
    import faiss
if available("torch"):
    import torch

Rows = np.ndarray[Any, Any]
Found = tuple[Rows, Rows]

_SAMPLE = 32  # queries that are judged
_CHUNK = 512  # queries whose distances stand in memory together, where a rival stores them
# The BLAS of faiss's wheel takes kernels for older CPUs on AMD's; these are the best of its others.
_BEST_KERNELS = {"OPENBLAS_CORETYPE": "SkylakeX"}


def data(q: int, n: int, d: int, offset: float) -> tuple[Rows, Rows]:
    """Return queries and rows."""
    rng = np.random.default_rng(0)
    y = rng.standard_normal((n, d), dtype=np.float32) + np.float32(offset)
    x = rng.standard_normal((q, d), dtype=np.float32) + np.float32(offset)
    return x, y


class Input:
    """Queries and rows, in numpy and torch, in an index of faiss, and what is right for some."""

    def __init__(self, q: int, n: int, d: int, k: int, offset: float) -> None:
        self.given = (q, n, d, k, offset)
        self.k = k
        self.x, self.y = data(q, n, d, offset)
        self.sample = np.linspace(0, q - 1, min(q, _SAMPLE)).astype(int)
        wide = self.y.astype(np.float64)
        self.wanted = np.stack(
            [np.sort(np.square(wide - row).sum(axis=1))[:k] for row in self.x[self.sample]]
        )
        self.norms = np.square(self.y).sum(axis=1)
        if available("torch"):
            self.tensors = [torch.from_numpy(a) for a in (self.x, self.y, self.norms)]
        if available("faiss"):
            self.index = faiss_index(self.y)
        if available("sklearn"):
            from sklearn.neighbors import NearestNeighbors

            self.fitted = NearestNeighbors(
                n_neighbors=k, algorithm="brute", metric="sqeuclidean"
            ).fit(self.y)
        self._worker: Worker | None = None

    @property
    def worker(self) -> Worker:
        """The process in which faiss has other kernels; started when it is first asked for."""
        if self._worker is None:
            self._worker = Worker(self.given)
        return self._worker


def faiss_index(y: Rows) -> Any:
    """Return the flat index of rows."""
    index = faiss.IndexFlatL2(y.shape[1])
    index.add(y)
    return index


def by_faiss(b: Input) -> Found:
    """Search by matrix products and a heap for each query."""
    distances, indices = b.index.search(b.x, b.k)
    return distances, indices


class Worker:
    """A process of its own with other kernels in OpenBLAS; gives back its first result."""

    def __init__(self, given: tuple[int, int, int, int, float]) -> None:
        threads = str(subspan.get_num_threads())
        changed = _BEST_KERNELS | {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        with environment(changed):
            self._process = context.Process(target=serve, args=(other, given), daemon=True)
            self._process.start()
        self._pipe.recv()

    def search(self) -> Found | None:
        """Search once; every result but the first stays where it is."""
        self._pipe.send("search")
        found: Found | None = self._pipe.recv()
        return found

    def __del__(self) -> None:
        """End the process with the input."""
        with contextlib.suppress(OSError):
            self._pipe.send("end")
        self._process.join(timeout=10)


def serve(pipe: Any, given: tuple[int, int, int, int, float]) -> None:
    """Search when asked to; the process of a worker."""
    q, n, d, k, offset = given
    x, y = data(q, n, d, offset)
    index = faiss_index(y)
    pipe.send("ready")
    first = True
    while pipe.recv() == "search":
        found = index.search(x, k)
        pipe.send(tuple(found) if first else None)
        first = False


@contextlib.contextmanager
def environment(changed: dict[str, str]) -> Iterator[None]:
    """Change variables for what starts within."""
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def by_torch(b: Input) -> Found:
    """Products of some queries at a time, and torch's selection."""
    x, y, norms = b.tensors
    parts = []
    for chunk in x.split(_CHUNK):
        partial = torch.addmm(norms, chunk, y.T, alpha=-2)
        values, indices = torch.topk(partial, b.k, largest=False)
        parts.append((values + chunk.square().sum(1, keepdim=True), indices))
    values, indices = (torch.cat(part) for part in zip(*parts, strict=True))
    return values.numpy(), indices.numpy()


def product(b: Input) -> None:
    """The matrix product alone, nothing selected: the least that rivals by BLAS do."""
    out = np.empty((min(_CHUNK, len(b.x)), len(b.y)), np.float32)
    for start in range(0, len(b.x), _CHUNK):
        chunk = b.x[start : start + _CHUNK]
        np.matmul(chunk, b.y.T, out=out[: len(chunk)])


def judge(b: Input, result: Any) -> dict[str, float]:
    """Share of wrong neighbours and error of the distances, against float64, for some queries."""
    if result is None:
        return {}
    distances, indices = (np.asarray(part)[b.sample] for part in result)
    own = np.stack(
        [
            np.square(b.y[found].astype(np.float64) - row).sum(axis=1)
            for found, row in zip(indices, b.x[b.sample].astype(np.float64), strict=True)
        ]
    )
    farthest = b.wanted[:, -1:] * (1 + 1e-12)
    return {
        "wrong": float(np.mean(own > farthest)),
        "distances": float(np.max(np.abs(distances - b.wanted) / b.wanted)),
    }


class Sets:
    """As many rows in x as in y, or the same ones, and what is right for some."""

    def __init__(self, n: int, d: int, k: int, same: bool) -> None:
        self.k = k
        self.x, self.y = data(n, n, d, 0.0)
        if same:
            self.y = self.x.copy()
        self.sample = np.linspace(0, n - 1, min(n, _SAMPLE)).astype(int)


def judge_sets(b: Sets, result: Any) -> dict[str, float]:
    """Share of wrong neighbours in y against float64, for some rows of x."""
    if result is None:
        return {}
    wide = b.y.astype(np.float64)
    wrong = []
    for row, found in zip(b.sample, np.asarray(result.indices)[b.sample], strict=True):
        distances = np.square(wide - b.x[row].astype(np.float64)).sum(axis=1)
        wrong.append(distances[found] > np.sort(distances)[b.k - 1] * (1 + 1e-12))
    return {"wrong": float(np.mean(wrong))}


SELVES: dict[str, harness.Contender] = {
    "subspan.knn, x alone": lambda b: subspan.knn(b.x, k=b.k, exclude_self=False),
    "subspan.knn, a copy": lambda b: subspan.knn(b.x, b.y, k=b.k),
}
PAIRS: dict[str, harness.Contender] = {
    "subspan.knn_both": lambda b: subspan.knn_both(b.x, b.y, k=b.k)[0],
    "subspan.knn, twice": lambda b: (
        subspan.knn(b.x, b.y, k=b.k),
        subspan.knn(b.y, b.x, k=b.k),
    )[0],
}
PAIR_SIZES = {"full": [(20_000, 128, 2)], "quick": [(8000, 128, 2)], "tiny": [(300, 16, 2)]}
SELF_SIZES = {"full": [(50_000, 128, 10)], "quick": [(20_000, 128, 10)], "tiny": [(300, 16, 5)]}


def by_subspan(precision: str) -> harness.Contender:
    """Return our search at a precision."""
    return lambda b: subspan.knn(b.x, b.y, k=b.k, metric="sqeuclidean", precision=precision)


CONTENDERS: dict[str, harness.Contender] = {
    "subspan.knn": by_subspan("exact"),
    "subspan.knn certified": by_subspan("certified"),
    "subspan.knn fast": by_subspan("fast"),
}
if available("faiss"):
    CONTENDERS["faiss IndexFlatL2"] = by_faiss
    CONTENDERS["faiss, SkylakeX kernels"] = lambda b: b.worker.search()
if available("torch"):
    CONTENDERS["torch addmm, topk"] = by_torch
if available("sklearn"):
    CONTENDERS["sklearn brute"] = lambda b: b.fitted.kneighbors(b.x)
CONTENDERS["product alone (numpy)"] = product

Parameters = tuple[int, int, int, int, float]
SIZES: dict[str, list[Parameters]] = {
    "full": [
        (10_000, 100_000, 128, 10, 0.0),
        (10_000, 100_000, 128, 100, 0.0),
        (1000, 100_000, 768, 10, 0.0),
        (1000, 100_000, 768, 100, 0.0),
        (10_000, 100_000, 768, 10, 0.0),
        (1, 100_000, 128, 10, 0.0),
        (8, 100_000, 128, 10, 0.0),
        (1, 100_000, 768, 10, 0.0),
        (8, 100_000, 768, 10, 0.0),
        (1000, 100_000, 128, 10, 100.0),
        (1000, 100_000, 128, 10, 1000.0),
    ],
    "quick": [
        (1000, 20_000, 128, 10, 0.0),
        (1000, 20_000, 128, 100, 0.0),
        (500, 20_000, 768, 10, 0.0),
        (1, 100_000, 128, 10, 0.0),
        (8, 100_000, 128, 10, 0.0),
        (1000, 20_000, 128, 10, 1000.0),
    ],
    "tiny": [
        (20, 500, 16, 5, 0.0),
        (1, 300, 33, 3, 100.0),
    ],
}


def cases(size: str) -> list[Case]:
    """Return the comparisons of a size."""
    sets = [
        Case(
            f"knn of {n}x{d} in {'itself' if same else 'as many'} k={k}",
            lambda given=(n, d, k, same): Sets(*given),
            SELVES if same else PAIRS,
            judge_sets,
            flops=2.0 * n * n * d * (1 if same else 2),
            rounds=3,
        )
        for same, sizes in ((True, SELF_SIZES), (False, PAIR_SIZES))
        for n, d, k in sizes[size]
    ]
    return sets + [
        Case(
            f"knn {q} of {n}x{d} k={k}{f' offset {offset:g}' if offset else ''}",
            lambda given=(q, n, d, k, offset): Input(*given),
            CONTENDERS,
            judge,
            flops=2.0 * q * n * d,
            rounds=3 if q * d > 5_000_000 else None,
        )
        for q, n, d, k, offset in SIZES[size]
    ]


def main(argv: list[str] | None = None) -> dict[str, Any]:
    return harness.main(__file__, cases, __doc__ or "", argv)


if __name__ == "__main__":
    main(sys.argv[1:])
