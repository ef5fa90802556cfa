"""Products of kernel matrices and vectors, against KeOps, torch, scikit-learn and numpy in chunks.

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
    """Points on both sides, coordinates, right-hand sides; and what is made of them."""

    n: int
    d: int
    e: int = 1
    kernel: str = "gaussian"
    dtype: str = "float32"
    way: str = ""  # "itself": y is x; "logsumexp"; "cutoff": a narrow kernel

    def __str__(self) -> str:
        sides = f" e={self.e}" if self.e > 1 else ""
        dtype = "" if self.dtype == "float32" else f" {self.dtype}"
        way = f" {self.way}" if self.way else ""
        return f"{self.kernel}{way} {self.n}x{self.n} d={self.d}{sides}{dtype}"

    @property
    def flops(self) -> float:
        """What no way of making every value can do without: a value of exp takes 6 fused steps.

        Beside numpy's matrix product this rate is the share of what the machine can do.
        """
        pairs = self.n**2 / (2 if self.way == "itself" else 1)
        again = self.e if self.way == "itself" else 0
        return 2.0 * pairs * (self.d + 6 + self.e + again)


class Input:
    """Normally distributed points, a bandwidth of the root of d; for a cut-off, of a hundredth."""

    def __init__(self, size: Size) -> None:
        rng = np.random.default_rng(0)
        kind = np.dtype(size.dtype)
        self.kernel, self.way = size.kernel, size.way
        self.width = float(size.d) ** 0.5 / (100 if size.way == "cutoff" else 1)
        self.x, self.y = (rng.standard_normal((size.n, size.d)).astype(kind) for _ in range(2))
        if size.way == "itself":
            self.y = self.x
        self.v = rng.standard_normal((size.n, size.e)).astype(kind)
        if size.way == "logsumexp":
            self.v = np.abs(self.v)
        if available("torch"):
            import torch

            self.tx, self.ty, self.tv = map(torch.from_numpy, (self.x, self.y, self.v))


def ours(b: Input) -> Any:
    return subspan.kernel_matvec(b.x, b.y, b.v, kernel=b.kernel, bandwidth=b.width)


def ours_log(b: Input) -> Any:
    return subspan.kernel_logsumexp(b.x, b.y, b.v, kernel=b.kernel, bandwidth=b.width)


def ours_cut(b: Input) -> Any:
    return subspan.kernel_matvec(b.x, b.y, b.v, kernel=b.kernel, bandwidth=b.width, cutoff=1e-9)


def in_chunks(b: Input, x: Any, product: Callable[[Any], Any]) -> list[Any]:
    """So many rows of K at a time as were quickest on a Zen 4, of 2^15..2^22 entries."""
    step = max(1, (1 << 20 if b.x.shape[1] <= 32 else 1 << 22) // len(b.y))
    return [product(x[i : i + step]) for i in range(0, len(x), step)]


# ---- numpy -----------------------------------------------------------------------------------


def numpy_exponents(b: Input) -> Callable[[Array], Array]:
    """|x|^2 + |y|^2 - 2 <x, y> by BLAS, every further step in place."""
    width = b.x.dtype.type(b.width)
    y = b.y / width
    norms = np.einsum("ij,ij->i", y, y)

    def exponents(x: Array) -> Array:
        x = x / width
        k = x @ (-2 * y.T)
        k += norms
        k += np.einsum("ij,ij->i", x, x)[:, None]
        if b.kernel == "gaussian":
            k *= -0.5
        else:
            np.sqrt(np.maximum(k, 0, out=k), out=k)
            np.negative(k, out=k)
        return np.asarray(k)

    return exponents


def numpy_distances(b: Input) -> Array:
    exponents = numpy_exponents(b)

    def product(x: Array) -> Array:
        k = exponents(x)
        return np.asarray(np.exp(k, out=k) @ b.v)

    return np.concatenate(in_chunks(b, b.x, product))


def numpy_log(b: Input) -> Array:
    exponents = numpy_exponents(b)

    def product(x: Array) -> Array:
        k = exponents(x)
        most = k.max(axis=1, keepdims=True)
        k -= most
        return np.asarray(np.log(np.exp(k, out=k) @ b.v) + most)

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
LOGS: dict[str, harness.Contender] = {
    "subspan.kernel_logsumexp": ours_log,
    "numpy in chunks": numpy_log,
}
CUT: dict[str, harness.Contender] = {
    "subspan.kernel_matvec, cut off": ours_cut,
    "subspan.kernel_matvec": ours,
    "numpy in chunks": numpy_distances,
}
KEOPS: dict[str, harness.Contender] = {}
KEOPS_LOGS: dict[str, harness.Contender] = {}
SKLEARN: dict[str, harness.Contender] = {}
if available("torch"):
    import torch

    def torch_exponents(b: Input) -> Callable[[Any], Any]:
        y = b.ty / b.width
        norms = y.square().sum(1)

        def exponents(x: Any) -> Any:
            k = torch.addmm(norms, x, y.T, alpha=-2)
            k += x.square().sum(1, keepdim=True)
            return k.mul_(-0.5) if b.kernel == "gaussian" else k.clamp_(min=0).sqrt_().neg_()

        return exponents

    def torch_distances(b: Input) -> Any:
        exponents = torch_exponents(b)

        def product(x: Any) -> Any:
            return exponents(x).exp_() @ b.tv

        return torch.cat(in_chunks(b, b.tx / b.width, product))

    def torch_log(b: Input) -> Any:
        exponents, logs = torch_exponents(b), b.tv[:, 0].log()

        def product(x: Any) -> Any:
            return exponents(x).add_(logs).logsumexp(1, keepdim=True)

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
    LOGS["torch in chunks"] = torch_log
if available("sklearn"):
    from sklearn.metrics.pairwise import rbf_kernel

    def sklearn_rbf(b: Input) -> Any:
        def product(x: Array) -> Any:
            return rbf_kernel(x, b.y, gamma=0.5 / b.width**2) @ b.v

        return np.concatenate(in_chunks(b, b.x, product))

    SKLEARN["sklearn in chunks"] = sklearn_rbf
if available("pykeops"):
    from pykeops.numpy import LazyTensor

    def keops(b: Input) -> Any:
        x, y = LazyTensor(b.x[:, None] / b.width), LazyTensor(b.y[None] / b.width)
        square = ((x - y) ** 2).sum(-1)
        k = (-square / 2).exp() if b.kernel == "gaussian" else (-square.sqrt()).exp()
        return k @ b.v

    def keops_log(b: Input) -> Any:
        x, y = LazyTensor(b.x[:, None] / b.width), LazyTensor(b.y[None] / b.width)
        exponent = -((x - y) ** 2).sum(-1) / 2 + LazyTensor(np.log(b.v)[None])
        return exponent.logsumexp(1)

    KEOPS["pykeops"] = keops
    KEOPS_LOGS["pykeops"] = keops_log

# ---- errors ----------------------------------------------------------------------------------


def judge(b: Input, result: Any) -> dict[str, float]:
    """Greatest error of some rows over the sum of |K v|, or of its logarithm, against float64."""
    x, y, v = (a.astype(np.float64) for a in (b.x[:JUDGED], b.y, b.v))
    result = np.asarray(result)[:JUDGED]
    if b.kernel == "softmax":
        k = x @ y.T / b.width
        k = np.exp(k - k.max(axis=1, keepdims=True))
        k /= k.sum(axis=1, keepdims=True)
    else:
        square = (x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T
        square = np.maximum(square, 0) / b.width**2
        k = np.exp(-square / 2 if b.kernel == "gaussian" else -np.sqrt(square))
    if b.way == "logsumexp":
        wanted = np.log(k @ v)
        return {"log": float((np.abs(result - wanted) / (1 + np.abs(wanted))).max())}
    error = np.abs(result - k @ v)
    size = np.abs(v).sum(0) if b.way == "cutoff" else k @ np.abs(v)
    return {"sum": float((error / size).max())}


# ---- sizes -----------------------------------------------------------------------------------

SIZES = {
    "full": [
        *(Size(20_000, d) for d in (3, 16, 64, 256)),
        *(Size(20_000, d, way="itself") for d in (3, 16, 64, 256)),
        *(Size(100_000, d) for d in (3, 64)),
        *(Size(20_000, d, 16) for d in (3, 64)),
        Size(20_000, 3, way="logsumexp"),
        Size(20_000, 64, way="logsumexp"),
        Size(20_000, 3, way="cutoff"),
        Size(20_000, 3, kernel="laplacian"),
        Size(20_000, 64, 64, kernel="softmax"),
        Size(10_000, 3, dtype="float64"),
        Size(10_000, 64, dtype="float64"),
    ],
    "quick": [
        *(Size(5000, d) for d in (3, 64)),
        *(Size(5000, d, way="itself") for d in (3, 64)),
        Size(5000, 64, 16),
        Size(5000, 3, way="logsumexp"),
        Size(5000, 64, 64, kernel="softmax"),
    ],
    "tiny": [
        *(Size(60, 3), Size(520, 3, way="itself"), Size(60, 3, way="logsumexp")),
        *(
            Size(60, 3, way="cutoff"),
            Size(60, 20, 2, kernel="softmax"),
            Size(60, 20, kernel="laplacian"),
        ),
    ],
}


def contenders(one: Size) -> dict[str, harness.Contender]:
    """Return who takes part: KeOps where it takes less than some minutes."""
    if one.kernel == "softmax":
        return SOFTMAX
    logs = one.way == "logsumexp"
    found = {"logsumexp": LOGS, "cutoff": CUT}.get(one.way, DISTANCES).copy()
    if one.n <= 20_000:
        found |= KEOPS_LOGS if logs else KEOPS
    if one.kernel == "gaussian" and not logs:
        found |= SKLEARN
    return found


def cases(size: str) -> list[Case]:
    """Return the comparisons of a size."""
    return [
        Case(
            f"kernel_matvec {one}",
            lambda one=one: Input(one),
            contenders(one),
            judge,
            one.flops,
            memory="peak" if one.e == 1 and one.n <= 20_000 else "",
            rounds=2 if one.n > 20_000 else None,
        )
        for one in SIZES[size]
    ]


def main(argv: list[str] | None = None) -> dict[str, Any]:
    return harness.main(__file__, cases, __doc__ or "", argv)


if __name__ == "__main__":
    main(sys.argv[1:])
