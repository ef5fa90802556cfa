"""PCA and moments: time, memory and error against numpy, scikit-learn and torch.

python bench/bench_pca.py [--quick] [--threads N] [--json FILE]
"""

from __future__ import annotations

import functools
import sys
import tempfile
from pathlib import Path
from typing import Any

import harness
import numpy as np
import subspan
from harness import Case, Contender, available

SKLEARN, TORCH = available("sklearn"), available("torch")
if SKLEARN:
    import sklearn.decomposition as sk
if TORCH:
    import torch

K = 64


class Rows:
    """Rows with a decaying spectrum in mixed directions, and the answer in float64."""

    def __init__(self, n: int, d: int, dtype: str, offset: float, least: float) -> None:
        rng = np.random.default_rng(0)
        mix, _ = np.linalg.qr(rng.standard_normal((d, d)))
        # float64 until the last step, in blocks: standard deviations 1 ... least, mean at offset.
        mix *= np.geomspace(1.0, least, d)[:, None]
        self.x = np.empty((n, d), dtype)
        for part in self._blocks():
            part[:] = rng.standard_normal(part.shape) @ mix + offset

    def _blocks(self) -> list[np.ndarray]:
        return [self.x[i : i + 8192] for i in range(0, len(self.x), 8192)]

    @functools.cached_property
    def tensor(self) -> Any:
        return torch.from_numpy(self.x)

    @functools.cached_property
    def mean(self) -> np.ndarray:
        return sum(part.sum(axis=0, dtype=np.float64) for part in self._blocks()) / len(self.x)

    @functools.cached_property
    def covariance(self) -> np.ndarray:
        total = np.zeros((self.x.shape[1],) * 2)
        for part in self._blocks():
            centred = part.astype(np.float64) - self.mean
            total += centred.T @ centred
        return total / (len(self.x) - 1)

    @functools.cached_property
    def variances(self) -> np.ndarray:
        return np.linalg.eigvalsh(self.covariance)[::-1]


@functools.lru_cache(maxsize=1)
def rows(n: int, d: int, dtype: str, offset: float = 1.0, least: float = 0.01) -> Rows:
    return Rows(n, d, dtype, offset, least)


class Mapped(Rows):
    """The same rows in a file that is read by memory map."""

    def __init__(self, n: int, d: int) -> None:
        source = rows(n, d, "float32")
        self._variances = source.variances
        self._folder = tempfile.TemporaryDirectory()
        path = Path(self._folder.name) / "rows.npy"
        np.save(path, source.x)
        self.x = np.load(path, mmap_mode="r")

    @property
    def variances(self) -> np.ndarray:
        return self._variances


# ---- contenders ------------------------------------------------------------------------------


def numpy_uncentred(k: int | None) -> Contender:
    """X^T X - n mu mu^T: no copy, but cancels when the mean is far from zero."""

    def run(data: Rows) -> np.ndarray:
        x = data.x
        mean = x.mean(axis=0)
        c = (x.T @ x - len(x) * np.outer(mean, mean)) / (len(x) - 1)
        values, vectors = np.linalg.eigh(c)
        return values[::-1][:k], vectors[:, ::-1][:, :k]

    return run


def numpy_centred(k: int | None) -> Contender:
    """Copy, centre, multiply: right to float32, at the price of a second X."""

    def run(data: Rows) -> np.ndarray:
        x = data.x - data.x.mean(axis=0, dtype=np.float64).astype(data.x.dtype)
        values, vectors = np.linalg.eigh(x.T @ x / (len(x) - 1))
        return values[::-1][:k], vectors[:, ::-1][:, :k]

    return run


def torch_covariance(k: int | None) -> Contender:
    def run(data: Rows) -> Any:
        x = data.tensor
        mean = x.mean(dim=0)
        c = (x.T @ x - len(x) * torch.outer(mean, mean)) / (len(x) - 1)
        values, vectors = torch.linalg.eigh(c)
        return values.flip(0)[:k].numpy(), vectors.flip(1)[:, :k]

    return run


def torch_lowrank(k: int) -> Contender:
    def run(data: Rows) -> Any:
        _, s, v = torch.pca_lowrank(data.tensor, q=k)
        return (s**2 / (len(data.x) - 1)).numpy(), v

    return run


def estimator(build: Any) -> Contender:
    """Fit, and read what everybody reads."""

    def run(data: Rows) -> Any:
        fitted = build().fit(data.x)
        return fitted.explained_variance_, fitted.components_

    return run


def judge(data: Rows, result: Any) -> dict[str, float]:
    """Largest error of a variance, relative to the largest variance."""
    got, truth = np.asarray(result[0], np.float64), data.variances
    return {"error": np.max(np.abs(got - truth[: len(got)])) / truth[0]}


def judge_offset(data: Rows, result: Any) -> dict[str, float]:
    """Also the worst relative error of the variances above 1 % of the largest."""
    got, truth = np.asarray(result[0], np.float64), data.variances
    large = truth[: len(got)] > 0.01 * truth[0]
    relative = np.abs(got / truth[: len(got)] - 1)
    return judge(data, result) | {"worst above 1 %": np.max(relative[large])}


def judge_moments(data: Rows, result: np.ndarray) -> dict[str, float]:
    """Largest error of an entry, relative to the geometric mean of its two variances.

    The bare product of numpy and torch is not a covariance; only its time is compared.
    """
    if result is None:
        return {}
    scale = np.sqrt(np.diag(data.covariance))
    error = np.abs(result / (len(data.x) - 1) - data.covariance) / np.outer(scale, scale)
    return {"error": np.max(error)}


def moments(precision: str) -> Contender:
    return lambda data: subspan.Moments(precision=precision).update(data.x).m2


def bare_product(data: Rows) -> None:
    data.x.T @ data.x


def bare_product_torch(data: Rows) -> None:
    data.tensor.T @ data.tensor


# ---- cases -----------------------------------------------------------------------------------


def fits(k: int | None, d: int, dtype: str) -> dict[str, Contender]:
    found = {"subspan.PCA": estimator(lambda: subspan.PCA(k))}
    if dtype == "float32":
        found["subspan.PCA float64"] = estimator(lambda: subspan.PCA(k, precision="float64"))
    if SKLEARN:
        # Up to 1000 columns and from 10 rows a column the default is "covariance_eigh".
        found["sklearn PCA default"] = estimator(lambda: sk.PCA(k))
        if d > 1000:
            found["sklearn covariance_eigh"] = estimator(
                lambda: sk.PCA(k, svd_solver="covariance_eigh")
            )
    found["numpy X'X - n mm', eigh"] = numpy_uncentred(k)
    found["numpy centred copy, eigh"] = numpy_centred(k)
    if TORCH:
        found["torch X'X - n mm', eigh"] = torch_covariance(k)
        if k is not None:
            found["torch pca_lowrank"] = torch_lowrank(k)
    return found


def moment_case(n: int, d: int, dtype: str) -> Case:
    found = {"subspan.Moments.update": moments("auto")}
    if dtype == "float32":
        found["subspan.Moments.update float64"] = moments("float64")
    found["numpy X'X alone"] = bare_product
    if TORCH:
        found["torch X'X alone"] = bare_product_torch
    return Case(
        f"moments {n}x{d} {dtype}",
        lambda: rows(n, d, dtype),
        found,
        judge_moments,
        flops=float(n) * d * d,
    )


def pca_case(n: int, d: int, dtype: str, k: int | None, **more: Any) -> Case:
    share = f"k={k}" if k else "all components"
    return Case(
        f"pca {n}x{d} {dtype} {share}", lambda: rows(n, d, dtype), fits(k, d, dtype), judge, **more
    )


def offset_case(n: int, d: int, offset: float) -> Case:
    k = d // 2  # standard deviations fall from 1 to 0.01: those variances that exceed 1 %
    found = {
        "subspan.PCA": estimator(lambda: subspan.PCA(k)),
        "subspan.PCA float64": estimator(lambda: subspan.PCA(k, precision="float64")),
    }
    if SKLEARN:
        found["sklearn PCA default"] = estimator(lambda: sk.PCA(k))
        found["sklearn PCA full"] = estimator(lambda: sk.PCA(k, svd_solver="full"))
        found["sklearn IncrementalPCA"] = estimator(lambda: sk.IncrementalPCA(k))
    if TORCH:
        found["torch pca_lowrank"] = torch_lowrank(k)
    return Case(
        f"accuracy {n}x{d} float32 mean/std {offset:g}",
        lambda: rows(n, d, "float32", offset),
        found,
        judge_offset,
        rounds=1,
    )


def mapped_case(n: int, d: int, k: int) -> Case:
    found = {"subspan.PCA": estimator(lambda: subspan.PCA(k))}
    if SKLEARN:
        found["sklearn PCA default"] = estimator(lambda: sk.PCA(k))
    found["numpy centred copy, eigh"] = numpy_centred(k)
    return Case(
        f"pca memory-mapped {n}x{d} float32 k={k}",
        lambda: Mapped(n, d),
        found,
        judge,
        memory="anonymous",
        rounds=3,
    )


def cases(size: str) -> list[Case]:
    """Return the comparisons of a size."""
    tall, wide, small, k = {
        "full": ((200_000, 768), (20_000, 2048), 1_000_000, K),
        "quick": ((50_000, 768), (5_000, 2048), 200_000, K),
        "tiny": ((300, 24), (200, 40), 400, 5),
    }[size]
    offset_rows, offset_columns = (500, 8) if size == "tiny" else (100_000, 64)
    return [
        pca_case(*tall, "float32", k, memory="peak"),
        pca_case(*tall, "float32", None, rounds=None if size == "tiny" else 3),
        moment_case(*tall, "float32"),
        mapped_case(*tall, k),
        pca_case(*tall, "float64", k, rounds=None if size == "tiny" else 3),
        moment_case(*tall, "float64"),
        *(pca_case(small, d, "float32", None) for d in (64, 128)),
        *(moment_case(small, d, "float32") for d in (64, 128)),
        pca_case(*wide, "float32", k, rounds=None if size == "tiny" else 3),
        moment_case(*wide, "float32"),
        *(offset_case(offset_rows, offset_columns, m) for m in (0.0, 10.0, 100.0, 1000.0)),
    ]


def main(argv: list[str] | None = None) -> dict[str, Any]:
    return harness.main(__file__, cases, __doc__ or "", argv)


if __name__ == "__main__":
    main(sys.argv[1:])
