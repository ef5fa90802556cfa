"""Cases of svd, eigh and qr on a GPU: shapes that people have, every driver that torch offers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import subspan
from gpu_bench import Case, Contender, Lab

Shape = tuple[int, int, int]

_SAMPLE = 8  # matrices of a batch whose values are compared with numpy's in float64


class Matrices:
    """A batch on the device, as torch and cupy see it: the same memory."""

    def __init__(self, lab: Lab, a: Any) -> None:
        self.lab, self.a = lab, a
        self.c = lab.cupy.from_dlpack(a) if lab.cupy is not None else None

    def part(self, b: int) -> Matrices:
        return self if b == len(self.a) else Matrices(self.lab, self.a[:b])


def _maker(shape: Shape, dtype: str, *, symmetric: bool) -> Callable[[Lab, int], Matrices]:
    def make(lab: Lab, seed: int) -> Matrices:
        torch = lab.torch
        generator = torch.Generator(lab.device).manual_seed(seed)
        kind = getattr(torch, dtype)
        a = torch.randn(shape, generator=generator, device=lab.device, dtype=kind)
        return Matrices(lab, a + a.mT if symmetric else a)

    return make


# ---- contenders ------------------------------------------------------------------------------


def _with_cupy(lab: Lab, name: str, run: Contender) -> dict[str, Contender]:
    return {name: run} if lab.cupy is not None else {}


def svd_contenders(lab: Lab) -> dict[str, Contender]:
    torch, cupy = lab.torch, lab.cupy
    found: dict[str, Contender] = {
        "subspan.svd": lambda x: subspan.svd(x.a),
        "subspan.svd no wait": lambda x: subspan.svd(x.a, nonfinite="propagate", errors="info"),
        "torch": lambda x: torch.linalg.svd(x.a, full_matrices=False),
    }
    for driver in ("gesvdj", "gesvda", "gesvd") if lab.on_gpu else ():
        found[f"torch {driver}"] = lambda x, driver=driver: torch.linalg.svd(
            x.a, full_matrices=False, driver=driver
        )
    return found | _with_cupy(lab, "cupy", lambda x: cupy.linalg.svd(x.c, full_matrices=False))


def svdvals_contenders(lab: Lab) -> dict[str, Contender]:
    torch, cupy = lab.torch, lab.cupy
    return {
        "subspan.svdvals": lambda x: subspan.svdvals(x.a),
        "torch": lambda x: torch.linalg.svdvals(x.a),
        **_with_cupy(lab, "cupy", lambda x: cupy.linalg.svd(x.c, compute_uv=False)),
    }


def eigh_contenders(lab: Lab) -> dict[str, Contender]:
    torch, cupy = lab.torch, lab.cupy
    return {
        "subspan.eigh": lambda x: subspan.eigh(x.a),
        "subspan.eigh no wait": lambda x: subspan.eigh(x.a, nonfinite="propagate", errors="info"),
        "torch": lambda x: torch.linalg.eigh(x.a),
        **_with_cupy(lab, "cupy", lambda x: cupy.linalg.eigh(x.c)),
    }


def eigvalsh_contenders(lab: Lab) -> dict[str, Contender]:
    torch, cupy = lab.torch, lab.cupy
    return {
        "subspan.eigvalsh": lambda x: subspan.eigvalsh(x.a),
        "torch": lambda x: torch.linalg.eigvalsh(x.a),
        **_with_cupy(lab, "cupy", lambda x: cupy.linalg.eigvalsh(x.c)),
    }


def qr_contenders(lab: Lab) -> dict[str, Contender]:
    torch, cupy = lab.torch, lab.cupy
    return {
        "subspan.qr": lambda x: subspan.qr(x.a),
        "subspan.qr no wait": lambda x: subspan.qr(x.a, nonfinite="propagate"),
        "torch": lambda x: torch.linalg.qr(x.a),
        **_with_cupy(lab, "cupy", lambda x: cupy.linalg.qr(x.c)),
    }


# ---- errors: LAPACK's test ratios, over the whole batch ---------------------------------------


def _doubles(x: Matrices, *arrays: Any) -> list[Any]:
    """Return results of any library as float64 tensors on the device of the input."""
    torch = x.lab.torch
    return [(a if isinstance(a, torch.Tensor) else torch.from_dlpack(a)).double() for a in arrays]


def _norm(a: Any) -> Any:
    """1-norm of every matrix."""
    return a.abs().sum(dim=-2).amax(dim=-1)


def _residual(x: Matrices, product: Any) -> float:
    a = x.a.double()
    ulp = x.lab.torch.finfo(x.a.dtype).eps
    return float((_norm(a - product) / (_norm(a) * max(a.shape[-2:]) * ulp)).max())


def _departure(x: Matrices, q: Any) -> float:
    """|I - Q^T Q| / (rows ulp), the largest of the batch."""
    eye = x.lab.torch.eye(q.shape[-1], dtype=q.dtype, device=q.device)
    ulp = x.lab.torch.finfo(x.a.dtype).eps
    return float(_norm(eye - q.mT @ q).max() / (q.shape[-2] * ulp))


def _sampled(x: Matrices, values: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return some matrices, over all of the batch, and their values."""
    at = np.unique(np.linspace(0, len(x.a) - 1, _SAMPLE).astype(int)).tolist()
    return x.a[at].double().cpu().numpy(), values[at].cpu().numpy()


def judge_values(x: Matrices, s: Any) -> dict[str, float]:
    """R5, with the values that numpy finds in float64 for some of the matrices."""
    a, got = _sampled(x, _doubles(x, s)[0])
    truth = np.linalg.svd(a, compute_uv=False)
    ulp = x.lab.torch.finfo(x.a.dtype).eps
    error = np.abs(got - truth).max(axis=-1) / truth.max(axis=-1)
    return {"R5": float(error.max() / (truth.shape[-1] * ulp))}


def judge_svd(x: Matrices, result: Any) -> dict[str, float]:
    u, s, vh = _doubles(x, *result[:3])
    return {
        "R1": _residual(x, (u * s[..., None, :]) @ vh),
        "R2": _departure(x, u),
        "R3": _departure(x, vh.mT),
        **judge_values(x, s),
    }


def judge_eigenvalues(x: Matrices, w: Any) -> dict[str, float]:
    """E3, with the values that numpy finds in float64 for some of the matrices."""
    a, got = _sampled(x, _doubles(x, w)[0])
    truth = np.linalg.eigvalsh(a)
    ulp = x.lab.torch.finfo(x.a.dtype).eps
    error = np.abs(got - truth).max(axis=-1) / np.abs(truth).max(axis=-1)
    return {"E3": float(error.max() / ulp)}


def judge_eigh(x: Matrices, result: Any) -> dict[str, float]:
    w, z = _doubles(x, *result[:2])
    return {
        "E1": _residual(x, (z * w[..., None, :]) @ z.mT),
        "E2": _departure(x, z),
        **judge_eigenvalues(x, w),
    }


def judge_qr(x: Matrices, result: Any) -> dict[str, float]:
    q, r = _doubles(x, *result)
    return {"R1": _residual(x, q @ r), "R2": _departure(x, q)}


# ---- cases -----------------------------------------------------------------------------------

_KINDS = {
    "svd": (svd_contenders, judge_svd),
    "svdvals": (svdvals_contenders, judge_values),
    "eigh": (eigh_contenders, judge_eigh),
    "eigvalsh": (eigvalsh_contenders, judge_eigenvalues),
    "qr": (qr_contenders, judge_qr),
}

_SVD: list[Shape] = [
    (1000, 60, 3),
    (10_000, 32, 32),
    (1000, 32, 32),
    (100_000, 3, 3),
    (10_000, 8, 8),
    (1000, 64, 64),
    (1000, 128, 33),
    (200, 96, 64),
    (200, 128, 128),
    (64, 256, 256),
    (500, 2000, 64),
]
_EIGH: list[Shape] = [
    (10_000, 32, 32),
    (10_000, 16, 16),
    (1000, 64, 64),
    (500, 100, 100),
    (64, 256, 256),
]
_QR: list[Shape] = [(8192, 16, 8), (1000, 64, 64), (500, 1000, 32)]


def _case(function: str, shape: Shape, dtype: str, size: str) -> Case:
    count, m, n = shape
    if size == "quick":
        count = max(2, count // 8)
    elif size == "tiny":
        count = 3
    contenders, judge = _KINDS[function]
    stem = {"svdvals": "svd", "eigvalsh": "eigh"}.get(function, function)
    symmetric = stem == "eigh"
    width = 4 if dtype == "float32" else 8
    return Case(
        stem,
        f"{function} {dtype} {count}x({m}x{n})",
        _maker((count, m, n), dtype, symmetric=symmetric),
        contenders,
        judge,
        bytes=width * count * m * n,
        work_bytes=10 * 8 * count * m * n,
        batch=count,
    )


def cases(size: str) -> list[Case]:
    """Return float32 with vectors."""
    return [
        _case(function, shape, "float32", size)
        for function, shapes in (("svd", _SVD), ("eigh", _EIGH), ("qr", _QR))
        for shape in shapes
        if size != "tiny" or shape[1] <= 100
    ]


def further_cases(size: str) -> list[Case]:
    """Return some of float64, some of values only."""
    chosen: list[tuple[str, str, Shape]] = [
        ("svd", "float64", (10_000, 32, 32)),
        ("svd", "float64", (1000, 60, 3)),
        ("svd", "float64", (1000, 64, 64)),
        ("svd", "float64", (200, 128, 128)),
        ("svdvals", "float32", (10_000, 32, 32)),
        ("svdvals", "float32", (1000, 64, 64)),
        ("svdvals", "float32", (200, 128, 128)),
        ("eigh", "float64", (10_000, 32, 32)),
        ("eigh", "float64", (1000, 64, 64)),
        ("eigvalsh", "float32", (1000, 64, 64)),
        ("qr", "float64", (1000, 64, 64)),
        ("svd", "float64", (64, 256, 256)),
        ("eigh", "float64", (64, 256, 256)),
    ]
    return [
        _case(function, shape, dtype, size)
        for function, dtype, shape in chosen
        if size != "tiny" or shape[1] <= 64
    ]
