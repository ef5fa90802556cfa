"""Cases of kernel_matvec on a GPU: points on the device, against torch in chunks and KeOps."""

from __future__ import annotations

import warnings
from typing import Any

import subspan
from gpu_bench import Case, Contender, Lab
from harness import available

_SAMPLE = 16  # rows that are compared with float64
_CHUNK = 1 << 28  # entries of the matrix that torch makes at a time
_SLOW = 3e12  # pairs times coordinates beyond which rivals would take too long

# n, d, right-hand sides, dtype, what
_CASES: list[tuple[int, int, int, str, str]] = [
    (1_000_000, 3, 1, "float32", "gaussian"),
    (1_000_000, 64, 1, "float32", "gaussian"),
    (100_000, 3, 1, "float32", "gaussian"),
    (100_000, 3, 1, "float32", "laplacian"),
    (100_000, 16, 1, "float32", "gaussian"),
    (100_000, 64, 1, "float32", "gaussian"),
    (100_000, 64, 16, "float32", "gaussian"),
    (100_000, 256, 1, "float32", "gaussian"),
    (100_000, 64, 64, "float32", "softmax"),
    (100_000, 3, 1, "float32", "gaussian logsumexp"),
    (100_000, 3, 1, "float32", "gaussian gradient"),
    (100_000, 64, 1, "float32", "gaussian gradient"),
    (10_000, 3, 1, "float32", "gaussian"),
    (100_000, 3, 1, "float64", "gaussian"),
    (100_000, 16, 1, "float64", "gaussian"),
]


class Points:
    """Normally distributed points, a bandwidth of the root of d."""

    def __init__(self, lab: Lab, size: tuple[int, int, int, str], what: str, seed: int) -> None:
        torch = lab.torch
        generator = torch.Generator(lab.device).manual_seed(seed)
        n, d, e, dtype = size
        self.torch, self.kernel, self.way = torch, *(what + " ").split(" ")[:2]
        self.width = float(d) ** 0.5

        def draw(columns: int) -> Any:
            kind = getattr(torch, dtype)
            return torch.randn((n, columns), generator=generator, device=lab.device, dtype=kind)

        self.x, self.y, self.v = draw(d), draw(d), draw(e)
        if self.way == "logsumexp":
            self.v = self.v.abs()

    def chunk(self, x: Any, y: Any, v: Any) -> Any:
        """Return the result for some rows, dense."""
        torch = self.torch
        if self.kernel == "softmax":
            return ((x / self.width) @ y.mT).softmax(-1) @ v
        x, y = x / self.width, y / self.width
        norms = x.square().sum(1, keepdim=True) + y.square().sum(1)
        k = torch.addmm(norms, x, y.mT, alpha=-2)
        k = k.clamp_(min=0).sqrt_().neg_() if self.kernel == "laplacian" else k.mul_(-0.5)
        if self.way == "logsumexp":
            return (k + v[:, 0].log()).logsumexp(1, keepdim=True)
        k.exp_()
        if self.way == "gradient":  # in x, of the sum of all results
            k *= v[:, 0]
            return -(k.sum(1, keepdim=True) * x - k @ y) / self.width
        return k @ v


def ours(points: Points) -> Any:
    options = {"kernel": points.kernel, "bandwidth": points.width}
    if points.way == "logsumexp":
        return subspan.kernel_logsumexp(points.x, points.y, points.v, **options)
    if points.way == "gradient":
        x = points.x.detach().requires_grad_()
        subspan.kernel_matvec(x, points.y, points.v, **options).sum().backward()
        return x.grad
    return subspan.kernel_matvec(points.x, points.y, points.v, **options)


def torch_in_chunks(points: Points) -> Any:
    step = max(1, _CHUNK // len(points.y))
    parts = [
        points.chunk(points.x[i : i + step], points.y, points.v)
        for i in range(0, len(points.x), step)
    ]
    return points.torch.cat(parts)


def keops(points: Points) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pykeops.torch import LazyTensor
    x = points.x / points.width
    if points.way == "gradient":
        x.requires_grad_()
    left, right = LazyTensor(x[:, None, :]), LazyTensor((points.y / points.width)[None])
    if points.kernel == "softmax":
        scores = LazyTensor(points.x[:, None, :] / points.width) | LazyTensor(points.y[None])
        return scores.sumsoftmaxweight(LazyTensor(points.v[None]), axis=1)
    square = ((left - right) ** 2).sum(-1)
    exponent = -square.sqrt() if points.kernel == "laplacian" else -square / 2
    if points.way == "logsumexp":
        return exponent.logsumexp(dim=1, weight=LazyTensor(points.v[None]))
    out = exponent.exp() @ points.v
    if points.way == "gradient":
        return points.torch.autograd.grad(out.sum(), x)[0] / points.width
    return out


def judge(points: Points, result: Any) -> dict[str, float]:
    """Return the largest error of some rows, relative to the largest value there."""
    rows = slice(0, _SAMPLE)
    wide = [a.double() for a in (points.x[rows], points.y, points.v)]
    wanted = points.chunk(*wide)
    apart = (result[rows].double().reshape(wanted.shape) - wanted).abs().max()
    return {"error": float(apart / wanted.abs().max())}


def _contenders(size: tuple[int, int, int, str], what: str) -> Any:
    n, d, e, _ = size

    def found(lab: Lab) -> dict[str, Contender]:
        name = "subspan.kernel_logsumexp" if "logsumexp" in what else "subspan.kernel_matvec"
        contenders: dict[str, Contender] = {name: ours}
        if float(n) * n * (d + e) <= _SLOW or d <= 3:
            contenders["torch in chunks"] = torch_in_chunks
            if lab.on_gpu and available("pykeops"):
                contenders["pykeops"] = keops
        return contenders

    return found


def _case(n: int, d: int, e: int, dtype: str, what: str) -> Case:
    size = (n, d, e, dtype)
    width = 8 if dtype == "float64" else 4
    return Case(
        "kernel_matvec",
        f"kernel_matvec {what} {dtype} {n}x{n} d={d} e={e}",
        lambda lab, seed: Points(lab, size, what, seed),
        _contenders(size, what),
        judge,
        bytes=width * n * (2 * d + e),
        work_bytes=3 * width * min(n * n, _CHUNK) + 8 * n * (2 * d + 4 * e),
        flops=2.0 * n * n * (d + e),
        gates={"error": 1e-12 if dtype == "float64" else 1e-4},
    )


def cases(size: str) -> list[Case]:
    """Return the comparisons of a size."""
    share = {"full": 1, "quick": 8, "tiny": 500}[size]
    return [_case(max(n // share, 100), *rest) for n, *rest in _CASES]
