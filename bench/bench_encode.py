"""Sparse autoencoders: encoders against bare products and torch, decoders and a training step too.

python bench/bench_encode.py [--quick] [--threads N] [--json FILE]
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from typing import Any

import harness
import numpy as np
import subspan
from harness import Case, available

Array = np.ndarray[Any, Any]
JUDGED = 64  # rows whose codes are compared with float64


@dataclass(frozen=True)
class Size:
    """An autoencoder, and how its encoder lies in memory."""

    rows: int
    d: int
    n: int
    k: int
    dtype: str = "float32"
    transposed: bool = False

    def __str__(self) -> str:
        layout = ", transposed" if self.transposed else ""
        return f"{self.rows}x{self.d} n={self.n} k={self.k} {self.dtype}{layout}"


class Input:
    """Rows and weights, in numpy and torch, and codes of some rows in float64."""

    def __init__(self, size: Size) -> None:
        rng = np.random.default_rng(0)
        self.k, kind = size.k, np.dtype(size.dtype)
        self.x = rng.standard_normal((size.rows, size.d), np.float32).astype(kind)
        w_dec = rng.standard_normal((size.n, size.d), np.float32).astype(kind)
        self.w_dec = w_dec / np.linalg.norm(w_dec, axis=1, keepdims=True)
        self.w_enc = self.w_dec.copy().T if size.transposed else self.w_dec.T.copy()
        self.b_enc = (rng.standard_normal(size.n) / 10).astype(kind)
        self.b_dec = (rng.standard_normal(size.d) / 10).astype(kind)
        if available("torch"):
            import torch

            self.t = {
                name: torch.from_numpy(getattr(self, name))
                for name in ("x", "w_enc", "b_enc", "w_dec", "b_dec")
            }

    def z(self, rows: int) -> Array:
        """Pre-activations of the first rows in float64."""
        centred = self.x[:rows].astype(np.float64) - self.b_dec
        return np.asarray(centred @ self.w_enc.astype(np.float64) + self.b_enc)


# ---- encoders --------------------------------------------------------------------------------


def product(b: Input) -> None:
    """One product of numpy's BLAS: what an encoder that stores z does at least."""
    b.x @ b.w_enc


def judge_rows(b: Input, result: Any) -> dict[str, float]:
    """Errors of values, and by how much what was selected is worse than the best, over max |z|."""
    if result is None:
        return {}
    values, indices = (np.asarray(part)[:JUDGED] for part in result)
    z = b.z(len(values))
    wanted = np.sort(np.maximum(np.partition(z, -b.k)[:, -b.k :], 0))
    found = np.sort(np.maximum(np.take_along_axis(z, indices, axis=1), 0))
    values = np.sort(values)
    scale = np.abs(z).max()
    return {
        "values": float(np.abs(values - wanted).max() / scale),
        "selection": float(np.abs(found - wanted).max() / scale),
    }


def ours(b: Input) -> Any:
    return subspan.topk_encode(b.x, b.w_enc, b.b_enc, k=b.k, b_pre=b.b_dec)


def certified(b: Input) -> Any:
    return subspan.topk_encode(b.x, b.w_enc, b.b_enc, k=b.k, b_pre=b.b_dec, precision="certified")


ENCODERS: dict[str, harness.Contender] = {
    "subspan.topk_encode": ours,
    "subspan.topk_encode certified": certified,
    "numpy product": product,
}
if available("torch"):
    import torch

    def torch_z(b: Input) -> torch.Tensor:
        return torch.addmm(b.t["b_enc"], b.t["x"] - b.t["b_dec"], b.t["w_enc"])

    def torch_product(b: Input) -> None:
        torch_z(b)

    def torch_topk(b: Input) -> Any:
        values, indices = torch_z(b).topk(b.k)
        return values.relu(), indices

    ENCODERS |= {"torch product": torch_product, "torch product, topk": torch_topk}
if available("sparsify") and available("sparsify.fused_encoder"):
    from sparsify.fused_encoder import fused_encoder

    def by_sparsify(b: Input) -> Any:
        t = b.t
        return fused_encoder(t["x"] - t["b_dec"], t["w_enc"].T, t["b_enc"], b.k, "topk")[:2]

    ENCODERS["sparsify fused_encoder"] = by_sparsify


# ---- ragged codes ----------------------------------------------------------------------------


def ragged(b: Input, kind: str) -> Any:
    if kind == "batch_topk_encode":
        return subspan.batch_topk_encode(b.x, b.w_enc, b.b_enc, k=b.k, b_pre=b.b_dec)
    return subspan.threshold_encode(b.x, b.w_enc, b.b_enc, threshold=3.0, b_pre=b.b_dec)


def dense(b: Input, kind: str) -> Any:
    """What training code does: all of z, masked."""
    z = torch_z(b)
    if kind == "threshold_encode":
        return z * (z > 3.0)
    flat = z.relu().flatten()
    kept = flat.topk(b.k * len(z))
    return torch.zeros_like(flat).scatter(0, kept.indices, kept.values).reshape(z.shape)


def judge_ragged(b: Input, result: Any) -> dict[str, float]:
    """Errors of the kept values over the largest."""
    if result is None:
        return {}
    if isinstance(result, subspan.RaggedCode):
        result = result.to_dense(b.w_enc.shape[1])
    full = np.asarray(result)[:JUDGED]
    return {
        "values": float(np.abs(np.where(full > 0, full - b.z(len(full)), 0)).max() / full.max())
    }


def ragged_case(kind: str, size: Size) -> Case:
    contenders: dict[str, harness.Contender] = {
        f"subspan.{kind}": lambda b: ragged(b, kind),
        "numpy product": product,
    }
    if available("torch"):
        contenders["torch, dense"] = lambda b: dense(b, kind)
    return Case(f"{kind} {size}", lambda: Input(size), contenders, judge_ragged, flops(size))


# ---- a decoder -------------------------------------------------------------------------------


class Code(Input):
    """Any k latents of each row, with values of either sign."""

    def __init__(self, size: Size) -> None:
        super().__init__(size)
        rng = np.random.default_rng(1)
        order = np.argsort(rng.random((size.rows, size.n), np.float32), axis=1)
        self.indices = np.ascontiguousarray(order[:, : size.k])
        self.values = rng.standard_normal((size.rows, size.k)).astype(self.w_dec.dtype)
        self.pair = {}
        if available("torch"):
            import torch

            self.pair = {n: torch.from_numpy(getattr(self, n)) for n in ("values", "indices")}


def scattered(b: Code) -> Array:
    """A dense code and one product of numpy's BLAS."""
    code = np.zeros((len(b.values), len(b.w_dec)), b.values.dtype)
    np.put_along_axis(code, b.indices, b.values, axis=1)
    return np.asarray(code @ b.w_dec + b.b_dec)


def bag(b: Code) -> Array:
    sums = torch.nn.functional.embedding_bag(
        b.pair["indices"], b.t["w_dec"], per_sample_weights=b.pair["values"], mode="sum"
    )
    return (sums + b.t["b_dec"]).numpy()


def judge_decoded(b: Code, result: Array) -> dict[str, float]:
    """Error of some rows in the Frobenius norm, against float64."""
    rows = slice(0, JUDGED)
    pairs = zip(b.values[rows].astype(np.float64), b.indices[rows], strict=True)
    wanted = np.stack([v @ b.w_dec[i].astype(np.float64) for v, i in pairs]) + b.b_dec
    return {"values": float(np.linalg.norm(result[rows] - wanted) / np.linalg.norm(wanted))}


DECODERS: dict[str, harness.Contender] = {
    "subspan.sparse_decode": lambda b: subspan.sparse_decode(b.values, b.indices, b.w_dec, b.b_dec),
    "dense code, numpy product": scattered,
}
if available("torch"):
    DECODERS["torch, embedding_bag"] = bag


# ---- a training step -------------------------------------------------------------------------


def gradients(b: Input, reconstruct: Any) -> Any:
    """Of the squared error, with respect to all weights."""
    names = ("w_enc", "b_enc", "w_dec", "b_dec")
    weights = {name: b.t[name].detach().requires_grad_() for name in names}
    error = reconstruct(b, **weights) - b.t["x"]
    return torch.autograd.grad(error.square().sum(), list(weights.values()))


def sparse_step(
    b: Input, w_enc: Any, b_enc: Any, w_dec: Any, b_dec: Any, *, precision: str = "exact"
) -> Any:
    code = subspan.topk_encode(b.t["x"], w_enc, b_enc, k=b.k, b_pre=b_dec, precision=precision)
    return subspan.sparse_decode(code.values, code.indices, w_dec, b_dec)


def selected(b: Input, w_enc: Any, b_enc: Any, b_dec: Any) -> Any:
    values, indices = torch.addmm(b_enc, b.t["x"] - b_dec, w_enc).topk(b.k)
    return values.relu(), indices


def dense_step(b: Input, w_enc: Any, b_enc: Any, w_dec: Any, b_dec: Any) -> Any:
    values, indices = selected(b, w_enc, b_enc, b_dec)
    code = values.new_zeros(len(values), len(w_dec)).scatter(-1, indices, values)
    return torch.addmm(b_dec, code, w_dec)


def bag_step(b: Input, w_enc: Any, b_enc: Any, w_dec: Any, b_dec: Any) -> Any:
    values, indices = selected(b, w_enc, b_enc, b_dec)
    sums = torch.nn.functional.embedding_bag(indices, w_dec, per_sample_weights=values, mode="sum")
    return sums + b_dec


def judge_step(b: Input, result: Any) -> dict[str, float]:
    """Error of the gradients of both matrices in the Frobenius norm, against float64."""
    from scipy.sparse import csr_array

    rows, n = len(b.x), b.w_enc.shape[1]
    z = b.z(rows)
    indices = np.argpartition(z, n - b.k)[:, n - b.k :]
    values = np.maximum(np.take_along_axis(z, indices, axis=1), 0)
    offsets = np.arange(rows + 1) * b.k
    code = csr_array((values.ravel(), indices.ravel(), offsets), shape=(rows, n))
    w_dec, x = b.w_dec.astype(np.float64), b.x.astype(np.float64)
    error = 2 * (code @ w_dec + b.b_dec - x)
    dz = np.stack([w_dec[i] @ e for i, e in zip(indices, error, strict=True)]) * (values > 0)
    of_z = csr_array((dz.ravel(), indices.ravel(), offsets), shape=(rows, n))
    wanted = {"w_enc": (of_z.T @ (x - b.b_dec)).T, "w_dec": code.T @ error}
    got = {"w_enc": result[0], "w_dec": result[2]}
    return {
        name: float(np.linalg.norm(got[name].numpy() - right) / np.linalg.norm(right))
        for name, right in wanted.items()
    }


STEPS: dict[str, harness.Contender] = {
    "subspan.topk_encode, sparse_decode": lambda b: gradients(b, sparse_step),
    "subspan, certified": lambda b: gradients(b, partial(sparse_step, precision="certified")),
    "torch, dense code": lambda b: gradients(b, dense_step),
    "torch, embedding_bag": lambda b: gradients(b, bag_step),
}


# ---- sizes -----------------------------------------------------------------------------------

BATCHES = {
    "full": [
        *(Size(4096, 768, 24576, 32, transposed=t) for t in (False, True)),
        Size(1024, 2048, 16384, 64),
    ],
    "quick": [Size(512, 768, 24576, 32)],
    "tiny": [Size(20, 24, 200, 5), Size(9, 24, 200, 5, "float64")],
}
FEW = {
    "full": [Size(b, 768, 24576, 32, transposed=t) for b in (1, 8, 16) for t in (False, True)],
    "quick": [Size(b, 768, 24576, 32, transposed=b == 8) for b in (1, 8, 16)],
    "tiny": [Size(b, 24, 200, 5, transposed=b == 1) for b in (1, 8)],
}
RAGGED = {
    "full": [Size(1024, 768, 24576, 32)],
    "quick": [Size(256, 768, 24576, 32)],
    "tiny": [Size(20, 24, 200, 5)],
}
DECODED = {
    "full": [
        Size(4096, 768, 24576, 32),
        *(Size(256, 768, 24576, 24576 // part) for part in (64, 16, 8, 4, 2, 1)),
    ],
    "quick": [Size(64, 768, 24576, k) for k in (32, 24576)],
    "tiny": [Size(40, 24, 200, k) for k in (5, 200)],
}
TRAINED = {
    "full": [
        *(Size(4096, 768, 24576, 32, transposed=t) for t in (False, True)),
        Size(4096, 2048, 16384, 64),
    ],
    "quick": [Size(256, 768, 24576, 32)],
    "tiny": [Size(20, 24, 200, 5)],
}


def flops(size: Size) -> float:
    return 2.0 * size.rows * size.d * size.n


def cases(size: str) -> list[Case]:
    """Return the comparisons of a size."""
    encoders = [
        Case(
            f"topk_encode {one}",
            lambda one=one: Input(one),
            ENCODERS,
            judge_rows,
            flops(one),
            memory="peak" if one in BATCHES[size] else "",
        )
        for one in BATCHES[size] + FEW[size]
    ]
    kinds = ("batch_topk_encode", "threshold_encode")
    ragged_ones = [ragged_case(kind, one) for kind in kinds for one in RAGGED[size]]
    steps = [
        Case(f"step {one}", lambda one=one: Input(one), STEPS, judge_step)
        for one in TRAINED[size]
        if available("torch") and available("scipy")
    ]
    decoders = [
        Case(f"sparse_decode {one}", lambda one=one: Code(one), DECODERS, judge_decoded)
        for one in DECODED[size]
    ]
    return encoders + ragged_ones + decoders + steps


def main(argv: list[str] | None = None) -> dict[str, Any]:
    return harness.main(__file__, cases, __doc__ or "", argv)


if __name__ == "__main__":
    main(sys.argv[1:])
