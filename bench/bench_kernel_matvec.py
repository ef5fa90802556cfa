"""Products of kernel matrices and vectors, against KeOps, torch and numpy in chunks.

python bench/bench_kernel_matvec.py [--quick] [--threads N] [--json FILE]
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import harness
import numpy as np
import subspan
from harness import Case, available

Array = np.ndarray[Any, Any]
JUDGED = 50  # rows that are compared with float64


@dataclass(frozen=True)
class Size:
    """Points on both sides, coordinates, right-hand sides."""

    n: int
    d: int
    e: int = 1
    kernel: str = "gaussian"
    dtype: str = "float32"

    def __str__(self) -> str:
        sides = f" e={self.e}" if self.e > 1 else ""
        dtype = "" if self.dtype == "float32" else f" {self.dtype}"
        return f"{self.kernel} {self.n}x{self.n} d={self.d}{sides}{dtype}"


class Input:
    """Normally distributed points, a bandwidth of the root of d."""

    def __init__(self, size: Size) -> None:
        rng = np.random.default_rng(0)
        kind = np.dtype(size.dtype)
        self.kernel, self.width = size.kernel, float(size.d) ** 0.5
        self.x, self.y = (rng.standard_normal((size.n, size.d)).astype(kind) for _ in range(2))
        self.v = rng.standard_normal((size.n, size.e)).astype(kind)
        if available("torch"):
            import torch

            self.tx, self.ty, self.tv = map(torch.from_numpy, (self.x, self.y, self.v))


def ours(b: Input) -> Any:
    return subspan.kernel_matvec(b.x, b.y, b.v, kernel=b.kernel, bandwidth=b.width)


def in_chunks(b: Input, x: Any, product: Callable[[Any], Any]) -> list[Any]:
    """So many rows of K at a time as were quickest on a Zen 4, of 2^15..2^22 entries."""
    step = max(1, (1 << 20 if b.x.shape[1] <= 32 else 1 << 22) // len(b.y))
    return [product(x[i : i + step]) for i in range(0, len(x), step)]


# ---- numpy -----------------------------------------------------------------------------------


def numpy_distances(b: Input) -> Array:
    """|x|^2 + |y|^2 - 2 <x, y> by BLAS, every further step in place."""
    width = b.x.dtype.type(b.width)
    y = b.y / width
    norms = np.einsum("ij,ij->i", y, y)

    def product(x: Array) -> Array:
        x = x / width
        k = x @ (-2 * y.T)
        k += norms
        k += np.einsum("ij,ij->i", x, x)[:, None]
        if b.kernel == "gaussian":
            k *= -0.5
        else:
            np.sqrt(np.maximum(k, 0, out=k), out=k)
            np.negative(k, out=k)
        return np.asarray(np.exp(k, out=k) @ b.v)

    return np.concatenate(in_chunks(b, b.x, product))


def numpy_softmax(b: Input) -> Array:
    def product(x: Array) -> Array:
        k = x @ b.y.T
        k -= k.max(axis=1, keepdims=True)
        np.exp(k, out=k)
        return np.asarray((k @ b.v) / k.sum(axis=1, keepdims=True))

    return np.concatenate(in_chunks(b, b.x / b.x.dtype.type(b.width), product))


# ---- torch and KeOps -------------------------------------------------------------------------

DISTANCES: dict[str, harness.Contender] = {
    "subspan.kernel_matvec": ours,
    "numpy in chunks": numpy_distances,
}
SOFTMAX: dict[str, harness.Contender] = {
    "subspan.kernel_matvec": ours,
    "numpy in chunks": numpy_softmax,
}
if available("torch"):
    import torch

    def torch_distances(b: Input) -> Any:
        y = b.ty / b.width
        norms = y.square().sum(1)

        def product(x: Any) -> Any:
            k = torch.addmm(norms, x, y.T, alpha=-2)
            k += x.square().sum(1, keepdim=True)
            k = k.mul_(-0.5) if b.kernel == "gaussian" else k.clamp_(min=0).sqrt_().neg_()
            return k.exp_() @ b.tv

        return torch.cat(in_chunks(b, b.tx / b.width, product))

    def torch_cdist(b: Input) -> Any:
        def product(x: Any) -> Any:
            k = torch.cdist(x, b.ty)
            k = k.square_().mul_(-0.5 / b.width**2) if b.kernel == "gaussian" else k.div_(-b.width)
            return k.exp_() @ b.tv

        return torch.cat(in_chunks(b, b.tx, product))

    def torch_softmax(b: Input) -> Any:
        def product(x: Any) -> Any:
            return (x @ b.ty.T).softmax(1) @ b.tv

        return torch.cat(in_chunks(b, b.tx / b.width, product))

    def torch_attention(b: Input) -> Any:
        attend = torch.nn.functional.scaled_dot_product_attention
        whole = attend(b.tx[None, None], b.ty[None, None], b.tv[None, None], scale=1 / b.width)
        return whole[0, 0]

    DISTANCES |= {"torch in chunks": torch_distances, "torch.cdist in chunks": torch_cdist}
    SOFTMAX |= {"torch in chunks": torch_softmax, "torch attention": torch_attention}
if available("pykeops"):
    from pykeops.numpy import LazyTensor

    def keops(b: Input) -> Any:
        x, y = LazyTensor(b.x[:, None] / b.width), LazyTensor(b.y[None] / b.width)
        square = ((x - y) ** 2).sum(-1)
        k = (-square / 2).exp() if b.kernel == "gaussian" else (-square.sqrt()).exp()
        return k @ b.v

    DISTANCES["pykeops"] = keops


# ---- errors ----------------------------------------------------------------------------------


def judge(b: Input, result: Any) -> dict[str, float]:
    """Greatest error of some rows over the sum of |K v|, against float64."""
    x, y, v = (a.astype(np.float64) for a in (b.x[:JUDGED], b.y, b.v))
    if b.kernel == "softmax":
        k = x @ y.T / b.width
        k = np.exp(k - k.max(axis=1, keepdims=True))
        k /= k.sum(axis=1, keepdims=True)
    else:
        square = (x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T
        square = np.maximum(square, 0) / b.width**2
        k = np.exp(-square / 2 if b.kernel == "gaussian" else -np.sqrt(square))
    error = np.abs(np.asarray(result)[:JUDGED] - k @ v)
    return {"sum": float((error / (k @ np.abs(v))).max())}


# ---- sizes -----------------------------------------------------------------------------------

SIZES = {
    "full": [
        *(Size(20_000, d) for d in (3, 16, 64, 256)),
        *(Size(20_000, d, 16) for d in (3, 64)),
        Size(20_000, 3, kernel="laplacian"),
        Size(20_000, 64, 64, kernel="softmax"),
        Size(10_000, 3, dtype="float64"),
        Size(10_000, 64, dtype="float64"),
    ],
    "quick": [
        *(Size(5000, d) for d in (3, 64)),
        Size(5000, 64, 16),
        Size(5000, 64, 64, kernel="softmax"),
    ],
    "tiny": [Size(60, 3), Size(60, 20, 2, kernel="softmax"), Size(60, 20, kernel="laplacian")],
}


def cases(size: str) -> list[Case]:
    """Return the comparisons of a size."""
    return [
        Case(
            f"kernel_matvec {one}",
            lambda one=one: Input(one),
            SOFTMAX if one.kernel == "softmax" else DISTANCES,
            judge,
            2.0 * one.n**2 * (one.d + one.e),
            memory="peak" if one.e == 1 else "",
        )
        for one in SIZES[size]
    ]


def main(argv: list[str] | None = None) -> dict[str, Any]:
    return harness.main(__file__, cases, __doc__ or "", argv)


if __name__ == "__main__":
    main(sys.argv[1:])
