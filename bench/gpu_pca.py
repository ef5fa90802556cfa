"""Cases of Moments and PCA on a GPU: rows that lie on the device, centred products by hand."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import subspan
from gpu_bench import Case, Contender, Lab
from harness import available

K = 64
_CHUNK = 1 << 26  # elements that are made, or multiplied for the reference, at a time


class Rows:
    """Rows with a decaying spectrum in mixed directions and a mean of 1, on the device."""

    def __init__(self, lab: Lab, n: int, d: int, dtype: str, seed: int) -> None:
        torch = lab.torch
        self.lab = lab
        generator = torch.Generator(lab.device).manual_seed(seed)
        draw = functools.partial(
            torch.randn, generator=generator, device=lab.device, dtype=torch.float64
        )
        mix, _ = torch.linalg.qr(draw((d, d)))
        # Standard deviations from 1 to 0.01.
        mix *= torch.logspace(0, -2, d, device=lab.device, dtype=torch.float64)[:, None]
        self.x = torch.empty((n, d), device=lab.device, dtype=getattr(torch, dtype))
        for part in self._parts():
            part.copy_(draw(part.shape) @ mix + 1.0)
        self.c = lab.cupy.from_dlpack(self.x) if lab.cupy and dtype != "bfloat16" else None

    def _parts(self) -> list[Any]:
        step = max(1, _CHUNK // self.x.shape[1])
        return [self.x[i : i + step] for i in range(0, len(self.x), step)]

    @functools.cached_property
    def covariance(self) -> np.ndarray:
        """The truth, from float64 products of centred rows."""
        mean = sum(part.double().sum(dim=0) for part in self._parts()) / len(self.x)
        total = 0.0
        for part in self._parts():
            centred = part.double() - mean
            total = total + centred.T @ centred
        return np.asarray((total / (len(self.x) - 1)).cpu().numpy())

    @functools.cached_property
    def variances(self) -> np.ndarray:
        return np.linalg.eigvalsh(self.covariance)[::-1]


def _host(a: Any) -> np.ndarray:
    """Return a result of any library as a float64 numpy array."""
    if hasattr(a, "detach"):
        a = a.detach().cpu().double().numpy()
    elif hasattr(a, "get"):
        a = a.get()
    return np.asarray(a, np.float64)


# ---- contenders ------------------------------------------------------------------------------


def torch_scatter(rows: Rows) -> Any:
    x = rows.x.float() if rows.x.dtype == rows.lab.torch.bfloat16 else rows.x
    centred = x - x.mean(dim=0)
    return centred.T @ centred


def torch_scatter_tf32(rows: Rows) -> Any:
    """Round the operands of products to 10 bits, as many programs allow: fast, and less exact."""
    matmul = rows.lab.torch.backends.cuda.matmul
    matmul.allow_tf32 = True
    try:
        return torch_scatter(rows)
    finally:
        matmul.allow_tf32 = False


def cupy_scatter(rows: Rows) -> Any:
    centred = rows.c - rows.c.mean(axis=0)
    return centred.T @ centred


def moments_contenders(dtype: str) -> Any:
    def found(lab: Lab) -> dict[str, Contender]:
        contenders: dict[str, Contender] = {
            "subspan.Moments": lambda rows: subspan.Moments().update(rows.x).m2
        }
        if dtype != "float64":
            contenders["subspan.Moments float64"] = lambda rows: (
                subspan.Moments(precision="float64").update(rows.x).m2
            )
        contenders["torch"] = torch_scatter
        if dtype != "float64" and lab.on_gpu:
            contenders["torch tf32"] = torch_scatter_tf32
        if lab.cupy is not None and dtype != "bfloat16":
            contenders["cupy"] = cupy_scatter
        return contenders

    return found


def pca_contenders(lab: Lab) -> dict[str, Contender]:
    torch, cupy = lab.torch, lab.cupy

    def ours(rows: Rows) -> Any:
        fitted = subspan.PCA(K).fit(rows.x)
        return fitted.explained_variance_, fitted.components_

    def by_torch(rows: Rows) -> Any:
        values, vectors = torch.linalg.eigh(torch_scatter(rows) / (len(rows.x) - 1))
        return values.flip(0)[:K], vectors.flip(1)[:, :K].T

    def by_cupy(rows: Rows) -> Any:
        values, vectors = cupy.linalg.eigh(cupy_scatter(rows) / (len(rows.x) - 1))
        return values[::-1][:K], vectors[:, ::-1][:, :K].T

    found: dict[str, Contender] = {"subspan.PCA": ours, "torch": by_torch}
    if cupy is not None:
        found["cupy"] = by_cupy
        if available("cuml"):
            import cuml

            def by_cuml(rows: Rows) -> Any:
                fitted = cuml.decomposition.PCA(n_components=K).fit(rows.c)
                return fitted.explained_variance_, fitted.components_

            found["cuml"] = by_cuml
    return found


# ---- errors ----------------------------------------------------------------------------------


def judge_moments(rows: Rows, m2: Any) -> dict[str, float]:
    """Largest error of an entry, relative to the geometric mean of its two variances."""
    truth = rows.covariance
    scale = np.sqrt(np.diag(truth))
    error = np.abs(_host(m2) / (len(rows.x) - 1) - truth) / np.outer(scale, scale)
    return {"error": float(error.max())}


def judge_pca(rows: Rows, result: Any) -> dict[str, float]:
    """Largest error of a variance and residual of a component, relative to the first variance."""
    values, axes = (_host(a) for a in result)
    truth, first = rows.variances[: len(values)], rows.variances[0]
    residual = axes @ rows.covariance - values[:, None] * axes
    return {
        "variances": float(np.abs(values - truth).max() / first),
        "residual": float(np.linalg.norm(residual, axis=1).max() / first),
    }


# ---- cases -----------------------------------------------------------------------------------

_WIDTH = {"float32": 4, "float64": 8, "bfloat16": 2}


def _moments_case(n: int, d: int, dtype: str) -> Case:
    return Case(
        "moments",
        f"moments {dtype} {n}x{d}",
        lambda lab, seed: Rows(lab, n, d, dtype, seed),
        moments_contenders(dtype),
        judge_moments,
        bytes=_WIDTH[dtype] * n * d,
        work_bytes=2 * max(4, _WIDTH[dtype]) * n * d + (4 << 30),
        flops=float(n) * d * d,
        gates={"error": 1e-12 if dtype == "float64" else 256 * 2.0**-24},  # the documented bound
    )


def _pca_case(n: int, d: int) -> Case:
    return Case(
        "pca",
        f"pca float32 {n}x{d} k={K}",
        lambda lab, seed: Rows(lab, n, d, "float32", seed),
        pca_contenders,
        judge_pca,
        bytes=4 * n * d,
        work_bytes=8 * n * d + (4 << 30),
        gates={"variances": 2e-6, "residual": 1e-5},
    )


def cases(size: str) -> list[Case]:
    """Return the comparisons of a size."""
    share = {"full": 1, "quick": 8, "tiny": 2000}[size]
    return [
        _moments_case(1_000_000 // share, 768, "float32"),
        _moments_case(1_000_000 // share, 768, "bfloat16"),
        _pca_case(1_000_000 // share, 768),
        _moments_case(200_000 // share, 768, "float64"),
        _moments_case(4_000_000 // share, 64, "float32"),
        *([_moments_case(200_000 // share, 2048, "float32")] if size != "tiny" else []),
        *([_pca_case(200_000 // share, 2048)] if size != "tiny" else []),
    ]
